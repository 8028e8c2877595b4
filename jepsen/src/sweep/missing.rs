//! What must happen in many runs, lest they be too tame to mean anything.

use crate::nemesis::Nemesis;
use crate::plan::{Mode, Plan};
use crate::world::Kind;
use crate::world::sim::{CANCELLED, PASSED_ON, STRANGER};
use std::fmt;
use tetrachord_consensus::pbft::Lie;

/// Something that happens now and then, if runs are not too tame.
pub struct Interesting {
    /// In which mode; in any if there is none.
    pub(super) mode: Option<Mode>,
    /// With one of these nemeses; with any if there are none.
    with: &'static [Nemesis],
    pub(super) what: &'static str,
}

impl Interesting {
    /// The words for it, under which runs count it.
    #[must_use]
    pub fn what(&self) -> &'static str {
        self.what
    }
}

const fn interesting(mode: Option<Mode>, with: &'static [Nemesis], what: &'static str) -> Interesting {
    Interesting { mode, with, what }
}

/// What must have happened somewhere in so many runs that they tell.
#[rustfmt::skip]
pub const INTERESTING: [Interesting; 14] = [
    interesting(None, &[Nemesis::Kill, Nemesis::PowerCut], "a crash lost what was not synced"),
    interesting(None, &[], "a whole state was put in place"),
    interesting(None, &[Nemesis::Halves, Nemesis::Isolate, Nemesis::MajoritiesRing, Nemesis::Bridge, Nemesis::OneWay],
        "links that healed delivered what they had kept"),
    interesting(Some(Mode::Crash), &[], "a leader was elected"),
    interesting(Some(Mode::Crash), &[], "a leader went on with several entries that may have been decided"),
    interesting(Some(Mode::Crash), &[], "a log was cut back"),
    interesting(Some(Mode::Crash), &[], CANCELLED),
    interesting(Some(Mode::Byzantine), &[], "a new view carried over what was prepared"),
    interesting(Some(Mode::Byzantine), &[], "a view had to be skipped"),
    interesting(Some(Mode::Byzantine), &[], "a view was entered behind the first"),
    interesting(Some(Mode::Byzantine), &[Nemesis::Lies], STRANGER),
    interesting(Some(Mode::Byzantine), &[Nemesis::StaleRequests], PASSED_ON),
    interesting(Some(Mode::Byzantine), &[Nemesis::Rot], "a damaged state was noticed"),
    interesting(Some(Mode::Byzantine), &[Nemesis::Rot], "a damaged state was repaired"),
];

/// What never happened in many runs.
#[derive(Clone, Copy)]
pub enum Missing {
    /// A nemesis changed nothing.
    Idle(Nemesis),
    /// Two of them never changed something in one run.
    Apart(Nemesis, Nemesis),
    /// Something that should happen now and then.
    Never(&'static Interesting),
    /// A lie that was never told, or changed nothing.
    Untold(Lie),
}

impl Missing {
    /// Whether it can happen in this run.
    #[must_use]
    pub fn suits(self, plan: &Plan) -> bool {
        // Rot is a fault of honest nodes, so it does nothing where there are liars.
        let may =
            |nemesis: Nemesis| plan.has(nemesis) && !(nemesis == Nemesis::Rot && plan.has(Nemesis::Lies));
        match self {
            Self::Idle(nemesis) => may(nemesis),
            Self::Apart(one, other) => may(one) && may(other),
            Self::Untold(lie) => may(Nemesis::Lies) && plan.lie.is_none_or(|only| only == lie),
            Self::Never(it) => {
                it.mode.is_none_or(|mode| mode == plan.mode)
                    && (it.with.is_empty() || it.with.iter().any(|nemesis| may(*nemesis)))
            }
        }
    }
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Idle(nemesis) => {
                let effect = nemesis.effect(Kind::Sim).unwrap_or_default();
                write!(f, "{} had no effect ({effect})", nemesis.name())
            }
            Self::Apart(one, other) => write!(f, "{} and {} never worked together", one.name(), other.name()),
            Self::Never(it) => write!(f, "it never happened that {}", it.what),
            Self::Untold(lie) => write!(f, "the lie {} had no effect ({})", lie.name(), lie.effect()),
        }
    }
}
