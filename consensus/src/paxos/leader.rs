//! What a leader knows: of itself, and of each other replica.

use crate::paxos::ballot::Ballot;
use crate::paxos::flow::Flow;
use crate::paxos::hand_over::OwnDisk;
use crate::paxos::message::LogView;
use crate::paxos::reads::Reads;
use crate::paxos::time::Clock;
use crate::types::{LogBase, ReplicaId, Slot, Ticks};
use std::collections::BTreeMap;

/// How a leader brings one replica up to date.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Stage {
    /// It has not promised yet, as far as the leader knows.
    Prepare,
    /// It has promised; the adopted log is being sent, up to `sent` so far.
    Sync {
        /// Where both logs should agree.
        sync: LogBase,
        /// Where the sync ends: the adopted log, or further if the log no longer reaches back to its end.
        end: LogBase,
        /// Last slot sent.
        sent: Slot,
    },
    /// It accepted the adopted log; entries from `next` on are to be sent.
    Replicate {
        /// The next slot to send.
        next: Slot,
    },
    /// A snapshot is on its way.
    Snapshot,
}

/// A heartbeat whose answer will tell what was lost before it, and how long it took.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Probe {
    /// Its round.
    pub round: u64,
    /// When it was sent.
    pub at: Ticks,
    /// The last slot that was sent before it.
    pub sent: Slot,
}

/// One other replica, as the leader sees it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Peer {
    /// What is to be done for it.
    pub stage: Stage,
    /// Durable there as accepted in the leader's ballot.
    pub durable: Slot,
    /// When it last answered in the leader's ballot.
    pub contact: Option<Ticks>,
    /// The heartbeat that is to be answered.
    pub probe: Option<Probe>,
    /// What its clock said last.
    pub clock: Option<Clock>,
    /// What is on its way.
    pub flow: Flow,
    /// It has refused entries because those behind this slot had not come. While they are on their way again nothing else is: all
    /// that was in flight will be refused too, and each refusal would cost another window.
    gap: Option<Slot>,
}

impl Peer {
    fn new() -> Self {
        Self {
            stage: Stage::Prepare,
            durable: Slot::ZERO,
            contact: None,
            probe: None,
            clock: None,
            flow: Flow::new(),
            gap: None,
        }
    }

    /// Goes on with something else; whatever was in flight is given up.
    pub fn enter(&mut self, stage: Stage) {
        self.stage = stage;
        self.gap = None;
        self.probe = None;
        self.flow.give_up();
    }

    /// Goes on with entries from `next` on.
    pub fn replicate_from(&mut self, next: Slot) {
        assert!(next > Slot::ZERO, "the first entry has slot 1");
        self.enter(Stage::Replicate { next });
    }

    /// Goes on behind `last`, where it says that its log ends, with one message. True if that is news: what it holds durably it
    /// cannot lack, and what is on its way again need not be sent once more.
    pub fn fill_gap(&mut self, last: Slot) -> bool {
        let Stage::Replicate { next } = self.stage else { return false };
        let is_known = self.gap.is_some_and(|gap| last >= gap);
        let is_news = last < next.previous() && last >= self.durable && !is_known;
        if is_news {
            self.replicate_from(last.next());
            self.gap = Some(last);
        }
        is_news
    }

    /// Whether something fills a gap, so that nothing is sent behind it.
    #[must_use]
    pub fn is_filling(&self) -> bool {
        self.gap.is_some() && !self.flow.is_empty()
    }

    /// Entries up to `durable` are durable there.
    pub fn acknowledged(&mut self, durable: Slot, window_bytes: usize) {
        self.durable = self.durable.max(durable);
        self.gap = self.gap.filter(|gap| durable <= *gap);
        self.flow.done(durable, window_bytes);
    }

    /// The last slot that was sent to it.
    #[must_use]
    pub fn sent(&self) -> Slot {
        match self.stage {
            Stage::Replicate { next } => next.previous(),
            Stage::Sync { sent, .. } => sent,
            Stage::Prepare | Stage::Snapshot => Slot::ZERO,
        }
    }
}

/// The state of a leader.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Leader {
    /// Its ballot; equal to what its own acceptor promised and accepted.
    pub ballot: Ballot,
    /// The ballot in which the adopted log had been accepted.
    pub adopted_from: Ballot,
    /// Where the adopted log ends.
    pub adopted: Slot,
    /// Decided means: this leader knows everything decided before it. Its own first entry, or the adopted stop-sign.
    pub barrier: Slot,
    /// All other replicas.
    pub peers: BTreeMap<ReplicaId, Peer>,
    /// Reads that wait.
    pub reads: Reads,
    /// Number of the latest heartbeat.
    pub round: u64,
    /// When the latest regular heartbeat was sent.
    pub heartbeat_at: Ticks,
    /// When this replica began to lead.
    pub since: Ticks,
    /// How far its own disk has come.
    pub own_disk: OwnDisk,
    /// Leadership is being handed to this replica, until then.
    pub transfer: Option<(ReplicaId, Ticks)>,
}

impl Leader {
    /// A leader that has just adopted a log.
    #[must_use]
    pub fn new(
        ballot: Ballot,
        adopted_from: Ballot,
        adopted: Slot,
        others: Vec<ReplicaId>,
        now: Ticks,
    ) -> Self {
        assert!(ballot > adopted_from, "the adopted log is older than the ballot that adopts it");
        Self {
            ballot,
            adopted_from,
            adopted,
            barrier: adopted,
            peers: others.into_iter().map(|replica| (replica, Peer::new())).collect(),
            reads: Reads::default(),
            round: 0,
            heartbeat_at: now,
            since: now,
            own_disk: OwnDisk::new(now),
            transfer: None,
        }
    }

    /// How many replicas, this one included, answered within the last `ticks`.
    #[must_use]
    pub fn heard_within(&self, ticks: u64, now: Ticks) -> usize {
        let heard = |peer: &&Peer| peer.contact.is_some_and(|contact| now.since(contact) <= ticks);
        let count = 1 + self.peers.values().filter(heard).count();
        assert!(count <= self.peers.len() + 1, "every replica counts once");
        count
    }

    /// The highest slot that `quorum` replicas hold durably as accepted in this ballot.
    #[must_use]
    pub fn quorum_durable(&self, own: Slot, quorum: usize) -> Slot {
        let mut durable: Vec<Slot> = self.peers.values().map(|peer| peer.durable).chain([own]).collect();
        assert!(quorum >= 1 && quorum <= durable.len(), "a quorum is part of the group");
        durable.sort_unstable_by(|a, b| b.cmp(a));
        durable[quorum - 1]
    }

    /// Where AcceptSync to a replica with this log should begin: the longest prefix that both surely share. `end` is
    /// where the sync will end; the replica may know more to be decided than that, from a snapshot.
    pub(super) fn sync_point(&self, view: &LogView, end: Slot) -> Slot {
        assert!(end >= self.adopted, "a sync covers the whole adopted log");
        let shared =
            if view.accepted == self.adopted_from { view.last.slot.min(self.adopted) } else { Slot::ZERO };
        let point = shared.max(view.decided.min(end));
        assert!(view.accepted < self.ballot && point <= end, "only a log of an older ballot needs a sync");
        point
    }
}
