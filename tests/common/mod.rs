//! Real processes for tests from outside: the program itself, started, killed and asked as a user would.
#![allow(dead_code, clippy::unwrap_used, reason = "test code, of which each file uses a part")]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// The program under test.
pub(crate) fn program() -> Command {
    Command::new(env!("CARGO_BIN_EXE_tetrachord"))
}

/// Nodes of a cluster made by `tetrachord init`, as child processes.
pub(crate) struct Cluster {
    pub(crate) dir: tempfile::TempDir,
    children: Vec<Option<Child>>,
}

impl Cluster {
    /// Makes a cluster on free ports and starts its nodes.
    pub(crate) fn start(nodes: usize, groups: usize) -> Self {
        let mut cluster = Self::init(nodes, groups);
        for index in 0..nodes {
            cluster.start_node(index);
        }
        cluster
    }

    /// Makes a cluster in Byzantine mode on free ports and starts its nodes.
    pub(crate) fn start_byzantine(nodes: usize) -> Self {
        let mut cluster = Self::init_in("byzantine", nodes, 1);
        for index in 0..nodes {
            cluster.start_node(index);
        }
        cluster
    }

    /// Makes a cluster and starts nothing.
    pub(crate) fn init(nodes: usize, groups: usize) -> Self {
        Self::init_in("crash", nodes, groups)
    }

    pub(crate) fn init_in(mode: &str, nodes: usize, groups: usize) -> Self {
        Self::init_for(mode, nodes, groups, 1)
    }

    /// The same, with so many clients.
    pub(crate) fn init_for(mode: &str, nodes: usize, groups: usize, clients: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut init = program();
        let (groups, clients) = (groups.to_string(), clients.to_string());
        init.args(["init", "--mode", mode, "--groups", &groups, "--clients", &clients, "--dir"])
            .arg(dir.path().join("c"));
        for address in tetrachord::config::free_addresses(nodes).unwrap() {
            init.args(["--address", &address.to_string()]);
        }
        let output = init.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Self { dir, children: (0..nodes).map(|_| None).collect() }
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.dir.path().join("c")
    }

    pub(crate) fn node_file(&self, index: usize) -> PathBuf {
        self.path().join(format!("n{}", index + 1)).join("node.toml")
    }

    pub(crate) fn log(&self, index: usize) -> String {
        std::fs::read_to_string(self.node_file(index).with_file_name("node.log")).unwrap_or_default()
    }

    pub(crate) fn start_node(&mut self, index: usize) {
        self.start_node_under(index, program());
    }

    /// Starts a node by a command that runs the program (a tracer, say).
    pub(crate) fn start_node_under(&mut self, index: usize, command: Command) {
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.node_file(index).with_file_name("node.log"))
            .unwrap();
        self.start_node_logging_to(index, command, log.into());
    }

    /// Starts a node whose log goes elsewhere than to its file.
    pub(crate) fn start_node_logging_to(&mut self, index: usize, mut command: Command, log: Stdio) {
        assert!(self.children[index].is_none());
        command.args(["serve", "--config"]).arg(self.node_file(index));
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap();
        self.children[index] = Some(child);
    }

    /// SIGKILL.
    pub(crate) fn kill_node(&mut self, index: usize) {
        let mut child = self.children[index].take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// SIGTERM; returns the exit code.
    pub(crate) fn terminate_node(&mut self, index: usize) -> Option<i32> {
        let mut child = self.children[index].take().unwrap();
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        child.wait().unwrap().code()
    }

    /// How the node's process ended, if it did by itself.
    pub(crate) fn exit_code(&mut self, index: usize) -> Option<i32> {
        let status = self.children[index].as_mut()?.try_wait().unwrap()?;
        Some(status.code().unwrap_or(-1))
    }

    pub(crate) fn pid(&self, index: usize) -> u32 {
        self.children[index].as_ref().unwrap().id()
    }

    /// Runs a client command.
    pub(crate) fn run(&self, args: &[&str]) -> Output {
        program().arg("--cluster").arg(self.path().join("cluster.toml")).args(args).output().unwrap()
    }

    /// Runs a client command that must succeed and returns what it printed.
    pub(crate) fn ok(&self, args: &[&str]) -> String {
        let output = self.run(args);
        let text = String::from_utf8_lossy(&output.stdout).trim().to_string();
        let problem = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{args:?}: {:?} {text} {problem}", output.status.code());
        text
    }

    /// Runs a client command and returns its exit code.
    pub(crate) fn code(&self, args: &[&str]) -> i32 {
        self.run(args).status.code().unwrap()
    }

    /// What nodes said last, for whoever reads why a test failed.
    fn tell(&mut self) {
        for index in 0..self.children.len() {
            let lives = self.children[index].as_mut().map(|child| child.try_wait());
            let log = self.log(index);
            let last = log.lines().count().saturating_sub(12);
            eprintln!("node {}: {lives:?}", index + 1);
            log.lines().skip(last).for_each(|line| eprintln!("    {line}"));
        }
    }

    /// What `status --json` says.
    pub(crate) fn status(&self) -> serde_json::Value {
        serde_json::from_slice(&self.run(&["status", "--json"]).stdout).unwrap()
    }

    /// The node that leads the first group, by index, as soon as one does.
    pub(crate) fn leader(&self) -> usize {
        wait_for("a leader", || {
            let status = self.status();
            let leads = |node: &serde_json::Value| node["groups"][0]["is_leader"] == true;
            status["nodes"].as_array()?.iter().position(leads)
        })
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.tell();
        }
        for child in self.children.iter_mut().flatten() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Asks again and again until there is an answer.
pub(crate) fn wait_for<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(started.elapsed() < Duration::from_secs(120), "waited two minutes for {what}");
        std::thread::yield_now();
    }
}

/// The repository.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}
