//! The ring: 2^64 positions, cut into intervals, each owned by one group.
//!
//! Tenures are the authority ([`Tenure`]): whether a group owns a key is decided by its replicated tenure when a command is applied. An
//! [`Atlas`] only says where to try.
//!
//! Invariants:
//! * the latest tenures of different groups never overlap and together cover the ring;
//! * a key's position depends on the key alone.

mod address;
mod atlas;
mod id;
mod names;
mod store;
mod tenure;

pub use address::Address;
pub use atlas::{Atlas, Place};
pub use id::{Position, RingInterval, slot_of, tag_of};
pub use names::{GroupId, NodeId, TenureId};
pub use store::StoreId;
pub use tenure::{Member, NoTenure, Previous, QuorumRule, Start, Tenure, found, found_without_keys};
