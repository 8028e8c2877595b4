//! Where requests enter: who asked, what may enter, and where the answer goes.
//!
//! Every request that is let in gets a [`Ticket`]; the answer finds its way back by that ticket alone. Nothing is ever
//! waited for here: a request that is not answered ends with its connection or by the client's own deadline.
//!
//! What a protocol's bytes mean is known by its *face* alone: [`native`]. Another protocol is another face.

pub mod native;
mod watch;

pub use watch::Watchers;

use crate::limits::{OPEN_PER_CONNECTION_MAX, OPEN_REQUESTS_MAX};
use crate::ring::NodeId;
use crate::shares::{Account, Shares};
use crate::ticket::{ConnectionId, Ticket};
use crate::wire::{Answer, RetryReason};
use std::collections::{BTreeMap, BTreeSet};

/// Who asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A client on this node.
    Client {
        /// Its connection.
        connection: ConnectionId,
        /// Its number for the request.
        id: u64,
    },
    /// Another node, for one of its clients.
    Peer {
        /// The node.
        node: NodeId,
        /// Its number for the request.
        id: u64,
    },
}

/// Open requests of this node.
#[derive(Debug)]
pub struct Gateway {
    open: BTreeMap<Ticket, (Origin, Account)>,
    shares: Shares,
    by_connection: BTreeMap<ConnectionId, BTreeSet<Ticket>>,
    last_ticket: u64,
}

impl Default for Gateway {
    fn default() -> Self {
        let (open, by_connection) = (BTreeMap::new(), BTreeMap::new());
        Self { open, shares: Shares::of(OPEN_REQUESTS_MAX), by_connection, last_ticket: 0 }
    }
}

impl Gateway {
    /// Lets a request in for which somebody answers, or says why not.
    pub fn admit(&mut self, origin: Origin, account: Account) -> Result<Ticket, Answer> {
        let busy = Answer::Retry { reason: RetryReason::Busy, leader: None, maybe_applied: false };
        let ticket = Ticket(self.last_ticket + 1);
        if let Origin::Client { connection, .. } = origin {
            let open = self.by_connection.get(&connection).map_or(0, BTreeSet::len);
            if open >= OPEN_PER_CONNECTION_MAX {
                return Err(busy);
            }
        }
        if !self.shares.take(account, 1) {
            return Err(busy);
        }
        if let Origin::Client { connection, .. } = origin {
            self.by_connection.entry(connection).or_default().insert(ticket);
        }
        self.last_ticket += 1;
        self.open.insert(ticket, (origin, account));
        assert!(self.open.len() <= OPEN_REQUESTS_MAX, "open requests are bounded");
        Ok(ticket)
    }

    /// The request is answered: who asked, unless nobody waits any more.
    pub fn finish(&mut self, ticket: Ticket) -> Option<Origin> {
        let (origin, account) = self.open.remove(&ticket)?;
        self.shares.give_back(account, 1);
        if let Origin::Client { connection, .. } = origin
            && let Some(open) = self.by_connection.get_mut(&connection)
        {
            open.remove(&ticket);
            if open.is_empty() {
                self.by_connection.remove(&connection);
            }
        }
        Some(origin)
    }

    /// A connection is gone; nobody waits for its answers.
    pub fn close(&mut self, connection: ConnectionId) -> Vec<Ticket> {
        let tickets: Vec<Ticket> = self.by_connection.remove(&connection).into_iter().flatten().collect();
        for ticket in &tickets {
            let (_, account) = self.open.remove(ticket).expect("a connection's tickets are open");
            self.shares.give_back(account, 1);
        }
        tickets
    }

    /// Whether a client of this node asked, not another node.
    #[must_use]
    pub fn is_of_client(&self, ticket: Ticket) -> bool {
        matches!(self.open.get(&ticket), Some((Origin::Client { .. }, _)))
    }

    /// Who answers for an open request.
    #[must_use]
    pub fn account(&self, ticket: Ticket) -> Option<Account> {
        self.open.get(&ticket).map(|(_, account)| *account)
    }

    /// How many requests are open.
    #[must_use]
    pub fn open_requests(&self) -> usize {
        self.open.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shares::ClientId;

    fn client(number: u8) -> Account {
        Account::Client(ClientId([number; 32]))
    }

    #[test]
    fn tickets_lead_back_to_who_asked_until_the_connection_is_gone() {
        let mut gateway = Gateway::default();
        let origin = |connection, id| Origin::Client { connection: ConnectionId(connection), id };
        let first = gateway.admit(origin(1, 10), client(1)).unwrap();
        let second = gateway.admit(origin(2, 10), client(1)).unwrap();
        assert_eq!(gateway.account(first), Some(client(1)));
        assert_eq!(gateway.close(ConnectionId(1)), vec![first]);
        assert_eq!(gateway.finish(first), None);
        assert_eq!(gateway.finish(second), Some(origin(2, 10)));
        assert_eq!(gateway.open_requests(), 0);
    }

    #[test]
    fn one_connection_cannot_take_all_the_room() {
        let mut gateway = Gateway::default();
        let origin = Origin::Client { connection: ConnectionId(1), id: 0 };
        for _ in 0..OPEN_PER_CONNECTION_MAX {
            assert!(gateway.admit(origin, client(1)).is_ok());
        }
        let refused = gateway.admit(origin, client(1));
        assert!(matches!(refused, Err(Answer::Retry { reason: RetryReason::Busy, .. })));
        assert!(gateway.admit(Origin::Client { connection: ConnectionId(2), id: 0 }, client(1)).is_ok());
    }

    #[test]
    fn one_key_cannot_take_all_the_room_by_many_connections() {
        let mut gateway = Gateway::default();
        let origin = |connection| Origin::Client { connection: ConnectionId(connection), id: 0 };
        let greedy = (0..OPEN_REQUESTS_MAX as u64).map(|number| origin(1 + number / 4_000));
        let taken = greedy.filter(|origin| gateway.admit(*origin, client(1)).is_ok()).count();
        assert_eq!(taken, OPEN_REQUESTS_MAX / 2);
        let others = (0..4_000).filter(|_| gateway.admit(origin(100), client(2)).is_ok()).count();
        assert_eq!(others, 4_000);
        assert!(gateway.admit(Origin::Peer { node: NodeId(2), id: 1 }, Account::Node(NodeId(2))).is_ok());
        gateway.close(ConnectionId(1));
        assert_eq!(gateway.open_requests(), taken - 4_000 + 4_001);
    }
}
