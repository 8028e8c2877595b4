//! Tetrachord: a strongly consistent, replicated key-value store.
//!
//! The path of a request is the order in which to read:
//!
//! ```text
//!  client ──> gateway ──> router ──> group ──> consensus ──> storage ──> kv (apply)
//!    ^                                                                       |
//!    └──────────────── reply: a value keyed by its ticket, carried by node ──┘
//! ```
//!
//! * [`client`] asks, retries, and knows what it does not know.
//! * [`transport`] moves frames over QUIC; [`wire`] says what they mean.
//! * [`node`] is the whole node: [`node::core`] a pure machine, [`node::run`] the shell around it.
//! * [`gateway`] lets requests in; [`router`] says where they go; a [`ticket`] leads the answer back.
//! * [`group`] is one replica of one group: it drives an engine of `tetrachord-consensus` and applies what is decided.
//! * [`kv`] is what commands mean; [`storage`] is what survives.
//! * [`ring`] says who owns what; [`config`] reads files; [`cli`] is the command line.
//! * [`limits`] holds every bound, [`shares`] divides what many clients ask for, [`error`] sorts errors by what their reader must do.
//!
//! Without the feature `server`, which is on unless it is turned off, there is what a program needs that only asks: the client and what it stands
//! on. It knows no disk, no engine and no command line.

#[cfg(feature = "server")]
pub mod cli;
pub mod client;
pub mod config;
#[cfg(feature = "server")]
pub mod error;
#[cfg(feature = "server")]
pub mod gateway;
#[cfg(feature = "server")]
pub mod group;
pub mod kv;
pub mod limits;
#[cfg(feature = "server")]
pub mod node;
pub mod proof;
pub mod ring;
#[cfg(feature = "server")]
pub mod router;
pub mod shares;
#[cfg(feature = "server")]
pub mod storage;
#[cfg(feature = "server")]
pub mod ticket;
pub mod transport;
pub mod wire;

pub use client::{Client, Outcome};
