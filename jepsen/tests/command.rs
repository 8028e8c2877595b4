//! The command line of the judge: the exit code is the verdict, whoever listens, and nothing that was seen is lost.
#![allow(clippy::unwrap_used, reason = "test code")]

use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use tetrachord::config::{self, ClusterConfig, InitPlan, Mode, StorageConfig, Timing};
use tetrachord::wire::NodeStatus;

const PROGRAM: &str = env!("CARGO_BIN_EXE_tetrachord-jepsen");

fn jepsen(arguments: &[&str]) -> Output {
    Command::new(PROGRAM).args(arguments).output().unwrap()
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn no_seed_is_no_sweep() {
    for wrong in [["--seeds", "0"], ["--seed", "many"]] {
        let output = jepsen(&[&["sim"], &wrong[..]].concat());
        assert_eq!(output.status.code(), Some(2), "{}", text(&output));
    }
    let last = u64::MAX.to_string();
    let output = jepsen(&["sim", "--from", &last, "--seeds", "2"]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(text(&output).contains("there are not so many seeds"), "{}", text(&output));
    let output = jepsen(&["sim", "--from", &last, "--seeds", "1"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    let output = jepsen(&["sim", "--seed", "1", "--millis", &last]);
    assert_eq!(output.status.code(), Some(2), "{}", text(&output));
}

#[test]
fn what_is_asked_of_few_seeds_is_said() {
    let output = jepsen(&["sim", "--from", "1", "--seeds", "2"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    assert!(text(&output).contains("of fewer than 200 seeds it is not asked"), "{}", text(&output));
}

#[test]
fn the_exit_code_is_the_verdict_where_nobody_reads_it() {
    for command in ["sim --seed 1 --trace --millis 500", "sim --from 1 --seeds 2", "list"] {
        for ending in ["| head -1", "> /dev/full", ">&-", "2>&-", "> /dev/full 2> /dev/full"] {
            let script = format!("set -o pipefail; \"$0\" {command} {ending}");
            let output = Command::new("bash").args(["-c", &script, PROGRAM]).output().unwrap();
            assert_eq!(output.status.code(), Some(0), "{script}: {}", text(&output));
        }
    }
}

#[test]
fn it_says_that_it_tests_tetrachord_and_what_tests_other_stores() {
    let help = text(&jepsen(&["--help"]));
    assert!(
        help.contains("tests Tetrachord and nothing else") && help.contains("tetrachord check"),
        "{help}"
    );
}

/// Nobody waits for a day to learn that the report has no place.
#[test]
fn a_trial_opens_its_files_before_it_begins() {
    let test = ["test", "--nemesis", "none", "--seconds", "86400", "--output", "/proc/nowhere"];
    let output = jepsen(&test);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(text(&output).contains("cannot create /proc/nowhere"), "{}", text(&output));
}

/// Nodes of a deployment that is there already.
struct Deployment {
    dir: tempfile::TempDir,
    nodes: Vec<Child>,
}

impl Deployment {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let addresses = config::free_addresses(3).unwrap();
        let plan = InitPlan {
            dir: dir.path().join("c"),
            addresses: addresses.into_iter().map(Into::into).collect(),
            groups: 1,
            replicas: 3,
            clients: 1,
            quorums: None,
            mode: Mode::Crash,
            storage: StorageConfig::default(),
            timing: Timing::default(),
        };
        let (_, files) = config::init(&plan).unwrap();
        let start = |file: &std::path::PathBuf| {
            let mut serve = Command::new(PROGRAM);
            serve.args(["serve", "--config"]).arg(file).stdout(Stdio::null()).stderr(Stdio::null());
            serve.spawn().unwrap()
        };
        let nodes = files.iter().map(start).collect();
        Self { dir, nodes }
    }

    fn test(&self, seconds: &str, output: &Path) -> Command {
        let mut command = Command::new(PROGRAM);
        command.args(["test", "--nemesis", "none", "--seed", "7", "--seconds", seconds, "--cluster"]);
        command.arg(self.dir.path().join("c/cluster.toml")).arg("--output").arg(output);
        command
    }
}

impl Drop for Deployment {
    fn drop(&mut self) {
        for node in &mut self.nodes {
            let _ = node.kill();
            let _ = node.wait();
        }
    }
}

#[test]
fn a_deployment_is_tested_twice_with_one_seed_and_accused_of_nothing() {
    let deployment = Deployment::start();
    for name in ["one", "other"] {
        let output = deployment.test("2", &deployment.dir.path().join(name)).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{name}: {}", text(&output));
    }
}

#[test]
fn a_trial_that_is_interrupted_is_judged_as_far_as_it_went() {
    let deployment = Deployment::start();
    let dir = deployment.dir.path().join("trials");
    let mut command = deployment.test("86400", &dir);
    let mut trial = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let cluster = ClusterConfig::load(&deployment.dir.path().join("c/cluster.toml")).unwrap();
        let client = tetrachord::Client::new(cluster).unwrap();
        let node = client.nodes()[0];
        let has_worked = |status: NodeStatus| status.groups.iter().any(|group| group.applied > 200);
        while !client.status(node).await.is_ok_and(has_worked) {
            assert!(trial.try_wait().unwrap().is_none(), "it ends before it is interrupted");
        }
    });
    let interrupt = Command::new("kill").args(["-INT", &trial.id().to_string()]).status();
    assert!(interrupt.unwrap().success());
    let output = trial.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(text(&output).contains("verdict      void: it was interrupted"), "{}", text(&output));
    let history = std::fs::read_to_string(dir.join("trial-7.jsonl")).unwrap();
    assert!(tetrachord_checker::History::parse(&history).unwrap().operations().len() > 100);
    assert!(std::fs::read_to_string(dir.join("trial-7.html")).unwrap().contains("it was interrupted"));
}
