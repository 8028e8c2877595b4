//! The system calls of a running node: what an answer rests on is synced. That nothing is sent before is shown by the
//! watchers of the simulator.
#![allow(clippy::unwrap_used, reason = "test code")]

mod common;

use common::{Cluster, wait_for};
use std::collections::BTreeMap;
use std::process::Command;

/// A system call on a file, in the order in which they began or ended.
enum Call {
    Write(String),
    Synced(String),
}

/// Reads strace's lines; calls of several threads may be cut in two.
fn calls(trace: &str) -> Vec<Call> {
    let mut calls = Vec::new();
    let mut unfinished: BTreeMap<&str, String> = BTreeMap::new();
    for line in trace.lines() {
        let (thread, call) = line.split_once(' ').unwrap_or_default();
        let path = || call.split('<').nth(1)?.split('>').next().map(str::to_string);
        let is_sync = call.contains("fdatasync(") || call.contains("fsync(");
        if call.contains("pwrite64(") {
            calls.extend(path().map(Call::Write));
        } else if is_sync && call.contains("unfinished") {
            unfinished.extend(path().map(|path| (thread, path)));
        } else if is_sync && call.ends_with("= 0") {
            calls.extend(path().map(Call::Synced));
        } else if call.contains("sync resumed") && call.ends_with("= 0") {
            calls.extend(unfinished.remove(thread).map(Call::Synced));
        }
    }
    calls
}

/// Follows one node with strace through some writes and reads the order of its system calls.
#[test]
fn every_frame_of_the_log_is_synced_and_state_is_written_down_first() {
    let is_traceable = Command::new("strace").args(["-f", "-e", "trace=write", "true"]).output();
    if !is_traceable.is_ok_and(|output| output.status.success()) {
        println!("SKIPPED: strace is missing or may not trace here; install it to run this test");
        return;
    }
    let mut cluster = Cluster::start(3, 1);
    cluster.ok(&["put", "first", "v"]);
    let trace = cluster.path().join("trace");
    // Any replica will do: all of them acknowledge.
    let mut tracer = Command::new("strace")
        .args(["-f", "-y", "-e", "trace=pwrite64,sync_file_range,fdatasync,fsync", "-o"])
        .arg(&trace)
        .args(["-p", &cluster.pid(0).to_string()])
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let mut puts = 0;
    let text = wait_for("syncs of the log and of the tree", || {
        puts += 1;
        cluster.ok(&["put", &format!("k{puts}"), "v"]);
        let text = std::fs::read_to_string(&trace).ok()?;
        let calls = calls(&text);
        let synced = |what: &str| {
            calls.iter().filter(|call| matches!(call, Call::Synced(path) if path.contains(what))).count()
        };
        (puts >= 30 && synced("/data/log/") >= 20 && synced("/data/tree-1/db") >= 2).then_some(text)
    });
    cluster.kill_node(0);
    tracer.wait().unwrap();
    let (mut log_writes, mut unsynced, mut longest) = (0, 0, 0);
    let (mut is_written_down, mut tree_writes) = (None, 0);
    for call in calls(&text) {
        match call {
            Call::Write(path) if path.ends_with(".seg") => {
                log_writes += 1;
                unsynced += 1;
                longest = longest.max(unsynced);
            }
            Call::Synced(path) if path.ends_with(".seg") => unsynced = 0,
            Call::Write(path) if path.ends_with("/data/redo") => is_written_down = Some(false),
            Call::Synced(path) if path.ends_with("/data/redo") => is_written_down = Some(true),
            Call::Write(path) if path.ends_with("/data/tree-1/db") => {
                tree_writes += 1;
                assert_ne!(is_written_down, Some(false), "the tree is written after the redo file is synced");
            }
            _ => {}
        }
    }
    println!(
        "{log_writes} writes of the log, {tree_writes} of the tree, at most {longest} of the log unsynced"
    );
    assert!(log_writes >= 20 && tree_writes >= 2);
    // The header of a segment and its first frame share a sync; every other frame has its own.
    assert!(longest <= 2, "{longest} writes of the log without a sync");
}
