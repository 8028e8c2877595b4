//! The command line as scripts see it: what it prints, where that may go, and which exit code says what.
#![allow(clippy::unwrap_used, reason = "test code")]

mod common;

use common::{Cluster, program};
use std::process::{Command, Output, Stdio};

fn of_cluster(cluster: &Cluster, args: &[&str]) -> Command {
    let mut command = program();
    command.arg("--cluster").arg(cluster.path().join("cluster.toml")).args(args);
    command
}

fn full() -> Stdio {
    std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap().into()
}

/// A pipe that nobody reads any more.
fn closed() -> Stdio {
    std::io::pipe().unwrap().1.into()
}

fn code_and_errors(output: &Output) -> (i32, String) {
    (output.status.code().unwrap(), String::from_utf8_lossy(&output.stderr).to_string())
}

#[test]
fn an_answer_that_cannot_be_written_is_no_panic_and_no_lie() {
    let cluster = Cluster::start(3, 1);
    cluster.ok(&["put", "k", "v"]);
    let run = |args: &[&str], out: Stdio, errors: Stdio| {
        let child = of_cluster(&cluster, args).stdout(out).stderr(errors).spawn().unwrap();
        code_and_errors(&child.wait_with_output().unwrap())
    };
    // It was done; only its answer is lost, and that is said.
    let (code, said) = run(&["incr", "c"], full(), Stdio::piped());
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("standard output") && said.contains("is done"), "{said}");
    assert_eq!(cluster.ok(&["get", "c"]), "1");
    // Whoever closes the pipe has read enough.
    let quiet = (0, String::new());
    assert_eq!(run(&["incr", "c"], closed(), Stdio::piped()), quiet);
    assert_eq!(run(&["get", "k"], closed(), Stdio::piped()), quiet);
    assert_eq!(run(&["status"], closed(), Stdio::piped()), quiet);
    assert_eq!(run(&["get", "nothing", "--json"], closed(), Stdio::piped()), (3, String::new()));
    assert_eq!(cluster.ok(&["get", "c"]), "2");
    // Nor is what is said beside the answer.
    for nowhere in [full, closed] {
        assert_eq!(run(&["get", "nothing"], Stdio::null(), nowhere()).0, 3);
        assert_eq!(run(&["put", "", "v"], Stdio::null(), nowhere()).0, 1);
        assert_eq!(run(&["get", "k", "--consistency", "no"], Stdio::null(), nowhere()).0, 2);
        let run = program().args(["check", "/nowhere"]).stderr(nowhere()).status().unwrap();
        assert_ne!(run.code().unwrap(), 101);
    }
    for args in [&["--help"][..], &["--version"], &["init", "--help"]] {
        assert_eq!(program().args(args).stdout(closed()).status().unwrap().code(), Some(0));
    }
}
