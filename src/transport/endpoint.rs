//! The node's QUIC endpoint: accepts nodes and clients, and hands their frames to the node in order.

use super::clients::{Clients, Share};
use super::door::{Door, HANDSHAKE_PATIENCE, Knock};
use super::outbox::write_frames;
use super::peers::{Link, PeerAddress, dial};
use super::protocol::{
    self, FIRST_WINDOW, KEEP_ALIVE, WINDOW, client_protocol, idle_config, peer_protocol, versions_protocol,
};
use super::reading::{Allowance, frames_of};
use super::tls::{Identity, PublicKey, peer_key, server_crypto};
use super::watch::{Watch, WatchedRuntime};
use crate::limits::CLIENT_FRAME_BYTES_MAX;
use crate::ring::NodeId;
use crate::shares::ClientId;
use crate::ticket::ConnectionId;
use bytes::Bytes;
use quinn_proto::HashedConnectionIdGenerator;
use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

/// What arrives.
#[derive(Debug)]
pub enum Inbound {
    /// Another node can be heard.
    PeerUp {
        /// The node.
        node: NodeId,
        /// Counts the connections to it.
        link: u64,
    },
    /// Another node cannot be heard any more.
    PeerDown {
        /// The node.
        node: NodeId,
        /// Of the connection that ended.
        link: u64,
    },
    /// A frame from another node.
    PeerFrame {
        /// The node, as proved by its key.
        from: NodeId,
        /// Of the connection that it came over: what was read from an old one may come after a new one is up.
        link: u64,
        /// The frame.
        frame: Frame,
    },
    /// A frame from a client.
    ClientFrame {
        /// Its connection.
        connection: ConnectionId,
        /// The client, as proved by its key.
        client: ClientId,
        /// The frame.
        frame: Frame,
    },
    /// A client is gone.
    ClientGone {
        /// Its connection.
        connection: ConnectionId,
    },
}

/// A frame that has arrived. Until it is dropped it counts against the bytes that may wait for the node.
#[derive(Debug)]
pub struct Frame {
    /// The frame's body.
    pub body: Bytes,
    _room: OwnedSemaphorePermit,
    /// Of a client: room of its key's share.
    _share: Option<OwnedSemaphorePermit>,
}

/// Bytes of frames that may wait for the node, of other nodes and of clients; readers wait beyond it, and QUIC tells the senders. Nodes
/// do not wait for clients.
const INBOX_BYTES: usize = 64 << 20;

/// A frame counts as if it had so many bytes: it costs work, too.
const INBOX_FRAME_BYTES: usize = 16 << 10;

/// What a transport needs to know.
#[derive(Debug)]
pub struct TransportSettings {
    /// This node.
    pub node: NodeId,
    /// Its key.
    pub identity: Identity,
    /// Where it listens.
    pub listen: SocketAddr,
    /// All other nodes.
    pub peers: Vec<PeerAddress>,
    /// Keys of the clients that may connect.
    pub clients: BTreeSet<PublicKey>,
    /// Part of the protocol's name, so that clusters do not mix.
    pub cluster: String,
    /// The first frame that every client gets.
    pub greeting: Bytes,
}

/// Connections that have knocked and were not looked at yet, and bytes of what they say.
const KNOCKING_MAX: usize = 4096;
const KNOCKING_BYTES: u64 = 16 << 20;

/// A client that has shaken hands must open its stream within this time.
const STREAM_PATIENCE: Duration = Duration::from_secs(3);

/// What the tasks of a transport share.
#[derive(Clone)]
pub(super) struct Shared {
    pub(super) endpoint: quinn::Endpoint,
    pub(super) identity: Identity,
    pub(super) peer_protocol: Vec<u8>,
    pub(super) versions_protocol: Vec<u8>,
    pub(super) watch: Watch,
    inbound: mpsc::Sender<Inbound>,
    room: Arc<Semaphore>,
    clients_room: Arc<Semaphore>,
    clients: Clients,
}

impl Shared {
    /// Tells the node; waits if it is behind.
    pub(super) async fn tell(&self, inbound: Inbound) {
        // If the node is gone, so is the process.
        let _ = self.inbound.send(inbound).await;
    }

    /// Makes room for a frame of a node, or of a client with this share; waits if too many bytes wait already.
    pub(super) async fn admit(&self, body: Bytes, share: Option<&Share>) -> Frame {
        let bytes = body.len().max(INBOX_FRAME_BYTES);
        // Of its own share first: what a key has waiting for the room of all is bounded, too.
        let (of_share, room) = match share {
            Some(share) => (Some(share.room_in_inbox(bytes).await), &self.clients_room),
            None => (None, &self.room),
        };
        let bytes = u32::try_from(bytes).expect("frames are a few MiB at most");
        let room = Arc::clone(room).acquire_many_owned(bytes).await.expect("the semaphore is never closed");
        Frame { body, _room: room, _share: of_share }
    }
}

/// The node's side of all its connections.
pub struct Transport {
    shared: Shared,
    links: BTreeMap<NodeId, Arc<Link>>,
    alarm: Option<oneshot::Receiver<String>>,
}

impl std::fmt::Debug for Transport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Transport").field("links", &self.links).finish_non_exhaustive()
    }
}

/// A socket for both kinds of addresses is one for IPv4 where the machine has no other.
fn bind(listen: SocketAddr) -> std::io::Result<std::net::UdpSocket> {
    let socket = std::net::UdpSocket::bind(listen);
    match &socket {
        Err(error)
            if listen.is_ipv6() && listen.ip().is_unspecified() && error.kind() != ErrorKind::AddrInUse =>
        {
            std::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, listen.port()))
        }
        _ => socket,
    }
}

impl Transport {
    /// Binds the address, accepts connections and dials the nodes with higher numbers. Must be called inside a tokio
    /// runtime.
    pub fn start(settings: TransportSettings, inbound: mpsc::Sender<Inbound>) -> anyhow::Result<Self> {
        let peer_protocol = peer_protocol(&settings.cluster);
        let versions_protocol = versions_protocol(&settings.cluster);
        let protocols =
            vec![peer_protocol.clone(), client_protocol(&settings.cluster), versions_protocol.clone()];
        let peers: BTreeMap<PublicKey, NodeId> =
            settings.peers.iter().map(|peer| (peer.key, peer.node)).collect();
        let keys = peers.keys().copied().chain(settings.clients.iter().copied()).collect();
        let crypto = server_crypto(&settings.identity, keys, protocols)?;
        let mut config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
        config.transport_config(idle_config(KEEP_ALIVE, FIRST_WINDOW));
        config.max_incoming(KNOCKING_MAX).incoming_buffer_size_total(KNOCKING_BYTES);
        let reset_key =
            ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &settings.identity.derive("tetrachord reset v1"));
        let socket = bind(settings.listen).map_err(|error| {
            let listen = settings.listen;
            anyhow::anyhow!(
                "cannot listen on {listen} (UDP): {error}. Is another node running, or the port taken?"
            )
        })?;
        // With keys that survive a restart, peers learn at once that their old connection is void: the new process
        // recognises its old connection ids and can prove that it forgot them.
        let cid_key =
            u64::from_be_bytes(settings.identity.derive("tetrachord connection ids v1")[..8].try_into()?);
        let mut endpoint_config = quinn::EndpointConfig::new(Arc::new(reset_key));
        endpoint_config.cid_generator(move || Box::new(HashedConnectionIdGenerator::from_key(cid_key)));
        let (watch, alarm) = Watch::new();
        let runtime = Arc::new(WatchedRuntime(watch.clone()));
        let endpoint = quinn::Endpoint::new(endpoint_config, Some(config), socket, runtime)?;
        let identity = settings.identity;
        let shared = Shared {
            endpoint,
            identity,
            peer_protocol,
            versions_protocol,
            watch,
            inbound,
            room: Arc::new(Semaphore::new(INBOX_BYTES)),
            clients_room: Arc::new(Semaphore::new(INBOX_BYTES)),
            clients: Clients::default(),
        };
        let links: BTreeMap<NodeId, Arc<Link>> =
            settings.peers.into_iter().map(|peer| (peer.node, Arc::new(Link::new(peer)))).collect();
        for link in links.values().filter(|link| link.peer.node > settings.node) {
            shared.watch.spawn_for_ever("dial a node", dial(Arc::clone(link), shared.clone()));
        }
        let by_key =
            peers.into_iter().filter_map(|(key, node)| Some((key, Arc::clone(links.get(&node)?)))).collect();
        let accepting = accept(shared.clone(), by_key, settings.clients, settings.greeting);
        shared.watch.spawn_for_ever("accept connections", accepting);
        Ok(Self { shared, links, alarm: Some(alarm) })
    }

    /// Waits until a task is lost without which the node is not whole, and says what happened. To be asked for once.
    pub fn failure(&mut self) -> impl Future<Output = String> + use<> {
        let alarm = self.alarm.take();
        async move {
            match alarm {
                Some(alarm) => alarm.await.unwrap_or_else(|_| "the network has ended".to_string()),
                None => std::future::pending().await,
            }
        }
    }

    /// For tests: as if the socket had failed for good.
    #[cfg(test)]
    pub(crate) fn lose_socket(&self) {
        self.shared.endpoint.close(0u32.into(), b"");
    }

    /// Queues a frame for another node; false if there is no link, or too much waits already.
    pub fn send(&self, to: NodeId, class: usize, frame: Bytes) -> bool {
        self.links.get(&to).is_some_and(|link| link.send(class, frame))
    }

    /// Queues an answer for a client. A client that leaves its answers unread is disconnected.
    pub fn answer(&self, connection: ConnectionId, frame: Bytes) {
        self.shared.clients.answer(connection, frame);
    }

    /// Ends a client's connection and tells it why.
    pub fn disconnect(&self, connection: ConnectionId, reason: &str) {
        self.shared.clients.disconnect(connection, reason);
    }

    /// Reads slowly what this client sends next, on all its connections.
    pub fn slow(&self, client: ClientId) {
        self.shared.clients.slow(PublicKey(client.0));
    }

    /// For tests: how many client connections there are.
    #[cfg(test)]
    pub(super) fn clients(&self) -> usize {
        self.shared.clients.count()
    }
}

async fn accept(
    shared: Shared,
    peers: BTreeMap<PublicKey, Arc<Link>>,
    clients: BTreeSet<PublicKey>,
    greeting: Bytes,
) {
    let peers = Arc::new(peers);
    let clients = Arc::new(clients);
    let door = Door::default();
    while let Some(incoming) = shared.endpoint.accept().await {
        let handshake = match door.knock(incoming.remote_address().ip(), incoming.remote_address_validated())
        {
            Knock::Enter(handshake) => handshake,
            Knock::ProveAddress => {
                // Whoever cannot be asked to prove it has proved it.
                drop(incoming.retry());
                continue;
            }
            Knock::Ignored => {
                incoming.ignore();
                continue;
            }
        };
        let (shared, peers, clients) = (shared.clone(), Arc::clone(&peers), Arc::clone(&clients));
        let greeting = greeting.clone();
        let watch = shared.watch.clone();
        watch.spawn("serve a connection", async move {
            let address = incoming.remote_address();
            let connected = tokio::time::timeout(HANDSHAKE_PATIENCE, incoming).await;
            drop(handshake);
            let connection = match connected {
                Ok(Ok(connection)) => connection,
                Ok(Err(error)) => return tracing::info!(%address, %error, "refused a connection"),
                Err(_) => return tracing::info!(%address, "a handshake took too long"),
            };
            let Some(key) = peer_key(&connection) else { return };
            let protocol = protocol::of(&connection);
            if protocol == shared.versions_protocol {
                tracing::warn!(%key, %address, "refused: speaks another version, or for another cluster");
                return connection
                    .close(protocol::VERSIONS_CODE.into(), &protocol::Versions::OURS.to_bytes());
            }
            let is_peer_protocol = protocol == shared.peer_protocol;
            match peers.get(&key) {
                Some(link) if is_peer_protocol => {
                    tracing::info!(peer = %link.peer.node, %address, "connected");
                    connection.set_receive_window(WINDOW.into());
                    link.serve(connection, &shared).await;
                }
                _ if !is_peer_protocol && clients.contains(&key) => {
                    serve_client(connection, key, &shared, greeting).await;
                }
                _ => {
                    tracing::warn!(%key, %address, "refused: this key may not speak this protocol");
                    connection.close(3u32.into(), b"this key may not speak this protocol");
                }
            }
        });
    }
}

async fn serve_client(connection: quinn::Connection, key: PublicKey, shared: &Shared, greeting: Bytes) {
    let place = match shared.clients.admit(key, &connection) {
        Ok(place) => place,
        Err(reason) => return connection.close(4u32.into(), reason.as_bytes()),
    };
    let Ok(Ok((send, recv))) = tokio::time::timeout(STREAM_PATIENCE, connection.accept_bi()).await else {
        return connection.close(6u32.into(), b"no stream was opened");
    };
    let id = place.id;
    tokio::time::sleep(place.rest()).await;
    place.outbox.open();
    place.outbox.push(greeting);
    let writer = shared.watch.spawn("write to a client", write_frames(place.outbox.clone(), send));
    let allowance = Allowance::new(connection.clone(), Arc::clone(&place.share));
    let wrap = move |frame| Inbound::ClientFrame { connection: id, client: ClientId(key.0), frame };
    frames_of(recv, CLIENT_FRAME_BYTES_MAX, shared.clone(), Some(allowance), wrap).await;
    writer.abort();
    connection.close(0u32.into(), b"");
    drop(place);
    shared.tell(Inbound::ClientGone { connection: id }).await;
}
