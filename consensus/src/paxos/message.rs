//! Every message of the protocol: who sends it, when, and what it means. The drawing is in [`crate::paxos`].

use crate::paxos::ballot::Ballot;
use crate::paxos::entry::Entry;
use crate::types::{Epoch, LogBase, ReplicaId, Slot, Timestamp};
use serde::{Deserialize, Serialize};

/// What a replica says of its own log. True of a replica that has promised the ballot of the message it stands in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct LogView {
    /// The ballot in which its log was accepted.
    pub accepted: Ballot,
    /// Where its log begins.
    pub base: Slot,
    /// Where its log ends.
    pub last: LogBase,
    /// The latest slot that it knows to be decided.
    pub decided: Slot,
    /// Where the entries end that it has gathered beyond its log, and claims nothing of.
    pub gathered: Option<LogBase>,
}

impl LogView {
    /// Of two logs the one of the higher rank holds whatever may have been decided in either.
    #[must_use]
    pub fn rank(&self) -> (Ballot, Slot) {
        (self.accepted, self.last.slot)
    }

    /// Whether a replica can be in this state at all. Anything else is damage.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.base <= self.decided && self.decided <= self.last.slot
    }
}

/// Why a replica did not do what a leader asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Reason {
    /// It has promised a higher ballot.
    Promised(Ballot),
    /// It has not promised this ballot yet: send Prepare.
    NeedPrepare,
    /// It has promised, but not adopted the leader's log yet: send what goes on behind what it has gathered.
    NeedSync {
        /// Its log, and what it has gathered.
        view: LogView,
    },
    /// Its log ends at this slot; what came does not follow it.
    GapAt(Slot),
    /// It is in another epoch.
    Epoch(Epoch),
}

/// A message from one replica to another.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Message {
    /// Would-be leader to all: would you promise this ballot? Changes nothing anywhere.
    PreVote {
        /// The ballot it would use.
        ballot: Ballot,
    },
    /// Answer to PreVote.
    PreVoteReply {
        /// The ballot asked about.
        ballot: Ballot,
        /// Whether the replica has heard of no working leader lately.
        granted: bool,
        /// The highest ballot it has promised, so that a lagging candidate can outrank it.
        promised: Ballot,
    },
    /// Phase 1, candidate to all: promise to help no lower ballot.
    Prepare {
        /// The candidate's ballot.
        ballot: Ballot,
    },
    /// Phase 1, acceptor to candidate, when the promise is durable.
    Promise {
        /// The promised ballot.
        ballot: Ballot,
        /// What the acceptor holds.
        view: LogView,
        /// What its clock says.
        wall: Timestamp,
    },
    /// Candidate to the replica with the best log: send me what I lack. Answered only while `ballot` is promised,
    /// so the log cannot have changed since the promise.
    FetchLog {
        /// The candidate's ballot.
        ballot: Ballot,
        /// Where the candidate's log agrees with the best one, as far as it can tell.
        from: Slot,
        /// About so many bytes of entries, but at least one entry.
        bytes: u64,
    },
    /// Answer to FetchLog.
    LogChunk {
        /// The candidate's ballot.
        ballot: Ballot,
        /// Position and hash just before the entries.
        previous: LogBase,
        /// Entries of the best log.
        entries: Vec<Entry>,
    },
    /// Phase 2 begins, leader to one acceptor: make your log equal to the one I adopted. Takes effect as a whole and
    /// once per ballot; comes in pieces.
    AcceptSync {
        /// The leader's ballot.
        ballot: Ballot,
        /// A position that both logs should share.
        sync: LogBase,
        /// A piece of the entries in `(sync, adopted]`.
        entries: Vec<Entry>,
        /// Where the adopted log ends: what is gathered is this log if it ends with this hash.
        adopted: LogBase,
        /// The leader still hears a quorum.
        quorate: bool,
    },
    /// Phase 2, leader to acceptor: append these entries.
    Accept {
        /// The leader's ballot.
        ballot: Ballot,
        /// Position and hash just before the entries.
        previous: LogBase,
        /// The entries.
        entries: Vec<Entry>,
        /// The latest decided slot.
        decided: Slot,
        /// The leader still hears a quorum.
        quorate: bool,
    },
    /// Phase 2, acceptor to leader, when durable.
    Accepted {
        /// The ballot in which the log was accepted.
        ballot: Ballot,
        /// Everything up to here is durable.
        durable: Slot,
    },
    /// Acceptor to leader: not so.
    Reject {
        /// The ballot of the refused message.
        ballot: Ballot,
        /// Why.
        reason: Reason,
    },
    /// Leader to all, regularly and once per round of reads.
    Heartbeat {
        /// The leader's ballot.
        ballot: Ballot,
        /// Counts the leader's heartbeats; a read waits for answers to a round begun after it.
        round: u64,
        /// The latest decided slot.
        decided: Slot,
        /// The leader still hears a quorum.
        quorate: bool,
    },
    /// Answer to Heartbeat.
    HeartbeatReply {
        /// The leader's ballot.
        ballot: Ballot,
        /// The round that is answered.
        round: u64,
        /// What the acceptor holds.
        view: LogView,
        /// What of it is durable and accepted in `view.accepted`.
        durable: Slot,
        /// What its clock says.
        wall: Timestamp,
    },
    /// Lead, without asking whether the old leader works: it is the one that says so.
    TransferLeader {
        /// The sender's ballot.
        ballot: Ballot,
    },
}

impl Message {
    /// The ballot that the message speaks for.
    #[must_use]
    pub fn ballot(&self) -> Ballot {
        match self {
            Self::PreVote { ballot }
            | Self::PreVoteReply { ballot, .. }
            | Self::Prepare { ballot }
            | Self::Promise { ballot, .. }
            | Self::FetchLog { ballot, .. }
            | Self::LogChunk { ballot, .. }
            | Self::AcceptSync { ballot, .. }
            | Self::Accept { ballot, .. }
            | Self::Accepted { ballot, .. }
            | Self::Reject { ballot, .. }
            | Self::Heartbeat { ballot, .. }
            | Self::HeartbeatReply { ballot, .. }
            | Self::TransferLeader { ballot } => *ballot,
        }
    }

    /// The replica that may send this message, if the ballot fixes it.
    #[must_use]
    pub fn only_sender(&self) -> Option<ReplicaId> {
        match self {
            Self::PreVote { ballot }
            | Self::Prepare { ballot }
            | Self::FetchLog { ballot, .. }
            | Self::AcceptSync { ballot, .. }
            | Self::Accept { ballot, .. }
            | Self::Heartbeat { ballot, .. } => Some(ballot.replica),
            _ => None,
        }
    }
}
