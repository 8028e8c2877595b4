//! One test per rule of PBFT, named by the rule. The rules and where they come from are in `docs/protocol/pbft.md`.
#![allow(clippy::unwrap_used, reason = "test code")]

mod pbft;

use pbft::{Envelope, Group, root_of};
use std::collections::BTreeSet;
use tetrachord_consensus::pbft::message::{NewViewBody, Vote};
use tetrachord_consensus::pbft::sign::{Statement, TOY_ADMINISTRATOR};
use tetrachord_consensus::pbft::{
    Batch, Bundle, Effect, Keyring, Liar, Lie, Message, Options, Own, Signer, SubmitId, Unverified, Window,
};
use tetrachord_consensus::{
    ByzantineQuorum, Digest, Engine, Mutation, ReplicaId, Slot, Timestamp, View, codec,
};

/// In epoch 4 the first view belongs to replica 0, the next to replica 1.
const PRIMARY: usize = 0;

fn options() -> Options {
    Options { request_ticks: 400, request_ticks_max: 3_000, status_ticks: 40, ..Options::default() }
}

fn group(n: usize) -> Group {
    Group::new(n, Window { interval: 4, length: 8 }, options())
}

/// Orders one request of client 0 and lets the group come to rest.
fn order(group: &mut Group, number: u64) -> Bundle {
    let bundle = group.request(0, number, "op");
    let at = group.primary();
    group.submit(at, &bundle);
    group.settle();
    bundle
}

fn name(bundle: &Bundle) -> tetrachord_consensus::pbft::RequestName {
    bundle.names().next().unwrap()
}

fn signer(group: &Group, index: u8) -> Signer {
    Signer::toy(ReplicaId(index), group.domain)
}

fn vote(
    group: &Group,
    index: u8,
    make: fn(View, Slot, Digest) -> Statement,
    slot: u64,
    digest: Digest,
) -> Vote {
    let (view, slot) = (View(0), Slot(slot));
    let signature = signer(group, index).sign(make(view, slot, digest));
    Vote { signer: ReplicaId(index), view, slot, digest, signature }
}

fn inject(group: &mut Group, from: usize, to: usize, message: &Message) {
    group.network.push(Envelope { from, to, message: codec::encode(message) });
    let last = group.network.len() - 1;
    group.deliver(last);
    while group.check(to) {}
}

/// Messages to one process that are under way.
fn under_way(group: &Group, to: usize) -> Vec<&'static str> {
    let of = |envelope: &Envelope| pbft::kind_of(&codec::decode::<Message>(&envelope.message).unwrap());
    group.network.iter().filter(|envelope| envelope.to == to).map(of).collect()
}

fn lie(group: &mut Group, index: usize, lie: Lie) {
    let signer = signer(group, index as u8);
    group.nodes[index].liar = Some((lie, Liar::new(signer, 7)));
}

#[test]
fn three_phases_decide_and_cost_what_the_formula_says() {
    for n in [4usize, 7] {
        let mut group = group(n);
        let bundle = order(&mut group, 1);
        assert!(group.all_executed(name(&bundle)));
        // One proposal to each backup, a PREPARE of each backup to each other replica, a COMMIT of each to each: O(n^2).
        let sent = |kind| group.sent.get(kind).copied().unwrap_or(0);
        assert_eq!(sent("pre-prepare"), n - 1);
        assert_eq!(sent("prepare"), (n - 1) * (n - 1));
        assert_eq!(sent("commit"), n * (n - 1));
        group.assert_safe();
    }
}

#[test]
fn votes_that_come_before_the_proposal_are_kept() {
    let mut group = group(4);
    let bundle = group.request(0, 1, "op");
    group.cut.insert((PRIMARY, 3));
    group.submit(PRIMARY, &bundle);
    group.settle();
    assert!(!group.has_executed(3, name(&bundle)), "it has the votes, not the batch");
    group.heal();
    group.run(200);
    assert!(group.all_executed(name(&bundle)));
    group.assert_safe();
}

#[test]
fn a_replica_executes_what_a_quorum_committed_though_it_was_not_prepared_itself() {
    let mut group = group(4);
    group.partition(&[3], &[PRIMARY, 1, 2]);
    let bundle = order(&mut group, 1);
    group.heal();
    group.run(600);
    assert!(group.has_executed(3, name(&bundle)));
    group.assert_safe();
}

#[test]
fn an_equivocating_primary_makes_nobody_disagree_and_loses_its_view() {
    let mut group = group(4);
    lie(&mut group, PRIMARY, Lie::Equivocate);
    let bundle = group.request(0, 1, "op");
    (0..4).for_each(|index| group.submit(index, &bundle));
    group.run(4_000);
    assert!(group.all_executed(name(&bundle)));
    assert!(group.replica(1).view().0 > View(0), "the liar was replaced");
    group.assert_safe();
}

#[test]
fn two_contradicting_votes_are_kept_as_evidence_that_convinces_others() {
    let mut group = group(4);
    for digest in [Digest([1; 32]), Digest([2; 32])] {
        let vote = vote(&group, 2, Statement::Commit, 1, digest);
        inject(&mut group, 2, 1, &Message::Commit(vote));
    }
    let evidence = group.replica(1).evidence().to_vec();
    let keyring = Keyring::toy(group.domain, 4, 3);
    assert_eq!(evidence.len(), 1);
    assert!(evidence[0].holds(&keyring) && evidence[0].liar() == ReplicaId(2));
    group.persist(1);
    group.crash(1, 0);
    group.start(1);
    assert_eq!(group.replica(1).evidence(), evidence, "it survives a crash");
}

#[test]
fn a_vote_counts_only_with_a_valid_signature_of_its_sender() {
    let mut group = group(4);
    let mut forged = vote(&group, 2, Statement::Commit, 1, Digest([1; 32]));
    forged.signer = ReplicaId(3);
    inject(&mut group, 3, 1, &Message::Commit(forged));
    let relayed = vote(&group, 2, Statement::Commit, 1, Digest([1; 32]));
    inject(&mut group, 3, 1, &Message::Commit(relayed));
    let other_kind = vote(&group, 2, Statement::Prepare, 1, Digest([1; 32]));
    inject(&mut group, 2, 1, &Message::Commit(other_kind));
    assert_eq!(group.reached.rejected, 2, "one that is relayed is not even looked at");
    assert_eq!(group.replica(1).status().decided, Slot::ZERO);
}

#[test]
fn a_proposal_must_hold_the_batch_that_is_signed_and_requests_that_clients_signed() {
    let mut group = group(4);
    let bundle = group.request(0, 1, "op");
    let batch = Batch::new(Timestamp(1_000_000_000), vec![bundle.clone()]);
    let other = Batch::new(Timestamp(1_000_000_001), vec![bundle.clone()]);
    let vote_for = |group: &Group, digest| vote(group, 0, Statement::PrePrepare, 1, digest);
    let swapped =
        Message::PrePrepare { vote: vote_for(&group, batch.digest()), batch: other.bytes().clone() };
    inject(&mut group, 0, 1, &swapped);
    let mut unsigned = batch.bytes().to_vec();
    let last = unsigned.len() - 1;
    unsigned[last] ^= 1;
    let digest = tetrachord_consensus::pbft::message::body_digest(&unsigned);
    let forged = Message::PrePrepare { vote: vote_for(&group, digest), batch: unsigned.into() };
    inject(&mut group, 0, 1, &forged);
    assert_eq!(group.reached.rejected, 2);
    group.persist(1);
    assert!(!under_way(&group, 2).contains(&"prepare"));
}

#[test]
fn only_the_primary_of_the_view_proposes_and_only_inside_the_window() {
    let mut group = group(4);
    let bundle = group.request(0, 1, "op");
    let batch = Batch::new(Timestamp(1_000_000_000), vec![bundle]);
    let not_primary = vote(&group, 2, Statement::PrePrepare, 1, batch.digest());
    inject(&mut group, 2, 1, &Message::PrePrepare { vote: not_primary, batch: batch.bytes().clone() });
    let too_far = vote(&group, 0, Statement::PrePrepare, 9, batch.digest());
    inject(&mut group, 0, 1, &Message::PrePrepare { vote: too_far, batch: batch.bytes().clone() });
    group.persist(1);
    assert!(!under_way(&group, 2).contains(&"prepare"));
    let in_window = vote(&group, 0, Statement::PrePrepare, 8, batch.digest());
    inject(&mut group, 0, 1, &Message::PrePrepare { vote: in_window, batch: batch.bytes().clone() });
    group.persist(1);
    assert!(under_way(&group, 2).contains(&"prepare"));
}

#[test]
fn no_more_votes_are_checked_than_are_needed_unless_somebody_was_caught_at_a_bad_one() {
    let mut group = group(4);
    order(&mut group, 1);
    let checked = |group: &Group| -> u64 {
        (0..4).map(|index| group.replica(index).condition().signatures_checked).sum()
    };
    // The request at all, the proposal at three; PREPAREs: two at the primary, one at each backup; two COMMITs at each.
    assert_eq!(checked(&group), 4 + 3 + 5 + 8);
    // A liar that is the first to vote, for another batch, makes nobody wait for what was left out.
    let liar = 1;
    lie(&mut group, liar, Lie::WrongDigests);
    let before = group.now;
    (2..=6).for_each(|number| drop(order(&mut group, number)));
    assert_eq!(group.now, before, "nothing had to be sent again");
    assert!([0, 2, 3].iter().all(|index| group.nodes[*index].applied.len() == 6));
    group.nodes[liar].liar = None;
    group.run(400);
    // Bad signatures instead of wrong statements: the first costs a wait, the others none.
    for slot in [7, 8] {
        let bundle = group.request(0, slot, "op");
        group.submit(PRIMARY, &bundle);
        while group.check(PRIMARY) {}
        group.persist(PRIMARY);
        let proposal =
            group.network.iter().find(|envelope| envelope.to == 1).expect("it proposes").message.clone();
        let Ok(Message::PrePrepare { vote: proposal, .. }) = codec::decode(&proposal) else {
            panic!("a proposal")
        };
        group.settle_one(1);
        let mut forged = vote(&group, 3, Statement::Prepare, slot, proposal.digest);
        forged.signature.0[0] ^= 1;
        inject(&mut group, 3, 1, &Message::Prepare(forged));
        group.settle();
        let is_executed = group.has_executed(1, name(&bundle));
        assert!(is_executed || slot == 7, "slot {slot}");
        group.run(100);
        assert!(group.has_executed(1, name(&bundle)));
    }
    group.assert_safe();
}

#[test]
fn nothing_is_said_before_it_is_durable() {
    let mut group = group(4);
    let bundle = group.request(0, 1, "op");
    group.submit(PRIMARY, &bundle);
    while group.check(PRIMARY) {}
    assert!(under_way(&group, 1).is_empty(), "the assignment is not durable yet");
    group.persist(PRIMARY);
    assert!(under_way(&group, 1).contains(&"pre-prepare"));
    group.settle();
    group.assert_safe();
}

#[test]
fn the_own_commit_counts_only_when_its_certificate_is_durable() {
    let mut group = group(4);
    let bundle = group.request(0, 1, "op");
    let batch = Batch::new(Timestamp(1_000_000_000), vec![bundle.clone()]);
    let proposal = vote(&group, 0, Statement::PrePrepare, 1, batch.digest());
    inject(&mut group, 0, 1, &Message::PrePrepare { vote: proposal, batch: batch.bytes().clone() });
    for index in [2, 3] {
        let prepare = vote(&group, index, Statement::Prepare, 1, batch.digest());
        inject(&mut group, usize::from(index), 1, &Message::Prepare(prepare));
    }
    for index in [0, 2] {
        let commit = vote(&group, index, Statement::Commit, 1, batch.digest());
        inject(&mut group, usize::from(index), 1, &Message::Commit(commit));
    }
    assert!(!group.has_executed(1, name(&bundle)), "two COMMITs and one that a crash could take back");
    while group.persist(1) {}
    assert!(group.has_executed(1, name(&bundle)));
}

#[test]
fn a_batch_from_the_future_is_held_not_refused() {
    let mut group = group(4);
    let bundle = group.request(0, 1, "op");
    let batch = Batch::new(Timestamp(1_000_000_000 + 2_000_000), vec![bundle]);
    let proposal = vote(&group, 0, Statement::PrePrepare, 1, batch.digest());
    inject(&mut group, 0, 1, &Message::PrePrepare { vote: proposal, batch: batch.bytes().clone() });
    group.persist(1);
    assert!(!under_way(&group, 2).contains(&"prepare"));
    group.now += 1_600;
    group.tick(1);
    while group.persist(1) {}
    assert!(under_way(&group, 2).contains(&"prepare"), "{:?}", under_way(&group, 2));
}

#[test]
fn a_silent_primary_is_replaced_and_its_requests_are_ordered() {
    let mut group = group(4);
    lie(&mut group, PRIMARY, Lie::Silent);
    let bundle = group.request(0, 1, "op");
    (0..4).for_each(|index| group.submit(index, &bundle));
    group.run(2_500);
    assert!(group.all_executed(name(&bundle)));
    assert_eq!(group.replica(1).view(), (View(1), true));
    group.assert_safe();
}

#[test]
fn the_timer_is_bound_to_one_request_not_to_any_progress() {
    let mut group = group(4);
    let starved = group.request(1, 1, "starved");
    // The backups hold a request that the primary never gets; it orders everything else.
    group.partition(&[PRIMARY], &[]);
    (1..4).for_each(|index| group.submit(index, &starved));
    for index in 1..4 {
        while group.check(index) {}
    }
    group.network.retain(|envelope| envelope.to != PRIMARY);
    group.nodes[PRIMARY].liar = Some((Lie::Starve, Liar::new(signer(&group, 0), 1)));
    for number in 1..40 {
        let bundle = group.request(0, number, "other");
        group.submit(PRIMARY, &bundle);
        group.network.retain(|envelope| {
            let message = codec::decode::<Message>(&envelope.message).unwrap();
            !(envelope.to == PRIMARY && matches!(message, Message::Requests(_)))
        });
        group.run(40);
    }
    group.run(3_000);
    assert!(group.all_executed(name(&starved)), "progress of others saved the primary");
    group.assert_safe();
}

#[test]
fn a_stop_sign_is_the_last_slot_and_a_checkpoint_whatever_its_number() {
    let mut group = group(4);
    order(&mut group, 1);
    // Both are proposed at once; the second slot is agreed on, and void.
    let stop_sign = group.stop_sign(TOY_ADMINISTRATOR);
    let behind = group.request(0, 2, "behind");
    group.submit(PRIMARY, &stop_sign);
    group.submit(PRIMARY, &behind);
    group.settle();
    group.run(2_000);
    for index in 0..4 {
        let replica = group.replica(index);
        assert_eq!((replica.executed(), replica.stable_slot()), (Slot(2), Slot(2)), "r{index}");
        assert_eq!(replica.view(), (View(0), true), "nobody is suspected in an epoch that has ended");
        assert!(group.nodes[index].applied[1].base.sealed);
        assert!(!group.has_executed(index, name(&behind)));
    }
    assert_eq!(group.reached.epochs_ended, 4);
    let refused = group.nodes[1].refused;
    let late = group.request(0, 3, "late");
    group.submit(1, &late);
    group.settle();
    assert_eq!(group.nodes[1].refused, refused + 1);
    group.assert_safe();
}

#[test]
fn an_epoch_is_ended_by_the_administrator_alone() {
    let mut group = group(4);
    let forged = group.stop_sign(0);
    (0..4).for_each(|index| group.submit(index, &forged));
    group.run(600);
    assert!(group.nodes.iter().all(|node| node.refused == 1 && node.applied.is_empty()));
    // A primary that orders it all the same is not followed.
    let batch = Batch::new(Timestamp(1_000_000_000), vec![forged]);
    let vote = vote(&group, 0, Statement::PrePrepare, 1, batch.digest());
    inject(&mut group, PRIMARY, 1, &Message::PrePrepare { vote, batch: batch.bytes().clone() });
    assert_eq!(group.reached.rejected, 5, "four submissions and the proposal");
    group.assert_safe();
}

#[test]
fn whoever_comes_late_to_the_end_of_an_epoch_is_brought_there_over_crashes_and_views() {
    let mut group = group(4);
    group.crash(3, 0);
    (1..=5).for_each(|number| drop(order(&mut group, number)));
    let stop_sign = group.stop_sign(TOY_ADMINISTRATOR);
    (0..3).for_each(|index| group.submit(index, &stop_sign));
    group.settle();
    (0..3).for_each(|index| group.checkpoint(index, 0, true));
    group.settle();
    for index in 0..3 {
        group.crash(index, 0);
        group.start(index);
    }
    group.start(3);
    group.run(6_000);
    for index in 0..4 {
        assert_eq!(group.nodes[index].applied.len(), 6, "r{index}");
        assert!(group.nodes[index].applied[5].base.sealed);
    }
    group.assert_safe();
}

/// Seed 394 of the simulator: a client whose answer was lost asks again, and the view changes. The slot in which its request
/// was executed is voted for once more, but answers nobody: the request needs another slot.
#[test]
fn a_request_that_was_executed_before_is_ordered_again_in_a_later_view() {
    let mut group = group(4);
    let bundle = order(&mut group, 1);
    let count = |group: &Group| {
        let has = |decided: &&tetrachord_consensus::Decided| match &decided.proposal {
            Some(tetrachord_consensus::Proposal::Batch(batch)) => {
                Batch::parse(batch.clone()).unwrap().names().any(|known| known == name(&bundle))
            }
            _ => false,
        };
        group.nodes[2].applied.iter().filter(has).count()
    };
    assert_eq!(count(&group), 1);
    group.run(300);
    // It asks again just before the primary goes away.
    group.crash(PRIMARY, 0);
    (1..4).for_each(|index| group.submit(index, &bundle));
    group.run(2_000);
    assert!(group.replica(2).view().0 > View(0));
    assert_eq!(count(&group), 2, "and is answered");
    group.assert_safe();
}

/// Seed 1795648345000001 of the simulator. Those who decided have restarted, and fewer of them are left than a quorum: no votes
/// can be collected again. Nobody asks for anything, so no view changes.
#[test]
fn after_a_restart_of_all_the_others_an_idle_replica_learns_what_it_missed() {
    let mut group = group(4);
    group.crash(3, 0);
    let bundle = order(&mut group, 1);
    // What was decided is written down with the next slot.
    order(&mut group, 2);
    (0..3).for_each(|index| assert!(group.has_executed(index, name(&bundle))));
    (0..3).for_each(|index| group.crash(index, usize::MAX));
    (1..4).for_each(|index| group.start(index));
    group.run(2_000);
    assert!(group.has_executed(3, name(&bundle)));
    assert_eq!(group.replica(3).view().0, View(0));
    group.assert_safe();
}

/// Asks for something new every few milliseconds, and returns the view at the end.
fn keep_asking(group: &mut Group, millis: u64) -> View {
    let end = group.now + millis;
    let mut number = 0;
    while group.now < end {
        number += 1;
        let bundle = group.request((number % 3) as u8, number, "op");
        (0..4).for_each(|index| group.submit(index, &bundle));
        group.run(60);
    }
    group.replica(2).view().0
}

#[test]
fn a_primary_that_orders_slowly_on_purpose_is_replaced() {
    // No request waits for as long as the timer; without looking at the pace nobody would ever complain.
    for (pace_ticks, is_noticed) in [(500, true), (u64::MAX >> 20, false)] {
        let options = Options { request_ticks: 2_000, pace_ticks, ..options() };
        let mut group = Group::new(4, Window { interval: 4, length: 8 }, options);
        lie(&mut group, PRIMARY, Lie::OrderSlowly);
        let view = keep_asking(&mut group, 4_000);
        assert_eq!(view > View(0), is_noticed, "{view}");
        group.assert_safe();
    }
}

#[test]
fn an_honest_primary_keeps_its_view_when_everything_is_slow() {
    let options = Options { request_ticks: 5_000, pace_ticks: 500, ..options() };
    let mut group = Group::new(4, Window { interval: 4, length: 8 }, options);
    for number in 1..=80 {
        let bundle = group.request(0, number, "op");
        (0..4).for_each(|index| group.submit(index, &bundle));
        // Disks and pools do one thing at a time, and not at once: agreement takes hundreds of milliseconds. They keep up.
        for _ in 0..4 {
            group.advance(30);
            while !group.network.is_empty() {
                group.deliver(0);
            }
            for index in 0..4 {
                group.check(index);
                group.check(index);
                group.persist(index);
            }
        }
    }
    assert_eq!(group.replica(2).view(), (View(0), true));
    group.assert_safe();
}

/// What a replica misses is sent to it again every few ticks, by all the others. If it checks more slowly than that, it must not
/// be given ever more to check.
#[test]
fn a_replica_that_is_slow_to_check_is_not_buried_in_help() {
    let mut group = group(4);
    let mut most = 0;
    for number in 1..=60 {
        let bundle = group.request(0, number, "op");
        group.submit(PRIMARY, &bundle);
        for _ in 0..3 {
            group.advance(30);
            while !group.network.is_empty() {
                group.deliver(0);
            }
            for index in 0..4 {
                while index != 3 && group.check(index) {}
                while group.persist(index) {}
            }
        }
        group.check(3);
        most = most.max(group.nodes[3].checks.len());
    }
    assert!(most < 600, "{most} checks waited");
    while group.check(3) {}
    group.run(1_000);
    assert_eq!(group.nodes[3].applied.len(), 60);
    group.assert_safe();
}

#[test]
fn one_honest_replica_that_left_takes_others_along_no_further_than_it_went() {
    let mut group = group(4);
    let far = |group: &Group, index: u8, view: u64| {
        let body = codec::encode(&tetrachord_consensus::pbft::message::ViewChangeBody {
            stable: None,
            prepared: Vec::new(),
        });
        let digest = tetrachord_consensus::pbft::message::body_digest(&body);
        let signature = signer(group, index).sign(Statement::ViewChange(View(view), digest));
        let signer = ReplicaId(index);
        let message =
            tetrachord_consensus::pbft::message::ViewChange { signer, view: View(view), body, signature };
        Message::ViewChange(message)
    };
    let message = far(&group, 2, 9);
    inject(&mut group, 2, 1, &message);
    assert_eq!(group.replica(1).view(), (View(0), true), "one alone may be lying");
    let message = far(&group, 3, 5);
    inject(&mut group, 3, 1, &message);
    assert_eq!(group.replica(1).view(), (View(5), false));
}

#[test]
fn a_prepared_batch_survives_views_that_fail() {
    let mut group = group(4);
    let bundle = group.request(0, 1, "op");
    group.submit(PRIMARY, &bundle);
    // Everybody is prepared; no COMMIT arrives.
    for _ in 0..400 {
        group.network.retain(|envelope| {
            !matches!(codec::decode::<Message>(&envelope.message), Ok(Message::Commit(_)))
        });
        if !group.network.is_empty() {
            group.deliver(0);
        }
        (0..4).for_each(|index| {
            group.check(index);
            group.persist(index);
        });
    }
    group.network.clear();
    let digest = |group: &Group| group.replica(1).status().decided;
    assert_eq!(digest(&group), Slot::ZERO);
    // The next two primaries are silent: two views in a row do not begin.
    group.crash(1, 0);
    group.crash(2, 0);
    (0..4).filter(|index| *index != 1 && *index != 2).for_each(|index| group.submit(index, &bundle));
    group.run(3_000);
    group.start(1);
    group.start(2);
    group.run(9_000);
    assert!(group.all_executed(name(&bundle)));
    assert_eq!(group.decided.len(), group.nodes[0].applied.len());
    group.assert_safe();
}

#[test]
fn one_bad_certificate_voids_its_senders_message_and_nothing_else() {
    let mut group = group(4);
    let first = order(&mut group, 1);
    lie(&mut group, 3, Lie::BadCertificates);
    group.crash(PRIMARY, 0);
    let bundle = group.request(0, 2, "op");
    (1..4).for_each(|index| group.submit(index, &bundle));
    // Of the three that run one lies: its bad messages count for nothing, and the others' for what they are.
    group.run(2_000);
    group.start(PRIMARY);
    group.run(9_000);
    assert!(group.all_executed(name(&bundle)) && group.all_executed(name(&first)));
    assert!(group.reached.rejected > 0);
    group.assert_safe();
}

#[test]
fn a_new_view_whose_proposals_do_not_follow_is_refused() {
    let mut group = group(4);
    order(&mut group, 1);
    group.crash(PRIMARY, 0);
    let bundle = group.request(0, 2, "op");
    (1..4).for_each(|index| group.submit(index, &bundle));
    let mut seen = None;
    for _ in 0..200 {
        group.advance(20);
        (1..4).for_each(|index| while group.check(index) || group.persist(index) {});
        let is_new_view = |envelope: &Envelope| {
            matches!(codec::decode::<Message>(&envelope.message), Ok(Message::NewView(_)))
        };
        if let Some(at) = group.network.iter().position(is_new_view) {
            seen = Some(group.network.remove(at));
            break;
        }
        if !group.network.is_empty() {
            (0..group.network.len()).for_each(|_| group.deliver(0));
        }
    }
    let Message::NewView(mut message) = codec::decode(&seen.expect("a view begins").message).unwrap() else {
        unreachable!("it was just looked at")
    };
    let mut body: NewViewBody = codec::decode(&message.body).unwrap();
    assert!(!body.proposals.is_empty(), "the first batch is above the stable checkpoint");
    body.proposals[0].1 = Digest([9; 32]);
    message.body = codec::encode(&body);
    let digest = tetrachord_consensus::pbft::message::body_digest(&message.body);
    message.signature = signer(&group, 1).sign(Statement::NewView(message.view, digest));
    let before = group.reached.rejected;
    inject(&mut group, 1, 2, &Message::NewView(message));
    assert_eq!(group.reached.rejected, before + 1);
}

#[test]
fn equal_roots_of_a_quorum_make_a_checkpoint_stable_and_the_window_moves() {
    let mut group = group(4);
    (1..=9).for_each(|number| drop(order(&mut group, number)));
    group.settle();
    assert!((0..4).all(|index| group.replica(index).stable_slot() == Slot(8)));
    group.checkpoint(1, 0, true);
    assert_eq!(group.replica(1).status().base, Slot(8), "what is stable and durable is dropped");
    group.assert_safe();
}

/// Seed 7779025954 of the random schedules: a replica that catches up by certified batches, and hears of no checkpoint
/// meanwhile, is far ahead of its own stable one.
#[test]
fn a_replica_may_catch_up_far_ahead_of_its_stable_checkpoint() {
    let mut group = group(4);
    group.crash(3, 0);
    (1..=100).for_each(|number| drop(order(&mut group, number)));
    group.start(3);
    let is_about_checkpoints = |envelope: &Envelope| {
        let message = codec::decode::<Message>(&envelope.message).unwrap();
        envelope.to == 3 && matches!(message, Message::Stable(_) | Message::Checkpoint(_))
    };
    for _ in 0..100 {
        group.advance(20);
        for _ in 0..400 {
            group.network.retain(|envelope| !is_about_checkpoints(envelope));
            if !group.network.is_empty() {
                group.deliver(0);
            }
            for index in 0..4 {
                group.check(index);
                group.persist(index);
            }
        }
    }
    assert_eq!((group.replica(3).executed(), group.replica(3).stable_slot()), (Slot(100), Slot::ZERO));
    // Once a second it says how far it is, though it misses nothing that it knows of.
    group.run(1_100);
    assert_eq!(group.replica(3).stable_slot(), Slot(100));
    group.assert_safe();
}

#[test]
fn a_replica_whose_root_is_refuted_executes_its_log_again() {
    let mut group = group(4);
    group.nodes[2].is_rotten = true;
    (1..=6).for_each(|number| drop(order(&mut group, number)));
    group.run(200);
    assert_eq!(
        (group.reached.states_lost, group.reached.repairs),
        (1, 1),
        "the log reaches back to the beginning"
    );
    assert_eq!(group.nodes[2].applied.len(), 6);
    let right = root_of(group.decided[&Slot(4)].chain);
    assert_eq!(group.replica(1).stable().map(|stable| stable.root), Some(right));
    group.assert_safe();
}

/// Castro's thesis, chapter 4: what a replica holds may be lost without the replica being lost.
#[test]
fn a_damaged_state_is_fetched_with_proof_while_the_replica_goes_on_to_vote() {
    let mut group = group(4);
    (1..=9).for_each(|number| drop(order(&mut group, number)));
    (0..4).for_each(|index| group.checkpoint(index, 0, true));
    lie(&mut group, 3, Lie::FalseState);
    group.crash(3, 0);
    group.nodes[2].is_rotten = true;
    group.act(2, |replica| replica.state_damaged("a scrub found it".to_string()));
    assert!(group.replica(2).condition().is_repairing);
    // With one replica down the others need its votes.
    let bundle = order(&mut group, 10);
    assert!(group.has_executed(0, name(&bundle)), "it votes");
    assert!(!group.has_executed(2, name(&bundle)), "and executes nothing");
    group.start(3);
    group.run(6_000);
    assert!(group.has_executed(2, name(&bundle)));
    assert_eq!(group.reached.repairs, 1);
    group.assert_safe();
}

#[test]
fn a_repair_goes_on_after_a_crash() {
    let mut group = group(4);
    (1..=9).for_each(|number| drop(order(&mut group, number)));
    (0..4).for_each(|index| group.checkpoint(index, 0, true));
    group.settle();
    group.act(2, |replica| replica.state_damaged("a scrub found it".to_string()));
    group.crash(2, 0);
    let bundle = order(&mut group, 10);
    group.start(2);
    assert!(group.replica(2).condition().is_repairing, "what the disk holds is still not believed");
    group.run(6_000);
    assert!(group.all_executed(name(&bundle)));
    group.assert_safe();
}

#[test]
fn a_state_that_is_refuted_again_after_a_repair_stops_the_replica() {
    let mut group = group(4);
    group.nodes[2].is_other_build = true;
    (1..=4).for_each(|number| drop(order(&mut group, number)));
    group.run(200);
    assert_eq!(group.reached.repairs, 1);
    let reason = group.nodes[2].fatal.clone().expect("it must not go on");
    assert!(reason.contains("so it was after a repair"), "{reason}");
}

#[test]
fn a_replica_that_no_log_reaches_takes_a_state_with_proof_and_refuses_one_without() {
    let mut group = group(4);
    group.crash(3, 0);
    (1..=30).for_each(|number| {
        let bundle = group.request(0, number, "op");
        group.submit(PRIMARY, &bundle);
        group.run(20);
    });
    (0..3).for_each(|index| group.checkpoint(index, 0, true));
    lie(&mut group, 0, Lie::FalseState);
    lie(&mut group, 1, Lie::FalseState);
    group.start(3);
    group.run(8_000);
    let applied = |index: usize| group.nodes[index].applied.len();
    assert!(applied(3) >= 24, "{} slots", applied(3));
    assert!(group.reached.transfers > 0);
    assert!(group.reached.transfers_refused > 0, "the liars are asked too");
    group.assert_safe();
}

#[test]
fn a_crash_at_every_persist_point_never_makes_a_replica_say_two_things() {
    let mut points = 0;
    for stop_at in 0..60 {
        for kept in [0, 1] {
            let mut group = group(4);
            let victim = stop_at % 4;
            let mut persisted = 0;
            for number in 1..=6 {
                let bundle = group.request(0, number, "op");
                (0..4).for_each(|index| group.submit(index, &bundle));
                for _ in 0..60 {
                    group.advance(10);
                    while !group.network.is_empty() {
                        group.deliver(0);
                    }
                    for index in 0..4 {
                        while group.check(index) {}
                        if group.persist(index) && index == victim {
                            persisted += 1;
                            if persisted == stop_at / 4 + 1 {
                                group.crash(victim, kept);
                                group.start(victim);
                                points += 1;
                            }
                        }
                    }
                }
                // In the middle the primary goes away for a while: the crash may fall into a view change.
                if number == 3 {
                    group.crash(PRIMARY, 0);
                    group.run(1_500);
                    group.start(PRIMARY);
                }
            }
            group.run(4_000);
            group.assert_safe();
        }
    }
    println!("{points} crashes");
    assert!(points > 60);
}

#[test]
fn a_client_that_signs_two_requests_with_one_name_gets_one_executed_and_takes_no_view() {
    let mut group = group(4);
    let one = group.request(0, 1, "one");
    let other = group.request(0, 1, "other");
    group.submit(PRIMARY, &one);
    (1..4).for_each(|index| group.submit(index, &other));
    group.run(3_000);
    assert!(group.all_executed(name(&one)));
    assert_eq!(group.replica(1).view(), (View(0), true), "an honest primary keeps its view");
    group.assert_safe();
}

#[test]
fn requests_that_no_admitted_client_signed_are_refused_before_anything_is_spent_on_them() {
    let mut group = group(4);
    let mut forged = group.request(0, 1, "op").bytes().to_vec();
    let last = forged.len() - 1;
    forged[last] ^= 1;
    let replica = group.nodes[PRIMARY].replica.as_mut().unwrap();
    replica.submit(SubmitId(7), forged.into(), false);
    let unverified: Vec<Unverified> = replica
        .take_effects()
        .into_iter()
        .filter_map(|effect| if let Effect::Own(Own::Verify(job)) = effect { Some(*job) } else { None })
        .collect();
    assert_eq!(unverified.len(), 1);
    let result = group.nodes[PRIMARY].verifier.verify(unverified[0].clone());
    assert!(result.is_err());
    group.act(PRIMARY, |replica| replica.verified(result));
    assert_eq!(group.nodes[PRIMARY].refused, 1);
    group.settle();
    assert!(group.decided.is_empty());
}

#[test]
fn floods_of_votes_for_far_slots_and_views_leave_nothing_behind() {
    let mut group = group(4);
    for number in 0..2_000u64 {
        let vote = vote(&group, 2, Statement::Commit, 17 + number, Digest([3; 32]));
        inject(&mut group, 2, 1, &Message::Commit(vote));
        let (view, slot, digest) = (View(1 + number), Slot(1), Digest([3; 32]));
        let signature = signer(&group, 2).sign(Statement::Prepare(view, slot, digest));
        inject(
            &mut group,
            2,
            1,
            &Message::Prepare(Vote { signer: ReplicaId(2), view, slot, digest, signature }),
        );
    }
    assert_eq!(group.replica(1).status().last, Slot::ZERO);
    assert_eq!(group.reached.rejected, 0, "they are not even checked");
}

/// Lamport, Shostak and Pease (1982): all loyal lieutenants obey the same order (IC1), and if the commander is loyal they
/// obey the one he sends (IC2). The commander is the primary, the order a request that it alone was given.
#[test]
fn byzantine_generals_agree_whoever_lies() {
    let mut runs = 0;
    for (n, f) in [(4usize, 1usize), (7, 2)] {
        for told in Lie::ALL {
            for first in 0..n {
                let traitors: BTreeSet<usize> = (0..f).map(|turn| (first + turn) % n).collect();
                let mut group = group(n);
                traitors.iter().for_each(|index| lie(&mut group, *index, told));
                let attack = group.request(0, 1, "attack");
                let commander = group.primary_of(View(0));
                group.submit(commander, &attack);
                group.run(700);
                if !traitors.contains(&commander) {
                    assert!(group.all_executed(name(&attack)), "IC2, {n} generals, {traitors:?} {told:?}");
                }
                // IC1: the harness compares every slot that loyal ones execute.
                group.assert_safe();
                runs += 1;
            }
        }
    }
    println!("{runs} councils");
}

/// With three replicas, one of which may lie, no quorum works: two (all that may answer) share only the liar, and three may
/// never answer.
#[test]
fn three_replicas_are_too_few_for_one_liar() {
    assert!(ByzantineQuorum::new(3).is_err());
    // The schedule: the liar, r0, proposes and commits to A towards r1 and to B towards r2, and messages between those two
    // are late. Each has a quorum of two for its own batch.
    let committed = |own: char, quorum: usize| {
        let told_by_liar = own;
        let votes = [(0, told_by_liar), (1, own)];
        (votes.iter().filter(|(_, batch)| *batch == own).count() >= quorum).then_some(own)
    };
    assert_eq!((committed('A', 2), committed('B', 2)), (Some('A'), Some('B')), "two decide differently");
    assert_eq!((committed('A', 3), committed('B', 3)), (None, None), "with three the liar stops everybody");
    // With four, quorums of three share an honest replica, and three honest ones are a quorum.
    let quorum = ByzantineQuorum::new(4).unwrap();
    assert_eq!((quorum.size(), quorum.n() - quorum.f()), (3, 3));
}

#[test]
fn the_schedules_find_a_quorum_that_is_too_small() {
    let broken = std::panic::catch_unwind(|| {
        let options = Options { mutation: Mutation::QuorumTooSmall, ..options() };
        let mut group = Group::new(4, Window { interval: 4, length: 8 }, options);
        group.partition(&[1], &[2, 3]);
        lie(&mut group, PRIMARY, Lie::Equivocate);
        let bundle = group.request(0, 1, "op");
        group.submit(PRIMARY, &bundle);
        group.run(300);
        group.assert_safe();
    });
    assert!(broken.is_err(), "a quorum of 2f lets an equivocating primary split the group");
}
