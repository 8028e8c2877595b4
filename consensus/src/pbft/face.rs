//! What only this order takes from its caller and asks of it, besides [`Engine`](crate::Engine): what clients have signed, verdicts
//! of checks that are made elsewhere, and roots of the state.

use crate::codec;
use crate::engine;
use crate::pbft::message::Message;
use crate::pbft::replica::Replica;
use crate::pbft::slot::SlotState;
use crate::pbft::verify::{Checked, Help, Origin, Rejected, SubmitId, Unverified, Verified};
use crate::types::{Digest, ReplicaId, Slot, Ticks, View};
use bytes::Bytes;
use thiserror::Error;

/// What a replica asks its caller for.
pub type Effect = engine::Effect<Own>;

/// What only this order asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Own {
    /// Check this away from the event loop ([`crate::pbft::Verifier::verify`]) and report [`Replica::verified`].
    Verify(Box<Unverified>),
    /// A submission was checked, and is kept until it is ordered, or not.
    Submitted {
        /// Which.
        id: SubmitId,
        /// Whether it is kept.
        result: Result<(), SubmitRefusal>,
    },
    /// Compute the root of the state after this slot, which was just applied, and report [`Replica::state_root`].
    Checkpoint {
        /// The slot.
        slot: Slot,
    },
    /// The state is not to be believed, as its caller or other replicas have found. Nothing may be answered from it or written
    /// to it; a state with proof must take its place. If the log reaches back to slot 0 it is the empty one, else
    /// [`Self::FetchState`] follows. Report [`engine::Event::SnapshotInstalled`].
    StateLost {
        /// What was found, in words.
        reason: String,
        /// Where the log begins: the state must be of this slot or a later one.
        base: Slot,
    },
    /// This replica needs a state that no log leads to. Fetch one that a stable checkpoint at or above this slot proves, and
    /// report [`engine::Event::SnapshotInstalled`].
    FetchState {
        /// Whom to ask this time.
        from: ReplicaId,
        /// The slot.
        at_least: Slot,
    },
}

/// Why a submission was not taken. Nothing of it was ordered because of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum SubmitRefusal {
    /// It cannot be ordered, now or later.
    #[error("{0}")]
    Invalid(&'static str),
    /// Too much waits, of this client or of all.
    #[error("too many requests wait to be ordered")]
    Full,
}

/// What a replica knows of itself and of liars, besides what every order tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    /// The last stable checkpoint.
    pub stable: Slot,
    /// What is known against other replicas, in words.
    pub suspects: Vec<String>,
    /// Messages of other replicas that did not hold.
    pub rejected: u64,
    /// The view that this replica is in, or goes to.
    pub view: View,
    /// Whether the state was found damaged, and is being repaired from the other replicas.
    pub is_repairing: bool,
    /// Signatures that this replica made since it started, as a replica.
    pub signatures_made: u64,
    /// Signatures that were checked for it.
    pub signatures_checked: u64,
}

impl Replica {
    /// A client's signed requests arrived, not trusted yet; the name comes back in [`Own::Submitted`]. They are ordered wherever they are
    /// brought. `is_passed_on` tells whether another node passes them on: it may do so with a client's old requests as often as it likes.
    pub fn submit(&mut self, id: SubmitId, bundle: Bytes, is_passed_on: bool) {
        self.unless_halted(|replica| replica.on_submit(id, bundle, is_passed_on));
    }

    /// A check that was asked for by [`Own::Verify`] is done.
    pub fn verified(&mut self, result: Result<Verified, Rejected>) {
        self.unless_halted(|replica| match result {
            Ok(verified) => {
                let (origin, came_at) = (verified.origin(), verified.came_at());
                replica.on_verdict(origin, verified.help(), verified.bytes(), verified.checks());
                replica.on_verified(origin, came_at, verified.into_content());
            }
            Err(rejected) => {
                replica.on_verdict(rejected.origin, rejected.help, rejected.bytes, rejected.checks);
                replica.on_rejected(rejected.origin, rejected.reason);
            }
        });
    }

    /// The state after `slot`, asked for by [`Own::Checkpoint`], can be recovered and has this root.
    pub fn state_root(&mut self, slot: Slot, root: Digest) {
        self.unless_halted(|replica| replica.on_state_root(slot, root));
    }

    /// What is stored of the state is not what was written, in words. Nothing is executed any more until a state with proof is in place.
    pub fn state_damaged(&mut self, reason: String) {
        self.unless_halted(|replica| replica.lose_state(reason));
    }

    /// Everything that arrived together was told. `may_propose` tells whether what has gathered may be proposed; `may_execute` whether
    /// the state machine can take more: if not, what is decided waits here, and the window bounds it.
    pub fn turn_ended(&mut self, may_propose: bool, may_execute: bool) {
        self.unless_halted(|replica| {
            replica.is_stalled = !may_execute;
            replica.execute();
            replica.on_turn_ended(may_propose);
        });
    }

    /// Whether a checkpoint at this slot or later is stable.
    #[must_use]
    pub fn is_settled(&self, slot: Slot) -> bool {
        slot <= self.stable_slot()
    }

    /// Proof of the state after this slot, as a message that convinces any replica; only for the last few stable checkpoints.
    #[must_use]
    pub fn stable_proof(&self, slot: Slot) -> Option<Bytes> {
        self.stable_at(slot).map(|stable| codec::encode(&Message::Stable(stable.clone())))
    }

    /// What it knows of itself and of liars.
    #[must_use]
    pub fn condition(&self) -> Condition {
        Condition {
            stable: self.stable_slot(),
            suspects: self.suspects(),
            rejected: self.rejected.values().sum(),
            view: self.view,
            is_repairing: self.is_repairing,
            signatures_made: self.signatures_made(),
            signatures_checked: self.checked,
        }
    }

    /// Slots that were proposed and are not decided; the same as in [`engine::EngineStatus`], for those who ask often.
    #[must_use]
    pub fn undecided(&self) -> usize {
        let open = |state: &SlotState| state.decided.is_none() && state.accepted_in(self.view).is_some();
        self.slots.range(self.executed.slot.next()..).filter(|(_, state)| open(state)).count()
    }

    /// What is known against others, in words.
    fn suspects(&self) -> Vec<String> {
        let lies = self.evidence.iter().map(ToString::to_string);
        let refused = self
            .rejected
            .iter()
            .map(|(from, count)| format!("{from} sent {count} messages that do not hold"));
        lies.chain(refused).collect()
    }

    fn on_verified(&mut self, origin: Origin, came_at: Ticks, content: Checked) {
        match content {
            Checked::PrePrepare { vote, batch } => self.on_pre_prepare(vote, batch, came_at),
            Checked::Prepare(vote) => self.on_prepare(vote),
            Checked::Commit(vote) => self.on_commit(vote),
            Checked::Checkpoint(vote) => self.on_checkpoint(vote),
            Checked::ViewChange { message, body } => self.on_view_change(message, body),
            Checked::NewView { message, plan, signatures } => self.on_new_view(message, plan, &signatures),
            Checked::Certified { certificate, batch } => self.on_certified(certificate, batch),
            Checked::Stable(certificate) => self.adopt_stable(certificate),
            Checked::Body { slot, batch } => self.on_body(slot, batch),
            Checked::Requests(bundle) => self.on_requests(origin, bundle),
        }
    }

    fn on_submit(&mut self, id: SubmitId, bundle: Bytes, is_passed_on: bool) {
        // Whose they are is not known here: whoever brings them shares this out among clients.
        if self.client_bytes_in_check + bundle.len() > self.options.custody_bytes {
            return self.ask(Own::Submitted { id, result: Err(SubmitRefusal::Full) });
        }
        self.client_bytes_in_check += bundle.len();
        let origin = if is_passed_on { Origin::Node(id) } else { Origin::Client(id) };
        self.ask(Own::Verify(Box::new(Unverified::bundle(origin, self.now, bundle))));
    }

    /// A check is done: its message is off the pool.
    fn on_verdict(&mut self, origin: Origin, help: Option<Help>, bytes: usize, checks: u32) {
        self.checked += u64::from(checks);
        let in_check = match origin {
            Origin::Replica(from) => {
                let peer = self.peers.get_mut(&from).expect("every other replica is a peer");
                if let Some(help) = help {
                    peer.help_in_check.remove(&help);
                }
                &mut peer.bytes_in_check
            }
            Origin::Client(_) | Origin::Node(_) => &mut self.client_bytes_in_check,
        };
        // A check that was begun in an earlier life was never counted in this one.
        *in_check = in_check.saturating_sub(bytes);
    }

    fn on_rejected(&mut self, origin: Origin, reason: &'static str) {
        match origin {
            Origin::Replica(from) => *self.rejected.entry(from).or_default() += 1,
            Origin::Client(id) | Origin::Node(id) => {
                self.ask(Own::Submitted { id, result: Err(SubmitRefusal::Invalid(reason)) });
            }
        }
    }
}
