//! The process of a node: started, killed, stopped and continued by signals.

use anyhow::Context;
use rustix::process::{Pid, Signal, kill_process};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// One node's process, or none. It ends with this value, unless somebody else has started it.
pub(super) struct Process {
    child: Option<Child>,
    /// A process that somebody else has started.
    found: Option<Pid>,
    log: PathBuf,
    paused_at: Option<Instant>,
}

impl Process {
    /// Its standard error is added to this file.
    pub(super) fn new(log: PathBuf) -> Self {
        Self { child: None, found: None, log, paused_at: None }
    }

    /// Somebody else's, if it runs on this machine.
    pub(super) fn found(pid: Option<Pid>) -> Self {
        Self { child: None, found: pid, log: PathBuf::new(), paused_at: None }
    }

    pub(super) fn is_up(&self) -> bool {
        self.child.is_some() || self.found.is_some()
    }

    pub(super) fn start(&mut self, command: &mut Command) -> anyhow::Result<()> {
        assert!(self.child.is_none(), "a node has one process");
        let log = std::fs::OpenOptions::new().create(true).append(true).open(&self.log);
        let log = log.with_context(|| format!("cannot write {}", self.log.display()))?;
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        // Who interrupts this program at the terminal does not mean the nodes: they are ended from here, in order.
        command.process_group(0);
        self.child = Some(command.spawn().context("cannot start a node")?);
        Ok(())
    }

    /// SIGKILL. False if nothing ran.
    pub(super) fn kill(&mut self) -> anyhow::Result<bool> {
        self.paused_at = None;
        let Some(mut child) = self.child.take() else { return Ok(false) };
        child.kill()?;
        child.wait()?;
        Ok(true)
    }

    /// SIGSTOP. False if nothing runs.
    pub(super) fn pause(&mut self) -> anyhow::Result<bool> {
        let Some(pid) = self.pid() else { return Ok(false) };
        kill_process(pid, Signal::STOP)?;
        self.paused_at = Some(Instant::now());
        Ok(true)
    }

    /// SIGCONT. How long it stood still, if the kernel says that it did.
    pub(super) fn resume(&mut self) -> anyhow::Result<Duration> {
        let (Some(pid), Some(since)) = (self.pid(), self.paused_at.take()) else {
            return Ok(Duration::ZERO);
        };
        let stood_still = self.state() == Some('T');
        kill_process(pid, Signal::CONT)?;
        Ok(if stood_still { since.elapsed() } else { Duration::ZERO })
    }

    fn pid(&self) -> Option<Pid> {
        let own = self.child.as_ref().and_then(|child| Pid::from_raw(i32::try_from(child.id()).ok()?));
        own.or(self.found)
    }

    /// What the kernel says it does: `T` is stopped.
    fn state(&self) -> Option<char> {
        let pid = self.pid()?.as_raw_nonzero();
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        stat.rsplit(") ").next()?.chars().next()
    }

    /// How it ended, if it did so by itself.
    pub(super) fn ended(&mut self) -> Option<ExitStatus> {
        let status = self.child.as_mut()?.try_wait().ok().flatten()?;
        self.child = None;
        self.paused_at = None;
        Some(status)
    }

    /// Waits until it ends by itself.
    #[allow(clippy::disallowed_methods, reason = "it asks over and over, and gives up")]
    pub(super) fn wait_for_end(&mut self, patience: Duration) -> Option<ExitStatus> {
        let since = Instant::now();
        while since.elapsed() < patience {
            if let Some(status) = self.ended() {
                return Some(status);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        None
    }

    /// How many lines of all that it ever said contain this.
    pub(super) fn said(&self, words: &str) -> u64 {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        log.lines().filter(|line| line.contains(words)).count() as u64
    }

    /// The end of what it said.
    pub(super) fn last_words(&self) -> String {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().rev().take(4).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join("\n")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Nobody is left standing still. It may have ended already.
        let _ = self.resume();
        let _ = self.kill();
    }
}
