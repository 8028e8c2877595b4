//! A client's connection to one node.

use super::frames::take_frame;
use super::look_up::look_up;
use super::outbox::{Outbox, Pushed, write_frames};
use super::protocol::{Versions, WINDOW, client_protocol, idle_config, versions_protocol};
use super::tls::{Identity, PublicKey, client_crypto};
use crate::limits::PEER_FRAME_BYTES_MAX;
use crate::ring::Address;
use bytes::{Bytes, BytesMut};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use thiserror::Error;
use tokio::sync::mpsc;
use tokio::time::timeout;

/// Why there is no connection.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum LinkError {
    /// Whoever answers there does not want this client, or is not who it should be. Waiting will not help.
    #[error("{0}")]
    Denied(Denial),
    /// Nobody answers.
    #[error("cannot reach {address}: {reason}")]
    Unreachable {
        /// The node's address.
        address: Address,
        /// Why not.
        reason: String,
    },
}

/// Why somebody is denied.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Denial {
    /// The node does not know the client's key, or the client the node's.
    #[error("{0} refuses this client's key, or is not the node that the cluster file names")]
    Key(Address),
    /// The node belongs to another cluster than the cluster file tells of.
    #[error(
        "{0} belongs to another cluster than this cluster file, or to this one before or after its genesis record was changed; \
         the cluster file's `protocol` must fit the record that the nodes have"
    )]
    Cluster(Address),
    /// The node speaks another version.
    #[error(
        "{address} speaks version {theirs} of the protocol with clients, and this program version {ours}: use a program of the \
         version that the cluster runs"
    )]
    Version {
        /// The node's address.
        address: Address,
        /// What it speaks.
        theirs: u32,
        /// What this build speaks.
        ours: u32,
    },
}

/// How long a connection may take to open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// Until the node is first heard.
    pub silence: Duration,
    /// From then on, until it has greeted.
    pub handshake: Duration,
}

/// An open connection: frames go out by [`Self::send`] and come in through the receiver given at the start.
#[derive(Debug)]
pub struct ClientLink {
    connection: quinn::Connection,
    outbox: Outbox,
}

/// A client hears from a living node at least this often.
const KEEP_ALIVE: Duration = Duration::from_millis(200);

/// Frames that may wait to be looked at; QUIC tells the node.
const FRAMES_WAITING_MAX: usize = 64;

/// Bytes of requests that may wait for one connection.
const OUTBOX_BYTES: usize = 64 << 20;

/// A socket from which a client dials nodes.
#[derive(Clone, Debug)]
pub struct ClientEndpoint(quinn::Endpoint, Arc<Mutex<BTreeMap<Address, usize>>>);

impl ClientEndpoint {
    /// Takes any free port. Must be called inside a tokio runtime. Where a name may have addresses of both kinds, and the machine has
    /// IPv6, one socket reaches both.
    pub fn new<'a>(nodes: impl IntoIterator<Item = &'a Address>) -> std::io::Result<Self> {
        let open = |any: &str| quinn::Endpoint::client(any.parse().expect("a valid address"));
        let is_ipv4 = |address: &Address| address.ip().is_some_and(|ip| ip.is_ipv4());
        let (plain, both) = ("0.0.0.0:0", "[::]:0");
        let only_ipv4 = nodes.into_iter().all(is_ipv4);
        let endpoint = if only_ipv4 { open(plain) } else { open(both).or_else(|_| open(plain)) };
        Ok(Self(endpoint?, Arc::default()))
    }

    fn is_ipv6(&self) -> bool {
        self.0.local_addr().is_ok_and(|address| address.is_ipv6())
    }

    /// Of a name with several addresses another one is tried each time.
    fn turn(&self, address: &Address) -> usize {
        let mut turns = self.1.lock().expect("never held while panicking");
        let turn = turns.entry(address.clone()).or_default();
        std::mem::replace(turn, turn.wrapping_add(1))
    }
}

impl ClientLink {
    /// Connects to a node and waits for its greeting, which is returned with the link and the frames to come. Only then
    /// is it known that the node accepts this client's key.
    pub async fn connect(
        endpoint: &ClientEndpoint,
        identity: &Identity,
        address: &Address,
        key: PublicKey,
        cluster: &str,
        patience: Patience,
    ) -> Result<(Self, Bytes, mpsc::Receiver<Bytes>), LinkError> {
        let unreachable = |reason: String| LinkError::Unreachable { address: address.clone(), reason };
        let late = |limit: Duration| unreachable(format!("no answer within {} ms", limit.as_millis()));
        let attempt = async {
            let crypto =
                client_crypto(identity, key, vec![client_protocol(cluster), versions_protocol(cluster)]);
            let mut config =
                quinn::ClientConfig::new(Arc::new(crypto.map_err(|error| unreachable(error.to_string()))?));
            config.transport_config(idle_config(KEEP_ALIVE, WINDOW));
            let at =
                look_up(address, endpoint.is_ipv6(), endpoint.turn(address)).await.map_err(unreachable)?;
            let connecting = endpoint.0.connect_with(config, at, "tetrachord");
            let mut connecting = connecting.map_err(|error| unreachable(error.to_string()))?;
            timeout(patience.silence, connecting.handshake_data())
                .await
                .map_err(|_| late(patience.silence))?
                .map_err(|error| classify(address, &error))?;
            let connection = connecting.await.map_err(|error| classify(address, &error))?;
            let opened = connection.open_bi().await;
            let (send, recv) = opened.map_err(|error| classify(address, &error))?;
            let outbox = Outbox::new(OUTBOX_BYTES);
            outbox.open();
            // An empty frame makes the stream known to the node.
            outbox.push(Bytes::from_static(&[0; 4]));
            tokio::spawn(write_frames(outbox.clone(), send));
            let (frames, mut inbox) = mpsc::channel(FRAMES_WAITING_MAX);
            tokio::spawn(read_frames(recv, frames, connection.clone()));
            // From here on whoever waits no more ends the connection, too, and with it what reads and writes.
            let link = Self { connection, outbox };
            match inbox.recv().await {
                Some(greeting) => Ok((link, greeting, inbox)),
                None => Err(link.connection.close_reason().map_or_else(
                    || unreachable("closed before it greeted".to_string()),
                    |reason| classify(address, &reason),
                )),
            }
        };
        let limit = patience.silence + patience.handshake;
        timeout(limit, attempt).await.unwrap_or_else(|_| Err(late(limit)))
    }

    /// Queues a frame; false if the connection is gone or too much waits.
    #[must_use]
    pub fn send(&self, frame: Bytes) -> bool {
        self.connection.close_reason().is_none() && self.outbox.push(frame) == Pushed::Queued
    }

    /// Packets that have come from the node so far. A node that lives says of every packet that it has arrived.
    #[must_use]
    pub fn packets_received(&self) -> u64 {
        self.connection.stats().udp_rx.datagrams
    }

    /// How long a packet and its acknowledgement take, as measured.
    #[must_use]
    pub fn round_trip(&self) -> Duration {
        self.connection.rtt()
    }

    /// Ends the connection: whoever waits on it is told.
    pub fn close(&self) {
        self.connection.close(0u32.into(), b"");
    }

    /// Whether the connection is gone.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.connection.close_reason().is_some()
    }
}

impl Drop for ClientLink {
    fn drop(&mut self) {
        self.outbox.close();
        self.connection.close(0u32.into(), b"");
    }
}

/// The alerts of TLS are codes from here on; one of them says that there is no protocol in common.
const TLS_ALERTS: std::ops::Range<u64> = 0x100..0x200;
const NO_PROTOCOL: u64 = 0x100 + 120;

/// TLS alerts mean that waiting will not help.
fn classify(address: &Address, error: &quinn::ConnectionError) -> LinkError {
    if let Some(Versions { client: theirs, .. }) = Versions::told(error) {
        let ours = Versions::OURS.client;
        let is_other = theirs != ours;
        let denial = if is_other {
            Denial::Version { address: address.clone(), theirs, ours }
        } else {
            Denial::Cluster(address.clone())
        };
        return LinkError::Denied(denial);
    }
    let code = match error {
        quinn::ConnectionError::ConnectionClosed(close) => u64::from(close.error_code),
        quinn::ConnectionError::TransportError(error) => u64::from(error.code),
        quinn::ConnectionError::ApplicationClosed(close) if close.error_code == 3u32.into() => {
            return LinkError::Denied(Denial::Key(address.clone()));
        }
        _ => 0,
    };
    match code {
        NO_PROTOCOL => LinkError::Denied(Denial::Cluster(address.clone())),
        code if TLS_ALERTS.contains(&code) => LinkError::Denied(Denial::Key(address.clone())),
        _ => LinkError::Unreachable { address: address.clone(), reason: error.to_string() },
    }
}

/// Hands frames on until the stream ends, nobody wants them, or one is too large; then the connection is of no use.
async fn read_frames(
    mut stream: quinn::RecvStream,
    frames: mpsc::Sender<Bytes>,
    connection: quinn::Connection,
) {
    let mut buffer = BytesMut::new();
    'stream: while let Ok(Some(chunk)) = stream.read_chunk(usize::MAX, true).await {
        buffer.extend_from_slice(&chunk.bytes);
        while let Some(body) = take_frame(&mut buffer, PEER_FRAME_BYTES_MAX) {
            let Ok(body) = body else { break 'stream };
            if frames.send(body).await.is_err() {
                break 'stream;
            }
        }
    }
    // If the connection is gone already, why it went is what the caller wants to know.
    if connection.close_reason().is_none() {
        connection.close(0u32.into(), b"");
    }
}
