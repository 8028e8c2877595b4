//! `check` and `record` as scripts and people use them: the verdict reaches whoever asked, nobody's file is lost, nobody is accused falsely.
#![allow(clippy::unwrap_used, reason = "test code")]

mod common;

use common::{Cluster, program, wait_for};
use std::path::Path;
use std::process::{Command, Output, Stdio};

const BAD: &str = r#"{"process":1,"op":"put","key":"x","value":"old","call":10,"return":20,"ok":true}
{"process":1,"op":"put","key":"x","value":"new","call":30,"return":40,"ok":true}
{"process":2,"op":"get","key":"x","call":50,"return":60,"ok":true,"result":"old"}
"#;

fn check(args: &[&str], history: &Path) -> Output {
    program().arg("check").arg(history).args(args).output().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).to_string()
}

fn written(dir: &Path, name: &str, text: impl AsRef<[u8]>) -> std::path::PathBuf {
    let path = dir.join(name);
    std::fs::write(&path, text).unwrap();
    path
}

/// Runs the program in a shell, which says where input comes from and output goes.
fn shell(script: &str, history: &Path) -> Output {
    let program = env!("CARGO_BIN_EXE_tetrachord");
    Command::new("bash").args(["-c", script, program]).arg(history).output().unwrap()
}

#[test]
fn a_violation_is_told_whatever_becomes_of_its_picture() {
    let dir = tempfile::tempdir().unwrap();
    let history = written(dir.path(), "run.jsonl", BAD);
    let output = check(&["--report", "/nowhere/picture.html"], &history);
    assert_eq!(output.status.code(), Some(7));
    assert!(said(&output).contains("NOT linearizable") && said(&output).contains("`get = \"old\"`"));
    assert!(String::from_utf8_lossy(&output.stderr).contains("/nowhere/picture.html"));
    let output = check(&["--report", "/nowhere/picture.html", "--json"], &history);
    assert_eq!(output.status.code(), Some(7));
    let json: serde_json::Value = serde_json::from_str(&said(&output)).unwrap();
    assert_eq!(json["verdict"], "violation");
    assert!(json["explanation"].as_str().unwrap().contains("`get = \"old\"`"));
    assert!(json["report"].is_null(), "{json}");
}

#[test]
fn a_history_from_a_pipe_is_judged() {
    let dir = tempfile::tempdir().unwrap();
    let history = written(dir.path(), "run.jsonl", BAD);
    for script in
        [r#"cat "$1" | "$0" check /dev/stdin"#, r#""$0" check <(cat "$1")"#, r#"cat "$1" | "$0" check -"#]
    {
        let output = shell(script, &history);
        assert_eq!(output.status.code(), Some(7), "{script}: {output:?}");
        assert!(said(&output).contains("NOT linearizable"), "{output:?}");
    }
}

#[test]
fn the_exit_code_is_the_verdict_where_nobody_reads_it() {
    let dir = tempfile::tempdir().unwrap();
    let history = written(dir.path(), "run.jsonl", BAD);
    for ending in ["> /dev/full", ">&-", "> >(exec true)", "2>&-", "> /dev/full 2> /dev/full"] {
        for json in ["", "--json"] {
            let output = shell(&format!(r#""$0" check "$1" {json} {ending}"#), &history);
            assert_eq!(output.status.code(), Some(7), "{json} {ending}: {output:?}");
        }
    }
}

#[test]
fn a_picture_never_replaces_a_history_or_somebodys_file() {
    let dir = tempfile::tempdir().unwrap();
    // The history is named as a picture would be, by itself or by another name.
    let history = written(dir.path(), "run.html", BAD);
    let output = check(&[], &history);
    assert_eq!((output.status.code(), std::fs::read_to_string(&history).unwrap().as_str()), (Some(7), BAD));
    let linked = dir.path().join("linked.jsonl");
    std::fs::hard_link(&history, &linked).unwrap();
    std::os::unix::fs::symlink(&linked, dir.path().join("linked.html")).unwrap();
    assert_eq!(check(&[], &linked).status.code(), Some(7));
    let output = check(&["--report", history.to_str().unwrap()], &linked);
    assert_ne!(output.status.code(), Some(0));
    assert!(String::from_utf8_lossy(&output.stderr).contains("is the history"), "{output:?}");
    assert_eq!(std::fs::read_to_string(&history).unwrap(), BAD);
    // Somebody's notes are kept, an older picture is replaced.
    let history = written(dir.path(), "other.jsonl", BAD);
    let notes = written(dir.path(), "other.html", "my notes");
    assert_eq!(check(&[], &history).status.code(), Some(7));
    assert_eq!(std::fs::read_to_string(&notes).unwrap(), "my notes");
    std::fs::remove_file(&notes).unwrap();
    assert_eq!(check(&[], &history).status.code(), Some(7));
    let picture = std::fs::read_to_string(&notes).unwrap();
    assert!(picture.contains("<svg"));
    written(dir.path(), "other.html", picture.replace("<svg", "<gone"));
    assert_eq!(check(&[], &history).status.code(), Some(7));
    assert_eq!(std::fs::read_to_string(&notes).unwrap(), picture);
}

#[test]
fn malformed_thin_and_undecided_have_exit_codes_of_their_own() {
    let dir = tempfile::tempdir().unwrap();
    let verdict = |output: &Output| {
        let json: serde_json::Value = serde_json::from_str(&said(output)).unwrap();
        json["verdict"].as_str().unwrap().to_string()
    };
    let malformed = written(dir.path(), "malformed", BAD.replace("call", "called"));
    let output = check(&[], &malformed);
    assert_eq!(output.status.code(), Some(10));
    let problem = String::from_utf8_lossy(&output.stderr).to_string();
    assert!(problem.contains("malformed: line 1: \"called\" is no field"), "{problem}");
    let output = check(&["--json"], &malformed);
    assert_eq!((output.status.code(), verdict(&output).as_str()), (Some(10), "malformed"));
    let letters = written(dir.path(), "letters", [BAD.as_bytes(), b"\xff\xfe\n"].concat());
    let output = check(&[], &letters);
    assert_eq!(output.status.code(), Some(10));
    assert!(String::from_utf8_lossy(&output.stderr).contains("line 4: "), "{output:?}");

    let thin = written(dir.path(), "thin", BAD.lines().next().unwrap());
    let output = check(&["--json"], &thin);
    assert_eq!((output.status.code(), verdict(&output).as_str()), (Some(11), "too thin"));
    assert_eq!(check(&[], &written(dir.path(), "empty", "")).status.code(), Some(11));

    let output = check(&["--limit", "1", "--json"], &written(dir.path(), "hard", BAD));
    assert_eq!((output.status.code(), verdict(&output).as_str()), (Some(12), "undecided"));
    let output = check(&["--limit", "1"], &written(dir.path(), "hard", BAD));
    assert!(said(&output).contains("60 bytes"), "{output:?}");

    assert_eq!(check(&[], Path::new("/nowhere")).status.code(), Some(1));
    let help = said(&program().arg("--help").output().unwrap());
    for code in ["9 ", "10 ", "11 ", "12 "] {
        assert!(help.contains(code), "--help says nothing of exit code {code}: {help}");
    }
}

#[test]
fn a_cluster_is_recorded_twice_and_accused_of_nothing() {
    let cluster = Cluster::start(3, 1);
    cluster.leader();
    let histories = ["one.jsonl", "other.jsonl"].map(|name| cluster.path().join(name));
    for history in &histories {
        cluster.ok(&["record", "--seconds", "1", "--keys", "4", "-o", history.to_str().unwrap()]);
    }
    for history in &histories {
        let output = check(&[], history);
        assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    }
}

/// Nobody waits for a day to learn that the history has no place; no node has to run for that either.
#[test]
fn a_recorder_opens_its_file_before_it_does_anything() {
    let cluster = Cluster::init(3, 1);
    // A history may be written over, and nothing else.
    let precious = cluster.dir.path().join("precious");
    std::fs::write(&precious, "what took a year to write").unwrap();
    let output = cluster.run(&["record", "--seconds", "1", "-o", precious.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(2), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(std::fs::read_to_string(&precious).unwrap(), "what took a year to write");
    let output = cluster.run(&["record", "--seconds", "86400", "-o", "/nowhere/run.jsonl"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("cannot write /nowhere/run.jsonl"),
        "{output:?}"
    );
}

#[test]
fn a_recording_that_is_interrupted_is_a_history() {
    for signal in ["INT", "TERM"] {
        let cluster = Cluster::start(3, 1);
        cluster.leader();
        let history = cluster.path().join("run.jsonl");
        let recording = program()
            .arg("--cluster")
            .arg(cluster.path().join("cluster.toml"))
            .args(["record", "--seconds", "86400", "-o"])
            .arg(&history)
            .stderr(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        // It writes as it goes.
        let lines = || std::fs::read_to_string(&history).map_or(0, |text| text.lines().count());
        wait_for("a hundred operations on disk", || (lines() > 100).then_some(()));
        let status = Command::new("kill").args([&format!("-{signal}"), &recording.id().to_string()]).status();
        assert!(status.unwrap().success());
        let output = recording.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{signal}: {output:?}");
        assert!(said(&output).contains("recorded in"), "{output:?}");
        let judged = check(&[], &history);
        assert_eq!(judged.status.code(), Some(0), "{signal}: {}", said(&judged));
    }
}

/// A cluster that does not answer shows nothing.
#[test]
fn a_recording_without_answers_is_too_thin() {
    let cluster = Cluster::init(3, 1);
    let history = cluster.path().join("run.jsonl");
    let recorded = cluster.run(&["record", "--seconds", "1", "--keys", "1", "-o", history.to_str().unwrap()]);
    assert_eq!(recorded.status.code(), Some(11), "{recorded:?}");
    assert_eq!(check(&[], &history).status.code(), Some(11));
}

#[test]
fn a_history_goes_through_a_pipe_while_it_is_recorded() {
    let cluster = Cluster::start(3, 1);
    cluster.leader();
    let script = r#"set -o pipefail; "$0" --cluster "$1" record --seconds 1 -o /dev/stdout | "$0" check -"#;
    let output = shell(script, &cluster.path().join("cluster.toml"));
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(said(&output).starts_with("linearizable: "), "{output:?}");
}

/// The folder may be another user's, of whom nothing is known but that it cannot be written.
#[test]
fn a_demo_tells_its_verdict_where_the_folder_for_histories_is_taken() {
    let dir = tempfile::tempdir().unwrap();
    written(dir.path(), "tetrachord-histories", "no folder");
    let mut demo = program();
    demo.args(["demo", "--seconds", "2", "--kills", "1", "--json"]).env("TMPDIR", dir.path());
    let output = demo.output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let json: serde_json::Value = serde_json::from_str(&said(&output)).unwrap();
    assert_eq!(json["verdict"], "linearizable", "{json}");
    let history = Path::new(json["history"].as_str().unwrap());
    assert!(history.starts_with(dir.path()), "{json}");
    assert_eq!(check(&[], history).status.code(), Some(0));
}
