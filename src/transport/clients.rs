//! Clients' connections, and what all connections of one key have together.
//!
//! A key may have many connections, and whoever holds it may mean no good. So connections are counted by key from the moment
//! on at which the key is proved, whether anything is asked on them or not; what they keep in memory is taken from a share
//! that is the key's own; and when all places are taken, a key that has fewer gets one of the key that has most.

use super::outbox::{Outbox, Pushed};
use super::tls::PublicKey;
use crate::limits::CLIENT_FRAME_BYTES_MAX;
use crate::ticket::ConnectionId;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Client connections that a node accepts.
pub(super) const CLIENTS_MAX: usize = 4096;

/// Client connections of one key.
pub(super) const KEY_CONNECTIONS_MAX: usize = 1024;

/// So many connections of a key are greeted at once, each one more waits so much longer, up to this.
const CONNECTIONS_AT_ONCE: usize = 16;
const REST_PER_CONNECTION: Duration = Duration::from_millis(1);
const REST_MAX: Duration = Duration::from_millis(50);

/// Bytes of answers that may wait for one connection.
const CONNECTION_ANSWERS_BYTES: usize = 32 << 20;

/// Bytes of answers that may wait for all connections of a key, before those that leave most unread are closed.
const KEY_ANSWERS_BYTES: usize = 128 << 20;

/// Bytes that QUIC may keep unread for all connections of a key, above what each has at first.
const KEY_WINDOWS_BYTES: usize = 16 << 20;

/// Bytes of whole frames of a key that wait for the node.
const KEY_INBOX_BYTES: usize = 16 << 20;

/// Bytes of large frames of a key that are not whole yet.
const KEY_FRAMES_BYTES: usize = 16 << 20;

/// Of a key that is read slowly, each chunk waits so long, and is no larger; all its connections together take one at a time.
const SLOW_CHUNK: Duration = Duration::from_millis(5);
const SLOW_CHUNK_BYTES: usize = 1 << 10;

/// So many chunks are read slowly each time: if what they bring is no better, it is said again.
const SLOW_CHUNKS: u32 = 100;

const _: () = assert!(
    CLIENT_FRAME_BYTES_MAX <= KEY_FRAMES_BYTES && CLIENT_FRAME_BYTES_MAX <= KEY_INBOX_BYTES,
    "the largest frame finds room"
);
const _: () = assert!(KEY_CONNECTIONS_MAX * 2 <= CLIENTS_MAX, "no key takes the places of all others");

/// What all connections of a key have together.
#[derive(Debug)]
pub(super) struct Share {
    windows: Arc<Semaphore>,
    frames: Arc<Semaphore>,
    inbox: Arc<Semaphore>,
    /// Bytes of answers that wait.
    answers: Arc<AtomicUsize>,
    pace: Pace,
}

/// How fast the connections of a key are read.
#[derive(Debug, Default)]
struct Pace {
    /// So many chunks more are read slowly.
    slow: AtomicU32,
    /// Whoever has it reads the next one.
    turn: tokio::sync::Mutex<()>,
}

impl Share {
    fn new() -> Self {
        Self {
            windows: Arc::new(Semaphore::new(KEY_WINDOWS_BYTES)),
            frames: Arc::new(Semaphore::new(KEY_FRAMES_BYTES)),
            inbox: Arc::new(Semaphore::new(KEY_INBOX_BYTES)),
            answers: Arc::default(),
            pace: Pace::default(),
        }
    }

    /// Waits until the next chunk may be read; returns how many bytes it may have.
    pub(super) async fn pace(&self) -> usize {
        if self.pace.slow.load(Ordering::Relaxed) == 0 {
            return usize::MAX;
        }
        let _turn = self.pace.turn.lock().await;
        if self.pace.slow.load(Ordering::Relaxed) == 0 {
            return usize::MAX;
        }
        tokio::time::sleep(SLOW_CHUNK).await;
        let fewer = |slow: u32| slow.checked_sub(1);
        let _ = self.pace.slow.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fewer);
        SLOW_CHUNK_BYTES
    }

    /// So many bytes more for what QUIC keeps of a connection, if there are any.
    pub(super) fn widen(&self, bytes: u32) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.windows).try_acquire_many_owned(bytes).ok()
    }

    /// Room for a frame that is not whole yet; waits for others of the same key.
    pub(super) async fn room_for(&self, bytes: usize) -> OwnedSemaphorePermit {
        acquire(&self.frames, bytes).await
    }

    /// Room for a frame that waits for the node; waits for others of the same key.
    pub(super) async fn room_in_inbox(&self, bytes: usize) -> OwnedSemaphorePermit {
        acquire(&self.inbox, bytes).await
    }
}

async fn acquire(room: &Arc<Semaphore>, bytes: usize) -> OwnedSemaphorePermit {
    let bytes = u32::try_from(bytes).expect("frames are a few MiB at most");
    Arc::clone(room).acquire_many_owned(bytes).await.expect("the semaphore is never closed")
}

#[derive(Debug)]
struct Client {
    key: PublicKey,
    outbox: Outbox,
    connection: quinn::Connection,
    share: Arc<Share>,
}

#[derive(Debug, Default)]
struct Registry {
    open: BTreeMap<ConnectionId, Client>,
    by_key: BTreeMap<PublicKey, (usize, Arc<Share>)>,
    last: u64,
}

/// All client connections of a node.
#[derive(Clone, Debug, Default)]
pub(super) struct Clients(Arc<Mutex<Registry>>);

/// The place of one connection, as long as it is held.
#[derive(Debug)]
pub(super) struct Place {
    clients: Clients,
    pub(super) id: ConnectionId,
    pub(super) outbox: Outbox,
    pub(super) share: Arc<Share>,
    /// How many connections the key has, this one among them.
    of_key: usize,
}

impl Place {
    /// How long the client waits to be greeted.
    pub(super) fn rest(&self) -> Duration {
        rest_of(self.of_key)
    }
}

/// How long the next client of a key with so many connections waits to be greeted. A handshake costs the node more than a request, and it
/// does not know for whom before it is over: whoever has many connections and opens others all the time makes everybody pay for that.
fn rest_of(of_key: usize) -> Duration {
    let many = of_key.saturating_sub(CONNECTIONS_AT_ONCE);
    (REST_PER_CONNECTION * u32::try_from(many).expect("places are bounded")).min(REST_MAX)
}

impl Clients {
    fn registry(&self) -> std::sync::MutexGuard<'_, Registry> {
        self.0.lock().expect("never held while panicking")
    }

    /// Gives a connection a place, or says why it has none.
    pub(super) fn admit(
        &self,
        key: PublicKey,
        connection: &quinn::Connection,
    ) -> Result<Place, &'static str> {
        let mut registry = self.registry();
        let of_key = registry.by_key.get(&key).map_or(0, |(count, _)| *count);
        let greediest = registry.by_key.iter().map(|(key, (count, _))| (*count, *key)).max();
        match seat(of_key, registry.open.len(), greediest.map_or(0, |(count, _)| count))? {
            Seat::Free => {}
            Seat::OfTheGreediest => {
                let greedy = greediest.map(|(_, key)| key);
                let newest = registry.open.iter().rev().find(|(_, client)| Some(client.key) == greedy);
                let newest = newest.map(|(id, _)| *id);
                if let Some(client) = newest.and_then(|id| registry.remove(id)) {
                    client.connection.close(4u32.into(), b"others need this place; try another node");
                }
            }
        }
        registry.last += 1;
        let id = ConnectionId(registry.last);
        let (count, share) = registry.by_key.entry(key).or_insert_with(|| (0, Arc::new(Share::new())));
        *count += 1;
        let share = Arc::clone(share);
        let outbox = Outbox::counted(CONNECTION_ANSWERS_BYTES, Arc::clone(&share.answers));
        let (connection, of_client) = (connection.clone(), Arc::clone(&share));
        registry.open.insert(id, Client { key, outbox: outbox.clone(), connection, share: of_client });
        assert!(registry.open.len() <= CLIENTS_MAX, "places are bounded");
        let of_key = of_key + 1;
        Ok(Place { clients: self.clone(), id, outbox, share, of_key })
    }

    /// Queues an answer. A client that leaves its answers unread is disconnected.
    pub(super) fn answer(&self, id: ConnectionId, frame: Bytes) {
        let registry = self.registry();
        let Some(client) = registry.open.get(&id) else { return };
        let pushed = client.outbox.push(frame);
        let is_greedy = || {
            let all = client.share.answers.load(Ordering::Relaxed);
            let count = registry.by_key.get(&client.key).map_or(1, |(count, _)| *count);
            all > KEY_ANSWERS_BYTES && client.outbox.bytes().saturating_mul(count) >= all
        };
        if pushed == Pushed::Full || pushed == Pushed::Queued && is_greedy() {
            client.connection.close(1u32.into(), b"answers were not read");
        }
    }

    /// Reads slowly what this key sends next.
    pub(super) fn slow(&self, key: PublicKey) {
        if let Some((_, share)) = self.registry().by_key.get(&key) {
            share.pace.slow.store(SLOW_CHUNKS, Ordering::Relaxed);
        }
    }

    /// Ends a connection and tells the client why.
    pub(super) fn disconnect(&self, id: ConnectionId, reason: &str) {
        if let Some(client) = self.registry().open.get(&id) {
            client.connection.close(2u32.into(), reason.as_bytes());
        }
    }

    /// How many there are.
    #[cfg(test)]
    pub(super) fn count(&self) -> usize {
        self.registry().open.len()
    }
}

impl Registry {
    fn remove(&mut self, id: ConnectionId) -> Option<Client> {
        let client = self.open.remove(&id)?;
        client.outbox.close();
        let (count, _) = self.by_key.get_mut(&client.key).expect("it has a connection");
        *count -= 1;
        if *count == 0 {
            self.by_key.remove(&client.key);
        }
        Some(client)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.clients.registry().remove(self.id);
    }
}

/// Where a connection finds its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seat {
    Free,
    OfTheGreediest,
}

/// Whether there is a place for one more of a key that has so many of all, and where.
fn seat(of_key: usize, all: usize, of_greediest: usize) -> Result<Seat, &'static str> {
    if of_key >= KEY_CONNECTIONS_MAX {
        return Err("this key has too many connections here; try another node");
    }
    match all < CLIENTS_MAX {
        true => Ok(Seat::Free),
        // Afterwards it has no more than the other: places do not go to and fro.
        false if of_key + 1 < of_greediest => Ok(Seat::OfTheGreediest),
        false => Err("too many clients; try another node"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_more_connections_a_key_has_the_longer_the_next_one_waits() {
        let millis = [1, 16, 17, 60, 141, KEY_CONNECTIONS_MAX].map(|of_key| rest_of(of_key).as_millis());
        assert_eq!(millis, [0, 0, 1, 44, 50, 50]);
    }

    #[test]
    fn places_are_shared_out_evenly_when_there_are_too_few() {
        assert_eq!(seat(0, 0, 0), Ok(Seat::Free));
        assert_eq!(seat(KEY_CONNECTIONS_MAX - 1, CLIENTS_MAX - 1, 1023), Ok(Seat::Free));
        assert!(seat(KEY_CONNECTIONS_MAX, KEY_CONNECTIONS_MAX, KEY_CONNECTIONS_MAX).is_err());
        assert_eq!(seat(0, CLIENTS_MAX, 1000), Ok(Seat::OfTheGreediest));
        assert!(seat(999, CLIENTS_MAX, 1000).is_err());
        assert!(seat(0, CLIENTS_MAX, 1).is_err());
    }
}
