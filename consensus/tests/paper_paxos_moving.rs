//! Rules of moving a log to a replica that lacks it, to a candidate and to a follower; each test is named by its rule. The table is in
//! `docs/protocol/paxos.md`. How long it takes over real links is tested in `links.rs`.
#![allow(clippy::unwrap_used, reason = "test code")]

mod harness;

use harness::alone::{Alone, end_of, entries, later, needs, view};
use harness::rules::{ballot, inject, led, options, passes_only_with_the_rule};
use harness::{Cluster, Envelope, describe};
use tetrachord_consensus::paxos::{Ballot, Entry, LogView, Message, Reason, Role};
use tetrachord_consensus::{LogBase, Mutation, Options, ReplicaId, Slot, Timestamp};

/// Where it asks to go on.
fn fetched_from(sent: &[(u8, Message)]) -> Option<Slot> {
    sent.iter().find_map(|(_, message)| match message {
        Message::FetchLog { from, .. } => Some(*from),
        _ => None,
    })
}

fn promise(ballot: Ballot, view: LogView) -> Message {
    Message::Promise { ballot, view, wall: Timestamp(1) }
}

fn chunk(ballot: Ballot, log: &[Entry], from: usize, to: usize) -> Message {
    Message::LogChunk { ballot, previous: end_of(log, from), entries: log[from..to].to_vec() }
}

/// Replica 2 of three, with an empty log, has fetched the first three of eight entries from replica 1.
fn half_fetched(options: Options) -> (Alone, Ballot, Vec<Entry>) {
    let log = entries(ballot(1, 0), 8, "a");
    let mut alone = Alone::new(2, 3, options);
    let own = alone.campaign(1);
    let sent = alone.hear(1, &promise(own, view(ballot(1, 0), &log)));
    assert_eq!(fetched_from(&sent), Some(Slot(0)));
    let sent = alone.hear(1, &chunk(own, &log, 0, 3));
    assert_eq!(fetched_from(&sent), Some(Slot(3)));
    (alone, own, log)
}

#[test]
fn a_later_log_that_is_heard_of_while_another_is_fetched_is_no_part_of_it() {
    let (mut alone, own, log) = half_fetched(Options::default());
    let other = entries(ballot(1, 1), 8, "b");
    alone.hear(0, &promise(own, view(ballot(1, 1), &other)));
    let sent = alone.hear(1, &chunk(own, &log, 3, 8));
    assert!(alone.replica.is_leader());
    let begins = sent.iter().find_map(|(to, message)| match message {
        Message::AcceptSync { sync, .. } if *to == 0 => Some(sync.slot),
        _ => None,
    });
    assert_eq!(begins, Some(Slot(0)), "both logs share nothing that this leader knows of");
}

#[test]
fn a_log_is_adopted_only_as_a_whole_by_a_candidate() {
    fn test(options: Options) {
        let (mut alone, own, log) = half_fetched(options);
        assert!(!alone.replica.is_leader());
        // Half of it is no evidence: what it promises to the next candidate does not speak of it as held.
        let (mut other, ..) = half_fetched(Options::default());
        let sent = other.hear(0, &Message::Prepare { ballot: later(0) });
        let (to, Message::Promise { view, .. }) = &sent[0] else { panic!("{sent:?}") };
        assert_eq!((*to, view.accepted, view.last), (0, Ballot::ZERO, LogBase::default()));
        assert_eq!(view.gathered, Some(end_of(&log, 3)));
        alone.hear(1, &chunk(own, &log, 3, 8));
        assert!(alone.replica.is_leader());
        assert_eq!(alone.log()[..8], log);
    }
    passes_only_with_the_rule(Mutation::LeadHalfFetched, test);
}

#[test]
fn what_was_fetched_stays_for_the_next_attempt() {
    let (mut alone, own, log) = half_fetched(options(Mutation::None));
    let next = alone.campaign(1);
    assert!(next > own, "the first attempt has failed");
    let sent = alone.hear(1, &promise(next, view(ballot(1, 0), &log)));
    assert_eq!(fetched_from(&sent), Some(Slot(3)), "it goes on where the first attempt ended");
    alone.hear(1, &chunk(next, &log, 3, 8));
    assert!(alone.replica.is_leader());
    assert_eq!(alone.log()[..8], log);
}

#[test]
fn what_was_fetched_of_another_log_is_not_adopted() {
    for shared in [0, 2] {
        let (mut alone, _, old) = half_fetched(options(Mutation::None));
        // Another log was adopted since, which shares the first entries or none.
        let mut log = old[..shared].to_vec();
        for number in shared..8 {
            let body = entries(ballot(2, 1), 1, "b")[0].body.clone();
            log.push(Entry::after(end_of(&log, number), ballot(2, 1), old[0].time, body));
        }
        for end in [3, 8] {
            let mut alone = Alone { replica: alone.replica.clone(), ..Alone::new(2, 3, Options::default()) };
            alone.now = 5_000;
            let next = alone.campaign(1);
            let sent = alone.hear(1, &promise(next, view(ballot(2, 1), &log[..end])));
            if end == 8 {
                assert_eq!(fetched_from(&sent), Some(Slot(3)));
                let sent = alone.hear(1, &chunk(next, &log, 3, 8));
                assert_eq!(fetched_from(&sent), Some(Slot(0)), "the hashes at slot 3 differ");
            } else {
                assert_eq!(fetched_from(&sent), Some(Slot(0)), "it is as long as that log, and not that log");
            }
            assert!(!alone.replica.is_leader());
            alone.hear(1, &chunk(next, &log, 0, end));
            assert!(alone.replica.is_leader());
            assert_eq!(alone.log()[..end], log[..end]);
        }
        alone.wait(10);
    }
}

#[test]
fn a_piece_that_comes_gives_a_candidate_more_time() {
    let log = entries(ballot(1, 0), 8, "a");
    let mut alone = Alone::new(2, 3, options(Mutation::None));
    let own = alone.campaign(1);
    alone.hear(1, &promise(own, view(ballot(1, 0), &log)));
    for piece in 0..8 {
        let sent = alone.wait(450);
        assert!(!sent.iter().any(|(_, message)| matches!(message, Message::PreVote { .. })), "piece {piece}");
        alone.hear(1, &chunk(own, &log, piece, piece + 1));
    }
    assert!(alone.replica.is_leader(), "after eight times most of an election timeout");
}

#[test]
fn the_owner_of_a_log_that_is_far_ahead_offers_to_lead() {
    // One entry in a message.
    let mut cluster = led(3, Options { message_bytes: 4, ..options(Mutation::None) });
    cluster.partition(&[2], &[0, 1]);
    for number in 0..8 {
        cluster.propose(0, &format!("v{number}")).unwrap();
        cluster.settle();
    }
    cluster.run(100);
    cluster.crash(0, 0);
    cluster.heal();
    cluster.advance(500);
    cluster.network.clear();
    let promised = cluster.replica(2).promised();
    inject(&mut cluster, 0, 2, &Message::TransferLeader { ballot: promised });
    cluster.settle();
    assert_eq!(cluster.leader(), Some(1), "no time has passed");
    assert_eq!(cluster.nodes[2].applied.len(), 9, "and nothing was fetched twice");
    assert!(cluster.violations.is_empty(), "{:?}", cluster.violations);
}

/// Schedule 11337034195: two that fetched a log of two pieces from each other, and offered to lead each time, went on for ever.
#[test]
fn an_offer_to_lead_is_not_made_again_at_once() {
    let log = entries(ballot(1, 0), 8, "a");
    let mut owner =
        Alone::with_log(1, 3, Options { message_bytes: 4, ..Options::default() }, ballot(1, 0), log);
    let asks = |owner: &mut Alone, round: u64| {
        let ballot = ballot(round, 2);
        owner.hear(2, &Message::Prepare { ballot });
        let sent = owner.hear(2, &Message::FetchLog { ballot, from: Slot(0), bytes: 1 });
        assert!(sent.iter().any(|(_, message)| matches!(message, Message::LogChunk { .. })), "it is given");
        sent.iter().any(|(_, message)| matches!(message, Message::PreVote { .. }))
    };
    assert!(asks(&mut owner, 2), "it could lead without moving anything");
    assert!(!asks(&mut owner, 3), "it has just offered");
    owner.hear(2, &Message::Heartbeat { ballot: ballot(3, 2), round: 1, decided: Slot(0), quorate: true });
    owner.wait(1_000);
    assert!(asks(&mut owner, 9), "an election timeout later");
}

#[test]
fn an_attempt_that_always_fails_does_not_keep_others_from_trying() {
    let mut cluster = led(3, options(Mutation::None));
    cluster.partition(&[0], &[1, 2]);
    cluster.run(3_000);
    let old = cluster.leader().unwrap();
    cluster.propose(old, "missed").unwrap();
    cluster.run(100);
    cluster.crash(old, 0);
    cluster.heal();
    // The first replica is the first to try, again and again, and it never gets the log.
    let is_fetch = |envelope: &Envelope| describe(&envelope.message).starts_with("FetchLog");
    let move_all = |cluster: &mut Cluster| {
        for _ in 0..50 {
            (0..3).for_each(|index| cluster.persist_all(index));
            cluster.network.retain(|envelope| !is_fetch(envelope));
            if !cluster.network.is_empty() {
                cluster.deliver(0);
            }
        }
    };
    // It asks when nobody hears a leader any more, and the other has not lost its patience yet.
    cluster.network.clear();
    cluster.now += 520;
    cluster.tick(3 - old);
    cluster.now += 80;
    cluster.tick(0);
    move_all(&mut cluster);
    assert!(matches!(cluster.replica(0).role(), Role::Candidate(_)));
    for _ in 0..500 {
        cluster.advance(10);
        move_all(&mut cluster);
        if cluster.leader().is_some() {
            break;
        }
    }
    assert_eq!(cluster.leader(), Some(3 - old), "the one that has the log");
}

/// Seed 96001170 of the simulator: all that was on its way had come, the answer that said so was lost, and nothing more was sent, ever.
#[test]
fn a_log_moves_on_although_an_answer_to_a_piece_is_lost() {
    // One entry in a message, and one message on its way.
    let one_by_one = Options { message_bytes: 4, window_bytes: 4, ..options(Mutation::None) };
    let mut cluster = led(3, one_by_one);
    cluster.partition(&[2], &[0, 1]);
    for number in 0..8 {
        cluster.propose(0, &format!("v{number}")).unwrap();
        cluster.settle();
    }
    cluster.run(100);
    cluster.act(0, |replica| replica.transfer_leadership(Some(ReplicaId(1))));
    cluster.settle();
    assert_eq!(cluster.leader(), Some(1));
    cluster.heal();
    let answers = |envelope: &Envelope| {
        envelope.from == ReplicaId(2) && describe(&envelope.message).starts_with("Reject")
    };
    let mut lost = 0;
    for _ in 0..200 {
        cluster.advance(10);
        for _ in 0..50 {
            (0..3).for_each(|index| cluster.persist_all(index));
            let before = cluster.network.len();
            let is_told =
                cluster.network.iter().any(|envelope| describe(&envelope.message).contains("NeedSync"));
            cluster.network.retain(|envelope| !is_told || !answers(envelope));
            lost += before - cluster.network.len();
            if !cluster.network.is_empty() {
                cluster.deliver(0);
            }
        }
    }
    assert!(lost > 2, "{lost} answers were lost");
    let log = |index: usize| cluster.replica(index).acceptor().log().last();
    assert_eq!(log(2), log(1), "heartbeats tell what has come");
    assert!(cluster.violations.is_empty(), "{:?}", cluster.violations);
}

/// The pieces of a log with which the leader of `ballot` brings a replica up to date.
fn piece(ballot: Ballot, log: &[Entry], from: usize, to: usize) -> Message {
    let (sync, adopted) = (LogBase::default(), end_of(log, log.len()));
    Message::AcceptSync { ballot, sync, entries: log[from..to].to_vec(), adopted, quorate: true }
}

#[test]
fn a_log_is_adopted_only_as_a_whole_by_a_follower() {
    fn test(options: Options) {
        let log = entries(ballot(1, 0), 8, "a");
        let mut alone = Alone::new(2, 3, options);
        let leader = later(0);
        alone.hear(0, &Message::Prepare { ballot: leader });
        let sent = alone.hear(0, &piece(leader, &log, 0, 3));
        let view = needs(&sent).expect("it says how far it got");
        assert_eq!((view.accepted, view.last), (Ballot::ZERO, LogBase::default()));
        assert_eq!(view.gathered, Some(end_of(&log, 3)));
        assert_eq!(alone.replica.acceptor().accepted(), Ballot::ZERO);
        let sent = alone.hear(0, &piece(leader, &log, 3, 8));
        assert!(matches!(sent[0].1, Message::Accepted { durable: Slot(8), .. }), "{sent:?}");
        assert_eq!((alone.replica.acceptor().accepted(), alone.log()), (leader, log));
    }
    passes_only_with_the_rule(Mutation::AdoptHalfSync, test);
}

#[test]
fn what_was_gathered_for_one_leader_serves_the_next_if_it_is_of_its_log() {
    let log = entries(ballot(1, 0), 8, "a");
    let mut alone = Alone::new(2, 3, options(Mutation::None));
    alone.hear(0, &Message::Prepare { ballot: later(0) });
    alone.hear(0, &piece(later(0), &log, 0, 3));
    let sent = alone.hear(1, &Message::Prepare { ballot: later(1) });
    assert!(matches!(sent[0].1, Message::Promise { view, .. } if view.gathered == Some(end_of(&log, 3))));
    let mut same = Alone { replica: alone.replica.clone(), now: 1, fatal: None };
    same.hear(1, &piece(later(1), &log, 3, 8));
    assert_eq!((same.replica.acceptor().accepted(), same.log()), (later(1), log));
    // A leader with another log begins again, and nothing of the first one is left.
    let other = entries(ballot(2, 1), 8, "b");
    let sent = alone.hear(1, &piece(later(1), &other, 0, 2));
    assert_eq!(needs(&sent).unwrap().gathered, Some(end_of(&other, 2)));
    alone.hear(1, &piece(later(1), &other, 2, 8));
    assert_eq!((alone.replica.acceptor().accepted(), alone.log()), (later(1), other));
}

#[test]
fn a_log_that_ends_where_the_leaders_ends_and_is_another_is_not_adopted() {
    let (log, other) = (entries(ballot(1, 0), 3, "a"), entries(ballot(2, 1), 3, "b"));
    let mut alone = Alone::new(2, 3, options(Mutation::None));
    alone.hear(0, &Message::Prepare { ballot: later(0) });
    alone.hear(0, &piece(later(0), &entries(ballot(1, 0), 5, "a"), 0, 3));
    alone.hear(1, &Message::Prepare { ballot: later(1) });
    // An empty piece: everything was sent before, as far as the leader knows.
    let sent = alone.hear(1, &piece(later(1), &other, 3, 3));
    assert!(needs(&sent).is_some(), "{sent:?}");
    assert_eq!(alone.replica.acceptor().accepted(), Ballot::ZERO);
    let mut same = Alone::new(2, 3, options(Mutation::None));
    same.hear(0, &Message::Prepare { ballot: later(0) });
    same.hear(0, &piece(later(0), &entries(ballot(1, 0), 5, "a"), 0, 3));
    same.hear(1, &Message::Prepare { ballot: later(1) });
    same.hear(1, &piece(later(1), &log, 3, 3));
    assert_eq!((same.replica.acceptor().accepted(), same.log()), (later(1), log));
}

/// Replica 0 of three, with a log of eight entries, leads; replica 1 has promised and gathered this much.
fn leader_of(log: &[Entry], gathered: Option<LogBase>) -> (Alone, Ballot, Vec<(u8, Message)>) {
    let mut alone = Alone::with_log(0, 3, options(Mutation::None), ballot(1, 0), log.to_vec());
    let own = alone.campaign(1);
    let view = LogView { gathered, ..view(Ballot::ZERO, &[]) };
    let sent = alone.hear(1, &promise(own, view));
    assert!(alone.replica.is_leader());
    (alone, own, sent)
}

#[test]
fn a_leader_goes_on_behind_what_a_replica_has_gathered_of_its_log() {
    let log = entries(ballot(1, 0), 8, "a");
    let first_sent = |gathered| {
        let (.., sent) = leader_of(&log, gathered);
        sent.iter().find_map(|(_, message)| match message {
            Message::AcceptSync { entries, .. } => entries.first().map(|entry| entry.slot),
            _ => None,
        })
    };
    assert_eq!(first_sent(Some(end_of(&log, 5))), Some(Slot(6)));
    assert_eq!(first_sent(Some(end_of(&entries(ballot(2, 1), 8, "b"), 5))), Some(Slot(1)), "of another log");
    assert_eq!(
        first_sent(Some(end_of(&entries(ballot(1, 0), 12, "a"), 12))),
        Some(Slot(1)),
        "of a longer one"
    );
    assert_eq!(first_sent(None), Some(Slot(1)));
}

#[test]
fn a_replica_that_gathers_a_log_is_in_contact() {
    let log = entries(ballot(1, 0), 8, "a");
    let (mut alone, own, _) = leader_of(&log, None);
    for _ in 0..30 {
        alone.wait(100);
        let reason = Reason::NeedSync { view: view(Ballot::ZERO, &[]) };
        alone.hear(1, &Message::Reject { ballot: own, reason });
    }
    assert!(alone.replica.is_leader(), "for six election timeouts one of two others has answered");
    alone.wait(1_500);
    assert!(!alone.replica.is_leader(), "nobody answers any more");
}

#[test]
fn a_lost_piece_is_noticed_by_the_heartbeat_behind_it() {
    let log = entries(ballot(1, 0), 8, "a");
    let (mut alone, own, sent) = leader_of(&log, None);
    let syncs = |sent: &[(u8, Message)]| {
        sent.iter().filter(|(_, message)| matches!(message, Message::AcceptSync { .. })).count()
    };
    assert_eq!(syncs(&sent), 1);
    let round_of = |sent: &[(u8, Message)]| {
        sent.iter().find_map(|(_, message)| match message {
            Message::Heartbeat { round, .. } => Some(*round),
            _ => None,
        })
    };
    let reply = |round| Message::HeartbeatReply {
        ballot: own,
        round,
        view: view(Ballot::ZERO, &[]),
        durable: Slot::ZERO,
        wall: Timestamp(1),
    };
    let before = round_of(&sent).unwrap();
    assert_eq!(syncs(&alone.hear(1, &reply(before))), 0, "it was sent before the piece");
    let behind = round_of(&alone.wait(60)).unwrap();
    assert_eq!(syncs(&alone.hear(1, &reply(behind))), 1, "it was sent behind the piece");
}
