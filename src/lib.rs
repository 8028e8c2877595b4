//! x
pub mod cli;
pub mod client;
pub mod config;
pub mod error;
pub mod gateway;
pub mod group;
pub mod kv;
pub mod limits;
pub mod node;
pub mod ring;
pub mod router;
pub mod storage;
pub mod transport;
pub mod wire;
pub use client::{Client, Outcome};
