//! Deliberate defects, so that the tests can show that they would notice.
//!
//! Each variant switches one rule off. They exist only in builds with the feature `mutants`, which only tests turn
//! on; elsewhere [`Mutation`] has the one value [`Mutation::None`] and every question below is a constant `false`.

/// One rule switched off.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Mutation {
    /// Every rule holds.
    #[default]
    None,
    /// Entries count as durable when they are received, not when the barrier is done.
    #[cfg(feature = "mutants")]
    AckBeforeBarrier,
    /// Reads are served without asking a quorum whether this replica still leads.
    #[cfg(feature = "mutants")]
    ReadWithoutIndex,
    /// Acknowledgements of an older ballot count for the current one.
    #[cfg(feature = "mutants")]
    CountOlderBallot,
    /// A promise does not report what was accepted before it.
    #[cfg(feature = "mutants")]
    PromiseWithoutAccepted,
    /// A new leader goes on with its own log instead of the best one of its quorum.
    #[cfg(feature = "mutants")]
    KeepOwnLog,
    /// A quorum is counted by messages, so that a duplicate counts twice.
    #[cfg(feature = "mutants")]
    CountMessages,
    /// A second AcceptSync of the same ballot truncates what was acknowledged since the first.
    #[cfg(feature = "mutants")]
    SyncTwice,
    /// A decided slot is believed although the log was accepted in another ballot.
    #[cfg(feature = "mutants")]
    DecideAnyBallot,
    /// A promise is sent before it is durable, and forgotten by a crash.
    #[cfg(feature = "mutants")]
    PromiseBeforeBarrier,
    /// A new leader appends behind an adopted stop-sign.
    #[cfg(feature = "mutants")]
    AppendAfterStopSign,
    /// A slot is decided one acknowledgement too early.
    #[cfg(feature = "mutants")]
    DecideTooSoon,
    /// A candidate leads with one promise too few.
    #[cfg(feature = "mutants")]
    LeadTooSoon,
    /// A candidate leads with a part of the best log, as soon as some of it has come.
    #[cfg(feature = "mutants")]
    LeadHalfFetched,
    /// A follower adopts a part of its leader's log, as soon as some of it has come.
    #[cfg(feature = "mutants")]
    AdoptHalfSync,
    /// A leader whose disk hangs leads on.
    #[cfg(feature = "mutants")]
    LeadWithoutDisk,
    /// A leader stamps with its own clock alone.
    #[cfg(feature = "mutants")]
    StampOwnClock,
    /// PBFT: one replica fewer than a quorum is enough.
    #[cfg(feature = "mutants")]
    QuorumTooSmall,
    /// PBFT: what was prepared is forgotten when a view is left.
    #[cfg(feature = "mutants")]
    ForgetPrepared,
    /// PBFT: the batch beside a PRE-PREPARE is not held against its digest.
    #[cfg(feature = "mutants")]
    BodyUnchecked,
    /// PBFT: a COMMIT leaves before its certificate is durable.
    #[cfg(feature = "mutants")]
    CommitBeforeBarrier,
    /// PBFT: certificates in a view change are not checked, so that a bad one hides good ones.
    #[cfg(feature = "mutants")]
    CertificatesUnchecked,
    /// PBFT: slots behind a stop-sign are executed.
    #[cfg(feature = "mutants")]
    ExecuteBehindStopSign,
    /// PBFT: after a restart a view change is made again instead of sent again.
    #[cfg(feature = "mutants")]
    RemakeViewChange,
    /// PBFT: a checkpoint is stable when one honest replica has signed it.
    #[cfg(feature = "mutants")]
    StableTooSoon,
    /// PBFT: requests are taken without a look at their clients' signatures.
    #[cfg(feature = "mutants")]
    RequestsUnchecked,
    /// PBFT: a PREPARE leaves before its acceptance is durable.
    #[cfg(feature = "mutants")]
    PrepareUndurable,
    /// PBFT: the wait for a primary begins anew whenever its backup is short of a batch.
    #[cfg(feature = "mutants")]
    RestartWait,
    /// PBFT: a primary's pace is judged only where many slots are ordered.
    #[cfg(feature = "mutants")]
    PaceOfManyAlone,
    /// PBFT: what was executed is never taken when it is passed on, and always when it is brought.
    #[cfg(feature = "mutants")]
    IgnorePassedOn,
    /// PBFT: patience that grew with views that failed stays where nothing is asked.
    #[cfg(feature = "mutants")]
    PatienceOnlyGrows,
    /// PBFT: a primary is blamed for old times although this replica was away.
    #[cfg(feature = "mutants")]
    BlameWhenLate,
    /// PBFT: whatever a primary proposes within its window is kept until it is decided.
    #[cfg(feature = "mutants")]
    KeepEveryProposal,
    /// PBFT: whoever comes first gets all the room for requests that wait.
    #[cfg(feature = "mutants")]
    FirstComeCustody,
    /// Around the engines: the write-ahead log is replaced although an engine that has stopped gave nothing for it.
    #[cfg(feature = "mutants")]
    ReplaceWithoutAll,
    /// Around the engines: a node with a new store votes before the others have noted it.
    #[cfg(feature = "mutants")]
    VoteUnknown,
    /// Around the engines: whatever store a node comes with is noted anew.
    #[cfg(feature = "mutants")]
    NoteAnew,
    /// Around the engines: of a store that comes, only its last opening is looked at.
    #[cfg(feature = "mutants")]
    ForgetOpenings,
    /// Around the engines: a node is heard although its life is not durably noted.
    #[cfg(feature = "mutants")]
    HearAtOnce,
    /// Nodes around PBFT: signatures are checked in one line for all, first come, first served, and whoever brings bad ones may go
    /// on.
    #[cfg(feature = "mutants")]
    OneLine,
    /// Around the engines: a client may hold as many sessions as there are.
    #[cfg(feature = "mutants")]
    IgnoreShares,
    /// Around the engines: nobody remembers that a request was cancelled.
    #[cfg(feature = "mutants")]
    ForgetCancels,
    /// Around the engines: sessions are kept in memory only.
    #[cfg(feature = "mutants")]
    ForgetSessions,
    /// Nodes around PBFT: the root of a state does not cover what clients were answered.
    #[cfg(feature = "mutants")]
    LeaveOutSessions,
    /// Around the engines: of the log as much is kept for whoever lags or is given a state as for anybody.
    #[cfg(feature = "mutants")]
    PinNothing,
    /// Clients: each time a request is asked again it has another number.
    #[cfg(feature = "mutants")]
    NewNumbers,
    /// Clients: what answers a request that is not waited for any more is taken for the answer to one that is.
    #[cfg(feature = "mutants")]
    EarlierAnswer,
    /// Clients of PBFT: what one replica tells is believed.
    #[cfg(feature = "mutants")]
    OneReply,
    /// Clients of PBFT: what nodes tell is believed that have no replica of the group.
    #[cfg(feature = "mutants")]
    AnyNode,
    /// Nodes around PBFT: whatever comes from whoever gives a state counts as progress, also if nothing of it holds.
    #[cfg(feature = "mutants")]
    AnySignOfLife,
}

impl Mutation {
    /// Every defect of Multi-Paxos, for tests that try them all.
    #[cfg(feature = "mutants")]
    pub const PAXOS: [Self; 15] = [
        Self::AckBeforeBarrier,
        Self::ReadWithoutIndex,
        Self::CountOlderBallot,
        Self::PromiseWithoutAccepted,
        Self::KeepOwnLog,
        Self::CountMessages,
        Self::SyncTwice,
        Self::DecideAnyBallot,
        Self::PromiseBeforeBarrier,
        Self::AppendAfterStopSign,
        Self::DecideTooSoon,
        Self::LeadTooSoon,
        Self::LeadHalfFetched,
        Self::AdoptHalfSync,
        Self::StampOwnClock,
    ];

    /// Every defect of PBFT.
    #[cfg(feature = "mutants")]
    pub const PBFT: [Self; 10] = [
        Self::QuorumTooSmall,
        Self::ForgetPrepared,
        Self::BodyUnchecked,
        Self::CommitBeforeBarrier,
        Self::CertificatesUnchecked,
        Self::RemakeViewChange,
        Self::ExecuteBehindStopSign,
        Self::StableTooSoon,
        Self::RequestsUnchecked,
        Self::PrepareUndurable,
    ];

    /// Every defect of PBFT that a liar needs to make use of it, and that costs liveness or memory, never agreement.
    #[cfg(feature = "mutants")]
    pub const PBFT_LIVENESS: [Self; 7] = [
        Self::RestartWait,
        Self::PaceOfManyAlone,
        Self::IgnorePassedOn,
        Self::PatienceOnlyGrows,
        Self::BlameWhenLate,
        Self::FirstComeCustody,
        Self::KeepEveryProposal,
    ];

    /// Every defect of what a node does around its engines.
    #[cfg(feature = "mutants")]
    pub const NODE: [Self; 8] = [
        Self::ReplaceWithoutAll,
        Self::VoteUnknown,
        Self::NoteAnew,
        Self::ForgetOpenings,
        Self::HearAtOnce,
        Self::IgnoreShares,
        Self::ForgetCancels,
        Self::ForgetSessions,
    ];

    /// Every defect of a client in crash mode.
    #[cfg(feature = "mutants")]
    pub const CLIENT: [Self; 2] = [Self::NewNumbers, Self::EarlierAnswer];

    /// Every defect of a client in Byzantine mode.
    #[cfg(feature = "mutants")]
    pub const BYZANTINE_CLIENT: [Self; 2] = [Self::OneReply, Self::AnyNode];

    /// Whether a client asks again under another number.
    #[must_use]
    pub fn numbers_anew(self) -> bool {
        #[cfg(feature = "mutants")]
        return self == Self::NewNumbers;
        #[cfg(not(feature = "mutants"))]
        false
    }

    /// Whether a client takes what answers an earlier request for the answer to a later one.
    #[must_use]
    pub fn takes_earlier_answers(self) -> bool {
        #[cfg(feature = "mutants")]
        return self == Self::EarlierAnswer;
        #[cfg(not(feature = "mutants"))]
        false
    }

    /// Whether a client believes one replica.
    #[must_use]
    pub fn believes_one(self) -> bool {
        #[cfg(feature = "mutants")]
        return self == Self::OneReply;
        #[cfg(not(feature = "mutants"))]
        false
    }

    /// Whether a client believes nodes that have no replica of the group.
    #[must_use]
    pub fn believes_anybody(self) -> bool {
        #[cfg(feature = "mutants")]
        return self == Self::AnyNode;
        #[cfg(not(feature = "mutants"))]
        false
    }

    /// Whether a client may hold as many sessions as there are.
    #[must_use]
    pub fn ignores_shares(self) -> bool {
        #[cfg(feature = "mutants")]
        return self == Self::IgnoreShares;
        #[cfg(not(feature = "mutants"))]
        false
    }

    /// Whether nobody remembers that a request was cancelled.
    #[must_use]
    pub fn forgets_cancels(self) -> bool {
        #[cfg(feature = "mutants")]
        return self == Self::ForgetCancels;
        #[cfg(not(feature = "mutants"))]
        false
    }

    /// Whether a restart finds no sessions.
    #[must_use]
    pub fn forgets_sessions(self) -> bool {
        #[cfg(feature = "mutants")]
        return self == Self::ForgetSessions;
        #[cfg(not(feature = "mutants"))]
        false
    }

    /// Whether a state's root does not cover its sessions.
    #[must_use]
    pub fn leaves_out_sessions(self) -> bool {
        #[cfg(feature = "mutants")]
        return self == Self::LeaveOutSessions;
        #[cfg(not(feature = "mutants"))]
        false
    }

    /// Whether a node replaces its log without the records of an engine that has stopped.
    #[must_use]
    pub fn replaces_without_all(self) -> bool {
        #[cfg(feature = "mutants")]
        return self == Self::ReplaceWithoutAll;
        #[cfg(not(feature = "mutants"))]
        false
    }

    /// Whether a node with a new store votes at once.
    #[must_use]
    pub fn votes_unknown(self) -> bool {
        #[cfg(feature = "mutants")]
        return self == Self::VoteUnknown;
        #[cfg(not(feature = "mutants"))]
        false
    }

    /// Whether a node takes whatever store comes under a name.
    #[must_use]
    pub fn notes_anew(self) -> bool {
        #[cfg(feature = "mutants")]
        return self == Self::NoteAnew;
        #[cfg(not(feature = "mutants"))]
        false
    }

    /// Whether a node is heard before its life is durably noted.
    #[must_use]
    pub fn hears_at_once(self) -> bool {
        #[cfg(feature = "mutants")]
        return self == Self::HearAtOnce;
        #[cfg(not(feature = "mutants"))]
        false
    }

    /// Whether of a store that comes under a name only the last opening is looked at.
    #[must_use]
    pub fn forgets_openings(self) -> bool {
        #[cfg(feature = "mutants")]
        return self == Self::ForgetOpenings;
        #[cfg(not(feature = "mutants"))]
        false
    }

    /// Every defect of what is around PBFT in a node: the cores alone cannot show them.
    #[cfg(feature = "mutants")]
    pub const BYZANTINE_NODES: [Self; 4] =
        [Self::AnySignOfLife, Self::IgnoreShares, Self::LeaveOutSessions, Self::OneLine];

    /// Whether signatures are checked in one line for all.
    #[must_use]
    pub fn checks_in_one_line(self) -> bool {
        #[cfg(feature = "mutants")]
        return self == Self::OneLine;
        #[cfg(not(feature = "mutants"))]
        false
    }

    /// Whether a replica that lags or is given a state finds no more of the log than anybody.
    #[must_use]
    pub fn pins_nothing(self) -> bool {
        #[cfg(feature = "mutants")]
        return self == Self::PinNothing;
        #[cfg(not(feature = "mutants"))]
        false
    }

    /// Whether any sign of life counts as progress of a state that is given.
    #[must_use]
    pub fn counts_any_sign_of_life(self) -> bool {
        #[cfg(feature = "mutants")]
        return self == Self::AnySignOfLife;
        #[cfg(not(feature = "mutants"))]
        false
    }
}

/// Whether the options switch the named rule off. A constant `false` without the feature `mutants`.
macro_rules! mutated {
    ($options:expr, $variant:ident) => {{
        #[cfg(feature = "mutants")]
        let on = $options.mutation == $crate::mutation::Mutation::$variant;
        #[cfg(not(feature = "mutants"))]
        let on = {
            let _ = &$options;
            false
        };
        on
    }};
}
pub(crate) use mutated;
