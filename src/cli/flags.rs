//! The flags that every command takes, and those that mean something to it: a flag without effect is an error, like a misspelt setting.

use super::{Cli, Command, usage};
use clap::parser::ValueSource;
use clap::{ArgMatches, CommandFactory, FromArgMatches};

/// Reads the command line; ends the process if it is wrong, or asks for help.
pub(crate) fn parse() -> anyhow::Result<Cli> {
    let matches = Cli::command().get_matches();
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    check(&matches, &cli)?;
    Ok(cli)
}

/// What comes from the environment is meant for whichever command has use for it.
fn check(matches: &ArgMatches, cli: &Cli) -> anyhow::Result<()> {
    let name = matches.subcommand_name().unwrap_or_default();
    for (flag, id, has_use) in cli.command.meant() {
        if !has_use && matches.value_source(id) == Some(ValueSource::CommandLine) {
            return Err(usage(format!("{flag} means nothing to `{name}`")));
        }
    }
    Ok(())
}

impl Command {
    /// Which of the common flags mean something.
    fn meant(&self) -> [(&'static str, &'static str, bool); 3] {
        let (cluster, json, deadline) = match self {
            Self::Demo(_) | Self::Dev(_) | Self::Init(_) | Self::Check(_) => (false, true, false),
            Self::Serve(_) => (false, false, false),
            Self::Status | Self::Proof(_) => (true, true, false),
            Self::Get(_)
            | Self::Exists(_)
            | Self::Put(_)
            | Self::Append(_)
            | Self::Del(_)
            | Self::Cas(_)
            | Self::Incr(_)
            | Self::Bench(_)
            | Self::Record(_) => (true, true, true),
        };
        [
            ("--cluster", "cluster", cluster),
            ("--json", "json", json),
            ("--deadline-ms", "deadline_ms", deadline),
        ]
    }
}
