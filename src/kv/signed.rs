//! Byzantine mode: what a signed request means.
//!
//! Clients may lie, and whoever proposed the batch too: nothing was checked before but the signature. Each request is
//! judged here, by the state and ordered time alone, so every replica comes to the same verdict:
//!
//! * it is void after the time that its client set, and before a time that is too far ahead: a signed request is good for
//!   minutes, its session is remembered for longer, so a request that is played again never applies again;
//! * a session belongs to the client that opened it, and what was signed for one that is closed is void;
//! * sizes are within the limits;
//! * the reads of a slot answer a bounded number of bytes, and of one client no more than half of what the others leave.

use super::command::{Failure, Reply, RequestId, SessionId, Write, check_key};
use super::sessions::Lookup;
use super::{Command, Machine, Slot, digest64};
use crate::error::StorageError;
use crate::limits::{READ_BYTES_PER_SLOT_MAX, REQUEST_VALID_MICROS_MAX, VALUE_BYTES_CAP};
use crate::ring::Position;
use crate::storage::Storage;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A client's public key: its name.
pub type Client = [u8; 32];

/// What a signed request asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Operation {
    /// Opens a session; its name follows from client and nonce, so asking twice opens one.
    Open,
    /// Changes one key.
    Write(Write),
    /// Reads one key, in order with all changes. Needs no session.
    Get {
        /// The key.
        key: Bytes,
    },
    /// Closes the session that the request names.
    Close,
}

impl Operation {
    /// The operation's bytes.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        Bytes::from(
            postcard::to_stdvec(self).expect("writing to memory cannot fail and every length is known"),
        )
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        postcard::take_from_bytes(bytes)
            .ok()
            .filter(|(_, rest): &(_, &[u8])| rest.is_empty())
            .map(|(found, _)| found)
    }
}

/// A request whose signature was checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedRequest {
    /// Who asks.
    pub client: Client,
    /// Which request of which session; for an opening, the client's choice of 128 bits and 0; for a read any name that the client has
    /// not used before.
    pub request: RequestId,
    /// The client has the outcomes of all requests below this number.
    pub ack_below: u64,
    /// Void once the log's time is later, in microseconds.
    pub not_after: u64,
    /// The encoded [`Operation`].
    pub operation: Bytes,
}

/// What the reads of one slot have come to.
#[derive(Debug, Default)]
struct SlotReads {
    all: usize,
    of_clients: BTreeMap<Client, usize>,
}

impl SlotReads {
    /// Whether the client may read another key. Then even the largest value fits: nothing is read that is not answered, because to
    /// read costs as much as to answer.
    fn may_read(&self, client: &Client) -> bool {
        let own = self.of_clients.get(client).copied().unwrap_or_default();
        own + VALUE_BYTES_CAP <= READ_BYTES_PER_SLOT_MAX - self.all
    }

    fn add(&mut self, client: Client, bytes: usize) {
        self.all += bytes;
        *self.of_clients.entry(client).or_default() += bytes;
        assert!(self.all <= READ_BYTES_PER_SLOT_MAX, "no value is larger than the largest");
    }
}

impl Machine {
    /// Applies the next slot and returns what each request answers, in order.
    ///
    /// An error means that a stored record could not be read; the replica must stop, its state is behind the log now.
    pub fn apply_signed(
        &mut self,
        storage: &dyn Storage,
        slot: &Slot,
        requests: &[SignedRequest],
    ) -> Result<Vec<Reply>, StorageError> {
        let mut hasher = self.begin_slot(slot);
        let mut replies = Vec::with_capacity(requests.len());
        let mut reads = SlotReads::default();
        for request in requests {
            let reply = self.apply_request(storage, request, &mut reads)?;
            hasher.update(&postcard::to_stdvec(&reply).expect("writing to memory cannot fail"));
            replies.push(reply);
        }
        self.end_slot(&hasher);
        Ok(replies)
    }

    fn apply_request(
        &mut self,
        storage: &dyn Storage,
        request: &SignedRequest,
        reads: &mut SlotReads,
    ) -> Result<Reply, StorageError> {
        let time = self.applied.time;
        if time > request.not_after {
            return Ok(Reply::Failed(Failure::TooLate { not_after: request.not_after, time }));
        }
        if request.not_after - time > REQUEST_VALID_MICROS_MAX {
            return Ok(Reply::Failed(Failure::TooEarly { not_after: request.not_after, time }));
        }
        let Some(operation) = Operation::decode(&request.operation) else {
            return Ok(Reply::Failed(Failure::Malformed));
        };
        // Sessions count the time that passes without its leaps: for them the request is good for the same time, and perhaps longer.
        let now = self.applied.session_time;
        let good_until = now + (request.not_after - time);
        let write = match &operation {
            Operation::Open => {
                let id = self.session_of(&request.client, request.request.session.0);
                return Ok(self.sessions.open(id, request.client, good_until, now));
            }
            Operation::Close => {
                return Ok(self.sessions.close(request.request.session, &request.client, now));
            }
            // Nothing is remembered of a read: asked again, it reads again, and the client takes answers of one slot only. So it
            // needs no session.
            Operation::Get { key } => return self.read_in_order(storage, &request.client, key, reads),
            Operation::Write(write) => write,
        };
        let (id, number) = (request.request.session, request.request.number);
        if self.sessions.owner(id) != Some(request.client) {
            return Ok(Reply::Failed(Failure::SessionExpired));
        }
        let digest = digest64(&request.operation);
        match self.sessions.lookup(id, number, request.ack_below, digest, now) {
            Lookup::Known(reply) => return Ok(reply),
            Lookup::Refused(failure) => return Ok(Reply::Failed(failure)),
            Lookup::Fresh => {}
        }
        let reply = self.write_in_order(storage, write, request)?;
        let is_outcome = !matches!(&reply, Reply::Failed(failure) if !failure.is_outcome());
        if is_outcome {
            self.sessions.remember(id, number, digest, reply.clone(), good_until);
        }
        Ok(reply)
    }

    fn read_in_order(
        &mut self,
        storage: &dyn Storage,
        client: &Client,
        key: &Bytes,
        reads: &mut SlotReads,
    ) -> Result<Reply, StorageError> {
        if check_key(key, &self.limits).is_err() {
            return Ok(Reply::Failed(Failure::Malformed));
        }
        if !reads.may_read(client) {
            return Ok(Reply::Failed(Failure::ReadTooMuch));
        }
        match self.get(storage, key) {
            Ok(found) => {
                if let Some(found) = &found {
                    reads.add(*client, found.value.len());
                }
                let found = found.map(|found| (found.version, found.value));
                Ok(Reply::Value { found, time: self.applied.time })
            }
            Err(None) => Ok(Reply::Failed(Failure::WrongGroup)),
            Err(Some(error)) => Err(error),
        }
    }

    fn write_in_order(
        &mut self,
        storage: &dyn Storage,
        write: &Write,
        request: &SignedRequest,
    ) -> Result<Reply, StorageError> {
        let command =
            Command::Write { request: request.request, ack_below: request.ack_below, write: write.clone() };
        if command.check(&self.limits).is_err() {
            return Ok(Reply::Failed(Failure::Malformed));
        }
        let position = Position::of_key(write.key());
        if !self.range().contains(position) {
            return Ok(Reply::Failed(Failure::WrongGroup));
        }
        self.apply_write(storage, position, write)
    }

    /// The name of a client's session. A signed opening is void before its session can be forgotten, so the name of a forgotten
    /// session never comes back.
    fn session_of(&self, client: &Client, nonce: u128) -> SessionId {
        let mut hasher = blake3::Hasher::new_derive_key("tetrachord v1 session of a client");
        hasher.update(client).update(&nonce.to_be_bytes()).update(&self.group.0.to_be_bytes());
        let mut id = [0; 16];
        id.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
        SessionId(u128::from_be_bytes(id))
    }
}

#[cfg(test)]
mod tests {
    use super::super::Expect;
    use super::*;
    use crate::limits::Limits;
    use crate::ring::{GroupId, RingInterval};
    use crate::storage::memory::{MemoryDisk, MemoryStorage};

    const OWNER: Client = [1; 32];

    struct World {
        machine: Machine,
        storage: MemoryStorage,
        time: u64,
        disk: MemoryDisk,
    }

    impl World {
        fn new() -> Self {
            let disk = MemoryDisk::default();
            let (storage, _) = disk.open();
            let range = RingInterval { start: Position(u64::MAX), end: Position(u64::MAX) };
            let machine = Machine::load(&storage, GroupId(1), range, Limits::default()).unwrap();
            let machine = machine.with_root(&storage).unwrap();
            Self { machine, storage, time: 1_000_000, disk }
        }

        /// Everything that was applied reaches the tree.
        fn write_tree(&mut self) {
            let writes = self.machine.begin_checkpoint(&self.storage).unwrap();
            let id = crate::storage::CommitId(self.machine.applied().slot);
            self.storage.submit(crate::storage::Commit { id, state: vec![writes], ..Default::default() });
            self.disk.settle();
            self.machine.end_checkpoint();
        }

        fn apply(&mut self, requests: &[SignedRequest]) -> Vec<Reply> {
            let slot = self.machine.applied().slot + 1;
            let slot = Slot { slot, chain: [0; 32], sealed: false, time: self.time, batch: None };
            self.machine.apply_signed(&self.storage, &slot, requests).unwrap()
        }

        fn ask(&mut self, client: Client, session: SessionId, number: u64, operation: &Operation) -> Reply {
            let request = self.request(client, session, number, operation);
            self.apply(&[request]).remove(0)
        }

        fn request(
            &self,
            client: Client,
            session: SessionId,
            number: u64,
            operation: &Operation,
        ) -> SignedRequest {
            let (request, operation) = (RequestId { session, number }, operation.encode());
            SignedRequest { client, request, ack_below: 1, not_after: self.time + 10, operation }
        }

        fn open(&mut self) -> SessionId {
            match self.ask(OWNER, SessionId(7), 0, &Operation::Open) {
                Reply::Opened { session } => session,
                other => panic!("{other:?}"),
            }
        }
    }

    fn put(value: &str) -> Operation {
        Operation::Write(Write::Put { key: Bytes::from_static(b"k"), value: Bytes::from(value.to_string()) })
    }

    #[test]
    fn a_session_is_opened_once_and_belongs_to_the_client_that_opened_it() {
        let mut world = World::new();
        let session = world.open();
        assert_eq!(world.open(), session, "played again");
        let reply = world.ask([2; 32], session, 1, &put("stolen"));
        assert_eq!(reply, Reply::Failed(Failure::SessionExpired));
        assert!(matches!(world.ask(OWNER, session, 1, &put("own")), Reply::Put { .. }));
    }

    #[test]
    fn a_request_applies_once_and_only_in_its_time() {
        let mut world = World::new();
        let session = world.open();
        let request = world.request(OWNER, session, 1, &put("v"));
        let first = world.apply(std::slice::from_ref(&request));
        assert_eq!(world.apply(std::slice::from_ref(&request)), first, "the outcome is told again");
        let other = world.ask(OWNER, session, 1, &put("other"));
        assert_eq!(other, Reply::Failed(Failure::NumberReused { number: 1 }));
        world.time += 11;
        let late = world.apply(std::slice::from_ref(&request));
        assert!(matches!(late[0], Reply::Failed(Failure::TooLate { .. })), "{late:?}");
        let mut far = world.request(OWNER, session, 2, &put("far"));
        far.not_after = world.time + REQUEST_VALID_MICROS_MAX + 1;
        assert!(matches!(world.apply(&[far])[0], Reply::Failed(Failure::TooEarly { .. })));
    }

    #[test]
    fn what_a_client_signs_is_judged_however_wrong_it_is() {
        let mut world = World::new();
        let session = world.open();
        let mut nonsense = world.request(OWNER, session, 1, &put("v"));
        nonsense.operation = Bytes::from_static(&[99, 99]);
        assert_eq!(world.apply(&[nonsense])[0], Reply::Failed(Failure::Malformed));
        let huge = Operation::Get { key: Bytes::from(vec![0; 5_000]) };
        assert_eq!(world.ask(OWNER, session, 1, &huge), Reply::Failed(Failure::Malformed));
    }

    /// Counts what is read of another store.
    struct Counted<'a>(&'a MemoryStorage, std::cell::Cell<usize>);

    impl Storage for Counted<'_> {
        fn submit(&mut self, _: crate::storage::Commit) {
            unreachable!("it is only read")
        }

        fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StorageError> {
            self.1.set(self.1.get() + 1);
            self.0.get(key)
        }

        fn scan(&self, from: &[u8], to: &[u8], max: usize) -> Result<Vec<(Bytes, Bytes)>, StorageError> {
            self.0.scan(from, to, max)
        }

        fn log_end(&self) -> u64 {
            0
        }

        fn log_bytes(&self) -> u64 {
            0
        }
    }

    fn key(number: u64) -> Bytes {
        Bytes::from(format!("key {}", number % 64))
    }

    /// 64 keys with values of 1 MiB lie in the tree; how many rows are read for 960 of these operations in one slot, and
    /// what they come to.
    fn rows_read(operation: impl Fn(u64) -> Operation) -> (usize, Vec<Reply>) {
        let mut world = World::new();
        let session = world.open();
        for number in 1..=64 {
            let (key, value) = (key(number), Bytes::from(vec![b'x'; 1 << 20]));
            world.ask(OWNER, session, number, &Operation::Write(Write::Put { key, value }));
        }
        world.write_tree();
        let requests: Vec<SignedRequest> =
            (65..=1_024).map(|number| world.request(OWNER, session, number, &operation(number))).collect();
        let counted = Counted(&world.storage, std::cell::Cell::default());
        let slot = world.machine.applied().slot + 1;
        let slot = Slot { slot, chain: [0; 32], sealed: false, time: world.time, batch: None };
        let replies = world.machine.apply_signed(&counted, &slot, &requests).unwrap();
        (counted.1.get(), replies)
    }

    #[test]
    fn reads_that_a_slot_does_not_answer_read_nothing() {
        let (rows, replies) = rows_read(|number| Operation::Get { key: key(number) });
        let told = replies.iter().filter(|reply| matches!(reply, Reply::Value { .. })).count();
        assert_eq!(told, READ_BYTES_PER_SLOT_MAX >> 21, "one client reads half of what there is");
        let rows_of_value = (1 << 20) / crate::limits::RECORD_BYTES_MAX + 3;
        assert!(rows <= told * rows_of_value, "{rows} rows were read");
    }

    #[test]
    fn writes_read_no_more_of_a_value_than_they_need() {
        let cas = |number, expect| Write::Cas { key: key(number), expect, value: None };
        let cas_version = |number| cas(number, Expect::Version(7));
        let cas_value = |number| cas(number, Expect::Value(Some(Bytes::from_static(b"x"))));
        let incr = |number| Write::Incr { key: key(number), by: 1 };
        let append = |number| Write::Append { key: key(number), value: Bytes::from_static(b"x") };
        let delete = |number| Write::Delete { key: key(number) };
        let writes: [&dyn Fn(u64) -> Write; 5] = [&cas_version, &cas_value, &incr, &append, &delete];
        for (index, write) in writes.into_iter().enumerate() {
            let (rows, replies) = rows_read(|number| Operation::Write(write(number)));
            assert!(rows <= 960, "{rows} rows were read for {index}");
            let expected = |reply: &Reply| match index {
                0 | 1 => matches!(reply, Reply::Cas { swapped: false, .. }),
                2 => *reply == Reply::Failed(Failure::NotANumber),
                3 => matches!(reply, Reply::Failed(Failure::ValueTooLarge { .. })),
                _ => matches!(reply, Reply::Deleted { .. }),
            };
            assert!(replies.iter().all(expected), "{:?}", replies.first());
        }
    }

    #[test]
    fn the_reads_of_one_slot_answer_so_much_and_of_each_client_its_share() {
        let mut world = World::new();
        let session = world.open();
        world.ask(OWNER, session, 1, &put(&"x".repeat(1 << 20)));
        let get = Operation::Get { key: Bytes::from_static(b"k") };
        // The greedy come first.
        let clients: [Client; 6] = std::array::from_fn(|name| [name as u8; 32]);
        let reads: Vec<SignedRequest> = clients
            .iter()
            .flat_map(|client| (1..=20).map(|number| (*client, number)))
            .map(|(client, number)| world.request(client, SessionId(7), number, &get))
            .collect();
        let replies = world.apply(&reads);
        let told =
            |replies: &&[Reply]| replies.iter().filter(|reply| matches!(reply, Reply::Value { .. })).count();
        let of_each: Vec<usize> = replies.chunks(20).map(|replies| told(&replies)).collect();
        assert_eq!(of_each, [8, 4, 2, 1, 1, 0]);
        assert_eq!(told(&replies.as_slice()), READ_BYTES_PER_SLOT_MAX >> 20);
        assert_eq!(replies.last(), Some(&Reply::Failed(Failure::ReadTooMuch)));
        assert!(matches!(world.ask(clients[5], SessionId(7), 21, &get), Reply::Value { .. }), "asked again");
    }

    #[test]
    fn a_read_needs_no_session() {
        let mut world = World::new();
        let get = Operation::Get { key: Bytes::from_static(b"k") };
        assert_eq!(world.ask(OWNER, SessionId(99), 1, &get), Reply::Value { found: None, time: world.time });
        assert_eq!(world.machine.sessions(), 0);
    }

    #[test]
    fn a_client_that_opens_sessions_as_fast_as_it_can_cannot_keep_another_from_one() {
        let mut world = World::new();
        let mut opened = 0;
        loop {
            let asked = (0..1_000)
                .map(|nonce| world.request([9; 32], SessionId(opened + nonce), 0, &Operation::Open));
            let asked: Vec<SignedRequest> = asked.collect();
            let replies = world.apply(&asked);
            let more = replies.iter().take_while(|reply| matches!(reply, Reply::Opened { .. })).count();
            opened += more as u128;
            if more < 1_000 {
                break;
            }
        }
        let session = world.open();
        assert!(matches!(world.ask(OWNER, session, 1, &put("v")), Reply::Put { .. }));
    }

    /// Whoever has what a client signed plays it again, at every moment, after the client has closed its session.
    #[test]
    fn a_closed_session_does_not_come_back_and_nothing_is_applied_twice() {
        let mut world = World::new();
        let opening = world.request(OWNER, SessionId(7), 0, &Operation::Open);
        let Reply::Opened { session } = world.apply(std::slice::from_ref(&opening)).remove(0) else {
            panic!("not opened");
        };
        let incr = Operation::Write(Write::Incr { key: Bytes::from_static(b"k"), by: 1 });
        world.time += 3;
        let first = world.request(OWNER, session, 1, &incr);
        let mut lasting = world.request(OWNER, session, 2, &incr);
        lasting.not_after += 20;
        for write in [&first, &lasting] {
            assert!(matches!(world.apply(std::slice::from_ref(write))[0], Reply::Incr { .. }));
        }
        assert_eq!(world.ask([2; 32], session, 3, &Operation::Close), Reply::Failed(Failure::SessionExpired));
        let close = world.request(OWNER, session, 3, &Operation::Close);
        assert_eq!(world.apply(std::slice::from_ref(&close)), [Reply::Closed]);
        let last = lasting.not_after;
        while world.time < last + 3 {
            world.time += 1;
            let replies = world.apply(&[opening.clone(), first.clone(), lasting.clone(), close.clone()]);
            assert!(replies[..3].iter().all(|reply| matches!(reply, Reply::Failed(_))), "{replies:?}");
            assert_eq!(world.machine.sessions(), usize::from(world.time <= last), "at {}", world.time);
        }
        let found = world.machine.get(&world.storage, &Bytes::from_static(b"k")).unwrap().unwrap();
        assert_eq!(found.value, Bytes::from_static(b"2"));
    }
}
