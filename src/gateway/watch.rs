//! Byzantine mode: who is told what requests came to. Replicas tell of outcomes by themselves, over each connection that wants to know.

use crate::kv::Client;
use crate::ticket::ConnectionId;
use std::collections::{BTreeMap, BTreeSet};

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

#[cfg(test)]
mod tests {
    use super::*;

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
}
