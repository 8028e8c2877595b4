//! Byzantine mode: requests are signed, and an answer is what `f + 1` replicas agree on.
//!
//! * Requests that wait at the same time are signed together: one signature for a bundle.
//! * A bundle goes to the replica that is believed to be primary. A request that is not answered in ten times the usual time
//!   is shown to all replicas: they make sure that it is ordered, or replace their primary. Those of a group that are due at about the
//!   same time are shown together.
//! * Every replica tells what it executed. An answer counts when `f + 1` replicas of the group told the same outcome of the same
//!   slot, so that one of them is honest ([`super::collect`]). What a replica says about who is primary is a hint
//!   ([`super::hints`]), and nothing else is believed at all: the map of the ring and all keys come from the cluster file.
//! * What was not yet taken into a bundle was not sent: it can still be refused.

use super::calls::{Call, Stage, What};
use super::collect::{Agreed, Collector, Wanted};
use super::crash::CONNECT_PATIENCE;
use super::hints::Hints;
use super::members::Members;
use super::timers::Timer;
use super::usual::Usual;
use super::{Ask, CallId, Core, Done, Now, Signing, ToSign};
use crate::client::outcome::{Outcome, Proven, Read, Refusal, unexpected};
use crate::kv::{self, Failure, Operation, Reply, RequestId, SessionId};
use crate::limits::REQUEST_VALID_MICROS_MAX;
use crate::proof::{OutcomeProof, Proof, domain_of, keyring_of};
use crate::ring::{GroupId, NodeId};
use crate::wire::{Consistency, Served};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tetrachord_consensus::Timestamp;
use tetrachord_consensus::pbft::request::BUNDLE_REQUESTS_MAX;
use tetrachord_consensus::pbft::sign::KeyError;
use tetrachord_consensus::pbft::{ClientKey, Keyring, RequestName, SignedRequest};
use tetrachord_consensus::quorum::liars;

/// A request is good for as long as its caller waits, and no longer than this, in microseconds: a minute less than replicas
/// take, because clocks differ.
const VALID_MICROS_MAX: u64 = REQUEST_VALID_MICROS_MAX - 60 * 1_000_000;

/// Bytes of requests in one bundle, unless a single one is larger.
const BUNDLE_BYTES: usize = 128 << 10;

/// Requests that are due within this time are shown together.
const SHOW_TOGETHER: Duration = Duration::from_millis(25);

/// A request that is asked.
#[derive(Debug)]
struct Asked {
    group: GroupId,
    request: RequestId,
    signed: SignedRequest,
    collector: Collector,
    since: Duration,
    show_at: Duration,
}

/// What only Byzantine mode needs.
#[derive(Debug)]
pub(super) struct Signed {
    signing: Signing,
    members: Arc<Members>,
    pub(super) hints: Hints,
    usual: Usual,
    asked: BTreeMap<CallId, Asked>,
    by_request: BTreeMap<(GroupId, RequestId), CallId>,
    /// Not in any bundle yet.
    unsent: BTreeMap<GroupId, BTreeSet<CallId>>,
    /// By when they are shown.
    showing: BTreeMap<GroupId, BTreeSet<(Duration, CallId)>>,
    to_show: BTreeMap<GroupId, BTreeSet<CallId>>,
    /// The requests by which nodes were asked to tell.
    pub(super) watches: BTreeMap<NodeId, u64>,
    /// Something has changed since bundles were taken.
    pub(super) has_gathered: bool,
    /// Names of reads, which need no session: 128 random bits, and a number that grows.
    reads: RequestId,
}

impl Signed {
    pub(super) fn new(signing: Signing, members: Arc<Members>, reads: u128) -> Self {
        Self {
            signing,
            hints: Hints::new(Arc::clone(&members)),
            members,
            usual: Usual::default(),
            asked: BTreeMap::new(),
            by_request: BTreeMap::new(),
            unsent: BTreeMap::new(),
            showing: BTreeMap::new(),
            to_show: BTreeMap::new(),
            watches: BTreeMap::new(),
            has_gathered: false,
            reads: RequestId { session: SessionId(reads), number: 0 },
        }
    }

    pub(super) fn client(&self) -> kv::Client {
        self.signing.client
    }

    /// The keys of a group's replicas.
    fn keyring(&self, group: GroupId) -> Result<Arc<Keyring>, KeyError> {
        keyring_of(self.signing.cluster, self.members.tenure(group), []).map(Arc::new)
    }

    /// The name of a call's request. A read has another one each time.
    fn name(&mut self, call: &Call) -> RequestId {
        match &call.what {
            What::Open(name) => RequestId { session: SessionId(*name), number: 0 },
            What::End(request) => *request,
            What::Ask(_) => call.number.map_or_else(
                || {
                    self.reads.number += 1;
                    self.reads
                },
                |number| number.request,
            ),
        }
    }

    fn sign(&self, call: &Call, request: RequestId, now: Now) -> SignedRequest {
        let left = call.deadline.saturating_sub(now.at);
        let left = u64::try_from(left.as_micros()).unwrap_or(u64::MAX).min(VALID_MICROS_MAX);
        let ack_below = match &call.what {
            What::End(request) => request.number,
            _ => call.number.map_or(0, |number| number.ack_below),
        };
        SignedRequest {
            name: RequestName {
                client: ClientKey(self.signing.client),
                session: request.session.0,
                number: request.number,
            },
            ack_below,
            not_after: Timestamp(now.wall_micros.saturating_add(left)),
            wants_proof: matches!(call.what, What::Ask(Ask::Prove { .. })),
            ends_epoch: false,
            operation: operation_of(call).encode(),
        }
    }

    fn show_at(&mut self, id: CallId, group: GroupId, at: Duration) {
        self.asked.get_mut(&id).expect("it is asked").show_at = at;
        self.showing.entry(group).or_default().insert((at, id));
    }

    fn forget(&mut self, id: CallId) {
        let Some(asked) = self.asked.remove(&id) else { return };
        self.by_request.remove(&(asked.group, asked.request));
        for waiting in [&mut self.unsent, &mut self.to_show] {
            if let Some(of_group) = waiting.get_mut(&asked.group) {
                of_group.remove(&id);
            }
        }
        if let Some(showing) = self.showing.get_mut(&asked.group) {
            showing.remove(&(asked.show_at, id));
        }
    }
}

impl Core {
    /// Asks for an operation until `f + 1` replicas agree on what it came to.
    pub(super) fn submit(&mut self, id: CallId) {
        let now = self.now;
        let signed = self.signed.as_mut().expect("Byzantine mode");
        let call = self.calls.get_mut(&id).expect("an open call");
        let group = call.group();
        let request = signed.name(call);
        let is_proved = matches!(call.what, What::Ask(Ask::Prove { .. }));
        let keyring = match is_proved.then(|| signed.keyring(group)).transpose() {
            Ok(keyring) => keyring,
            Err(error) => return self.refuse(id, Refusal::Invalid(format!("the keys of {group}: {error}"))),
        };
        let to_sign = signed.sign(call, request, now);
        let wanted = keyring.map(|keyring| {
            let (client, operation) = (signed.client(), to_sign.operation.clone());
            Wanted { keyring, client, operation }
        });
        let collector =
            Collector::new(request, signed.members.shared(group), wanted).with(self.setup.mutation);
        call.stage = Stage::Agreement;
        self.timers.set(Timer::Call(id), call.deadline);
        let (since, show_at) = (now.at, now.at + signed.usual.show_after());
        signed.by_request.insert((group, request), id);
        signed.asked.insert(id, Asked { group, request, signed: to_sign, collector, since, show_at });
        signed.unsent.entry(group).or_default().insert(id);
        signed.has_gathered = true;
        signed.show_at(id, group, show_at);
        self.set_show_timer(group);
    }

    /// Nobody waits for an agreement any more.
    pub(super) fn leave_agreement(&mut self, id: CallId) {
        self.signed.as_mut().expect("Byzantine mode").forget(id);
    }

    fn set_show_timer(&mut self, group: GroupId) {
        let signed = self.signed.as_ref().expect("Byzantine mode");
        let next = signed.showing.get(&group).and_then(|showing| showing.first());
        match next {
            Some((at, _)) => self.timers.set(Timer::Show(group), *at),
            None => self.timers.clear(Timer::Show(group)),
        }
    }

    /// Requests of the group have waited for long: all its replicas are to have them.
    pub(super) fn show(&mut self, group: GroupId) {
        let now = self.now;
        let signed = self.signed.as_mut().expect("Byzantine mode");
        let again_at = now.at + signed.usual.show_after();
        let showing = signed.showing.entry(group).or_default();
        let later = showing.split_off(&(now.at + SHOW_TOGETHER, CallId(0)));
        for (_, id) in std::mem::replace(showing, later) {
            // The patience of whoever opens a session grows with those that wait for it.
            let call = &self.calls[&id];
            if matches!(call.what, What::Open(_)) {
                let request = signed.asked[&id].request;
                let fresh = signed.sign(call, request, now);
                signed.asked.get_mut(&id).expect("it is shown").signed = fresh;
            }
            signed.show_at(id, group, again_at);
            signed.to_show.entry(group).or_default().insert(id);
            signed.has_gathered = true;
        }
        self.set_show_timer(group);
    }

    /// Whether [`Self::take_bundles`] may have something to give.
    #[must_use]
    pub fn has_bundles(&self) -> bool {
        self.signed.as_ref().is_some_and(|signed| signed.has_gathered)
    }

    /// Byzantine mode: what is to be signed and sent now. What is taken counts as sent. Requests of a group to which there are too few
    /// connections stay until there are more, or until they are shown.
    pub fn take_bundles(&mut self, now: Now) -> Vec<ToSign> {
        self.now = now;
        let mut bundles = Vec::new();
        let Some(signed) = &mut self.signed else { return bundles };
        signed.has_gathered = false;
        let (unsent, to_show) = (std::mem::take(&mut signed.unsent), std::mem::take(&mut signed.to_show));
        for (group, calls) in unsent.into_iter().filter(|(_, calls)| !calls.is_empty()) {
            let nodes = self.who_is_brought(group, &calls);
            if nodes.is_empty() {
                self.signed.as_mut().expect("Byzantine mode").unsent.insert(group, calls);
            } else {
                self.bundle(group, &calls, &nodes, &mut bundles);
            }
        }
        for (group, calls) in to_show.into_iter().filter(|(_, calls)| !calls.is_empty()) {
            let nodes = self.open_members(group);
            if !nodes.is_empty() {
                self.bundle(group, &calls, &nodes, &mut bundles);
                if let Some(unsent) = self.signed.as_mut().and_then(|signed| signed.unsent.get_mut(&group)) {
                    unsent.retain(|call| !calls.contains(call));
                }
            }
        }
        bundles
    }

    /// The members to which there is a connection; the others are dialled.
    fn open_members(&mut self, group: GroupId) -> Vec<NodeId> {
        let members = self.signed.as_ref().expect("Byzantine mode").members.shared(group);
        let (open, others): (Vec<NodeId>, Vec<NodeId>) =
            members.iter().partition(|node| self.links.is_open(**node));
        others.into_iter().for_each(|node| self.dial(node));
        open
    }

    /// Who gets requests of a group first: its primary, as far as is known. Where nobody is known, one connection more than there may be
    /// liars is waited for: enough to be heard.
    fn who_is_brought(&mut self, group: GroupId, calls: &BTreeSet<CallId>) -> Vec<NodeId> {
        let open = self.open_members(group);
        let signed = self.signed.as_ref().expect("Byzantine mode");
        let primary = signed.hints.primary(group).filter(|node| open.contains(node));
        if let Some(primary) = primary {
            return vec![primary];
        }
        let members = signed.members.of(group);
        let since = calls.iter().map(|id| signed.asked[id].since).min().unwrap_or_default();
        let is_enough = open.len() > liars(members.len())
            || self.now.at.saturating_sub(since) >= CONNECT_PATIENCE
            || !members.iter().any(|node| self.links.is_dialled(*node));
        if is_enough {
            let is_avoided = |node| self.links.failed_lately(node, self.now.at);
            self.links.by_promise(&open, None, is_avoided).into_iter().take(1).collect()
        } else {
            Vec::new()
        }
    }

    fn bundle(
        &mut self,
        group: GroupId,
        calls: &BTreeSet<CallId>,
        nodes: &[NodeId],
        bundles: &mut Vec<ToSign>,
    ) {
        let signed = self.signed.as_ref().expect("Byzantine mode");
        let domain = domain_of(signed.signing.cluster, signed.members.tenure(group));
        let requests = calls.iter().map(|id| signed.asked[id].signed.clone()).collect();
        for id in calls {
            self.calls.get_mut(id).expect("what is asked is open").maybe_applied = true;
        }
        for requests in cut(requests) {
            let to = nodes
                .iter()
                .filter_map(|node| Some((*node, self.links.link(*node)?, self.links.cast(*node)?)));
            let to = to.collect();
            bundles.push(ToSign { group, domain, requests, to });
        }
    }

    /// A node tells what requests came to. What nobody asked for is ignored, and what it cannot know.
    pub(super) fn take_outcomes(
        &mut self,
        node: NodeId,
        group: GroupId,
        slot: u64,
        replies: Vec<(RequestId, Reply, Option<OutcomeProof>)>,
    ) {
        for (request, reply, proof) in replies {
            let Some(signed) = &mut self.signed else { return };
            let Some(id) = signed.by_request.get(&(group, request)).copied() else { continue };
            let asked = signed.asked.get_mut(&id).expect("what has a name is asked");
            let Some(agreed) = asked.collector.take(node, slot, &reply, proof) else { continue };
            signed.usual.note(self.now.at.saturating_sub(asked.since));
            let good_until = asked.signed.not_after.0;
            signed.forget(id);
            self.set_show_timer(group);
            self.calls.get_mut(&id).expect("what is asked is open").stage = Stage::Moving;
            match agreed.reply {
                // An older copy, of when nobody wanted to wait for so long.
                Reply::Failed(Failure::TooLate { not_after, .. })
                    if not_after < good_until && self.is_opening(id) =>
                {
                    self.open_again(id);
                }
                _ => self.on_agreed(id, request, agreed),
            }
        }
    }

    fn on_agreed(&mut self, id: CallId, request: RequestId, agreed: Agreed) {
        let call = &self.calls[&id];
        let Agreed { slot, reply, proofs } = agreed;
        match (&call.what, reply) {
            (What::Open(_), Reply::Opened { session }) => self.opened(id, session),
            (What::Open(_), Reply::Failed(failure)) => self.refuse(id, Refusal::Failure(failure)),
            (What::End(_), reply) => self.on_end_reply(id, &reply),
            (What::Ask(Ask::Write(_)), Reply::Failed(failure)) => self.not_written(id, failure),
            (What::Ask(Ask::Write(_)), reply) => self.written(id, slot, reply),
            (What::Ask(_), Reply::Value { found, time }) => {
                let reply = Reply::Value { found: found.clone(), time };
                let (group, client) = (call.group(), self.signed.as_ref().expect("Byzantine mode").client());
                let served = Served { group, slot, consistency: Consistency::Linearizable };
                let read = Read { found, served };
                let operation = operation_of(call);
                let is_proved = matches!(call.what, What::Ask(Ask::Prove { .. }));
                self.sessions.saw(group, slot);
                let proof = || Proof { group, client, request, operation, reply, proofs };
                let done = if is_proved {
                    Done::Prove(Box::new(Outcome::Done(Proven { proof: proof(), read })))
                } else {
                    Done::Read(Outcome::Done(read))
                };
                self.finish(id, done);
            }
            (What::Ask(_), Reply::Failed(Failure::ReadTooMuch)) if self.now.at < call.deadline => {
                self.calls.get_mut(&id).expect("an open call").tried += 1;
                self.rest(id);
            }
            (What::Ask(_), Reply::Failed(failure)) => self.refuse(id, Refusal::Failure(failure)),
            (What::Ask(_) | What::Open(_), other) => {
                self.refuse(id, Refusal::Unavailable(unexpected(&other)));
            }
        }
    }

    /// A write was ordered, and not carried out.
    fn not_written(&mut self, id: CallId, failure: Failure) {
        match failure {
            // The session was unknown when the request was ordered. If it had been ordered before, its session would have been active
            // then, and could not have been forgotten while the request is still valid; and this client closes a session only when
            // none of its requests is open.
            Failure::SessionExpired => self.session_expired(id),
            failure => {
                let is_sure =
                    failure.is_outcome() || matches!(failure, Failure::WrongGroup | Failure::Malformed);
                // Of the others another attempt of the same request may have been ordered, or may yet be.
                self.calls.get_mut(&id).expect("an open call").maybe_applied = !is_sure;
                self.refuse(id, Refusal::Failure(failure));
            }
        }
    }

    /// Why there is no agreement, as far as nodes have said. What a single node says is shown, not believed.
    pub(super) fn why_no_agreement(&self, id: CallId) -> String {
        self.why_no_agreement_of(&self.calls[&id])
    }

    pub(super) fn why_no_agreement_of(&self, call: &Call) -> String {
        let (group, signed) = (call.group(), self.signed.as_ref().expect("Byzantine mode"));
        let said = signed.hints.refusals_since(group, call.asked_at);
        let said = if said.is_empty() { String::new() } else { format!("; {}", said.join("; ")) };
        format!("too few replicas of {group} agreed on an answer in time{said}")
    }
}

/// The operation that a call asks for.
fn operation_of(call: &Call) -> Operation {
    match &call.what {
        What::Open(_) => Operation::Open,
        What::End(_) => Operation::Close,
        What::Ask(Ask::Write(write)) => Operation::Write(write.clone()),
        // As fresh as any consistency asks for: one replica alone is not believed, so less would cost no less.
        What::Ask(Ask::Read { key, .. } | Ask::Prove { key }) => Operation::Get { key: key.clone() },
        What::Ask(Ask::Seen { .. } | Ask::Status(_) | Ask::Close) => {
            unreachable!("no group is asked for that")
        }
    }
}

/// Pieces of at most so many requests and bytes, each with at least one request.
fn cut(requests: Vec<SignedRequest>) -> Vec<Vec<SignedRequest>> {
    let mut pieces: Vec<Vec<SignedRequest>> = Vec::new();
    let mut bytes = 0;
    for request in requests {
        let size = request.operation.len() + 64;
        let is_full = pieces.last().is_none_or(|piece| piece.len() >= BUNDLE_REQUESTS_MAX)
            || bytes + size > BUNDLE_BYTES;
        if is_full {
            pieces.push(Vec::new());
            bytes = 0;
        }
        bytes += size;
        pieces.last_mut().expect("there is one now").push(request);
    }
    pieces
}
