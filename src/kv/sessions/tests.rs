//! What is remembered of requests, who holds it, and when it is forgotten.

use super::*;
use crate::limits::{OUTCOMES_BYTES_MAX, REQUEST_VALID_MICROS_MAX, SESSIONS_MAX};
use crate::ring::GroupId;
use crate::storage::memory::MemoryDisk;
use crate::storage::{Commit, CommitId, Storage};
use proptest::prelude::*;

const ID: SessionId = SessionId(7);
const OWNER: Client = [3; 32];
const OTHER: Client = [4; 32];

fn asked(number: u64, ack_below: u64, digest: u64) -> Asked {
    Asked { number, ack_below, after: None, digest: Some(digest) }
}

fn opened() -> Sessions {
    let mut sessions = Sessions::default();
    assert_eq!(sessions.open(ID, OWNER, 0, 0), Reply::Opened { session: ID });
    sessions
}

#[test]
fn requests_may_arrive_in_any_order_and_are_applied_once() {
    let mut sessions = opened();
    for number in [3, 1, 2] {
        assert_eq!(sessions.lookup(ID, asked(number, 1, number), 1), Lookup::Fresh);
        sessions.remember(ID, number, number, Reply::Put { version: number }, 0);
    }
    assert_eq!(sessions.lookup(ID, asked(1, 1, 1), 1), Lookup::Known(Reply::Put { version: 1 }));
    assert_eq!(sessions.lookup(ID, asked(1, 1, 99), 1), Lookup::Refused(Failure::NumberReused { number: 1 }));
    assert_eq!(sessions.lookup(ID, asked(4, 4, 4), 1), Lookup::Fresh);
    assert_eq!(
        sessions.lookup(ID, asked(3, 4, 3), 1),
        Lookup::Refused(Failure::Stale { number: 3, ack_below: 4 })
    );
    let far = 4 + SESSION_WINDOW;
    assert!(matches!(sessions.lookup(ID, asked(far, 4, 0), 1), Lookup::Refused(Failure::WindowFull { .. })));
}

#[test]
fn silence_is_measured_in_log_time() {
    let mut sessions = opened();
    sessions.expire(SESSION_RETENTION_MICROS);
    assert_eq!(sessions.len(), 1);
    assert_eq!(sessions.lookup(ID, asked(1, 1, 0), SESSION_RETENTION_MICROS), Lookup::Fresh);
    sessions.expire(SESSION_RETENTION_MICROS + 1);
    assert_eq!(sessions.len(), 1, "it was active since");
    sessions.expire(2 * SESSION_RETENTION_MICROS + 1);
    assert_eq!(sessions.lookup(ID, asked(1, 1, 0), 0), Lookup::Refused(Failure::SessionExpired));
}

#[test]
fn sessions_survive_storage_with_a_full_window_and_shrink_again() {
    let disk = MemoryDisk::default();
    let (mut storage, _) = disk.open();
    let mut sessions = opened();
    for number in 1..=SESSION_WINDOW {
        assert_eq!(sessions.lookup(ID, asked(number, 1, number), 1), Lookup::Fresh);
        sessions.remember(ID, number, u64::MAX, Reply::Incr { value: i64::MIN, version: u64::MAX }, 0);
    }
    for (id, ack_below) in [(1, 1), (2, SESSION_WINDOW + 1)] {
        sessions.lookup(ID, asked(SESSION_WINDOW + 1, ack_below, 0), 1);
        let mut out = Vec::new();
        sessions.take_writes(GroupId(1), &mut out);
        storage.submit(Commit { id: CommitId(id), state: vec![out], ..Commit::default() });
        disk.settle();
        if id == 1 {
            let loaded = Sessions::load(&storage, GroupId(1)).unwrap();
            assert_eq!(loaded.by_id, sessions.by_id);
        }
        let rows = storage.scan(b"m", b"n", usize::MAX).unwrap().len() as u64;
        assert_eq!(rows, if id == 1 { 1 + SESSION_WINDOW } else { 1 });
    }
}

/// What follows from the sessions, made anew.
fn derived(sessions: &Sessions) -> (Index, Shares) {
    let mut fresh = Sessions::default();
    sessions.by_id.iter().for_each(|(id, session)| fresh.insert(*id, session.clone()));
    (fresh.index, fresh.shares)
}

/// Opens a session in a slot of this time, which is told before what it comes to.
fn open_as_told(sessions: &mut Sessions, id: SessionId, owner: Client, time: u64) -> Reply {
    let told = sessions.refusal_to_open(&owner, time);
    sessions.expire(time);
    let reply = sessions.open(id, owner, 0, time);
    if told.is_some() {
        assert_eq!(told.as_ref(), Some(&reply), "whoever is refused before would be refused");
    } else {
        assert_eq!(reply, Reply::Opened { session: id }, "only whoever would be refused is");
    }
    reply
}

/// Opens sessions for a client until it is refused; how many, and what it is told.
fn open_all(sessions: &mut Sessions, owner: Client, from: u128, time: u64) -> (u64, Failure) {
    let mut opened = 0;
    loop {
        match open_as_told(sessions, SessionId(from + u128::from(opened)), owner, time) {
            Reply::Opened { .. } => opened += 1,
            Reply::Failed(failure) => return (opened, failure),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_client_that_holds_all_it_may_loses_its_own_idle_session_and_nobody_elses() {
    let mut sessions = Sessions::default();
    sessions.open(SessionId(1), OTHER, 0, 1);
    let (opened, refused) = open_all(&mut sessions, OWNER, 100, 2);
    assert_eq!(opened, (SESSIONS_MAX - 1) / 16);
    assert_eq!(refused, Failure::TooManySessions { held: opened, max: opened });
    assert!(refused.to_string().contains(&format!("holds {opened} sessions")), "{refused}");
    // The first is used, so it is the second that is silent longest; not for long enough yet.
    let used_at = SESSION_GRAIN_MICROS + 2;
    assert_eq!(sessions.lookup(SessionId(100), asked(1, 1, 1), used_at), Lookup::Fresh);
    let idle_at = SESSION_IDLE_MICROS + 2;
    assert_eq!(open_as_told(&mut sessions, ID, OWNER, idle_at - 1), Reply::Failed(refused));
    assert_eq!(open_as_told(&mut sessions, ID, OWNER, idle_at), Reply::Opened { session: ID });
    let gone = |id| !sessions.by_id.contains_key(&SessionId(id));
    assert!(gone(101) && !gone(100) && !gone(102), "the one that was silent longest");
    assert!(!gone(1), "the other client's was silent for longer");
    assert_eq!(sessions.shares.of(&OWNER).sessions, opened);
    assert_eq!(
        (sessions.index, sessions.shares),
        derived(&Sessions { by_id: sessions.by_id, ..Sessions::default() })
    );
}

#[test]
fn sessions_that_are_over_make_room_for_whoever_asks() {
    let mut sessions = Sessions::default();
    let (opened, refused) = open_all(&mut sessions, OWNER, 100, 2);
    // In Byzantine mode one that is closed holds its place while something is good that was applied for it.
    let is_closed = sessions.close(SessionId(100), &OWNER, 2);
    assert_eq!(is_closed, Reply::Closed);
    assert_eq!(open_as_told(&mut sessions, ID, OWNER, 3), Reply::Opened { session: ID });
    assert_eq!(open_as_told(&mut sessions, SessionId(8), OWNER, 4), Reply::Failed(refused));
    let over_at = SESSION_RETENTION_MICROS + 3;
    assert_eq!(
        open_as_told(&mut sessions, SessionId(8), OWNER, over_at),
        Reply::Opened { session: SessionId(8) }
    );
    assert!(opened > 100 && sessions.len() == 2, "all but the last two are over");
}

#[test]
fn a_session_that_is_closed_gives_its_place_back_at_once_where_nothing_is_signed() {
    let mut sessions = Sessions::default();
    for round in 0..3 * SESSIONS_MAX {
        let id = SessionId(u128::from(round));
        assert_eq!(sessions.open(id, OWNER, 0, 5), Reply::Opened { session: id });
        assert_eq!(sessions.close(id, &OTHER, 5), Reply::Failed(Failure::SessionExpired), "not its owner");
        assert_eq!(sessions.close(id, &OWNER, 5), Reply::Closed);
        assert_eq!(sessions.lookup(id, asked(1, 1, 1), 5), Lookup::Refused(Failure::SessionExpired));
    }
    assert_eq!((sessions.len(), sessions.shares.all()), (0, Held::default()));
}

#[test]
fn a_closed_session_stays_while_something_that_was_applied_for_it_is_good() {
    let mut sessions = Sessions::default();
    assert_eq!(sessions.open(ID, OWNER, 50, 10), Reply::Opened { session: ID });
    assert_eq!(sessions.lookup(ID, asked(1, 1, 1), 20), Lookup::Fresh);
    sessions.remember(ID, 1, 1, Reply::Put { version: 1 }, 70);
    assert_eq!(sessions.close(ID, &OWNER, 30), Reply::Closed);
    assert_eq!(sessions.shares.of(&OWNER), Held { sessions: 1, bytes: 0 });
    for time in [31, 50, 70] {
        sessions.expire(time);
        assert_eq!(sessions.close(ID, &OWNER, time), Reply::Closed, "asked again");
        assert_eq!(sessions.open(ID, OWNER, 50, time), Reply::Failed(Failure::SessionExpired));
        assert_eq!(sessions.lookup(ID, asked(1, 1, 1), time), Lookup::Refused(Failure::SessionExpired));
    }
    sessions.expire(71);
    assert_eq!((sessions.len(), sessions.shares.all()), (0, Held::default()));
}

/// An opening that is played again makes the session good for longer than it would be silent.
#[test]
fn a_session_that_is_opened_again_is_not_silent() {
    let mut sessions = Sessions::default();
    sessions.open(ID, OWNER, 1, 1);
    let again = SESSION_IDLE_MICROS - 1;
    let good_until = again + REQUEST_VALID_MICROS_MAX;
    assert_eq!(sessions.open(ID, OWNER, good_until, again), Reply::Opened { session: ID });
    open_all(&mut sessions, OWNER, 100, again);
    let refused = sessions.open(SessionId(8), OWNER, 0, SESSION_IDLE_MICROS + 1);
    assert!(matches!(refused, Reply::Failed(Failure::TooManySessions { .. })), "{refused:?}");
}

#[test]
fn a_client_whose_outcomes_fill_its_share_gets_nothing_new_until_it_acknowledges() {
    let mut sessions = Sessions::default();
    let fill = |sessions: &mut Sessions, id, owner| {
        sessions.open(id, owner, 0, 1);
        for number in 1..=SESSION_WINDOW {
            match sessions.lookup(id, asked(number, 1, 1), 1) {
                Lookup::Fresh => sessions.remember(id, number, 1, Reply::Put { version: 1 }, 0),
                other => return Some(other),
            }
        }
        None
    };
    let windows = OUTCOMES_BYTES_MAX / 16 / (SESSION_WINDOW * OUTCOME_BYTES);
    let ids = (100..100 + u128::from(windows)).map(SessionId);
    assert!(ids.clone().all(|id| fill(&mut sessions, id, OWNER).is_none()));
    let refused = fill(&mut sessions, ID, OTHER);
    assert_eq!(refused, None, "another client has room");
    let one_more = SessionId(99);
    let Some(Lookup::Refused(Failure::TooMuchRemembered { held, max })) =
        fill(&mut sessions, one_more, OWNER)
    else {
        panic!("it holds more than its share");
    };
    assert!(held == OUTCOMES_BYTES_MAX / 16 && max <= held, "{held} of {max}");
    // What is known is told, and what is acknowledged makes room.
    assert!(matches!(sessions.lookup(SessionId(100), asked(1, 1, 1), 1), Lookup::Known(_)));
    let next = SESSION_WINDOW + 1;
    assert_eq!(sessions.lookup(SessionId(100), asked(next, next, 1), 1), Lookup::Fresh);
    assert_eq!(sessions.shares.of(&OWNER).bytes, held - SESSION_WINDOW * OUTCOME_BYTES);
}

/// In a single batch a row cannot go and come: the sums of parts would be wrong.
#[test]
fn a_session_that_comes_back_under_its_name_is_stored_anew() {
    let (mut sessions, disk) = (opened(), MemoryDisk::default());
    let remember = |sessions: &mut Sessions, version| {
        sessions.lookup(ID, asked(1, 1, 1), 1);
        sessions.remember(ID, 1, 1, Reply::Put { version }, 0);
    };
    remember(&mut sessions, 5);
    reloaded(&mut sessions, &disk);
    sessions.expire(2 * SESSION_RETENTION_MICROS);
    let _ = sessions.open(ID, OWNER, 0, 1);
    remember(&mut sessions, 6);
    assert_eq!(reloaded(&mut sessions, &disk).by_id, sessions.by_id);
    sessions.expire(2 * SESSION_RETENTION_MICROS);
    let mut writes = Vec::new();
    sessions.take_writes(GroupId(1), &mut writes);
    assert!(writes.len() == 2 && writes.iter().all(|(_, record)| record.is_none()), "{writes:?}");
}

/// Brings what has changed to the tree and reads all of it back, as a restart does, or whoever is given the state.
fn reloaded(sessions: &mut Sessions, disk: &MemoryDisk) -> Sessions {
    let (mut storage, _) = disk.open();
    let mut out = Vec::new();
    sessions.take_writes(GroupId(1), &mut out);
    storage.submit(Commit { id: CommitId(1), state: vec![out], ..Commit::default() });
    disk.settle();
    Sessions::load(&storage, GroupId(1)).unwrap()
}

proptest! {
    /// Whatever happens, indices and shares are what the sessions say, here and where they were read back.
    #[test]
    fn what_is_derived_follows_from_the_sessions(
        steps in proptest::collection::vec((0u8..7, 0u8..8, 0u8..3, 0u64..4), 1..120)
    ) {
        let (mut sessions, disk) = (Sessions::default(), MemoryDisk::default());
        let mut time = 1;
        for (step, id, owner, more) in steps {
            time += [0, 1, SESSION_GRAIN_MICROS, SESSION_IDLE_MICROS][more as usize];
            sessions.expire(time);
            // Names follow from clients, as in Byzantine mode.
            let (id, owner) = (SessionId(u128::from(id) * 3 + u128::from(owner)), [owner; 32]);
            let good_until = time + more * (REQUEST_VALID_MICROS_MAX / 3);
            match step {
                0 | 1 => drop(sessions.open(id, owner, good_until, time)),
                2 => drop(sessions.close(id, &owner, time)),
                3 => {
                    let other = reloaded(&mut sessions, &disk);
                    prop_assert_eq!(&other.by_id, &sessions.by_id);
                    prop_assert_eq!((&other.index, &other.shares), (&sessions.index, &sessions.shares));
                }
                _ => {
                    let number = 1 + u64::from(step) * more;
                    if sessions.lookup(id, asked(number, more, 1), time) == Lookup::Fresh {
                        sessions.remember(id, number, 1, Reply::Put { version: 1 }, good_until);
                    }
                }
            }
            let (index, shares) = derived(&sessions);
            prop_assert_eq!((&sessions.index, &sessions.shares), (&index, &shares));
        }
        let other = reloaded(&mut sessions, &disk);
        prop_assert_eq!(&other.by_id, &sessions.by_id);
        prop_assert_eq!((other.index, other.shares), (sessions.index, sessions.shares));
    }
}
