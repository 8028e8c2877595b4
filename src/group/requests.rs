//! What clients ask of a group in crash mode: commands are ordered by whoever leads, reads confirmed by it or served from what is here.
//!
//! A command that was taken waits for its turn ([`super::pipeline`]), then for its outcome. Whoever leads no more answers all that wait: what
//! was never proposed may be asked elsewhere, and of what was, nobody here knows.

use super::{Freshness, Group, Outcome};
use crate::error::StorageError;
use crate::kv::{Command, Found, Operation, Reply};
use crate::limits::BATCHES_IN_FLIGHT_MAX;
use crate::shares::Account;
use crate::storage::Storage;
use crate::ticket::Ticket;
use bytes::Bytes;
use tetrachord_consensus::paxos::{Own, Replica};
use tetrachord_consensus::{Proposal, ReplicaId};

impl Group {
    /// Takes a request to be ordered, with what it asks and its bytes.
    pub fn write(&mut self, account: Account, ticket: Ticket, command: &Command, bytes: Bytes) {
        if !self.is_leading() || self.is_byzantine() {
            self.answer(ticket, Outcome::NotLeader);
        } else if let Some(reply) = self.refusal_to_open(command) {
            let slot = self.machine.reached().slot;
            self.answer(ticket, Outcome::Applied { reply, slot });
        } else if !self.pipeline.push(account, ticket, command.envelope.request, bytes) {
            self.answer(ticket, Outcome::Busy);
        }
    }

    /// What an opening is told that would be refused if it were ordered: whoever asks for sessions without end fills no log. Only a
    /// leader knows that has applied all that was decided before: what it has not seen might have made room.
    fn refusal_to_open(&self, command: &Command) -> Option<Reply> {
        if command.operation != Operation::Open || !self.pipeline.is_current() {
            return None;
        }
        self.machine.refusal_to_open(&command.envelope.client.unwrap_or_default(), self.wall.0)
    }

    /// Takes a linearizable read. Those that arrive together are confirmed together, by [`Self::flush`].
    pub fn read(&mut self, ticket: Ticket, key: Bytes) {
        if self.is_leading() && !self.is_byzantine() {
            self.pipeline.push_read(ticket, key);
        } else {
            self.answer(ticket, Outcome::NotLeader);
        }
    }

    /// Serves a read from whatever is applied here, if that reaches `at_least`. Nobody need lead for that.
    pub fn read_applied(
        &mut self,
        storage: &dyn Storage,
        ticket: Ticket,
        key: &Bytes,
        at_least: u64,
    ) -> Result<(), StorageError> {
        let is_fit = self.machine.reached().slot >= at_least && !self.is_installing() && !self.is_repairing();
        if !is_fit {
            self.answer(ticket, Outcome::Behind);
            return Ok(());
        }
        self.serve(storage, ticket, key, Freshness::AtLeast(at_least))
    }

    /// Proposes and confirms what has gathered. Called when everything that arrived together has been taken in.
    pub fn flush(&mut self, storage: &dyn Storage) -> Result<(), StorageError> {
        self.release_held_back(storage)?;
        self.confirm_reads(storage)?;
        self.propose(storage)?;
        self.end_turn(storage)?;
        if self.is_checkpoint_due() {
            self.checkpoint(storage)?;
        }
        Ok(())
    }

    /// Whether [`Self::flush`] would go on with something: what stood in its way may be gone since it was called.
    #[must_use]
    pub fn has_more(&self) -> bool {
        self.may_release() || self.may_propose() || self.is_checkpoint_due()
    }

    /// Whether the next batch may be proposed now.
    fn may_propose(&self) -> bool {
        let has_room = |paxos: &Replica| paxos.undecided() < BATCHES_IN_FLIGHT_MAX;
        self.pipeline.may_propose()
            && self.is_leading()
            && !self.is_backed_up(2)
            && self.seat.as_paxos().is_some_and(has_room)
    }

    fn is_checkpoint_due(&self) -> bool {
        self.is_checkpoint_urgent() && self.wants_checkpoint()
    }

    fn confirm_reads(&mut self, storage: &dyn Storage) -> Result<(), StorageError> {
        let ids = self.pipeline.take_arrived_reads();
        if ids.is_empty() {
            return Ok(());
        }
        if let Some(paxos) = self.seat.paxos() {
            paxos.read(ids);
        }
        self.carry_out(storage)
    }

    fn propose(&mut self, storage: &dyn Storage) -> Result<(), StorageError> {
        while self.may_propose() {
            let Some(paxos) = self.seat.paxos() else { break };
            let Some(batch) = self.pipeline.next_batch() else { break };
            match paxos.propose(Proposal::Batch(batch)) {
                Ok(slot) => self.pipeline.proposed(slot),
                // Nothing was ordered, but these commands count as proposed now; the client asks again.
                Err(_) => self.abandon_requests(),
            }
            self.carry_out(storage)?;
        }
        Ok(())
    }

    fn serve(
        &mut self,
        storage: &dyn Storage,
        ticket: Ticket,
        key: &Bytes,
        freshness: Freshness,
    ) -> Result<(), StorageError> {
        let slot = self.machine.reached().slot;
        match self.machine.get(storage, key) {
            Ok(Found::Record(found)) => self.answer(ticket, Outcome::Value { found, slot, freshness }),
            Ok(Found::NotOurs) => self.answer(ticket, Outcome::WrongGroup),
            Err(error) => {
                self.answer(ticket, Outcome::Behind);
                return self.on_damage(storage, error);
            }
        }
        Ok(())
    }

    pub(super) fn on_leader_changed(&mut self, leader: Option<ReplicaId>) {
        self.seat.leader = leader;
        if !self.seat.is_leader() {
            self.abandon_requests();
        }
    }

    pub(super) fn abandon_requests(&mut self) {
        let (queued, proposed) = self.pipeline.abandon();
        for ticket in queued {
            self.answer(ticket, Outcome::NotLeader);
        }
        for ticket in proposed {
            self.answer(ticket, Outcome::LeadershipLost);
        }
    }

    /// What the order of crash mode asks for.
    pub(super) fn carry_out_own(&mut self, storage: &dyn Storage, own: Own) -> Result<(), StorageError> {
        match own {
            Own::ReadReady { id, slot } => {
                assert!(
                    self.machine.reached().slot >= slot.0,
                    "effects come in order: it was applied before"
                );
                if let Some((ticket, key)) = self.pipeline.finish_read(id) {
                    self.serve(storage, ticket, &key, Freshness::Linearizable)?;
                }
            }
            Own::ReadRefused { id } => {
                if let Some((ticket, _)) = self.pipeline.finish_read(id) {
                    self.answer(ticket, Outcome::NotLeader);
                }
            }
            Own::SendSnapshot { to } => self.giving.want(to),
        }
        Ok(())
    }
}
