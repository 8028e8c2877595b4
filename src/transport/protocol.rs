//! What both ends of a connection must agree on: what they call what they speak, and how long they may be silent.
//!
//! The name in the TLS handshake (ALPN) says who speaks, in which version, and in which cluster; ends that disagree never talk. So that they
//! can say why, whoever dials offers besides, last, to be told of versions: where nothing else fits, an end of the same cluster says
//! which it speaks, and hangs up. Who does not know the cluster's name is turned away before anything is signed.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// The version of what nodes say to one another.
const PEER_VERSION: u32 = 4;

/// The version of what clients and nodes say to one another.
const CLIENT_VERSION: u32 = 3;

/// The name between nodes of a cluster.
#[cfg(feature = "server")]
pub(super) fn peer_protocol(cluster: &str) -> Vec<u8> {
    format!("tetrachord-peer/{PEER_VERSION}/{cluster}").into_bytes()
}

/// The name between clients and nodes of a cluster.
pub(super) fn client_protocol(cluster: &str) -> Vec<u8> {
    format!("tetrachord-client/{CLIENT_VERSION}/{cluster}").into_bytes()
}

/// The name where nothing else fits, between ends of one cluster whatever its genesis record. What is said then must never change.
pub(super) fn versions_protocol(cluster: &str) -> Vec<u8> {
    let name = cluster.split('-').next().unwrap_or_default();
    format!("tetrachord-versions/{name}").into_bytes()
}

/// The code with which a connection ends then.
pub(super) const VERSIONS_CODE: u32 = 7;

/// Which versions an end speaks. Written as `peer 4 client 3`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Versions {
    pub(super) peer: u32,
    pub(super) client: u32,
}

impl fmt::Display for Versions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "peer {} client {}", self.peer, self.client)
    }
}

impl Versions {
    /// Those of this build.
    pub(super) const OURS: Self = Self { peer: PEER_VERSION, client: CLIENT_VERSION };

    /// As they are said.
    #[cfg(feature = "server")]
    pub(super) fn to_bytes(self) -> Vec<u8> {
        self.to_string().into_bytes()
    }

    /// What the other end has said when it hung up; none if it ended otherwise. A later build may say more.
    pub(super) fn told(reason: &quinn::ConnectionError) -> Option<Self> {
        let quinn::ConnectionError::ApplicationClosed(closed) = reason else { return None };
        let is_told = closed.error_code == VERSIONS_CODE.into();
        is_told.then(|| Self::parse(&closed.reason)).flatten()
    }

    fn parse(said: &[u8]) -> Option<Self> {
        let mut words = std::str::from_utf8(said).ok()?.split(' ');
        let mut number =
            |name| words.next().filter(|word| *word == name).and_then(|_| words.next()?.parse().ok());
        Some(Self { peer: number("peer")?, client: number("client")? })
    }
}

/// What the ends of a connection have agreed to speak.
#[cfg(feature = "server")]
pub(super) fn of(connection: &quinn::Connection) -> Vec<u8> {
    let data = connection.handshake_data();
    let data = data.and_then(|data| data.downcast::<quinn::crypto::rustls::HandshakeData>().ok());
    data.and_then(|data| data.protocol).unwrap_or_default()
}

/// Silence ends a connection after this time; links are kept alive well within it.
const IDLE_TIMEOUT: Duration = Duration::from_secs(3);

/// Between nodes, which say heartbeats anyway.
#[cfg(feature = "server")]
pub(super) const KEEP_ALIVE: Duration = Duration::from_secs(1);

/// Bytes that QUIC keeps unread of a connection to an end that is known and trusted with so much.
pub(super) const WINDOW: u32 = 16 << 20;

/// The same of a connection whose other end is not known yet, and of a client's at first.
#[cfg(feature = "server")]
pub(super) const FIRST_WINDOW: u32 = 32 << 10;

pub(super) fn idle_config(keep_alive: Duration, window: u32) -> Arc<quinn::TransportConfig> {
    let mut config = quinn::TransportConfig::default();
    let idle = quinn::IdleTimeout::try_from(IDLE_TIMEOUT).expect("3 s is a valid timeout");
    config
        .max_idle_timeout(Some(idle))
        .keep_alive_interval(Some(keep_alive))
        .initial_rtt(Duration::from_millis(10))
        .max_concurrent_bidi_streams(4u32.into())
        .max_concurrent_uni_streams(8u32.into())
        .stream_receive_window((4u32 << 20).into())
        .receive_window(window.into());
    Arc::new(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_told_in_words_that_later_builds_may_add_to() {
        assert_eq!(Versions::parse(&Versions::OURS.to_bytes()), Some(Versions::OURS));
        assert_eq!(Versions::parse(b"peer 9 client 8 gossip 1"), Some(Versions { peer: 9, client: 8 }));
        for other in [&b""[..], b"peer", b"peer 3", b"peer three client 2", b"client 2 peer 3", b"\xff"] {
            assert_eq!(Versions::parse(other), None);
        }
    }
}
