//! Golden scripts: one situation a file, told as commands with everything that followed. `UPDATE=1 cargo test` rewrites
//! what followed; the difference then shows what a change altered.
//!
//! | command | does |
//! |---|---|
//! | `cluster N` | N replicas; always first |
//! | `cluster N small` | one entry in a message, and one message under way to each replica |
//! | `cluster N quorums P1 P2` | so many elect, so many decide |
//! | `quiet` / `loud` / `show WORD ...` | tell nothing, all, or lines with one of these words |
//! | `elect rI` | that replica's election timeout passes; everything is delivered |
//! | `timeout rI` | the same, and nothing is delivered |
//! | `time MS` | time passes everywhere, without deliveries |
//! | `run MS` | time passes in small steps, with deliveries |
//! | `clock rI MS` | its clock is so far ahead, or behind |
//! | `propose rI TEXT`, `stop rI TEXT`, `read rI` | a client asks |
//! | `transfer rI rJ` | it is asked to let the other lead |
//! | `deliver rI rJ`, `last rI rJ` | the oldest, or the newest, message between the two |
//! | `drop rI rJ`, `lose rI rJ` | all messages between the two are lost, or the oldest |
//! | `delay rI rJ`, `copy rI rJ`, `late rI rJ` | keep the oldest back, or a copy of it; deliver the oldest of these |
//! | `persist rI` | its oldest commit reaches the disk |
//! | `hang rI`, `mend rI` | its disk takes nothing any more, and does again |
//! | `settle` | deliver and persist until nothing moves |
//! | `crash rI`, `restart rI`, `checkpoint rI` | `checkpoint`: its state is durable, its log is dropped |
//! | `slow`, `arrive` | states take their time; the oldest under way is there |
//! | `cut rI rJ`, `mute rI rJ`, `heal` | links, both ways; only what the first says; all are whole again |
//! | `status`, `log`, `times` | where each replica stands; what its log holds; its clock and the last entry, by right time |
#![allow(clippy::unwrap_used, reason = "test code")]

mod harness;
mod stories;

use harness::{Cluster, Envelope};
use std::fmt::Write;
use stories::{Shown, Story, Traffic, index};
use tetrachord_consensus::{Engine, Options, Proposal, Quorums, ReplicaId};

struct Told {
    cluster: Cluster,
    shown: Shown,
    traffic: Traffic<Envelope>,
}

impl Story for Told {
    fn begin(words: &[&str]) -> Self {
        let ["cluster", n, how @ ..] = words else { panic!("a script begins with its cluster") };
        let small = Options { message_bytes: 4, window_bytes: 4, ..Options::default() };
        let (majority, n) = (Quorums::majority(n.parse().unwrap()).unwrap(), n.parse().unwrap());
        let (quorums, options) = match how {
            [] => (majority, Options::default()),
            ["small"] => (majority, small),
            ["quorums", elect, decide] => {
                let (elect, decide) = (elect.parse().unwrap(), decide.parse().unwrap());
                (Quorums::flexible(n, elect, decide, 1).unwrap(), Options::default())
            }
            _ => panic!("there is no such cluster: {how:?}"),
        };
        let between = |envelope: &Envelope| (usize::from(envelope.from.0), usize::from(envelope.to.0));
        Self {
            cluster: Cluster::with_quorums(quorums, options),
            shown: Shown::default(),
            traffic: Traffic::new(between),
        }
    }

    fn act(&mut self, command: &str) -> String {
        let words: Vec<&str> = command.split_whitespace().collect();
        self.cluster.trace = Some(Vec::new());
        let mut out = self.ask(&words);
        if let Some(found) = self.traffic.delivers(&words, &mut self.cluster.network) {
            self.cluster.deliver(found);
        } else if out.is_empty()
            && !self.shown.obeys(&words)
            && !self.traffic.obeys(&words, &mut self.cluster.network)
            && !self.pass(&words)
        {
            self.change(&words);
        }
        out.push_str(&self.shown.tell(self.cluster.trace.take().unwrap_or_default()));
        for violation in self.cluster.violations.drain(..) {
            writeln!(out, "VIOLATION {}", violation.0).unwrap();
        }
        out
    }
}

impl Told {
    /// Somebody asks: a client, or whoever reads the story. Tells the answer.
    fn ask(&mut self, words: &[&str]) -> String {
        match words {
            ["propose", who, text] => match self.cluster.propose(index(who), text) {
                Ok(slot) => format!("{who} proposes {text} for slot {slot}\n"),
                Err(error) => format!("{who} refuses: {error}\n"),
            },
            ["stop", who, text] => {
                let next = bytes::Bytes::copy_from_slice(text.as_bytes());
                let result = self.cluster.propose_raw(index(who), Proposal::StopSign(next.clone()), next);
                format!("{who} proposes the end of the epoch: {result:?}\n")
            }
            ["status"] => self.each(Self::status),
            ["log"] => self.each(Self::log),
            ["times"] => self.each(Self::times),
            _ => String::new(),
        }
    }

    /// Time passes, or what is under way moves on; false if the command is another.
    fn pass(&mut self, words: &[&str]) -> bool {
        let cluster = &mut self.cluster;
        match words {
            ["elect" | "timeout", who] => {
                cluster.now += 1_000;
                cluster.tick(index(who));
                if words[0] == "elect" {
                    cluster.settle();
                }
            }
            ["time", millis] => cluster.advance(millis.parse().unwrap()),
            ["run", millis] => cluster.run(millis.parse().unwrap()),
            ["settle"] => cluster.settle(),
            ["persist", who] => drop(cluster.persist(index(who))),
            ["arrive"] => cluster.finish_transfer(0),
            _ => return false,
        }
        true
    }

    /// Something happens to a replica, a disk, a clock or a link.
    fn change(&mut self, words: &[&str]) {
        let id = |who: &str| ReplicaId(index(who) as u8);
        let cluster = &mut self.cluster;
        match words {
            ["read", who] => drop(cluster.read(index(who))),
            ["transfer", who, to] => {
                cluster.act(index(who), |replica| replica.transfer_leadership(Some(id(to))));
            }
            ["clock", who, millis] => {
                cluster.clock_offsets[index(who)] = millis.parse::<i64>().unwrap() * 1000;
            }
            ["crash", who] => cluster.crash(index(who), 0),
            ["restart", who] => cluster.start(index(who)),
            ["checkpoint", who] => cluster.checkpoint(index(who), 0),
            ["hang", who] => drop(cluster.hung.insert(index(who))),
            ["mend", who] => drop(cluster.hung.remove(&index(who))),
            ["slow"] => cluster.is_slow = true,
            ["cut", a, b] => cluster.partition(&[id(a).0], &[id(b).0]),
            ["mute", from, to] => drop(cluster.cut.insert((id(from).0, id(to).0))),
            ["heal"] => cluster.heal(),
            _ => panic!("unknown command: {words:?}"),
        }
    }

    /// One line of each replica that runs.
    fn each(&self, tell: fn(&Self, usize) -> String) -> String {
        let line = |at: usize| match self.cluster.is_up(at) {
            true => format!("r{at} {}\n", tell(self, at)),
            false => format!("r{at} down\n"),
        };
        (0..self.cluster.nodes.len()).map(line).collect()
    }

    fn status(&self, at: usize) -> String {
        let (replica, status) = (self.cluster.replica(at), self.cluster.replica(at).status());
        let role = if status.is_leader { "leads" } else { "follows" };
        let leader = status.leader.map_or("nobody".to_string(), |leader| leader.to_string());
        let (promised, accepted) = (status.ballot, replica.acceptor().accepted());
        let (base, last, decided) = (status.base, status.last, status.decided);
        format!(
            "{role} (leader {leader}) promised {promised} accepted {accepted} log {base}..{last} decided {decided}"
        )
    }

    fn log(&self, at: usize) -> String {
        let log = self.cluster.replica(at).acceptor().log();
        let base = log.base().slot;
        format!("holds behind {base} {:?}", log.above(base))
    }

    fn times(&self, at: usize) -> String {
        let offset = self.cluster.clock_offsets[at];
        let right = self.cluster.wall(at).0.wrapping_add_signed(-offset);
        let last = self.cluster.replica(at).acceptor().log().last().time.0;
        let late = last.cast_signed() - right.cast_signed();
        format!("clock {:+} ms, last entry {:+} ms", offset / 1000, late / 1000)
    }
}

#[test]
fn every_script_tells_the_same_story_as_before() {
    stories::replay_all::<Told>("paxos", 51);
}
