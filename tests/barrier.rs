//! The system calls of a running node: what sled flushed is synced. That nothing is sent before is shown by the watcher
//! of `src/node/tests.rs`.
#![allow(clippy::unwrap_used, reason = "test code")]

mod common;

use common::{Cluster, wait_for};
use std::process::Command;

/// Follows one node with strace through some writes and reads the order of its system calls.
#[test]
fn fdatasync_follows_every_flush() {
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
    wait_for("the tracer", || {
        cluster.ok(&["put", "probe", "v"]);
        std::fs::read_to_string(&trace).ok().filter(|text| text.contains("fdatasync("))
    });
    for index in 0..30 {
        cluster.ok(&["put", &format!("k{index}"), "v"]);
    }
    let lines = wait_for("the trace", || {
        let text = std::fs::read_to_string(&trace).ok()?;
        (text.matches("fdatasync(").count() > 20).then_some(text)
    });
    let is_db = |line: &&str| line.contains("/data/db>");
    let mut unsynced = 0;
    let (mut flushes, mut syncs, mut longest) = (0, 0, 0);
    for line in lines.lines().filter(is_db) {
        if line.contains("pwrite64(") {
            unsynced += 1;
            flushes += 1;
            longest = longest.max(unsynced);
        } else if line.contains("fdatasync(") && line.contains("= 0") {
            unsynced = 0;
            syncs += 1;
        }
    }
    cluster.kill_node(0);
    tracer.wait().unwrap();
    println!(
        "{flushes} writes and {syncs} fdatasyncs of sled's file, at most {longest} writes in one window"
    );
    assert!(syncs >= 20, "every acknowledged write has a barrier behind it");
    assert!(longest <= 16, "{longest} writes of sled without a sync");
    assert!(lines.contains("sync_file_range("), "sled's own flush is not enough, and this is how it looks");
}
