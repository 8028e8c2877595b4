//! Rosters that talk to one another over disks that forget.

use super::*;

const fn store(name: u8) -> StoreId {
    StoreId([name; 16])
}

/// Said by a node that was opened once.
const fn introduce(life: Life) -> Introduction {
    Introduction::Introduce { life, earlier: Vec::new() }
}

/// A node: its roster, and its records as its disk holds them.
struct Desk {
    node: NodeId,
    all: BTreeSet<NodeId>,
    liars: usize,
    life: Life,
    disk: Vec<Bytes>,
    roster: Roster,
    commits: u64,
    now: u64,
    stopped: Option<String>,
}

impl Desk {
    fn new(node: u128, of: u128, liars: usize) -> Self {
        let all: BTreeSet<NodeId> = (1..=of).map(NodeId).collect();
        let life = Life {
            store: store(node as u8),
            opening: Opening { incarnation: 1, mark: 1, log_end: 0 },
            log_end: 0,
            is_admitted: false,
        };
        let node = NodeId(node);
        let roster = reopen(node, &all, liars, life, &[]);
        Self { node, all, liars, life, disk: Vec::new(), roster, commits: 0, now: 0, stopped: None }
    }

    /// Opens the store again, as it is.
    fn restart(&mut self) {
        let Opening { incarnation, mark, .. } = self.life.opening;
        self.life.opening =
            Opening { incarnation: incarnation + 1, mark: mark + 100, log_end: self.life.log_end };
        self.stopped = None;
        self.roster = reopen(self.node, &self.all, self.liars, self.life, &self.disk);
    }

    /// Lets a second pass, so that what must be said is said.
    fn tick(&mut self) {
        self.now += INTERVAL_MILLIS;
        self.roster.tick(Ticks(self.now), self.life.log_end);
    }

    /// Makes durable what waits, and drains what is to be said.
    fn settle(&mut self) -> Vec<(NodeId, NodeId, Introduction)> {
        let mut said = Vec::new();
        loop {
            self.commits += 1;
            let records = self.roster.take_records(CommitId(self.commits), false);
            self.life.log_end += u64::from(!records.is_empty());
            self.disk.extend(records);
            self.roster.durable(CommitId(self.commits));
            let outputs = self.roster.take_outputs();
            if outputs.is_empty() {
                return said;
            }
            for output in outputs {
                match output {
                    Output::Send(to, introduction) => said.push((self.node, to, introduction)),
                    Output::Stop(reason) => self.stopped = Some(reason),
                }
            }
        }
    }
}

fn reopen(node: NodeId, all: &BTreeSet<NodeId>, liars: usize, life: Life, records: &[Bytes]) -> Roster {
    let others: BTreeSet<NodeId> = all.iter().copied().filter(|other| *other != node).collect();
    let juries = vec![(others.clone(), liars)];
    Roster::open(RosterSettings { me: node, others, juries, mutation: Mutation::None }, life, records)
        .unwrap()
}

/// Some seconds of talk among those who are up.
fn talk(desks: &mut [Desk], up: &[u128]) {
    let is_up = |node: NodeId| up.contains(&node.0);
    for _ in 0..4 {
        desks.iter_mut().filter(|desk| is_up(desk.node)).for_each(Desk::tick);
        loop {
            let said: Vec<_> =
                desks.iter_mut().filter(|desk| is_up(desk.node)).flat_map(Desk::settle).collect();
            if said.is_empty() {
                break;
            }
            for (from, to, introduction) in said.into_iter().filter(|(_, to, _)| is_up(*to)) {
                desks[to.0 as usize - 1].roster.on_said(from, introduction);
            }
        }
    }
}

fn voters(desks: &[Desk]) -> Vec<u128> {
    desks.iter().filter(|desk| desk.roster.may_vote()).map(|desk| desk.node.0).collect()
}

fn cluster(of: u128) -> Vec<Desk> {
    (1..=of).map(|node| Desk::new(node, of, 0)).collect()
}

#[test]
fn a_first_start_wants_a_majority_of_the_others_and_never_again() {
    let mut three = cluster(3);
    talk(&mut three, &[1, 2]);
    assert_eq!(voters(&three), [] as [u128; 0]);
    assert_eq!(three[0].roster.awaited(), [NodeId(3)]);
    talk(&mut three, &[1, 2, 3]);
    assert_eq!(voters(&three), [1, 2, 3]);
    three.iter_mut().for_each(Desk::restart);
    assert_eq!(voters(&three), [1, 2, 3], "alone, and at once");

    let mut five = cluster(5);
    talk(&mut five, &[1, 2, 3]);
    assert_eq!(voters(&five), [] as [u128; 0]);
    talk(&mut five, &[1, 2, 3, 4]);
    assert_eq!(voters(&five), [1, 2, 3, 4]);
    assert_eq!(voters(&cluster(1)), [1]);
}

#[test]
fn a_second_store_of_one_name_never_votes_and_stops() {
    let mut desks = cluster(3);
    talk(&mut desks, &[1, 2, 3]);
    // The disk of n3 is lost, and its folder copied again; n1, which saw it last, is away.
    desks[2] = Desk { life: Life { store: store(99), ..desks[2].life }, ..Desk::new(3, 3, 0) };
    desks[2].restart();
    talk(&mut desks, &[2, 3]);
    assert!(!desks[2].roster.may_vote());
    let reason = desks[2].stopped.clone().unwrap();
    assert!(
        reason.contains("n2 knows n3 by another data directory") && reason.contains("is new"),
        "{reason}"
    );
    assert!(!desks[1].roster.hears(NodeId(3)));
}

#[test]
fn of_five_two_stores_of_one_name_find_no_two_majorities() {
    // Whoever of the others the first store meets, the second finds one of them.
    for absent in 1..=4u128 {
        let mut desks = cluster(5);
        let first: Vec<u128> = (1..=5).filter(|node| *node != absent).collect();
        talk(&mut desks, &first);
        assert!(desks[4].roster.may_vote());
        desks[4] = Desk { life: Life { store: store(99), ..desks[4].life }, ..Desk::new(5, 5, 0) };
        desks[4].restart();
        talk(&mut desks, &[1, 2, 3, 4, 5]);
        assert!(!desks[4].roster.may_vote(), "n{absent} was away at first");
        assert!(desks[4].stopped.is_some());
    }
}

/// Three nodes that know one another; the disk of n1 is as it was ten commits ago.
fn with_an_older_copy() -> Vec<Desk> {
    let mut desks = cluster(3);
    talk(&mut desks, &[1, 2, 3]);
    let (disk, life) = (desks[0].disk.clone(), desks[0].life);
    desks[0].life.log_end += 10;
    desks[0].roster.on_logged();
    talk(&mut desks, &[1, 2, 3]);
    (desks[0].disk, desks[0].life) = (disk, life);
    desks
}

/// Three nodes that know one another; the disk of n1 is as it was before its last start, and will draw other marks.
fn with_a_copy_of_the_start_before() -> Vec<Desk> {
    let mut desks = cluster(3);
    talk(&mut desks, &[1, 2, 3]);
    let copy = (desks[0].disk.clone(), desks[0].life);
    desks[0].restart();
    talk(&mut desks, &[1, 2, 3]);
    (desks[0].disk, desks[0].life) = copy;
    desks[0].life.opening.mark = 7;
    desks
}

#[test]
fn an_older_copy_is_noticed_by_whoever_knows_more() {
    let mut desks = with_an_older_copy();
    // The others have started anew as well.
    desks.iter_mut().for_each(Desk::restart);
    assert!(desks[0].roster.may_vote(), "by itself it cannot know");
    talk(&mut desks, &[1, 3]);
    assert!(!desks[2].roster.hears(NodeId(1)));
    assert!(desks[0].stopped.clone().unwrap().contains("is an older copy: n3 has seen n1"));
}

/// Seed 32001342 of the simulator: before it was introduced to one who knew more, the copy had written as much as it lacked.
#[test]
fn an_older_copy_is_noticed_however_much_it_has_written_since() {
    let mut desks = with_an_older_copy();
    desks[0].restart();
    desks[0].life.log_end += 20;
    talk(&mut desks, &[1, 3]);
    assert!(desks[0].stopped.clone().unwrap().contains("is an older copy: n3 has seen n1"));
}

/// It writes as much as it lacked while nobody who knew more hears it, and is started again.
#[test]
fn an_older_copy_is_noticed_however_often_it_was_started_since() {
    for starts in 1..5 {
        let mut desks = with_an_older_copy();
        for _ in 0..starts {
            desks[0].restart();
            desks[0].settle();
            desks[0].life.log_end += 20;
        }
        talk(&mut desks, &[1, 3]);
        let reason = desks[0].stopped.clone().unwrap();
        assert!(
            reason
                .contains("is an older copy: n3 has seen n1 at its start 1 with 14 log frames, here start 2"),
            "{reason}"
        );
        assert!(!desks[2].roster.hears(NodeId(1)));
    }
}

/// The copy lacks a start that was noted. How far both have come tells nothing: neither had written anything then.
#[test]
fn a_copy_that_was_not_through_a_start_is_noticed() {
    let mut desks = with_a_copy_of_the_start_before();
    for _ in 0..3 {
        desks[0].restart();
        desks[0].settle();
        desks[0].life.log_end += 100;
    }
    talk(&mut desks, &[1, 2]);
    let reason = desks[0].stopped.clone().unwrap();
    assert!(
        reason.contains("n2 has heard another one at its start 2, and this one, now at its start 4"),
        "{reason}"
    );
}

/// Whoever was away for longer than anybody counts takes the right store for what it is.
#[test]
fn a_node_may_start_oftener_than_anybody_remembers() {
    let mut desks = cluster(3);
    talk(&mut desks, &[1, 2, 3]);
    for _ in 0..OPENINGS_MAX + 10 {
        desks[0].restart();
        desks[0].settle();
    }
    assert_eq!(desks[0].roster.earlier.len(), OPENINGS_MAX);
    talk(&mut desks, &[1, 2]);
    assert!(desks[1].roster.hears(NodeId(1)) && desks[0].stopped.is_none());
    assert_eq!(desks[0].roster.take_records(CommitId(u64::MAX), true).len(), 2 + 1 + OPENINGS_MAX + 1);
}

/// A copy that a supervisor starts again each time it is refused comes to more starts than anybody counts, and to a longer log.
#[test]
fn a_copy_that_is_started_for_ever_is_refused_for_ever() {
    let mut desks = with_an_older_copy();
    for start in 0..2 * OPENINGS_MAX {
        desks[0].restart();
        talk(&mut desks, &[1, 3]);
        assert!(desks[0].stopped.is_some(), "start {start}");
        assert!(!desks[2].roster.hears(NodeId(1)), "start {start}");
        if start % 100 == 0 {
            desks[2].restart();
        }
    }
    assert!(desks[0].life.log_end > 1_000);
}

/// R5: a life that the disk may forget is told to nobody.
#[test]
fn nobody_hears_of_a_life_before_it_is_written_down() {
    let mut desk = Desk::new(1, 3, 0);
    let heard_of = |desk: &mut Desk| desk.roster.take_outputs().len();
    desk.roster.on_link(NodeId(2), true);
    desk.tick();
    assert_eq!(heard_of(&mut desk), 0);
    assert_eq!(desk.roster.take_records(CommitId(1), false).len(), 1);
    desk.tick();
    assert_eq!(heard_of(&mut desk), 0);
    desk.roster.durable(CommitId(1));
    assert_eq!(heard_of(&mut desk), 2);
}

/// Whoever acknowledges something together with a life must know of that life for ever: one that was killed at once would else take an
/// older copy for the right one.
#[test]
fn nobody_is_heard_before_its_life_is_noted_durably() {
    let mut desks = cluster(3);
    talk(&mut desks, &[1, 2, 3]);
    desks[0].restart();
    let said = desks[0].settle();
    let (.., introduction) = said.iter().find(|(_, to, _)| *to == NodeId(2)).cloned().unwrap();
    desks[1].roster.on_link(NodeId(1), true);
    desks[1].roster.on_said(NodeId(1), introduction.clone());
    assert!(!desks[1].roster.hears(NodeId(1)));
    let before = desks[1].disk.len();
    let answers = desks[1].settle();
    assert!(
        desks[1].roster.hears(NodeId(1)) && desks[1].disk.len() == before + 1,
        "within no time that passes"
    );
    assert!(answers.iter().any(|(_, to, said)| *to == NodeId(1) && matches!(said, Introduction::Noted(_))));
    // The same life over another link needs no disk.
    desks[1].roster.on_link(NodeId(1), true);
    assert!(!desks[1].roster.hears(NodeId(1)));
    desks[1].roster.on_said(NodeId(1), introduction);
    assert!(desks[1].roster.hears(NodeId(1)));
}

/// What no correct node says is not taken: openings that go back, or more of them than anybody keeps.
#[test]
fn openings_that_cannot_be_are_not_believed() {
    let at = |incarnation, log_end| Opening { incarnation, mark: 1, log_end };
    let life = Life { store: store(2), opening: at(9, 50), log_end: 60, is_admitted: true };
    let too_many = (0..=OPENINGS_MAX as u64).map(|start| at(start, 0)).collect();
    let last = Life { opening: at(2_000, 50), ..life };
    let goes_back = [vec![at(9, 1)], vec![at(4, 1), at(3, 1)], vec![at(4, 40), at(5, 30)], vec![at(4, 51)]];
    for (life, earlier) in goes_back.map(|earlier| (life, earlier)).into_iter().chain([(last, too_many)]) {
        let mut desk = Desk::new(1, 3, 0);
        desk.roster.on_said(NodeId(2), Introduction::Introduce { life, earlier });
        assert!(!desk.roster.hears(NodeId(2)) && desk.roster.known.is_empty());
    }
    assert!(is_sound(&life, &[at(4, 40), at(5, 40)]));
}

#[test]
fn two_copies_that_were_opened_equally_often_are_told_apart() {
    let mut desks = with_a_copy_of_the_start_before();
    desks[0].restart();
    talk(&mut desks, &[1, 2]);
    assert!(
        desks[0]
            .stopped
            .clone()
            .unwrap()
            .contains("two copies of this data directory have run: n2 has heard")
    );
}

#[test]
fn what_comes_late_accuses_nobody() {
    let mut desks = cluster(3);
    talk(&mut desks, &[1, 2, 3]);
    let old = desks[0].life;
    desks[0].life.log_end += 5;
    desks[0].roster.on_logged();
    talk(&mut desks, &[1, 2, 3]);
    // Of the same life, and later of the one before.
    desks[1].roster.on_said(NodeId(1), introduce(old));
    desks[0].restart();
    talk(&mut desks, &[1, 2, 3]);
    desks[1].roster.on_said(NodeId(1), introduce(old));
    talk(&mut desks, &[1, 2, 3]);
    assert!(desks[0].stopped.is_none() && desks[1].roster.hears(NodeId(1)));
    desks[0].restart();
    talk(&mut desks, &[1, 2, 3]);
    assert!(desks[0].stopped.is_none() && desks[1].roster.hears(NodeId(1)));
}

#[test]
fn where_nodes_may_lie_one_accuser_stops_nobody() {
    let mut desks: Vec<Desk> = (1..=4).map(|node| Desk::new(node, 4, 1)).collect();
    talk(&mut desks, &[1, 2, 3, 4]);
    let told = desks[0].life;
    let known = Life { store: store(77), ..told };
    let accuse = |desks: &mut [Desk], from| {
        desks[0].roster.on_said(NodeId(from), Introduction::Mistaken { told, known });
        desks[0].settle();
    };
    accuse(&mut desks, 2);
    accuse(&mut desks, 2);
    assert_eq!(desks[0].stopped, None);
    accuse(&mut desks, 3);
    assert!(desks[0].stopped.is_some());
}

#[test]
fn a_link_must_be_introduced_anew_and_strangers_count_for_nothing() {
    let mut desks = cluster(3);
    desks[0].settle();
    let mine = desks[0].life;
    desks[0].roster.on_said(NodeId(9), Introduction::Noted(mine));
    desks[0].roster.on_said(NodeId(9), introduce(Life::default()));
    assert!(desks[0].settle().is_empty() && !desks[0].roster.hears(NodeId(9)));
    talk(&mut desks, &[1, 2, 3]);
    assert!(desks[0].roster.hears(NodeId(2)));
    desks[0].roster.on_link(NodeId(2), true);
    assert!(!desks[0].roster.hears(NodeId(2)));
    assert!(matches!(desks[0].settle()[..], [(_, NodeId(2), Introduction::Introduce { .. })]));
}

/// n1 finds an empty disk, and hears first what a stranger under the name of n3 said before it was refused.
#[test]
fn a_node_that_is_new_itself_accuses_nobody() {
    let mut desks = cluster(3);
    talk(&mut desks, &[1, 2, 3]);
    desks[0] = Desk { life: Life { store: store(99), ..desks[0].life }, ..Desk::new(1, 3, 0) };
    desks[0].restart();
    let late = Life { store: store(77), ..desks[2].life };
    desks[0].roster.on_said(NodeId(3), introduce(late));
    talk(&mut desks, &[1, 3]);
    assert_eq!(desks[2].stopped, None);
    assert!(!desks[0].roster.may_vote());
}

/// n2 was away when the store of n3 was noted by enough others, and meets an empty disk under that name first.
#[test]
fn a_store_that_was_admitted_takes_its_name_back() {
    let mut desks = cluster(5);
    talk(&mut desks, &[1, 3, 4, 5]);
    assert!(desks[2].roster.may_vote());
    let empty = Desk { life: Life { store: store(99), ..desks[2].life }, ..Desk::new(3, 5, 0) };
    let own = std::mem::replace(&mut desks[2], empty);
    desks[2].restart();
    talk(&mut desks, &[2, 3]);
    assert_eq!(desks[1].roster.known[&NodeId(3)].store, store(99));
    assert!(!desks[2].roster.may_vote());

    desks[2] = own;
    desks[2].restart();
    talk(&mut desks, &[2, 3]);
    assert!(desks[1].roster.hears(NodeId(3)) && desks[2].stopped.is_none());

    // For good: not an empty one again, after a restart, nor one that claims to have been admitted as well.
    desks[1].restart();
    for is_admitted in [false, true] {
        let told = Life { store: store(99), is_admitted, ..desks[2].life };
        desks[1].roster.on_said(NodeId(3), introduce(told));
        assert!(!desks[1].roster.hears(NodeId(3)));
    }
    talk(&mut desks, &[1, 2, 3]);
    assert!(desks[1].roster.hears(NodeId(3)));
}

/// What an earlier message of the same store did not know yet takes nothing back.
#[test]
fn who_was_admitted_once_stays_so() {
    let mut desks = cluster(3);
    let before = desks[2].life;
    talk(&mut desks, &[1, 2, 3]);
    desks[0].roster.on_said(NodeId(3), introduce(before));
    let other = Life { store: store(99), is_admitted: true, ..before };
    desks[0].roster.on_said(NodeId(3), introduce(other));
    assert_eq!(desks[0].roster.known[&NodeId(3)].store, store(3));
}

#[test]
fn what_replaces_the_log_holds_all_that_is_known() {
    let mut desks = cluster(3);
    talk(&mut desks, &[1, 2, 3]);
    let desk = &mut desks[0];
    let whole = desk.roster.take_records(CommitId(1_000), true);
    assert_eq!(whole.len(), 4);
    // Where the log was not replaced in the end, all of it stands there again.
    desk.disk.extend(whole.clone());
    desk.restart();
    assert_eq!(desk.roster.earlier.len(), 1);
    desk.disk = whole;
    desk.restart();
    assert!(desk.roster.may_vote());
    assert_eq!((desk.roster.known.len(), desk.roster.earlier.len()), (2, 1));
}

/// A liar that says another life with every message makes no more than one record in a second, and no two lines in the log.
#[test]
fn notes_of_one_node_are_bounded_in_time() {
    let mut desk = Desk::new(1, 3, 0);
    desk.tick();
    desk.settle();
    let before = desk.disk.len();
    let opening = |incarnation| Opening { incarnation, mark: incarnation, log_end: incarnation };
    for incarnation in 1..1_000 {
        let life =
            Life { store: store(2), opening: opening(incarnation), log_end: incarnation, is_admitted: false };
        let earlier = (1..incarnation).map(opening).collect();
        desk.roster.on_said(NodeId(2), Introduction::Introduce { life, earlier });
    }
    desk.settle();
    desk.tick();
    desk.settle();
    // Of the last one a note, and of one that was refused.
    assert!(desk.disk.len() - before <= 3, "{}", desk.disk.len() - before);
}
