//! A cluster whose links have a delay and a bandwidth, and whose disks take their time: all in virtual time.
//!
//! Between two nodes there is one queue, as there is one stream for a class of messages in production: a message waits until those
//! before it have left, however large they are, and what no longer fits into the queue is dropped.

use super::{Cluster, Envelope};
use bytes::Bytes;
use std::collections::{BTreeMap, VecDeque};
use tetrachord_consensus::paxos::Message;
use tetrachord_consensus::{Proposal, codec};

/// How fast everything is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Speed {
    /// From one node to another, one way.
    pub(crate) delay_micros: u64,
    pub(crate) bytes_per_ms: u64,
    /// From a commit to its barrier.
    pub(crate) barrier_micros: u64,
}

/// Bytes that a queue holds at most.
const QUEUE_BYTES_MAX: u64 = 24 << 20;

/// Nodes look at their clocks so often.
const TICK_MICROS: u64 = 10_000;

pub(crate) struct Links {
    pub(crate) cluster: Cluster,
    speed: Speed,
    now: u64,
    /// When each queue will be empty.
    free: BTreeMap<(u8, u8), u64>,
    /// By arrival.
    under_way: BTreeMap<(u64, u64), Envelope>,
    sent: u64,
    /// When each commit under way will be durable.
    barriers: Vec<VecDeque<u64>>,
    /// The longest that a heartbeat, or an answer to one, waited for what was queued before it.
    pub(crate) heartbeat_waited_micros: u64,
    /// Messages that a full queue has dropped.
    pub(crate) dropped: usize,
    /// Bytes sent by each kind of message.
    pub(crate) bytes: BTreeMap<&'static str, u64>,
}

impl Links {
    pub(crate) fn new(cluster: Cluster, speed: Speed) -> Self {
        let now = cluster.now * 1000;
        let barriers = vec![VecDeque::new(); cluster.nodes.len()];
        let (free, under_way, bytes) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        let mut links = Self {
            cluster,
            speed,
            now,
            free,
            under_way,
            sent: 0,
            barriers,
            heartbeat_waited_micros: 0,
            dropped: 0,
            bytes,
        };
        links.absorb();
        links
    }

    /// Milliseconds.
    pub(crate) fn now(&self) -> u64 {
        self.now / 1000
    }

    pub(crate) fn start(&mut self, index: usize) {
        self.cluster.start(index);
        self.absorb();
    }

    /// Ends a node, and with it its connections.
    pub(crate) fn crash(&mut self, index: usize) {
        self.cluster.crash(index, 0);
        self.barriers[index].clear();
        let is_of = |envelope: &Envelope| [envelope.from.0, envelope.to.0].contains(&(index as u8));
        self.under_way.retain(|_, envelope| !is_of(envelope));
        self.free.retain(|(from, to), _| ![*from, *to].contains(&(index as u8)));
        self.absorb();
    }

    pub(crate) fn propose(&mut self, index: usize, value: Bytes) -> bool {
        let is_taken = self.cluster.propose_raw(index, Proposal::Batch(value.clone()), value).is_ok();
        self.absorb();
        is_taken
    }

    /// Lets time pass, and with it everything that takes time.
    pub(crate) fn run(&mut self, millis: u64) {
        let end = self.now + millis * 1000;
        while let Some(next) = self.next_moment().filter(|next| *next <= end) {
            self.now = next;
            self.cluster.now = self.now / 1000;
            while let Some(first) = self.under_way.first_entry().filter(|first| first.key().0 <= next) {
                let envelope = first.remove();
                self.cluster.network.push(envelope);
                self.cluster.deliver(0);
                self.absorb();
            }
            for index in 0..self.barriers.len() {
                while self.barriers[index].front().is_some_and(|barrier| *barrier <= next) {
                    self.barriers[index].pop_front();
                    assert!(self.cluster.persist(index), "every barrier has its commit");
                    self.absorb();
                }
                if next == self.next_tick(index, next) {
                    self.cluster.tick(index);
                    self.absorb();
                }
            }
        }
        self.now = end;
    }

    /// Clocks of nodes do not tick together.
    fn next_tick(&self, index: usize, from: u64) -> u64 {
        let phase = index as u64 * 3_700 % TICK_MICROS;
        (from + TICK_MICROS - 1 - phase) / TICK_MICROS * TICK_MICROS + phase
    }

    fn next_moment(&self) -> Option<u64> {
        let arrival = self.under_way.keys().next().map(|(at, _)| *at);
        let barrier = self.barriers.iter().filter_map(|barriers| barriers.front().copied()).min();
        let tick = (0..self.barriers.len()).map(|index| self.next_tick(index, self.now + 1)).min();
        [arrival, barrier, tick].into_iter().flatten().min()
    }

    /// Takes over what the cluster has sent and written.
    fn absorb(&mut self) {
        for envelope in std::mem::take(&mut self.cluster.network) {
            self.send(envelope);
        }
        for (node, barriers) in self.cluster.nodes.iter().zip(&mut self.barriers) {
            while barriers.len() < node.pending.len() {
                let before = barriers.back().copied().unwrap_or(0).max(self.now);
                barriers.push_back(before + self.speed.barrier_micros);
            }
        }
    }

    fn send(&mut self, envelope: Envelope) {
        let size = envelope.message.len() as u64;
        let free = self.free.entry((envelope.from.0, envelope.to.0)).or_default();
        let begin = (*free).max(self.now);
        let waits = begin - self.now;
        if waits * self.speed.bytes_per_ms / 1000 + size > QUEUE_BYTES_MAX {
            self.dropped += 1;
            return;
        }
        *free = begin + size * 1000 / self.speed.bytes_per_ms;
        let arrival = *free + self.speed.delay_micros;
        let kind = kind(&envelope.message);
        if kind.starts_with("Heartbeat") {
            self.heartbeat_waited_micros = self.heartbeat_waited_micros.max(waits);
        }
        *self.bytes.entry(kind).or_default() += size;
        self.sent += 1;
        self.under_way.insert((arrival, self.sent), envelope);
    }
}

fn kind(message: &Bytes) -> &'static str {
    if message.len() > 4096 {
        // Only these are large, and to decode them would copy them.
        return "entries";
    }
    match codec::decode::<Message>(message) {
        Ok(Message::Heartbeat { .. }) => "Heartbeat",
        Ok(Message::HeartbeatReply { .. }) => "HeartbeatReply",
        Ok(Message::Prepare { .. } | Message::Promise { .. }) => "phase 1",
        _ => "other",
    }
}
