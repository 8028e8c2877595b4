//! The client library: sessions, retries that apply once, and outcomes that are never dressed up.
//!
//! ```no_run
//! # async fn example() -> anyhow::Result<()> {
//! use tetrachord::{Client, config::ClusterConfig};
//! let client = Client::new(ClusterConfig::load("cluster/cluster.toml".as_ref())?)?;
//! client.put("greeting", "hello").await.done()?;
//! let value = client.get("greeting").await.done()?;
//! client.close().await?;
//! # Ok(()) }
//! ```
//!
//! # Outcomes
//!
//! * **Done**: it happened, this is the answer.
//! * **Refused**: it surely did not happen, and here is why.
//! * **Unknown**: it may have happened, may yet happen, or never; nobody answered in time. The library does not guess.
//!
//! # How once is once
//!
//! The client keeps one session per group. Every write has a number in its session; a retry carries the same number,
//! and the group's state machine remembers outcomes by number. A write is sent again, perhaps to another node, until
//! it is answered or its deadline passes. After a session has expired a write is never sent again under another one if
//! an earlier attempt may have been applied.
//!
//! Groups remember sessions, and a key has a share of them: a program that ends says so by [`Client::close`].

mod close;
mod collect;
mod connection;
mod dial;
mod hints;
mod links;
mod outcome;
mod sessions;
mod signed;
mod status;

use crate::config::ClusterConfig;
use crate::kv::{Command, CommandError, Expect, Failure, Reply, Write, check_key};
use crate::limits::Limits;
use crate::ring::{GroupId, NodeId, Position, RingMap};
use crate::transport::LinkError;
use crate::wire::{Answer, Consistency, Request, RetryReason};
use bytes::Bytes;
pub use close::NotClosed;
use links::{CallError, Links};
use outcome::unexpected;
pub use outcome::{NotDone, Outcome, Read, Refusal};
use sessions::{Session, Sessions};
pub use signed::Proven;
use signed::Signed;
pub(crate) use signed::wall_micros;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// How a client behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientOptions {
    /// A request without an answer for this long is Unknown, or Refused if it surely was not taken.
    pub deadline: Duration,
    /// One attempt at one node may take this long.
    pub attempt: Duration,
}

impl Default for ClientOptions {
    fn default() -> Self {
        Self { deadline: Duration::from_secs(10), attempt: Duration::from_millis(1_000) }
    }
}

/// A client of one cluster. Cheap to clone; clones share connections and sessions.
#[derive(Clone, Debug)]
pub struct Client {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    links: Arc<Links>,
    sessions: Sessions,
    /// In Byzantine mode.
    signed: Option<Signed>,
    options: ClientOptions,
}

/// Why a request was not even sent: the oldest of the session's open requests is not answered, and the group remembers no more.
const NO_ROOM: &str = "too many requests of this client wait behind one that is not answered";

/// Why a client that was closed asks nothing.
const ENDED: &str = "this client was closed";

/// Whose session it is says the node that has admitted the connection.
const OF_THE_CONNECTION: crate::kv::Client = [0; 32];

/// What a series of attempts has come to.
struct Attempts {
    deadline: Instant,
    tried: u32,
    maybe_applied: bool,
    target: Option<NodeId>,
    last: String,
}

impl Client {
    /// A client with the usual patience. Connects when it is first used. Must be called inside a tokio runtime.
    pub fn new(cluster: ClusterConfig) -> std::io::Result<Self> {
        Self::with_options(cluster, ClientOptions::default())
    }

    /// A client with other patience.
    pub fn with_options(cluster: ClusterConfig, options: ClientOptions) -> std::io::Result<Self> {
        if cluster.signing.is_some() && cluster.ring.is_none() {
            let reason = "a client of a Byzantine cluster believes no node about the ring: it must be told";
            return Err(std::io::Error::new(std::io::ErrorKind::InvalidInput, reason));
        }
        let links = Arc::new(Links::new(cluster.clone())?);
        let signed =
            Signed::start(&cluster, &links).map_err(|error| std::io::Error::other(error.to_string()))?;
        Ok(Self { inner: Arc::new(Inner { links, sessions: Sessions::default(), signed, options }) })
    }

    /// Sets a key. Returns its new version.
    pub async fn put(&self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Outcome<u64> {
        let outcome = self.write(Write::Put { key: bytes(key), value: bytes(value) }).await;
        outcome.pick(|reply| if let Reply::Put { version } = reply { Some(*version) } else { None })
    }

    /// Reads a key; sees everything that was acknowledged before the call.
    pub async fn get(&self, key: impl AsRef<[u8]>) -> Outcome<Option<Bytes>> {
        self.read(key, Consistency::Linearizable).await.map(|read| read.found.map(|(_, value)| value))
    }

    /// Reads a key with the consistency asked for, or a stronger one: in Byzantine mode all reads are linearizable. The answer says which
    /// one it had.
    pub async fn read(&self, key: impl AsRef<[u8]>, consistency: Consistency) -> Outcome<Read> {
        let key = bytes(key);
        if let Some(signed) = &self.inner.signed {
            return self.read_signed(signed, key, false).await.map(|proven| proven.read);
        }
        if self.inner.sessions.is_ended() {
            return Outcome::Refused(self.no_number());
        }
        let mut attempts = self.attempts();
        let ring = match self.ring(&mut attempts).await {
            Ok((ring, limits)) => match check_key(&key, &limits) {
                Ok(()) => ring,
                Err(error) => return Outcome::Refused(Refusal::Invalid(error.to_string())),
            },
            Err(refusal) => return Outcome::Refused(refusal),
        };
        let group = ring.owner(Position::of_key(&key)).id;
        let request = Request::Get { key, consistency };
        loop {
            match self.attempt(&ring, group, &request, &mut attempts).await {
                Step::Answer(Answer::Value { found, served, .. }) if served.answers(group, consistency) => {
                    self.inner.sessions.saw(group, served.slot);
                    return Outcome::Done(Read { found, served });
                }
                // A read changes nothing, so one that was not answered surely did nothing.
                Step::GaveUp => return Outcome::Refused(Refusal::Unavailable(attempts.last)),
                step => {
                    if let Some(refusal) = refusal_of(step) {
                        return Outcome::Refused(refusal);
                    }
                }
            }
        }
    }

    /// A slot of the group that owns the key which this client has seen or written; for [`Consistency::Session`].
    pub async fn seen(&self, key: impl AsRef<[u8]>) -> u64 {
        match self.ring(&mut self.attempts()).await {
            Ok((ring, _)) => self.inner.sessions.seen(ring.owner(Position::of_key(key.as_ref())).id),
            Err(_) => 0,
        }
    }

    /// Removes a key. Returns whether it was there.
    pub async fn delete(&self, key: impl AsRef<[u8]>) -> Outcome<bool> {
        let outcome = self.write(Write::Delete { key: bytes(key) }).await;
        outcome.pick(|reply| if let Reply::Deleted { existed } = reply { Some(*existed) } else { None })
    }

    /// Sets a key, or removes it, if it is as expected ([`Expect::value`], [`Expect::ABSENT`], [`Expect::Version`]). Returns whether it
    /// was, and the key's version afterwards.
    pub async fn cas(
        &self,
        key: impl AsRef<[u8]>,
        expect: Expect,
        value: Option<Bytes>,
    ) -> Outcome<(bool, u64)> {
        let outcome = self.write(Write::Cas { key: bytes(key), expect, value }).await;
        outcome.pick(|reply| match reply {
            Reply::Cas { swapped, version } => Some((*swapped, *version)),
            _ => None,
        })
    }

    /// Adds to a number. Returns the sum.
    pub async fn incr(&self, key: impl AsRef<[u8]>, by: i64) -> Outcome<i64> {
        let outcome = self.write(Write::Incr { key: bytes(key), by }).await;
        outcome.pick(|reply| if let Reply::Incr { value, .. } = reply { Some(*value) } else { None })
    }

    /// Adds bytes behind a value. Returns the new length.
    pub async fn append(&self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Outcome<u64> {
        let outcome = self.write(Write::Append { key: bytes(key), value: bytes(value) }).await;
        outcome.pick(|reply| if let Reply::Append { length, .. } = reply { Some(*length) } else { None })
    }

    /// Whether a key exists.
    pub async fn exists(&self, key: impl AsRef<[u8]>) -> Outcome<bool> {
        self.get(key).await.map(|found| found.is_some())
    }

    /// Carries out any write, once.
    pub async fn write(&self, write: Write) -> Outcome<Reply> {
        if let Some(signed) = &self.inner.signed {
            return self.write_signed(signed, write).await;
        }
        let mut attempts = self.attempts();
        let (ring, limits) = match self.ring(&mut attempts).await {
            Ok(known) => known,
            Err(refusal) => return Outcome::Refused(refusal),
        };
        let group = ring.owner(Position::of_key(write.key())).id;
        loop {
            let session = match self.session(&ring, group, &mut attempts).await {
                Ok(session) => session,
                Err(refusal) => return Outcome::Refused(refusal),
            };
            let Some(number) = session.begin(attempts.deadline).await else {
                return Outcome::Refused(self.no_number());
            };
            let command = Command::Write {
                request: number.request(),
                ack_below: number.ack_below(),
                write: write.clone(),
            };
            let check: Result<(), CommandError> = command.check(&limits);
            if let Err(error) = check {
                return Outcome::Refused(Refusal::Invalid(error.to_string()));
            }
            let request = Request::Command { group, command: command.encode() };
            match self.write_once(&ring, group, &request, &mut attempts).await {
                WriteStep::Outcome(outcome) => return outcome.of(&write),
                WriteStep::SessionExpired => self.inner.sessions.forget(group, &session),
            }
        }
    }

    /// Sends one numbered write until it is answered.
    async fn write_once(
        &self,
        ring: &RingMap,
        group: GroupId,
        request: &Request,
        attempts: &mut Attempts,
    ) -> WriteStep {
        loop {
            match self.attempt(ring, group, request, attempts).await {
                Step::Answer(Answer::Reply { reply: Reply::Failed(Failure::SessionExpired), .. }) => {
                    // An attempt that had no answer may have been applied while the session lived.
                    if attempts.maybe_applied {
                        let reason = "the session expired while the write was retried".to_string();
                        return WriteStep::Outcome(Outcome::Unknown(reason));
                    }
                    return WriteStep::SessionExpired;
                }
                Step::Answer(Answer::Reply { reply: Reply::Failed(failure), .. }) => {
                    let surely = failure.is_outcome() || !attempts.maybe_applied;
                    let outcome = if surely {
                        Outcome::Refused(Refusal::Failure(failure))
                    } else {
                        Outcome::Unknown(failure.to_string())
                    };
                    return WriteStep::Outcome(outcome);
                }
                Step::Answer(Answer::Reply { reply, slot, .. }) => {
                    self.inner.sessions.saw(group, slot);
                    return WriteStep::Outcome(Outcome::Done(reply));
                }
                step => {
                    if let Some(outcome) = self.unanswered(step, attempts) {
                        return WriteStep::Outcome(outcome);
                    }
                }
            }
        }
    }

    fn unanswered(&self, step: Step, attempts: &Attempts) -> Option<Outcome<Reply>> {
        let maybe_applied = attempts.maybe_applied;
        match step {
            Step::GaveUp if maybe_applied => Some(Outcome::Unknown(attempts.last.clone())),
            Step::GaveUp => Some(Outcome::Refused(Refusal::Unavailable(attempts.last.clone()))),
            Step::Answer(other) if !matches!(other, Answer::Refused { .. } | Answer::Unavailable { .. }) => {
                Some(Outcome::Unknown(unexpected(&other)))
            }
            step => refusal_of(step).map(|refusal| {
                if maybe_applied { Outcome::Unknown(refusal.to_string()) } else { Outcome::Refused(refusal) }
            }),
        }
    }

    /// The nodes of the cluster file.
    #[must_use]
    pub fn nodes(&self) -> Vec<NodeId> {
        self.inner.links.nodes()
    }

    fn attempts(&self) -> Attempts {
        let deadline = Instant::now() + self.inner.options.deadline;
        Attempts {
            deadline,
            tried: 0,
            maybe_applied: false,
            target: None,
            last: "nothing was tried".to_string(),
        }
    }

    /// The ring map, from the first node that greets.
    async fn ring(&self, attempts: &mut Attempts) -> Result<(Arc<RingMap>, Limits), Refusal> {
        let links = &self.inner.links;
        loop {
            if let Some(known) = links.ring() {
                return Ok(known);
            }
            match links.greet().await {
                Ok(()) => {}
                Err(error @ LinkError::Denied(_)) => return Err(Refusal::Denied(error.to_string())),
                Err(error) => attempts.last = error.to_string(),
            }
            if Instant::now() >= attempts.deadline {
                return Err(Refusal::Unavailable(attempts.last.clone()));
            }
        }
    }

    /// The group's open session, or a new one.
    async fn session(
        &self,
        ring: &RingMap,
        group: GroupId,
        attempts: &mut Attempts,
    ) -> Result<Arc<Session>, Refusal> {
        let mut slot = self.inner.sessions.slot(group).await;
        if self.inner.sessions.is_ended() {
            return Err(self.no_number());
        }
        if let Some(session) = slot.as_ref() {
            return Ok(Arc::clone(session));
        }
        let mut nonce = [0; 16];
        getrandom::fill(&mut nonce).map_err(|error| Refusal::Unavailable(error.to_string()))?;
        let command = Command::Open { nonce: u128::from_be_bytes(nonce), client: OF_THE_CONNECTION };
        let request = Request::Command { group, command: command.encode() };
        loop {
            match self.attempt(ring, group, &request, attempts).await {
                Step::Answer(Answer::Reply { reply: Reply::Opened { session }, .. }) => {
                    let session = Session::new(session);
                    *slot = Some(Arc::clone(&session));
                    // Opening a session changes no key: whatever became of the attempts, the write was not sent yet.
                    attempts.maybe_applied = false;
                    return Ok(session);
                }
                Step::Answer(Answer::Reply { reply: Reply::Failed(failure), .. }) => {
                    return Err(Refusal::Failure(failure));
                }
                Step::GaveUp => return Err(Refusal::Unavailable(attempts.last.clone())),
                step => {
                    if let Some(refusal) = refusal_of(step) {
                        return Err(refusal);
                    }
                }
            }
        }
    }

    /// Why a session gives no number, or there is none.
    fn no_number(&self) -> Refusal {
        if self.inner.sessions.is_ended() {
            Refusal::Invalid(ENDED.to_string())
        } else {
            Refusal::Unavailable(NO_ROOM.to_string())
        }
    }

    /// Asks one node once, and decides where to ask next.
    async fn attempt(
        &self,
        ring: &RingMap,
        group: GroupId,
        request: &Request,
        attempts: &mut Attempts,
    ) -> Step {
        let left = attempts.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Step::GaveUp;
        }
        let node = self.target(ring, group, attempts);
        attempts.tried += 1;
        let patience = self.inner.options.attempt.min(left);
        match self.inner.links.call(node, request, patience).await {
            Ok(Answer::Retry { reason, leader, maybe_applied }) => {
                attempts.maybe_applied |= maybe_applied;
                attempts.last = format!("{node} {reason}");
                // One that is busy is asked again, if it leads.
                let is_overloaded = matches!(reason, RetryReason::Busy | RetryReason::Behind);
                attempts.target = leader.filter(|leader| *leader != node || reason == RetryReason::Busy);
                self.inner.links.set_leader(group, attempts.target);
                if reason == RetryReason::NoLeader {
                    self.inner.links.knows_no_leader(node);
                }
                if leader.is_none() || is_overloaded {
                    self.pause(attempts).await;
                }
                Step::Again
            }
            Ok(answer) => {
                // Whoever answers may have passed the request on.
                if let Answer::Reply { leader: Some(leader), .. }
                | Answer::Value { leader: Some(leader), .. } = answer
                {
                    self.inner.links.set_leader(group, Some(leader));
                }
                Step::Answer(answer)
            }
            Err(error) => {
                attempts.maybe_applied |= error.may_have_been_sent();
                attempts.last = error.to_string();
                attempts.target = None;
                self.inner.links.set_leader(group, None);
                if matches!(error, CallError::Link(LinkError::Denied(_))) {
                    return Step::Denied(error.to_string());
                }
                if !error.may_have_been_sent() {
                    self.pause(attempts).await;
                }
                Step::Again
            }
        }
    }

    /// The node to ask: the one that was named, the last known leader, or the group's replicas in turn.
    fn target(&self, ring: &RingMap, group: GroupId, attempts: &Attempts) -> NodeId {
        if let Some(node) = attempts.target.or_else(|| self.inner.links.leader(group)) {
            return node;
        }
        let replicas = ring.group(group).map_or(&[][..], |place| &place.nodes);
        assert!(!replicas.is_empty(), "every group has replicas");
        let turn = usize::try_from(attempts.tried).unwrap_or(0) % replicas.len();
        let in_turn: Vec<NodeId> = replicas[turn..].iter().chain(&replicas[..turn]).copied().collect();
        self.inner.links.by_promise(&in_turn)[0]
    }

    /// A short rest, longer after more attempts, so that a cluster that elects is not hammered.
    async fn pause(&self, attempts: &Attempts) {
        let millis = 5u64 << attempts.tried.min(3);
        let left = attempts.deadline.saturating_duration_since(Instant::now());
        tokio::time::sleep(Duration::from_millis(millis).min(left)).await;
    }
}

/// What one attempt has come to.
enum Step {
    Answer(Answer),
    Again,
    GaveUp,
    Denied(String),
}

/// What one numbered write has come to.
enum WriteStep {
    Outcome(Outcome<Reply>),
    SessionExpired,
}

/// The refusal in a step, if it is one.
fn refusal_of(step: Step) -> Option<Refusal> {
    match step {
        Step::Answer(Answer::Refused { error }) => Some(Refusal::Invalid(error)),
        Step::Answer(Answer::Unavailable { reason }) => Some(Refusal::Unavailable(reason)),
        Step::Answer(other) => Some(Refusal::Unavailable(unexpected(&other))),
        Step::Denied(reason) => Some(Refusal::Denied(reason)),
        Step::Again | Step::GaveUp => None,
    }
}

fn bytes(text: impl AsRef<[u8]>) -> Bytes {
    Bytes::copy_from_slice(text.as_ref())
}
