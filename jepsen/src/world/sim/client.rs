//! Programs: each asks one thing after the other of its client, and writes down what that was told to have come to.
//!
//! The client is that of production ([`super::connections`]). What it says is Done, Refused or Unknown goes into the history as that: what was
//! refused surely did not happen, and is left out. After something unknown the program goes on under a new name.

use super::network::{Parcel, index_of};
use super::node::{CLIENT_SECRETS, CLUSTER, EPOCH_MICROS, secret};
use super::{Event, World};
use crate::nemesis::Nemesis;
use bytes::Bytes;
use std::collections::BTreeMap;
use tetrachord::client::core::{Ask, CallId, Done};
use tetrachord::client::{Outcome, Refusal};
use tetrachord::kv::{self, Expect, Failure, Reply, RequestId, SessionId, Write};
use tetrachord::ring::{GroupId, NodeId};
use tetrachord::wire::{self, Answer, AnswerFrame, Consistency};
use tetrachord_checker::{Action, Operation, Value};
use tetrachord_consensus::pbft::{Bundle, ClientKey, ClientSigner, Domain, RequestName, SignedRequest};
use tetrachord_consensus::{Digest, Epoch, Timestamp};

/// An idle program looks this often whether it has something to do, in microseconds.
const LOOK_MICROS: u64 = 250_000;

/// Whoever was refused rests for so long.
const REFUSED_REST_MICROS: u64 = 20_000;

/// What is told when liars that have no replica of a group tell what it answered.
pub const STRANGER: &str = "a liar told what a group answered that it has no replica of";

/// What is told when a client cancels what may be on its way.
pub const CANCELLED: &str = "a write was cancelled before it was carried out";

pub(super) struct Client {
    process: u64,
    /// The client that it asks.
    pub(super) machine: usize,
    open: Option<Open>,
    rests_until: u64,
    operations: u64,
    pub(super) answered: u64,
    /// Answers in a row that came long before anybody lost patience with a primary.
    pub(super) quick: u64,
    /// Asks nothing more once what is open is answered.
    pub(super) is_done: bool,
}

struct Open {
    call: CallId,
    key: String,
    action: Action,
    asked_at: u64,
    /// The same in the history.
    called: u64,
}

impl Client {
    pub(super) fn new(machine: usize, process: u64) -> Self {
        Self {
            process,
            machine,
            open: None,
            rests_until: 0,
            operations: 0,
            answered: 0,
            quick: 0,
            is_done: false,
        }
    }

    pub(super) fn is_idle(&self) -> bool {
        self.open.is_none()
    }

    /// What is open is given up: nobody knows its outcome.
    pub(super) fn give_up(&mut self) -> Option<Operation> {
        let Open { key, action, called: call, .. } = self.open.take()?;
        Some(Operation { process: self.process, key, action, call, end: None, line: 0 })
    }

    fn ask_of(action: &Action, key: &str) -> Ask {
        let key = Bytes::copy_from_slice(key.as_bytes());
        let bytes = |value: &Value| Bytes::copy_from_slice(value.letters().as_bytes());
        Ask::Write(match action {
            Action::Get(_) => return Ask::Read { key, consistency: Consistency::Linearizable },
            Action::Put(value) => Write::put(key, bytes(value)),
            Action::Delete => Write::Delete { key },
            Action::Cas(expect, value, _) => {
                Write::cas(key, Expect::Value(expect.as_ref().map(bytes)), value.as_ref().map(bytes))
            }
            Action::Append(text) => Write::Append { key, value: Bytes::copy_from_slice(text.as_bytes()) },
            Action::Incr(by, _) => Write::Incr { key, by: *by },
        })
    }
}

/// The same operation under each of these names.
fn bundle(
    signer: &ClientSigner,
    group: GroupId,
    requests: &[RequestId],
    operation: &kv::Operation,
    now: u64,
) -> Bytes {
    let client = ClientKey(signer.name().0);
    let name =
        |request: &RequestId| RequestName { client, session: request.session.0, number: request.number };
    let signed = requests.iter().map(|request| SignedRequest {
        name: name(request),
        ack_below: request.number,
        // Clocks of nodes may be an hour off; what a request may wait is not what is tested here.
        not_after: Timestamp(EPOCH_MICROS + now + 250_000_000),
        wants_proof: false,
        ends_epoch: false,
        operation: operation.encode(),
    });
    let domain = Domain { cluster: Digest(CLUSTER), group: group.0, epoch: Epoch(1) };
    Bundle::sign(&domain, signer, &signed.collect::<Vec<_>>()).bytes().clone()
}

/// Openings of sessions with these names.
pub(super) fn openings(signer: &ClientSigner, group: GroupId, nonces: &[u128], now: u64) -> Bytes {
    let requests: Vec<RequestId> =
        nonces.iter().map(|nonce| RequestId { session: SessionId(*nonce), number: 0 }).collect();
    bundle(signer, group, &requests, &kv::Operation::Open, now)
}

/// A bundle in the name of a client, whose signature does not hold.
pub(super) fn unsigned_bundle(client: usize, number: u64) -> Bytes {
    thread_local! {
        /// Signing costs more than all else here, and nobody looks at what is signed.
        static SIGNED: std::cell::RefCell<BTreeMap<usize, Bytes>> = const { std::cell::RefCell::new(BTreeMap::new()) };
    }
    let sign = || {
        let signer = ClientSigner::new(&secret(CLIENT_SECRETS + client));
        let name = RequestName { client: ClientKey(signer.name().0), session: 1, number: 0 };
        let (not_after, operation) = (Timestamp(EPOCH_MICROS), kv::Operation::Open.encode());
        let (ack_below, wants_proof, ends_epoch) = (0, false, false);
        let request = SignedRequest { name, ack_below, not_after, wants_proof, ends_epoch, operation };
        let domain = Domain { cluster: Digest(CLUSTER), group: 1, epoch: Epoch(1) };
        Bundle::sign(&domain, &signer, &[request]).bytes().clone()
    };
    let signed = SIGNED.with_borrow_mut(|signed| signed.entry(client).or_insert_with(sign).clone());
    let mut bytes = signed.to_vec();
    let in_signature = 40..48;
    bytes[in_signature].copy_from_slice(&number.to_be_bytes());
    Bytes::from(bytes)
}

/// What nobody answered.
fn wrong(reply: Reply) -> Reply {
    match reply {
        Reply::Put { version } => Reply::Put { version: version + 1 },
        Reply::Value { time, .. } => Reply::Value { found: Some((1, Bytes::from_static(b"a lie"))), time },
        Reply::Incr { value, version } => Reply::Incr { value: value.wrapping_add(1), version },
        Reply::Cas { swapped, version } => Reply::Cas { swapped: !swapped, version },
        Reply::Deleted { existed } => Reply::Deleted { existed: !existed },
        other => other,
    }
}

impl World {
    /// Time to ask, if nothing is open.
    pub(super) fn patience(&mut self, index: usize) {
        self.after(LOOK_MICROS, Event::Patience { client: index });
        if self.now >= self.clients[index].rests_until {
            self.begin(index);
        }
    }

    pub(super) fn begin(&mut self, index: usize) {
        let client = &mut self.clients[index];
        if client.is_done || client.open.is_some() {
            return;
        }
        client.operations += 1;
        let (process, number, machine) = (client.process, client.operations, client.machine);
        let (key, action) = self.plan.workload.next(&mut self.random, self.plan.keys, process, number);
        let ask = Client::ask_of(&action, &key);
        let (asked_at, called) = (self.now, self.stamp());
        let call = self.ask_machine(machine, ask);
        self.clients[index].open = Some(Open { call, key, action, asked_at, called });
        self.settle(machine);
    }

    /// A client tells what became of a call.
    pub(super) fn on_done(&mut self, machine: usize, call: CallId, done: Done) {
        let asks = |client: &Client| {
            client.machine == machine && client.open.as_ref().is_some_and(|open| open.call == call)
        };
        let Some(index) = self.clients.iter().position(asks) else {
            return self.violate(|| format!("a client tells of {call:?}, which nobody asked: {done:?}"));
        };
        let reply = match done {
            Done::Write(outcome) => outcome,
            Done::Read(Outcome::Done(read)) => Outcome::Done(Reply::Value { found: read.found, time: 0 }),
            Done::Read(Outcome::Refused(refusal)) => Outcome::Refused(refusal),
            other => return self.violate(|| format!("a client tells {other:?} of a write or a read")),
        };
        match reply {
            Outcome::Done(reply) => self.finish(index, reply),
            Outcome::Unknown(_) => {
                let given_up = self.clients[index].give_up();
                self.history.extend(given_up);
                self.last_process += 1;
                self.clients[index].process = self.last_process;
                self.rest_at_least(index, REFUSED_REST_MICROS);
            }
            Outcome::Refused(refusal) => self.refused(index, &refusal),
        }
    }

    /// It surely did not happen. A correct client is refused only what nobody could take, or what came too late.
    fn refused(&mut self, index: usize, refusal: &Refusal) {
        let is_fair = match refusal {
            Refusal::Unavailable(_) | Refusal::Cancelled(_) => true,
            Refusal::Failure(Failure::TooLate { .. } | Failure::TooEarly { .. }) => true,
            Refusal::Failure(_) | Refusal::Invalid(_) | Refusal::Denied(_) => false,
        };
        let given_up = self.clients[index].give_up();
        if !is_fair {
            return self.violate(|| format!("a correct client is refused: {refusal:?} of {given_up:?}"));
        }
        if matches!(refusal, Refusal::Cancelled(_)) {
            self.reach(CANCELLED);
        }
        self.reach("a client was refused what surely did not happen");
        self.rest_at_least(index, REFUSED_REST_MICROS);
    }

    fn finish(&mut self, index: usize, reply: Reply) {
        let answered = self.stamp();
        let client = &mut self.clients[index];
        let open = client.open.take().expect("the caller has looked at it");
        let is_quick = self.now - open.asked_at <= self.plan.request_millis * 1_000 / 2;
        client.quick = if is_quick { client.quick + 1 } else { 0 };
        let signed = self.machines[client.machine].last_signed.take();
        if let Some((group, request)) = signed.filter(|_| self.plan.has(Nemesis::StaleRequests)) {
            self.stale.note(group, request);
        }
        let action = match (open.action, reply) {
            (Action::Incr(by, _), Reply::Incr { value, .. }) => Action::Incr(by, value),
            (Action::Cas(expect, value, _), Reply::Cas { swapped, .. }) => {
                Action::Cas(expect, value, swapped)
            }
            (Action::Get(_), Reply::Value { found, .. }) => {
                Action::Get(found.map(|(_, value)| Value::from(String::from_utf8_lossy(&value).into_owned())))
            }
            (action @ Action::Put(_), Reply::Put { .. })
            | (action @ Action::Delete, Reply::Deleted { .. })
            | (action @ Action::Append(_), Reply::Append { .. }) => action,
            (action, reply) => {
                return self.violate(|| format!("a correct client is told {reply:?} to {action:?}"));
            }
        };
        client.answered += 1;
        let (process, call, end) = (client.process, open.called, Some(answered));
        self.history.push(Operation { process, key: open.key, action, call, end, line: 0 });
        self.rest_at_least(index, 0);
    }

    /// What one liar tells a client, all liars tell it, whether they have a replica of the group or not: they share what they know. And
    /// whatever else they lie about, all of them tell it what is not so as well.
    pub(super) fn repeat_lies(&mut self, index: usize, client: usize, frame: &Bytes) {
        if !self.nodes[index].lies {
            return;
        }
        let Ok(answer) = wire::decode::<AnswerFrame>(&frame[4..]) else { return };
        let Answer::Outcomes { group, slot, replies } = answer.answer else { return };
        let tenure = self.tenure(group).expect("liars tell of groups of the ring");
        let members: Vec<usize> = tenure.nodes().map(index_of).collect();
        let wrong = replies.into_iter().map(|(of, reply, _)| (of, wrong(reply), None)).collect();
        let wrong = Answer::Outcomes { group, slot, replies: wrong };
        let wrong = wire::encode(&AnswerFrame { id: answer.id, answer: wrong });
        for liar in 0..self.nodes.len() {
            if !self.nodes[liar].lies || self.nodes[liar].core.is_none() {
                continue;
            }
            if !members.contains(&liar) {
                self.reach(STRANGER);
            }
            let from = NodeId::founder(liar);
            let Some(connection) = self.connection_to(client, from) else { continue };
            self.send(Parcel::Answer { from, client, connection, frame: wrong.clone() });
            if liar != index {
                self.send(Parcel::Answer { from, client, connection, frame: frame.clone() });
            }
        }
    }

    /// The time in the history, in nanoseconds: later than every one before, so that what was called when something was answered
    /// comes behind it, also in the same moment.
    fn stamp(&mut self) -> u64 {
        self.last_stamp = (self.now * 1_000).max(self.last_stamp + 1);
        self.last_stamp
    }

    /// A program thinks before it asks the next thing, if the plan says so, and as long as this at least. It never asks at once: its client
    /// is still telling.
    fn rest_at_least(&mut self, index: usize, least: u64) {
        let thinks = match self.plan.think_micros {
            0 => 0,
            micros => self.random.between(1, 2 * micros),
        };
        let micros = thinks.max(least);
        self.clients[index].rests_until = self.now + micros;
        self.after(micros, Event::Begin { client: index });
    }
}
