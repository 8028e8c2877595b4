//! Room that many share, so that nobody can take all of it.
//!
//! Where the first that come are served, whoever asks most has everything. Here each may hold as much as is left free besides: one
//! alone gets half of the room, of two that take what they can each gets a third, and whoever comes next finds some, less for each
//! but never none.

mod turns;

use crate::ring::NodeId;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

pub use turns::Turns;

/// A client, by the key with which it opens connections. It is proved; what a client says of itself is not.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ClientId(pub [u8; 32]);

impl fmt::Debug for ClientId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "client-{:02x}{:02x}", self.0[0], self.0[1])
    }
}

/// Who answers for what is asked: all connections of a client together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Account {
    /// A client, here or on a node that is trusted to say so.
    Client(ClientId),
    /// A node that passes requests on and is not.
    Node(NodeId),
}

/// What each account holds of a room.
#[derive(Clone, Debug)]
pub struct Shares {
    max: usize,
    held: usize,
    /// Accounts stay when they hold nothing: there are as many as a cluster has clients and nodes.
    by_account: BTreeMap<Account, usize>,
}

impl Shares {
    /// So much room, and nobody in it.
    #[must_use]
    pub fn of(max: usize) -> Self {
        Self { max, held: 0, by_account: BTreeMap::new() }
    }

    /// Takes so much for an account, if that leaves as much free as the account has then; false otherwise.
    pub fn take(&mut self, account: Account, amount: usize) -> bool {
        let of_account = self.by_account.entry(account).or_default();
        if *of_account + amount > self.max.saturating_sub(self.held) {
            return false;
        }
        *of_account += amount;
        self.held += amount;
        assert!(self.held <= self.max, "a room is not larger than it is");
        true
    }

    /// Gives back what was taken.
    pub fn give_back(&mut self, account: Account, amount: usize) {
        let of_account = self.by_account.get_mut(&account).expect("only what was taken is given back");
        *of_account = of_account.checked_sub(amount).expect("only what was taken is given back");
        self.held -= amount;
    }

    /// Gives back everything, of everybody.
    pub fn clear(&mut self) {
        self.held = 0;
        self.by_account.clear();
    }

    /// How much is taken.
    #[must_use]
    pub fn held(&self) -> usize {
        self.held
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(number: u8) -> Account {
        Account::Client(ClientId([number; 32]))
    }

    fn take_all(shares: &mut Shares, account: Account) -> usize {
        (0..).take_while(|_| shares.take(account, 1)).count()
    }

    #[test]
    fn whoever_takes_all_it_can_leaves_as_much_for_the_next() {
        let mut shares = Shares::of(1_200);
        assert_eq!(take_all(&mut shares, client(1)), 600);
        assert_eq!(take_all(&mut shares, client(2)), 300);
        assert_eq!(take_all(&mut shares, Account::Node(NodeId(1))), 150);
        // Whoever has much gives way as it gives back.
        shares.give_back(client(1), 200);
        assert!(!shares.take(client(1), 1));
        assert_eq!(take_all(&mut shares, client(3)), 175);
        assert_eq!(shares.held(), 400 + 300 + 150 + 175);
        shares.clear();
        assert_eq!(take_all(&mut shares, client(3)), 600);
    }

    #[test]
    fn nobody_is_ever_left_without_a_place() {
        let mut shares = Shares::of(4_096);
        for number in 0..12 {
            assert!(take_all(&mut shares, client(number)) > 0, "client {number}");
        }
        assert!(shares.held() < 4_096);
    }
}
