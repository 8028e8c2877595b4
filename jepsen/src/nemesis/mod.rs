//! What goes wrong. Each nemesis has a name, says what it does and in which worlds it can, and must show its effect: one that is
//! injected and changes nothing fails the run.

pub mod partition;

use crate::world::Kind as World;

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
    /// A disk takes nothing for a long time.
    HungDisk,
    /// A disk has no room, or almost none.
    DiskFull,
    /// A disk is replaced by an empty one.
    WipedDisk,
    /// A bit of a node's log is turned over.
    BitFlip,
    /// A disk is replaced by an older copy of itself.
    OldCopy,
    /// An engine of a node is told what cannot be, and stops the node.
    Halt,
    /// Wall clocks jump.
    ClockJump,
    /// Monotonic clocks run fast or slow.
    ClockRate,
    /// Byzantine mode: rows of a node's state are changed behind its back.
    Rot,
    /// Byzantine mode: nodes lie.
    Lies,
    /// A client sends as fast as it may what costs work.
    Flood,
    /// A client opens sessions as fast as it may, and closes none.
    GreedyClient,
    /// Byzantine mode: a client shows executed requests of others to backups alone.
    StaleRequests,
}

/// A row of the register.
struct Entry {
    nemesis: Nemesis,
    name: &'static str,
    about: &'static str,
    /// What its effect is counted in, in each world that has it.
    sim: Option<&'static str>,
    real: Option<&'static str>,
}

const fn entry(
    nemesis: Nemesis,
    name: &'static str,
    about: &'static str,
    sim: Option<&'static str>,
    real: Option<&'static str>,
) -> Entry {
    Entry { nemesis, name, about, sim, real }
}

const CUT_OFF: Option<&str> = Some("messages cut off");
const PACKETS_CUT_OFF: Option<&str> = Some("packets cut off");

/// The register of all nemeses.
#[rustfmt::skip]
const REGISTER: [Entry; 26] = [
    entry(Nemesis::Kill, "kill", "a node ends at once; in the simulator it loses what it had not synced",
        Some("nodes killed"), Some("nodes killed")),
    entry(Nemesis::PowerCut, "power-cut", "all nodes end in one moment, and lose what they had not synced",
        Some("power cuts"), Some("disks that lost what was not synced")),
    entry(Nemesis::Pause, "pause", "a node stands still, then runs on as if nothing had been",
        Some("messages that waited for it"), Some("milliseconds stopped")),
    entry(Nemesis::Halves, "halves", "two halves do not hear one another", CUT_OFF, PACKETS_CUT_OFF),
    entry(Nemesis::Isolate, "isolate", "one node is cut off", CUT_OFF, PACKETS_CUT_OFF),
    entry(Nemesis::MajoritiesRing, "majorities-ring", "every node hears a majority, no two the same", CUT_OFF, PACKETS_CUT_OFF),
    entry(Nemesis::Bridge, "bridge", "two halves with one node in both", CUT_OFF, PACKETS_CUT_OFF),
    entry(Nemesis::OneWay, "one-way", "some links carry one way only", CUT_OFF, PACKETS_CUT_OFF),
    entry(Nemesis::Loss, "loss", "messages are lost", Some("messages lost"), Some("packets lost")),
    entry(Nemesis::Delay, "delay", "messages come late", Some("messages delayed"), Some("packets delayed")),
    entry(Nemesis::Duplication, "duplication", "messages come twice", Some("messages doubled"), Some("packets doubled")),
    entry(Nemesis::Reordering, "reordering", "messages overtake one another",
        Some("messages that overtook"), Some("packets held back")),
    entry(Nemesis::SlowDisk, "slow-disk", "disks take long, or stand still for a while",
        Some("barriers delayed"), Some("milliseconds disks stood still")),
    entry(Nemesis::HungDisk, "hung-disk", "a disk takes nothing for seconds, then goes on", Some("hangs that were felt"), None),
    entry(Nemesis::ClockJump, "clock-jump", "wall clocks are wrong by up to two years", Some("jumps"), Some("jumps that a program saw")),
    entry(Nemesis::ClockRate, "clock-rate", "monotonic clocks run up to a fifth fast or slow", Some("nodes off rate"), None),
    entry(Nemesis::Rot, "rot", "a node's state is changed behind its back (Byzantine mode)",
        Some("rows changed"), Some("damages that a node noticed")),
    entry(Nemesis::Lies, "lies", "f nodes lie in every way (Byzantine mode)", Some("lies told"), Some("lies told")),
    entry(Nemesis::DiskFull, "disk-full", "a disk has no room, or almost none",
        Some("writes refused for want of room"), Some("disks that took no more")),
    entry(Nemesis::WipedDisk, "wiped-disk", "a node finds an empty disk; it must refuse to vote, and gets its own back",
        Some("nodes that refused"), Some("nodes that refused")),
    entry(Nemesis::OldCopy, "old-copy", "a node finds an older copy of its disk; it must refuse to vote once it hears from others, and gets its own back",
        Some("nodes that refused"), None),
    entry(Nemesis::BitFlip, "bit-flip", "one bit of a node's log is turned over; it must refuse to vote, and gets the bit back", None,
        Some("nodes that refused")),
    entry(Nemesis::Halt, "halt", "a replica is told what cannot be, and stops its node while the node's other groups go on (crash mode)",
        Some("nodes that stopped"), None),
    entry(Nemesis::Flood, "flood", "a client with a key of its own sends what costs work as fast as it may, and waits for nothing: bundles that are not signed in Byzantine mode",
        Some("requests refused"), None),
    entry(Nemesis::GreedyClient, "greedy-client", "a client opens sessions as fast as it may and closes none; the others go on",
        Some("sessions refused to it"), None),
    entry(Nemesis::StaleRequests, "stale-requests", "a client shows executed requests of others to backups alone, over and over; liars pass them on to backups (Byzantine mode)",
        Some("executed requests that backups kept"), None),
];

impl Nemesis {
    /// All of them.
    pub const ALL: [Self; REGISTER.len()] = {
        let mut all = [Self::Kill; REGISTER.len()];
        let mut at = 0;
        while at < REGISTER.len() {
            all[at] = REGISTER[at].nemesis;
            at += 1;
        }
        all
    };

    fn entry(self) -> &'static Entry {
        REGISTER.iter().find(|entry| entry.nemesis == self).expect("every nemesis is in the register")
    }

    /// Its name on the command line and in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.entry().name
    }

    /// The nemesis with this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        REGISTER.iter().find(|entry| entry.name == name).map(|entry| entry.nemesis)
    }

    /// What it does, in a line.
    #[must_use]
    pub fn about(self) -> &'static str {
        self.entry().about
    }

    /// What its effect is counted in; None in a world that does not have it.
    #[must_use]
    pub fn effect(self, world: World) -> Option<&'static str> {
        match world {
            World::Sim => self.entry().sim,
            World::Real => self.entry().real,
        }
    }

    /// Those that a world has.
    pub fn of(world: World) -> impl Iterator<Item = Self> {
        Self::ALL.into_iter().filter(move |nemesis| nemesis.effect(world).is_some())
    }

    /// Whether only Byzantine mode survives it.
    #[must_use]
    pub fn is_byzantine(self) -> bool {
        matches!(self, Self::Rot | Self::Lies | Self::StaleRequests)
    }

    /// Whether it is a client that means no good, and nothing else is wrong.
    #[must_use]
    pub fn is_of_client(self) -> bool {
        matches!(self, Self::Flood | Self::GreedyClient | Self::StaleRequests)
    }

    /// Whether only crash mode knows it: where replicas may lie, none stops because of what another says.
    #[must_use]
    pub fn needs_crash(self) -> bool {
        self == Self::Halt
    }

    /// Whether some nodes do not hear others.
    #[must_use]
    pub fn is_partition(self) -> bool {
        matches!(self, Self::Halves | Self::Isolate | Self::MajoritiesRing | Self::Bridge | Self::OneWay)
    }

    /// Whether the network does it.
    #[must_use]
    pub fn is_of_network(self) -> bool {
        self.is_partition() || matches!(self, Self::Loss | Self::Delay | Self::Duplication | Self::Reordering)
    }
}
