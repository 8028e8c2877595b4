//! Golden scripts of PBFT: one situation a file, told message by message.
//!
//! | command | does |
//! |---|---|
//! | `group N` | N replicas, a checkpoint every 4 slots; always first. r0 is the first primary |
//! | `quiet` / `loud` | leave out / show what follows |
//! | `ask rI TEXT`, `ask all TEXT` | a client brings a request to one replica, or to all |
//! | `deliver rI rJ` | the oldest message between the two, checked |
//! | `drop rI rJ` | all messages between the two |
//! | `persist rI` | its oldest commit reaches the disk |
//! | `settle` | deliver, check and persist until nothing moves |
//! | `time MS` / `run MS` | time passes, without / with deliveries |
//! | `crash rI`, `restart rI`, `compact rI` | `compact`: its state is durable, its log is dropped |
//! | `cut rI rJ`, `heal` | links, both ways |
//! | `lie rI LIE` | from now on it lies so |
//! | `damage rI` | its state is changed behind its back, and a scrub finds it |
//! | `status` | where each replica stands |
#![allow(clippy::unwrap_used, reason = "test code")]

mod pbft;
mod stories;

use pbft::Group;
use std::fmt::Write;
use stories::{Story, index};
use tetrachord_consensus::pbft::{Liar, Lie, Options, Signer, Window};
use tetrachord_consensus::{Engine, ReplicaId};

struct Told {
    group: Group,
    is_quiet: bool,
    requests: u64,
}

impl Story for Told {
    fn begin(words: &[&str]) -> Self {
        let ["group", n] = words else { panic!("a script begins with its group") };
        let options =
            Options { request_ticks: 400, request_ticks_max: 3_000, status_ticks: 40, ..Options::default() };
        let group = Group::new(n.parse().unwrap(), Window { interval: 4, length: 8 }, options);
        Self { group, is_quiet: false, requests: 0 }
    }

    fn act(&mut self, command: &str) -> String {
        let words: Vec<&str> = command.split_whitespace().collect();
        self.group.trace = Some(Vec::new());
        let mut out = String::new();
        match words.as_slice() {
            ["quiet"] => self.is_quiet = true,
            ["loud"] => self.is_quiet = false,
            ["ask", who, text] => self.ask(who, text),
            ["lie", who, name] => {
                let lie = Lie::from_name(name).unwrap_or_else(|| panic!("there is no lie {name}"));
                let signer = Signer::toy(ReplicaId(index(who) as u8), self.group.domain);
                self.group.nodes[index(who)].liar = Some((lie, Liar::new(signer, 1)));
            }
            ["damage", who] => {
                self.group.nodes[index(who)].is_rotten = true;
                self.group.act(index(who), |replica| replica.state_damaged("a scrub found it".to_string()));
            }
            ["status"] => out.push_str(&self.status()),
            words => self.move_on(words),
        }
        let trace = self.group.trace.take().unwrap_or_default();
        for line in trace.into_iter().filter(|_| !self.is_quiet) {
            writeln!(out, "{line}").unwrap();
        }
        for violation in self.group.violations.drain(..) {
            writeln!(out, "VIOLATION {}", violation.0).unwrap();
        }
        out
    }
}

impl Told {
    fn ask(&mut self, who: &str, text: &str) {
        self.requests += 1;
        let bundle = self.group.request(0, self.requests, text);
        let asked = if who == "all" { (0..self.group.nodes.len()).collect() } else { vec![index(who)] };
        for at in asked {
            self.group.submit(at, &bundle);
            while self.group.check(at) {}
        }
    }

    fn move_on(&mut self, words: &[&str]) {
        let between = |from: &str, to: &str| (index(from), index(to));
        let group = &mut self.group;
        match words {
            ["deliver", from, to] => {
                let pair = between(from, to);
                let found = group.network.iter().position(|envelope| (envelope.from, envelope.to) == pair);
                group.deliver(found.unwrap_or_else(|| panic!("nothing is under way from {from} to {to}")));
                while group.check(pair.1) {}
            }
            ["drop", from, to] => {
                let pair = between(from, to);
                group.network.retain(|envelope| (envelope.from, envelope.to) != pair);
            }
            ["persist", who] => drop(group.persist(index(who))),
            ["settle"] => group.settle(),
            ["time", millis] => group.advance(millis.parse().unwrap()),
            ["run", millis] => group.run(millis.parse().unwrap()),
            ["crash", who] => group.crash(index(who), 0),
            ["restart", who] => group.start(index(who)),
            ["compact", who] => group.checkpoint(index(who), 0, true),
            ["cut", a, b] => group.partition(&[index(a)], &[index(b)]),
            ["heal"] => group.heal(),
            _ => panic!("unknown command: {words:?}"),
        }
    }

    fn status(&self) -> String {
        let line = |at: usize| {
            let Some(replica) = &self.group.nodes[at].replica else { return format!("r{at} down\n") };
            let (status, condition) = (replica.status(), replica.condition());
            let role = if status.is_leader { "primary" } else { "backup" };
            let state = if condition.is_repairing { ", repairing" } else { "" };
            format!(
                "r{at} {role} in {}, executed {}, stable {}, log {}..{}{state}\n",
                status.ballot,
                replica.executed(),
                condition.stable,
                status.base,
                status.last
            )
        };
        (0..self.group.nodes.len()).map(line).collect()
    }
}

#[test]
fn every_script_tells_the_same_story_as_before() {
    stories::replay_all::<Told>("pbft", 12);
}
