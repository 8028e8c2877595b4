//! What a signed request means, however wrong it is, and whoever plays it again.

use super::*;
use crate::limits::{READ_BYTES_PER_SLOT_MAX, REQUEST_VALID_MICROS_MAX};

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
        let machine = Machine::load(&storage, tenure(), Limits::default()).unwrap();
        let machine = machine.with_root(&storage).unwrap();
        Self { machine, storage, time: 1_000_000, disk }
    }

    /// Everything that was applied reaches the tree.
    fn write_tree(&mut self) {
        let writes = self.machine.begin_checkpoint(&self.storage).unwrap();
        let id = CommitId(self.machine.reached().slot);
        self.storage.submit(Commit { id, state: vec![writes], ..Default::default() });
        self.disk.settle();
        self.machine.end_checkpoint();
    }

    fn slot(&self, requests: &[Envelope]) -> Slot {
        let inputs = requests.iter().cloned().map(Input::Request).collect();
        let slot = self.machine.reached().slot + 1;
        Slot { slot, chain: [0; 32], sealed: false, time: self.time, inputs }
    }

    fn apply(&mut self, requests: &[Envelope]) -> Vec<Reply> {
        let slot = self.slot(requests);
        replies(self.machine.apply(&self.storage, &slot).unwrap())
    }

    fn ask(&mut self, client: Client, session: SessionId, number: u64, operation: &Operation) -> Reply {
        let request = self.request(client, session, number, operation);
        self.apply(&[request]).remove(0)
    }

    fn request(&self, client: Client, session: SessionId, number: u64, operation: &Operation) -> Envelope {
        let (request, operation) = (RequestId { session, number }, operation.encode());
        Envelope {
            client: Some(client),
            request,
            ack_below: 1,
            after: None,
            not_after: Some(self.time + 10),
            operation,
        }
    }

    fn open(&mut self) -> SessionId {
        match self.ask(OWNER, SessionId(7), 0, &Operation::Open) {
            Reply::Opened { session } => session,
            other => panic!("{other:?}"),
        }
    }
}

fn replies(applied: Applied) -> Vec<Reply> {
    applied.replies.into_iter().map(|(_, reply)| reply).collect()
}

fn put(value: &str) -> Operation {
    Operation::Write(Write::put("k", value.to_string()))
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
    far.not_after = Some(world.time + REQUEST_VALID_MICROS_MAX + 1);
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
    fn submit(&mut self, _: Commit) {
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
        world.ask(OWNER, session, number, &Operation::Write(Write::put(key, value)));
    }
    world.write_tree();
    let requests: Vec<Envelope> =
        (65..=1_024).map(|number| world.request(OWNER, session, number, &operation(number))).collect();
    let counted = Counted(&world.storage, std::cell::Cell::default());
    let slot = world.slot(&requests);
    let applied = world.machine.apply(&counted, &slot).unwrap();
    (counted.1.get(), replies(applied))
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
    let cas = |number, expect| Write::cas(key(number), expect, None);
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
    let reads: Vec<Envelope> = clients
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
        let asked =
            (0..1_000).map(|nonce| world.request([9; 32], SessionId(opened + nonce), 0, &Operation::Open));
        let asked: Vec<Envelope> = asked.collect();
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
    lasting.not_after = lasting.not_after.map(|until| until + 20);
    for write in [&first, &lasting] {
        assert!(matches!(world.apply(std::slice::from_ref(write))[0], Reply::Incr { .. }));
    }
    assert_eq!(world.ask([2; 32], session, 3, &Operation::Close), Reply::Failed(Failure::SessionExpired));
    let close = world.request(OWNER, session, 3, &Operation::Close);
    assert_eq!(world.apply(std::slice::from_ref(&close)), [Reply::Closed]);
    let last = lasting.not_after.unwrap();
    while world.time < last + 3 {
        world.time += 1;
        let replies = world.apply(&[opening.clone(), first.clone(), lasting.clone(), close.clone()]);
        assert!(replies[..3].iter().all(|reply| matches!(reply, Reply::Failed(_))), "{replies:?}");
        assert_eq!(world.machine.sessions(), usize::from(world.time <= last), "at {}", world.time);
    }
    let found = world.machine.get(&world.storage, &Bytes::from_static(b"k")).unwrap();
    let Found::Record(Some(found)) = found else { panic!("{found:?}") };
    assert_eq!(found.value, Bytes::from_static(b"2"));
}
