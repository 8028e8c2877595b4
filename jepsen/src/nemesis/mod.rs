//! What goes wrong. Each nemesis has a name, says what it does, and must show its effect: one that is injected and changes
//! nothing fails the sweep.

/// A kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Nemesis {
    /// A node ends at once; what its disk had not synced is lost.
    Kill,
    /// All nodes end in one moment.
    PowerCut,
    /// A node stands still, then runs on as if nothing had been.
    Pause,
    /// Two halves that do not hear one another.
    Halves,
    /// One node that nobody hears and that hears nobody.
    Isolate,
    /// Every node hears a majority, no two the same one.
    MajoritiesRing,
    /// Two halves with one node in both.
    Bridge,
    /// Some links carry in one direction only.
    OneWay,
    /// Messages are lost.
    Loss,
    /// Messages come late.
    Delay,
    /// Messages come twice.
    Duplication,
    /// Messages overtake one another.
    Reordering,
    /// Disks take long.
    SlowDisk,
    /// Wall clocks jump.
    ClockJump,
    /// Monotonic clocks run fast or slow.
    ClockRate,
    /// Byzantine mode: rows of a node's state are changed behind its back.
    Rot,
    /// Byzantine mode: nodes lie.
    Lies,
}

impl Nemesis {
    /// All of them.
    pub const ALL: [Self; 17] = [
        Self::Kill,
        Self::PowerCut,
        Self::Pause,
        Self::Halves,
        Self::Isolate,
        Self::MajoritiesRing,
        Self::Bridge,
        Self::OneWay,
        Self::Loss,
        Self::Delay,
        Self::Duplication,
        Self::Reordering,
        Self::SlowDisk,
        Self::ClockJump,
        Self::ClockRate,
        Self::Rot,
        Self::Lies,
    ];

    /// Its name on the command line and in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Kill => "kill",
            Self::PowerCut => "power-cut",
            Self::Pause => "pause",
            Self::Halves => "halves",
            Self::Isolate => "isolate",
            Self::MajoritiesRing => "majorities-ring",
            Self::Bridge => "bridge",
            Self::OneWay => "one-way",
            Self::Loss => "loss",
            Self::Delay => "delay",
            Self::Duplication => "duplication",
            Self::Reordering => "reordering",
            Self::SlowDisk => "slow-disk",
            Self::ClockJump => "clock-jump",
            Self::ClockRate => "clock-rate",
            Self::Rot => "rot",
            Self::Lies => "lies",
        }
    }

    /// The nemesis with this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|nemesis| nemesis.name() == name)
    }

    /// What it does, in a line, and by what its effect is counted.
    #[must_use]
    pub fn about(self) -> (&'static str, &'static str) {
        match self {
            Self::Kill => ("a node ends; what it had not synced is lost", "nodes killed"),
            Self::PowerCut => ("all nodes end in one moment", "power cuts"),
            Self::Pause => ("a node stands still, then runs on", "messages that waited for it"),
            Self::Halves => ("two halves do not hear one another", "messages cut off"),
            Self::Isolate => ("one node is cut off", "messages cut off"),
            Self::MajoritiesRing => ("every node hears a majority, no two the same", "messages cut off"),
            Self::Bridge => ("two halves with one node in both", "messages cut off"),
            Self::OneWay => ("some links carry one way only", "messages cut off"),
            Self::Loss => ("messages are lost", "messages lost"),
            Self::Delay => ("messages come late", "messages delayed"),
            Self::Duplication => ("messages come twice", "messages doubled"),
            Self::Reordering => ("messages overtake one another", "messages that overtook"),
            Self::SlowDisk => ("barriers take up to half a second", "barriers delayed"),
            Self::ClockJump => ("wall clocks jump by up to an hour", "jumps"),
            Self::ClockRate => ("monotonic clocks run up to a fifth fast or slow", "nodes off rate"),
            Self::Rot => ("rows of a node's state are changed (Byzantine mode)", "rows changed"),
            Self::Lies => ("f nodes lie in every way (Byzantine mode)", "lies told"),
        }
    }

    /// Whether only Byzantine mode survives it.
    #[must_use]
    pub fn is_byzantine(self) -> bool {
        matches!(self, Self::Rot | Self::Lies)
    }
}
