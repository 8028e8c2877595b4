//! Moving bytes between nodes, and between clients and nodes, over QUIC.
//!
//! * Both ends prove an ed25519 key (RFC 7250 raw public keys, TLS 1.3). A key that is not in the genesis record is
//!   refused and logged. No certificates, nothing that expires.
//! * Between two nodes there is one connection, dialled by the one with the lower number. Each side sends on three
//!   streams, one per class: ordering first, clients' requests next, bulk transfers last. They do not hold up one
//!   another.
//! * A client opens one stream in both directions and has many requests open on it.
//! * Frames that wait are written together, so that many of them share a packet.
//!
//! # Back-pressure
//!
//! Everything that waits is bounded, in bytes; what a client's key can make a node keep is bounded for all of its connections
//! together, and apart from that of other keys. Inbound: readers wait when the node is behind, and QUIC's flow control tells the
//! sender. Outbound to a node: a full queue drops the newest frame, as a network may; the protocols send again.
//! Outbound to a client: a client that does not read its answers is disconnected.
//!
//! # Tasks
//!
//! Every task of a node's transport is watched, quinn's too: if one is lost, [`Transport::failure`] says which, and the node must
//! end. One that went on without its tasks would look alive and hear nobody.
//!
//! This folder is the only place that knows quinn. It does not know what a frame means.

mod client_link;
#[cfg(feature = "server")]
mod clients;
#[cfg(feature = "server")]
mod door;
#[cfg(feature = "server")]
mod endpoint;
mod frames;
mod look_up;
mod outbox;
#[cfg(feature = "server")]
mod peers;
mod protocol;
#[cfg(feature = "server")]
mod reading;
#[cfg(test)]
mod tests;
mod tls;
#[cfg(feature = "server")]
mod watch;

pub use client_link::{ClientEndpoint, ClientLink, Denial, LinkError, Patience};
#[cfg(feature = "server")]
pub use endpoint::{Frame, Inbound, Transport, TransportSettings};
#[cfg(feature = "server")]
pub use peers::PeerAddress;
pub use tls::{Identity, IdentityError, PublicKey};
