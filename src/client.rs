//! The client library: sessions, retries that apply once, and outcomes that are never dressed up.
//!
//! ```no_run
//! # async fn example() -> anyhow::Result<()> {
//! use tetrachord::{Client, Outcome, config::ClusterConfig};
//!
//! let client = Client::new(ClusterConfig::load("mycluster/cluster.toml".as_ref())?)?;
//! match client.put("greeting", "hello").await {
//!     Outcome::Done(version) => println!("stored as version {version}"),
//!     Outcome::Refused(why) => println!("surely not stored: {why}"),
//!     Outcome::Unknown(why) => println!("nobody knows yet: {why}"),
//! }
//! let visits = client.incr("visits", 1).await.done()?; // the same as a Result
//! let greeting = client.get("greeting").await.done()?;
//! println!("{visits} visits, {greeting:?}");
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
//! it is answered. After a session has expired a write is never sent again under another one if an earlier attempt may have
//! been applied.
//!
//! In crash mode, when little of its time is left, a write that was sent and not answered is cancelled under its number: if it was
//! applied that is told, else it never will be, and it is Refused. Only where nobody answers that either it is Unknown.
//!
//! Groups remember sessions, and a key has a share of them: a program that ends says so by [`Client::close`].

pub mod core;
mod outcome;
mod run;
mod status;

use self::core::{Ask, Done};
use crate::config::ClusterConfig;
use crate::kv::{Expect, Reply, Write};
use crate::ring::{GroupId, NodeId};
use crate::wire::{Consistency, NodeStatus};
use bytes::Bytes;
pub use outcome::{NotClosed, NotDone, Outcome, Proven, Read, Refusal};
use run::Shell;
pub(crate) use run::wall_micros;
use std::sync::Arc;
use std::time::Duration;

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
    shell: Arc<Shell>,
}

impl Client {
    /// A client with the usual patience. Connects when it is first used. Must be called inside a tokio runtime.
    pub fn new(cluster: ClusterConfig) -> std::io::Result<Self> {
        Self::with_options(cluster, ClientOptions::default())
    }

    /// A client with other patience.
    pub fn with_options(cluster: ClusterConfig, options: ClientOptions) -> std::io::Result<Self> {
        Ok(Self { shell: Shell::start(cluster, options)? })
    }

    /// Sets a key. Returns its new version.
    pub async fn put(&self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Outcome<u64> {
        let outcome = self.write(Write::put(bytes(key), bytes(value))).await;
        outcome.pick(|reply| if let Reply::Put { version } = reply { Some(*version) } else { None })
    }

    /// Reads a key; sees everything that was acknowledged before the call.
    pub async fn get(&self, key: impl AsRef<[u8]>) -> Outcome<Option<Bytes>> {
        self.read(key, Consistency::Linearizable).await.map(|read| read.found.map(|(_, value)| value))
    }

    /// Reads a key with the consistency asked for, or a stronger one: in Byzantine mode all reads are linearizable. The answer says which
    /// one it had.
    pub async fn read(&self, key: impl AsRef<[u8]>, consistency: Consistency) -> Outcome<Read> {
        match self.shell.ask(Ask::Read { key: bytes(key), consistency }).await {
            Done::Read(outcome) => outcome,
            other => unreachable!("a read does not come to {other:?}"),
        }
    }

    /// Reads a key with proof of what replicas signed, in Byzantine mode.
    pub async fn read_proven(&self, key: impl AsRef<[u8]>) -> Outcome<Proven> {
        match self.shell.ask(Ask::Prove { key: bytes(key) }).await {
            Done::Prove(outcome) => *outcome,
            other => unreachable!("a read with proof does not come to {other:?}"),
        }
    }

    /// A slot of the group that owns the key which this client has seen or written; for [`Consistency::Session`].
    pub async fn seen(&self, key: impl AsRef<[u8]>) -> u64 {
        match self.shell.ask(Ask::Seen { key: bytes(key) }).await {
            Done::Seen(slot) => slot,
            other => unreachable!("what was seen does not come to {other:?}"),
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
        let outcome = self.write(Write::cas(bytes(key), expect, value)).await;
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
        match self.shell.ask(Ask::Write(write)).await {
            Done::Write(outcome) => outcome,
            other => unreachable!("a write does not come to {other:?}"),
        }
    }

    /// What a node knows of itself. Asking changes nothing, so every error is a refusal: denied, or unavailable and why.
    pub async fn status(&self, node: NodeId) -> Result<NodeStatus, Refusal> {
        match self.shell.ask(Ask::Status(node)).await {
            Done::Status(status) => status.map(|status| *status),
            other => unreachable!("a status does not come to {other:?}"),
        }
    }

    /// The same, and by how much its clock is ahead of this one's, in microseconds: by so much at least, because what it says was on its
    /// way for a while. None if it has not looked at its clock yet.
    pub async fn status_and_clock(&self, node: NodeId) -> Result<(NodeStatus, Option<i64>), Refusal> {
        let status = self.status(node).await?;
        let ahead = i128::from(status.wall_micros) - i128::from(wall_micros());
        let ahead = i64::try_from(ahead).unwrap_or(if ahead > 0 { i64::MAX } else { i64::MIN });
        let has_looked = status.wall_micros > 0;
        Ok((status, has_looked.then_some(ahead)))
    }

    /// Ends this client and all its clones. What is asked from now on is refused. What is open is waited for, for no longer than its
    /// own deadline. Then the groups forget the client's sessions: what is Unknown by then has been applied, or never will be.
    ///
    /// Asked again it goes on with what stayed open, if anything did. A client that is dropped without it leaves its sessions to be
    /// forgotten after an hour of silence; until then they count in the share of its key.
    pub async fn close(&self) -> Result<(), NotClosed> {
        match self.shell.ask(Ask::Close).await {
            Done::Closed(result) => result,
            other => unreachable!("an end does not come to {other:?}"),
        }
    }

    /// The nodes of the cluster file.
    #[must_use]
    pub fn nodes(&self) -> Vec<NodeId> {
        self.shell.nodes()
    }

    /// The groups of the cluster and the nodes that each lies on, if they are known: from the cluster file in Byzantine mode, else
    /// from the first node that greeted.
    #[must_use]
    pub fn places(&self) -> Vec<(GroupId, Vec<NodeId>)> {
        let known = self.shell.atlas();
        let groups = known.iter().flat_map(|atlas| atlas.places());
        groups.map(|place| (place.group(), place.nodes.clone())).collect()
    }
}

fn bytes(text: impl AsRef<[u8]>) -> Bytes {
    Bytes::copy_from_slice(text.as_ref())
}
