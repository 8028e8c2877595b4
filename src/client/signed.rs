//! Byzantine mode: requests are signed, and an answer is what `f + 1` replicas agree on.
//!
//! * Requests that wait at the same time are signed together: one signature for a bundle.
//! * A bundle goes to the replica that is believed to be primary. A request that is not answered in ten times the usual time
//!   is shown to all replicas: they make sure that it is ordered, or replace their primary.
//! * Every replica tells what it executed. An answer counts when `f + 1` replicas of the group told the same outcome of the same
//!   slot, so that one of them is honest ([`super::collect`]). What a replica says about who is primary is a hint
//!   ([`super::hints`]), and nothing else is believed at all: the map of the ring and all keys come from the cluster file.

use super::collect::{Agreed, Collectors, Wanted};
use super::links::Links;
use super::outcome::unexpected;
use super::sessions::Session;
use super::{Client, Outcome, Read, Refusal};
use crate::config::{ClusterConfig, cluster_digest};
use crate::kv::{Command, Failure, Operation, Reply, RequestId, SessionId, Write, check_key};
use crate::limits::{Limits, REQUEST_VALID_MICROS_MAX};
use crate::proof::Proof;
use crate::ring::{GroupId, NodeId, Position, RingMap};
use crate::wire::{Consistency, Request, Served};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tetrachord_consensus::pbft::request::BUNDLE_REQUESTS_MAX;
use tetrachord_consensus::pbft::sign::KeyError;
use tetrachord_consensus::pbft::{
    Bundle, ClientKey, ClientSigner, Domain, Keyring, RequestName, SignedRequest,
};
use tetrachord_consensus::{Digest, Epoch, Timestamp};
use tokio::sync::mpsc;
use tokio::time::Instant;

/// A request without an answer is shown to all replicas after so many times what is usual, and again after each further such
/// time; within these bounds. Sooner, and a short stall would make everybody pay for nothing; later, and a primary could be
/// slow unseen.
const SHOW_AFTER_USUAL: u32 = 10;
const SHOW_AFTER_MIN: Duration = Duration::from_millis(150);
const SHOW_AFTER_MAX: Duration = Duration::from_millis(400);

/// A request is good for as long as its caller waits, and no longer than this, in microseconds: a minute less than replicas
/// take, because clocks differ.
const VALID_MICROS_MAX: u64 = REQUEST_VALID_MICROS_MAX - 60 * 1_000_000;

/// Bytes of requests in one bundle, unless a single one is larger.
const BUNDLE_BYTES: usize = 128 << 10;

type Queued = (GroupId, SignedRequest);

/// How long answers usually take, in microseconds. It follows better times at once and worse ones slowly: a primary that turns
/// slow must not become what is usual.
#[derive(Debug)]
struct Usual(AtomicU64);

impl Default for Usual {
    fn default() -> Self {
        Self(AtomicU64::new(u64::try_from(SHOW_AFTER_MAX.as_micros()).expect("less than a second")))
    }
}

impl Usual {
    fn note(&self, took: Duration) {
        let took = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let before = self.0.load(Ordering::Relaxed);
        // Two callers at once may lose one sample: it is an estimate.
        let after = if took < before {
            before - (before - took) / 4
        } else {
            before + (took - before).min(before) / 256
        };
        self.0.store(after.max(1), Ordering::Relaxed);
    }

    fn show_after(&self) -> Duration {
        let usual = Duration::from_micros(self.0.load(Ordering::Relaxed));
        (SHOW_AFTER_USUAL * usual).clamp(SHOW_AFTER_MIN, SHOW_AFTER_MAX)
    }
}

/// Signs and sends. One for each client.
#[derive(Debug)]
pub(super) struct Signed {
    usual: Usual,
    signer: ClientSigner,
    cluster: Digest,
    ring: RingMap,
    /// What nodes sign with.
    keys: BTreeMap<NodeId, [u8; 32]>,
    collectors: Arc<Collectors>,
    queue: mpsc::UnboundedSender<Queued>,
    /// Names of reads, which need no session: 128 random bits, and a number that grows.
    reads: (SessionId, AtomicU64),
}

impl Signed {
    /// Starts what gathers requests into bundles; none if the cluster file names no signing key.
    pub(super) fn start(
        cluster: &ClusterConfig,
        links: &Arc<Links>,
    ) -> Result<Option<Self>, getrandom::Error> {
        let (Some(signing), Some(ring)) = (&cluster.signing, cluster.ring.clone()) else { return Ok(None) };
        let signer = ClientSigner::new(&signing.seed());
        let keys = cluster.nodes.iter().filter_map(|node| Some((node.id, node.signing_key?.0))).collect();
        let cluster = Digest(cluster_digest(&cluster.protocol));
        let (queue, queued) = mpsc::unbounded_channel();
        let collectors = links.collectors();
        let bundler = Bundler { signer: signer.clone(), cluster, links: Arc::downgrade(links) };
        tokio::spawn(bundler.run(queued));
        let (usual, reads) = (Usual::default(), (opening()?.session, AtomicU64::new(0)));
        Ok(Some(Self { usual, signer, cluster, ring, keys, collectors, queue, reads }))
    }

    /// A name for a read.
    fn read_name(&self) -> RequestId {
        RequestId { session: self.reads.0, number: self.reads.1.fetch_add(1, Ordering::Relaxed) + 1 }
    }

    /// The keys of a group's replicas.
    fn keyring(&self, group: GroupId) -> Result<Arc<Keyring>, KeyError> {
        let domain = Domain { cluster: self.cluster, group: group.0, epoch: Epoch(1) };
        let place = self.ring.group(group).expect("groups come from the same ring");
        // A node whose key the cluster file does not name is found out as one with a bad key.
        let keys = place.nodes.iter().map(|node| self.keys.get(node).copied().unwrap_or_default());
        Keyring::new(domain, &keys.collect::<Vec<_>>(), []).map(Arc::new)
    }

    /// The client's name.
    pub(super) fn client(&self) -> [u8; 32] {
        self.signer.name().0
    }

    /// Asks for one operation until `f + 1` replicas agree on what it came to; none if they do not before the deadline.
    pub(super) async fn call(
        &self,
        links: &Arc<Links>,
        group: GroupId,
        request: RequestId,
        ask: Ask<'_>,
    ) -> Option<Agreed> {
        let operation = ask.operation.encode();
        let wants_proof = ask.keyring.is_some();
        let wanted = ask.keyring.map(|keyring| Wanted {
            keyring,
            client: self.client(),
            operation: operation.clone(),
        });
        let (_expected, mut answer) = self.collectors.expect(group, request, wanted);
        let left = ask.deadline.saturating_duration_since(Instant::now());
        let name = RequestName {
            client: ClientKey(self.client()),
            session: request.session.0,
            number: request.number,
        };
        let signed = SignedRequest {
            name,
            ack_below: ask.ack_below,
            not_after: Timestamp(
                wall_micros() + VALID_MICROS_MAX.min(u64::try_from(left.as_micros()).unwrap_or(u64::MAX)),
            ),
            wants_proof,
            ends_epoch: false,
            operation,
        };
        // The bundler lives as long as the client.
        let _ = self.queue.send((group, signed.clone()));
        let sent_at = Instant::now();
        loop {
            let left = ask.deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            match tokio::time::timeout(left.min(self.usual.show_after()), &mut answer).await {
                Ok(agreed) => {
                    self.usual.note(sent_at.elapsed());
                    return agreed.ok();
                }
                Err(_) => self.show_to_all(links, group, &signed),
            }
        }
    }

    /// Every replica that can be reached gets the request: whoever has it makes sure that it is ordered.
    fn show_to_all(&self, links: &Arc<Links>, group: GroupId, request: &SignedRequest) {
        let domain = Domain { cluster: self.cluster, group: group.0, epoch: Epoch(1) };
        let bundle = Bundle::sign(&domain, &self.signer, std::slice::from_ref(request));
        links.dial_all(links.members().of(group));
        for node in links.members().of(group) {
            links.cast(*node, &Request::Submit { group, bundle: bundle.bytes().clone() });
        }
    }
}

impl Client {
    /// Carries out a write in Byzantine mode, once.
    pub(super) async fn write_signed(&self, signed: &Signed, write: Write) -> Outcome<Reply> {
        let asked_at = Instant::now();
        let deadline = asked_at + self.inner.options.deadline;
        let probe = Command::Write {
            request: RequestId { session: SessionId(0), number: 1 },
            ack_below: 1,
            write: write.clone(),
        };
        if let Err(error) = probe.check(&Limits::default()) {
            return Outcome::Refused(Refusal::Invalid(error.to_string()));
        }
        let group = signed.ring.owner(Position::of_key(write.key())).id;
        let operation = Operation::Write(write);
        let agreed = match self.call_in_session(signed, group, &operation, deadline).await {
            Ok(agreed) => agreed,
            Err(refusal) => return Outcome::Refused(refusal),
        };
        match agreed {
            None => Outcome::Unknown(self.no_agreement(group, asked_at)),
            Some(Agreed { reply: Reply::Failed(failure), .. }) => {
                let surely =
                    failure.is_outcome() || matches!(failure, Failure::WrongGroup | Failure::Malformed);
                if surely {
                    Outcome::Refused(Refusal::Failure(failure))
                } else {
                    // Another attempt of the same request may have been ordered, or may yet be.
                    Outcome::Unknown(failure.to_string())
                }
            }
            Some(Agreed { slot, reply, .. }) => {
                self.inner.sessions.saw(group, slot);
                match &operation {
                    Operation::Write(write) => Outcome::Done(reply).of(write),
                    _ => unreachable!("it is a write"),
                }
            }
        }
    }

    /// Reads a key in Byzantine mode, in order with all writes. That is as fresh as any consistency asks for: one replica alone is not
    /// believed, so less would cost no less.
    pub(super) async fn read_signed(
        &self,
        signed: &Signed,
        key: Bytes,
        wants_proof: bool,
    ) -> Outcome<Proven> {
        if self.inner.sessions.is_ended() {
            return Outcome::Refused(self.no_number());
        }
        if let Err(error) = check_key(&key, &Limits::default()) {
            return Outcome::Refused(Refusal::Invalid(error.to_string()));
        }
        let asked_at = Instant::now();
        let deadline = asked_at + self.inner.options.deadline;
        let group = signed.ring.owner(Position::of_key(&key)).id;
        let operation = Operation::Get { key };
        let keyring = match wants_proof.then(|| signed.keyring(group)).transpose() {
            Ok(keyring) => keyring,
            Err(error) => return Outcome::Refused(Refusal::Invalid(format!("the keys of {group}: {error}"))),
        };
        let (request, agreed) = loop {
            let (request, keyring) = (signed.read_name(), keyring.clone());
            let ask = Ask { operation: &operation, ack_below: 0, keyring, deadline };
            let agreed = signed.call(&self.inner.links, group, request, ask).await;
            let is_too_much =
                agreed.as_ref().is_some_and(|agreed| agreed.reply == Reply::Failed(Failure::ReadTooMuch));
            if !is_too_much || Instant::now() >= deadline {
                break (request, agreed);
            }
        };
        match agreed {
            Some(Agreed { slot, reply: Reply::Value { found, time }, proofs }) => {
                self.inner.sessions.saw(group, slot);
                let reply = Reply::Value { found: found.clone(), time };
                let client = signed.client();
                let proof = Proof { group, client, request, operation, reply, proofs };
                let served = Served { group, slot, consistency: Consistency::Linearizable };
                Outcome::Done(Proven { read: Read { found, served }, proof })
            }
            Some(Agreed { reply: Reply::Failed(failure), .. }) => Outcome::Refused(Refusal::Failure(failure)),
            Some(Agreed { reply, .. }) => Outcome::Refused(Refusal::Unavailable(unexpected(&reply))),
            // A read changes nothing, so one that was not answered surely did nothing.
            None => {
                let reason = self.no_agreement(group, asked_at);
                Outcome::Refused(Refusal::Unavailable(reason))
            }
        }
    }

    /// Asks in the group's session; opens one if there is none, or if it has expired before anything was asked in it.
    async fn call_in_session(
        &self,
        signed: &Signed,
        group: GroupId,
        operation: &Operation,
        deadline: Instant,
    ) -> Result<Option<Agreed>, Refusal> {
        let links = &self.inner.links;
        loop {
            let session = self.signed_session(signed, group, deadline).await?;
            let Some(number) = session.begin(deadline).await else {
                return Err(self.no_number());
            };
            let ask = Ask { operation, ack_below: number.ack_below(), keyring: None, deadline };
            let agreed = signed.call(links, group, number.request(), ask).await;
            let is_expired =
                agreed.as_ref().is_some_and(|agreed| agreed.reply == Reply::Failed(Failure::SessionExpired));
            if !is_expired {
                return Ok(agreed);
            }
            // The session was unknown when the request was ordered. If it had been ordered before, its session would
            // have been active then, and could not have been forgotten while the request is still valid; and this client
            // closes a session only when none of its requests is open.
            self.inner.sessions.forget(group, &session);
        }
    }

    /// Why there is no answer, as far as nodes have said. What a single node says is shown, not believed.
    pub(super) fn no_agreement(&self, group: GroupId, asked_at: Instant) -> String {
        let said = self.inner.links.refusals_since(group, asked_at.into_std());
        let said = if said.is_empty() { String::new() } else { format!("; {}", said.join("; ")) };
        format!("too few replicas of {group} agreed on an answer in time{said}")
    }

    async fn signed_session(
        &self,
        signed: &Signed,
        group: GroupId,
        deadline: Instant,
    ) -> Result<Arc<Session>, Refusal> {
        let mut slot = self.inner.sessions.slot(group).await;
        if self.inner.sessions.is_ended() {
            return Err(self.no_number());
        }
        if let Some(session) = slot.as_ref() {
            return Ok(Arc::clone(session));
        }
        let request = opening().map_err(|error| Refusal::Unavailable(error.to_string()))?;
        let ask = Ask { operation: &Operation::Open, ack_below: 0, keyring: None, deadline };
        let asked_at = Instant::now();
        match signed.call(&self.inner.links, group, request, ask).await.map(|agreed| agreed.reply) {
            Some(Reply::Opened { session }) => {
                let session = Session::new(session);
                *slot = Some(Arc::clone(&session));
                Ok(session)
            }
            Some(Reply::Failed(failure)) => Err(Refusal::Failure(failure)),
            Some(other) => Err(Refusal::Unavailable(unexpected(&other))),
            None => {
                let reason = self.no_agreement(group, asked_at);
                Err(Refusal::Unavailable(reason))
            }
        }
    }

    /// Reads a key with proof of what replicas signed, in Byzantine mode.
    pub async fn read_proven(&self, key: impl AsRef<[u8]>) -> Outcome<Proven> {
        match &self.inner.signed {
            Some(signed) => {
                let key = Bytes::copy_from_slice(key.as_ref());
                self.read_signed(signed, key, true).await
            }
            None => {
                let reason = "only Byzantine mode signs what it answers; this cluster runs in crash mode";
                Outcome::Refused(Refusal::Invalid(reason.to_string()))
            }
        }
    }
}

/// A value that was read, and what replicas signed about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proven {
    /// The value.
    pub read: Read,
    /// Anyone can check it.
    pub proof: Proof,
}

/// One operation, as it is asked for.
pub(super) struct Ask<'a> {
    pub(super) operation: &'a Operation,
    pub(super) ack_below: u64,
    /// Of the group, if its replicas are to prove what they tell.
    pub(super) keyring: Option<Arc<Keyring>>,
    pub(super) deadline: Instant,
}

/// Gathers what waits into bundles.
struct Bundler {
    signer: ClientSigner,
    cluster: Digest,
    links: std::sync::Weak<Links>,
}

impl Bundler {
    async fn run(self, mut queued: mpsc::UnboundedReceiver<Queued>) {
        let mut taken = Vec::new();
        while queued.recv_many(&mut taken, BUNDLE_REQUESTS_MAX).await > 0 {
            let Some(links) = self.links.upgrade() else { return };
            let mut by_group: BTreeMap<GroupId, Vec<SignedRequest>> = BTreeMap::new();
            for (group, request) in taken.drain(..) {
                by_group.entry(group).or_default().push(request);
            }
            for (group, requests) in by_group {
                for requests in cut(requests) {
                    self.send(&links, group, &requests).await;
                }
            }
            drop(links);
            // Others may have something to add to the next bundle.
            tokio::task::yield_now().await;
        }
    }

    async fn send(&self, links: &Arc<Links>, group: GroupId, requests: &[SignedRequest]) {
        let domain = Domain { cluster: self.cluster, group: group.0, epoch: Epoch(1) };
        let bundle = Bundle::sign(&domain, &self.signer, requests);
        let nodes = links.members().of(group);
        links.open_all(nodes).await;
        let request = Request::Submit { group, bundle: bundle.bytes().clone() };
        match links.primary(group).or_else(|| links.by_promise(nodes).first().copied()) {
            Some(node) if links.cast(node, &request) => {}
            _ => nodes.iter().for_each(|node| {
                let _ = links.cast(*node, &request);
            }),
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

pub(crate) fn wall_micros() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

/// A name for the opening of a session.
pub(super) fn opening() -> Result<RequestId, getrandom::Error> {
    let mut nonce = [0; 16];
    getrandom::fill(&mut nonce)?;
    Ok(RequestId { session: SessionId(u128::from_be_bytes(nonce)), number: 0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_usual_follows_better_times_at_once_and_worse_ones_slowly() {
        let usual = Usual::default();
        assert_eq!(usual.show_after(), SHOW_AFTER_MAX);
        (0..40).for_each(|_| usual.note(Duration::from_millis(15)));
        let quick = usual.show_after();
        assert!((Duration::from_millis(150)..Duration::from_millis(160)).contains(&quick), "{quick:?}");
        (0..50).for_each(|_| usual.note(Duration::from_millis(300)));
        assert!(usual.show_after() < Duration::from_millis(200), "a slow primary is noticed");
        (0..2_000).for_each(|_| usual.note(Duration::from_millis(300)));
        assert_eq!(usual.show_after(), SHOW_AFTER_MAX, "in the end it is what is usual");
        (0..40).for_each(|_| usual.note(Duration::from_millis(1)));
        assert_eq!(usual.show_after(), SHOW_AFTER_MIN);
    }
}
