//! The state machine: what requests mean.
//!
//! Every replica of a group applies the same requests in the same slots, so everything here follows from the slot and
//! the state alone: no clock, no randomness, no local setting. Time is the log's.
//!
//! There is one path, in both modes: [`Machine::apply`] takes a [`Slot`] of [`Input`]s. For each [`Envelope`] it looks at the session
//! first (`sessions`), then at who owns the key, then judges the write by what is known of the key (`evaluate`, pure), and
//! notes what has changed (`overlay`) until a checkpoint brings it to the tree.
//!
//! Invariants:
//! * slots are applied without a gap, each once; what is applied is a prefix of what is decided;
//! * versions grow with every change of any key of the group;
//! * a request `(session, number)` is applied at most once, and its outcome is given again to every retry;
//! * no client keeps others from opening a session, or from having outcomes remembered;
//! * what reaches the tree is the state at one slot: data, sessions and the reached position in one atomic batch;
//! * replicas that applied the same slots have the same digest.
//!
//! What is not here: who asks, and whether the answer is still wanted (`group`); transactions; nothing ends yet, although records say
//! when they will.

#[cfg(feature = "server")]
mod apply;
#[cfg(feature = "server")]
mod checkpoint;
mod envelope;
#[cfg(feature = "server")]
mod evaluate;
#[cfg(feature = "server")]
mod header;
#[cfg(feature = "server")]
mod lattice;
#[cfg(feature = "server")]
mod machine;
mod operation;
#[cfg(feature = "server")]
mod overlay;
#[cfg(feature = "server")]
mod parts;
#[cfg(feature = "server")]
mod reached;
#[cfg(feature = "server")]
mod read;
#[cfg(feature = "server")]
mod record;
mod reply;
#[cfg(feature = "server")]
mod sessions;
#[cfg(feature = "server")]
mod shares;
#[cfg(feature = "server")]
mod state_root;
#[cfg(feature = "server")]
mod tenures;

#[cfg(feature = "server")]
pub use apply::{Applied, Slot};
pub use envelope::{Batch, Command, Envelope, Input};
#[cfg(feature = "server")]
pub use machine::{Machine, Rules};
pub use operation::{
    Client, Expect, Expiry, Kind, Operation, OperationError, RequestId, SessionId, When, Write, check_key,
};
#[cfg(feature = "server")]
pub use parts::{PartSet, Parts};
#[cfg(feature = "server")]
pub use reached::Reached;
#[cfg(feature = "server")]
pub use read::Found;
#[cfg(feature = "server")]
pub use record::{Record, is_sealed, seal, unseal};
pub use reply::{Failure, Reply};
#[cfg(feature = "server")]
pub use shares::Held;
#[cfg(feature = "server")]
pub use state_root::StateRoot;
#[cfg(feature = "server")]
pub use tenures::{read_tenures, tenure_row};

#[cfg(test)]
mod tests;
