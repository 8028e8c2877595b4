//! The bytes between nodes, and between clients and nodes.
//!
//! ```text
//! frame   length u32 (little-endian, of what follows) | body: one message in postcard
//! ```
//!
//! The protocol version is part of the ALPN name that both ends agree on in the TLS handshake, so a frame has none.
//! Messages only ever grow new variants at their end. What a group's replicas say to one another is opaque here.
//!
//! Decoding is total: any bytes give a message or an error, never a panic, and never an allocation beyond the frame.

mod frame;
mod message;

pub use frame::{FrameError, decode, encode};
pub use message::{
    Answer, AnswerFrame, Consistency, GroupBody, GroupStatus, Hello, Introduction, Life, NodeStatus, Opening,
    PeerMessage, ProcessStats, Request, RequestFrame, RetryReason, Served,
};
