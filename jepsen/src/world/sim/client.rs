//! Clients: one operation at a time, with the number of its request the same in every try, so that it applies once.
//!
//! In crash mode a client asks one node after the other; in Byzantine mode it signs, shows its request to all replicas of the group
//! when it is not answered, and believes what `f + 1` of them tell of one slot. After a long silence it goes on under a new name, and nobody
//! knows what became of the operation.

use super::network::{Parcel, index_of};
use super::node::{CLIENT_SECRETS, CLUSTER, EPOCH_MICROS, secret};
use super::{Event, World};
use crate::nemesis::Nemesis;
use crate::plan::{Defect, Mode, Plan};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use tetrachord::kv::{self, Command, Expect, Failure, Reply, RequestId, SessionId, Write};
use tetrachord::ring::{GroupId, NodeId, Position};
use tetrachord::wire::{self, Answer, AnswerFrame, Consistency, Request, RequestFrame};
use tetrachord_checker::{Action, Operation, Value};
use tetrachord_consensus::pbft::{Bundle, ClientKey, ClientSigner, Domain, RequestName, SignedRequest};
use tetrachord_consensus::{Digest, Epoch, Timestamp};

/// Without an answer for so long it asks again, and gives up after the longer time, in microseconds.
const PATIENCE_MICROS: u64 = 250_000;
const GIVE_UP_MICROS: u64 = 6_000_000;

/// What is told when liars that have no replica of a group tell what it answered.
pub const STRANGER: &str = "a liar told what a group answered that it has no replica of";

pub(super) struct Client {
    process: u64,
    signer: ClientSigner,
    sessions: BTreeMap<GroupId, SessionId>,
    numbers: BTreeMap<GroupId, u64>,
    open: Option<Open>,
    rests_until: u64,
    node: usize,
    last_id: u64,
    operations: u64,
    needed: usize,
    pub(super) answered: u64,
    /// Answers in a row that came long before anybody lost patience with a primary.
    pub(super) quick: u64,
    /// Asks nothing more once what is open is answered.
    pub(super) is_done: bool,
}

struct Open {
    group: GroupId,
    request: RequestId,
    frame: Request,
    /// None opens a session.
    operation: Option<(String, Action)>,
    call: u64,
    /// The same in the history.
    called: u64,
    ids: BTreeSet<u64>,
    told: Vec<(u64, Reply, BTreeSet<NodeId>)>,
}

impl Client {
    pub(super) fn new(index: usize, process: u64, plan: &Plan) -> Self {
        Self {
            process,
            signer: ClientSigner::new(&secret(CLIENT_SECRETS + index)),
            sessions: BTreeMap::new(),
            numbers: BTreeMap::new(),
            open: None,
            rests_until: 0,
            node: index % plan.nodes,
            last_id: 0,
            operations: 0,
            needed: if plan.defect == Defect::OneReply { 1 } else { plan.liars() + 1 },
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
        let open = self.open.take()?;
        let (key, action) = open.operation?;
        let call = open.called;
        Some(Operation { process: self.process, key, action, call, end: None, line: 0 })
    }

    fn write_of(action: &Action, key: &str) -> Option<Write> {
        let key = Bytes::copy_from_slice(key.as_bytes());
        let bytes = |value: &Value| Bytes::copy_from_slice(value.letters().as_bytes());
        Some(match action {
            Action::Get(_) => return None,
            Action::Put(value) => Write::Put { key, value: bytes(value) },
            Action::Delete => Write::Delete { key },
            Action::Cas(expect, value, _) => Write::Cas {
                key,
                expect: Expect::Value(expect.as_ref().map(bytes)),
                value: value.as_ref().map(bytes),
            },
            Action::Append(text) => Write::Append { key, value: Bytes::copy_from_slice(text.as_bytes()) },
            Action::Incr(by, _) => Write::Incr { key, by: *by },
        })
    }

    fn signed(&self, group: GroupId, request: RequestId, operation: &kv::Operation, now: u64) -> Request {
        Request::Submit { group, bundle: bundle(&self.signer, group, &[request], operation, now) }
    }

    /// The key by which its connections are admitted.
    pub(super) fn key(&self) -> kv::Client {
        self.signer.name().0
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
    /// Time to ask, to ask again, or to give up.
    pub(super) fn patience(&mut self, index: usize) {
        self.after(PATIENCE_MICROS, Event::Patience { client: index });
        let client = &mut self.clients[index];
        let since = client.open.as_ref().map(|open| self.now - open.call);
        match since {
            None if self.now >= client.rests_until => self.begin(index),
            None => {}
            Some(waited) if waited > GIVE_UP_MICROS && !self.is_calm => {
                let given_up = client.give_up();
                client.sessions.clear();
                self.last_process += 1;
                self.clients[index].process = self.last_process;
                self.history.extend(given_up);
            }
            Some(waited) if waited >= PATIENCE_MICROS => self.ask_again(index),
            Some(_) => {}
        }
    }

    pub(super) fn begin(&mut self, index: usize) {
        let client = &mut self.clients[index];
        if client.is_done || client.open.is_some() {
            return;
        }
        client.operations += 1;
        let (process, number) = (client.process, client.operations);
        let (key, action) = self.plan.workload.next(&mut self.random, self.plan.keys, process, number);
        let group = self.ring.owner(Position::of_key(key.as_bytes())).id;
        let nonce = u128::from(self.random.next_number());
        let is_byzantine = self.plan.mode == Mode::Byzantine;
        let client = &mut self.clients[index];
        let Some(session) = client.sessions.get(&group).copied() else {
            let request = RequestId { session: SessionId(nonce), number: 0 };
            let frame = match is_byzantine {
                true => client.signed(group, request, &kv::Operation::Open, self.now),
                false => {
                    Request::Command { group, command: Command::Open { nonce, client: [0; 32] }.encode() }
                }
            };
            return self.ask(index, group, request, frame, None);
        };
        let write = Client::write_of(&action, &key);
        let raw = Bytes::copy_from_slice(key.as_bytes());
        let counts = write.is_some() || is_byzantine;
        let last = client.numbers.entry(group).or_default();
        *last += u64::from(counts);
        let request = RequestId { session, number: *last };
        let frame = match (is_byzantine, write) {
            (true, Some(write)) => client.signed(group, request, &kv::Operation::Write(write), self.now),
            (true, None) => client.signed(group, request, &kv::Operation::Get { key: raw }, self.now),
            (false, Some(write)) => {
                let command = Command::Write { request, ack_below: request.number, write }.encode();
                Request::Command { group, command }
            }
            (false, None) => Request::Get { key: raw, consistency: Consistency::Linearizable },
        };
        self.ask(index, group, request, frame, Some((key, action)));
    }

    fn ask(
        &mut self,
        index: usize,
        group: GroupId,
        request: RequestId,
        frame: Request,
        operation: Option<(String, Action)>,
    ) {
        let (call, called, ids, told) = (self.now, self.stamp(), BTreeSet::new(), Vec::new());
        self.clients[index].open = Some(Open { group, request, frame, operation, call, called, ids, told });
        let node = self.clients[index].node;
        let members = self.members(group);
        if self.is_hasty || self.plan.shows_all {
            return members.into_iter().for_each(|node| self.send_to(index, node));
        }
        let is_fit = self.plan.mode == Mode::Crash || members.contains(&node);
        self.send_to(index, if is_fit { node } else { members[index % members.len()] });
    }

    /// The places of the nodes that have a replica of the group.
    fn members(&self, group: GroupId) -> Vec<usize> {
        let place = self.ring.group(group).expect("clients ask for groups of the ring");
        place.nodes.iter().map(|node| index_of(*node)).collect()
    }

    /// The same request under another number: what a client must never do.
    fn renumber(&mut self, index: usize) {
        let client = &mut self.clients[index];
        let Some(open) = client.open.as_mut() else { return };
        let Request::Command { group, command } = &open.frame else { return };
        let Ok(Command::Write { write, .. }) = Command::decode(command) else { return };
        let last = client.numbers.entry(*group).or_default();
        *last += 1;
        open.request.number = *last;
        let command = Command::Write { request: open.request, ack_below: *last, write }.encode();
        open.frame = Request::Command { group: *group, command };
    }

    fn ask_again(&mut self, index: usize) {
        if self.plan.defect == Defect::NewNumbers {
            self.renumber(index);
        }
        if self.plan.mode == Mode::Byzantine {
            let group = self.clients[index].open.as_ref().map(|open| open.group);
            for node in group.map(|group| self.members(group)).unwrap_or_default() {
                // The connection may have been lost with its watch.
                self.watch_outcomes(index, node);
                self.send_to(index, node);
            }
        } else {
            let node = self.random.index(self.nodes.len());
            self.clients[index].node = node;
            self.send_to(index, node);
        }
    }

    fn send_to(&mut self, index: usize, node: usize) {
        let client = &mut self.clients[index];
        let Some(open) = client.open.as_mut() else { return };
        client.last_id += 1;
        open.ids.insert(client.last_id);
        let frame = wire::encode(&RequestFrame { id: client.last_id, request: open.frame.clone() });
        self.send(Parcel::Request { to: NodeId(node as u32 + 1), client: index, frame });
    }

    /// In Byzantine mode a client wants to be told what its requests came to.
    pub(super) fn watch_outcomes(&mut self, index: usize, node: usize) {
        if self.plan.mode == Mode::Byzantine {
            let client = self.clients[index].signer.name().0;
            let frame = wire::encode(&RequestFrame { id: 0, request: Request::Watch { client } });
            self.send(Parcel::Request { to: NodeId(node as u32 + 1), client: index, frame });
        }
    }

    /// What one liar tells a client, all liars tell it, whether they have a replica of the group or not: they share what they know. And
    /// whatever else they lie about, all of them tell it what is not so as well.
    pub(super) fn repeat_lies(&mut self, index: usize, client: usize, frame: &Bytes) {
        if !self.nodes[index].lies {
            return;
        }
        let Ok(answer) = wire::decode::<AnswerFrame>(&frame[4..]) else { return };
        let Answer::Outcomes { group, slot, replies } = answer.answer else { return };
        let members = self.members(group);
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
            let from = NodeId(u32::try_from(liar).expect("few nodes") + 1);
            self.send(Parcel::Answer { from, client, frame: wrong.clone() });
            if liar != index {
                self.send(Parcel::Answer { from, client, frame: frame.clone() });
            }
        }
    }

    pub(super) fn on_answer(&mut self, from: NodeId, index: usize, frame: &Bytes) {
        let Ok(answer) = wire::decode::<AnswerFrame>(&frame[4..]) else {
            return self.violate(|| format!("{from} answers what is no frame"));
        };
        let believes_anyone = self.plan.defect == Defect::Strangers;
        let client = &mut self.clients[index];
        let Some(open) = client.open.as_mut() else { return };
        let reply = match answer.answer {
            // What is told of another group than it was asked of, or by a node that has no replica of that, is nothing.
            Answer::Outcomes { group, .. } if group != open.group || answer.id != 0 => None,
            Answer::Outcomes { group, .. }
                if !believes_anyone
                    && !self.ring.group(group).is_some_and(|place| place.nodes.contains(&from)) =>
            {
                None
            }
            Answer::Outcomes { slot, replies, .. } => {
                let (request, needed) = (open.request, client.needed);
                let mine = replies.into_iter().filter(|(of, ..)| *of == request);
                mine.filter_map(|(_, reply, _)| open.note(from, slot, reply, needed)).next()
            }
            Answer::Reply { reply, .. } if open.ids.contains(&answer.id) => Some(reply),
            Answer::Value { found, .. } if open.ids.contains(&answer.id) => {
                Some(Reply::Value { found, time: 0 })
            }
            Answer::Unavailable { .. } if self.nodes[index_of(from)].is_short => {
                return self.count(Nemesis::DiskFull, 0, 1);
            }
            // Not here, not now: it asks again after a while.
            _ => None,
        };
        if let Some(reply) = reply {
            client.node = index_of(from);
            self.finish(index, reply);
        }
    }

    fn finish(&mut self, index: usize, reply: Reply) {
        let (answered, all_wrong) = (self.stamp(), self.may_clocks_all_be_wrong());
        let client = &mut self.clients[index];
        let open = client.open.take().expect("the caller has looked at it");
        let is_quick = self.now - open.call <= self.plan.request_millis * 1_000 / 2;
        client.quick = if is_quick { client.quick + 1 } else { 0 };
        if self.plan.has(Nemesis::StaleRequests) {
            self.stale.note(open.group, open.frame.clone());
        }
        let Some((key, action)) = open.operation else {
            return self.on_session(index, open.group, &reply);
        };
        let action = match (action, reply) {
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
            // Where a majority of clocks jumps, log time may too: sessions expire then. A request's time is held against one primary's.
            (action, Reply::Failed(failure))
                if matches!(failure, Failure::TooLate { .. } | Failure::TooEarly { .. })
                    || (failure == Failure::SessionExpired && all_wrong) =>
            {
                client.sessions.remove(&open.group);
                let (process, call) = (client.process, open.called);
                self.last_process += 1;
                self.clients[index].process = self.last_process;
                return self.history.push(Operation { process, key, action, call, end: None, line: 0 });
            }
            (action, reply) => {
                return self.violate(|| format!("a correct client is told {reply:?} to {action:?}"));
            }
        };
        client.answered += 1;
        let (process, call, end) = (client.process, open.called, Some(answered));
        self.history.push(Operation { process, key, action, call, end, line: 0 });
        self.rest(index);
    }

    /// The time in the history, in nanoseconds: later than every one before, so that what was called when something was answered
    /// comes behind it, also in the same moment.
    fn stamp(&mut self) -> u64 {
        self.last_stamp = (self.now * 1_000).max(self.last_stamp + 1);
        self.last_stamp
    }

    /// A client thinks before it asks the next thing, if the plan says so.
    fn rest(&mut self, index: usize) {
        if self.plan.think_micros == 0 {
            return self.begin(index);
        }
        let micros = self.random.between(1, 2 * self.plan.think_micros);
        self.clients[index].rests_until = self.now + micros;
        self.after(micros, Event::Begin { client: index });
    }

    fn on_session(&mut self, index: usize, group: GroupId, reply: &Reply) {
        let client = &mut self.clients[index];
        match reply {
            Reply::Opened { session } => {
                client.sessions.insert(group, *session);
                client.numbers.insert(group, 0);
                self.begin(index);
            }
            Reply::Failed(Failure::TooLate { .. } | Failure::TooEarly { .. }) => {}
            other => self.violate(|| format!("a correct client is told {other:?} when it opens a session")),
        }
    }
}

impl Open {
    /// A node tells what the request came to; the reply, once enough have told the same.
    fn note(&mut self, from: NodeId, slot: u64, reply: Reply, needed: usize) -> Option<Reply> {
        let known = self.told.iter().position(|(at, known, _)| *at == slot && *known == reply);
        let at = known.unwrap_or(self.told.len());
        if known.is_none() {
            self.told.push((slot, reply.clone(), BTreeSet::new()));
        }
        self.told[at].2.insert(from);
        (self.told[at].2.len() >= needed).then_some(reply)
    }
}
