//! Partitions: who does not hear whom.

use super::Nemesis;
use crate::random::Random;
use std::collections::BTreeSet;

/// Pairs of nodes of which the second does not hear the first.
pub type Cut = BTreeSet<(usize, usize)>;

/// What a partition cuts among so many nodes.
///
/// # Panics
///
/// If the nemesis is no partition.
#[must_use]
pub fn draw(nemesis: Nemesis, count: usize, random: &mut Random) -> Cut {
    assert!(nemesis.is_partition(), "{} cuts nothing", nemesis.name());
    let (victim, turn) = (random.index(count), random.index(count));
    let place = |node: usize| (node + turn) % count;
    let side = |node: usize| place(node) < count / 2;
    // One of the larger half: what is left of it is cut off from the smaller.
    let is_bridge = |node: usize| place(node) == count / 2;
    let one_way: Vec<bool> = (0..count * count).map(|_| random.per_mille(700)).collect();
    let hears = |from: usize, to: usize| match nemesis {
        Nemesis::Halves => side(from) == side(to),
        Nemesis::Isolate => from != victim && to != victim,
        // Three have no ring of majorities but one that carries one way.
        Nemesis::MajoritiesRing if count <= 3 => (place(from) + 1) % count == place(to),
        Nemesis::MajoritiesRing => is_near(place(from).abs_diff(place(to)), count),
        Nemesis::Bridge => is_bridge(from) || is_bridge(to) || side(from) == side(to),
        _ => one_way[from * count + to],
    };
    let pairs = (0..count).flat_map(|from| (0..count).map(move |to| (from, to)));
    let mut cut: Cut = pairs.filter(|(from, to)| from != to && !hears(*from, *to)).collect();
    if cut.is_empty() {
        // Chance has spared all links.
        cut.insert((victim, (victim + 1) % count));
    }
    cut
}

/// Each hears the next ones around the ring, just enough of them for a majority.
fn is_near(apart: usize, count: usize) -> bool {
    let distance = apart.min(count - apart);
    distance <= (count / 2).div_ceil(2)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(cut: &Cut, count: usize, node: usize) -> usize {
        (0..count).filter(|from| !cut.contains(&(*from, node))).count()
    }

    #[test]
    fn partitions_are_what_they_are_called() {
        let mut random = Random::new(1);
        for count in (0..200).map(|turn| [3, 4, 5, 7][turn % 4]) {
            let halves = draw(Nemesis::Halves, count, &mut random);
            assert_eq!(halves.len(), 2 * (count / 2) * (count - count / 2), "every pair across, both ways");
            let isolate = draw(Nemesis::Isolate, count, &mut random);
            assert_eq!(isolate.len(), 2 * (count - 1));
            let bridge = draw(Nemesis::Bridge, count, &mut random);
            let hear_all = (0..count).filter(|node| heard(&bridge, count, *node) == count).count();
            assert_eq!(hear_all, 1, "one node hears all");
            let ring = draw(Nemesis::MajoritiesRing, count, &mut random);
            for node in 0..count {
                let heard = heard(&ring, count, node);
                assert!(heard * 2 > count, "{count} nodes: n{node} hears {heard}");
                assert!(heard < count, "{count} nodes: n{node} hears all");
            }
        }
    }

    #[test]
    fn one_way_links_carry_one_way() {
        let mut random = Random::new(1);
        let is_one_way = |cut: &Cut| cut.iter().any(|(from, to)| !cut.contains(&(*to, *from)));
        assert!((0..20).all(|_| is_one_way(&draw(Nemesis::OneWay, 5, &mut random))));
    }
}
