//! When what is broken. Faults of the network and faults of nodes take turns each on its own, so that one of either kind may be at work
//! at a time; each nemesis has its turn before any has a second.

use crate::nemesis::Nemesis;
use crate::random::Random;
use std::time::Duration;

/// What is to be done now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Break something with this nemesis.
    Strike(Nemesis),
    /// Mend what was broken last.
    Mend,
}

/// The turns of some nemeses.
pub(super) struct Turns {
    nemeses: Vec<Nemesis>,
    turn: usize,
    is_broken: bool,
    next: Duration,
    random: Random,
}

impl Turns {
    /// Nothing is broken at first.
    pub(super) fn new(mut nemeses: Vec<Nemesis>, mut random: Random) -> Self {
        // Fisher and Yates.
        for at in (1..nemeses.len()).rev() {
            nemeses.swap(at, random.index(at + 1));
        }
        let next = Duration::from_millis(random.between(300, 800));
        Self { nemeses, turn: 0, is_broken: false, next, random }
    }

    /// What is due at this time since the start, if anything.
    pub(super) fn due(&mut self, now: Duration) -> Option<Step> {
        if self.nemeses.is_empty() || now < self.next {
            return None;
        }
        let nemesis = self.nemeses[self.turn % self.nemeses.len()];
        self.is_broken = !self.is_broken;
        if self.is_broken {
            let (low, high) = lasts(nemesis);
            self.next = now + Duration::from_millis(self.random.between(low, high));
            return Some(Step::Strike(nemesis));
        }
        self.turn += 1;
        self.next = now + Duration::from_millis(self.random.between(400, 1_500));
        Some(Step::Mend)
    }
}

/// How long a strike lasts, in milliseconds: short and long enough for a leader to be replaced.
fn lasts(nemesis: Nemesis) -> (u64, u64) {
    match nemesis {
        Nemesis::SlowDisk => (100, 1_200),
        Nemesis::PowerCut => (100, 500),
        Nemesis::Rot | Nemesis::WipedDisk | Nemesis::BitFlip => (500, 1_500),
        _ => (500, 3_000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_nemesis_has_its_turn_before_any_has_a_second() {
        let nemeses = vec![Nemesis::Kill, Nemesis::Pause, Nemesis::PowerCut];
        let mut turns = Turns::new(nemeses.clone(), Random::new(5));
        let mut struck = Vec::new();
        let mut is_broken = false;
        for millis in (0..60_000).step_by(20) {
            match turns.due(Duration::from_millis(millis)) {
                Some(Step::Strike(nemesis)) => {
                    assert!(!is_broken, "one at a time");
                    (is_broken, _) = (true, struck.push(nemesis));
                }
                Some(Step::Mend) => is_broken = false,
                None => {}
            }
        }
        assert!(struck.len() >= 12, "{struck:?}");
        for round in struck.chunks_exact(nemeses.len()) {
            assert!(nemeses.iter().all(|nemesis| round.contains(nemesis)), "{struck:?}");
        }
    }
}
