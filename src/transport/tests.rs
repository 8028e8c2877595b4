//! What clients may take of a node's transport: of its places, and of its memory before anything can be judged.

use super::clients::KEY_CONNECTIONS_MAX;
use super::endpoint::{WINDOW, client_protocol, idle_config};
use super::tls::client_crypto;
use super::*;
use crate::ring::NodeId;
use bytes::Bytes;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

const CLUSTER: &str = "a test";

/// Attacks and uses one node, in one process.
struct Scene {
    node: Transport,
    address: SocketAddr,
    key: PublicKey,
    inbox: mpsc::Receiver<Inbound>,
    endpoint: quinn::Endpoint,
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
            clients: clients.iter().map(|client| client.public()).collect::<BTreeSet<_>>(),
            cluster: CLUSTER.to_string(),
            greeting: Bytes::from_static(&[5, 0, 0, 0, b'h', b'e', b'l', b'l', b'o']),
        };
        let (inbound, inbox) = mpsc::channel(1024);
        let node = Transport::start(settings, inbound).unwrap();
        let endpoint = quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
        Self { node, address, key, inbox, endpoint }
    }

    /// Shakes hands and nothing more.
    async fn shake_hands(&self, identity: &Identity) -> quinn::Connection {
        let crypto = client_crypto(identity, self.key, client_protocol(CLUSTER)).unwrap();
        let mut config = quinn::ClientConfig::new(Arc::new(crypto));
        config.transport_config(idle_config(Duration::from_millis(500), WINDOW));
        self.endpoint.connect_with(config, self.address, "tetrachord").unwrap().await.unwrap()
    }

    /// Shakes hands and opens the stream, but asks nothing.
    async fn hold(&self, identity: &Identity) -> (quinn::Connection, quinn::SendStream, quinn::RecvStream) {
        let connection = self.shake_hands(identity).await;
        let (mut send, mut recv) = connection.open_bi().await.unwrap();
        send.write_all(&[0; 4]).await.unwrap();
        // Either the greeting, or the connection is ended again.
        let _ = recv.read_exact(&mut [0; 9]).await;
        (connection, send, recv)
    }

    /// Connects as clients do.
    async fn connect(&self, identity: &Identity) -> Result<ClientLink, LinkError> {
        let endpoint = ClientEndpoint::new(false).unwrap();
        let patience = Duration::from_secs(10);
        let connecting = ClientLink::connect(&endpoint, identity, self.address, self.key, CLUSTER, patience);
        connecting.await.map(|(link, _, _)| link)
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
            held.push(scene.hold(&greedy).await);
        }
        let refused = scene.shake_hands(&greedy).await.closed().await;
        assert!(refused.to_string().contains("this key has too many connections"), "{refused}");
        let refused = scene.connect(&greedy).await.unwrap_err().to_string();
        assert!(refused.contains("this key has too many connections"), "{refused}");
        assert_eq!(scene.node.clients(), KEY_CONNECTIONS_MAX + 1);
        scene.connect(&honest).await.unwrap();
        assert!(!before.is_closed());
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

/// A frame of this size, but for its last byte.
fn half_frame(bytes: u32) -> Vec<u8> {
    [&bytes.to_le_bytes()[..], &vec![7; bytes as usize - 1]].concat()
}

#[test]
fn frames_that_are_half_here_are_bounded_for_a_key_and_hold_up_no_other() {
    let (greedy, honest) = (Identity::from_seed([2; 32]), Identity::from_seed([3; 32]));
    run(async {
        let mut scene = Scene::new(&[&greedy, &honest]);
        let mut held = Vec::new();
        for _ in 0..40 {
            let (connection, mut send, recv) = scene.hold(&greedy).await;
            let sending = tokio::spawn(async move {
                let _ = send.write_all(&half_frame(2 << 20)).await;
                send
            });
            held.push((connection, recv, sending));
        }
        // Others send whole frames as large as they may be, all the time.
        let link = scene.connect(&honest).await.unwrap();
        for turn in 0..10u8 {
            let size = 1u32 << 20;
            assert!(link.send([&size.to_le_bytes()[..], &vec![turn; size as usize]].concat().into()));
            let Some(Inbound::ClientFrame { frame, .. }) = scene.inbox.recv().await else {
                panic!("a frame")
            };
            assert_eq!((frame.body.len(), frame.body[0]), (size as usize, turn));
        }
        // QUIC lets go out what there is room for on the other side.
        let arrived: u64 = held.iter().map(|(connection, ..)| connection.stats().udp_tx.bytes).sum();
        assert!(arrived < 48 << 20, "{} MiB", arrived >> 20);
    });
}
