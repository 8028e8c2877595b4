//! What each command does, what a retry gets, and what survives a checkpoint.

mod byzantine;

use super::*;
use crate::error::StorageError;
use crate::limits::{Limits, NUMBER_BYTES_MAX, SESSION_RETENTION_MICROS, SESSION_STEP_MICROS_MAX};
use crate::ring::{Position, RingInterval, Tenure, found_without_keys};
use crate::storage::memory::{MemoryDisk, MemoryStorage};
use crate::storage::{Commit, CommitId, Storage};
use bytes::Bytes;
use std::sync::Arc;

struct Bench {
    disk: MemoryDisk,
    storage: MemoryStorage,
    machine: Machine,
    session: SessionId,
    number: u64,
    commits: u64,
}

/// A group that holds the whole ring.
fn tenure() -> Arc<Tenure> {
    Arc::new(found_without_keys(1, 3, 3).remove(0))
}

fn open(nonce: u128, client: Client) -> Envelope {
    Envelope::new(RequestId { session: SessionId(nonce), number: 0 }, 0, &Operation::Open).of(client)
}

fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

impl Bench {
    fn new() -> Self {
        let disk = MemoryDisk::default();
        let (storage, _) = disk.open();
        let machine = Machine::load(&storage, tenure(), Limits::default()).unwrap();
        let mut bench = Self { disk, storage, machine, session: SessionId(0), number: 0, commits: 0 };
        let Reply::Opened { session } = bench.apply(&open(1, [1; 32])) else { panic!("not opened") };
        bench.session = session;
        bench
    }

    fn apply(&mut self, envelope: &Envelope) -> Reply {
        self.apply_at(envelope, self.machine.reached().time + 1)
    }

    fn apply_at(&mut self, envelope: &Envelope, time: u64) -> Reply {
        let mut batch = Batch::default();
        batch.push(&envelope.encode());
        let slot = self.machine.reached().slot + 1;
        let inputs = Batch::inputs(batch.freeze());
        let slot = Slot { slot, chain: [0; 32], sealed: false, time, inputs };
        self.machine.apply(&self.storage, &slot).unwrap().replies.remove(0).1
    }

    fn request(&self, number: u64, operation: &Operation) -> Envelope {
        Envelope::new(RequestId { session: self.session, number }, 1, operation)
    }

    fn command(&self, number: u64, write: Write) -> Envelope {
        self.request(number, &Operation::Write(write))
    }

    fn write(&mut self, write: Write) -> Reply {
        self.number += 1;
        let command = self.command(self.number, write);
        self.apply(&command)
    }

    fn put(&mut self, key: &str, value: &str) -> u64 {
        match self.write(Write::put(bytes(key), bytes(value))) {
            Reply::Put { version } => version,
            other => panic!("{other:?}"),
        }
    }

    fn get(&mut self, key: &str) -> Option<String> {
        match self.machine.get(&self.storage, &bytes(key)).unwrap() {
            Found::Record(found) => found.map(|found| String::from_utf8(found.value.to_vec()).unwrap()),
            Found::NotOurs => panic!("the group owns everything"),
        }
    }

    fn checkpoint(&mut self) {
        let writes = self.machine.begin_checkpoint(&self.storage).unwrap();
        self.commits += 1;
        self.storage.submit(Commit { id: CommitId(self.commits), state: vec![writes], ..Commit::default() });
        self.disk.settle();
        self.machine.end_checkpoint();
    }

    fn restart(&mut self) {
        self.disk.crash(0);
        self.storage = self.disk.open().0;
        self.machine = Machine::load(&self.storage, tenure(), Limits::default()).unwrap();
    }
}

#[test]
fn each_command_does_what_it_says() {
    let mut bench = Bench::new();
    let first = bench.put("k", "1");
    let second = bench.put("k", "2");
    assert!(second > first);
    assert_eq!(bench.get("k").as_deref(), Some("2"));
    let cas = |expect, value: Option<&str>| Write::cas("k", expect, value.map(bytes));
    let wrong = bench.write(cas(Expect::Value(Some(bytes("1"))), Some("3")));
    assert_eq!(wrong, Reply::Cas { swapped: false, version: second });
    assert!(matches!(bench.write(cas(Expect::Version(second), Some("3"))), Reply::Cas { swapped: true, .. }));
    assert_eq!(bench.write(Write::Incr { key: bytes("k"), by: -5 }), {
        let version = bench.machine.reached().clock;
        Reply::Incr { value: -2, version }
    });
    assert!(matches!(
        bench.write(Write::Append { key: bytes("k"), value: bytes("0") }),
        Reply::Append { length: 3, .. }
    ));
    assert_eq!(bench.get("k").as_deref(), Some("-20"));
    assert_eq!(bench.write(Write::Delete { key: bytes("k") }), Reply::Deleted { existed: true });
    assert_eq!(bench.write(Write::Delete { key: bytes("k") }), Reply::Deleted { existed: false });
    assert_eq!(bench.write(cas(Expect::Value(None), None)), Reply::Cas { swapped: true, version: 0 });
    assert!(matches!(bench.write(cas(Expect::Version(0), Some("n"))), Reply::Cas { swapped: true, .. }));
    assert_eq!(bench.get("k").as_deref(), Some("n"));
}

#[test]
fn failures_change_nothing_and_say_why() {
    let mut bench = Bench::new();
    bench.put("text", "abc");
    bench.put("big", &i64::MAX.to_string());
    assert_eq!(bench.write(Write::Incr { key: bytes("text"), by: 1 }), Reply::Failed(Failure::NotANumber));
    assert_eq!(bench.write(Write::Incr { key: bytes("big"), by: 1 }), Reply::Failed(Failure::Overflow));
    // Whether a value is in memory or in the tree makes no difference.
    for length in [NUMBER_BYTES_MAX, NUMBER_BYTES_MAX + 1, 20_000] {
        for is_written in [false, true] {
            let is_number = length <= NUMBER_BYTES_MAX;
            bench.put("zeros", &"0".repeat(length));
            if is_written {
                bench.checkpoint();
                bench.restart();
            }
            let reply = bench.write(Write::Incr { key: bytes("zeros"), by: 1 });
            assert_eq!(reply != Reply::Failed(Failure::NotANumber), is_number, "{length} {is_written}");
        }
    }
    let tail = Bytes::from(vec![b'x'; crate::limits::VALUE_BYTES_CAP]);
    let reply = bench.write(Write::Append { key: bytes("text"), value: tail });
    assert!(matches!(reply, Reply::Failed(Failure::ValueTooLarge { .. })));
    assert_eq!(bench.get("text").as_deref(), Some("abc"));
}

#[test]
fn a_retry_gets_the_first_outcome_also_after_a_restart() {
    let mut bench = Bench::new();
    let incr = bench.command(7, Write::Incr { key: bytes("n"), by: 1 });
    let first = bench.apply(&incr);
    assert_eq!(bench.apply(&incr), first);
    bench.checkpoint();
    bench.restart();
    assert_eq!(bench.apply(&incr), first);
    assert_eq!(bench.get("n").as_deref(), Some("1"));
    // A retry may acknowledge more than the first attempt did; it is still the same request.
    assert_eq!(bench.apply(&Envelope { ack_below: 5, ..incr }), first);
}

#[test]
fn a_number_cannot_be_used_for_two_commands() {
    let mut bench = Bench::new();
    let one = bench.command(7, Write::Incr { key: bytes("n"), by: 1 });
    let two = bench.command(7, Write::Incr { key: bytes("n"), by: 2 });
    bench.apply(&one);
    assert_eq!(bench.apply(&two), Reply::Failed(Failure::NumberReused { number: 7 }));
}

/// A session that was silent for as long as it is remembered.
fn silent() -> (Bench, Envelope) {
    let mut bench = Bench::new();
    let steps = SESSION_RETENTION_MICROS / SESSION_STEP_MICROS_MAX;
    assert_eq!(steps * SESSION_STEP_MICROS_MAX, SESSION_RETENTION_MICROS);
    for nonce in 2..steps + 2 {
        let late = bench.machine.reached().time + SESSION_STEP_MICROS_MAX;
        bench.apply_at(&open(nonce.into(), [2; 32]), late);
    }
    let put = bench.command(1, Write::put("k", "v"));
    (bench, put)
}

#[test]
fn an_expired_session_applies_nothing() {
    let (mut bench, put) = silent();
    let time = bench.machine.reached().time;
    assert!(matches!(bench.apply_at(&put, time), Reply::Put { .. }));
    let (mut bench, put) = silent();
    assert_eq!(bench.apply_at(&put, time + 1), Reply::Failed(Failure::SessionExpired));
    assert_eq!(bench.get("k"), None);
}

#[test]
fn a_leap_of_log_time_ends_no_session() {
    let mut bench = Bench::new();
    let leap = bench.machine.reached().time + 2 * 365 * 24 * 3600 * 1_000_000;
    let put = bench.command(1, Write::put("k", "v"));
    assert!(matches!(bench.apply_at(&put, leap), Reply::Put { .. }));
    assert_eq!(bench.machine.reached().time, leap);
}

#[test]
fn a_key_of_another_group_is_refused_and_the_number_stays_free() {
    let mut bench = Bench::new();
    let here = Position::of_key(b"here");
    let range = RingInterval { start: Position(here.0.wrapping_sub(1)), end: here };
    bench.machine.tenure = Arc::new(Tenure { range, ..found_without_keys(1, 3, 3).remove(0) });
    let elsewhere = bench.command(1, Write::put("elsewhere", "v"));
    assert_eq!(bench.apply(&elsewhere), Reply::Failed(Failure::WrongGroup));
    let put = bench.command(1, Write::put("here", "v"));
    assert!(matches!(bench.apply(&put), Reply::Put { .. }));
    assert_eq!(bench.machine.get(&bench.storage, &bytes("elsewhere")).unwrap(), Found::NotOurs);
}

/// A store that must not be read.
struct Unread;

impl Storage for Unread {
    fn submit(&mut self, _: Commit) {
        unreachable!("nothing is written to it")
    }

    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StorageError> {
        panic!("{} is read", key.escape_ascii())
    }

    fn scan(&self, from: &[u8], _: &[u8], _: usize) -> Result<Vec<(Bytes, Bytes)>, StorageError> {
        panic!("rows from {} are read", from.escape_ascii())
    }

    fn log_end(&self) -> u64 {
        0
    }

    fn log_bytes(&self) -> u64 {
        0
    }
}

#[test]
fn a_checkpoint_reads_nothing_although_a_large_value_is_stored() {
    let mut bench = Bench::new();
    bench.put("large", &"x".repeat(20_000));
    bench.checkpoint();
    (0..100).for_each(|key| _ = bench.put(&format!("k{key}"), "v"));
    bench.put("large", "small");
    let writes = bench.machine.begin_checkpoint(&Unread).unwrap();
    bench.storage.submit(Commit { id: CommitId(2), state: vec![writes], ..Commit::default() });
    bench.disk.settle();
    bench.machine.end_checkpoint();
    assert_eq!(bench.disk.rows(b"c"), []);
    bench.restart();
    assert_eq!(bench.get("large").as_deref(), Some("small"));
}

#[test]
fn what_a_crash_leaves_is_the_state_at_the_last_checkpoint() {
    let mut bench = Bench::new();
    bench.put("a", "1");
    bench.put("gone", "x");
    bench.put("large", &"y".repeat(30_000));
    bench.checkpoint();
    bench.put("large", "small now");
    bench.write(Write::Delete { key: bytes("gone") });
    bench.checkpoint();
    let saved = bench.machine.reached().clone();
    bench.put("a", "2");
    bench.restart();
    assert_eq!(*bench.machine.reached(), saved);
    assert_eq!(bench.get("a").as_deref(), Some("1"));
    assert_eq!(bench.get("gone"), None);
    assert_eq!(bench.get("large").as_deref(), Some("small now"));
}

#[test]
fn while_a_checkpoint_is_under_way_reads_see_everything() {
    let mut bench = Bench::new();
    bench.put("a", "1");
    let writes = bench.machine.begin_checkpoint(&bench.storage).unwrap();
    assert_eq!(bench.get("a").as_deref(), Some("1"));
    bench.put("a", "2");
    assert_eq!(bench.get("a").as_deref(), Some("2"));
    bench.storage.submit(Commit { id: CommitId(1), state: vec![writes], ..Commit::default() });
    bench.disk.settle();
    bench.machine.end_checkpoint();
    assert_eq!(bench.get("a").as_deref(), Some("2"));
}

#[test]
fn replicas_that_apply_the_same_have_the_same_digest_and_others_do_not() {
    let run = |value: &str| {
        let mut bench = Bench::new();
        bench.put("a", "1");
        bench.write(Write::cas("a", Expect::Value(Some(bytes(value))), None));
        bench.machine.reached().digest
    };
    assert_eq!(run("1"), run("1"));
    assert_ne!(run("1"), run("2"));
}

#[test]
fn a_slot_that_is_no_batch_means_nothing() {
    let mut bench = Bench::new();
    let slot = bench.machine.reached().slot + 1;
    let inputs = Batch::inputs(bytes("nonsense"));
    let slot = Slot { slot, chain: [0; 32], sealed: false, time: 5, inputs };
    assert_eq!(bench.machine.apply(&bench.storage, &slot).unwrap(), Applied::default());
}

#[test]
fn a_client_that_opens_sessions_as_fast_as_it_can_cannot_keep_another_from_one() {
    let mut bench = Bench::new();
    let greedy = |nonce| open(nonce, [9; 32]);
    let mut opened = 0;
    while matches!(bench.apply(&greedy(opened)), Reply::Opened { .. }) {
        opened += 1;
        assert!(opened < 10_000, "it takes all");
    }
    assert!(opened > 1_000, "{opened}");
    let Reply::Opened { session } = bench.apply(&open(1, [2; 32])) else {
        panic!("the other client is refused");
    };
    (bench.session, bench.number) = (session, 0);
    bench.put("k", "v");
    let refused = bench.apply(&greedy(opened));
    let Reply::Failed(failure) = &refused else { panic!("{refused:?}") };
    assert!(failure.to_string().contains(&format!("holds {opened} sessions")), "{failure}");
}

#[test]
fn a_session_that_was_closed_takes_nothing_and_gives_its_place_back() {
    let mut bench = Bench::new();
    bench.put("k", "v");
    let close = bench.request(2, &Operation::Close);
    let not_its_own = bench.apply(&close.clone().of([7; 32]));
    assert_eq!(not_its_own, Reply::Failed(Failure::SessionExpired));
    let close = close.of([1; 32]);
    assert_eq!(bench.apply(&close), Reply::Closed);
    assert_eq!(bench.machine.held().count(), 0);
    assert_eq!(bench.apply(&close), Reply::Failed(Failure::SessionExpired));
    let late = bench.write(Write::put("k", "late"));
    assert_eq!(late, Reply::Failed(Failure::SessionExpired));
    bench.checkpoint();
    bench.restart();
    assert_eq!((bench.machine.sessions(), bench.get("k").as_deref()), (0, Some("v")));
}

fn cancel(key: &str) -> Operation {
    Operation::Cancel { key: bytes(key) }
}

#[test]
fn what_is_cancelled_before_it_is_carried_out_never_is() {
    let mut bench = Bench::new();
    let (incr, cancelled) = (Write::Incr { key: bytes("n"), by: 1 }, Reply::Failed(Failure::Cancelled));
    assert_eq!(bench.apply(&bench.request(7, &cancel("n"))), cancelled);
    assert_eq!(bench.apply(&bench.request(7, &cancel("n"))), cancelled, "asked again");
    for is_restarted in [false, true] {
        if is_restarted {
            bench.checkpoint();
            bench.restart();
        }
        assert_eq!(bench.apply(&bench.command(7, incr.clone())), cancelled, "whatever comes late");
    }
    assert_eq!(bench.get("n"), None);
    assert_eq!(bench.apply(&bench.command(8, incr)), {
        let version = bench.machine.reached().clock;
        Reply::Incr { value: 1, version }
    });
}

#[test]
fn what_was_carried_out_cannot_be_cancelled_and_is_told() {
    let mut bench = Bench::new();
    let told = bench.apply(&bench.command(1, Write::put("k", "v")));
    assert_eq!(bench.apply(&bench.request(1, &cancel("k"))), told);
    let failed = bench.apply(&bench.command(2, Write::Incr { key: bytes("k"), by: 1 }));
    assert_eq!(bench.apply(&bench.request(2, &cancel("k"))), failed);
    let acknowledged = Envelope { ack_below: 3, ..bench.request(1, &cancel("k")) };
    let stale = Reply::Failed(Failure::Stale { number: 1, ack_below: 3 });
    assert_eq!(bench.apply(&acknowledged), stale, "nobody knows any more");
}

/// A group that does not own the key would promise what the owner does not know.
#[test]
fn only_the_owner_of_the_key_cancels() {
    let mut bench = Bench::new();
    let here = Position::of_key(b"here");
    let range = RingInterval { start: Position(here.0.wrapping_sub(1)), end: here };
    bench.machine.tenure = Arc::new(Tenure { range, ..found_without_keys(1, 3, 3).remove(0) });
    let wrong = Reply::Failed(Failure::WrongGroup);
    assert_eq!(bench.apply(&bench.request(1, &cancel("elsewhere"))), wrong);
    bench.machine.tenure = tenure();
    assert!(matches!(bench.apply(&bench.command(1, Write::put("elsewhere", "v"))), Reply::Put { .. }));
}

#[test]
fn a_request_waits_for_the_one_that_it_is_to_come_after() {
    let mut bench = Bench::new();
    let second = Envelope { after: Some(1), ..bench.command(2, Write::put("k", "2")) };
    assert_eq!(bench.apply(&second), Reply::Failed(Failure::OutOfOrder { after: 1 }));
    bench.apply(&bench.command(1, Write::put("k", "1")));
    assert!(matches!(bench.apply(&second), Reply::Put { .. }));
    assert_eq!(bench.get("k").as_deref(), Some("2"));
    // What the client has the outcome of has one.
    let third = Envelope { after: Some(2), ack_below: 3, ..bench.command(3, Write::put("k", "3")) };
    assert!(matches!(bench.apply(&third), Reply::Put { .. }));
}
