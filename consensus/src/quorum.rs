//! How many replicas are enough.
//!
//! Multi-Paxos needs two kinds of quorum: `phase1` replicas must promise before a replica may lead, and `phase2`
//! replicas must hold an entry before it is decided. Any phase 1 quorum must meet any phase 2 quorum, that is
//! `phase1 + phase2 > n` (Howard, Malkhi, Spiegelman 2016, "Flexible Paxos"). The classic choice is a majority
//! for both.
//!
//! PBFT has one quorum. Of `n` replicas `f` may lie, so no step may wait for more than `n - f`, and any two quorums must
//! share a replica that does not lie: `2 * quorum - n >= f + 1` (Castro, "Practical Byzantine Fault Tolerance", 1999,
//! section 4).

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The most replicas that one group may have.
pub const REPLICAS_MAX: usize = 15;

/// The smallest number that is more than half of `n`.
#[must_use]
pub fn majority(n: usize) -> usize {
    assert!(n > 0, "a group has at least one replica");
    n / 2 + 1
}

/// Quorum sizes of one group in crash mode, checked once when they are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Quorums {
    n: usize,
    phase1: usize,
    phase2: usize,
}

/// Why a set of quorum sizes cannot keep the promise.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum QuorumError {
    /// The number of replicas is outside the supported range.
    #[error("a group of {n} replicas is not supported: use 1 to {REPLICAS_MAX}")]
    Size {
        /// Replicas asked for.
        n: usize,
    },
    /// Too few replicas for the faults to be tolerated.
    #[error(
        "{n} replicas cannot tolerate {f} crashed: crash mode needs n >= 2f + 1 = {needed}; \
         add {} or tolerate at most {}", needed - n, (n - 1) / 2
    )]
    TooFew {
        /// Replicas asked for.
        n: usize,
        /// Faults asked for.
        f: usize,
        /// Replicas that would be enough.
        needed: usize,
    },
    /// The two quorums need not meet.
    #[error(
        "quorums of {phase1} (phase 1) and {phase2} (phase 2) out of {n} replicas need not share a replica, so \
         two leaders could decide differently: their sum must be at least {}, it is {}", n + 1, phase1 + phase2
    )]
    Disjoint {
        /// Replicas of the group.
        n: usize,
        /// Phase 1 quorum asked for.
        phase1: usize,
        /// Phase 2 quorum asked for.
        phase2: usize,
    },
    /// A quorum is empty or larger than the group.
    #[error("a quorum of {size} out of {n} replicas is impossible: use 1 to {n}")]
    OutOfRange {
        /// Replicas of the group.
        n: usize,
        /// The quorum asked for.
        size: usize,
    },
    /// Not a size of a group in Byzantine mode.
    #[error(
        "a group of {n} replicas: Byzantine mode needs n >= 3f + 1 to survive f that lie, f at least 1, and sizes between \
         two of the form 3f + 1 survive no more than the smaller one; use {}", nearest(*below, *above)
    )]
    NotByzantine {
        /// Replicas asked for.
        n: usize,
        /// The next valid size below, if there is one.
        below: Option<usize>,
        /// The next valid size above, if there is one.
        above: Option<usize>,
    },
    /// The quorums survive fewer faults than the group is meant to.
    #[error(
        "quorums of {phase1} and {phase2} out of {n} survive {survives} crashed replicas, but {f} are to be \
         tolerated: make the larger quorum at most {}", n - f
    )]
    TooLarge {
        /// Replicas of the group.
        n: usize,
        /// Phase 1 quorum asked for.
        phase1: usize,
        /// Phase 2 quorum asked for.
        phase2: usize,
        /// Faults that these quorums survive.
        survives: usize,
        /// Faults asked for.
        f: usize,
    },
}

fn nearest(below: Option<usize>, above: Option<usize>) -> String {
    let sizes: Vec<String> = below.into_iter().chain(above).map(|size| size.to_string()).collect();
    sizes.join(" or ")
}

impl Quorums {
    /// Majorities for both phases; survives `(n - 1) / 2` crashed replicas.
    pub fn majority(n: usize) -> Result<Self, QuorumError> {
        if n == 0 || n > REPLICAS_MAX {
            return Err(QuorumError::Size { n });
        }
        let quorums = Self { n, phase1: majority(n), phase2: majority(n) };
        assert!(quorums.phase1 + quorums.phase2 > n, "two majorities meet");
        Ok(quorums)
    }

    /// Sizes of the caller's choice that must survive at least `f` crashed replicas.
    pub fn flexible(n: usize, phase1: usize, phase2: usize, f: usize) -> Result<Self, QuorumError> {
        if n == 0 || n > REPLICAS_MAX {
            return Err(QuorumError::Size { n });
        }
        if n < 2 * f + 1 {
            return Err(QuorumError::TooFew { n, f, needed: 2 * f + 1 });
        }
        if let Some(&size) = [phase1, phase2].iter().find(|size| **size == 0 || **size > n) {
            return Err(QuorumError::OutOfRange { n, size });
        }
        if phase1 + phase2 <= n {
            return Err(QuorumError::Disjoint { n, phase1, phase2 });
        }
        let quorums = Self { n, phase1, phase2 };
        let survives = quorums.survives();
        if survives < f {
            return Err(QuorumError::TooLarge { n, phase1, phase2, survives, f });
        }
        Ok(quorums)
    }

    /// Replicas of the group.
    #[must_use]
    pub fn n(self) -> usize {
        self.n
    }

    /// Promises that a leader needs.
    #[must_use]
    pub fn phase1(self) -> usize {
        self.phase1
    }

    /// Durable copies that decide an entry.
    #[must_use]
    pub fn phase2(self) -> usize {
        self.phase2
    }

    /// Answers that prove to a leader that no newer leader existed when it asked: every phase 1 quorum that could
    /// have elected one meets them.
    #[must_use]
    pub fn read(self) -> usize {
        let size = self.n - self.phase1 + 1;
        assert!(size + self.phase1 > self.n, "a read quorum meets every phase 1 quorum");
        assert!(size <= self.phase2, "a leader that can decide can also read");
        size
    }

    /// How many crashed replicas leave both quorums reachable.
    #[must_use]
    pub fn survives(self) -> usize {
        self.n - self.phase1.max(self.phase2)
    }
}

/// The quorum of one group in Byzantine mode, checked once when it is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ByzantineQuorum {
    n: usize,
}

/// How many of `n` replicas may lie.
#[must_use]
pub const fn liars(n: usize) -> usize {
    (n - 1) / 3
}

/// The smallest size at which any two sets of replicas share one that does not lie. For `n = 3f + 1` it is `2f + 1`; for
/// other sizes that formula is wrong, which is why it is not used.
#[must_use]
pub const fn byzantine_quorum(n: usize) -> usize {
    (n + liars(n) + 1).div_ceil(2)
}

/// Sizes of a group in Byzantine mode.
pub const BYZANTINE_SIZES: [usize; 4] = [4, 7, 10, 13];

impl ByzantineQuorum {
    /// The quorum of a group of `n = 3f + 1` replicas, `f` at least 1. Other sizes are refused: they survive no more liars
    /// than the next valid size below them, and cost more.
    pub fn new(n: usize) -> Result<Self, QuorumError> {
        if !BYZANTINE_SIZES.contains(&n) {
            let below = BYZANTINE_SIZES.iter().rev().find(|size| **size < n).copied();
            let above = BYZANTINE_SIZES.iter().find(|size| **size > n).copied();
            return Err(QuorumError::NotByzantine { n, below, above });
        }
        let quorum = Self { n };
        assert!(2 * quorum.size() > n + quorum.f(), "two quorums share a replica that does not lie");
        assert!(quorum.size() <= n - quorum.f(), "a quorum answers while all liars are silent");
        Ok(quorum)
    }

    /// Replicas of the group.
    #[must_use]
    pub fn n(self) -> usize {
        self.n
    }

    /// Replicas that may lie.
    #[must_use]
    pub fn f(self) -> usize {
        liars(self.n)
    }

    /// Replicas that must agree before anything is decided.
    #[must_use]
    pub fn size(self) -> usize {
        byzantine_quorum(self.n)
    }

    /// So many replicas that one of them does not lie.
    #[must_use]
    pub fn one_honest(self) -> usize {
        self.f() + 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Whether any two sets of this size share a replica outside every possible set of `f` liars.
    fn quorums_share_an_honest_replica(n: usize, size: usize) -> bool {
        let sets = || (0u32..1 << n).filter(move |set| set.count_ones() as usize == size);
        sets().all(|a| sets().all(|b| (a & b).count_ones() as usize > liars(n)))
    }

    #[test]
    fn two_byzantine_quorums_share_an_honest_replica_and_no_smaller_ones_do() {
        for n in 1..=10 {
            let size = byzantine_quorum(n);
            assert!(quorums_share_an_honest_replica(n, size), "{n}");
            assert!(!quorums_share_an_honest_replica(n, size - 1), "{n}: smaller would do");
            assert!(size <= n - liars(n), "{n}: the honest alone are a quorum");
        }
    }

    #[test]
    fn the_formula_of_the_paper_is_wrong_for_sizes_that_it_was_not_made_for() {
        assert!(!quorums_share_an_honest_replica(6, 2 * liars(6) + 1));
        assert_eq!(byzantine_quorum(6), 4);
        for n in BYZANTINE_SIZES {
            assert_eq!(byzantine_quorum(n), 2 * liars(n) + 1);
        }
    }

    #[test]
    fn other_sizes_are_refused_with_the_nearest_ones() {
        let text = |n| ByzantineQuorum::new(n).unwrap_err().to_string();
        assert!(text(3).contains("n >= 3f + 1") && text(3).contains("use 4"), "{}", text(3));
        assert!(text(5).contains("use 4 or 7") && text(6).contains("use 4 or 7"), "{}", text(5));
        assert!(text(14).contains("use 13"), "{}", text(14));
        assert_eq!(ByzantineQuorum::new(7).map(|quorum| (quorum.f(), quorum.size())), Ok((2, 5)));
    }

    #[test]
    fn majorities_survive_the_textbook_number_of_faults() {
        for (n, f) in [(1, 0), (3, 1), (5, 2), (7, 3), (9, 4)] {
            assert_eq!(Quorums::majority(n).unwrap().survives(), f);
        }
    }

    #[test]
    fn flexible_quorums_of_five_survive_what_the_larger_one_leaves() {
        let quorums = Quorums::flexible(5, 4, 2, 1).unwrap();
        assert_eq!((quorums.phase1(), quorums.phase2(), quorums.read(), quorums.survives()), (4, 2, 2, 1));
    }

    #[test]
    fn refusals_name_the_bound_and_the_way_out() {
        let text = |n, p1, p2, f| Quorums::flexible(n, p1, p2, f).unwrap_err().to_string();
        assert!(text(5, 2, 3, 1).contains("must be at least 6, it is 5"));
        assert!(text(2, 2, 2, 1).contains("needs n >= 2f + 1 = 3"));
        assert!(text(5, 4, 2, 2).contains("survive 1 crashed"));
        assert!(text(3, 4, 2, 1).contains("use 1 to 3"));
        assert!(text(3, 0, 3, 0).contains("impossible"));
        assert!(Quorums::majority(0).unwrap_err().to_string().contains("not supported"));
        assert!(Quorums::majority(REPLICAS_MAX + 1).is_err());
    }

    proptest! {
        /// Whatever is accepted keeps both intersections, checked against all subsets of the group.
        #[test]
        fn accepted_quorums_always_meet(n in 1usize..8, phase1 in 0usize..9, phase2 in 0usize..9) {
            if let Ok(quorums) = Quorums::flexible(n, phase1, phase2, 0) {
                for a in 0u32..1 << n {
                    for b in 0u32..1 << n {
                        let (size_a, size_b) = (a.count_ones() as usize, b.count_ones() as usize);
                        if size_a >= quorums.phase1() && (size_b >= quorums.phase2() || size_b >= quorums.read()) {
                            prop_assert!(a & b != 0);
                        }
                    }
                }
            }
        }
    }
}
