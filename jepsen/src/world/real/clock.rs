//! Wall clocks that can be set, one for each node: a library answers the node's questions for the time, by what a file says.
//! Monotonic clocks, and so all timers, are the kernel's.

use anyhow::Context;
use std::path::{Path, PathBuf};
use std::process::Command;

pub(super) struct Clock {
    library: PathBuf,
    file: PathBuf,
}

impl Clock {
    /// Right at first.
    pub(super) fn new(library: &Path, file: PathBuf) -> anyhow::Result<Self> {
        let clock = Self { library: library.to_path_buf(), file };
        clock.set(0)?;
        Ok(clock)
    }

    /// Adds so many seconds to the right time, for the node and at once.
    pub(super) fn set(&self, seconds: i64) -> anyhow::Result<()> {
        // Replaced in one step: the node may read it at any moment.
        let new = self.file.with_extension("new");
        std::fs::write(&new, format!("{seconds:+}\n")).context("cannot set a clock")?;
        Ok(std::fs::rename(new, &self.file)?)
    }

    /// Makes a program live by this clock.
    pub(super) fn apply(&self, command: &mut Command) {
        command
            .env("LD_PRELOAD", &self.library)
            .env("FAKETIME_TIMESTAMP_FILE", &self.file)
            .env("FAKETIME_NO_CACHE", "1")
            .env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
    }

    /// How wrong the clock is, as a program sees it, in seconds.
    pub(super) fn seen_offset(&self) -> anyhow::Result<i64> {
        let mut command = Command::new("date");
        command.arg("+%s");
        let right = read_seconds(&mut command)?;
        self.apply(&mut command);
        Ok(read_seconds(&mut command)? - right)
    }
}

fn read_seconds(command: &mut Command) -> anyhow::Result<i64> {
    let output = command.output().context("cannot run date")?;
    String::from_utf8_lossy(&output.stdout).trim().parse().context("date says no number")
}
