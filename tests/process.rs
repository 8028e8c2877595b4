//! What stands around the node: its log, its signals, the process that started it. None of it may cost an outage.
#![allow(clippy::unwrap_used, reason = "test code")]

mod common;

use common::{Cluster, program, wait_for};
use rustix::process::Signal;
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

/// The processes that this one has started and that run.
fn children_of(pid: u32) -> Vec<u32> {
    let of = |entry: std::fs::DirEntry| {
        let child: u32 = entry.file_name().to_str()?.parse().ok()?;
        let stat = std::fs::read_to_string(entry.path().join("stat")).ok()?;
        let parent = stat.rsplit(')').next()?.split_whitespace().nth(1)?.parse::<u32>().ok()?;
        (parent == pid).then_some(child)
    };
    std::fs::read_dir("/proc").unwrap().filter_map(Result::ok).filter_map(of).collect()
}

/// Whoever has ended and is not waited for does not run.
fn runs(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().next()).is_some_and(|state| state != "Z")
}

/// Whether a process does this with a signal: the name of a mask in its status.
fn handles(pid: u32, mask: &str, signal: Signal) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let signals = status.lines().find_map(|line| line.strip_prefix(mask)).unwrap_or("0");
    u64::from_str_radix(signals.trim(), 16).unwrap() >> (signal.as_raw() - 1) & 1 == 1
}

/// However `dev` or `demo` ends, their nodes end with them.
#[test]
fn nodes_do_not_outlive_the_process_that_started_them() {
    let dir = tempfile::tempdir().unwrap();
    for (command, signal) in [
        ("dev", Signal::KILL),
        ("dev", Signal::HUP),
        ("dev", Signal::TERM),
        ("demo", Signal::HUP),
        ("demo", Signal::KILL),
    ] {
        if signal == Signal::HUP && handles(std::process::id(), "SigIgn:", signal) {
            // These tests run under `nohup`, and so does what they start.
            continue;
        }
        let temporary = tempfile::tempdir().unwrap();
        let mut start = program();
        start.arg(command).env("TMPDIR", temporary.path()).stdout(Stdio::null()).stderr(Stdio::null());
        if command == "dev" {
            start.arg("--dir").arg(dir.path().join("c"));
        }
        let mut parent = start.spawn().unwrap();
        let children = wait_for("three nodes", || {
            let children = children_of(parent.id());
            (children.len() == 3).then_some(children)
        });
        rustix::process::kill_process(rustix::process::Pid::from_child(&parent), signal).unwrap();
        parent.wait().unwrap();
        wait_for("the end of the nodes", || (!children.iter().any(|child| runs(*child))).then_some(()));
        let left = std::fs::read_dir(temporary.path()).unwrap().filter_map(Result::ok);
        let clusters = left.filter(|entry| entry.path().join("genesis.toml").exists()).count();
        assert_eq!(
            clusters,
            usize::from(command == "demo" && signal == Signal::KILL),
            "{command} {signal:?}"
        );
    }
}

/// A signal that comes while nodes are still being started leaves no more behind than a later one.
#[test]
fn whoever_is_asked_to_end_at_once_leaves_nothing_behind() {
    for (command, signal) in
        [("demo", Signal::TERM), ("demo", Signal::INT), ("dev", Signal::TERM), ("dev", Signal::INT)]
    {
        let temporary = tempfile::tempdir().unwrap();
        let entries = || std::fs::read_dir(temporary.path()).unwrap().filter_map(Result::ok);
        let mut start = program();
        start.arg(command).env("TMPDIR", temporary.path()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut parent = start.spawn().unwrap();
        wait_for("something to leave behind", || entries().next().map(|_| ()));
        rustix::process::kill_process(rustix::process::Pid::from_child(&parent), signal).unwrap();
        parent.wait().unwrap();
        // What clients saw is kept, if they came so far.
        let left: Vec<_> =
            entries().map(|entry| entry.file_name()).filter(|name| name != "tetrachord-histories").collect();
        assert!(left.is_empty(), "{command} {signal:?}: {left:?}");
    }
}

/// `nohup tetrachord dev` is to outlive the terminal.
#[test]
fn a_cluster_that_was_told_to_ignore_hang_ups_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let mut start = std::process::Command::new("sh");
    start.args(["-c", "trap '' HUP; exec \"$@\"", "sh"]).arg(program().get_program());
    start.arg("dev").arg("--dir").arg(dir.path().join("c")).stdout(Stdio::null()).stderr(Stdio::null());
    let mut parent = start.spawn().unwrap();
    let put = || {
        let mut put = program();
        put.arg("--cluster").arg(dir.path().join("c/cluster.toml")).args(["put", "k", "v"]);
        put.output().is_ok_and(|output| output.status.success()).then_some(())
    };
    wait_for("a write", put);
    wait_for("who waits for its end", || handles(parent.id(), "SigCgt:", Signal::TERM).then_some(()));
    assert!(handles(parent.id(), "SigIgn:", Signal::HUP), "it is ignored no more");
    let pid = rustix::process::Pid::from_child(&parent);
    rustix::process::kill_process(pid, Signal::TERM).unwrap();
    assert!(parent.wait().unwrap().success());
}

/// What a node keeps is for its owner's eyes alone.
#[test]
fn nobody_else_may_read_the_data_of_a_node() {
    use std::os::unix::fs::PermissionsExt;
    let cluster = Cluster::start(3, 1);
    cluster.ok(&["put", "k", "v"]);
    let home = cluster.node_file(0).parent().unwrap().to_path_buf();
    let mut folders = vec![home.join("data")];
    let open_to_others = |path: &std::path::Path| path.metadata().unwrap().permissions().mode() & 0o077 != 0;
    assert!(!open_to_others(&home));
    while let Some(folder) = folders.pop() {
        assert!(!open_to_others(&folder), "{}", folder.display());
        for path in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            assert!(path.ends_with("bootstrap") || !open_to_others(&path), "{}", path.display());
            folders.extend(path.is_dir().then_some(path));
        }
    }
}

/// What an operator looks for first after an outage.
#[test]
fn the_log_tells_of_leaders_and_links_in_words() {
    let mut cluster = Cluster::start(3, 1);
    cluster.ok(&["put", "k", "v"]);
    let leader = cluster.leader();
    wait_for("who leads", || cluster.log(leader).contains("this node leads group=g1").then_some(()));
    let other = (leader + 1) % 3;
    cluster.kill_node(leader);
    cluster.ok(&["put", "k", "again"]);
    let said = wait_for("what became of the leader", || {
        let log = cluster.log(other);
        (log.contains("the leader was lost") && log.contains("link lost")).then_some(log)
    });
    assert!(said.contains(&format!("before=n{}", leader + 1)), "{said}");
    let lost = said.lines().find(|line| line.contains("link lost")).unwrap();
    assert!(lost.contains("nothing was heard any more") || lost.contains("started again"), "{lost}");
    assert!(!said.contains("LocallyClosed") && !said.contains("Some("), "{said}");
}
