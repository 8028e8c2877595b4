//! Links to the other nodes: one connection each, dialled by the lower number, renewed when it is lost.

use super::endpoint::{Inbound, Shared};
use super::look_up::LookUp;
use super::outbox::{Outbox, Pushed, write_frames};
use super::protocol::{self, KEEP_ALIVE, Versions, WINDOW, idle_config};
use super::reading::frames_of;
use super::tls::{PublicKey, client_crypto};
use crate::limits::PEER_FRAME_BYTES_MAX;
use crate::ring::{Address, NodeId};
use bytes::Bytes;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Where another node is, and who it must be.
#[derive(Clone, Debug)]
pub struct PeerAddress {
    /// The node.
    pub node: NodeId,
    /// Its address.
    pub address: Address,
    /// Its key.
    pub key: PublicKey,
}

/// Streams to a peer, most urgent first.
pub(super) const CLASSES: usize = 3;

/// Bytes that may wait for one stream to a peer.
const OUTBOX_BYTES: usize = 24 << 20;

/// How long a dialled peer may take to answer. Short, because a new attempt finds a peer that has just come up sooner
/// than the ever rarer packets of an old one.
const DIAL_TIMEOUT: Duration = Duration::from_millis(400);

/// Pauses between attempts to dial.
const DIAL_PAUSES_MILLIS: [u64; 4] = [20, 50, 100, 200];

/// The link to one other node.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) peer: PeerAddress,
    outboxes: [Outbox; CLASSES],
    /// Counts the connections; a connection that is not the latest lets go.
    generation: AtomicU64,
    current: Mutex<Option<quinn::Connection>>,
    /// The connection of which it was told that it is up: whoever ends last tells that it is down.
    told: Mutex<Option<u64>>,
}

impl Link {
    pub(super) fn new(peer: PeerAddress) -> Self {
        let outboxes = std::array::from_fn(|_| Outbox::new(OUTBOX_BYTES));
        Self {
            peer,
            outboxes,
            generation: AtomicU64::new(0),
            current: Mutex::new(None),
            told: Mutex::new(None),
        }
    }

    /// Queues a frame; true if it was.
    pub(super) fn send(&self, class: usize, frame: Bytes) -> bool {
        assert!(class < CLASSES, "there is a stream for each class");
        self.outboxes[class].push(frame) == Pushed::Queued
    }

    /// Uses a connection until it ends or a newer one takes its place.
    pub(super) async fn serve(&self, connection: quinn::Connection, shared: &Shared) {
        let generation = self.generation.fetch_add(1, Ordering::SeqCst) + 1;
        let before = self.current.lock().expect("never held while panicking").replace(connection.clone());
        if let Some(before) = before {
            before.close(0u32.into(), b"replaced by a newer connection");
        }
        let writers = self.start_writers(&connection, shared).await;
        let node = self.peer.node;
        let mut is_up = false;
        // The link counts as up when the other side has spoken: until then it may still refuse our key.
        let reason = loop {
            let stream = match connection.accept_uni().await {
                Ok(stream) => stream,
                // Why it ended is known here: once it is closed from here, too, that is all that is known.
                Err(reason) => break reason,
            };
            if !is_up {
                is_up = true;
                self.told.lock().expect("never held while panicking").replace(generation);
                shared.tell(Inbound::PeerUp { node, link: generation }).await;
            }
            let frames = frames_of(stream, PEER_FRAME_BYTES_MAX, shared.clone(), None, move |frame| {
                Inbound::PeerFrame { from: node, link: generation, frame }
            });
            // A link with a dead stream would lose one class of frames for ever; a new one is dialled instead.
            let connection = connection.clone();
            shared.watch.spawn("read from a node", async move {
                frames.await;
                if connection.close_reason().is_none() {
                    connection.close(0u32.into(), b"a stream has ended");
                }
            });
        };
        connection.close(0u32.into(), b"");
        for writer in writers {
            writer.abort();
        }
        if self.generation.load(Ordering::SeqCst) == generation {
            for outbox in &self.outboxes {
                outbox.close();
            }
            let told = self.told.lock().expect("never held while panicking").take();
            if let Some(link) = told {
                tracing::info!(peer = %node, reason = in_words(&reason), "link lost");
                shared.tell(Inbound::PeerDown { node, link }).await;
            }
        }
    }

    async fn start_writers(
        &self,
        connection: &quinn::Connection,
        shared: &Shared,
    ) -> Vec<tokio::task::JoinHandle<()>> {
        let mut writers = Vec::new();
        for (class, outbox) in self.outboxes.iter().enumerate() {
            let Ok(stream) = connection.open_uni().await else {
                break;
            };
            let urgency = i32::try_from(CLASSES - class).expect("few classes");
            let _ = stream.set_priority(urgency);
            outbox.open();
            // An empty frame makes the stream known to the other side at once.
            outbox.push(Bytes::from_static(&[0; 4]));
            writers.push(shared.watch.spawn("write to a node", write_frames(outbox.clone(), stream)));
        }
        writers
    }
}

/// Why a link ended, for people.
fn in_words(reason: &quinn::ConnectionError) -> String {
    if let Some(Versions { peer: theirs, .. }) = Versions::told(reason) {
        let ours = Versions::OURS.peer;
        return if theirs == ours {
            "it belongs to another cluster, or has another genesis record".to_string()
        } else {
            format!("it speaks version {theirs} of the protocol between nodes, and this node version {ours}")
        };
    }
    match reason {
        quinn::ConnectionError::LocallyClosed => {
            "a stream of it had ended, or a newer link took its place".to_string()
        }
        quinn::ConnectionError::TimedOut => "nothing was heard any more".to_string(),
        quinn::ConnectionError::Reset => "the other node was started again".to_string(),
        quinn::ConnectionError::ApplicationClosed(closed) => {
            let said = String::from_utf8_lossy(&closed.reason);
            let said = if said.is_empty() { "no reason".into() } else { said };
            format!("the other node closed it: {said}")
        }
        other => other.to_string(),
    }
}

/// Dials a peer again and again, for as long as the node lives.
pub(super) async fn dial(link: Arc<Link>, shared: Shared) {
    let mut failures = 0usize;
    let mut look_up = LookUp::new(link.peer.address.clone());
    let is_ipv6 = shared.endpoint.local_addr().is_ok_and(|address| address.is_ipv6());
    loop {
        let dialled = match look_up.next(is_ipv6).await {
            Ok(at) => dial_once(&link, &shared, at).await.map(|connection| (connection, at)),
            Err(reason) => Err(reason),
        };
        match dialled {
            Ok((connection, at)) => {
                failures = 0;
                look_up.reached(at);
                tracing::info!(peer = %link.peer.node, address = %link.peer.address, "connected");
                link.serve(connection, &shared).await;
            }
            Err(reason) => {
                if failures == 0 || failures.is_multiple_of(50) {
                    tracing::info!(peer = %link.peer.node, address = %link.peer.address, %reason, "cannot connect");
                }
                failures += 1;
                look_up.failed();
            }
        }
        let pause = DIAL_PAUSES_MILLIS[failures.min(DIAL_PAUSES_MILLIS.len() - 1)];
        tokio::time::sleep(Duration::from_millis(pause)).await;
    }
}

async fn dial_once(link: &Link, shared: &Shared, at: SocketAddr) -> Result<quinn::Connection, String> {
    let crypto = client_crypto(
        &shared.identity,
        link.peer.key,
        vec![shared.peer_protocol.clone(), shared.versions_protocol.clone()],
    );
    let mut config = quinn::ClientConfig::new(Arc::new(crypto.map_err(|error| error.to_string())?));
    config.transport_config(idle_config(KEEP_ALIVE, WINDOW));
    let connecting = shared.endpoint.connect_with(config, at, "tetrachord");
    let connecting = connecting.map_err(|error| error.to_string())?;
    let dialled = async {
        let connection = connecting.await.map_err(|error| error.to_string())?;
        if protocol::of(&connection) == shared.versions_protocol {
            return Err(in_words(&connection.closed().await));
        }
        Ok(connection)
    };
    tokio::time::timeout(DIAL_TIMEOUT, dialled).await.unwrap_or_else(|_| Err("no answer".to_string()))
}
