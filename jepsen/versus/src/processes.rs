//! Server processes, and what the kernel counts for them.

use anyhow::Context;
use std::net::TcpListener;
use std::process::{Child, Command};

/// Child processes by index; they end with this value.
pub(crate) struct Processes(Vec<Option<Child>>);

impl Processes {
    pub(crate) fn new(count: usize) -> Self {
        Self((0..count).map(|_| None).collect())
    }

    pub(crate) fn start(&mut self, index: usize, command: &mut Command) -> anyhow::Result<()> {
        self.0[index] = Some(command.spawn()?);
        Ok(())
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self, index: usize) -> anyhow::Result<()> {
        let mut child = self.0[index].take().context("the process does not run")?;
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    /// What all of them have used so far.
    pub(crate) fn usage(&self) -> Usage {
        let (bytes, packets) = loopback();
        let mut usage = Usage { packets, bytes, flushes: disk_flushes(), ..Usage::default() };
        for child in self.0.iter().flatten() {
            usage.add_process(child.id());
        }
        usage
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        for child in self.0.iter_mut().flatten() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Counters of a moment; differences are what counts.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    /// User and system time of the servers, in microseconds.
    pub(crate) cpu_micros: u64,
    /// Times that a thread of the servers gave its core away.
    pub(crate) switches: u64,
    /// Resident memory of the servers, in bytes; not a difference.
    pub(crate) resident_bytes: u64,
    /// Packets over loopback, the client's too. A burst that the kernel carries as one counts once.
    pub(crate) packets: u64,
    /// Bytes over loopback, the client's too.
    pub(crate) bytes: u64,
    /// Flushes that the disks completed. Those that come together are one.
    pub(crate) flushes: u64,
}

impl Usage {
    pub(crate) fn since(&self, before: &Self) -> Self {
        Self {
            cpu_micros: self.cpu_micros.saturating_sub(before.cpu_micros),
            switches: self.switches.saturating_sub(before.switches),
            resident_bytes: self.resident_bytes,
            packets: self.packets.saturating_sub(before.packets),
            bytes: self.bytes.saturating_sub(before.bytes),
            flushes: self.flushes.saturating_sub(before.flushes),
        }
    }

    fn add_process(&mut self, pid: u32) {
        const MICROS_PER_CLOCK_TICK: u64 = 10_000;
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let field = |index: usize| fields.get(index).and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
        self.cpu_micros += (field(11) + field(12)) * MICROS_PER_CLOCK_TICK;
        self.resident_bytes += field(21) * 4096;
        let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
        for task in tasks {
            let status = std::fs::read_to_string(task.path().join("status")).unwrap_or_default();
            let switches = status.lines().filter(|line| line.contains("ctxt_switches"));
            self.switches += switches.filter_map(last_number).sum::<u64>();
        }
    }
}

fn last_number(line: &str) -> Option<u64> {
    line.split_whitespace().next_back()?.parse().ok()
}

/// Bytes and packets that went over the loopback interface.
fn loopback() -> (u64, u64) {
    let text = std::fs::read_to_string("/proc/net/dev").unwrap_or_default();
    let line = text.lines().find_map(|line| line.trim().strip_prefix("lo:")).unwrap_or_default();
    let mut numbers = line.split_whitespace().map(|text| text.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

fn disk_flushes() -> u64 {
    const FLUSHES: usize = 18;
    let text = std::fs::read_to_string("/proc/diskstats").unwrap_or_default();
    let disks = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let real = disks.filter(|fields| fields.get(2).is_some_and(|name| !name.starts_with(['l', 'r'])));
    real.filter_map(|fields| fields.get(FLUSHES)?.parse::<u64>().ok()).sum()
}

/// Ports on loopback that nobody uses just now.
pub(crate) fn free_ports(count: usize) -> anyhow::Result<Vec<u16>> {
    let open: Result<Vec<TcpListener>, _> = (0..count).map(|_| TcpListener::bind("127.0.0.1:0")).collect();
    let open = open.context("no free port")?;
    open.iter().map(|socket| Ok(socket.local_addr()?.port())).collect()
}
