//! Requests that were passed on to the node that leads, and who waits for their answers.
//!
//! Passing on is a courtesy to whoever does not know yet who leads: it costs two nodes more than it costs to say where to go. So each
//! account has few requests passed on at a time; what comes beyond that is told who leads, and goes there itself.
//!
//! Numbers never repeat, also not over a restart: an answer to an earlier life may still be on its way.

use crate::ring::{GroupId, NodeId};
use crate::shares::Account;
use crate::ticket::Ticket;
use std::collections::{BTreeMap, btree_map};
use tetrachord_consensus::Ticks;

/// Requests of one account that are passed on at a time, where it could go itself.
const OF_ACCOUNT_MAX: usize = 16;

/// A request that was passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Forward {
    pub(super) ticket: Ticket,
    pub(super) account: Account,
    pub(super) since: Ticks,
    pub(super) owner: GroupId,
    pub(super) to: NodeId,
}

/// What was passed on and is not answered.
#[derive(Debug)]
pub(super) struct Forwards {
    last: u64,
    open: BTreeMap<u64, Forward>,
    of_account: BTreeMap<Account, usize>,
}

impl Forwards {
    /// Nothing is passed on; numbers of this life are above those of earlier ones.
    pub(super) fn of_life(incarnation: u64) -> Self {
        Self { last: incarnation << 32, open: BTreeMap::new(), of_account: BTreeMap::new() }
    }

    /// Whether one more request of this account may be passed on although it could go there itself.
    pub(super) fn has_room(&self, account: Account) -> bool {
        self.of_account.get(&account).is_none_or(|open| *open < OF_ACCOUNT_MAX)
    }

    /// A request is passed on, under this number.
    pub(super) fn add(&mut self, forward: Forward) -> u64 {
        self.last += 1;
        *self.of_account.entry(forward.account).or_default() += 1;
        self.open.insert(self.last, forward);
        self.last
    }

    /// How many were passed on so far, from some start.
    pub(super) fn count(&self) -> u64 {
        self.last
    }

    /// A node answers: what it was asked, if it was.
    pub(super) fn answered(&mut self, id: u64, by: NodeId) -> Option<Forward> {
        let btree_map::Entry::Occupied(entry) = self.open.entry(id) else { return None };
        if entry.get().to != by {
            return None;
        }
        let forward = entry.remove();
        self.close(forward.account);
        Some(forward)
    }

    /// Those that are given up.
    pub(super) fn take_hopeless(&mut self, is_hopeless: impl Fn(&Forward) -> bool) -> Vec<Forward> {
        let hopeless = self.open.iter().filter(|(_, forward)| is_hopeless(forward));
        let hopeless: Vec<(u64, Forward)> = hopeless.map(|(id, forward)| (*id, *forward)).collect();
        for (id, forward) in &hopeless {
            self.open.remove(id);
            self.close(forward.account);
        }
        hopeless.into_iter().map(|(_, forward)| forward).collect()
    }

    fn close(&mut self, account: Account) {
        let open = self.of_account.get_mut(&account).expect("what is open is counted");
        *open -= 1;
        if *open == 0 {
            self.of_account.remove(&account);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shares::ClientId;

    fn forward(client: u8, ticket: u64) -> Forward {
        let account = Account::Client(ClientId([client; 32]));
        Forward { ticket: Ticket(ticket), account, since: Ticks(ticket), owner: GroupId(1), to: NodeId(2) }
    }

    #[test]
    fn only_the_node_that_was_asked_answers_and_only_once() {
        let mut forwards = Forwards::of_life(3);
        let id = forwards.add(forward(1, 5));
        assert!(id > 3 << 32, "above all numbers of lives before");
        assert_eq!(forwards.answered(id, NodeId(3)), None);
        assert_eq!(forwards.answered(id + 1, NodeId(2)), None);
        assert_eq!(forwards.answered(id, NodeId(2)), Some(forward(1, 5)));
        assert_eq!(forwards.answered(id, NodeId(2)), None);
    }

    #[test]
    fn a_client_has_few_passed_on_at_a_time_and_others_do_not_notice() {
        let mut forwards = Forwards::of_life(1);
        let ids: Vec<u64> =
            (0..OF_ACCOUNT_MAX as u64).map(|ticket| forwards.add(forward(1, ticket))).collect();
        let (greedy, other) = (forward(1, 0).account, forward(2, 0).account);
        assert!(!forwards.has_room(greedy) && forwards.has_room(other));
        forwards.answered(ids[3], NodeId(2)).unwrap();
        assert!(forwards.has_room(greedy));
        assert_eq!(forwards.take_hopeless(|forward| forward.since < Ticks(3)).len(), 3);
        let left = forwards.take_hopeless(|_| true);
        assert_eq!(left.len(), OF_ACCOUNT_MAX - 4);
        assert!(forwards.of_account.is_empty() && forwards.open.is_empty(), "nothing is kept of who asked");
    }
}
