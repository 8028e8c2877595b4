//! Crash mode: one node after another.

use super::*;
use crate::limits::SESSION_WINDOW;
use crate::ring::{Atlas, Position};
use std::collections::BTreeSet;

/// A client that knows the ring, and is connected to these nodes of three.
fn connected(nodes: &[u128]) -> Story {
    let mut story = Story::new(Story::setup(3));
    nodes.iter().for_each(|node| story.greet(*node));
    story
}

/// The same, with an open session.
fn in_session(nodes: &[u128]) -> Story {
    let mut story = connected(nodes);
    let call = story.ask(put());
    story.answer(reply(Reply::Opened { session: SESSION }));
    story.answer(reply(Reply::Put { version: 1 }));
    assert_eq!(story.written(call), &Outcome::Done(Reply::Put { version: 1 }));
    story
}

fn is_unknown(story: &Story, call: CallId) -> bool {
    matches!(story.written(call), Outcome::Unknown(_))
}

#[test]
fn a_write_opens_a_session_and_is_sent_once_in_it() {
    let mut story = connected(&[1]);
    let call = story.ask(put());
    assert!(matches!(
        story.last_sent(),
        (NodeId(1), Outgoing::Command { group: GROUP, operation: Operation::Open, .. })
    ));
    story.answer(reply(Reply::Opened { session: SESSION }));
    assert_eq!(story.last_write(), (RequestId { session: SESSION, number: 1 }, 1));
    story.answer(reply(Reply::Put { version: 7 }));
    assert_eq!(story.written(call), &Outcome::Done(Reply::Put { version: 7 }));
    let seen = story.ask(Ask::Seen { key: Bytes::from_static(b"k") });
    assert_eq!((story.done(seen), story.core.open_calls()), (&Done::Seen(5), 0));
}

#[test]
fn a_write_that_was_not_answered_is_sent_elsewhere_with_the_same_number() {
    let mut story = in_session(&[1, 2, 3]);
    let call = story.ask(put());
    let (first, number) = (story.last_sent().0, story.last_write().0);
    story.lose(first.0);
    assert_ne!(story.last_sent().0, first);
    assert_eq!((story.last_write().0, number.number), (number, 2));
    story.answer(reply(Reply::Put { version: 2 }));
    assert_eq!(story.written(call), &Outcome::Done(Reply::Put { version: 2 }));
}

/// Whatever is said after a write was sent and not answered, nobody knows what became of it.
#[test]
fn a_write_that_may_have_been_applied_is_never_refused() {
    let denied = Unreachable::Denied("denied".to_string());
    let says = [
        failed(Failure::SessionExpired),
        failed(Failure::WrongGroup),
        Answer::Refused { error: "no".to_string() },
        Answer::Unavailable { reason: "full".to_string() },
        value(None),
    ];
    for said in says {
        let mut story = in_session(&[1, 2, 3]);
        let call = story.ask(put());
        story.lose(story.last_sent().0.0);
        story.answer(said.clone());
        assert!(is_unknown(&story, call), "{said:?}: {:?}", story.written(call));
    }
    // The connection is lost, and nobody lets the client in again.
    let mut story = in_session(&[1]);
    let call = story.ask(put());
    story.lose(1);
    (1..=3).for_each(|node| story.unreachable(node, &denied));
    story.pass(millis(20_000));
    assert!(is_unknown(&story, call), "{:?}", story.written(call));
    // A node says that it may have been applied, and then the deadline passes.
    let mut story = in_session(&[1]);
    let call = story.ask(put());
    let reason = RetryReason::LeadershipLost;
    story.answer(Answer::Retry { reason, leader: None, maybe_applied: true });
    story.pass(millis(20_000));
    assert!(is_unknown(&story, call), "{:?}", story.written(call));
}

#[test]
fn a_write_that_was_never_sent_is_refused() {
    let mut story = in_session(&[1]);
    story.lose(1);
    let call = story.ask(put());
    story.pass(millis(20_000));
    let refused = story.written(call);
    assert!(
        matches!(refused, Outcome::Refused(Refusal::Unavailable(why)) if why.contains("cannot reach")),
        "{refused:?}"
    );
    let denied = Unreachable::Denied("denied".to_string());
    let mut story = in_session(&[1]);
    story.lose(1);
    let call = story.ask(put());
    (1..=3).for_each(|node| story.unreachable(node, &denied));
    story.pass(millis(50));
    (1..=3).for_each(|node| story.unreachable(node, &denied));
    assert!(matches!(story.written(call), Outcome::Refused(Refusal::Denied(_))), "{:?}", story.written(call));
}

#[test]
fn outcomes_of_the_state_machine_are_what_they_are_however_often_a_write_was_sent() {
    let mut story = in_session(&[1, 2, 3]);
    let call = story.ask(put());
    story.lose(story.last_sent().0.0);
    story.answer(failed(Failure::NotANumber));
    assert_eq!(story.written(call), &Outcome::Refused(Refusal::Failure(Failure::NotANumber)));
}

#[test]
fn a_write_whose_session_has_expired_is_sent_in_another_one_if_nothing_was_sent_before() {
    let mut story = in_session(&[1]);
    let call = story.ask(put());
    story.answer(failed(Failure::SessionExpired));
    assert!(matches!(story.last_sent().1, Outgoing::Command { operation: Operation::Open, .. }));
    story.answer(reply(Reply::Opened { session: SessionId(10) }));
    assert_eq!(story.last_write(), (RequestId { session: SessionId(10), number: 1 }, 1));
    story.answer(reply(Reply::Put { version: 3 }));
    assert_eq!(story.written(call), &Outcome::Done(Reply::Put { version: 3 }));
}

#[test]
fn an_answer_that_the_write_cannot_have_is_no_success() {
    for wrong in [reply(Reply::Deleted { existed: true }), value(None), Answer::Watching] {
        let mut story = in_session(&[1]);
        let call = story.ask(put());
        story.answer(wrong);
        assert!(is_unknown(&story, call));
    }
}

/// Whoever plays with sessions makes nobody busy.
#[test]
fn sessions_that_expire_again_and_again_are_renewed_with_rests_between() {
    let mut story = in_session(&[1]);
    story.ask(put());
    for _ in 0..50 {
        let count = story.sent.len();
        match story.last_sent().1 {
            Outgoing::Command { operation: Operation::Open, .. } => {
                story.answer(reply(Reply::Opened { session: SESSION }))
            }
            _ => story.answer(failed(Failure::SessionExpired)),
        }
        if story.sent.len() == count {
            story.pass(millis(40));
        }
    }
    assert!(story.now().at >= millis(20 * 40), "{:?}", story.now().at);
}

/// Thousands wait for a session, and their time is over before anybody looks.
#[test]
fn those_that_have_waited_too_long_are_told_one_after_the_other() {
    let mut story = connected(&[1]);
    let calls: Vec<CallId> = (0..20_000).map(|_| story.ask(put())).collect();
    story.leap(millis(10_100));
    story.answer(reply(Reply::Opened { session: SESSION }));
    assert!(calls.iter().all(|call| matches!(story.written(*call), Outcome::Refused(_))));
}

#[test]
fn a_ring_that_is_none_is_not_believed() {
    let mut story = Story::new(Story::setup(3));
    let call = story.ask(get());
    let (cluster, node) = ("c".to_string(), NodeId(1));
    let hello = Hello { cluster, node, places: Vec::new(), limits: Limits::default(), is_byzantine: false };
    story.connect(1, Some(hello));
    assert!(story.core.atlas().is_none() && !story.done.contains_key(&call));
    story.greet(2);
    story.answer(value(None));
    assert!(matches!(story.read(call), Outcome::Done(_)));
}

/// What is told late of a connection says nothing of the next one.
#[test]
fn the_end_of_an_old_connection_ends_no_other() {
    let mut story = connected(&[1]);
    let old = story.core.links.link(NodeId(1)).unwrap();
    story.lose(1);
    story.greet(1);
    let call = story.ask(get());
    story.drive(|core, now| core.lost(now, NodeId(1), old));
    story.answer(value(None));
    assert!(matches!(story.read(call), Outcome::Done(_)));
}

/// A node that knows no leader of one group may lead another.
#[test]
fn what_a_node_does_not_know_of_one_group_says_nothing_of_others() {
    let mut story = connected(&[1, 2, 3]);
    story.ask(get());
    story.answer(Answer::Value {
        found: None,
        served: Served { group: GROUP, slot: 5, consistency: Consistency::Linearizable },
        leader: Some(NodeId(2)),
    });
    story.core.clueless.insert((GroupId(2), NodeId(2)), millis(1_000_000));
    story.ask(get());
    assert_eq!(story.last_sent().0, NodeId(2));
    // It is avoided for other reasons, and named by whoever is asked instead.
    story.core.links.avoid(NodeId(2), story.now().at);
    story.answer(retry(RetryReason::NotLeader, Some(1)));
    story.answer(retry(RetryReason::NotLeader, Some(2)));
    assert_eq!(story.last_sent().0, NodeId(2), "there is a connection, and it is said to lead");
}

#[test]
fn a_node_is_not_blamed_for_the_end_of_somebodys_patience() {
    let options = ClientOptions { deadline: millis(50), ..ClientOptions::default() };
    let mut story = Story::new(Setup { options, ..Story::setup(3) });
    story.greet(1);
    let call = story.ask(get());
    story.pass(millis(60));
    let Outcome::Refused(Refusal::Unavailable(why)) = story.read(call) else { panic!() };
    assert!(why.contains("did not answer within 50 ms"), "{why}");
    assert!(!story.core.links.failed_lately(NodeId(1), story.now().at));
}

#[test]
fn a_read_that_was_not_answered_surely_did_nothing() {
    let mut story = connected(&[1]);
    let call = story.ask(get());
    story.lose(1);
    story.pass(millis(20_000));
    assert!(matches!(story.read(call), Outcome::Refused(Refusal::Unavailable(_))));
}

#[test]
fn whoever_is_named_is_asked_at_once_and_by_others_first() {
    let mut story = connected(&[1, 2, 3]);
    let first = story.ask(get());
    story.answer(retry(RetryReason::NotLeader, Some(3)));
    assert_eq!(story.last_sent().0, NodeId(3));
    story.answer(value(None));
    assert!(matches!(story.read(first), Outcome::Done(_)));
    story.ask(get());
    assert_eq!(story.last_sent().0, NodeId(3), "it is known now");
    // Whoever answers for another names it.
    let served = Served { group: GROUP, slot: 5, consistency: Consistency::Linearizable };
    story.answer(Answer::Value { found: None, served, leader: Some(NodeId(2)) });
    story.ask(get());
    assert_eq!(story.last_sent().0, NodeId(2));
}

#[test]
fn nodes_that_name_one_another_are_not_asked_without_a_rest() {
    let mut story = connected(&[1, 2, 3]);
    story.ask(get());
    for _ in 0..100 {
        let (node, _) = story.last_sent();
        let count = story.sent.len();
        story.answer(retry(RetryReason::NotLeader, Some(if node == NodeId(1) { 2 } else { 1 })));
        if story.sent.len() == count {
            story.pass(millis(40));
        }
    }
    assert!(story.now().at >= millis(90 * 40), "{:?} for 100 attempts", story.now().at);
}

#[test]
fn a_node_that_lets_everybody_in_and_hangs_up_is_not_asked_without_a_rest() {
    let mut story = in_session(&[1, 2, 3]);
    let call = story.ask(put());
    for _ in 0..100 {
        let count = story.sent.len();
        (1..=3).for_each(|node| story.lose(node));
        (1..=3).for_each(|node| story.greet(node));
        if story.sent.len() == count {
            story.pass(millis(40));
        }
    }
    assert!(story.now().at >= millis(90 * 40), "{:?} for 100 attempts", story.now().at);
    assert!(story.sent.len() < 200 && !story.done.contains_key(&call));
}

fn is_cancel(outgoing: &Outgoing) -> bool {
    matches!(outgoing, Outgoing::Command { operation: Operation::Cancel { .. }, .. })
}

/// A write that was sent to a node which is gone; it is late now.
fn late() -> (Story, CallId, RequestId) {
    let mut story = in_session(&[1, 2, 3]);
    let call = story.ask(put());
    let (request, _) = story.last_write();
    story.lose(1);
    story.greet(1);
    let patience = story.core.setup.options.deadline;
    story.pass(patience - millis(1_001));
    assert!(!story.sent.iter().any(|(.., outgoing)| is_cancel(outgoing)), "there is time");
    story.pass(millis(50));
    (story, call, request)
}

#[test]
fn a_write_that_is_late_is_cancelled_under_its_number() {
    let (mut story, call, number) = late();
    let Outgoing::Command { request, operation, .. } = story.last_sent().1 else { panic!() };
    assert_eq!((*request, operation), (number, &Operation::Cancel { key: Bytes::from_static(b"k") }));
    story.answer(failed(Failure::Cancelled));
    assert!(matches!(story.written(call), Outcome::Refused(Refusal::Cancelled(_))));
}

#[test]
fn a_write_that_was_carried_out_before_it_was_cancelled_is_done() {
    let (mut story, call, _) = late();
    story.answer(reply(Reply::Put { version: 7 }));
    assert_eq!(story.written(call), &Outcome::Done(Reply::Put { version: 7 }));
}

#[test]
fn a_write_whose_cancelling_nobody_answers_is_unknown() {
    let (mut story, call, _) = late();
    story.answer(retry(RetryReason::NoLeader, None));
    story.pass(millis(940));
    assert!(is_cancel(story.last_sent().1), "it is asked for until the end");
    story.pass(millis(20));
    assert!(matches!(story.written(call), Outcome::Unknown(_)));
}

/// The node is slow, not gone: it is cancelled there, and what was asked before may still be answered.
#[test]
fn an_answer_that_comes_behind_the_cancelling_is_as_good() {
    let patience = ClientOptions { deadline: millis(1_200), attempt: millis(1_000) };
    let cancelled = || {
        let mut story = Story::new(Setup { options: patience, ..Story::setup(3) });
        story.greet(1);
        let call = story.ask(put());
        story.answer(reply(Reply::Opened { session: SESSION }));
        let sent = story.sent.len();
        story.pass(millis(899) - story.now().at);
        assert_eq!(story.sent.len(), sent, "there is time");
        story.pass(millis(20));
        assert_eq!(story.sent.len(), sent + 1);
        let (node, outgoing) = story.last_sent();
        assert!(node == NodeId(1) && is_cancel(outgoing), "not elsewhere: {outgoing:?}");
        (story, call, sent - 1)
    };
    let (mut story, call, write) = cancelled();
    story.answer_to(write, retry(RetryReason::NotLeader, Some(2)));
    assert!(!story.done.contains_key(&call), "that it was not done then says nothing");
    story.answer_to(write, reply(Reply::Put { version: 7 }));
    assert!(!story.done.contains_key(&call), "one answer to each");
    let (mut story, call, write) = cancelled();
    story.answer_to(write, reply(Reply::Put { version: 7 }));
    assert_eq!(story.written(call), &Outcome::Done(Reply::Put { version: 7 }));
    story.answer(reply(Reply::Put { version: 7 }));
    let (mut story, call, _) = cancelled();
    story.lose(1);
    story.pass(millis(600));
    assert!(matches!(story.written(call), Outcome::Unknown(_)), "it came to one end");
}

#[test]
fn a_put_whose_condition_does_not_hold_surely_did_nothing() {
    let mut story = in_session(&[1, 2, 3]);
    let Write::Put { key, value, kind, expiry, .. } = Write::put("k", "v") else { panic!() };
    let call = story.ask(Ask::Write(Write::Put { key, value, kind, expiry, when: When::Absent }));
    story.answer(reply(Reply::Unmet { version: 3 }));
    assert_eq!(story.written(call), &Outcome::Done(Reply::Unmet { version: 3 }));
}

/// Nothing is on its way: it can still be carried out.
#[test]
fn a_write_that_was_never_sent_is_not_cancelled() {
    let mut story = in_session(&[1, 2, 3]);
    let call = story.ask(put());
    while story.now().at < millis(9_900) {
        assert!(!is_cancel(story.last_sent().1));
        story.answer(retry(RetryReason::NoLeader, None));
        story.pass(millis(40));
    }
    story.answer(reply(Reply::Put { version: 7 }));
    assert!(matches!(story.written(call), Outcome::Done(_)));
}

#[test]
fn patience_without_end_is_no_mistake() {
    let forever = ClientOptions { deadline: Duration::MAX, attempt: Duration::MAX };
    let mut story = Story::new(Setup { options: forever, ..Story::setup(3) });
    story.pass(millis(5));
    story.greet(1);
    let call = story.ask(get());
    story.answer(value(None));
    assert!(matches!(story.read(call), Outcome::Done(_)));
    let end = story.ask(Ask::Close);
    assert_eq!(story.done(end), &Done::Closed(Ok(())));
}

#[test]
fn where_nobody_knows_a_leader_all_are_asked_with_rests_between() {
    let mut story = connected(&[1, 2, 3]);
    story.ask(get());
    let mut asked = BTreeSet::new();
    for _ in 0..6 {
        asked.insert(story.last_sent().0);
        let count = story.sent.len();
        story.answer(retry(RetryReason::NoLeader, None));
        assert_eq!(story.sent.len(), count, "not at once");
        story.pass(millis(40));
    }
    assert_eq!(asked.len(), 3);
}

/// Only one of three can be reached, and it names a leader that cannot.
#[test]
fn a_leader_that_cannot_be_reached_is_waited_for_once() {
    let silent = Unreachable::Silent("silence".to_string());
    let mut story = connected(&[1]);
    let first = story.ask(get());
    story.answer(retry(RetryReason::NotLeader, Some(2)));
    assert_eq!(story.dialled, [NodeId(2)]);
    story.unreachable(2, &silent);
    story.pass(millis(50));
    story.unreachable(3, &silent);
    story.pass(millis(50));
    // By now the one that answers passes requests on.
    assert_eq!(story.last_sent().0, NodeId(1));
    story.answer(value(None));
    assert!(matches!(story.read(first), Outcome::Done(_)));
    for _ in 0..3 {
        story.pass(millis(5_000));
        let next = story.ask(get());
        assert_eq!(story.last_sent().0, NodeId(1), "it does not wait for n2 again");
        story.answer(retry(RetryReason::NotLeader, Some(2)));
        story.pass(millis(10));
        assert_eq!(story.last_sent().0, NodeId(1));
        story.answer(value(None));
        assert!(matches!(story.read(next), Outcome::Done(_)));
    }
    assert_eq!(story.dialled.last(), Some(&NodeId(2)), "it is dialled beside that");
    story.greet(2);
    story.ask(get());
    story.answer(retry(RetryReason::NotLeader, Some(2)));
    assert_eq!(story.last_sent().0, NodeId(2), "now it is there");
}

#[test]
fn a_silent_node_is_left_within_a_moment_by_all_that_wait_for_it() {
    let mut story = connected(&[1, 2, 3]);
    story.ask(get());
    let silent = story.last_sent().0;
    story.answer(value(None));
    story.silent.push(silent);
    let calls: Vec<CallId> = (0..5)
        .map(|_| {
            story.pass(millis(20));
            story.ask(get())
        })
        .collect();
    let before = story.sent.len();
    story.pass(millis(300));
    assert_eq!(story.closed, [silent]);
    assert!(story.sent[before..].iter().all(|(node, ..)| *node != silent));
    assert!(story.sent.len() - before >= calls.len(), "all of them are asked elsewhere");
}

#[test]
fn a_node_that_takes_long_is_left_after_the_time_of_an_attempt() {
    let mut story = connected(&[1, 2, 3]);
    let call = story.ask(get());
    let slow = story.last_sent().0;
    story.pass(millis(990));
    assert_eq!(story.sent.len(), 1, "it lives");
    story.pass(millis(20));
    assert_ne!(story.last_sent().0, slow);
    story.answer(value(None));
    assert!(matches!(story.read(call), Outcome::Done(_)));
    // Its answer comes after all.
    story.answer_to(0, value(None));
}

#[test]
fn what_a_connection_does_not_take_was_not_sent() {
    let mut story = in_session(&[1]);
    let call = story.ask(put());
    let (node, id, _) = *story.sent.last().unwrap();
    story.drive(|core, now| core.not_sent(now, node, id));
    story.lose(1);
    story.pass(millis(20_000));
    assert!(matches!(story.written(call), Outcome::Refused(Refusal::Unavailable(_))));
}

#[test]
fn one_session_is_opened_for_all_and_survives_the_patience_of_whoever_came_first() {
    let mut story = connected(&[1, 2, 3]);
    let first = story.ask(put());
    story.pass(millis(9_500));
    let second = story.ask(put());
    let openings = |story: &Story| -> BTreeSet<SessionId> {
        let nonces = story.sent.iter().filter_map(|(_, _, outgoing)| match outgoing {
            Outgoing::Command { request, operation: Operation::Open, .. } => Some(request.session),
            _ => None,
        });
        nonces.collect()
    };
    story.pass(millis(600));
    assert!(matches!(story.written(first), Outcome::Refused(Refusal::Unavailable(_))));
    assert!(!story.done.contains_key(&second), "it has its own patience");
    assert_eq!(openings(&story).len(), 1, "one name, however often it is asked for");
    story.answer(reply(Reply::Opened { session: SESSION }));
    story.answer(reply(Reply::Put { version: 1 }));
    assert!(matches!(story.written(second), Outcome::Done(_)));
}

#[test]
fn why_no_session_is_opened_is_told_to_all_that_wait() {
    let mut story = connected(&[1]);
    let calls = [story.ask(put()), story.ask(put())];
    let failure = Failure::TooManySessions { held: 4, max: 4 };
    story.answer(failed(failure.clone()));
    for call in calls {
        assert_eq!(story.written(call), &Outcome::Refused(Refusal::Failure(failure.clone())));
    }
}

#[test]
fn no_number_lies_a_window_ahead_of_one_that_is_open() {
    let mut story = in_session(&[1]);
    let calls: Vec<CallId> = (0..=SESSION_WINDOW).map(|_| story.ask(put())).collect();
    let count = story.sent.len();
    assert_eq!(story.last_write().0.number, SESSION_WINDOW + 1);
    // All but the oldest are answered: the next one still waits.
    for sent in count - calls.len() + 2..count {
        story.answer_to(sent, reply(Reply::Put { version: 2 }));
    }
    assert_eq!(story.sent.len(), count);
    story.drive(|core, now| core.forget(now, calls[0]));
    assert_eq!(
        story.last_write(),
        (RequestId { session: SESSION, number: SESSION_WINDOW + 2 }, SESSION_WINDOW + 2)
    );
}

#[test]
fn a_caller_that_waits_no_more_leaves_nothing_behind() {
    for stage in 0..4 {
        let mut story = if stage == 0 { Story::new(Story::setup(3)) } else { connected(&[1]) };
        let call = story.ask(if stage == 1 { get() } else { put() });
        if stage == 3 {
            story.answer(reply(Reply::Opened { session: SESSION }));
        }
        story.drive(|core, now| core.forget(now, call));
        story.pass(millis(30_000));
        assert!(story.done.is_empty(), "{:?}", story.done);
        assert_eq!((story.core.open_calls(), story.core.next_due()), (0, None), "stage {stage}");
    }
}

#[test]
fn nodes_are_dialled_one_after_the_other_until_one_greets() {
    let mut story = Story::new(Story::setup(3));
    let call = story.ask(get());
    assert_eq!(story.dialled.len(), 1);
    story.pass(millis(99));
    assert_eq!(story.dialled.len(), 1);
    story.pass(millis(150));
    assert_eq!(story.dialled.iter().collect::<BTreeSet<_>>().len(), 3);
    story.greet(2);
    assert_eq!(story.last_sent().0, NodeId(2));
    story.answer(value(None));
    assert!(matches!(story.read(call), Outcome::Done(_)));
}

/// One node is not what the cluster file names: the others are asked before the client is told.
#[test]
fn one_that_denies_does_not_speak_for_all() {
    let denied = Unreachable::Denied("denied".to_string());
    let mut story = Story::new(Story::setup(3));
    let call = story.ask(get());
    story.unreachable(story.dialled[0].0, &denied);
    story.pass(millis(1));
    story.unreachable(story.dialled[1].0, &denied);
    story.pass(millis(1));
    assert!(!story.done.contains_key(&call));
    story.unreachable(story.dialled[2].0, &denied);
    assert!(matches!(story.read(call), Outcome::Refused(Refusal::Denied(_))));
}

#[test]
fn a_proof_is_refused_in_crash_mode_and_costs_no_connection() {
    let mut story = Story::new(Story::setup(3));
    let call = story.ask(Ask::Prove { key: Bytes::from_static(b"k") });
    let Done::Prove(outcome) = story.done(call) else { panic!("{:?}", story.done(call)) };
    let Outcome::Refused(Refusal::Invalid(why)) = outcome.as_ref() else { panic!("{outcome:?}") };
    assert!(why.contains("crash mode") && story.dialled.is_empty());
}

#[test]
fn keys_and_values_above_the_limits_are_refused_before_anything_is_sent() {
    let mut story = connected(&[1]);
    let large = Bytes::from(vec![0; 4 << 20]);
    let call = story.ask(Ask::Write(Write::put("k", large)));
    assert!(matches!(story.written(call), Outcome::Refused(Refusal::Invalid(_))));
    let consistency = Consistency::Linearizable;
    let call = story.ask(Ask::Read { key: Bytes::new(), consistency });
    assert!(matches!(story.read(call), Outcome::Refused(Refusal::Invalid(_))));
    assert!(story.sent.is_empty());
}

#[test]
fn a_status_is_asked_of_one_node_alone() {
    let mut story = connected(&[1]);
    let known = story.ask(Ask::Status(NodeId(1)));
    let status = NodeStatus { node: NodeId(1), ..NodeStatus::default() };
    story.answer(Answer::Status(Box::new(status.clone())));
    assert_eq!(story.done(known), &Done::Status(Ok(Box::new(status))));
    let (silent, stranger) = (story.ask(Ask::Status(NodeId(2))), story.ask(Ask::Status(NodeId(9))));
    story.pass(millis(1_000));
    for call in [silent, stranger] {
        assert!(
            matches!(story.done(call), Done::Status(Err(Refusal::Unavailable(_)))),
            "{:?}",
            story.done(call)
        );
    }
}

#[test]
fn an_end_waits_for_what_is_open_and_closes_all_sessions() {
    let mut story = in_session(&[1]);
    let open = story.ask(put());
    let (end, again) = (story.ask(Ask::Close), story.ask(Ask::Close));
    let late = story.ask(put());
    assert_eq!(
        story.written(late),
        &Outcome::Refused(Refusal::Invalid("this client was closed".to_string()))
    );
    assert!(!story.done.contains_key(&end));
    story.answer(reply(Reply::Put { version: 2 }));
    assert!(matches!(story.written(open), Outcome::Done(_)));
    assert!(matches!(
        story.last_sent().1,
        Outgoing::Command {
            group: GROUP,
            request: RequestId { session: SESSION, number: 3 },
            operation: Operation::Close,
            ..
        }
    ));
    story.answer(reply(Reply::Closed));
    assert_eq!((story.done(end), story.done(again)), (&Done::Closed(Ok(())), &Done::Closed(Ok(()))));
    story.pass(millis(1_000));
    assert_eq!((story.core.open_calls(), story.core.next_due()), (0, None));
}

#[test]
fn an_end_comes_whatever_does_not_and_can_be_asked_for_again() {
    let mut story = in_session(&[1]);
    story.lose(1);
    let end = story.ask(Ask::Close);
    story.pass(millis(20_000));
    let Done::Closed(Err(not_closed)) = story.done(end) else { panic!("{:?}", story.done(end)) };
    assert_eq!(not_closed.groups, [GROUP]);
    story.greet(1);
    let again = story.ask(Ask::Close);
    assert!(matches!(
        story.last_sent().1,
        Outgoing::Command { request: RequestId { number: 3, .. }, operation: Operation::Close, .. }
    ));
    story.answer(failed(Failure::SessionExpired));
    assert_eq!(story.done(again), &Done::Closed(Ok(())), "one that is unknown there needs no closing");
}

#[test]
fn an_end_while_a_session_is_opened_closes_that_too() {
    let mut story = connected(&[1]);
    let write = story.ask(put());
    let end = story.ask(Ask::Close);
    assert!(matches!(story.written(write), Outcome::Refused(Refusal::Invalid(_))));
    story.answer(reply(Reply::Opened { session: SESSION }));
    assert!(matches!(story.last_sent().1, Outgoing::Command { operation: Operation::Close, .. }));
    story.answer(reply(Reply::Closed));
    assert_eq!(story.done(end), &Done::Closed(Ok(())));
}

#[test]
fn a_client_that_asked_nothing_ends_at_once() {
    let mut story = Story::new(Story::setup(3));
    let end = story.ask(Ask::Close);
    assert_eq!(story.done(end), &Done::Closed(Ok(())));
    assert!(story.dialled.is_empty());
}

/// The two groups of a ring that was cut anew: each holds what the other one held before.
fn swapped(generation: u64) -> Vec<Place> {
    let mut places: Vec<Place> = found_without_keys(2, 3, 3).iter().map(Place::from).collect();
    if generation > 0 {
        let ranges = [places[1].range, places[0].range];
        for (place, range) in places.iter_mut().zip(ranges) {
            (place.range, place.generation) = (range, generation);
        }
    }
    places
}

/// A client that a node has told who owned what before.
fn behind_the_times() -> (Story, Place, Place) {
    let mut story = Story::new(Story::setup(3));
    let (cluster, node, limits) = ("c".to_string(), NodeId(1), Limits::default());
    story.connect(1, Some(Hello { cluster, node, places: swapped(0), limits, is_byzantine: false }));
    story.connect(2, None);
    story.connect(3, None);
    let of = |places: Vec<Place>| Atlas::of(places).unwrap().owner(Position::of_key(b"k")).clone();
    (story, of(swapped(0)), of(swapped(1)))
}

fn asked_group(story: &Story) -> GroupId {
    match story.last_sent().1 {
        Outgoing::Command { group, .. } | Outgoing::Request(Request::Get { group, .. }) => *group,
        other => panic!("{other:?} is for no group"),
    }
}

#[test]
fn whoever_is_told_that_a_key_has_moved_asks_there() {
    let (mut story, old, new) = behind_the_times();
    let moved = Answer::Moved { places: vec![new.clone()] };
    let read = story.ask(get());
    assert_eq!(asked_group(&story), old.group());
    story.answer(moved.clone());
    assert_eq!(asked_group(&story), new.group());
    let served = Served { group: new.group(), slot: 3, consistency: Consistency::Linearizable };
    story.answer(Answer::Value { found: None, served, leader: None });
    assert!(matches!(story.read(read), Outcome::Done(_)));
    // From then on it is asked at once.
    story.ask(get());
    assert_eq!(asked_group(&story), new.group());
}

#[test]
fn a_write_that_has_moved_is_sent_in_a_session_of_its_new_group() {
    let (mut story, old, new) = behind_the_times();
    let write = story.ask(put());
    assert_eq!(asked_group(&story), old.group());
    story.answer(reply(Reply::Opened { session: SESSION }));
    assert_eq!(story.last_write().0.session, SESSION);
    story.answer(Answer::Moved { places: vec![new.clone()] });
    assert!(matches!(story.last_sent().1, Outgoing::Command { operation: Operation::Open, .. }));
    assert_eq!(asked_group(&story), new.group());
    let other = SessionId(SESSION.0 + 1);
    story.answer(reply(Reply::Opened { session: other }));
    assert_eq!(story.last_write().0, RequestId { session: other, number: 1 });
    story.answer(reply(Reply::Put { version: 2 }));
    assert_eq!(story.written(write), &Outcome::Done(Reply::Put { version: 2 }));
}

/// Seed 93000015 of the simulator: whoever waited for a number of a session in the old group was handed numbers of it without end.
#[test]
fn whoever_waits_for_a_number_learns_of_a_move_as_well() {
    let (mut story, old, new) = behind_the_times();
    let writes = [story.ask(put()), story.ask(put())];
    let opening = story.sent.len() - 1;
    assert_eq!(asked_group(&story), old.group());
    story.ask(get());
    story.answer(Answer::Moved { places: vec![new.clone()] });
    story.answer_to(opening, reply(Reply::Opened { session: SESSION }));
    assert!(matches!(story.last_sent().1, Outgoing::Command { operation: Operation::Open, .. }));
    assert_eq!(asked_group(&story), new.group());
    story.answer(reply(Reply::Opened { session: SessionId(9) }));
    let is_write = |sent: &usize| {
        matches!(story.sent[*sent].2, Outgoing::Command { operation: Operation::Write(_), .. })
    };
    for sent in (0..story.sent.len()).filter(is_write).collect::<Vec<_>>() {
        story.answer_to(sent, reply(Reply::Put { version: 2 }));
    }
    assert!(writes.iter().all(|write| *story.written(*write) == Outcome::Done(Reply::Put { version: 2 })));
    assert_eq!(story.core.open_calls(), 1, "the read alone");
}

/// The first attempt may have been carried out before the key moved: another number could carry it out again.
#[test]
fn a_write_that_may_have_been_applied_keeps_its_number_when_it_has_moved() {
    let (mut story, _, new) = behind_the_times();
    let write = story.ask(put());
    story.answer(reply(Reply::Opened { session: SESSION }));
    let number = story.last_write();
    story.lose(story.last_sent().0.0);
    assert_eq!(story.last_write(), number, "elsewhere");
    story.answer(Answer::Moved { places: vec![new.clone()] });
    assert_eq!((story.last_write(), asked_group(&story)), (number, new.group()));
    story.answer(failed(Failure::SessionExpired));
    assert!(is_unknown(&story, write));
}

/// A node that knows less than the client must not send it back and forth.
#[test]
fn what_is_of_the_past_is_not_believed() {
    let (mut story, old, new) = behind_the_times();
    let read = story.ask(get());
    story.answer(Answer::Moved { places: vec![new.clone()] });
    for _ in 0..3 {
        story.answer(Answer::Moved { places: vec![old.clone()] });
        assert!(story.core.next_due().is_some(), "it rests");
        story.pass(Duration::from_millis(200));
        assert_eq!(asked_group(&story), new.group());
    }
    let mut next = new.clone();
    for generation in 2..40 {
        next = Place { generation, ..if next.group() == old.group() { new.clone() } else { old.clone() } };
        next.range = new.range;
        if story.done.contains_key(&read) {
            break;
        }
        story.answer(Answer::Moved { places: vec![next.clone()] });
    }
    let said = format!("{:?}", story.read(read));
    assert!(said.contains("sent on 16 times"), "{said}");
}
