//! `tetrachord serve`: one node as a process.

use super::Exit;
use super::log::Log;
use clap::Args;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;

/// Run one node
#[derive(Debug, Args)]
pub(crate) struct ServeArgs {
    /// The node's file
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// End when standard input ends, for a parent whose nodes must not outlive it
    #[arg(long)]
    until_stdin_ends: bool,
}

/// Runs a node. A panic of it is a fault like any other: the log says what it was, the exit code that it was one.
pub(crate) fn run(args: &ServeArgs, log: &Log) -> anyhow::Result<Exit> {
    if args.until_stdin_ends {
        end_with_stdin()?;
    }
    log.tell_panics();
    // What a node keeps is for its owner's eyes alone, whoever makes the files.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    let config = crate::config::NodeConfig::load(&args.config)?;
    let run = AssertUnwindSafe(|| crate::node::run::run(config));
    catch_unwind(run).unwrap_or_else(|_| Err(anyhow::anyhow!("the node panicked; see above")))?;
    Ok(Exit::Ok)
}

/// Asks this process to end, as by SIGTERM, when its standard input ends.
fn end_with_stdin() -> anyhow::Result<()> {
    let wait = || {
        // Whatever stops it from being read: the parent is not there any more.
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        let me = rustix::process::getpid();
        let _ = rustix::process::kill_process(me, rustix::process::Signal::TERM);
    };
    std::thread::Builder::new().name("stdin".to_string()).spawn(wait)?;
    Ok(())
}

/// Starts this program anew, in the same process, with an allocator that keeps little: glibc reads these settings when a
/// program begins, and by default keeps an arena for every thread and much of what was freed. What that
/// saves and costs: docs/performance.md. Where the settings mean nothing they do nothing; if they are set already, or
/// it does not work, everything goes on as it is.
pub(crate) fn be_thrifty() {
    use std::os::unix::process::CommandExt;
    const SETTINGS: [(&str, &str); 5] = [
        ("GLIBC_TUNABLES", "glibc.malloc.mxfast=0"),
        ("MALLOC_ARENA_MAX", "1"),
        ("MALLOC_TRIM_THRESHOLD_", "1048576"),
        ("MALLOC_TOP_PAD_", "65536"),
        ("MALLOC_MMAP_THRESHOLD_", "131072"),
    ];
    let is_chosen = SETTINGS.iter().any(|(name, _)| std::env::var_os(name).is_some());
    if let (false, Ok(program)) = (is_chosen, std::env::current_exe()) {
        // If it fails the allocator stays as it is.
        let _ = std::process::Command::new(program).args(std::env::args_os().skip(1)).envs(SETTINGS).exec();
    }
}
