//! What no primary may do to its clients, and what nobody may do to an honest primary. Each test is a story of one liar, and the
//! same story with one rule switched off ([`Mutation::PBFT_LIVENESS`]) must end otherwise: nothing here breaks agreement, so the
//! random schedules would not notice.
#![allow(clippy::unwrap_used, reason = "test code")]

mod pbft;

use pbft::{Envelope, Group};
use tetrachord_consensus::pbft::message::{CommitCertificate, Status, Vote};
use tetrachord_consensus::pbft::sign::Statement;
use tetrachord_consensus::pbft::{Batch, Bundle, Message, Options, RequestName, Signer, Window};
use tetrachord_consensus::{Digest, Engine, Mutation, ReplicaId, Slot, Timestamp, View, codec};

/// In epoch 4 the first view belongs to replica 0.
const PRIMARY: usize = 0;
const BACKUPS: [usize; 3] = [1, 2, 3];

/// As nodes are set up.
fn production(mutation: Mutation) -> Group {
    let options = Options { request_ticks: 1_000, mutation, ..Options::default() };
    Group::new(4, Window::default(), options)
}

fn name(bundle: &Bundle) -> RequestName {
    bundle.names().next().unwrap()
}

/// A primary of the first view that the test plays: it says what the test lets it say, to whom the test likes.
struct Puppet {
    signer: Signer,
    last: u64,
}

impl Puppet {
    fn take_the_place_of_the_primary(group: &mut Group) -> Self {
        group.crash(PRIMARY, 0);
        Self { signer: Signer::toy(ReplicaId(PRIMARY as u8), group.domain), last: 0 }
    }

    fn vote(&self, slot: u64, digest: Digest, make: fn(View, Slot, Digest) -> Statement) -> Vote {
        let (view, slot) = (View(0), Slot(slot));
        let signature = self.signer.sign(make(view, slot, digest));
        Vote { signer: self.signer.me(), view, slot, digest, signature }
    }

    fn say(&self, group: &mut Group, to: usize, message: &Message) {
        group.network.push(Envelope { from: PRIMARY, to, message: codec::encode(message) });
    }

    fn propose(&self, group: &mut Group, to: usize, slot: u64, batch: &Batch) {
        let vote = self.vote(slot, batch.digest(), Statement::PrePrepare);
        self.say(group, to, &Message::PrePrepare { vote, batch: batch.bytes().clone() });
    }

    fn commit(&self, group: &mut Group, slot: u64, batch: &Batch) {
        let vote = self.vote(slot, batch.digest(), Statement::Commit);
        BACKUPS.into_iter().for_each(|to| self.say(group, to, &Message::Commit(vote)));
    }

    /// The next slot, for everybody.
    fn order(&mut self, group: &mut Group, batch: &Batch) {
        self.last += 1;
        BACKUPS.into_iter().for_each(|to| self.propose(group, to, self.last, batch));
        self.commit(group, self.last, batch);
    }
}

fn batch(group: &Group, more_micros: u64, bundles: Vec<Bundle>) -> Batch {
    Batch::new(Timestamp(1_000_000_000 + group.now * 1000 + more_micros), bundles)
}

/// Ten milliseconds; every message takes as long.
fn turn(group: &mut Group) {
    group.advance(10);
    for _ in 0..group.network.len() {
        group.deliver(0);
    }
    for index in BACKUPS {
        while group.check(index) || group.persist(index) {}
    }
}

fn has_lost_its_view(group: &Group) -> bool {
    BACKUPS.into_iter().any(|index| group.replica(index).view() != (View(0), true))
}

/// Lets the backups go on without the puppet, until the next view has ordered this.
fn is_ordered_soon(group: &mut Group, bundle: &Bundle) -> bool {
    group.run(3_000);
    BACKUPS.into_iter().all(|index| group.has_executed(index, name(bundle)))
}

/// How a primary keeps a backup from executing the next slot, for a while: three others decide it.
#[derive(Clone, Copy, Debug)]
enum LeftOut {
    /// Nobody.
    Nobody,
    /// Every tenth slot one backup, in turn, gets another batch than the others, and the right one a little later.
    EveryTenthSlot,
    /// Every slot one backup, in turn, gets another batch than the others: there is always one that it has not fetched yet.
    EverySlot,
}

/// A primary orders all that is asked but the request of one client. Returns how long that goes on, if it ends.
fn censor(mutation: Mutation, left_out: LeftOut) -> Option<u64> {
    let mut group = production(mutation);
    let mut puppet = Puppet::take_the_place_of_the_primary(&mut group);
    let starved = group.request(1, 1, "starved");
    BACKUPS.into_iter().for_each(|index| group.submit(index, &starved));
    let mut late: Vec<(u64, usize, u64, Batch)> = Vec::new();
    while group.now < 12_000 {
        let lowest = BACKUPS.into_iter().map(|index| group.replica(index).stable_slot().0).min().unwrap();
        if puppet.last < lowest + 250 {
            puppet.last += 1;
            let slot = puppet.last;
            let bundle = group.request(0, slot, "other");
            let right = batch(&group, 0, vec![bundle.clone()]);
            let wrong = batch(&group, 1, vec![bundle]);
            let victim = |every: u64| slot.is_multiple_of(every).then_some(1 + (slot / every % 3) as usize);
            for to in BACKUPS {
                match left_out {
                    LeftOut::EveryTenthSlot if victim(10) == Some(to) => {
                        puppet.propose(&mut group, to, slot, &wrong);
                        late.push((group.now + 50, to, slot, right.clone()));
                    }
                    LeftOut::EverySlot if victim(1) == Some(to) => {
                        puppet.propose(&mut group, to, slot, &wrong);
                    }
                    _ => puppet.propose(&mut group, to, slot, &right),
                }
            }
            puppet.commit(&mut group, slot, &right);
        }
        while late.first().is_some_and(|(at, ..)| *at <= group.now) {
            let (_, to, slot, batch) = late.remove(0);
            puppet.say(&mut group, to, &Message::Body { slot: Slot(slot), batch: batch.bytes().clone() });
        }
        turn(&mut group);
        if puppet.last.is_multiple_of(128) {
            BACKUPS.into_iter().for_each(|index| group.checkpoint(index, 0, true));
        }
        if has_lost_its_view(&group) {
            let millis = group.now;
            assert!(is_ordered_soon(&mut group, &starved));
            group.assert_safe();
            return Some(millis);
        }
    }
    group.assert_safe();
    None
}

#[test]
fn a_primary_that_leaves_out_one_client_is_replaced_whoever_it_keeps_from_executing() {
    for left_out in [LeftOut::Nobody, LeftOut::EveryTenthSlot, LeftOut::EverySlot] {
        let millis = censor(Mutation::None, left_out);
        println!("{left_out:?}: {millis:?}");
        assert!(millis.is_some_and(|millis| millis <= 3_500), "{left_out:?}: {millis:?}");
    }
}

/// It took a request that nobody else has, and missed what the group did meanwhile.
#[test]
fn a_backup_that_was_cut_off_blames_nobody_when_it_is_back() {
    let mut group = production(Mutation::None);
    let mut number = 0;
    let mut order_others = |group: &mut Group, millis: u64| {
        let end = group.now + millis;
        while group.now < end {
            number += 1;
            let bundle = group.request(0, number, "other");
            group.submit(PRIMARY, &bundle);
            group.run(20);
        }
    };
    order_others(&mut group, 200);
    group.partition(&[3], &[0, 1, 2]);
    let unheard = group.request(1, 1, "unheard");
    group.submit(3, &unheard);
    order_others(&mut group, 700);
    group.heal();
    order_others(&mut group, 1_500);
    assert!(group.all_executed(name(&unheard)));
    (0..4).for_each(|index| assert_eq!(group.replica(index).view(), (View(0), true), "r{index}"));
    group.assert_safe();
}

/// A backup that was cut off while the others ordered so much, and is back after so many milliseconds more: how many still take part.
/// The primary keeps nothing that it need not keep.
fn come_back(mutation: Mutation, slots: u64, millis: u64) -> usize {
    let options = Options { request_ticks: 1_000, mutation, ..Options::default() };
    let mut group = Group::new(4, Window { interval: 4, length: 8 }, options);
    let mut number = 0;
    let mut order = |group: &mut Group| {
        number += 1;
        let bundle = group.request(0, number, "other");
        group.submit(PRIMARY, &bundle);
        group.run(20);
        group.checkpoint(PRIMARY, 0, true);
        bundle
    };
    order(&mut group);
    group.partition(&[3], &[0, 1, 2]);
    let last = (0..slots).map(|_| order(&mut group)).last().unwrap();
    group.run(millis);
    group.heal();
    // Certificates are lost at first: it agrees with the others on what it missed.
    let is_certified = |envelope: &Envelope| {
        matches!(codec::decode::<Message>(&envelope.message), Ok(Message::Certified { .. }))
    };
    for _ in 0..50 {
        group.advance(20);
        group.network.retain(|envelope| !is_certified(envelope));
        while !group.network.is_empty() || (0..4).any(|index| group.check(index) || group.persist(index)) {
            if !group.network.is_empty() {
                group.deliver(0);
            }
            group.network.retain(|envelope| !is_certified(envelope));
        }
    }
    group.run(5_000);
    assert!(group.has_executed(3, name(&last)), "it has caught up");
    group.assert_safe();
    (0..4).filter(|index| group.replica(*index).view() == (View(0), true)).count()
}

/// What it is given then was stamped long ago, by a primary whose clock is right.
#[test]
fn a_backup_that_was_cut_off_for_long_blames_no_clock_when_it_is_back() {
    for (slots, millis) in (1..30).flat_map(|slots| [3_000, 6_000, 30_000].map(|millis| (slots, millis))) {
        assert_eq!(come_back(Mutation::None, slots, millis), 4, "{slots} slots, {millis} ms");
    }
}

/// A primary whose clock stands still, while others are asked; how long it keeps its place.
fn order_with_an_old_clock(left_out: LeftOut) -> Option<u64> {
    let mut group = production(Mutation::None);
    let mut puppet = Puppet::take_the_place_of_the_primary(&mut group);
    while group.now < 20_000 && !has_lost_its_view(&group) {
        puppet.last += 1;
        let slot = puppet.last;
        let bundle = group.request(0, slot, "other");
        let batch = Batch::new(Timestamp(1_000_000_000 + slot), vec![bundle]);
        let late = (slot % 3 + 1) as usize;
        let hears_late = |to: &usize| matches!(left_out, LeftOut::EverySlot) && *to == late;
        for to in BACKUPS.into_iter().filter(|to| !hears_late(to)) {
            puppet.propose(&mut group, to, slot, &batch);
        }
        puppet.commit(&mut group, slot, &batch);
        (0..15).for_each(|_| turn(&mut group));
        BACKUPS.into_iter().filter(hears_late).for_each(|to| puppet.propose(&mut group, to, slot, &batch));
        (0..5).for_each(|_| turn(&mut group));
    }
    group.assert_safe();
    has_lost_its_view(&group).then_some(group.now)
}

#[test]
fn a_primary_whose_clock_stands_still_is_replaced_whoever_hears_of_slots_late() {
    for left_out in [LeftOut::Nobody, LeftOut::EverySlot] {
        let millis = order_with_an_old_clock(left_out);
        assert!(millis.is_some_and(|millis| (5_000..7_000).contains(&millis)), "{left_out:?}: {millis:?}");
    }
}

/// What waits at a backup was executed in a state that it took over: that it waited on says nothing of the primary.
#[test]
fn a_backup_that_took_a_state_blames_nobody_for_what_was_in_it() {
    let options = Options { request_ticks: 1_000, ..Options::default() };
    let mut group = Group::new(4, Window { interval: 4, length: 8 }, options);
    let waiting: Vec<Bundle> = (1..=16).map(|number| group.request(1, number, "in the state")).collect();
    for bundle in &waiting {
        group.submit(3, bundle);
    }
    group.partition(&[3], &[0, 1, 2]);
    waiting.iter().for_each(|bundle| group.submit(PRIMARY, bundle));
    for number in 1..=40 {
        let bundle = group.request(0, number, "other");
        group.submit(PRIMARY, &bundle);
        group.run(20);
        (0..3).for_each(|index| group.checkpoint(index, 0, true));
    }
    group.heal();
    group.run(12_000);
    assert!(group.reached.transfers > 0, "it took a state");
    assert!(group.all_executed(name(&waiting[15])));
    (0..4).for_each(|index| assert_eq!(group.replica(index).view(), (View(0), true), "r{index}"));
    group.assert_safe();
}

/// Seed 50000602 of the simulator: what a backup knows to be decided, but takes as part of a state, is done with as if it had executed it.
#[test]
fn a_backup_waits_for_nothing_that_was_decided_in_a_state_that_it_took() {
    let options = Options { request_ticks: 1_000, ..Options::default() };
    let mut group = Group::new(4, Window { interval: 4, length: 16 }, options);
    let waiting = group.request(1, 1, "in the state");
    let others: Vec<Bundle> = (1..=11).map(|number| group.request(0, number, "other")).collect();
    let order = |group: &mut Group, bundle: &Bundle| {
        group.submit(PRIMARY, bundle);
        group.settle();
    };
    group.partition(&[3], &[0, 1, 2]);
    group.submit(3, &waiting);
    others[..6].iter().for_each(|bundle| order(&mut group, bundle));
    (0..3).for_each(|index| group.checkpoint(index, 0, true));
    group.heal();
    order(&mut group, &waiting);
    others[6..].iter().for_each(|bundle| order(&mut group, bundle));
    assert!(!group.has_executed(3, name(&waiting)), "it lacks what was before");
    (0..3).for_each(|index| group.checkpoint(index, 0, true));
    while group.reached.transfers == 0 && group.now < 3_000 {
        group.run(20);
    }
    assert!(group.reached.transfers > 0 && group.has_executed(3, name(&waiting)), "it took a state");
    let shown = |group: &Group| group.sent.get("requests").copied().unwrap_or(0);
    let before = shown(&group);
    group.run(5_000);
    assert_eq!(shown(&group), before, "nobody is shown what is done with");
    group.assert_safe();
}

/// How a primary with an old clock lets one backup that cannot blame it execute each slot first, and excuse it with what it says.
#[derive(Clone, Copy, Debug, PartialEq)]
enum First {
    /// Backup 3 is there and in the view, but is never sent a proposal: it is sent a certificate.
    NeverProposedTo,
    /// Backup 3 is proposed to as all are, until it has left the view.
    HasLeft,
}

fn let_one_be_first(first: First) -> u64 {
    let mut group = production(Mutation::None);
    let mut puppet = Puppet::take_the_place_of_the_primary(&mut group);
    let both_left = |group: &Group| {
        BACKUPS.into_iter().filter(|index| group.replica(*index).view() != (View(0), true)).count() > 1
    };
    while group.now < 40_000 && !both_left(&group) {
        puppet.last += 1;
        let slot = puppet.last;
        let bundle = group.request(0, slot, "other");
        let batch = Batch::new(Timestamp(1_000_000_000 + slot), vec![bundle]);
        let status =
            Status { view: View(0), is_active: true, stable: Slot(0), executed: Slot(slot), base: Slot(0) };
        let has_left = group.replica(3).view() != (View(0), true);
        // Whom it takes into the quorum: two backups and itself.
        let quorum = if first == First::HasLeft && !has_left { [1, 3] } else { [1, 2] };
        for to in BACKUPS {
            puppet.say(&mut group, to, &Message::Status(status));
        }
        for to in quorum {
            puppet.propose(&mut group, to, slot, &batch);
        }
        let mut commits = std::collections::BTreeMap::new();
        let own = puppet.vote(slot, batch.digest(), Statement::Commit);
        commits.insert(own.signer, own.signature);
        let mut gather = |group: &Group| {
            for envelope in group.network.iter().filter(|envelope| envelope.to == PRIMARY) {
                if let Ok(Message::Commit(vote)) = codec::decode::<Message>(&envelope.message)
                    && vote.slot == Slot(slot)
                {
                    commits.insert(vote.signer, vote.signature);
                }
            }
            commits.len() >= 3
        };
        let mut turns = 0;
        while !gather(&group) && turns < 30 {
            turn(&mut group);
            turns += 1;
        }
        let commits = commits.into_iter().take(3).collect();
        let certificate =
            CommitCertificate { view: View(0), slot: Slot(slot), digest: batch.digest(), commits };
        if quorum.contains(&3) {
            puppet.say(&mut group, 3, &Message::Commit(own));
        } else {
            puppet.say(&mut group, 3, &Message::Certified { certificate, batch: batch.bytes().clone() });
        }
        // Until its status has been heard.
        (0..15).for_each(|_| turn(&mut group));
        BACKUPS.into_iter().for_each(|to| puppet.say(&mut group, to, &Message::Commit(own)));
        (0..5).for_each(|_| turn(&mut group));
        if slot.is_multiple_of(128) {
            BACKUPS.into_iter().for_each(|index| group.checkpoint(index, 0, true));
        }
    }
    group.assert_safe();
    group.now
}

#[test]
fn a_primary_whose_clock_stands_still_is_replaced_whoever_is_first_to_execute() {
    for first in [First::NeverProposedTo, First::HasLeft] {
        let millis = let_one_be_first(first);
        assert!((5_000..7_000).contains(&millis), "{first:?}: {millis} ms");
    }
}

/// A process is stopped for so long (SIGSTOP, a virtual machine that is moved) and goes on; links are in order and lose nothing.
fn pause(millis: u64) -> Vec<(View, bool)> {
    let mut group = production(Mutation::None);
    let (mut held, mut number) = (Vec::new(), 0);
    let end = 500 + millis;
    let mut step = |group: &mut Group, is_paused: bool, held: &mut Vec<Envelope>| {
        group.now += 10;
        (0..if is_paused { 3 } else { 4 }).for_each(|index| group.tick(index));
        number += 1;
        if number % 10 == 0 && number < 240 {
            let bundle = group.request(0, number / 10, "other");
            group.submit(PRIMARY, &bundle);
        }
        for _ in 0..group.network.len() {
            if is_paused && group.network[0].to == 3 {
                held.push(group.network.remove(0));
            } else {
                group.deliver(0);
            }
        }
        for index in 0..if is_paused { 3 } else { 4 } {
            while group.check(index) || group.persist(index) {}
        }
    };
    while group.now < 500 {
        step(&mut group, false, &mut held);
    }
    while group.now < end {
        step(&mut group, true, &mut held);
    }
    group.tick(3);
    for envelope in held.drain(..) {
        group.network.insert(0, envelope);
        group.deliver(0);
        while group.check(3) || group.persist(3) {}
    }
    while group.now < end + 3_000 {
        step(&mut group, false, &mut held);
    }
    group.assert_safe();
    (0..4).map(|index| group.replica(index).view()).collect()
}

#[test]
fn a_backup_that_was_stopped_for_long_blames_no_clock_when_it_goes_on() {
    for millis in [3_000, 8_000] {
        let views = pause(millis);
        assert!(views.iter().all(|view| *view == (View(0), true)), "{millis} ms: {views:?}");
    }
}

/// How a primary orders everything just before its backups' patience ends.
#[derive(Clone, Copy, Debug)]
enum Slowly {
    /// It does not.
    Not,
    /// It proposes late.
    Proposing,
    /// It proposes at once, each request in a slot of its own, behind one that it keeps back.
    BehindAGap,
    /// It proposes at once, to two backups alone, and keeps back its own COMMIT.
    Committing,
}

/// A closed loop of ten clients that all replicas hear, for half a minute. Returns how many answers they get, and when the primary
/// is replaced.
fn order_slowly(mutation: Mutation, how: Slowly) -> (u64, Option<u64>) {
    const HOLD: u64 = 850;
    let mut group = production(mutation);
    let mut puppet = Puppet::take_the_place_of_the_primary(&mut group);
    // Something with a time first: a slot that orders nothing has none.
    let first = group.request(0, 1, "first");
    let first = batch(&group, 0, vec![first]);
    puppet.order(&mut group, &first);
    let (mut number, mut answers) = (1, 0);
    let mut open: Vec<Bundle> = Vec::new();
    let (mut release_at, mut proposed) = (None, Batch::null());
    while group.now < 30_000 {
        let is_done = BACKUPS.into_iter().all(|index| group.replica(index).executed().0 >= puppet.last);
        if is_done && release_at.is_none() {
            answers += open.len() as u64;
            open.clear();
            for client in 0..10u8 {
                number += 1;
                let bundle = group.request(client % 3, number, "op");
                BACKUPS.into_iter().for_each(|index| group.submit(index, &bundle));
                open.push(bundle);
            }
            release_at = Some(group.now + if matches!(how, Slowly::Not) { 0 } else { HOLD });
            proposed = batch(&group, 0, open.clone());
            match how {
                Slowly::Not | Slowly::Proposing => {}
                Slowly::BehindAGap => {
                    for (behind, bundle) in (2..).zip(open.clone()) {
                        let batch = batch(&group, 0, vec![bundle]);
                        BACKUPS
                            .into_iter()
                            .for_each(|to| puppet.propose(&mut group, to, puppet.last + behind, &batch));
                        puppet.commit(&mut group, puppet.last + behind, &batch);
                    }
                }
                Slowly::Committing => {
                    puppet.last += 1;
                    (1..3).for_each(|to| puppet.propose(&mut group, to, puppet.last, &proposed));
                }
            }
        }
        if release_at.is_some_and(|at| group.now >= at) {
            release_at = None;
            match how {
                Slowly::Not | Slowly::Proposing => {
                    let late = batch(&group, 0, open.clone());
                    puppet.order(&mut group, &late);
                }
                Slowly::BehindAGap => {
                    puppet.order(&mut group, &Batch::null());
                    puppet.last += open.len() as u64;
                }
                Slowly::Committing => puppet.commit(&mut group, puppet.last, &proposed),
            }
        }
        turn(&mut group);
        if has_lost_its_view(&group) {
            return (answers, Some(group.now));
        }
    }
    group.assert_safe();
    (answers, None)
}

#[test]
fn a_primary_that_orders_each_batch_just_in_time_is_replaced() {
    for how in [Slowly::Not, Slowly::Proposing, Slowly::BehindAGap, Slowly::Committing] {
        let (answers, millis) = order_slowly(Mutation::None, how);
        println!("{how:?}: {answers} answers, {millis:?}");
        match how {
            Slowly::Not => assert!(millis.is_none() && answers > 3_000),
            _ => assert!(
                millis.is_some_and(|millis| millis <= 10_000),
                "{how:?}: {answers} answers, {millis:?}"
            ),
        }
    }
}

/// Executed requests are shown again to all but the primary, at every moment. Returns the view in the end.
fn replay(mutation: Mutation) -> View {
    let mut group = production(mutation);
    for number in 1..=3 {
        let bundle = group.request(0, number, "op");
        let at = group.primary();
        group.submit(at, &bundle);
        for _ in 0..150 {
            group.run(20);
            if group.all_executed(name(&bundle)) {
                (0..4).filter(|index| *index != at).for_each(|index| group.submit(index, &bundle));
            }
        }
    }
    group.assert_safe();
    group.replica(2).view().0
}

#[test]
fn executed_requests_that_are_shown_again_to_backups_alone_cost_no_primary_its_view() {
    assert_eq!(replay(Mutation::None), View(0));
}

fn is_executed_by_all_that_run(group: &Group, bundle: &Bundle) -> bool {
    (0..4).filter(|index| group.is_up(*index)).all(|index| group.has_executed(index, name(bundle)))
}

/// The primary falls silent, and everybody is asked for something. Returns how long that waits.
fn silence_the_primary(group: &mut Group, number: u64) -> u64 {
    let began = group.now;
    let primary = group.primary();
    group.crash(primary, 0);
    let bundle = group.request(0, number, "op");
    (0..4).for_each(|index| group.submit(index, &bundle));
    while !is_executed_by_all_that_run(group, &bundle) {
        group.run(100);
    }
    group.start(primary);
    group.now - began
}

/// So many primaries in a row are cut off as soon as their view begins; then all can talk again. A replica that is cut off itself runs
/// out of patience like the others.
fn fail_views(group: &mut Group, count: u64) {
    for view in 0..count {
        let bundle = group.request(0, 1 + view, "op");
        let primary = group.primary_of(View(view));
        let others: Vec<usize> = (0..4).filter(|index| *index != primary).collect();
        group.heal();
        group.partition(&[primary], &others);
        (0..4).for_each(|index| group.submit(index, &bundle));
        while others.iter().any(|index| group.replica(*index).view().0 <= View(view)) {
            group.run(100);
        }
    }
    group.heal();
    group.run(1_000);
}

/// Views fail; then little is asked for so long, or nothing. Returns how long it takes until a primary that falls silent is replaced.
fn fail_and_be_idle(mutation: Mutation, views: u64, millis: u64, asks: bool) -> u64 {
    let mut group = production(mutation);
    fail_views(&mut group, views);
    let quiet = group.now + millis;
    for number in 100.. {
        if group.now >= quiet {
            break;
        }
        if asks {
            let bundle = group.request(0, number, "op");
            (0..4).for_each(|index| group.submit(index, &bundle));
        }
        group.run(5_000);
    }
    let millis = silence_the_primary(&mut group, 1_000);
    group.assert_safe();
    millis
}

#[test]
fn patience_that_grew_shrinks_where_little_is_asked() {
    for asks in [false, true] {
        let millis = fail_and_be_idle(Mutation::None, 5, 70_000, asks);
        assert!(millis <= 2_000, "asks: {asks}, {millis} ms");
    }
}

/// More views fail than patience can grow for. All that it grew is gone as soon as it could be.
#[test]
fn patience_is_bounded_and_so_is_its_way_back() {
    let millis = fail_and_be_idle(Mutation::None, 12, 130_000, false);
    assert!(millis <= 2_000, "{millis} ms");
}

fn is_there_room_beside_two(mutation: Mutation) -> bool {
    let options = Options { client_bytes: 5_000, custody_bytes: 10_000, mutation, ..Options::default() };
    let mut group = Group::new(4, Window::default(), options);
    group.crash(PRIMARY, 0);
    let is_taken = |group: &mut Group, client: u8, number: u64| {
        let (bundle, refused) = (group.request(client, number, "op"), group.nodes[1].refused);
        group.submit(1, &bundle);
        while group.check(1) {}
        group.nodes[1].refused == refused
    };
    for client in [0, 1] {
        let taken = (1..100u64).take_while(|number| is_taken(&mut group, client, *number)).count();
        assert!(taken > 5 && taken < 99, "client {client} has {taken}");
    }
    is_taken(&mut group, 2, 1)
}

#[test]
fn clients_that_ask_for_all_they_are_let_leave_room_for_another() {
    assert!(is_there_room_beside_two(Mutation::None));
}

/// A primary fills its window with large batches, tells one backup alone, and nothing comes of them. The most that the backup keeps of
/// them, in bytes.
fn propose_a_window(mutation: Mutation) -> usize {
    let options = Options { request_ticks: 1_000, open_bytes: OPEN_BYTES, mutation, ..Options::default() };
    let mut group = Group::new(4, Window::default(), options);
    let puppet = Puppet::take_the_place_of_the_primary(&mut group);
    let operation = "x".repeat(100 << 10);
    let mut most = 0;
    // The next slot comes last: it is taken however much is kept.
    for slot in (1..=100).rev() {
        let bundle = group.request(1, slot, &operation);
        let batch = batch(&group, 0, vec![bundle]);
        puppet.propose(&mut group, 1, slot, &batch);
        turn(&mut group);
        most = most.max(group.replica(1).log_bytes());
    }
    let next = group.replica(1).undecided();
    assert!(next > 1 && !has_lost_its_view(&group), "nothing was accepted");
    let asked = group.request(2, 1, "go on");
    BACKUPS.into_iter().for_each(|index| group.submit(index, &asked));
    assert!(is_ordered_soon(&mut group, &asked), "what is kept stops nothing");
    most
}

const OPEN_BYTES: usize = 1 << 20;

#[test]
fn a_primary_that_proposes_more_than_it_has_decided_fills_no_memory() {
    let most = propose_a_window(Mutation::None);
    assert!((OPEN_BYTES / 2..OPEN_BYTES + (165 << 10)).contains(&most), "{most}");
}

/// Seed 31016692 of the simulator: what a primary was not told of is shown to it when it has waited for half of a patience, and a full
/// pipeline that was proposed before is executed by the time that it can answer.
#[test]
fn a_primary_is_given_time_to_propose_what_it_is_shown() {
    let options = Options { request_ticks: 1_000, ..Options::default() };
    let window = Window { interval: 16, length: 32 };
    let mut group = Group::new(4, window, options);
    let mut puppet = Puppet::take_the_place_of_the_primary(&mut group);
    let untold = group.request(1, 1, "the primary was not told");
    group.submit(1, &untold);
    while group.now < 490 {
        turn(&mut group);
    }
    assert!(!group.has_executed(1, name(&untold)) && !has_lost_its_view(&group));
    for number in 1..=window.interval + 4 {
        let bundle = group.request(0, number, "of a full pipeline");
        let batch = batch(&group, 0, vec![bundle]);
        puppet.order(&mut group, &batch);
    }
    (0..10).for_each(|_| turn(&mut group));
    let last = group.request(0, window.interval + 4, "of a full pipeline");
    assert!(group.has_executed(1, name(&last)), "all that was under way is ordered");
    let shown = batch(&group, 0, vec![untold.clone()]);
    puppet.order(&mut group, &shown);
    (0..10).for_each(|_| turn(&mut group));
    assert!(group.has_executed(1, name(&untold)) && !has_lost_its_view(&group));
}

/// The story of each rule, told with the rule switched off: whether it still ends well.
fn ends_well(mutation: Mutation) -> bool {
    match mutation {
        Mutation::RestartWait => censor(mutation, LeftOut::EveryTenthSlot).is_some(),
        Mutation::PaceOfManyAlone => order_slowly(mutation, Slowly::Proposing).1.is_some(),
        Mutation::IgnorePassedOn => replay(mutation) == View(0),
        Mutation::PatienceOnlyGrows => fail_and_be_idle(mutation, 4, 120_000, false) <= 2_000,
        Mutation::BlameWhenLate => (1..30).all(|slots| come_back(mutation, slots, 6_000) == 4),
        Mutation::FirstComeCustody => is_there_room_beside_two(mutation),
        Mutation::KeepEveryProposal => propose_a_window(mutation) < 2 * OPEN_BYTES,
        other => panic!("{other:?} has no story"),
    }
}

#[test]
fn every_rule_that_is_switched_off_is_missed() {
    for mutation in Mutation::PBFT_LIVENESS {
        assert!(!ends_well(mutation), "nobody misses what {mutation:?} switches off");
    }
}
