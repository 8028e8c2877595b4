//! What clients may take of a node's transport: of its places, and of its memory before anything can be judged.

use super::clients::KEY_CONNECTIONS_MAX;
use super::protocol::{Versions, WINDOW, client_protocol, idle_config, versions_protocol};
use super::tls::client_crypto;
use super::*;
use crate::ring::NodeId;
use bytes::Bytes;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

const CLUSTER: &str = "a test-77";
const GREETING: &[u8] = b"\x05\0\0\0hello";

/// One node and whoever attacks and uses it, in one process.
struct Scene {
    node: Transport,
    address: SocketAddr,
    key: PublicKey,
    inbox: mpsc::Receiver<Inbound>,
    endpoint: quinn::Endpoint,
}

/// A connection of a client.
struct Held {
    connection: quinn::Connection,
    send: quinn::SendStream,
    _recv: quinn::RecvStream,
}

impl Scene {
    fn new(clients: &[&Identity]) -> Self {
        let node = Identity::from_seed([1; 32]);
        let key = node.public();
        // The port is only known afterwards.
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        drop(socket);
        let settings = TransportSettings {
            node: NodeId(1),
            identity: node,
            listen: address,
            peers: Vec::new(),
            clients: clients.iter().map(|client| client.public()).collect(),
            cluster: CLUSTER.to_string(),
            greeting: Bytes::from_static(GREETING),
        };
        let (inbound, inbox) = mpsc::channel(1024);
        let node = Transport::start(settings, inbound).unwrap();
        let endpoint = quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
        Self { node, address, key, inbox, endpoint }
    }

    /// Shakes hands and nothing more.
    async fn shake_hands(&self, identity: &Identity) -> quinn::Connection {
        let crypto = client_crypto(identity, self.key, vec![client_protocol(CLUSTER)]).unwrap();
        let mut config = quinn::ClientConfig::new(Arc::new(crypto));
        config.transport_config(idle_config(Duration::from_millis(500), WINDOW));
        self.endpoint.connect_with(config, self.address, "tetrachord").unwrap().await.unwrap()
    }

    /// Connects as clients do, and asks nothing; or why it is sent away.
    async fn connect(&self, identity: &Identity) -> Result<Held, quinn::ConnectionError> {
        let connection = self.shake_hands(identity).await;
        let (mut send, mut recv) = connection.open_bi().await?;
        // An empty frame makes the stream known to the node. If it is closed by now, reading tells.
        let _ = send.write_all(&[0; 4]).await;
        match recv.read_exact(&mut [0; GREETING.len()]).await {
            Ok(()) => Ok(Held { connection, send, _recv: recv }),
            Err(_) => Err(connection.closed().await),
        }
    }
}

fn run(test: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test);
}

#[test]
fn a_key_has_so_many_connections_and_others_keep_theirs() {
    let (greedy, honest) = (Identity::from_seed([2; 32]), Identity::from_seed([3; 32]));
    run(async {
        let scene = Scene::new(&[&greedy, &honest]);
        let before = scene.connect(&honest).await.unwrap();
        let mut held = Vec::new();
        for _ in 0..KEY_CONNECTIONS_MAX {
            held.push(scene.connect(&greedy).await.unwrap());
        }
        let refused = scene.connect(&greedy).await.err().unwrap().to_string();
        assert!(refused.contains("this key has too many connections"), "{refused}");
        assert_eq!(scene.node.clients(), KEY_CONNECTIONS_MAX + 1);
        assert!(scene.connect(&honest).await.is_ok());
        assert!(before.connection.close_reason().is_none());
    });
}

#[test]
fn a_connection_on_which_nothing_is_asked_counts_and_is_ended() {
    let client = Identity::from_seed([2; 32]);
    run(async {
        let scene = Scene::new(&[&client]);
        let idle = scene.shake_hands(&client).await;
        while scene.node.clients() == 0 {
            tokio::task::yield_now().await;
        }
        let ended = idle.closed().await;
        assert!(ended.to_string().contains("no stream was opened"), "{ended}");
        assert_eq!(scene.node.clients(), 0);
    });
}

/// A frame of this size.
fn frame(bytes: u32, filled_with: u8) -> Vec<u8> {
    [&bytes.to_le_bytes()[..], &vec![filled_with; bytes as usize]].concat()
}

#[test]
fn frames_that_are_half_here_are_bounded_for_a_key_and_hold_up_no_other() {
    let (greedy, honest) = (Identity::from_seed([2; 32]), Identity::from_seed([3; 32]));
    run(async {
        let mut scene = Scene::new(&[&greedy, &honest]);
        let mut held = Vec::new();
        for _ in 0..40 {
            let mut connected = scene.connect(&greedy).await.unwrap();
            held.push(connected.connection.clone());
            tokio::spawn(async move {
                let whole = frame(2 << 20, 7);
                let _ = connected.send.write_all(&whole[..whole.len() - 1]).await;
                std::future::pending::<()>().await;
            });
        }
        // Others send whole frames as large as values may be, all the time.
        let mut others = scene.connect(&honest).await.unwrap();
        for turn in 0..10u8 {
            let whole = frame(1 << 20, turn);
            let sending = async { others.send.write_all(&whole).await.unwrap() };
            let ((), received) = tokio::join!(sending, scene.inbox.recv());
            let Some(Inbound::ClientFrame { frame, .. }) = received else { panic!("{received:?}") };
            assert_eq!((frame.body.len(), frame.body[0]), (1 << 20, turn));
        }
        // QUIC lets go out what there is room for on the other side.
        let arrived: u64 = held.iter().map(|connection| connection.stats().udp_tx.bytes).sum();
        assert!(arrived < 48 << 20, "{} MiB", arrived >> 20);
    });
}

#[test]
fn frames_that_wait_for_the_node_are_bounded_for_a_key_and_hold_up_no_other() {
    let (greedy, honest) = (Identity::from_seed([2; 32]), Identity::from_seed([3; 32]));
    run(async {
        let mut scene = Scene::new(&[&greedy, &honest]);
        let mut others = scene.connect(&honest).await.unwrap();
        for _ in 0..40 {
            let mut connected = scene.connect(&greedy).await.unwrap();
            tokio::spawn(async move {
                let _ = connected.send.write_all(&[frame(1 << 20, 7), frame(1 << 20, 7)].concat()).await;
                std::future::pending::<()>().await;
            });
        }
        // The node is busy with the frames of the one, and takes those of the other all the same.
        let mut held = Vec::new();
        for turn in 0..40u8 {
            let whole = frame(1 << 20, turn);
            let receive = async {
                while let Some(Inbound::ClientFrame { client, frame, .. }) = scene.inbox.recv().await {
                    if client.0 == honest.public().0 {
                        return frame.body[0];
                    }
                    held.push(frame);
                }
                unreachable!("the node goes on");
            };
            let sending = async { others.send.write_all(&whole).await.unwrap() };
            let ((), received) = tokio::join!(sending, receive);
            assert_eq!(received, turn);
        }
        assert!((1..=16).contains(&held.len()), "{} MiB of one key wait for the node", held.len());
    });
}

/// How many bytes of frames arrive of a key, read slowly or as others are, of all that it sends while another key's 2,000 frames arrive.
fn arrive_beside(is_slow: bool, sent: &'static [u8]) -> usize {
    let (greedy, honest) = (Identity::from_seed([2; 32]), Identity::from_seed([3; 32]));
    let mut arrived = 0;
    run(async {
        let mut scene = Scene::new(&[&greedy, &honest]);
        let mut others = scene.connect(&honest).await.unwrap();
        for _ in 0..4 {
            let mut connected = scene.connect(&greedy).await.unwrap();
            tokio::spawn(async move {
                let _ = connected.send.write_all(sent).await;
                std::future::pending::<()>().await;
            });
        }
        let slow_down = |node: &Transport| {
            if is_slow {
                node.slow(crate::shares::ClientId(greedy.public().0));
            }
        };
        slow_down(&scene.node);
        let sending = async { others.send.write_all(&frame(1 << 10, 1).repeat(2_000)).await.unwrap() };
        let receive = async {
            let mut received = 0;
            while received < 2_000 {
                let Some(Inbound::ClientFrame { client, frame, .. }) = scene.inbox.recv().await else {
                    panic!("it goes on")
                };
                if client.0 == honest.public().0 {
                    received += 1;
                } else {
                    arrived += frame.body.len();
                    // It is still no better.
                    slow_down(&scene.node);
                }
            }
        };
        tokio::join!(sending, receive);
    });
    arrived
}

#[test]
fn a_key_that_is_read_slowly_holds_up_no_other_whatever_it_sends() {
    for (bytes, count) in [(1 << 10, 4_000), (8, 400_000), (1 << 20, 16)] {
        let sent = &*frame(bytes, 7).repeat(count).leak();
        let (usual, slow) = (arrive_beside(false, sent), arrive_beside(true, sent));
        assert!(
            slow <= (usual / 4).max(bytes as usize),
            "frames of {bytes} bytes: {slow} bytes arrived, {usual} if nothing is done"
        );
    }
}

/// Programs and nodes of different builds, or of different records of one cluster, say so to each other.
#[test]
fn whoever_speaks_another_version_is_told_which_is_spoken() {
    let client = Identity::from_seed([2; 32]);
    run(async {
        let scene = Scene::new(&[&client]);
        let told = async |protocol: &[u8]| {
            let protocols = vec![protocol.to_vec(), versions_protocol(CLUSTER)];
            let crypto = client_crypto(&client, scene.key, protocols).unwrap();
            let mut config = quinn::ClientConfig::new(Arc::new(crypto));
            config.transport_config(idle_config(Duration::from_millis(500), WINDOW));
            let connecting = scene.endpoint.connect_with(config, scene.address, "tetrachord").unwrap();
            Versions::told(&connecting.await.unwrap().closed().await)
        };
        assert_eq!(told(b"tetrachord-client/9/a test-77").await, Some(Versions::OURS));
        assert_eq!(told(&client_protocol("a test-88")).await, Some(Versions::OURS));
        assert!(scene.connect(&client).await.is_ok(), "others are not disturbed");
        // What programs say of it, and of a cluster that has another name: that one is told nothing.
        let address = crate::ring::Address::from(scene.address);
        let endpoint = ClientEndpoint::new([&address]).unwrap();
        let patience = Patience { silence: Duration::from_secs(5), handshake: Duration::from_secs(5) };
        for cluster in ["a test-88", "another-77"] {
            let dialled = ClientLink::connect(&endpoint, &client, &address, scene.key, cluster, patience);
            let denied = dialled.await.unwrap_err();
            assert_eq!(denied, LinkError::Denied(Denial::Cluster(scene.address.into())), "{cluster}");
        }
    });
}
