//! Nodes far from each other: every packet between them passes through a relay that makes it wait.
//!
//! A replica comes back with a log that is long behind, together with one that has everything; the third is gone for good. Somebody must
//! lead and take writes, although the log takes longer to fetch than an election. `consensus/tests/links.rs` tries that with hundreds of
//! seeds in virtual time; here it is once real. `LINK_MIB=16 cargo test --release --test slow_link -- --nocapture` says how long it takes.
#![allow(clippy::unwrap_used, reason = "test code")]

mod common;

use common::{Cluster, wait_for};
use std::collections::HashMap;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};
use tetrachord::config::ClusterConfig;

/// One way, so that a round trip takes twice as long.
const DELAY: Duration = Duration::from_millis(25);

const BITS_PER_SECOND: u64 = 100_000_000;

/// So much may wait for the link. More is lost, as in a router.
const QUEUE: Duration = Duration::from_millis(100);

/// Switches the relays between links that cost nothing and slow ones, and counts the bytes that the slow ones carried.
#[derive(Default)]
struct Switch {
    is_slow: AtomicBool,
    carried: AtomicU64,
}

/// One direction of a link: what is sent leaves in order, at the link's speed, and arrives later.
struct Way {
    switch: Arc<Switch>,
    free_at: Instant,
    leaving: mpsc::Sender<(Instant, Vec<u8>)>,
}

impl Way {
    #[expect(clippy::disallowed_methods, reason = "a link takes its time")]
    fn new(switch: Arc<Switch>, deliver: impl Fn(&[u8]) + Send + 'static) -> Self {
        let (leaving, arriving) = mpsc::channel::<(Instant, Vec<u8>)>();
        std::thread::spawn(move || {
            for (at, packet) in arriving {
                std::thread::sleep(at.saturating_duration_since(Instant::now()));
                deliver(&packet);
            }
        });
        Self { switch, free_at: Instant::now(), leaving }
    }

    fn send(&mut self, packet: &[u8]) {
        let now = Instant::now();
        if !self.switch.is_slow.load(Ordering::Relaxed) {
            let _ = self.leaving.send((now, packet.to_vec()));
            return;
        }
        let begins = self.free_at.max(now);
        if begins > now + QUEUE {
            return;
        }
        self.switch.carried.fetch_add(packet.len() as u64, Ordering::Relaxed);
        self.free_at = begins + Duration::from_nanos(packet.len() as u64 * 8_000_000_000 / BITS_PER_SECOND);
        let _ = self.leaving.send((self.free_at + DELAY, packet.to_vec()));
    }
}

/// Passes on what comes to `outside` to a node that listens on `inside`, and its answers back. What goes to the node and what comes from
/// it shares one link each, whoever is at the other end.
fn relay(outside: UdpSocket, inside: SocketAddr, switch: Arc<Switch>) {
    std::thread::spawn(move || {
        let outside = Arc::new(outside);
        let back = Arc::clone(&outside);
        let answers = Arc::new(std::sync::Mutex::new(Way::new(Arc::clone(&switch), move |packet| {
            let (to, packet) = unpack(packet);
            let _ = back.send_to(packet, to);
        })));
        let forth: Arc<std::sync::Mutex<HashMap<SocketAddr, Arc<UdpSocket>>>> = Arc::default();
        let by_port = Arc::clone(&forth);
        let mut requests = Way::new(switch, move |packet| {
            let (from, packet) = unpack(packet);
            if let Some(socket) = by_port.lock().unwrap().get(&from) {
                let _ = socket.send_to(packet, inside);
            }
        });
        let mut buffer = [0; 2048];
        while let Ok((length, from)) = outside.recv_from(&mut buffer) {
            forth.lock().unwrap().entry(from).or_insert_with(|| {
                let socket = Arc::new(UdpSocket::bind("127.0.0.1:0").unwrap());
                let (of_node, answers) = (Arc::clone(&socket), Arc::clone(&answers));
                std::thread::spawn(move || {
                    let mut buffer = [0; 2048];
                    while let Ok((length, _)) = of_node.recv_from(&mut buffer) {
                        answers.lock().unwrap().send(&pack(from, &buffer[..length]));
                    }
                });
                socket
            });
            requests.send(&pack(from, &buffer[..length]));
        }
    });
}

/// Addresses here differ by their port alone.
fn pack(address: SocketAddr, packet: &[u8]) -> Vec<u8> {
    [&address.port().to_be_bytes()[..], packet].concat()
}

fn unpack(packed: &[u8]) -> (SocketAddr, &[u8]) {
    let port = u16::from_be_bytes([packed[0], packed[1]]);
    (SocketAddr::from(([127, 0, 0, 1], port)), &packed[2..])
}

/// Lets every node listen behind a relay, which has the address that the others know.
fn put_behind_relays(cluster: &Cluster, addresses: &[SocketAddr]) -> Arc<Switch> {
    let switch = Arc::<Switch>::default();
    for (index, address) in addresses.iter().enumerate() {
        let inside = tetrachord::config::free_addresses(1).unwrap()[0];
        relay(UdpSocket::bind(address).unwrap(), inside, Arc::clone(&switch));
        let file = cluster.node_file(index);
        let text = std::fs::read_to_string(&file).unwrap();
        let text = text.replace("log_retain_bytes = 8388608", "log_retain_bytes = 33554432");
        std::fs::write(&file, format!("listen = \"{inside}\"\n{text}")).unwrap();
    }
    switch
}

#[test]
fn a_replica_that_is_long_behind_comes_back_over_a_slow_link() {
    let mebibytes: usize = std::env::var("LINK_MIB").ok().and_then(|text| text.parse().ok()).unwrap_or(4);
    let mut cluster = Cluster::init(3, 1);
    let config = ClusterConfig::load(&cluster.path().join("cluster.toml")).unwrap();
    let addresses: Vec<SocketAddr> = config.nodes.iter().map(|node| node.address.to_bind()).collect();
    let switch = put_behind_relays(&cluster, &addresses);
    (0..3).for_each(|index| cluster.start_node(index));
    wait_for("a write", || (cluster.code(&["put", "first", "v"]) == 0).then_some(()));
    for lagging in 0..2 {
        let best = 1 - lagging;
        cluster.kill_node(lagging);
        let value = "x".repeat(100 << 10);
        (0..mebibytes * 10).for_each(|number| drop(cluster.ok(&["put", &format!("key {number}"), &value])));
        cluster.kill_node(best);
        cluster.kill_node(2);

        switch.is_slow.store(true, Ordering::Relaxed);
        switch.carried.store(0, Ordering::Relaxed);
        let began = Instant::now();
        cluster.start_node(lagging);
        cluster.start_node(best);
        wait_for("a write", || (cluster.code(&["put", "last", "v"]) == 0).then_some(()));
        println!("n{} {mebibytes} MiB behind: the first write after {:?}", lagging + 1, began.elapsed());
        assert_eq!(cluster.ok(&["get", &format!("key {}", mebibytes * 10 - 1)]), value);
        switch.is_slow.store(false, Ordering::Relaxed);
        let carried = switch.carried.load(Ordering::Relaxed);
        assert!(
            carried > (mebibytes as u64) << 20,
            "what it missed came over the slow link: {carried} bytes"
        );
        cluster.start_node(2);
    }
}
