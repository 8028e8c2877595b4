//! One replica by itself. The test plays the others, and what it writes is durable at once.
#![allow(dead_code, clippy::unwrap_used, reason = "test code, of which each file uses a part")]

use super::rules::ballot;
use bytes::Bytes;
use tetrachord_consensus::paxos::{Ballot, Body, Effect, Entry, LogView, Message, Reason, Record, Replica};
use tetrachord_consensus::{
    Engine, Epoch, Event, GroupConfig, LogBase, Options, Quorums, ReplicaId, Slot, Ticks, Timestamp, codec,
};

pub(crate) struct Alone {
    pub(crate) replica: Replica,
    pub(crate) now: u64,
    pub(crate) fatal: Option<String>,
}

/// Entries of a log that begins at slot 0, first proposed in this ballot.
pub(crate) fn entries(ballot: Ballot, count: usize, text: &'static str) -> Vec<Entry> {
    let mut last = LogBase::default();
    let body = || Body::Batch(Bytes::from_static(text.as_bytes()));
    let entry = |_| {
        let entry = Entry::after(last, ballot, Timestamp(0), body());
        last = entry.base();
        entry
    };
    (0..count).map(entry).collect()
}

/// How a replica with this log, accepted in this ballot, speaks of it.
pub(crate) fn view(accepted: Ballot, log: &[Entry]) -> LogView {
    let last = log.last().map_or(LogBase::default(), Entry::base);
    LogView { accepted, base: Slot(0), last, decided: Slot(0), gathered: None }
}

/// Position and hash of a log's first `count` entries.
pub(crate) fn end_of(log: &[Entry], count: usize) -> LogBase {
    log[..count].last().map_or(LogBase::default(), Entry::base)
}

impl Alone {
    pub(crate) fn new(me: u8, n: usize, options: Options) -> Self {
        Self::with_log(me, n, options, Ballot::ZERO, Vec::new())
    }

    /// A replica whose disk holds a log that was accepted in this ballot.
    pub(crate) fn with_log(me: u8, n: usize, options: Options, accepted: Ballot, log: Vec<Entry>) -> Self {
        let config = GroupConfig { epoch: Epoch(1), quorums: Quorums::majority(n).unwrap() };
        let state = Record::State { promised: accepted, accepted, base: LogBase::default(), entries: log };
        let disk = [codec::encode(&state)];
        let replica = Replica::recover(ReplicaId(me), config, options, &disk, LogBase::default()).unwrap();
        let mut alone = Self { replica, now: 1, fatal: None };
        alone.wait(0);
        alone
    }

    /// Something happens; returns what it sends.
    pub(crate) fn step(&mut self, event: Event) -> Vec<(u8, Message)> {
        self.replica.step(event);
        let mut sent = Vec::new();
        loop {
            let effects = self.replica.take_effects();
            if effects.is_empty() {
                return sent;
            }
            for effect in effects {
                match effect {
                    Effect::Persist { token, .. } => self.replica.step(Event::Persisted { token }),
                    Effect::Send { to, message, .. } => sent.push((to.0, codec::decode(&message).unwrap())),
                    Effect::Fatal { reason } => self.fatal = Some(reason),
                    _ => {}
                }
            }
        }
    }

    pub(crate) fn hear(&mut self, from: u8, message: &Message) -> Vec<(u8, Message)> {
        self.step(Event::Receive { from: ReplicaId(from), message: codec::encode(message) })
    }

    /// Time passes in small steps.
    pub(crate) fn wait(&mut self, millis: u64) -> Vec<(u8, Message)> {
        let end = self.now + millis;
        let mut sent = Vec::new();
        loop {
            let wall = Timestamp(1_000_000_000 + self.now * 1000);
            sent.extend(self.step(Event::Tick { now: Ticks(self.now), wall }));
            if self.now >= end {
                return sent;
            }
            self.now = (self.now + 10).min(end);
        }
    }

    /// Time passes until it asks whether it may lead, and replica `friend` has nothing against it. Returns the ballot.
    pub(crate) fn campaign(&mut self, friend: u8) -> Ballot {
        for _ in 0..1_000 {
            let asked = self.wait(10).into_iter().find_map(|(to, message)| match message {
                Message::PreVote { ballot } if to == friend => Some(ballot),
                _ => None,
            });
            let Some(ballot) = asked else { continue };
            let granted = Message::PreVoteReply { ballot, granted: true, promised: Ballot::ZERO };
            self.hear(friend, &granted);
            return self.replica.promised();
        }
        panic!("it does not want to lead");
    }

    pub(crate) fn log(&self) -> Vec<Entry> {
        self.replica.acceptor().log().above(Slot(0))
    }
}

/// What a follower asks its leader for.
pub(crate) fn needs(sent: &[(u8, Message)]) -> Option<LogView> {
    sent.iter().find_map(|(_, message)| match message {
        Message::Reject { reason: Reason::NeedSync { view }, .. } => Some(*view),
        _ => None,
    })
}

/// A ballot of each replica, above the ones that scripts begin with.
pub(crate) fn later(replica: u8) -> Ballot {
    ballot(50, replica)
}
