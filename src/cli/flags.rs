//! The flags that every command takes, and those that mean something to it: a flag without effect is an error, like a misspelt setting, and
//! no help speaks of it.

use super::{Cli, usage};
use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, CommandFactory, FromArgMatches};

/// Reads the command line; ends the process if it is wrong, or asks for help.
pub(crate) fn parse() -> anyhow::Result<Cli> {
    let matches = command().get_matches();
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    check(&matches)?;
    Ok(cli)
}

/// The command line, each command with the help that is true of it.
fn command() -> clap::Command {
    let mut all = Cli::command();
    let common: Vec<Arg> = all.get_arguments().filter(|arg| arg.is_global_set()).cloned().collect();
    let names: Vec<String> = all.get_subcommands().map(|command| command.get_name().to_string()).collect();
    for name in names {
        let meant = meant(&name);
        let has_use = |arg: &&Arg| meant.contains(&arg.get_id().as_str());
        let without: Vec<Arg> = common.iter().filter(|arg| !has_use(arg)).cloned().collect();
        let hidden = without.into_iter().map(|arg| arg.hide(true));
        all = all.mut_subcommand(name, |command| command.args(hidden));
    }
    all
}

/// What comes from the environment is meant for whichever command has use for it.
fn check(matches: &ArgMatches) -> anyhow::Result<()> {
    let name = matches.subcommand_name().unwrap_or_default();
    for (id, flag) in [("cluster", "--cluster"), ("json", "--json"), ("deadline_ms", "--deadline-ms")] {
        if !meant(name).contains(&id) && matches.value_source(id) == Some(ValueSource::CommandLine) {
            return Err(usage(format!("{flag} means nothing to `{name}`")));
        }
    }
    Ok(())
}

/// Which of the common flags mean something to a command.
fn meant(command: &str) -> &'static [&'static str] {
    match command {
        "demo" | "dev" | "init" | "check" => &["json"],
        "serve" => &[],
        "status" | "proof" => &["cluster", "json"],
        _ => &["cluster", "json", "deadline_ms"],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_help_speaks_of_a_flag_without_effect() {
        let mut all = command();
        all.build();
        for name in
            ["demo", "dev", "init", "check", "serve", "status", "proof", "get", "put", "bench", "record"]
        {
            let one = all.find_subcommand_mut(name).expect("it is a command");
            let help = one.render_long_help().to_string();
            for (id, flag) in
                [("cluster", "--cluster <"), ("json", "--json"), ("deadline_ms", "--deadline-ms")]
            {
                assert_eq!(help.contains(flag), meant(name).contains(&id), "{name} {flag}\n{help}");
            }
        }
    }

    #[test]
    fn a_flag_counts_on_either_side_of_the_command() {
        let read = |line: &[&str]| {
            let matches = command().try_get_matches_from(line).map_err(|error| error.to_string())?;
            check(&matches).map_err(|error| error.to_string())?;
            Ok::<_, String>(matches.get_one::<u64>("deadline_ms").copied())
        };
        assert_eq!(read(&["tetrachord", "--deadline-ms", "7", "get", "k"]), Ok(Some(7)));
        assert_eq!(read(&["tetrachord", "get", "k", "--deadline-ms", "7"]), Ok(Some(7)));
        for line in [["tetrachord", "--deadline-ms", "7", "dev"], ["tetrachord", "dev", "--deadline-ms", "7"]]
        {
            assert_eq!(read(&line), Err("--deadline-ms means nothing to `dev`".to_string()));
        }
    }
}
