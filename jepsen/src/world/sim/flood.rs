//! A client that means no good: it sends as fast as it may what costs nodes work, and waits for nothing.
//!
//! It is admitted like all others and has a key of its own. Whatever it does, the others are answered, and no replica loses patience
//! with its primary.

use super::client::unsigned_bundle;
use super::network::{Parcel, index_of};
use super::{Event, World};
use crate::nemesis::Nemesis;
use crate::plan::Mode;
use bytes::Bytes;
use tetrachord::kv::{Envelope, Operation, RequestId, SessionId, Write};
use tetrachord::ring::NodeId;
use tetrachord::ticket::ConnectionId;
use tetrachord::wire::{self, Answer, AnswerFrame, Consistency, Request, RequestFrame};

/// It sends this often, in microseconds, and so many times in a row.
const PAUSE_MICROS: u64 = 10_000;
const BURSTS: u32 = 20;

impl World {
    /// Its place is behind those of all other clients, the greedy one too.
    pub(super) fn place_of_flooder(&self) -> usize {
        self.plan.clients + 1
    }

    /// A node is flooded for a while.
    pub(super) fn begin_flood(&mut self, node: usize) {
        self.count(Nemesis::Flood, 1, 0);
        self.after(1, Event::Flood { node, left: BURSTS });
    }

    pub(super) fn flood(&mut self, node: usize, left: u32) {
        if self.is_calm {
            return;
        }
        for _ in 0..self.plan.flood_requests {
            self.flooded += 1;
            let body = match self.plan.mode {
                Mode::Byzantine => self.unsigned_request(node),
                Mode::Crash => self.useless_request(),
            };
            let (to, client) = (NodeId::founder(node), self.place_of_flooder());
            let connection = ConnectionId(client as u64);
            self.send(Parcel::Request { to, client, connection, frame: body });
        }
        if left > 1 {
            self.after(PAUSE_MICROS, Event::Flood { node, left: left - 1 });
        }
    }

    /// A bundle in its own name, whose signature does not hold, for a group of this node.
    fn unsigned_request(&self, node: usize) -> Bytes {
        let hosts = |tenure: &&tetrachord::ring::Tenure| tenure.nodes().any(|at| index_of(at) == node);
        let group = self.tenures.iter().find(hosts).unwrap_or(&self.tenures[0]).group();
        let request =
            Request::Submit { group, bundle: unsigned_bundle(self.place_of_flooder(), self.flooded) };
        wire::encode(&RequestFrame { id: self.flooded, request })
    }

    /// Reads, writes of a session that was never opened, and now and then what is no request at all.
    fn useless_request(&self) -> Bytes {
        let id = self.flooded;
        let key = Bytes::from(format!("k{}", id % 4));
        let request = match id % 8 {
            0 => return wire::encode(&u8::MAX),
            1 => {
                let group = self.tenures[0].group();
                let request = RequestId { session: SessionId(7), number: id };
                let write = Operation::Write(Write::put(key, vec![0; 100]));
                Request::Command { group, envelope: Envelope::new(request, id, &write).encode() }
            }
            _ => Request::Get { group: self.tenures[0].group(), key, consistency: Consistency::Linearizable },
        };
        wire::encode(&RequestFrame { id, request })
    }

    /// Whether this client is the one that means no good.
    pub(super) fn is_flooder(&self, client: usize) -> bool {
        client == self.place_of_flooder()
    }

    /// What it is told. Only that it is refused counts: that was its due.
    pub(super) fn on_answer_to_flooder(&mut self, frame: &Bytes) {
        if let Ok(AnswerFrame { answer: Answer::Refused { .. } | Answer::Retry { .. }, .. }) =
            wire::decode(&frame[4..])
        {
            self.count(Nemesis::Flood, 0, 1);
        }
    }
}
