//! Which nodes can be asked: who is connected, who is dialled, who was of no use lately, and who is silent.
//!
//! A node that is down does not refuse, it is silent. Three rules keep calls from waiting for it:
//!
//! * one dial at a time for each node, however many wait for it, and between dials a rest that is longer after more failures and
//!   different for every client. Callers lose their patience before the dial does: where hundreds of clients begin at once a handshake may
//!   take seconds, and to begin it anew each time would connect none;
//! * a node that did not answer, or knew no leader, is asked after the others for a while;
//! * a living node says of every packet that it has arrived. One from which nothing at all came for some round trips after something
//!   was sent is given up, and its connection with it ([`Links::judge`]).

use super::{CallId, Heard, LinkId};
use crate::ring::NodeId;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// A node that did not answer, or knew no leader, is asked last for this long.
const AVOID_FOR: Duration = Duration::from_millis(1_000);

/// A node that does not even say within this time that something has arrived is given up. On long links it is a few round trips.
const SILENCE: Duration = Duration::from_millis(150);
const SILENT_ROUND_TRIPS: u32 = 4;

/// So is one that is quiet for so many times that long while something is not answered: connections are kept alive more often.
const QUIET_TIMES_MAX: u32 = 3;

/// A dial that hears nothing for so long is given up; the longest after several failures, because whoever has too much to do is
/// silent as well.
const DIAL_SILENCE_MIN: Duration = Duration::from_millis(600);
const DIAL_SILENCE_DOUBLINGS: u32 = 2;

/// The longest rest before the second dial, and the longest of all.
const REST_MIN: Duration = Duration::from_millis(100);
const REST_DOUBLINGS: u32 = 2;

/// What is known of a node that something was sent to.
#[derive(Clone, Copy, Debug)]
struct Probe {
    /// When the node is looked at next.
    due: Duration,
    /// What had come from it before. None until that is told.
    heard: Option<Heard>,
    /// Since when something is on its way that was sent after that.
    sent_at: Option<Duration>,
    /// How often nothing new had come.
    quiet: u32,
}

#[derive(Debug, Default)]
enum State {
    #[default]
    Idle,
    Dialling,
    Open {
        link: LinkId,
        asked: BTreeMap<u64, CallId>,
        probe: Option<Probe>,
        /// It has said something after it greeted.
        has_spoken: bool,
    },
}

#[derive(Debug, Default)]
struct Link {
    state: State,
    /// Who waits for the dial.
    waiting: BTreeSet<CallId>,
    /// Dials in a row that came to nothing: connections that ended before the node said anything are such, too.
    failures: u32,
    /// Whoever answered the last dial does not want this client.
    is_denied: bool,
    avoid_until: Duration,
    last_id: u64,
}

/// What a look at a node came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It lives, or nobody waits for it. It is looked at again then.
    Lives(Option<Duration>),
    /// It is given up.
    Dead,
}

/// A dial that is to begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Dial {
    pub(super) rest: Duration,
    pub(super) silence: Duration,
}

/// All nodes.
#[derive(Debug)]
pub(super) struct Links(BTreeMap<NodeId, Link>);

impl Links {
    pub(super) fn new(nodes: impl Iterator<Item = NodeId>) -> Self {
        Self(nodes.map(|node| (node, Link::default())).collect())
    }

    pub(super) fn knows(&self, node: NodeId) -> bool {
        self.0.contains_key(&node)
    }

    pub(super) fn is_open(&self, node: NodeId) -> bool {
        matches!(self.0.get(&node), Some(Link { state: State::Open { .. }, .. }))
    }

    pub(super) fn is_dialled(&self, node: NodeId) -> bool {
        matches!(self.0.get(&node), Some(Link { state: State::Dialling, .. }))
    }

    /// Whether the node was of no use: a moment ago, or when it was dialled last.
    pub(super) fn failed_lately(&self, node: NodeId, now: Duration) -> bool {
        let is_away = |link: &Link| link.failures > 0 && !matches!(link.state, State::Open { .. });
        self.0.get(&node).is_none_or(|link| now < link.avoid_until || is_away(link))
    }

    /// The node was of no use.
    pub(super) fn avoid(&mut self, node: NodeId, now: Duration) {
        if let Some(link) = self.0.get_mut(&node) {
            link.avoid_until = now + AVOID_FOR;
        }
    }

    /// Nodes in the order in which they should be asked: those that were of no use lately last, then whoever was asked just before,
    /// and of the others those to which there is a connection first. Among those of equal promise the order stays.
    pub(super) fn by_promise(
        &self,
        nodes: &[NodeId],
        asked_before: Option<NodeId>,
        is_avoided: impl Fn(NodeId) -> bool,
    ) -> Vec<NodeId> {
        let mut nodes = nodes.to_vec();
        nodes.sort_by_key(|node| (is_avoided(*node), asked_before == Some(*node), !self.is_open(*node)));
        nodes
    }

    /// A dial begins, if the node is neither connected nor dialled. Chance decides how long it rests before.
    pub(super) fn dial(&mut self, node: NodeId, chance: u32) -> Option<Dial> {
        let link = self.0.get_mut(&node).filter(|link| matches!(link.state, State::Idle))?;
        link.state = State::Dialling;
        Some(Dial { rest: rest(link.failures, chance), silence: silence(link.failures) })
    }

    /// A call waits for the dial.
    pub(super) fn wait(&mut self, node: NodeId, call: CallId) {
        let link = self.0.get_mut(&node).expect("calls wait for nodes of the cluster file");
        assert!(!matches!(link.state, State::Open { .. }), "nobody waits for what is there");
        link.waiting.insert(call);
    }

    /// A call does not wait for the dial any more.
    pub(super) fn leave(&mut self, node: NodeId, call: CallId) {
        if let Some(link) = self.0.get_mut(&node) {
            link.waiting.remove(&call);
        }
    }

    /// The connection is open; who waited for it.
    pub(super) fn opened(&mut self, node: NodeId, link: LinkId) -> BTreeSet<CallId> {
        let Some(of_node) = self.0.get_mut(&node) else { return BTreeSet::new() };
        (of_node.is_denied, of_node.avoid_until) = (false, Duration::ZERO);
        of_node.state = State::Open { link, asked: BTreeMap::new(), probe: None, has_spoken: false };
        std::mem::take(&mut of_node.waiting)
    }

    /// The node has said something.
    pub(super) fn spoke(&mut self, node: NodeId) {
        if let Some(Link { state: State::Open { has_spoken, .. }, failures, .. }) = self.0.get_mut(&node) {
            (*has_spoken, *failures) = (true, 0);
        }
    }

    /// The dial has failed; who waited for it.
    pub(super) fn unreachable(&mut self, node: NodeId, is_denied: bool, now: Duration) -> BTreeSet<CallId> {
        let Some(link) = self.0.get_mut(&node) else { return BTreeSet::new() };
        link.failures = link.failures.saturating_add(1);
        (link.state, link.is_denied, link.avoid_until) = (State::Idle, is_denied, now + AVOID_FOR);
        std::mem::take(&mut link.waiting)
    }

    /// Whether whoever answered the last dial does not want this client.
    pub(super) fn is_denied(&self, node: NodeId) -> bool {
        self.0.get(&node).is_some_and(|link| link.is_denied)
    }

    /// The connection to a node, if there is one.
    pub(super) fn link(&self, node: NodeId) -> Option<LinkId> {
        match self.0.get(&node)?.state {
            State::Open { link, .. } => Some(link),
            State::Idle | State::Dialling => None,
        }
    }

    /// The connection is gone; the requests that were not answered, and whose they were.
    pub(super) fn lost(&mut self, node: NodeId, now: Duration) -> Vec<(u64, CallId)> {
        let Some(link) = self.0.get_mut(&node) else { return Vec::new() };
        let State::Open { asked, has_spoken, .. } = std::mem::take(&mut link.state) else {
            return Vec::new();
        };
        if !has_spoken {
            link.failures = link.failures.saturating_add(1);
        }
        link.avoid_until = now + AVOID_FOR;
        asked.into_iter().collect()
    }

    /// A number for a request that nobody waits for; none if there is no connection.
    pub(super) fn cast(&mut self, node: NodeId) -> Option<u64> {
        let link = self.0.get_mut(&node).filter(|link| matches!(link.state, State::Open { .. }))?;
        link.last_id += 1;
        Some(link.last_id)
    }

    /// A number for a call's request; none if there is no connection. Whether what has come from the node must be told.
    pub(super) fn ask(&mut self, node: NodeId, call: CallId, now: Duration) -> Option<(u64, bool)> {
        let link = self.0.get_mut(&node)?;
        let State::Open { asked, probe, .. } = &mut link.state else { return None };
        link.last_id += 1;
        asked.insert(link.last_id, call);
        let is_first = probe.is_none();
        match probe {
            Some(probe) => _ = probe.sent_at.get_or_insert(now),
            None => *probe = Some(Probe { due: now + SILENCE, heard: None, sent_at: Some(now), quiet: 0 }),
        }
        Some((link.last_id, is_first))
    }

    /// The request with this number is answered, or nobody waits for it any more: whose it was.
    pub(super) fn answered(&mut self, node: NodeId, id: u64) -> Option<CallId> {
        match &mut self.0.get_mut(&node)?.state {
            State::Open { asked, .. } => asked.remove(&id),
            _ => None,
        }
    }

    /// Some request is answered, in tests of the tests: whose it was.
    pub(super) fn answered_any(&mut self, node: NodeId) -> Option<CallId> {
        match &mut self.0.get_mut(&node)?.state {
            State::Open { asked, .. } => asked.pop_first().map(|(_, call)| call),
            _ => None,
        }
    }

    /// Whether somebody waits for an answer of the node.
    pub(super) fn is_waited_for(&self, node: NodeId) -> bool {
        let state = self.0.get(&node).map(|link| &link.state);
        matches!(state, Some(State::Open { asked, .. }) if !asked.is_empty())
    }

    /// Nobody waits for the node any more: it is not looked at until something is sent to it.
    pub(super) fn rest(&mut self, node: NodeId) {
        if let Some(Link { state: State::Open { probe, .. }, .. }) = self.0.get_mut(&node) {
            *probe = None;
        }
    }

    /// What has come from the node so far, when it was to be looked at.
    pub(super) fn judge(&mut self, node: NodeId, heard: Heard, now: Duration) -> Verdict {
        let is_waited_for = self.is_waited_for(node);
        let Some(Link { state: State::Open { probe, .. }, .. }) = self.0.get_mut(&node) else {
            return Verdict::Lives(None);
        };
        let Some(before) = *probe else { return Verdict::Lives(None) };
        let silence = SILENCE.max(heard.round_trip * SILENT_ROUND_TRIPS);
        let mut next = Probe { due: now + silence, heard: Some(heard), sent_at: None, quiet: 0 };
        let Some(known) = before.heard else {
            // The first look, at once when something was sent.
            next.sent_at = before.sent_at;
            *probe = Some(next);
            return Verdict::Lives(Some(next.due));
        };
        if !is_waited_for {
            *probe = None;
            return Verdict::Lives(None);
        }
        // Whoever comes far too late has too much to do itself, and what came from the node may wait to be looked at.
        let is_late = now.saturating_sub(before.due) >= SILENCE;
        if heard.packets == known.packets && !is_late {
            match before.sent_at {
                Some(at) if now >= at + silence => return Verdict::Dead,
                Some(at) => (next.due, next.sent_at, next.quiet) = (at + silence, Some(at), before.quiet),
                None if before.quiet + 1 >= QUIET_TIMES_MAX => return Verdict::Dead,
                None => next.quiet = before.quiet + 1,
            }
        }
        *probe = Some(next);
        Verdict::Lives(Some(next.due))
    }
}

/// How long a dial may hear nothing after so many failures.
fn silence(failures: u32) -> Duration {
    DIAL_SILENCE_MIN * (1 << failures.min(DIAL_SILENCE_DOUBLINGS))
}

/// How long to rest before a dial after so many failures, as chance wills it.
fn rest(failures: u32, chance: u32) -> Duration {
    if failures == 0 {
        return Duration::ZERO;
    }
    let longest = REST_MIN * (1 << (failures - 1).min(REST_DOUBLINGS));
    longest.mul_f64(f64::from(chance) / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: NodeId = NodeId(2);

    fn millis(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    fn heard(packets: u64) -> Heard {
        Heard { packets, round_trip: millis(1) }
    }

    fn links() -> Links {
        Links::new((1..=3).map(NodeId))
    }

    fn connected() -> Links {
        let mut links = links();
        links.dial(NODE, 0).unwrap();
        links.opened(NODE, LinkId(1));
        links
    }

    /// A node that is cut off from the others answers well and knows nothing: an open connection to it must not draw all requests.
    #[test]
    fn whoever_was_of_no_use_is_asked_after_those_that_were_not_asked_yet() {
        let (mut links, nodes) = (connected(), [NodeId(1), NodeId(2), NodeId(3)]);
        let order = |links: &Links, before: Option<NodeId>, at: u64| {
            links.by_promise(&nodes, before, |node| links.failed_lately(node, millis(at)))
        };
        assert_eq!(order(&links, None, 0)[0], NODE);
        assert_eq!(order(&links, Some(NODE), 0), [NodeId(1), NodeId(3), NODE]);
        links.avoid(NODE, millis(0));
        assert_eq!(order(&links, None, 999), [NodeId(1), NodeId(3), NODE]);
        assert_eq!(order(&links, None, 1_000)[0], NODE);
        nodes.iter().for_each(|node| links.avoid(*node, millis(1_000)));
        assert_eq!(order(&links, None, 1_500)[0], NODE, "an open one, if all were of no use");
    }

    /// Else it would be dialled again and again without a rest.
    #[test]
    fn a_node_that_greets_and_hangs_up_was_not_reached() {
        let mut links = connected();
        links.lost(NODE, millis(0));
        assert_eq!(links.dial(NODE, u32::MAX).map(|dial| dial.rest), Some(millis(100)));
        links.opened(NODE, LinkId(2));
        links.spoke(NODE);
        links.lost(NODE, millis(0));
        assert_eq!(links.dial(NODE, u32::MAX).map(|dial| dial.rest), Some(Duration::ZERO));
    }

    #[test]
    fn one_dial_at_a_time_that_all_wait_for() {
        let mut links = links();
        assert!(links.dial(NODE, 0).is_some() && links.dial(NODE, 0).is_none());
        (1..=3).for_each(|call| links.wait(NODE, CallId(call)));
        links.leave(NODE, CallId(2));
        assert_eq!(
            links.unreachable(NODE, false, millis(0)).into_iter().collect::<Vec<_>>(),
            [CallId(1), CallId(3)]
        );
        assert_eq!(links.dial(NODE, u32::MAX), Some(Dial { rest: millis(100), silence: millis(1_200) }));
        assert!(links.opened(NODE, LinkId(1)).is_empty() && links.dial(NODE, 0).is_none());
    }

    #[test]
    fn dials_are_further_apart_and_more_patient_after_failures() {
        assert_eq!(rest(0, u32::MAX), Duration::ZERO, "the first is made at once");
        let longest: Vec<u128> =
            [1, 2, 3, 4, 1_000].map(|failures| rest(failures, u32::MAX).as_millis()).into();
        assert_eq!(longest, [100, 200, 400, 400, 400]);
        assert!(rest(3, u32::MAX / 2) < rest(3, u32::MAX), "not all at the same time");
        let silences: Vec<u128> = [0, 1, 2, u32::MAX].map(|failures| silence(failures).as_millis()).into();
        assert_eq!(silences, [600, 1_200, 2_400, 2_400]);
    }

    #[test]
    fn a_node_that_does_not_even_say_that_something_arrived_is_given_up() {
        let mut links = connected();
        assert_eq!(links.ask(NODE, CallId(1), millis(0)), Some((1, true)));
        assert_eq!(links.judge(NODE, heard(5), millis(0)), Verdict::Lives(Some(millis(150))));
        assert_eq!(links.ask(NODE, CallId(2), millis(10)), Some((2, false)), "it is looked at already");
        assert_eq!(links.judge(NODE, heard(5), millis(150)), Verdict::Dead);
        assert_eq!(links.lost(NODE, millis(150)), [(1, CallId(1)), (2, CallId(2))]);
        assert!(links.failed_lately(NODE, millis(151)) && !links.is_open(NODE));
    }

    #[test]
    fn a_node_that_takes_its_time_to_answer_lives_while_it_is_heard() {
        let mut links = connected();
        links.ask(NODE, CallId(1), millis(0)).unwrap();
        links.judge(NODE, heard(5), millis(0));
        // It said that the request has arrived, and is kept alive from then on.
        for look in 1..20 {
            let due = millis(150 * (look + 1));
            assert_eq!(links.judge(NODE, heard(5 + look), millis(150 * look)), Verdict::Lives(Some(due)));
        }
        // Then it is quiet: nothing was sent that it would have to acknowledge.
        assert!(matches!(links.judge(NODE, heard(24), millis(3_000)), Verdict::Lives(_)));
        assert!(matches!(links.judge(NODE, heard(24), millis(3_150)), Verdict::Lives(_)));
        assert_eq!(links.judge(NODE, heard(24), millis(3_300)), Verdict::Dead);
    }

    #[test]
    fn what_was_sent_a_moment_ago_is_given_time_to_arrive() {
        let mut links = connected();
        links.ask(NODE, CallId(1), millis(0)).unwrap();
        links.judge(NODE, heard(5), millis(0));
        assert_eq!(links.judge(NODE, heard(6), millis(150)), Verdict::Lives(Some(millis(300))));
        links.ask(NODE, CallId(2), millis(290)).unwrap();
        assert_eq!(links.judge(NODE, heard(6), millis(300)), Verdict::Lives(Some(millis(440))));
        assert_eq!(links.judge(NODE, heard(6), millis(440)), Verdict::Dead);
    }

    #[test]
    fn whoever_looks_far_too_late_judges_nobody() {
        let mut links = connected();
        links.ask(NODE, CallId(1), millis(0)).unwrap();
        links.judge(NODE, heard(5), millis(0));
        assert_eq!(links.judge(NODE, heard(5), millis(300)), Verdict::Lives(Some(millis(450))));
    }

    #[test]
    fn a_node_that_nobody_waits_for_is_not_judged() {
        let mut links = connected();
        let (id, _) = links.ask(NODE, CallId(1), millis(0)).unwrap();
        links.judge(NODE, heard(5), millis(0));
        assert_eq!(links.answered(NODE, id), Some(CallId(1)));
        assert_eq!(links.answered(NODE, id), None, "once");
        assert_eq!(links.judge(NODE, heard(5), millis(150)), Verdict::Lives(None));
        assert_eq!(links.ask(NODE, CallId(2), millis(200)), Some((2, true)), "it is looked at anew");
    }
}
