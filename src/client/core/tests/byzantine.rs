//! Byzantine mode: what enough members agree on.

use super::*;

/// A client of one group of four, connected to these nodes.
fn connected(nodes: &[u128]) -> Story {
    let signing = Signing { client: [3; 32], cluster: Digest([1; 32]) };
    let founding = Some(found_without_keys(1, 4, 4));
    let mut story = Story::new(Setup { founding, signing: Some(signing), ..Story::setup(4) });
    for node in nodes {
        story.connect(*node, None);
    }
    story
}

/// What the client gives to be signed.
fn bundles(story: &mut Story) -> Vec<ToSign> {
    assert!(story.core.has_bundles());
    story.drive(Core::take_bundles)
}

fn names(bundle: &ToSign) -> Vec<RequestId> {
    let name = |request: &SignedRequest| RequestId {
        session: SessionId(request.name.session),
        number: request.name.number,
    };
    bundle.requests.iter().map(name).collect()
}

fn nodes(bundle: &ToSign) -> Vec<NodeId> {
    bundle.to.iter().map(|(node, ..)| *node).collect()
}

/// These nodes tell what a request came to in this slot.
fn tell(story: &mut Story, nodes: &[u128], slot: u64, request: RequestId, reply: &Reply) {
    for node in nodes {
        let answer = Answer::Outcomes { group: GROUP, slot, replies: vec![(request, reply.clone(), None)] };
        story.drive(|core, now| core.answered(now, NodeId(*node), AnswerFrame { id: 0, answer }));
    }
}

/// Opens a session for the write that was just asked, and gives its bundle.
fn open(story: &mut Story) -> Vec<ToSign> {
    let opening = bundles(story);
    let request = names(&opening[0])[0];
    assert_eq!(request.number, 0);
    tell(story, &[1, 2], 5, request, &Reply::Opened { session: SESSION });
    bundles(story)
}

#[test]
fn every_new_connection_is_asked_to_tell() {
    let story = connected(&[1, 2]);
    let watch = Outgoing::Request(Request::Watch { client: [3; 32] });
    assert!(story.sent.iter().all(|(_, _, outgoing)| *outgoing == watch) && story.sent.len() == 2);
}

#[test]
fn an_answer_is_what_enough_members_tell() {
    let mut story = connected(&[1, 2, 3, 4]);
    let call = story.ask(put());
    let written = open(&mut story);
    let request = names(&written[0])[0];
    assert_eq!(request, RequestId { session: SESSION, number: 1 });
    tell(&mut story, &[1, 1], 6, request, &Reply::Put { version: 1 });
    tell(&mut story, &[3], 6, request, &Reply::Put { version: 9 });
    assert!(!story.done.contains_key(&call), "no two say the same");
    // As the answer to a request it may be another node's words.
    let answer =
        Answer::Outcomes { group: GROUP, slot: 6, replies: vec![(request, Reply::Put { version: 1 }, None)] };
    story.drive(|core, now| core.answered(now, NodeId(2), AnswerFrame { id: 7, answer }));
    assert!(!story.done.contains_key(&call));
    tell(&mut story, &[4], 6, request, &Reply::Put { version: 1 });
    assert_eq!(story.written(call), &Outcome::Done(Reply::Put { version: 1 }));
    assert_eq!((story.core.open_calls(), story.core.next_due()), (0, None));
}

#[test]
fn requests_that_wait_together_are_signed_together() {
    let mut story = connected(&[1, 2, 3, 4]);
    (0..10).for_each(|_| _ = story.ask(get()));
    let bundles = bundles(&mut story);
    assert_eq!((bundles.len(), bundles[0].requests.len()), (1, 10));
    assert_eq!(nodes(&bundles[0]).len(), 1);
    assert!(!story.core.has_bundles());
}

#[test]
fn the_primary_that_most_members_name_is_brought_requests_first() {
    let mut story = connected(&[1, 2, 3, 4]);
    story.ask(get());
    let brought = bundles(&mut story);
    let (node, _, id) = brought[0].to[0];
    let kept = Answer::Kept { group: GROUP, leader: Some(NodeId(3)) };
    story.drive(|core, now| core.answered(now, node, AnswerFrame { id, answer: kept }));
    story.ask(get());
    assert_eq!(nodes(&bundles(&mut story)[0]), [NodeId(3)]);
}

/// Requests that are not answered are shown to all, those that are due at about the same time in one bundle.
#[test]
fn what_is_not_answered_is_shown_to_all_members_together() {
    let mut story = connected(&[1, 2, 3]);
    for _ in 0..5 {
        story.ask(get());
        bundles(&mut story);
        story.pass(millis(2));
    }
    story.pass(millis(400));
    let shown = bundles(&mut story);
    assert_eq!((shown.len(), shown[0].requests.len()), (1, 5));
    assert_eq!(nodes(&shown[0]), [NodeId(1), NodeId(2), NodeId(3)]);
    assert_eq!(story.dialled.last(), Some(&NodeId(4)), "the fourth is dialled");
    story.pass(millis(400));
    assert_eq!(bundles(&mut story)[0].requests.len(), 5, "again and again");
}

#[test]
fn what_was_in_no_bundle_yet_is_refused_and_never_sent() {
    let mut story = connected(&[]);
    let (read, write) = (story.ask(get()), story.ask(put()));
    assert!(bundles(&mut story).is_empty(), "there is no connection");
    story.pass(millis(20_000));
    assert!(matches!(story.read(read), Outcome::Refused(Refusal::Unavailable(_))));
    assert!(matches!(story.written(write), Outcome::Refused(Refusal::Unavailable(_))));
    for node in 1..=4 {
        story.connect(node, None);
    }
    assert!(bundles(&mut story).is_empty(), "nobody waits for it any more");
}

#[test]
fn a_write_in_a_bundle_is_unknown_when_too_few_agree() {
    let mut story = connected(&[1, 2, 3, 4]);
    let call = story.ask(put());
    let written = open(&mut story);
    let (node, _, id) = written[0].to[0];
    let busy = retry(RetryReason::Busy, None);
    story.drive(|core, now| core.answered(now, node, AnswerFrame { id, answer: busy }));
    story.pass(millis(20_000));
    let Outcome::Unknown(why) = story.written(call) else { panic!("{:?}", story.written(call)) };
    assert!(why.contains("too few replicas of g1") && why.contains("too much waits"), "{why}");
}

#[test]
fn enough_connections_to_be_heard_are_waited_for() {
    let mut story = connected(&[]);
    story.ask(get());
    assert!(bundles(&mut story).is_empty());
    story.connect(1, None);
    assert!(bundles(&mut story).is_empty(), "this one may lie");
    story.connect(2, None);
    assert_eq!(bundles(&mut story).len(), 1);
}

/// Whoever waits for a session longer than whoever asked first is not let down by what was signed for that one.
#[test]
fn an_opening_is_good_for_as_long_as_somebody_waits() {
    let mut story = connected(&[1, 2, 3, 4]);
    let first = story.ask(put());
    let good_until = |bundle: &ToSign| bundle.requests[0].not_after;
    let before = good_until(&bundles(&mut story)[0]);
    story.pass(millis(9_000));
    let second = story.ask(put());
    story.pass(millis(900));
    let shown = bundles(&mut story);
    assert!(good_until(&shown[0]) > before);
    story.pass(millis(200));
    assert!(story.done.contains_key(&first) && !story.done.contains_key(&second));
    tell(&mut story, &[2, 3], 5, names(&shown[0])[0], &Reply::Opened { session: SESSION });
    assert_eq!(names(&bundles(&mut story)[0]), [RequestId { session: SESSION, number: 1 }]);
}

/// A copy that was signed for whoever came first is ordered when that one has given up.
#[test]
fn an_older_copy_of_an_opening_that_is_void_ends_nobody_else() {
    let mut story = connected(&[1, 2, 3, 4]);
    story.ask(put());
    let first = bundles(&mut story);
    let (name, not_after) = (names(&first[0])[0], first[0].requests[0].not_after.0);
    story.pass(millis(9_000));
    let second = story.ask(put());
    story.pass(millis(1_100));
    bundles(&mut story);
    let late = Failure::TooLate { not_after, time: not_after + 1 };
    tell(&mut story, &[1, 2], 5, name, &Reply::Failed(late));
    assert!(!story.done.contains_key(&second));
    let again = names(&bundles(&mut story)[0])[0];
    assert!(again != name && again.number == 0);
    tell(&mut story, &[1, 2], 6, again, &Reply::Opened { session: SESSION });
    assert_eq!(names(&bundles(&mut story)[0]), [RequestId { session: SESSION, number: 1 }]);
}

/// A node that had too much to do when a connection was opened would tell nothing for as long as it lasts.
#[test]
fn a_node_that_is_too_busy_to_be_asked_to_tell_is_asked_again() {
    let mut story = connected(&[1]);
    for _ in 0..3 {
        let count = story.sent.len();
        story.answer(retry(RetryReason::Busy, None));
        story.pass(millis(200));
        assert_eq!(story.sent.len(), count + 1);
        assert!(matches!(story.last_sent().1, Outgoing::Request(Request::Watch { .. })));
    }
    story.answer(Answer::Watching);
    story.pass(millis(1_000));
    assert_eq!(story.core.next_due(), None);
}

#[test]
fn a_failure_that_another_attempt_may_escape_is_no_refusal() {
    let told = |failure: Failure| {
        let mut story = connected(&[1, 2, 3, 4]);
        let call = story.ask(put());
        let request = names(&open(&mut story)[0])[0];
        tell(&mut story, &[1, 2], 6, request, &Reply::Failed(failure));
        story.written(call).clone()
    };
    assert!(matches!(told(Failure::TooLate { not_after: 1, time: 2 }), Outcome::Unknown(_)));
    for sure in [Failure::WrongGroup, Failure::Malformed, Failure::NotANumber] {
        assert_eq!(told(sure.clone()), Outcome::Refused(Refusal::Failure(sure)));
    }
}

#[test]
fn a_read_that_found_too_much_being_read_is_asked_again_under_another_name() {
    let mut story = connected(&[1, 2, 3, 4]);
    let call = story.ask(get());
    let first = names(&bundles(&mut story)[0])[0];
    tell(&mut story, &[1, 2], 5, first, &Reply::Failed(Failure::ReadTooMuch));
    assert!(!story.core.has_bundles(), "not at once");
    story.pass(millis(40));
    let second = names(&bundles(&mut story)[0])[0];
    assert_ne!(first, second);
    tell(&mut story, &[1, 2], 5, first, &Reply::Value { found: None, time: 1 });
    assert!(!story.done.contains_key(&call), "that was the other one");
    tell(&mut story, &[3, 2], 6, second, &Reply::Value { found: None, time: 1 });
    assert!(matches!(story.read(call), Outcome::Done(Read { found: None, .. })));
}

#[test]
fn sessions_are_closed_behind_all_their_numbers() {
    let mut story = connected(&[1, 2, 3, 4]);
    let write = story.ask(put());
    let request = names(&open(&mut story)[0])[0];
    let end = story.ask(Ask::Close);
    assert!(!story.core.has_bundles());
    tell(&mut story, &[1, 2], 6, request, &Reply::Put { version: 1 });
    assert!(matches!(story.written(write), Outcome::Done(_)));
    let closing = bundles(&mut story);
    assert_eq!(names(&closing[0]), [RequestId { session: SESSION, number: 2 }]);
    assert_eq!(closing[0].requests[0].ack_below, 2);
    tell(&mut story, &[1, 2], 7, names(&closing[0])[0], &Reply::Closed);
    assert_eq!(story.done(end), &Done::Closed(Ok(())));
}

/// What a single node says of the ring is not believed, whatever it was asked.
#[test]
fn a_liar_moves_no_keys() {
    let mut story = connected(&[1, 2, 3, 4]);
    let whole = Place::from(&found_without_keys(1, 4, 4)[0]);
    let tenure = TenureId { group: GroupId(77), epoch: 1 };
    let place = Place { tenure, generation: u64::MAX, nodes: vec![NodeId(4)], ..whole };
    let status = story.ask(Ask::Status(NodeId(4)));
    story.answer(Answer::Moved { places: vec![place] });
    assert!(matches!(story.done(status), Done::Status(Err(_))));
    let atlas = story.core.atlas().unwrap();
    assert!(atlas.places().all(|place| place.group() == GroupId(1)));
    story.ask(get());
    assert!(!bundles(&mut story).is_empty(), "it is asked as before");
}
