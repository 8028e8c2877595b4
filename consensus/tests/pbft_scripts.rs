//! Golden scripts of PBFT: one situation a file, told message by message.
//!
//! | command | does |
//! |---|---|
//! | `group N` | N replicas, a checkpoint every 4 slots; always first. r0 is the first primary of four, r4 of seven |
//! | `quiet` / `loud` / `show WORD ...` | tell nothing, all, or lines with one of these words |
//! | `ask rI TEXT`, `ask all TEXT` | a client brings a request to one replica, or to all |
//! | `again rI`, `same rI TEXT` | the last request once more; another one under its name |
//! | `load rI COUNT MS` | so many requests, with so much time between them, and deliveries |
//! | `forge rI TEXT` | a request comes that its client did not sign |
//! | `stop rI` | the administrator ends the epoch; `all` stands for every replica here, too |
//! | `deliver rI rJ`, `last rI rJ` | the oldest, or the newest, message between the two, checked |
//! | `drop rI rJ`, `lose rI rJ` | all messages between the two are lost, or the oldest |
//! | `delay rI rJ`, `copy rI rJ`, `late rI rJ` | keep the oldest back, or a copy of it; deliver the oldest of these |
//! | `spoil rI rJ` | the last bit of the oldest message between the two changes |
//! | `persist rI` | its oldest commit reaches the disk |
//! | `settle` | deliver, check and persist until nothing moves |
//! | `time MS` / `run MS` | time passes, without / with deliveries |
//! | `clock rI MS` | its clock is so far ahead, or behind |
//! | `crash rI`, `restart rI`, `compact rI` | `compact`: its state is durable, its log is dropped |
//! | `cut rI rJ`, `mute rI rJ`, `heal` | links, both ways; only what the first says; all are whole again |
//! | `lie rI LIE`, `honest rI` | from now on it lies so, or does not |
//! | `damage rI`, `rot rI` | its state is changed behind its back; a scrub finds it, or nobody yet |
//! | `build rI` | it executes otherwise than the others |
//! | `status`, `state`, `suspects` | where each replica stands; what it executed; what it knows against others |
#![allow(clippy::unwrap_used, reason = "test code")]

mod pbft;
mod stories;

use pbft::{Envelope, Group};
use std::fmt::Write;
use stories::{Shown, Story, Traffic, index};
use tetrachord_consensus::pbft::sign::TOY_ADMINISTRATOR;
use tetrachord_consensus::pbft::{Batch, Bundle, Liar, Lie, Options, Signer, Window};
use tetrachord_consensus::{Decided, Engine, Proposal, ReplicaId};

struct Told {
    group: Group,
    shown: Shown,
    traffic: Traffic<Envelope>,
    requests: u64,
    last: Option<Bundle>,
}

impl Story for Told {
    fn begin(words: &[&str]) -> Self {
        let ["group", n] = words else { panic!("a script begins with its group") };
        let options =
            Options { request_ticks: 400, request_ticks_max: 3_000, status_ticks: 40, ..Options::default() };
        let group = Group::new(n.parse().unwrap(), Window { interval: 4, length: 8 }, options);
        let traffic = Traffic::new(|envelope: &Envelope| (envelope.from, envelope.to));
        Self { group, shown: Shown::default(), traffic, requests: 0, last: None }
    }

    fn act(&mut self, command: &str) -> String {
        let words: Vec<&str> = command.split_whitespace().collect();
        self.group.trace = Some(Vec::new());
        let mut out = self.look(&words);
        if let Some(found) = self.traffic.delivers(&words, &mut self.group.network) {
            let to = self.group.network[found].to;
            self.group.deliver(found);
            while self.group.check(to) {}
        } else if out.is_empty()
            && !self.shown.obeys(&words)
            && !self.traffic.obeys(&words, &mut self.group.network)
            && !self.ask(&words)
            && !self.pass(&words)
        {
            self.change(&words);
        }
        out.push_str(&self.shown.tell(self.group.trace.take().unwrap_or_default()));
        for violation in self.group.violations.drain(..) {
            writeln!(out, "VIOLATION {}", violation.0).unwrap();
        }
        out
    }
}

impl Told {
    fn look(&self, words: &[&str]) -> String {
        match words {
            ["status"] => self.each(Self::status),
            ["state"] => self.each(Self::state),
            ["suspects"] => self.each(Self::suspects),
            _ => String::new(),
        }
    }

    /// Somebody asks for something; false if the command is another.
    fn ask(&mut self, words: &[&str]) -> bool {
        match words {
            ["ask", who, text] => self.ask_for(who, text, 1),
            ["same", who, text] => self.ask_for(who, text, 0),
            ["again", who] => self.bring(who),
            ["load", who, count, millis] => {
                for number in 0..count.parse().unwrap() {
                    self.ask_for(who, &format!("load{number}"), 1);
                    self.group.run(millis.parse().unwrap());
                }
            }
            ["forge", who, text] => {
                self.requests += 1;
                let mut bytes = self.group.request(0, self.requests, text).bytes().to_vec();
                *bytes.last_mut().unwrap() ^= 1;
                self.last = Some(Bundle::parse(bytes.into()).unwrap());
                self.bring(who);
            }
            ["stop", who] => {
                self.last = Some(self.group.stop_sign(TOY_ADMINISTRATOR));
                self.bring(who);
            }
            _ => return false,
        }
        true
    }

    fn ask_for(&mut self, who: &str, text: &str, new: u64) {
        self.requests += new;
        self.last = Some(self.group.request(0, self.requests, text));
        self.bring(who);
    }

    /// The last request is brought to one replica, or to all.
    fn bring(&mut self, who: &str) {
        let bundle = self.last.clone().expect("somebody has asked before");
        let asked = if who == "all" { (0..self.group.nodes.len()).collect() } else { vec![index(who)] };
        for at in asked {
            self.group.submit(at, &bundle);
            while self.group.check(at) {}
        }
    }

    /// Time passes, or what is under way moves on; false if the command is another.
    fn pass(&mut self, words: &[&str]) -> bool {
        let group = &mut self.group;
        match words {
            ["persist", who] => drop(group.persist(index(who))),
            ["settle"] => group.settle(),
            ["time", millis] => group.advance(millis.parse().unwrap()),
            ["run", millis] => group.run(millis.parse().unwrap()),
            _ => return false,
        }
        true
    }

    /// Something happens to a replica, a clock, a link or a message.
    fn change(&mut self, words: &[&str]) {
        let group = &mut self.group;
        match words {
            ["clock", who, millis] => group.clocks[index(who)] = millis.parse().unwrap(),
            ["crash", who] => group.crash(index(who), 0),
            ["restart", who] => group.start(index(who)),
            ["compact", who] => group.checkpoint(index(who), 0, true),
            ["cut", a, b] => group.partition(&[index(a)], &[index(b)]),
            ["mute", from, to] => drop(group.cut.insert((index(from), index(to)))),
            ["heal"] => group.heal(),
            ["lie", who, name] => {
                let lie = Lie::from_name(name).unwrap_or_else(|| panic!("there is no lie {name}"));
                let signer = Signer::toy(ReplicaId(index(who) as u8), group.domain);
                group.nodes[index(who)].liar = Some((lie, Liar::new(signer, 1)));
            }
            ["honest", who] => group.nodes[index(who)].liar = None,
            ["damage", who] => {
                group.nodes[index(who)].is_rotten = true;
                group.act(index(who), |replica| replica.state_damaged("a scrub found it".to_string()));
            }
            ["rot", who] => group.nodes[index(who)].is_rotten = true,
            ["build", who] => group.nodes[index(who)].is_other_build = true,
            ["spoil", from, to] => {
                let pair = (index(from), index(to));
                let found = group.network.iter_mut().find(|envelope| (envelope.from, envelope.to) == pair);
                let envelope = found.unwrap_or_else(|| panic!("nothing is under way from {from} to {to}"));
                let mut bytes = envelope.message.to_vec();
                *bytes.last_mut().unwrap() ^= 1;
                envelope.message = bytes.into();
            }
            _ => panic!("unknown command: {words:?}"),
        }
    }

    /// One line of each replica that runs.
    fn each(&self, tell: fn(&Self, usize) -> String) -> String {
        let line = |at: usize| match self.group.is_up(at) {
            true => format!("r{at} {}\n", tell(self, at)),
            false => format!("r{at} down\n"),
        };
        (0..self.group.nodes.len()).map(line).collect()
    }

    fn status(&self, at: usize) -> String {
        let replica = self.group.replica(at);
        let (status, condition) = (replica.status(), replica.condition());
        let role = if status.is_leader { "primary" } else { "backup" };
        let state = if condition.is_repairing { ", repairing" } else { "" };
        format!(
            "{role} in {}, executed {}, stable {}, log {}..{}{state}",
            status.ballot,
            replica.executed(),
            condition.stable,
            status.base,
            status.last
        )
    }

    fn state(&self, at: usize) -> String {
        let slots: Vec<String> = self.group.nodes[at].applied.iter().map(operations).collect();
        format!("executed [{}]", slots.join(", "))
    }

    fn suspects(&self, at: usize) -> String {
        let suspects = self.group.replica(at).condition().suspects;
        format!("knows [{}]", suspects.join(", "))
    }
}

/// What was asked in a slot.
fn operations(decided: &Decided) -> String {
    let Some(Proposal::Batch(batch)) = &decided.proposal else { return "null".to_string() };
    let batch = Batch::parse(batch.clone()).unwrap();
    let requests = batch.bundles().iter().flat_map(Bundle::requests);
    let texts: Vec<String> = requests.map(|request| request.operation.escape_ascii().to_string()).collect();
    texts.join(" ")
}

#[test]
fn every_script_tells_the_same_story_as_before() {
    stories::replay_all::<Told>("pbft", 61);
}
