//! One test per rule, named by the rule. The rules and where they come from are in `docs/protocol/paxos.md`.
#![allow(clippy::unwrap_used, reason = "test code")]

mod harness;

use bytes::Bytes;
use harness::rules::{ballot, inject, led, options, passes_only_with_the_rule, under_way};
use harness::{Cluster, Envelope, describe};
use tetrachord_consensus::paxos::{Ballot, Message, ProposeError, Reason, Role};
use tetrachord_consensus::{
    Engine, Epoch, Event, Mutation, Options, Proposal, Quorums, ReplicaId, Slot, codec,
};

#[test]
fn a_promise_is_durable_before_it_is_given() {
    fn test(options: Options) {
        let mut cluster = Cluster::new(3, options);
        inject(&mut cluster, 0, 1, &Message::Prepare { ballot: ballot(5, 0) });
        assert!(under_way(&cluster).is_empty(), "{:?}", under_way(&cluster));
        cluster.persist_all(1);
        assert!(under_way(&cluster)[0].starts_with("Promise 1.5.0"));
        cluster.crash(1, 0);
        cluster.start(1);
        assert_eq!(cluster.replica(1).promised(), ballot(5, 0));
    }
    passes_only_with_the_rule(Mutation::PromiseBeforeBarrier, test);
}

#[test]
fn a_lower_ballot_is_refused_and_told_the_promise() {
    let mut cluster = Cluster::new(3, options(Mutation::None));
    inject(&mut cluster, 2, 1, &Message::Prepare { ballot: ballot(5, 2) });
    cluster.persist_all(1);
    cluster.network.clear();
    inject(&mut cluster, 0, 1, &Message::Prepare { ballot: ballot(4, 0) });
    assert_eq!(under_way(&cluster), ["Reject 1.4.0 Promised(1.5.2)"]);
}

#[test]
fn a_lost_promise_is_given_again() {
    let mut cluster = Cluster::new(3, options(Mutation::None));
    for _ in 0..2 {
        inject(&mut cluster, 0, 1, &Message::Prepare { ballot: ballot(5, 0) });
        cluster.persist_all(1);
        assert!(under_way(&cluster)[0].starts_with("Promise 1.5.0"));
        cluster.network.clear();
    }
}

#[test]
fn a_new_leader_adopts_the_best_log_of_its_quorum() {
    fn test(options: Options) {
        let mut cluster = led(3, options);
        cluster.partition(&[2], &[0, 1]);
        cluster.propose(0, "decided").unwrap();
        cluster.settle();
        assert_eq!(cluster.acknowledged, Slot(2));
        cluster.crash(0, 0);
        cluster.heal();
        // Replica 2 knows nothing of the entry and leads: it must learn it from replica 1.
        inject(&mut cluster, 0, 2, &Message::TransferLeader { ballot: ballot(1, 0) });
        cluster.run(1_500);
        let leader = cluster.leader().expect("two of three elect a leader");
        cluster.propose(leader, "later").unwrap();
        cluster.settle();
        assert!(cluster.violations.is_empty(), "{:?}", cluster.violations);
        assert_eq!(
            cluster.nodes[2].applied[1].proposal,
            Some(Proposal::Batch(Bytes::from_static(b"decided")))
        );
    }
    passes_only_with_the_rule(Mutation::KeepOwnLog, test);
    passes_only_with_the_rule(Mutation::PromiseWithoutAccepted, test);
}

#[test]
fn only_acknowledgements_of_the_own_ballot_decide() {
    fn test(options: Options) {
        let mut cluster = led(3, options);
        let old = cluster.replica(0).promised();
        cluster.propose(0, "lonely").unwrap();
        cluster.network.clear();
        cluster.persist_all(0);
        // An acknowledgement that was given in another ballot and has been under way for long.
        let older = Ballot { round: old.round - 1, ..old };
        inject(&mut cluster, 1, 0, &Message::Accepted { ballot: older, durable: Slot(2) });
        assert_eq!(cluster.replica(0).decided(), Slot(1), "nobody else holds slot 2");
    }
    passes_only_with_the_rule(Mutation::CountOlderBallot, test);
}

#[test]
fn a_leader_counts_its_own_copy_only_when_it_is_durable() {
    fn test(options: Options) {
        let mut cluster = Cluster::with_quorums(Quorums::flexible(3, 3, 1, 0).unwrap(), options);
        cluster.run(1_500);
        let leader = cluster.leader().unwrap();
        let slot = cluster.propose(leader, "v").unwrap();
        assert!(cluster.replica(leader).decided() < slot, "one copy decides here, but it is not durable yet");
        cluster.persist_all(leader);
        assert_eq!(cluster.replica(leader).decided(), slot);
    }
    passes_only_with_the_rule(Mutation::AckBeforeBarrier, test);
}

#[test]
fn a_restarted_leader_does_not_resume_its_ballot() {
    let mut cluster = led(3, options(Mutation::None));
    let before = cluster.replica(0).promised();
    cluster.crash(0, 0);
    cluster.start(0);
    assert!(matches!(cluster.replica(0).role(), Role::Follower));
    cluster.run(3_000);
    let leader = cluster.leader().unwrap();
    assert!(cluster.replica(leader).promised() > before);
}

#[test]
fn a_second_accept_sync_of_a_ballot_does_not_truncate() {
    fn test(options: Options) {
        let mut cluster = Cluster::new(3, options);
        for _ in 0..200 {
            let is_sync = |envelope: &Envelope| describe(&envelope.message).starts_with("AcceptSync");
            if let Some(copy) = cluster.network.iter().find(|envelope| is_sync(envelope)).cloned() {
                cluster.settle();
                let leader = usize::from(copy.from.0);
                cluster.propose(leader, "a").unwrap();
                cluster.settle();
                let last = cluster.replica(usize::from(copy.to.0)).status().last;
                cluster.network.push(copy.clone());
                cluster.deliver(cluster.network.len() - 1);
                assert_eq!(cluster.replica(usize::from(copy.to.0)).status().last, last);
                assert!(cluster.violations.is_empty(), "{:?}", cluster.violations);
                return;
            }
            cluster.advance(10);
            for index in 0..3 {
                cluster.persist_all(index);
            }
            if let Some(position) = cluster.network.iter().position(|envelope| !is_sync(envelope)) {
                cluster.deliver(position);
            }
        }
        panic!("no AcceptSync was seen");
    }
    passes_only_with_the_rule(Mutation::SyncTwice, test);
}

#[test]
fn an_entry_that_repeats_what_is_held_is_acknowledged_again() {
    let mut cluster = led(3, options(Mutation::None));
    cluster.propose(0, "a").unwrap();
    let copies = cluster.network.clone();
    cluster.settle();
    let copy = copies.into_iter().find(|envelope| envelope.to == ReplicaId(1)).unwrap();
    let ballot = cluster.replica(0).promised();
    cluster.network.push(copy);
    cluster.deliver(0);
    assert_eq!(under_way(&cluster), [format!("Accepted {ballot} durable 2")]);
}

#[test]
fn a_gap_is_reported_and_filled() {
    let mut cluster = led(3, options(Mutation::None));
    cluster.propose(0, "lost").unwrap();
    cluster.network.retain(|envelope| envelope.to != ReplicaId(1));
    cluster.propose(0, "next").unwrap();
    cluster.settle();
    assert_eq!(cluster.replica(1).status().last, Slot(3));
}

#[test]
fn a_gap_is_filled_once_however_often_it_is_reported() {
    // One entry in a message, so that many are in flight.
    let mut cluster = led(3, Options { message_bytes: 1, ..options(Mutation::None) });
    for number in 0..40 {
        cluster.propose(0, &format!("v{number}")).unwrap();
    }
    let is_accept_to = |envelope: &Envelope, to: u8| {
        envelope.to == ReplicaId(to) && describe(&envelope.message).starts_with("Accept ")
    };
    let first = cluster.network.iter().position(|envelope| is_accept_to(envelope, 2)).unwrap();
    cluster.network.remove(first);
    let before = cluster.network.len();
    while let Some(next) = cluster.network.iter().position(|envelope| is_accept_to(envelope, 2)) {
        cluster.deliver(next);
    }
    let is_gap = |words: &String| words.contains("GapAt(1)");
    assert_eq!(
        under_way(&cluster).iter().filter(|words| is_gap(words)).count(),
        39,
        "all others are refused"
    );
    let gap = |cluster: &Cluster| under_way(cluster).iter().position(is_gap);
    while let Some(next) = gap(&cluster) {
        cluster.deliver(next);
    }
    let again = cluster.network.iter().filter(|envelope| is_accept_to(envelope, 2)).count();
    assert_eq!(again, 1, "of {before}: one message fills the gap, the others follow when it is acknowledged");
    cluster.settle();
    cluster.run(200);
    assert_eq!(cluster.nodes[2].applied.len(), 41);
    // A refusal that comes late, of what has long been acknowledged, is not believed.
    let late = Message::Reject { ballot: ballot(1, 0), reason: Reason::GapAt(Slot(1)) };
    inject(&mut cluster, 2, 0, &late);
    assert_eq!(under_way(&cluster), Vec::<String>::new());
}

#[test]
fn a_leader_of_a_sealed_log_appends_nothing_and_serves_no_reads() {
    fn test(options: Options) {
        let mut cluster = led(3, options);
        let next = Bytes::from_static(b"next");
        cluster.propose_raw(0, Proposal::StopSign(next.clone()), next).unwrap();
        cluster.settle();
        assert_eq!(cluster.propose(0, "late"), Err(ProposeError::EpochEnded { epoch: Epoch(1) }));
        let sealed = cluster.replica(0).status().last;
        cluster.crash(0, 0);
        cluster.run(3_000);
        let leader = cluster.leader().expect("the epoch may still elect leaders to finish its end");
        assert_ne!(leader, 0);
        assert_eq!(cluster.replica(leader).status().last, sealed, "nothing follows a stop-sign");
        assert_eq!(cluster.replica(leader).decided(), sealed);
        let read = cluster.read(leader);
        cluster.settle();
        assert!(
            !cluster.nodes[leader].ready.iter().any(|(id, _)| *id == read),
            "a sealed epoch serves no reads"
        );
    }
    passes_only_with_the_rule(Mutation::AppendAfterStopSign, test);
}

#[test]
fn other_epochs_are_refused() {
    let mut cluster = Cluster::new(3, options(Mutation::None));
    for epoch in [0, 2] {
        let other = Ballot { epoch: Epoch(epoch), round: 9, replica: ReplicaId(0) };
        inject(&mut cluster, 0, 1, &Message::Prepare { ballot: other });
        assert_eq!(under_way(&cluster), [format!("Reject {other} Epoch(e1)")]);
        cluster.network.clear();
    }
    assert_eq!(cluster.replica(1).promised(), Ballot::ZERO);
}

#[test]
fn a_quorum_is_made_of_distinct_replicas() {
    fn test(options: Options) {
        let mut cluster = led(5, options);
        cluster.partition(&[3, 4], &[0, 1, 2]);
        cluster.propose(0, "decided by the others").unwrap();
        cluster.settle();
        let promised = cluster.replica(3).promised();
        cluster.cut.remove(&(0, 3));
        inject(&mut cluster, 0, 3, &Message::TransferLeader { ballot: promised });
        for _ in 0..20 {
            for index in 0..5 {
                cluster.persist_all(index);
            }
            if cluster.network.is_empty() {
                break;
            }
            // Everything arrives twice.
            let copy = cluster.network[0].clone();
            cluster.network.push(copy);
            cluster.deliver(0);
            cluster.deliver(cluster.network.len() - 1);
        }
        assert!(!cluster.replica(3).is_leader(), "two of five are no quorum, however often they answer");
    }
    passes_only_with_the_rule(Mutation::CountMessages, test);
}

#[test]
fn a_read_waits_for_a_quorum_that_answers_after_it() {
    fn test(options: Options) {
        let mut cluster = led(3, options);
        cluster.partition(&[0], &[1, 2]);
        let read = cluster.read(0);
        cluster.settle();
        assert!(
            !cluster.nodes[0].ready.iter().any(|(id, _)| *id == read),
            "nobody confirmed that replica 0 still leads"
        );
        cluster.heal();
        cluster.advance(60);
        cluster.settle();
        assert!(cluster.nodes[0].ready.iter().any(|(id, _)| *id == read));
    }
    passes_only_with_the_rule(Mutation::ReadWithoutIndex, test);
}

#[test]
fn a_deposed_leader_serves_no_stale_read() {
    let mut cluster = led(3, options(Mutation::None));
    cluster.partition(&[0], &[1, 2]);
    cluster.run(2_500);
    let leader = (1..3).find(|index| cluster.replica(*index).is_leader()).expect("the others elected one");
    cluster.propose(leader, "new").unwrap();
    cluster.settle();
    cluster.read(0);
    cluster.heal();
    cluster.run(2_000);
    assert!(cluster.violations.is_empty(), "{:?}", cluster.violations);
}

#[test]
fn many_reads_share_one_round() {
    let mut cluster = led(3, options(Mutation::None));
    cluster.read(0);
    let first_round = cluster.network.len();
    for _ in 0..50 {
        cluster.read(0);
    }
    assert_eq!(cluster.network.len(), first_round, "a round is under way; the others wait for the next one");
    cluster.settle();
    assert_eq!(cluster.nodes[0].ready.len(), 51);
}

#[test]
fn followers_of_a_working_leader_help_nobody_else() {
    let mut cluster = led(3, options(Mutation::None));
    let before = cluster.replica(0).promised();
    // Replica 2 hears nobody for a while and comes back.
    cluster.partition(&[2], &[0, 1]);
    cluster.run(3_000);
    cluster.heal();
    cluster.run(1_000);
    assert_eq!(cluster.leader(), Some(0));
    assert_eq!(cluster.replica(0).promised(), before, "the leader was not disturbed");
}

#[test]
fn a_leader_without_a_quorum_stops_all_its_traffic() {
    let mut cluster = led(3, options(Mutation::None));
    // One way only: the others hear replica 0, it does not hear them.
    cluster.cut.insert((1, 0));
    cluster.cut.insert((2, 0));
    cluster.run(3_000);
    assert!(!cluster.replica(0).is_leader());
    let leader = cluster.leader().expect("the others may elect");
    assert_ne!(leader, 0);
}

#[test]
fn partial_partitions_leave_a_leader_whenever_somebody_hears_a_quorum() {
    // The three shapes of the Omni-Paxos paper: quorum loss (only one replica is fully connected), constrained election
    // (that one has the shortest log), chained (a line).
    type Shape = fn(&mut Cluster);
    let quorum_loss: Shape = |cluster| {
        for a in 0..5u8 {
            for b in 0..5u8 {
                if a != b && a != 2 && b != 2 {
                    cluster.cut.insert((a, b));
                }
            }
        }
    };
    let constrained: Shape = |cluster| {
        cluster.partition(&[2], &[0, 1, 3, 4]);
        cluster.propose(0, "not seen by 2").unwrap();
        cluster.run(200);
        cluster.heal();
        cluster.partition(&[0], &[1, 2, 3, 4]);
        for a in [1, 3, 4u8] {
            for b in [1, 3, 4u8] {
                if a != b {
                    cluster.cut.insert((a, b));
                }
            }
        }
    };
    let chained: Shape = |cluster| {
        cluster.partition(&[0], &[2, 3, 4]);
        cluster.partition(&[1], &[3, 4]);
        cluster.partition(&[4], &[2]);
    };
    for (name, shape) in
        [("quorum loss", quorum_loss), ("constrained election", constrained), ("chained", chained)]
    {
        let mut cluster = led(5, options(Mutation::None));
        shape(&mut cluster);
        cluster.run(8_000);
        let before = cluster.acknowledged;
        let leaders: Vec<usize> = (0..5).filter(|index| cluster.replica(*index).is_leader()).collect();
        for leader in leaders {
            let _ = cluster.propose(leader, "through");
        }
        cluster.run(500);
        assert!(cluster.acknowledged > before, "{name}: nothing is decided");
        assert!(cluster.violations.is_empty(), "{name}: {:?}", cluster.violations);
    }
}

#[test]
fn flexible_quorums_decide_with_few_and_elect_with_many() {
    let quorums = Quorums::flexible(5, 4, 2, 1).unwrap();
    let mut cluster = Cluster::with_quorums(quorums, options(Mutation::None));
    cluster.run(2_000);
    let leader = cluster.leader().unwrap() as u8;
    let friend = (leader + 1) % 5;
    let others: Vec<u8> = (0..5).filter(|index| *index != leader && *index != friend).collect();
    cluster.partition(&[leader, friend], &others);
    let slot = cluster.propose(usize::from(leader), "two copies").unwrap();
    cluster.settle();
    assert_eq!(cluster.acknowledged, slot, "two of five decide");
    cluster.run(3_000);
    assert!(
        others.iter().all(|index| !cluster.replica(usize::from(*index)).is_leader()),
        "three of five do not elect"
    );
}

#[test]
fn a_replica_of_an_older_epoch_deposes_nobody() {
    let mut cluster = led(5, options(Mutation::None));
    let ballot = cluster.replica(0).promised();
    inject(&mut cluster, 4, 0, &Message::Reject { ballot, reason: Reason::Epoch(Epoch(0)) });
    assert_eq!(cluster.leader(), Some(0));
    inject(&mut cluster, 4, 0, &Message::Reject { ballot, reason: Reason::Epoch(Epoch(2)) });
    assert_eq!(cluster.leader(), None, "this epoch is over");
}

#[test]
fn leadership_is_handed_over_without_an_election_timeout() {
    let mut cluster = led(3, options(Mutation::None));
    cluster.propose(0, "a").unwrap();
    cluster.act(0, |replica| replica.transfer_leadership(Some(ReplicaId(2))));
    assert!(matches!(cluster.propose(0, "b"), Err(ProposeError::NotLeader { .. })));
    cluster.settle();
    assert_eq!(cluster.leader(), Some(2));
}

#[test]
fn proposals_are_bounded() {
    let options = Options { undecided_entries_max: 3, ..options(Mutation::None) };
    let mut cluster = led(3, options);
    cluster.partition(&[0], &[1, 2]);
    let results: Vec<bool> = (0..5).map(|_| cluster.propose(0, "v").is_ok()).collect();
    assert_eq!(results, [true, true, true, false, false]);
    let huge = Bytes::from(vec![0; codec::PROPOSAL_BYTES_MAX + 1]);
    cluster.heal();
    cluster.run(500);
    assert!(matches!(
        cluster.propose_raw(0, Proposal::Batch(huge.clone()), huge),
        Err(ProposeError::TooLarge { .. })
    ));
}

#[test]
fn a_candidate_that_lags_behind_a_compacted_log_lets_another_lead() {
    let mut cluster = led(3, options(Mutation::None));
    cluster.partition(&[2], &[0, 1]);
    for round in 0..20 {
        cluster.propose(0, &format!("v{round}")).unwrap();
        cluster.settle();
    }
    cluster.run(100);
    cluster.checkpoint(1, 0);
    cluster.settle();
    cluster.crash(0, 0);
    cluster.heal();
    let promised = cluster.replica(2).promised();
    inject(&mut cluster, 0, 2, &Message::TransferLeader { ballot: promised });
    cluster.run(4_000);
    assert_eq!(cluster.leader(), Some(1), "only replica 1 reaches back far enough");
    assert_eq!(cluster.nodes[2].applied.len(), cluster.nodes[1].applied.len(), "replica 2 got a snapshot");
    assert!(cluster.violations.is_empty(), "{:?}", cluster.violations);
}

#[test]
fn the_only_replica_that_hears_a_quorum_leads_though_no_log_reaches_back_to_it() {
    let mut cluster = led(5, options(Mutation::None));
    cluster.partition(&[3, 4], &[0, 1, 2]);
    for round in 0..20 {
        cluster.propose(0, &format!("v{round}")).unwrap();
        cluster.settle();
    }
    cluster.run(100);
    (0..3).for_each(|index| cluster.checkpoint(index, 0));
    cluster.settle();
    // Who is left: two that have missed all, and one that has everything, little of it as a log, and hears but one of them.
    [0, 1].into_iter().for_each(|index| cluster.crash(index, 9));
    cluster.heal();
    cluster.partition(&[2], &[4]);
    cluster.run(20_000);
    assert_eq!(cluster.leader(), Some(3), "nobody else hears three");
    let slot = cluster.propose(3, "on").unwrap();
    cluster.settle();
    assert_eq!(cluster.acknowledged, slot);
    assert!(cluster.violations.is_empty(), "{:?}", cluster.violations);
}

/// To give a state, a leader's tree stands still: not for one that is down.
#[test]
fn only_a_replica_that_is_there_is_given_a_state() {
    let mut cluster = led(3, Options { window_entries: 2, ..options(Mutation::None) });
    cluster.is_slow = true;
    cluster.crash(2, 0);
    cluster.run(1_000);
    for round in 0..20 {
        cluster.propose(0, &format!("v{round}")).unwrap();
        cluster.settle();
        cluster.run(100);
        cluster.checkpoint(0, 0);
        assert!(cluster.transfers.is_empty(), "replica 2 is down");
    }
    cluster.start(2);
    cluster.run(1_000);
    assert_eq!(cluster.transfers.len(), 1, "now it needs one");
    cluster.finish_transfer(0);
    cluster.run(500);
    assert_eq!(cluster.nodes[2].applied, cluster.nodes[0].applied);
}

#[test]
fn a_candidate_that_is_given_a_snapshot_while_it_fetches_campaigns_anew() {
    // One entry in a message: a log is fetched in many.
    let mut cluster = led(3, Options { message_bytes: 1, ..options(Mutation::None) });
    cluster.partition(&[2], &[0, 1]);
    for number in 0..8 {
        cluster.propose(0, &format!("v{number}")).unwrap();
        cluster.settle();
    }
    // The leader's log no longer reaches back to replica 2, that of replica 1 does.
    cluster.checkpoint(0, 0);
    cluster.settle();
    cluster.is_slow = true;
    cluster.heal();
    cluster.run(200);
    assert_eq!(cluster.transfers.len(), 1, "a snapshot is on its way to replica 2");
    inject(&mut cluster, 0, 2, &Message::TransferLeader { ballot: ballot(1, 0) });
    cluster.partition(&[0], &[1, 2]);
    let is_chunk = |envelope: &Envelope| describe(&envelope.message).starts_with("LogChunk");
    let mut chunks = 0;
    while chunks < 3 {
        (0..3).for_each(|index| cluster.persist_all(index));
        assert!(!cluster.network.is_empty(), "the candidate asks for the log, piece by piece");
        chunks += usize::from(is_chunk(&cluster.network[0]));
        cluster.deliver(0);
    }
    assert!(matches!(cluster.replica(2).role(), Role::Candidate(_)));
    cluster.heal();
    cluster.finish_transfer(0);
    cluster.run(1_500);
    assert_eq!(cluster.snapshots, 1, "it came while the log was fetched");
    assert!(cluster.violations.is_empty(), "{:?}", cluster.violations);
    assert_eq!(cluster.leader(), Some(2));
    cluster.propose(2, "later").unwrap();
    cluster.run(200);
    assert_eq!(cluster.nodes[1].applied, cluster.nodes[2].applied);
}

#[test]
fn what_is_not_from_a_member_or_not_a_message_is_ignored() {
    let mut cluster = led(3, options(Mutation::None));
    let before = cluster.replica(1).clone();
    for (from, bytes) in
        [(0u8, &b""[..]), (0, b"\xff\xff"), (9, &codec::encode(&Message::Prepare { ballot: ballot(99, 1) }))]
    {
        let message = Bytes::copy_from_slice(bytes);
        cluster.step(1, Event::Receive { from: ReplicaId(from), message });
    }
    // A ballot belongs to the replica that it names.
    inject(&mut cluster, 2, 1, &Message::Prepare { ballot: ballot(99, 0) });
    assert_eq!(cluster.replica(1).promised(), before.promised());
}

/// A scripted run: elect, propose, lose the leader, elect again, propose.
fn story(crash_at: Option<(usize, usize)>) -> Cluster {
    let mut cluster = Cluster::new(3, options(Mutation::None));
    let mut crashed = None;
    let mut proposals = 0;
    for step in 0..900 {
        cluster.advance(10);
        for _ in 0..200 {
            if let Some((at, kept)) = crash_at
                && crashed.is_none()
                && cluster.persists >= at
            {
                // Whoever has something on the way to its disk loses it, or keeps the first piece of it.
                let victim = (0..3).find(|index| !cluster.nodes[*index].pending.is_empty()).unwrap_or(0);
                cluster.crash(victim, kept);
                crashed = Some((victim, step));
            }
            if !cluster.network.is_empty() {
                cluster.deliver(0);
            } else if !(0..3).any(|index| cluster.persist(index)) {
                break;
            }
        }
        if let Some((victim, at)) = crashed
            && step == at + 30
            && !cluster.is_up(victim)
        {
            cluster.start(victim);
        }
        if step % 20 == 19
            && let Some(leader) = cluster.leader()
        {
            proposals += 1;
            let _ = cluster.propose(leader, &format!("v{proposals}"));
        }
        if step == 300
            && let Some(leader) = cluster.leader()
            && crash_at.is_none_or(|_| crashed.is_some())
        {
            cluster.crash(leader, 0);
        }
        if step == 450 {
            for index in 0..3 {
                if !cluster.is_up(index) {
                    cluster.start(index);
                }
            }
            cluster.checkpoint(step % 3, 100);
        }
    }
    for index in 0..3 {
        if !cluster.is_up(index) {
            cluster.start(index);
        }
    }
    cluster.run(4_000);
    cluster
}

#[test]
fn a_crash_at_every_persist_point_loses_nothing() {
    let persists = story(None).persists;
    assert!(persists > 60, "{persists} persist points");
    for at in 0..persists.min(160) {
        for kept in [0, 1] {
            let cluster = story(Some((at, kept)));
            assert!(
                cluster.violations.is_empty(),
                "crash at persist {at}, {kept} kept: {:?}",
                cluster.violations
            );
            let acknowledged = cluster.acknowledged.0 as usize;
            assert!(acknowledged > 10, "crash at persist {at}: the cluster did not go on");
            for node in &cluster.nodes {
                assert!(
                    node.applied.len() >= acknowledged,
                    "crash at persist {at}: acknowledged slots are missing"
                );
            }
        }
    }
}
