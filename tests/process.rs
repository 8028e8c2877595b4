//! What stands around the node: its log, its signals, the process that started it. None of it may cost an outage.
#![allow(clippy::unwrap_used, reason = "test code")]

mod common;

use common::{Cluster, program, wait_for};
use std::io::{PipeReader, Read};
use std::process::Stdio;

/// Standard error that nobody takes: its reader has gone, there is no room, or its reader hangs.
fn nobody_takes(index: usize) -> (Stdio, Option<PipeReader>) {
    let (reader, writer) = std::io::pipe().unwrap();
    match index {
        0 => (writer.into(), None),
        1 => (std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap().into(), None),
        _ => (writer.into(), Some(reader)),
    }
}

/// Nodes write what they can, lose links and regain them, serve, and end when they are told to.
#[test]
fn a_log_that_nobody_takes_costs_no_link_and_no_request() {
    let mut cluster = Cluster::init(3, 1);
    let mut hung = Vec::new();
    let mut start = |cluster: &mut Cluster, index: usize| {
        let (log, reader) = nobody_takes(index);
        let mut talkative = program();
        talkative.env("RUST_LOG", if index == 2 { "trace" } else { "info" });
        cluster.start_node_logging_to(index, talkative, log);
        hung.extend(reader);
    };
    (0..3).for_each(|index| start(&mut cluster, index));
    // Each is away for a while: the two others lose a link, say so where nobody listens, and regain it.
    for away in 0..3 {
        wait_for("all links", || {
            let status = cluster.status();
            let links = |node: &serde_json::Value| node["connected"].as_array().map_or(0, Vec::len);
            status["nodes"].as_array()?.iter().all(|node| links(node) == 2).then_some(())
        });
        let value = format!("before {away}");
        cluster.ok(&["put", "k", &value]);
        assert_eq!(cluster.terminate_node(away), Some(0), "node {} ends as it is told", away + 1);
        assert_eq!(cluster.ok(&["get", "k"]), value);
        start(&mut cluster, away);
    }
    assert!((0..3).all(|index| cluster.exit_code(index).is_none()));
    drop(cluster);
    let mut text = Vec::new();
    hung.remove(0).read_to_end(&mut text).unwrap();
    assert!(text.len() > 60_000, "the pipe was full");
}
