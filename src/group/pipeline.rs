//! Crash mode: what waits to be proposed, what is under way, and who waits for it.
//!
//! Commands wait for their turn and then for their outcome, reads for their confirmation. A leader has few batches under way: what
//! arrives meanwhile shares the next one. Whoever leads no more knows nothing of what it has proposed: it may be ordered, elsewhere or never.

use crate::kv::{Batch, RequestId};
use crate::limits::{
    BATCH_BYTES_MAX, BATCH_COMMANDS_MAX, BATCHES_IN_FLIGHT_MAX, QUEUED_BYTES_MAX, QUEUED_COMMANDS_MAX,
};
use crate::shares::{Account, Shares, Turns};
use crate::ticket::Ticket;
use bytes::Bytes;
use std::collections::{BTreeMap, VecDeque};
use tetrachord_consensus::{ReadId, Slot};

/// So many bytes of a command count as much as another command.
const COST_BYTES: usize = 1 << 10;

/// See the module's essay.
#[derive(Debug)]
pub(super) struct Pipeline {
    queue: Turns<Account, (Account, Ticket, RequestId, Bytes)>,
    queued: Shares,
    queued_bytes: Shares,
    waiting: BTreeMap<RequestId, Vec<Ticket>>,
    reads: BTreeMap<ReadId, (Ticket, Bytes)>,
    arrived_reads: Vec<ReadId>,
    last_read: u64,
    /// Slots that this replica has proposed since it leads, and that were not applied yet.
    proposed: VecDeque<Slot>,
    /// Something that it proposed since it leads is applied, and so is all that was decided before.
    is_current: bool,
}

impl Default for Pipeline {
    fn default() -> Self {
        Self {
            queue: Turns::default(),
            queued: Shares::of(QUEUED_COMMANDS_MAX),
            queued_bytes: Shares::of(QUEUED_BYTES_MAX),
            waiting: BTreeMap::new(),
            reads: BTreeMap::new(),
            arrived_reads: Vec::new(),
            last_read: 0,
            proposed: VecDeque::new(),
            is_current: false,
        }
    }
}

impl Pipeline {
    /// Takes a command to be proposed; false if too many wait, of all or of whoever answers for it.
    pub(super) fn push(
        &mut self,
        account: Account,
        ticket: Ticket,
        request: RequestId,
        command: Bytes,
    ) -> bool {
        if !self.queued.take(account, 1) {
            return false;
        }
        if !self.queued_bytes.take(account, command.len()) {
            self.queued.give_back(account, 1);
            return false;
        }
        let cost = u32::try_from(1 + command.len() / COST_BYTES).expect("commands are small");
        self.queue.push(account, cost, (account, ticket, request, command));
        true
    }

    /// The next batch: commands of one client in order of arrival, clients in turn. Its commands now wait for their outcome.
    pub(super) fn next_batch(&mut self) -> Option<Bytes> {
        let mut batch = Batch::default();
        while let Some((_, (.., command))) = self.queue.peek() {
            let is_full =
                batch.len() >= BATCH_COMMANDS_MAX || batch.bytes() + command.len() > BATCH_BYTES_MAX;
            if is_full && !batch.is_empty() {
                break;
            }
            let (_, (account, ticket, request, command)) = self.queue.pop().expect("the queue has a front");
            self.queued.give_back(account, 1);
            self.queued_bytes.give_back(account, command.len());
            batch.push(&command);
            self.waiting.entry(request).or_default().push(ticket);
        }
        assert!(batch.len() <= BATCH_COMMANDS_MAX, "a batch is bounded");
        (!batch.is_empty()).then(|| batch.freeze())
    }

    /// Whether a command waits for its turn, and may have it.
    pub(super) fn may_propose(&self) -> bool {
        self.proposed.len() < BATCHES_IN_FLIGHT_MAX && !self.queue.is_empty()
    }

    /// The last batch was proposed for this slot.
    pub(super) fn proposed(&mut self, slot: Slot) {
        assert!(self.proposed.back().is_none_or(|last| *last < slot), "proposals are for slots in order");
        self.proposed.push_back(slot);
    }

    /// The slot and all before it are applied.
    pub(super) fn applied(&mut self, slot: Slot) {
        while self.proposed.front().is_some_and(|proposed| *proposed <= slot) {
            self.proposed.pop_front();
            self.is_current = true;
        }
    }

    /// Whether all is applied here that was decided before this replica led: only a leader that has applied something of its own knows.
    pub(super) fn is_current(&self) -> bool {
        self.is_current
    }

    /// The request has an outcome: everybody who waited for it.
    pub(super) fn finish(&mut self, request: &RequestId) -> Vec<Ticket> {
        self.waiting.remove(request).unwrap_or_default()
    }

    /// Takes a read that waits for its confirmation.
    pub(super) fn push_read(&mut self, ticket: Ticket, key: Bytes) {
        self.last_read += 1;
        let id = ReadId(self.last_read);
        self.reads.insert(id, (ticket, key));
        self.arrived_reads.push(id);
    }

    /// The reads that arrived since the last call.
    pub(super) fn take_arrived_reads(&mut self) -> Vec<ReadId> {
        std::mem::take(&mut self.arrived_reads)
    }

    /// The read was confirmed or refused.
    pub(super) fn finish_read(&mut self, id: ReadId) -> Option<(Ticket, Bytes)> {
        self.reads.remove(&id)
    }

    /// The leadership is lost: commands that were never proposed, and those that were.
    pub(super) fn abandon(&mut self) -> (Vec<Ticket>, Vec<Ticket>) {
        self.queued.clear();
        self.queued_bytes.clear();
        let queued = self.queue.drain().into_iter().map(|(_, ticket, ..)| ticket).collect();
        self.proposed.clear();
        self.is_current = false;
        let proposed = std::mem::take(&mut self.waiting).into_values().flatten().collect();
        (queued, proposed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kv::SessionId;
    use crate::shares::ClientId;

    fn request(number: u64) -> RequestId {
        RequestId { session: SessionId(1), number }
    }

    fn client(number: u8) -> Account {
        Account::Client(ClientId([number; 32]))
    }

    #[test]
    fn what_waits_is_bounded_and_leaves_in_order() {
        let mut pipeline = Pipeline::default();
        for number in 0..(BATCH_COMMANDS_MAX as u64 + 1) {
            assert!(pipeline.push(client(1), Ticket(number), request(number), Bytes::from_static(b"c")));
        }
        let first = pipeline.next_batch().unwrap();
        assert_eq!(first.len(), BATCH_COMMANDS_MAX * (4 + 1 + 1));
        assert_eq!(pipeline.finish(&request(0)), vec![Ticket(0)]);
        assert_eq!(pipeline.finish(&request(0)), vec![]);
        let (queued, proposed) = pipeline.abandon();
        assert_eq!((queued.len(), proposed.len()), (1, BATCH_COMMANDS_MAX - 1));
        let huge = Bytes::from(vec![0; QUEUED_BYTES_MAX / 2]);
        assert!(pipeline.push(client(1), Ticket(1), request(1), huge.clone()));
        assert!(!pipeline.push(client(1), Ticket(2), request(2), Bytes::from_static(b"c")));
        assert!(pipeline.next_batch().is_some(), "even a command larger than a batch is proposed");
        assert!(!pipeline.may_propose());
    }

    #[test]
    fn a_client_that_fills_its_share_leaves_room_for_others() {
        let mut pipeline = Pipeline::default();
        let command = Bytes::from(vec![0; 1 << 20]);
        let mut push =
            |client, number: u64| pipeline.push(client, Ticket(number), request(number), command.clone());
        let taken = (0..100).filter(|number| push(client(1), *number)).count();
        assert_eq!(taken, (QUEUED_BYTES_MAX / 2) >> 20);
        assert!((200..205).all(|number| push(client(2), number)));
        // However much of the other waits, what this one asks is next; each of these is a batch of its own.
        (0..2).for_each(|_| _ = pipeline.next_batch().unwrap());
        assert_eq!(pipeline.finish(&request(200)), [Ticket(200)]);
        let small = Bytes::from_static(b"c");
        let mut pipeline = Pipeline::default();
        let mut push =
            |client, number: u64| pipeline.push(client, Ticket(number), request(number), small.clone());
        let taken = (0..QUEUED_COMMANDS_MAX as u64).filter(|number| push(client(1), *number)).count();
        assert_eq!(taken, QUEUED_COMMANDS_MAX / 2);
        assert!(push(client(2), 1 << 20));
    }
}
