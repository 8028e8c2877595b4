//! Golden scripts: one situation a file, told as commands with everything that followed. `UPDATE=1 cargo test` rewrites
//! what followed; the difference then shows what a change altered.
//!
//! | command | does |
//! |---|---|
//! | `cluster N` | N replicas; always first |
//! | `quiet` / `loud` | leave out / show what follows |
//! | `elect rI` | that replica's election timeout passes; everything is delivered |
//! | `time MS` | time passes everywhere, without deliveries |
//! | `run MS` | time passes in small steps, with deliveries |
//! | `propose rI TEXT`, `stop rI TEXT`, `read rI` | a client asks |
//! | `deliver rI rJ` | the oldest message between the two |
//! | `drop rI rJ` | all messages between the two |
//! | `persist rI` | its oldest commit reaches the disk |
//! | `settle` | deliver and persist until nothing moves |
//! | `crash rI`, `restart rI`, `checkpoint rI` | |
//! | `cut rI rJ`, `heal` | links, both ways |
//! | `status` | where each replica stands |
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "test code, and it rewrites scripts on request"
)]

mod harness;

use harness::Cluster;
use std::fmt::Write;
use std::path::Path;
use tetrachord_consensus::{Engine, Event, Options, Proposal, ReplicaId, Ticks, Timestamp};

struct Story {
    cluster: Cluster,
    is_quiet: bool,
}

fn index(word: &str) -> usize {
    word.trim_start_matches('r').parse().unwrap_or_else(|_| panic!("\"{word}\" is no replica"))
}

impl Story {
    fn act(&mut self, command: &str) -> String {
        let words: Vec<&str> = command.split_whitespace().collect();
        self.cluster.trace = Some(Vec::new());
        let mut out = String::new();
        match words.as_slice() {
            ["quiet"] => self.is_quiet = true,
            ["loud"] => self.is_quiet = false,
            ["elect", who] => {
                let now = self.cluster.now + 1_000;
                self.cluster.now = now;
                self.cluster.step(
                    index(who),
                    Event::Tick { now: Ticks(now), wall: Timestamp(1_000_000_000 + now * 1000) },
                );
                self.cluster.settle();
            }
            ["time", millis] => self.cluster.advance(millis.parse().unwrap()),
            ["run", millis] => self.cluster.run(millis.parse().unwrap()),
            ["propose", who, text] => match self.cluster.propose(index(who), text) {
                Ok(slot) => writeln!(out, "{who} proposes {text} for slot {slot}").unwrap(),
                Err(error) => writeln!(out, "{who} refuses: {error}").unwrap(),
            },
            ["stop", who, text] => {
                let next = bytes::Bytes::copy_from_slice(text.as_bytes());
                let result = self.cluster.propose_raw(index(who), Proposal::StopSign(next.clone()), next);
                writeln!(out, "{who} proposes the end of the epoch: {result:?}").unwrap();
            }
            ["read", who] => drop(self.cluster.read(index(who))),
            ["deliver", from, to] => {
                let pair = (ReplicaId(index(from) as u8), ReplicaId(index(to) as u8));
                let found =
                    self.cluster.network.iter().position(|envelope| (envelope.from, envelope.to) == pair);
                self.cluster
                    .deliver(found.unwrap_or_else(|| panic!("nothing is under way from {from} to {to}")));
            }
            ["drop", from, to] => {
                let pair = (ReplicaId(index(from) as u8), ReplicaId(index(to) as u8));
                self.cluster.network.retain(|envelope| (envelope.from, envelope.to) != pair);
            }
            ["persist", who] => drop(self.cluster.persist(index(who))),
            ["settle"] => self.cluster.settle(),
            ["crash", who] => self.cluster.crash(index(who), 0),
            ["restart", who] => self.cluster.start(index(who)),
            ["checkpoint", who] => self.cluster.checkpoint(index(who), 0),
            ["cut", a, b] => self.cluster.partition(&[index(a) as u8], &[index(b) as u8]),
            ["heal"] => self.cluster.heal(),
            ["status"] => {}
            _ => panic!("unknown command: {command}"),
        }
        if !self.is_quiet {
            for line in self.cluster.trace.take().unwrap_or_default() {
                writeln!(out, "{line}").unwrap();
            }
        }
        if words == ["status"] {
            out.push_str(&self.status());
        }
        for violation in self.cluster.violations.drain(..) {
            writeln!(out, "VIOLATION {}", violation.0).unwrap();
        }
        out
    }

    fn status(&self) -> String {
        let line = |at: usize| {
            if !self.cluster.is_up(at) {
                return format!("r{at} down\n");
            }
            let (replica, status) = (self.cluster.replica(at), self.cluster.replica(at).status());
            let role = if status.is_leader { "leads" } else { "follows" };
            let leader = status.leader.map_or("nobody".to_string(), |leader| leader.to_string());
            format!(
                "r{at} {role} (leader {leader}) promised {} accepted {} log {}..{} decided {}\n",
                status.ballot,
                replica.acceptor().accepted(),
                status.base,
                status.last,
                status.decided
            )
        };
        (0..self.cluster.nodes.len()).map(line).collect()
    }
}

/// Runs a script and returns it with what followed each command.
fn play(script: &str) -> String {
    let mut story: Option<Story> = None;
    let mut told = String::new();
    for line in script.lines() {
        let Some(command) = line.strip_prefix("> ") else {
            if line.starts_with('#') || line.is_empty() && told.ends_with("\n") && !told.ends_with("\n\n") {
                told.push_str(line);
                told.push('\n');
            }
            continue;
        };
        told.push_str(line);
        told.push('\n');
        match (&mut story, command.split_whitespace().collect::<Vec<_>>().as_slice()) {
            (None, ["cluster", n]) => {
                let cluster = Cluster::new(n.parse().unwrap(), Options::default());
                story = Some(Story { cluster, is_quiet: false });
            }
            (None, _) => panic!("a script begins with its cluster"),
            (Some(story), _) => told.push_str(&story.act(command)),
        }
    }
    told
}

#[test]
fn every_script_tells_the_same_story_as_before() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scripts/paxos");
    let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(files.len() >= 12, "{} scripts", files.len());
    let mut changed = Vec::new();
    for file in files {
        let before = std::fs::read_to_string(&file).unwrap();
        let after = play(&before);
        if before != after {
            if std::env::var_os("UPDATE").is_some() {
                std::fs::write(&file, &after).unwrap();
            } else {
                let at = before.lines().zip(after.lines()).position(|(a, b)| a != b).unwrap_or(0);
                changed.push(format!(
                    "{}:{}\n  before: {}\n  now:    {}",
                    file.display(),
                    at + 1,
                    before.lines().nth(at).unwrap_or("(end)"),
                    after.lines().nth(at).unwrap_or("(end)")
                ));
            }
        }
    }
    assert!(changed.is_empty(), "stories changed; UPDATE=1 rewrites them:\n{}", changed.join("\n"));
}
