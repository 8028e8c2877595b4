//! The command line as scripts see it: what it prints, where that may go, and which exit code says what.
#![allow(clippy::unwrap_used, reason = "test code")]

mod common;

use common::{Cluster, program, wait_for};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Output, Stdio};

fn of_cluster(cluster: &Cluster, args: &[&str]) -> Command {
    let mut command = program();
    command.arg("--cluster").arg(cluster.path().join("cluster.toml")).args(args);
    command
}

/// Runs a client command whose standard input is a file.
fn fed(cluster: &Cluster, args: &[&str], input: &Path) -> Output {
    of_cluster(cluster, args).stdin(std::fs::File::open(input).unwrap()).output().unwrap()
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

fn json(output: &Output) -> serde_json::Value {
    let text = String::from_utf8_lossy(&output.stdout);
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// What happens to a cluster in the middle of a run is in the figures.
#[test]
fn bench_shows_an_outage() {
    let mut cluster = Cluster::start(3, 1);
    cluster.ok(&["put", "k", "v"]);
    let applied =
        |cluster: &Cluster| cluster.status()["nodes"][0]["groups"][0]["applied"].as_u64().unwrap_or(0);
    let before = applied(&cluster);
    let args =
        ["--deadline-ms", "1000", "bench", "--rate", "200", "--clients", "8", "--seconds", "8", "--json"];
    let bench = of_cluster(&cluster, &args).stdout(Stdio::piped()).spawn().unwrap();
    // At this rate it is past its first second, in which nothing is measured.
    wait_for("load", || (applied(&cluster) > before + 400).then_some(()));
    cluster.kill_node(1);
    cluster.kill_node(2);
    let output = bench.wait_with_output().unwrap();
    let report = json(&output);
    let count = |name: &str| report[name].as_u64().unwrap_or_else(|| panic!("{name}: {report}"));
    let [done, errors] = ["operations", "errors"].map(count);
    assert!(done > 0 && done + errors == 1_600, "each request that should have begun is counted: {report}");
    let kinds = ["refused", "unavailable", "unknown", "not_sent"].map(count);
    assert!(errors > 0 && kinds.iter().sum::<u64>() == errors && kinds[0] == 0, "{report}");
    assert!(count("open_at_end") > 0, "nobody had an answer at the end: {report}");
    assert!(count("max_us") >= 900_000, "what was given up is in the latencies: {report}");
    assert!(count("max_us") > count("sent_max_us"), "so is what waited for the others: {report}");
    assert!(count("longest_gap_us") >= 1_000_000, "{report}");
    assert!(report["error"].is_string() && report["cpu_us_per_op"].is_null(), "{report}");
    assert_eq!(output.status.code(), Some(0), "it did measure something: {report}");
}

#[test]
fn bench_measures_nothing_without_answers() {
    let mut cluster = Cluster::start(3, 1);
    cluster.ok(&["put", "k", "v"]);
    // Nothing but refusals: no key is as large.
    let large = cluster.run(&["bench", "--seconds", "1", "--clients", "2", "--value-bytes", "2000000"]);
    let (code, said) = code_and_errors(&large);
    assert!(code == 1 && said.contains("at most 1048576 bytes"), "{code}: {said}");
    // Latencies run from the moment at which a request should have begun.
    let open = ["bench", "--seconds", "1", "--rate", "200", "--clients", "4", "--json"];
    let report = json(&cluster.run(&open));
    let total = ["operations", "errors"].map(|name| report[name].as_u64().unwrap()).iter().sum::<u64>();
    assert_eq!(total, 200, "each request that should have begun is counted: {report}");
    let code = cluster.code(&["bench", "--rate", "10", "--workload", "fill"]);
    assert_eq!(code, 2, "a flag that has no meaning is refused");
    cluster.kill_node(1);
    cluster.kill_node(2);
    let none = cluster.run(&["--deadline-ms", "1000", "bench", "--seconds", "1", "--json"]);
    assert!([5, 6].contains(&none.status.code().unwrap()), "{:?}", none.status);
    assert!(["unavailable", "unknown"].contains(&json(&none)["outcome"].as_str().unwrap()));
}

#[test]
fn status_says_whether_groups_serve_and_which_node_has_what_trouble() {
    // Three of the four nodes have a replica.
    let mut cluster = Cluster::init(4, 1);
    let file = cluster.node_file(2);
    let text = std::fs::read_to_string(&file).unwrap();
    let no_room = text.replace("reserve_bytes = 67108864", "reserve_bytes = 1125899906842624");
    assert_ne!(text, no_room);
    std::fs::write(&file, no_room).unwrap();
    let alone = cluster.run(&["status"]);
    let said = String::from_utf8_lossy(&alone.stdout).to_string();
    assert!(alone.status.code() == Some(5) && said.contains("no node answers"), "{said}");
    assert!(said.contains("unreachable (cannot reach 127.0.0.1:"), "the node and the reason: {said}");
    (0..4).for_each(|index| cluster.start_node(index));
    let state = |cluster: &Cluster| cluster.status()["groups"][0]["state"].as_str().map(str::to_string);
    wait_for("a whole group", || (state(&cluster)? == "serves").then_some(()));
    let status = wait_for("a full disk", || {
        let status = cluster.status();
        (status["nodes"][2]["refuses_writes"] == true).then_some(status)
    });
    assert_eq!(status["nodes"][2]["troubles"][0], "refuses writes: disk almost full");
    assert_eq!(status["nodes"][3]["troubles"][0], "member of no group");
    let said = cluster.ok(&["status"]);
    assert!(said.contains("up; refuses writes") && said.contains("up; member of no group"), "{said}");
    cluster.kill_node(2);
    wait_for("a group with one replica down", || (state(&cluster)? == "degraded").then_some(()));
    let said = cluster.ok(&["status"]);
    assert!(said.contains("g1 serves without n3; 2 of 3 are there, 2 are needed"), "{said}");
    cluster.kill_node(1);
    wait_for("a group without a quorum", || (state(&cluster)? == "no quorum").then_some(()));
    let status = cluster.run(&["status"]);
    let said = String::from_utf8_lossy(&status.stdout).to_string();
    assert_eq!(status.status.code(), Some(5), "{said}");
    assert!(said.contains("NO QUORUM: 1 of 3 replicas"), "{said}");
    let status = cluster.run(&["status", "--json"]);
    assert_eq!(status.status.code(), Some(5));
    assert_eq!(json(&status)["serves"], false);
}

#[test]
fn values_may_hold_any_bytes_and_come_from_files_and_standard_input() {
    let cluster = Cluster::start(3, 1);
    let largest: Vec<u8> = (0..1 << 20).map(|index: u32| (index % 251) as u8).collect();
    let (fits, too_large) = (cluster.dir.path().join("fits"), cluster.dir.path().join("too-large"));
    std::fs::write(&fits, &largest).unwrap();
    std::fs::write(&too_large, [&largest[..], b"x"].concat()).unwrap();
    let raw = |key: &str| cluster.run(&["get", key, "--raw"]).stdout;
    let put = fed(&cluster, &["put", "piped", "-"], &fits);
    assert!(put.status.success(), "{put:?}");
    assert!(raw("piped") == largest, "byte for byte");
    cluster.ok(&["put", "filed", "--value-file", fits.to_str().unwrap()]);
    assert!(raw("filed") == largest, "byte for byte");
    let lines = cluster.dir.path().join("lines");
    std::fs::write(&lines, "one\ntwo\n").unwrap();
    assert!(
        fed(&cluster, &["cas", "piped", "--expect-file", fits.to_str().unwrap(), "-"], &lines)
            .status
            .success()
    );
    assert_eq!(raw("piped"), b"one\ntwo\n", "nothing is cut off");
    for args in [&["put", "no", "-"][..], &["append", "no", "-"], &["cas", "no", "--absent", "-"]] {
        let (code, said) = code_and_errors(&fed(&cluster, args, &too_large));
        assert!(code == 4 && said.contains("1048576 bytes"), "{args:?}: {code}: {said}");
    }
    assert_eq!(cluster.code(&["exists", "no"]), 3);
    assert_eq!(cluster.code(&["put", "no", "--value-file", "/nowhere"]), 1);
    for args in
        [&["put", "no"][..], &["put", "no", "v", "--value-file", "f"], &["get", "piped", "--raw", "--json"]]
    {
        assert_eq!(cluster.code(args), 2, "{args:?}");
    }
    let (code, said) = code_and_errors(&cluster.run(&["cas", "k", "new"]));
    let ways = ["--expect", "--expect-file", "--absent", "--version"];
    assert!(code == 2 && ways.iter().all(|way| said.contains(way)), "it says what may be expected: {said}");
    let (code, said) = code_and_errors(&cluster.run(&["cas", "k", "--absent"]));
    assert!(code == 2 && said.contains("--delete"), "{said}");
}

#[test]
fn keys_may_hold_any_bytes_in_every_command() {
    let cluster = Cluster::start(3, 1);
    let key = |args: &[&str]| cluster.ok(&[args, &["--key-hex"]].concat());
    assert_eq!(key(&["append", "FF00", "a"]), "1");
    assert_eq!(key(&["append", "ff00", "bc"]), "3");
    assert_eq!(key(&["exists", "ff00"]), "yes");
    assert_eq!(key(&["get", "ff00"]), "abc");
    let read: serde_json::Value = serde_json::from_str(&key(&["get", "ff00", "--json"])).unwrap();
    assert_eq!((&read["key"], &read["key_encoding"]), (&"ff00".into(), &"hex".into()), "{read}");
    assert_eq!(key(&["cas", "ff00", "--expect", "abc", "5"]), "ok");
    assert_eq!(key(&["incr", "ff00", "2"]), "7");
    assert_eq!(key(&["put", "ff00", "v"]), "ok");
    assert_eq!(key(&["del", "ff00"]), "ok");
    let gone = cluster.run(&["exists", "ff00", "--key-hex", "--json"]);
    assert_eq!((gone.status.code(), &json(&gone)["exists"]), (Some(3), &false.into()));
    // It is another key than its digits.
    cluster.ok(&["put", "6b", "digits"]);
    assert_eq!(cluster.code(&["get", "6b", "--key-hex"]), 3);
    for wrong in ["f", "xy", "0xff"] {
        let (code, said) = code_and_errors(&cluster.run(&["get", wrong, "--key-hex"]));
        assert!(code == 1 && said.contains("hexadecimal"), "{said}");
    }
    let (code, said) = code_and_errors(&cluster.run(&["put", &"k".repeat(4_097), "v"]));
    assert!(code == 1 && said.contains("1 to 4096 bytes"), "the limit is named: {said}");
    let (code, said) = code_and_errors(&cluster.run(&["get", "k", "--verify"]));
    assert!(code == 1 && said.contains("proofs are for Byzantine mode"), "{said}");
}

#[test]
fn a_flag_without_effect_is_refused() {
    let nowhere = ["--config", "/nowhere/node.toml"];
    let refused: [(&[&str], &str); 6] = [
        (&["serve", "--json", nowhere[0], nowhere[1]], "--json means nothing to `serve`"),
        (&["--cluster", "c.toml", "serve", nowhere[0], nowhere[1]], "--cluster means nothing to `serve`"),
        (&["check", "/nowhere", "--deadline-ms", "5"], "--deadline-ms means nothing to `check`"),
        (&["--cluster", "c.toml", "check", "/nowhere"], "--cluster means nothing to `check`"),
        (&["--cluster", "c.toml", "status", "--deadline-ms", "5"], "--deadline-ms means nothing to `status`"),
        (&["dev", "--cluster", "c.toml"], "--cluster means nothing to `dev`"),
    ];
    for (args, why) in refused {
        let (code, said) = code_and_errors(&program().args(args).output().unwrap());
        assert!(code == 2 && said.contains(why), "{args:?}: {code}: {said}");
    }
    // A cause is said once.
    for args in [
        &["--cluster", "/nowhere", "get", "k"][..],
        &["serve", nowhere[0], nowhere[1]],
        &["check", "/nowhere"],
    ] {
        let (code, said) = code_and_errors(&program().args(args).output().unwrap());
        assert!(code == 1 && said.matches("No such file or directory").count() == 1, "{args:?}: {said}");
    }
    // What the environment says is for the commands that have use for it.
    let check = program().args(["check", "/nowhere"]).env("TETRACHORD_CLUSTER", "c.toml").output().unwrap();
    assert_eq!(code_and_errors(&check).0, 1);
    for args in [["get", "k", "--deadline-ms", "0"], ["get", "k", "--deadline-ms", "18446744073709551615"]] {
        assert_eq!(
            program().args(args).output().unwrap().status.code(),
            Some(2),
            "no time at all, or one that ends never"
        );
    }
}

#[test]
fn dev_says_what_runs_and_takes_no_other_size_for_a_cluster_that_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().join("c");
    let mut dev =
        program().args(["dev", "--json", "--dir"]).arg(&home).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(dev.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let said: serde_json::Value =
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"));
    assert_eq!((&said["nodes"], &said["groups"][0]["group"]), (&3.into(), &1.into()), "{said}");
    let file = said["cluster"].as_str().unwrap();
    assert!(program().args(["--cluster", file, "put", "k", "v"]).output().unwrap().status.success());
    let pid = rustix::process::Pid::from_child(&dev);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert_eq!(dev.wait().unwrap().code(), Some(0));
    for size in [["--nodes", "5"], ["--groups", "2"], ["--mode", "byzantine"]] {
        let (code, said) =
            code_and_errors(&program().arg("dev").args(size).arg("--dir").arg(&home).output().unwrap());
        assert!(code == 2 && said.contains("--nodes 3 --groups 1 --mode crash"), "{size:?}: {code}: {said}");
    }
}
