//! The network: each message takes its time, and may be lost, come twice, overtake others or be cut off.
//!
//! Without a nemesis messages of one sender to one receiver arrive in order, as on the streams of production.

use super::connections::FIRST_CONNECTION;
use super::{Event, World};
use crate::nemesis::Nemesis;
use bytes::Bytes;
use std::collections::BTreeMap;
use tetrachord::node::core::{Class, NodeEvent};
use tetrachord::ring::NodeId;
use tetrachord::shares::ClientId;
use tetrachord::ticket::ConnectionId;

/// A frame on its way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Parcel {
    Peer {
        from: NodeId,
        to: NodeId,
        class: Class,
        frame: Bytes,
        /// The sender's life: to whoever has a link to a later one it says nothing.
        link: u64,
        /// Of a stranger: the receiver's life, which alone hears it, as over a connection. Two strangers that hear each other would be
        /// two faults at once.
        only_life: Option<u64>,
    },
    Request {
        to: NodeId,
        client: usize,
        connection: ConnectionId,
        frame: Bytes,
    },
    Answer {
        from: NodeId,
        client: usize,
        connection: ConnectionId,
        frame: Bytes,
    },
}

impl Parcel {
    pub(super) fn frame(&self) -> &Bytes {
        match self {
            Self::Peer { frame, .. } | Self::Request { frame, .. } | Self::Answer { frame, .. } => frame,
        }
    }

    pub(super) fn receiver(&self) -> usize {
        match self {
            Self::Peer { to, .. } | Self::Request { to, .. } => index_of(*to),
            Self::Answer { client, .. } => *client,
        }
    }

    /// Whether it goes over a connection of a client that means well, where nothing is lost, doubled or overtaken.
    fn is_streamed(&self) -> bool {
        match self {
            Self::Peer { .. } => false,
            Self::Request { connection, .. } | Self::Answer { connection, .. } => {
                connection.0 >= FIRST_CONNECTION
            }
        }
    }

    /// Names a link: messages on one arrive in order.
    fn link(&self) -> (u64, u64) {
        const CLIENTS: u64 = 1 << 20;
        match self {
            Self::Peer { from, to, class, .. } => (from.mixed() << 8 | *class as u64, to.mixed()),
            Self::Request { to, connection, .. } => (CLIENTS + connection.0, to.mixed()),
            Self::Answer { from, connection, .. } => (from.mixed() << 8, CLIENTS + connection.0),
        }
    }
}

pub(super) fn index_of(node: NodeId) -> usize {
    usize::try_from(node.0).expect("few nodes") - 1
}

/// The name of a client, by the key of its connections.
fn client_id(client: usize) -> ClientId {
    ClientId([u8::try_from(client).expect("few clients"); 32])
}

/// What is wrong with the links now.
#[derive(Debug, Default)]
pub(super) struct Network {
    /// Pairs of nodes of which the second does not hear the first, and which nemesis did that.
    pub(super) cut: BTreeMap<(usize, usize), Nemesis>,
    /// Whether what is sent over them is kept until they heal, as a transport does that sends again, or lost.
    pub(super) keeps: bool,
    kept: Vec<Parcel>,
    last_arrival: BTreeMap<(u64, u64), u64>,
}

impl World {
    /// All links carry again, and what was kept goes on its way.
    pub(super) fn heal(&mut self) {
        self.network.cut.clear();
        let kept = std::mem::take(&mut self.network.kept);
        if !kept.is_empty() {
            self.reach("links that healed delivered what they had kept");
        }
        kept.into_iter().for_each(|parcel| self.dispatch(parcel));
    }

    /// A message leaves.
    pub(super) fn send(&mut self, parcel: Parcel) {
        if let Parcel::Peer { from, to, .. } = &parcel
            && let Some(nemesis) = self.network.cut.get(&(index_of(*from), index_of(*to))).copied()
        {
            if self.network.keeps {
                self.network.kept.push(parcel);
            }
            return self.count(nemesis, 0, 1);
        }
        if let Parcel::Peer { from, to, .. } = &parcel
            && [from, to].iter().any(|node| self.nodes[index_of(**node)].is_apart)
        {
            return;
        }
        if parcel.is_streamed() {
            return self.dispatch(parcel);
        }
        if self.strikes_now(Nemesis::Loss, 40) {
            return self.count(Nemesis::Loss, 0, 1);
        }
        if self.strikes_now(Nemesis::Duplication, 60) {
            self.count(Nemesis::Duplication, 0, 1);
            self.dispatch(parcel.clone());
        }
        self.dispatch(parcel);
    }

    fn dispatch(&mut self, parcel: Parcel) {
        let mut delay = self.plan.delay_micros + self.random.below(self.plan.delay_micros + 1);
        let is_streamed = parcel.is_streamed();
        let may_overtake = self.plan.has(Nemesis::Reordering) && !self.is_calm && !is_streamed;
        if is_streamed {
            delay += self.sent_again();
        }
        if self.strikes_now(Nemesis::Delay, 30) {
            self.count(Nemesis::Delay, 0, 1);
            // Where others may overtake it, one may come so late that what it answers is long past.
            let is_lost_for_long = may_overtake && self.random.per_mille(100);
            delay += self.random.below(if is_lost_for_long { 5_000_000 } else { 400_000 });
        }
        let mut moment = self.now + delay;
        let in_order = self.network.last_arrival.get(&parcel.link()).copied().unwrap_or(0);
        if moment < in_order && may_overtake {
            self.count(Nemesis::Reordering, 0, 1);
        } else {
            moment = moment.max(in_order);
            self.network.last_arrival.insert(parcel.link(), moment);
        }
        self.at(moment, Event::Arrives(parcel));
    }

    /// Whether a nemesis that is at work all the time strikes this time.
    pub(super) fn strikes_now(&mut self, nemesis: Nemesis, per_mille: u64) -> bool {
        !self.is_calm && self.plan.has(nemesis) && self.random.per_mille(per_mille)
    }

    pub(super) fn arrives(&mut self, parcel: Parcel) {
        let event = match &parcel {
            Parcel::Peer { to, only_life: Some(life), .. } if self.nodes[index_of(*to)].life != *life => {
                return;
            }
            Parcel::Peer { from, to, link, frame, .. } => {
                Some((index_of(*to), NodeEvent::Peer { from: *from, link: *link, body: frame.slice(4..) }))
            }
            Parcel::Request { to, client, connection, frame } => {
                let (connection, body) = (*connection, frame.slice(4..));
                let client = match self.connections.get(&connection) {
                    Some((machine, _, life)) if self.nodes[index_of(*to)].life == *life => {
                        ClientId(self.machines[*machine].key())
                    }
                    None if connection.0 < FIRST_CONNECTION => client_id(*client),
                    // It ended on the way.
                    _ => return,
                };
                Some((index_of(*to), NodeEvent::Client { connection, client, body }))
            }
            Parcel::Answer { .. } => None,
        };
        match (event, parcel) {
            (Some((index, _)), parcel) if self.nodes[index].is_paused => {
                self.count(Nemesis::Pause, 0, 1);
                self.nodes[index].stalled.push(parcel);
            }
            (Some((index, event)), _) => self.step(index, event),
            (None, Parcel::Answer { client, connection, frame, .. })
                if connection.0 < FIRST_CONNECTION && self.is_flooder(client) =>
            {
                self.on_answer_to_flooder(&frame);
            }
            (None, Parcel::Answer { client, connection, frame, .. })
                if connection.0 < FIRST_CONNECTION && self.shows_again(client) =>
            {
                self.on_answer_to_stale(&frame);
            }
            (None, Parcel::Answer { from, client, connection, frame }) => {
                self.on_answer(from, client, connection, &frame);
            }
            (None, _) => unreachable!("only answers go to clients"),
        }
    }
}
