//! A replica that was told to lie, where its configuration allows it (`[chaos] allow = true`).
//!
//! What the engine says is twisted by [`Liar`]; what clients are told and what whole states are made of, here. Nothing else
//! in the node knows of it, and without the configuration none of it exists.

use crate::group::Group;
use crate::group::message::{GroupMessage, decode, encode};
use crate::kv::Reply;
use bytes::Bytes;
use std::collections::BTreeMap;
use tetrachord_consensus::pbft::{Bundle, ClientKey, Liar, Lie, Message, Signer};
use tetrachord_consensus::{ReplicaId, codec};

/// The liar of one group.
#[derive(Debug)]
pub(in crate::group) struct Chaos {
    liar: Liar,
    lie: Option<Lie>,
    told: BTreeMap<Lie, u64>,
    /// The last offer of a state, to be made again instead of giving it.
    offer: Option<Bytes>,
    /// The client that is left out: the first that asked since that was begun.
    victim: Option<ClientKey>,
}

impl Chaos {
    /// A liar in a group of so many, that knows for how long others wait for a primary, in milliseconds.
    pub(in crate::group) fn new(signer: Signer, seed: u64, patience: u64, replicas: usize) -> Self {
        let liar = Liar::new(signer, seed).who_knows(patience, replicas);
        Self { liar, lie: None, told: BTreeMap::new(), offer: None, victim: None }
    }

    /// From now on tells this lie, or none.
    pub(in crate::group) fn tell(&mut self, lie: Option<Lie>) {
        if self.lie != lie {
            self.victim = None;
        }
        (self.lie, self.offer) = (lie, None);
    }

    /// How often each lie was told.
    pub(in crate::group) fn told(&self) -> impl Iterator<Item = (Lie, u64)> + '_ {
        self.told.iter().map(|(lie, count)| (*lie, *count))
    }

    /// What is said to a replica instead of an engine's message.
    pub(in crate::group) fn twist(&mut self, to: ReplicaId, bytes: Bytes) -> Vec<Bytes> {
        // Nobody falls behind so far that a state is wanted of this replica, if it says nothing before.
        let is_early = self.gives_nothing() && self.offer.is_none();
        let Some(lie) = self.lie.filter(|_| !is_early) else { return vec![bytes] };
        let Ok(message) = codec::decode::<Message>(&bytes) else { return vec![bytes] };
        let said = self.liar.twist(lie, to, message.clone());
        // What else these do counts for nothing as long as nobody is kept waiting by it.
        let is_beside_the_point = matches!(lie, Lie::EndlessState | Lie::LeaveOut);
        if said.as_slice() != [message] && !is_beside_the_point {
            *self.told.entry(lie).or_default() += 1;
        }
        said.iter().map(codec::encode).collect()
    }

    /// Whether no notice is taken of requests: of one client's, whoever asks first.
    fn leaves_out(&mut self, bundle: &[u8], is_primary: bool) -> bool {
        let client = Bundle::claimed_client(bundle).filter(|_| self.lie == Some(Lie::LeaveOut));
        let is_victim = client.is_some_and(|client| *self.victim.get_or_insert(client) == client);
        if is_victim && is_primary {
            *self.told.entry(Lie::LeaveOut).or_default() += 1;
        }
        is_victim
    }

    fn is_telling(&mut self, wanted: Lie) -> bool {
        let is_it = self.lie == Some(wanted) || self.lie == Some(Lie::Anything) && self.liar.below(2) == 0;
        if is_it {
            *self.told.entry(wanted).or_default() += 1;
        }
        is_it
    }

    /// What a client is told instead of a reply.
    pub(in crate::group) fn twist_reply(&mut self, reply: Reply) -> Reply {
        if !self.is_telling(Lie::WrongReplies) {
            return reply;
        }
        match reply {
            Reply::Put { version } => Reply::Put { version: version + 1 },
            Reply::Value { found, time } => {
                let version = found.map_or(1, |(version, _)| version);
                Reply::Value { found: Some((version, Bytes::from_static(b"a lie"))), time }
            }
            Reply::Incr { value, version } => Reply::Incr { value: value.wrapping_add(1), version },
            Reply::Cas { swapped, version } => Reply::Cas { swapped: !swapped, version },
            Reply::Deleted { existed } => Reply::Deleted { existed: !existed },
            other => other,
        }
    }

    /// Whether a state that is offered is never to be given, nor given up.
    pub(in crate::group) fn gives_nothing(&self) -> bool {
        self.lie == Some(Lie::EndlessState)
    }

    /// A part of a whole state as it was never written: a hash that is not right, now and then, or a row. Or another offer
    /// instead of it.
    pub(in crate::group) fn twist_piece(&mut self, body: Bytes) -> Bytes {
        let Some(mut message) = decode(&body) else { return body };
        match &message {
            GroupMessage::Offer(_) => self.offer = Some(body.clone()),
            GroupMessage::Piece(_) if self.gives_nothing() => {
                *self.told.entry(Lie::EndlessState).or_default() += 1;
                return self.offer.clone().unwrap_or(body);
            }
            _ => {}
        }
        let told = match &mut message {
            GroupMessage::Offer(offer) => offer.hashes.first_mut().filter(|_| self.liar.below(3) == 0),
            GroupMessage::Piece(piece) => piece.rows.first_mut().map(|(_, record)| record),
            _ => None,
        };
        let Some(told) = told else { return body };
        let mut changed = told.to_vec();
        if let Some(last) = changed.last_mut() {
            *last ^= 1;
        }
        *told = Bytes::from(changed);
        if self.is_telling(Lie::FalseState) { encode(&message) } else { body }
    }
}

impl Group {
    /// Whether this replica takes no notice of requests that their client brings.
    pub(in crate::group) fn leaves_out(&mut self, bundle: &[u8]) -> bool {
        let is_primary = self.seat.is_leader();
        let chaos = self.signed.as_mut().and_then(|signed| signed.chaos.as_mut());
        chaos.is_some_and(|chaos| chaos.leaves_out(bundle, is_primary))
    }

    /// The same, of those that another replica passes on.
    pub(in crate::group) fn leaves_out_message(&mut self, message: &[u8]) -> bool {
        let may_lie = self.signed.as_ref().is_some_and(|signed| signed.chaos.is_some());
        may_lie && matches!(codec::decode(message), Ok(Message::Requests(bundle)) if self.leaves_out(&bundle))
    }
}
