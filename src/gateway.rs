//! Where requests enter: who asked, what may enter, and where the answer goes.
//!
//! Every request that is let in gets a [`Ticket`]; the answer finds its way back by that ticket alone. Nothing is ever
//! waited for here: a request that is not answered ends with its connection or by the client's own deadline.

use crate::group::Ticket;
use crate::kv::{Client, Command, Operation, check_key};
use crate::limits::{Limits, OPEN_PER_CONNECTION_MAX, OPEN_REQUESTS_MAX};
use crate::ring::NodeId;
use crate::shares::{Account, Shares};
use crate::wire::{Answer, Request, RetryReason};
use std::collections::{BTreeMap, BTreeSet};

/// A client's connection to this node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct ConnectionId(pub u64);

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

/// Byzantine mode: which connections are told what the requests of a client came to.
#[derive(Debug, Default)]
pub struct Watchers {
    by_client: BTreeMap<Client, BTreeSet<ConnectionId>>,
    by_connection: BTreeMap<ConnectionId, BTreeSet<Client>>,
}

/// Clients that one connection may watch.
const WATCHED_MAX: usize = 64;

impl Watchers {
    /// The connection is told from now on; false if it watches too many.
    pub fn watch(&mut self, connection: ConnectionId, client: Client) -> bool {
        let watched = self.by_connection.entry(connection).or_default();
        if watched.len() >= WATCHED_MAX && !watched.contains(&client) {
            return false;
        }
        watched.insert(client);
        self.by_client.entry(client).or_default().insert(connection);
        true
    }

    /// Who watches a client.
    pub fn of(&self, client: &Client) -> impl Iterator<Item = ConnectionId> + '_ {
        self.by_client.get(client).into_iter().flatten().copied()
    }

    /// A connection is gone.
    pub fn close(&mut self, connection: ConnectionId) {
        for client in self.by_connection.remove(&connection).into_iter().flatten() {
            if let Some(connections) = self.by_client.get_mut(&client) {
                connections.remove(&connection);
                if connections.is_empty() {
                    self.by_client.remove(&client);
                }
            }
        }
    }
}

/// Checks a request where it enters: its form and its sizes. What is wrong here is wrong everywhere. Where a client brings it, and not
/// another node, it is written into it whose session is opened or closed: the client that the connection was admitted for.
pub fn check(
    request: &mut Request,
    client: Option<&Client>,
    limits: &Limits,
) -> Result<Option<Command>, String> {
    match request {
        Request::Command { envelope: bytes, .. } => {
            let Command { mut envelope, operation } =
                Command::decode(bytes).map_err(|error| error.to_string())?;
            operation.check(limits).map_err(|error| error.to_string())?;
            if envelope.not_after.is_some() || matches!(operation, Operation::Get { .. }) {
                return Err("in crash mode no request is void by itself, and no read is ordered".to_string());
            }
            if let Some(client) = client {
                let is_named = matches!(operation, Operation::Open | Operation::Close);
                let whose = is_named.then_some(*client);
                if envelope.client != whose {
                    envelope.client = whose;
                    *bytes = envelope.encode();
                }
            }
            Ok(Some(Command { envelope, operation }))
        }
        Request::Get { key, .. } => check_key(key, limits).map(|()| None).map_err(|error| error.to_string()),
        // What is signed is judged by the state machine of every replica.
        Request::Status | Request::Submit { .. } | Request::Watch { .. } => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kv::{Envelope, Write};
    use crate::shares::ClientId;
    use bytes::Bytes;

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

    #[test]
    fn a_watcher_is_told_until_it_is_gone() {
        let mut watchers = Watchers::default();
        let (one, two, client) = (ConnectionId(1), ConnectionId(2), [7; 32]);
        assert!(watchers.watch(one, client) && watchers.watch(two, client));
        assert_eq!(watchers.of(&client).collect::<Vec<_>>(), [one, two]);
        for other in 0..WATCHED_MAX as u8 - 1 {
            assert!(watchers.watch(one, [100 + other; 32]));
        }
        assert!(!watchers.watch(one, [1; 32]) && watchers.watch(one, client));
        watchers.close(one);
        assert_eq!(watchers.of(&client).collect::<Vec<_>>(), [two]);
        watchers.close(two);
        assert!(watchers.by_client.is_empty());
    }

    #[test]
    fn what_is_malformed_or_too_large_is_refused_where_it_enters() {
        let limits = Limits { key_bytes_max: 4, value_bytes_max: 4 };
        let mut nonsense =
            Request::Command { group: crate::ring::GroupId(1), envelope: Bytes::from_static(&[9, 9]) };
        assert!(check(&mut nonsense, None, &limits).unwrap_err().contains("not a request"));
        let consistency = crate::wire::Consistency::Linearizable;
        let mut long =
            Request::Get { group: crate::ring::GroupId(1), key: Bytes::from_static(b"12345"), consistency };
        assert!(check(&mut long, None, &limits).unwrap_err().contains("1 to 4 bytes"));
    }

    #[test]
    fn a_session_is_opened_and_closed_for_the_key_of_the_connection_whatever_the_client_says() {
        let group = crate::ring::GroupId(1);
        let (mine, other) = ([1; 32], [2; 32]);
        let ask = |operation| Envelope::new(crate::kv::RequestId::default(), 1, &operation);
        let write = ask(Operation::Write(Write::put("k", "v")));
        let (open, close) = (ask(Operation::Open), ask(Operation::Close));
        for (said, meant) in [
            (open.clone().of(other), open.of(mine)),
            (close.clone().of(other), close.of(mine)),
            (write.clone().of(other), write),
        ] {
            let mut request = Request::Command { group, envelope: said.encode() };
            let Command { envelope, .. } =
                check(&mut request, Some(&mine), &Limits::default()).unwrap().unwrap();
            assert_eq!(envelope, meant);
            assert_eq!(request, Request::Command { group, envelope: meant.encode() });
            // Another node has looked at the key already.
            let mut request = Request::Command { group, envelope: said.encode() };
            let Command { envelope, .. } = check(&mut request, None, &Limits::default()).unwrap().unwrap();
            assert_eq!(envelope, said);
        }
    }

    #[test]
    fn what_only_byzantine_mode_has_is_refused() {
        let group = crate::ring::GroupId(1);
        let ask = |operation| Envelope::new(crate::kv::RequestId::default(), 1, &operation);
        let read = ask(Operation::Get { key: Bytes::from_static(b"k") });
        let void = Envelope { not_after: Some(7), ..ask(Operation::Open) };
        for envelope in [read, void] {
            let mut request = Request::Command { group, envelope: envelope.encode() };
            assert!(check(&mut request, None, &Limits::default()).unwrap_err().contains("in crash mode"));
        }
    }
}
