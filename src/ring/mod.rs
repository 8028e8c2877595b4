//! The ring: 2^64 positions, cut into intervals, each owned by one group.
//!
//! Ranges are the authority: whether a group owns a key is decided by its replicated range when a command is applied.
//! The map here only says where to try. It is static: the genesis record cuts the ring evenly.
//!
//! Invariants:
//! * intervals of different groups never overlap and together cover the ring;
//! * a key's position depends on the key alone.

mod id;
mod map;
mod names;
mod store;

pub use id::{Position, RingInterval, slot_of, tag_of};
pub use map::{GroupPlace, RingMap};
pub use names::{GroupId, NodeId, TenureId};
pub use store::StoreId;
