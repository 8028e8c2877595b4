//! Tenures: who holds which range of the ring, in one epoch of one group.
//!
//! A tenure is replicated state. The genesis record only founds the first ones; each later one follows from one that the group had
//! agreed to end, or from two, so that whoever knows the first can verify the last.
//!
//! ```text
//!  g1 e1 ──> g1 e2 ──> g1 e3          the same group, other members
//!               └────> g9 e1          a part of its range, split off
//! ```
//!
//! Invariants:
//! * a tenure never changes; what changes is which one is the latest;
//! * along the history of any position of the ring the generation grows: of two tenures that overlap, the one with the higher
//!   generation is the later;
//! * members are distinct nodes, and a member's place in the list is its replica's number. Who should lead stands first.
//!
//! Not here: how a group goes from one tenure to the next, and what proves that it did.

use super::id::{Position, RingInterval};
use super::names::{GroupId, NodeId, TenureId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fmt;
use std::ops::RangeInclusive;

/// Version of a stored tenure.
const FORMAT: u8 = 1;

/// Tenures that one may follow from: both of a merge.
const PREVIOUS_MAX: usize = 2;

/// Bits of a position that may name a cell of the grid.
const GRID: RangeInclusive<u8> = 1..=32;

/// A member of a group.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Member {
    /// The node.
    pub node: NodeId,
    /// The key that it proves on every link.
    pub key: [u8; 32],
    /// In Byzantine mode, the key that it signs with as a node.
    pub signing: Option<[u8; 32]>,
    /// In Byzantine mode, the key that it votes with in this tenure and no other.
    pub epoch_key: Option<[u8; 32]>,
}

/// How many members must agree; with it, which faults are survived.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum QuorumRule {
    /// Members may crash.
    Crash {
        /// Promises that a leader needs.
        phase1: u8,
        /// Durable copies that decide.
        phase2: u8,
    },
    /// Members may lie: the one quorum follows from their number.
    Byzantine,
}

impl QuorumRule {
    /// Members may crash, and a majority of them decides.
    #[must_use]
    pub fn majority(members: usize) -> Self {
        let half = u8::try_from(members / 2 + 1).expect("a group has few members");
        Self::Crash { phase1: half, phase2: half }
    }
}

/// Where a tenure's log begins: behind the last slot of the one before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Start {
    /// The slot.
    pub slot: u64,
    /// The chain hash of the log there.
    pub chain: [u8; 32],
    /// Log time there, in microseconds since 1970.
    pub time: u64,
}

/// A tenure that another follows from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Previous {
    /// Which.
    pub id: TenureId,
    /// Its digest.
    pub digest: [u8; 32],
}

/// A tenure. See the module's essay.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Tenure {
    /// The group in its epoch.
    pub id: TenureId,
    /// One more than the highest of those that it follows from, which for founders is 0.
    pub generation: u64,
    /// The generation of the last split on the way here; 0 if there was none.
    pub last_split: u64,
    /// What it holds.
    pub range: RingInterval,
    /// The state is hashed in cells, one for each value of so many highest bits of a position.
    pub grid: u8,
    /// Who holds it.
    pub members: Vec<Member>,
    /// How many of them must agree.
    pub quorums: QuorumRule,
    /// Where its log begins.
    pub start: Start,
    /// What it follows from: nothing, one, or both of a merge, the receiver first.
    pub previous: Vec<Previous>,
    /// Whether acknowledged writes may have been lost on the way here: somebody made it from what was left.
    pub is_lossy: bool,
}

/// Why bytes are no tenure that this build knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoTenure(&'static str);

impl fmt::Display for NoTenure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl Tenure {
    /// The bytes that are stored and hashed.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        assert_eq!(self.check(), Ok(()), "a tenure is sound");
        postcard::to_extend(self, vec![FORMAT]).expect("writing to memory cannot fail")
    }

    /// A tenure from bytes that may be anything.
    pub fn decode(bytes: &[u8]) -> Result<Self, NoTenure> {
        let Some((&FORMAT, body)) = bytes.split_first() else {
            return Err(NoTenure("it has another version"));
        };
        let (tenure, rest): (Self, _) =
            postcard::take_from_bytes(body).map_err(|_| NoTenure("its form is wrong"))?;
        if !rest.is_empty() {
            return Err(NoTenure("something stands behind it"));
        }
        tenure.check().map(|()| tenure)
    }

    /// Names the tenure with all that it says.
    #[must_use]
    pub fn digest(&self) -> [u8; 32] {
        blake3::derive_key("tetrachord v2 tenure", &self.encode())
    }

    fn check(&self) -> Result<(), NoTenure> {
        let n = self.members.len();
        if n == 0 || n > Self::MEMBERS_MAX {
            return Err(NoTenure("it has no members, or too many"));
        }
        let nodes: BTreeSet<NodeId> = self.nodes().collect();
        if nodes.len() != n {
            return Err(NoTenure("a node is named twice"));
        }
        if !GRID.contains(&self.grid) || self.previous.len() > PREVIOUS_MAX {
            return Err(NoTenure("a number is out of bounds"));
        }
        if self.count_cells() > Self::CELLS_MAX.into() {
            return Err(NoTenure("its grid is too fine for its range"));
        }
        let is_possible = match self.quorums {
            QuorumRule::Crash { phase1, phase2 } => {
                let (phase1, phase2) = (usize::from(phase1), usize::from(phase2));
                (1..=n).contains(&phase1) && (1..=n).contains(&phase2) && phase1 + phase2 > n
            }
            QuorumRule::Byzantine if n % 3 != 1 || n == 1 => false,
            QuorumRule::Byzantine => {
                self.members.iter().all(|member| member.signing.is_some() && member.epoch_key.is_some())
            }
        };
        if is_possible { Ok(()) } else { Err(NoTenure("its quorums are impossible")) }
    }

    /// Members that a group may have: so many that a tenure fits into a row of the tree.
    pub const MEMBERS_MAX: usize = 16;

    /// Cells that a range may have.
    pub const CELLS_MAX: u8 = 65;

    /// Cells of the grid in which the range has a share.
    #[must_use]
    pub fn cells(&self) -> u8 {
        u8::try_from(self.count_cells()).expect("a tenure is sound")
    }

    fn count_cells(&self) -> u64 {
        let shift = 64 - self.grid;
        let width = self.range.end.0.wrapping_sub(self.range.start.0);
        let [first, last] = [self.range.start.0.wrapping_add(1), self.range.end.0].map(|at| at >> shift);
        let all = 1 << self.grid;
        let goes_round = first == last && (width == 0 || width > 1 << shift);
        if goes_round { all } else { (last.wrapping_sub(first) & (all - 1)) + 1 }
    }

    /// The group.
    #[must_use]
    pub fn group(&self) -> GroupId {
        self.id.group
    }

    /// Its members' nodes, in order.
    pub fn nodes(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.members.iter().map(|member| member.node)
    }

    /// Where the node stands among the members; none if it is no member.
    #[must_use]
    pub fn index_of(&self, node: NodeId) -> Option<usize> {
        self.nodes().position(|member| member == node)
    }

    /// Whether members may lie.
    #[must_use]
    pub fn is_byzantine(&self) -> bool {
        self.quorums == QuorumRule::Byzantine
    }

    /// Whether the genesis record founded it.
    #[must_use]
    pub fn is_founding(&self) -> bool {
        self.previous.is_empty()
    }
}

/// The tenures with which a cluster begins: the ring is cut evenly into `groups` intervals, and the replicas of each are placed on
/// `replicas` distinct nodes of `nodes`, those that follow clockwise from its end. Who should lead is spread over the nodes.
#[must_use]
pub fn found(
    (groups, replicas, nodes): (usize, usize, usize),
    quorums: QuorumRule,
    member: impl Fn(NodeId, GroupId) -> Member,
) -> Vec<Tenure> {
    assert!(groups > 0 && replicas > 0 && replicas <= nodes, "the caller has checked the sizes");
    let end_of = |index: usize| {
        let wide = ((index as u128 + 1) << 64) / groups as u128 - 1;
        Position(u64::try_from(wide).expect("the last interval ends with the ring"))
    };
    let tenure = |index: usize| {
        let group = GroupId::founder(index);
        let members = (0..replicas).map(|step| member(NodeId::founder((index + step) % nodes), group));
        Tenure {
            id: TenureId { group, epoch: 1 },
            generation: 0,
            last_split: 0,
            range: RingInterval { start: end_of((index + groups - 1) % groups), end: end_of(index) },
            grid: 6 + u8::try_from(groups.ilog2()).expect("few groups"),
            members: members.collect(),
            quorums,
            start: Start::default(),
            previous: Vec::new(),
            is_lossy: false,
        }
    };
    (0..groups).map(tenure).collect()
}

/// The same while nobody has keys, in crash mode: to see who would host what, and for those who try something without a network.
#[must_use]
pub fn found_without_keys(groups: usize, nodes: usize, replicas: usize) -> Vec<Tenure> {
    let nobody = |node, _| Member { node, key: [0; 32], signing: None, epoch_key: None };
    found((groups, replicas, nodes), QuorumRule::majority(replicas), nobody)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some() -> Tenure {
        found_without_keys(4, 4, 3).remove(1)
    }

    #[test]
    fn a_tenure_is_read_as_it_was_written_and_nothing_else_is_one() {
        let tenure = some();
        let bytes = tenure.encode();
        assert_eq!(Tenure::decode(&bytes), Ok(tenure.clone()));
        assert_eq!(Tenure::decode(&[&bytes[..], &[0]].concat()), Err(NoTenure("something stands behind it")));
        assert_eq!(Tenure::decode(&[&[9], &bytes[1..]].concat()), Err(NoTenure("it has another version")));
        assert!((0..bytes.len()).all(|end| Tenure::decode(&bytes[..end]).is_err()));
        let spoilt = |spoil: &dyn Fn(&mut Tenure)| {
            let mut other = tenure.clone();
            spoil(&mut other);
            let bytes = postcard::to_extend(&other, vec![FORMAT]).unwrap();
            Tenure::decode(&bytes).unwrap_err().to_string()
        };
        assert!(spoilt(&|tenure| tenure.members.clear()).contains("no members"));
        assert!(spoilt(&|tenure| tenure.members[1] = tenure.members[0].clone()).contains("twice"));
        let quorums = |phase1, phase2| QuorumRule::Crash { phase1, phase2 };
        for rule in [quorums(1, 2), quorums(0, 3), quorums(4, 1), QuorumRule::Byzantine] {
            assert!(spoilt(&|tenure| tenure.quorums = rule).contains("impossible"), "{rule:?}");
        }
        assert!(spoilt(&|tenure| tenure.grid = 33).contains("bounds"));
        assert!(spoilt(&|tenure| tenure.grid = 0).contains("bounds"));
        assert!(spoilt(&|tenure| tenure.grid = 9).contains("too fine"));
    }

    #[test]
    fn everything_that_a_tenure_says_is_in_its_digest() {
        let tenure = some();
        let changes: [&dyn Fn(&mut Tenure); 9] = [
            &|tenure| tenure.id.epoch += 1,
            &|tenure| tenure.generation += 1,
            &|tenure| tenure.last_split += 1,
            &|tenure| tenure.range.end.0 ^= 1,
            &|tenure| tenure.members.swap(0, 1),
            &|tenure| tenure.members[0].key[0] ^= 1,
            &|tenure| tenure.quorums = QuorumRule::Crash { phase1: 3, phase2: 1 },
            &|tenure| tenure.start.slot += 1,
            &|tenure| tenure.is_lossy = true,
        ];
        for change in changes {
            let mut other = tenure.clone();
            change(&mut other);
            assert_ne!(other.digest(), tenure.digest());
        }
    }

    #[test]
    fn replicas_live_on_distinct_nodes_and_leaders_are_spread() {
        let founded = found_without_keys(4, 4, 3);
        let leaders: BTreeSet<NodeId> = founded.iter().map(|tenure| tenure.members[0].node).collect();
        assert_eq!(leaders.len(), 4);
        assert!(founded.iter().all(|tenure| tenure.nodes().collect::<BTreeSet<_>>().len() == 3));
        assert_eq!([1, 2, 3, 4, 64].map(|groups| found_without_keys(groups, 3, 3)[0].grid), [6, 7, 7, 8, 12]);
    }
}
