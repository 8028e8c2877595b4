//! Whether a store that comes under a name can be what became of the one that was noted.
//!
//! ```text
//!  start          4        5              6          7
//!  the log  ──────┼────────┼──────────────┼──────────┼─────>
//!                          │  noted: start 5, this far: ×
//!                          │                            │
//!  fits     ──────┼────────┼──────────────×───┼──────────    start 5 is the one that was noted, and 6 began behind ×
//!  older    ──────┼────────┼──────┼  6                       6 began before ×: what stood between is not in this log
//!  a copy   ──────┼──────┼ 5'                                another start 5
//! ```
//!
//! How often a store was started and how much it has written tell no copy from the right one: a copy may be started as often and
//! write as much. So every opening is marked with a number that is drawn, and each life names those before it.
//!
//! Not here: more than [`OPENINGS_MAX`] starts that the one who noted did not hear of. Then the oldest opening that is named must have
//! begun behind what was noted; whether it is of the same store's starts is believed.

use crate::limits::OPENINGS_MAX;
use crate::wire::{Life, Opening};

/// Why a store cannot be what became of the one that was noted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Misfit {
    /// It has another name.
    OtherStore,
    /// It was not through the start that was noted.
    OtherCopy,
    /// It lacks some of what was noted: this is where it went on without.
    Older(Opening),
}

/// Whether both are one life, told at different times.
pub(super) fn is_same(one: &Life, other: &Life) -> bool {
    (one.store, one.opening) == (other.store, other.opening)
}

/// Whether a store can have been opened like this: each time with a higher number and no shorter log.
pub(super) fn is_sound(life: &Life, earlier: &[Opening]) -> bool {
    let ascends =
        |pair: &[Opening]| pair[0].incarnation < pair[1].incarnation && pair[0].log_end <= pair[1].log_end;
    let last = earlier.last().copied().unwrap_or_default();
    earlier.len() <= OPENINGS_MAX
        && life.opening.log_end <= life.log_end
        && earlier.windows(2).all(ascends)
        && ascends(&[last, life.opening])
}

/// Why whoever tells this life, and the openings before it, cannot be what became of the known one. Nothing if it can.
/// Nor if it was through an opening that was refused: a copy that is started over and over names one of those.
pub(super) fn misfit(
    known: &Life,
    told: &Life,
    earlier: &[Opening],
    refused: Option<&Opening>,
) -> Option<Misfit> {
    if known.store != told.store {
        // R2: whoever notes an empty disk under this name, because the right one had not come yet, is put right by that one.
        return (known.is_admitted || !told.is_admitted).then_some(Misfit::OtherStore);
    }
    let start = known.opening.incarnation;
    let all = || earlier.iter().chain([&told.opening]);
    if told.opening.incarnation < start {
        return Some(Misfit::Older(told.opening));
    }
    let was_through = all().any(|opening| *opening == known.opening);
    if all().any(|opening| Some(opening) == refused) {
        return Some(Misfit::OtherCopy);
    }
    let reaches_back = earlier.len() < OPENINGS_MAX || earlier[0].incarnation <= start;
    if reaches_back && !was_through {
        return Some(Misfit::OtherCopy);
    }
    let next = all().find(|opening| opening.incarnation > start);
    next.filter(|opening| opening.log_end < known.log_end).copied().map(Misfit::Older)
}

/// R2: the note of a node that told this. A message of the same life that comes late takes nothing back.
pub(super) fn renewed(known: &Life, told: &Life) -> Life {
    let log_end = if is_same(known, told) { known.log_end.max(told.log_end) } else { told.log_end };
    let was_admitted = known.store == told.store && known.is_admitted;
    Life { log_end, is_admitted: told.is_admitted || was_admitted, ..*told }
}
