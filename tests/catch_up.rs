//! A node that was away while much was written is level again soon, though clients go on writing: one state is enough for it.
#![allow(clippy::unwrap_used, reason = "test code")]

mod common;

use common::{Cluster, program, wait_for};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

/// What a node misses, and what goes on meanwhile.
struct Trial {
    mode: &'static str,
    keys: u64,
    value_bytes: u64,
    /// Of the values that clients go on to write.
    written_bytes: u64,
    /// Other than the defaults, in every node's file.
    settings: &'static [(&'static str, &'static str)],
    patience: Duration,
}

/// What came of it.
#[derive(Debug)]
#[allow(dead_code, reason = "all of it is printed")]
struct Report {
    /// From its start until it had applied what the others had.
    level_after: Option<Duration>,
    /// Whole states that were given to it, and those that it put in place.
    given: usize,
    taken: usize,
    /// Slots that clients wrote until it was level.
    slots: u64,
    /// The most memory that any of the others had before, and then; and that it had itself.
    others_before_mib: u64,
    others_peak_mib: u64,
    own_peak_mib: u64,
    /// The longest write-ahead log of the others.
    log_peak_mib: u64,
}

/// Clients that go on until they are dropped.
struct Clients(Child);

impl Clients {
    fn start(cluster: &Cluster, count: u64, value_bytes: u64) -> Self {
        let mut bench = program();
        bench.arg("--cluster").arg(cluster.path().join("cluster.toml"));
        bench.args(["bench", "--workload", "put", "--seconds", "3600", "--clients", &count.to_string()]);
        bench.args(["--value-bytes", &value_bytes.to_string()]);
        Self(bench.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
    }
}

impl Drop for Clients {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The most memory that the process had since it was last asked, in MiB.
fn peak_mib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or("0 kB");
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().unwrap();
    let _ = std::fs::write(format!("/proc/{pid}/clear_refs"), "5");
    kib >> 10
}

const GIVEN: &str = "a whole state is given";
const TAKEN: &str = "another state is in place";

/// How far a node has come, in slots.
fn applied(status: &serde_json::Value, index: usize) -> u64 {
    status["nodes"][index]["groups"][0]["applied"].as_u64().unwrap_or(0)
}

impl Trial {
    fn run(&self) -> Report {
        let nodes = if self.mode == "crash" { 3 } else { 4 };
        let away = nodes - 1;
        let mut cluster = Cluster::init_in(self.mode, nodes, 1);
        for index in 0..nodes {
            let text = std::fs::read_to_string(cluster.node_file(index)).unwrap();
            let text = self.settings.iter().fold(text, |text, (from, to)| {
                assert!(text.contains(from), "{text}");
                text.replace(from, to)
            });
            std::fs::write(cluster.node_file(index), text).unwrap();
            cluster.start_node(index);
        }
        wait_for("a write", || (cluster.code(&["put", "early", "v"]) == 0).then_some(()));
        cluster.kill_node(away);
        let (keys, value_bytes) = (self.keys.to_string(), self.value_bytes.to_string());
        let fill = [
            "bench",
            "--workload",
            "fill",
            "--clients",
            "256",
            "--keys",
            &keys,
            "--value-bytes",
            &value_bytes,
        ];
        cluster.ok(&fill);
        let clients = Clients::start(&cluster, 2, self.written_bytes);
        let written = applied(&cluster.status(), 0);
        wait_for("clients that write", || (applied(&cluster.status(), 0) > written + 100).then_some(()));
        let before = (0..away).map(|index| peak_mib(cluster.pid(index))).max().unwrap();
        let report = self.bring_back(&mut cluster, away);
        drop(clients);
        Report { others_before_mib: before, ..report }
    }

    /// Starts the node that was away, and looks on until it is level.
    fn bring_back(&self, cluster: &mut Cluster, away: usize) -> Report {
        let newest =
            |status: &serde_json::Value| (0..away).map(|index| applied(status, index)).max().unwrap();
        let count =
            |cluster: &Cluster, line| (0..=away).map(|index| cluster.log(index).matches(line).count()).sum();
        let first = newest(&cluster.status());
        let started = Instant::now();
        cluster.start_node(away);
        let (mut level_after, mut slots, mut log_peak, mut said) = (None, 0, 0, 0);
        while level_after.is_none() && started.elapsed() < self.patience {
            let status = cluster.status();
            let logs = (0..away).filter_map(|index| status["nodes"][index]["log_bytes"].as_u64());
            log_peak = logs.fold(log_peak, u64::max);
            let (own, now) = (applied(&status, away), newest(&status));
            slots = now - first;
            if own > first && now.saturating_sub(own) < LEVEL_SLOTS {
                level_after = Some(started.elapsed());
            }
            if started.elapsed().as_secs() / 5 >= said {
                said += 1;
                let group = &status["nodes"][away]["groups"][0];
                let (given, taken): (usize, usize) = (count(cluster, GIVEN), count(cluster, TAKEN));
                println!(
                    "{:>3} s: slot {own} of {now}; installing: {}, its log ends with {}; given {given}, taken {taken}",
                    started.elapsed().as_secs(),
                    group["is_installing"],
                    group["last"],
                );
            }
        }
        Report {
            level_after,
            given: count(cluster, GIVEN),
            taken: count(cluster, TAKEN),
            slots,
            others_before_mib: 0,
            others_peak_mib: (0..away).map(|index| peak_mib(cluster.pid(index))).max().unwrap(),
            own_peak_mib: peak_mib(cluster.pid(away)),
            log_peak_mib: log_peak >> 20,
        }
    }

    fn check(&self) {
        let report = self.run();
        println!("{} mode: {report:#?}", self.mode);
        assert!(report.level_after.is_some(), "it is not level: {report:?}");
        assert_eq!(report.taken, 1, "{report:?}");
    }
}

/// Slots behind which a node lags that applies what it is sent.
const LEVEL_SLOTS: u64 = 200;

/// A million keys, and a log that outgrows what is usually kept while the node catches up.
fn large(mode: &'static str) -> Trial {
    let size = |name: &str, usual: u64| std::env::var(name).map_or(usual, |text| text.parse().unwrap());
    Trial {
        mode,
        keys: size("CATCH_UP_KEYS", 1_000_000),
        value_bytes: size("CATCH_UP_VALUE_BYTES", 180),
        written_bytes: size("CATCH_UP_WRITTEN_BYTES", 600),
        settings: &[],
        patience: Duration::from_secs(size("CATCH_UP_SECONDS", 90)),
    }
}

/// The same with little of everything.
fn small(mode: &'static str) -> Trial {
    Trial {
        mode,
        keys: 4_000,
        value_bytes: 1_000,
        written_bytes: 1_000,
        settings: &[
            ("log_max_bytes = 67108864", "log_max_bytes = 1048576"),
            ("log_retain_bytes = 8388608", "log_retain_bytes = 20000"),
            ("log_pinned_bytes = 67108864", "log_pinned_bytes = 2000000"),
        ],
        patience: Duration::from_secs(120),
    }
}

#[test]
fn one_state_is_enough_in_crash_mode() {
    small("crash").check();
}

#[test]
fn one_state_is_enough_in_byzantine_mode() {
    small("byzantine").check();
}

/// `cargo test --release --test catch_up -- --ignored --nocapture --test-threads 1`
#[test]
#[ignore = "takes minutes, and figures are of a release build; CATCH_UP_KEYS and others say how large it is"]
fn a_million_keys_in_crash_mode() {
    large("crash").check();
}

#[test]
#[ignore = "takes minutes, and figures are of a release build; CATCH_UP_KEYS and others say how large it is"]
fn a_million_keys_in_byzantine_mode() {
    large("byzantine").check();
}
