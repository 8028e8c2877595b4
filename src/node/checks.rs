//! In which order signatures are checked: a pure machine from which the threads of [`super::pool`] take.
//!
//! * What replicas say to one another comes first: votes that wait for clients' bundles would look like a primary that does
//!   nothing. After every few checks for replicas there is one for a bundle all the same, so that a replica that lies cannot
//!   keep clients out.
//! * Replicas take turns by node, bundles by who answers for them ([`Account`]).
//!
//! How much may wait is not decided here: an engine has so many bytes of each replica under way, a node so many checks and
//! bytes of each account ([`super::askers`]).

use crate::ring::NodeId;
use crate::shares::{Account, Turns};

/// Whose check it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Line {
    /// What the replicas on a node say of agreement.
    Replica(NodeId),
    /// Clients' bundles.
    Bundles(Account),
}

/// After so many checks for replicas one is for bundles, if any wait.
const REPLICAS_IN_A_ROW: i64 = 8;

/// Checks that wait.
#[derive(Debug)]
pub struct Checks<J> {
    replicas: Turns<NodeId, J>,
    bundles: Turns<Account, J>,
    /// Checks for replicas since the last one for bundles, up to [`REPLICAS_IN_A_ROW`]; less than nothing after a large bundle.
    in_a_row: i64,
}

impl<J> Default for Checks<J> {
    fn default() -> Self {
        Self { replicas: Turns::default(), bundles: Turns::default(), in_a_row: 0 }
    }
}

impl<J> Checks<J> {
    /// A check that costs about so many signatures is to be done.
    pub fn push(&mut self, line: Line, cost: u32, job: J) {
        match line {
            Line::Replica(node) => self.replicas.push(node, cost.max(1), job),
            Line::Bundles(account) => self.bundles.push(account, cost.max(1), job),
        }
    }

    /// What is to be checked next, and about how many signatures that is.
    pub fn next_job(&mut self) -> Option<(u32, J)> {
        let is_turn_of_bundles = self.in_a_row >= REPLICAS_IN_A_ROW && !self.bundles.is_empty();
        if let Some((cost, job)) = (!is_turn_of_bundles).then(|| self.replicas.pop()).flatten() {
            self.in_a_row = (self.in_a_row + i64::from(cost)).min(REPLICAS_IN_A_ROW);
            return Some((cost, job));
        }
        let (cost, job) = self.bundles.pop()?;
        self.in_a_row = match is_turn_of_bundles {
            true => self.in_a_row - REPLICAS_IN_A_ROW * i64::from(cost),
            false => 0,
        };
        Some((cost, job))
    }

    /// Whether nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.replicas.is_empty() && self.bundles.is_empty()
    }

    /// Forgets everything that waits.
    pub fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shares::ClientId;

    fn client(number: u8) -> Line {
        Line::Bundles(Account::Client(ClientId([number; 32])))
    }

    fn replica(number: u128) -> Line {
        Line::Replica(NodeId(number))
    }

    /// Who is next, so many times.
    fn order(checks: &mut Checks<Line>, count: usize) -> Vec<Line> {
        (0..count).filter_map(|_| checks.next_job()).map(|(_, line)| line).collect()
    }

    fn push(checks: &mut Checks<Line>, line: Line, count: usize) {
        (0..count).for_each(|_| checks.push(line, 1, line));
    }

    #[test]
    fn a_vote_is_next_however_many_bundles_wait() {
        let mut checks = Checks::default();
        push(&mut checks, client(1), 10_000);
        order(&mut checks, 5);
        push(&mut checks, replica(2), 3);
        assert_eq!(order(&mut checks, 4), [replica(2), replica(2), replica(2), client(1)]);
    }

    #[test]
    fn a_replica_that_sends_without_end_keeps_out_neither_replicas_nor_clients() {
        let mut checks = Checks::default();
        push(&mut checks, replica(4), 10_000);
        order(&mut checks, 100);
        push(&mut checks, client(1), 1);
        push(&mut checks, replica(1), 2);
        push(&mut checks, replica(2), 1);
        let taken = order(&mut checks, 10);
        let place = |line| taken.iter().rposition(|taken| *taken == line).unwrap();
        assert!(place(client(1)) <= 8 && place(replica(1)) <= 6 && place(replica(2)) <= 4, "{taken:?}");
        push(&mut checks, client(1), 1_000);
        let taken = order(&mut checks, 900);
        assert_eq!(taken.iter().filter(|line| **line == client(1)).count(), 100, "one of nine");
    }

    #[test]
    fn a_client_with_little_waits_for_one_check_of_each_other() {
        let mut checks = Checks::default();
        (1..=3).for_each(|number| push(&mut checks, client(number), 5_000));
        order(&mut checks, 1_000);
        push(&mut checks, client(9), 2);
        let taken = order(&mut checks, 8);
        assert_eq!(taken.iter().filter(|line| **line == client(9)).count(), 2, "{taken:?}");
    }

    #[test]
    fn whoever_brings_one_after_the_other_is_not_always_next() {
        let mut checks = Checks::default();
        push(&mut checks, client(1), 100);
        let mut taken = Vec::new();
        for _ in 0..100 {
            checks.push(client(2), 10, client(2));
            taken.extend(order(&mut checks, 1));
            // It waits until that one is taken.
            while taken.last() != Some(&client(2)) {
                taken.extend(order(&mut checks, 1));
                if taken.len() > 100 {
                    break;
                }
            }
        }
        let of_two = taken.iter().take(100).filter(|line| **line == client(2)).count();
        assert!((8..=11).contains(&of_two), "each costs ten times as much: {of_two}");
    }

    #[test]
    fn what_costs_much_counts_as_much() {
        let mut checks = Checks::default();
        (0..100).for_each(|_| checks.push(replica(1), 100, replica(1)));
        push(&mut checks, replica(2), 1_000);
        let taken = order(&mut checks, 505);
        assert_eq!(taken.iter().filter(|line| **line == replica(1)).count(), 5);
        checks.clear();
        assert!(checks.is_empty() && checks.next_job().is_none());
    }
}
