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
#![allow(clippy::unwrap_used, reason = "test code")]

mod harness;
mod stories;

use harness::Cluster;
use std::fmt::Write;
use stories::{Story, index};
use tetrachord_consensus::{Engine, Event, Options, Proposal, ReplicaId, Ticks, Timestamp};

struct Told {
    cluster: Cluster,
    is_quiet: bool,
}

impl Story for Told {
    fn begin(words: &[&str]) -> Self {
        let ["cluster", n] = words else { panic!("a script begins with its cluster") };
        Self { cluster: Cluster::new(n.parse().unwrap(), Options::default()), is_quiet: false }
    }

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
}

impl Told {
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

#[test]
fn every_script_tells_the_same_story_as_before() {
    stories::replay_all::<Told>("paxos", 12);
}
