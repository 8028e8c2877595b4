//! PBFT: one order for a group of which some replicas may lie in any way.
//!
//! # What it is
//!
//! `n = 3f + 1` replicas order batches of signed requests although up to `f` of them lie, send different things to
//! different replicas, or nothing. Every view has one *primary*, which proposes a batch for each slot; the others are
//! *backups*. Two rounds of signed votes decide a slot:
//!
//! ```text
//!  client      primary        backup        backup        backup (silent)
//!    |--requests->|              |             |             |
//!    |            |--PRE-PREPARE>|------------>|------------>|     this batch for slot n in view v
//!    |            |<--PREPARE----|<----------->|             |     I hold that batch and no other
//!    |            |<--COMMIT---->|<----------->|             |     I durably hold a quorum of those
//!    |<-reply-----|<-------------|<------------|             |     executed, in order; f + 1 equal replies count
//! ```
//!
//! If a primary does not do its work, the backups leave its view ([`suspicion`]), and the next primary begins one with
//! proof of everything that may have been decided ([`view_change`], [`new_view`]).
//!
//! # Safety, in four steps
//!
//! 1. In one view no two batches are prepared for one slot: two quorums share an honest replica, and it prepares once.
//! 2. A decided batch was prepared at a quorum, and each honest one of them has the certificate on disk *before* its
//!    COMMIT counts anywhere.
//! 3. A new view is made of view changes of a quorum; it shares an honest replica with that one, so the certificate is
//!    there, and the rule of [`new_view`] picks it.
//! 4. Nobody is believed: every signature in every certificate is checked before it counts ([`verify`]), every replica
//!    computes for itself what a new view begins with.
//!
//! And over crashes: what was signed once is never signed otherwise ([`record`]).
//!
//! # Where what is
//!
//! | file | what |
//! |---|---|
//! | [`sign`] | statements, keys, domains |
//! | [`request`], [`batch`] | what clients sign, what a slot orders |
//! | [`message`], [`verify`] | messages, and the only door into the core |
//! | [`replica`], [`face`] | state, dispatch; what only this order takes and asks for |
//! | [`agreement`], [`checkpoint`], [`view_change`], [`new_view`], [`suspicion`], [`catch_up`], [`repair`] | the rules |
//! | [`epoch_end`] | the last slot of an epoch |
//! | [`pace`] | whether a primary is slow on purpose |
//! | [`custody`] | requests that wait |
//! | [`record`], [`restore`], [`evidence`] | what is durable, and back again; proofs of lies |
//! | [`liar`] | how to lie, for tests and for people who want to see it fail |
//!
//! # Departures
//!
//! * Votes are signed, not authenticated by vectors of MACs: certificates must be shown to others.
//! * Agreement is on digests after the first hop; a NEW-VIEW names digests, batches are fetched.
//! * The timer is bound to one request, not to any progress; names of requests, not their bytes, end a wait.
//! * Read-only and tentative execution are left out: both trade the liveness of writes for speed.
//!
//! # What is not here
//!
//! What an operation means, sessions, replies; what a state root covers; transfer of state; the epoch after this one.
//!
//! # Sources
//!
//! Castro and Liskov, "Practical Byzantine Fault Tolerance" (OSDI 1999), and Castro's thesis (2001). Clement et al.,
//! "Making Byzantine Fault Tolerant Systems Tolerate Byzantine Faults" (NSDI 2009), for signed requests, separate queues
//! and suspicion of slow primaries. Bano et al., "Twins" (2020), for how it is attacked in tests.

pub mod agreement;
pub mod batch;
mod bodies;
mod catch_up;
mod checkpoint;
mod config;
mod custody;
mod epoch_end;
pub mod evidence;
mod face;
mod invariants;
pub mod liar;
pub mod message;
pub mod new_view;
mod pace;
pub mod record;
mod repair;
mod replica;
pub mod request;
mod restore;
pub mod sign;
mod slot;
mod suspicion;
pub mod verify;
mod view_change;

pub use agreement::NOT_AFTER_MICROS_MAX;
pub use batch::Batch;
pub use config::{Config, Options, Window};
pub use evidence::Evidence;
pub use face::{Condition, Effect, Own, SubmitRefusal};
pub use liar::{Liar, Lie};
pub use message::Message;
pub use record::{Record, RecoverError, Recovered};
pub use replica::Replica;
pub use request::{Bundle, RequestName, SignedRequest};
pub use sign::{ClientKey, ClientSigner, Domain, Keyring, Signature, Signer};
pub use verify::{Origin, Rejected, SubmitId, Unverified, Verified, Verifier};
