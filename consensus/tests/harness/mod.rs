//! A cluster of replicas in one thread: a network that is a bag of messages, disks that lose what was not flushed,
//! clients that propose and read. The caller decides what happens next; this harness only carries it out and watches
//! what must hold between replicas.
#![allow(dead_code, clippy::unwrap_used, reason = "test code, of which each file uses a part")]

pub(crate) mod alone;
pub(crate) mod links;
#[path = "../random/mod.rs"]
mod random;
pub(crate) mod rules;
pub(crate) mod schedule;

use bytes::Bytes;
pub(crate) use random::Random;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use tetrachord_consensus::paxos::{Ballot, Effect, Message, Own, ProposeError, Reason, Recovered, Replica};
use tetrachord_consensus::{
    Decided, Engine, Epoch, Event, GroupConfig, LogBase, Options, PersistToken, Proposal, Quorums, ReadId,
    ReplicaId, Retain, Slot, Ticks, Timestamp, codec,
};

/// A message under way.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Envelope {
    pub(crate) from: ReplicaId,
    pub(crate) to: ReplicaId,
    pub(crate) message: Bytes,
}

/// What one replica's machine holds.
#[derive(Clone, Default)]
pub(crate) struct Node {
    pub(crate) replica: Option<Replica>,
    /// Durable write-ahead records.
    pub(crate) disk: Vec<Bytes>,
    /// What they say.
    pub(crate) durable: Recovered,
    /// Written, not durable.
    pub(crate) pending: VecDeque<(Vec<Bytes>, PersistToken)>,
    /// Messages that wait for a token.
    pub(crate) gated: Vec<(Envelope, PersistToken)>,
    pub(crate) durable_token: PersistToken,
    /// The state machine: everything applied.
    pub(crate) applied: Vec<Decided>,
    /// How much of it is durable.
    pub(crate) durable_applied: usize,
    /// Values proposed here that nobody has been told about yet.
    pub(crate) proposed: BTreeMap<Slot, Bytes>,
    /// Reads asked here: what had been acknowledged when they arrived.
    pub(crate) reads: BTreeMap<ReadId, Slot>,
    pub(crate) ready: Vec<(ReadId, Slot)>,
    pub(crate) fatal: Option<String>,
}

impl Node {
    /// Records reach the disk.
    fn keep(&mut self, records: Vec<Bytes>) {
        for record in records {
            self.durable.replay_one(self.disk.len(), &record).expect("a replica writes what it can read");
            self.disk.push(record);
        }
    }

    /// Whether the disk holds the entry at this position, accepted in this ballot or a later one.
    fn holds(&self, base: LogBase, ballot: Ballot) -> bool {
        let log = &self.durable.log;
        let is_there = log.base().slot >= base.slot || log.position(base.slot) == Some(base);
        is_there && self.durable.accepted >= ballot
    }
}

pub(crate) const YEAR_MICROS: u64 = 365 * 24 * 3600 * 1_000_000;

/// A state on its way to a replica.
#[derive(Clone)]
pub(crate) struct Transfer {
    from: usize,
    to: usize,
    state: Vec<Decided>,
}

/// What a watcher from outside found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Violation(pub(crate) String);

pub(crate) struct Cluster {
    pub(crate) nodes: Vec<Node>,
    pub(crate) network: Vec<Envelope>,
    /// Copies of messages that come again much later.
    pub(crate) late: Vec<Envelope>,
    pub(crate) config: GroupConfig,
    pub(crate) options: Options,
    pub(crate) now: u64,
    /// How far each clock is from the right time, in microseconds.
    pub(crate) clock_offsets: Vec<i64>,
    /// The latest log time that is allowed, and when that was so.
    latest: (u64, u64),
    pub(crate) base_of: BTreeMap<Slot, LogBase>,
    pub(crate) leaders: BTreeMap<String, ReplicaId>,
    pub(crate) acknowledged: Slot,
    pub(crate) reads_served: usize,
    pub(crate) snapshots: usize,
    /// Whether snapshots take their time, until [`Self::finish_transfer`].
    pub(crate) is_slow: bool,
    pub(crate) transfers: Vec<Transfer>,
    pub(crate) persists: usize,
    pub(crate) cut: BTreeSet<(u8, u8)>,
    /// Replicas whose disks take nothing.
    pub(crate) hung: BTreeSet<usize>,
    pub(crate) violations: Vec<Violation>,
    pub(crate) trace: Option<Vec<String>>,
    next_read: u64,
}

impl Cluster {
    pub(crate) fn new(n: usize, options: Options) -> Self {
        Self::with_quorums(Quorums::majority(n).unwrap(), options)
    }

    pub(crate) fn with_quorums(quorums: Quorums, options: Options) -> Self {
        let mut cluster = Self::stopped(vec![Node::default(); quorums.n()], quorums, options);
        for index in 0..quorums.n() {
            cluster.start(index);
        }
        cluster
    }

    /// Machines that hold something, on which nothing runs yet.
    pub(crate) fn stopped(nodes: Vec<Node>, quorums: Quorums, options: Options) -> Self {
        let config = GroupConfig { epoch: Epoch(1), quorums };
        let latest = nodes.iter().map(|node| node.durable.log.last().time.0).max().unwrap_or(0);
        Self {
            nodes,
            network: Vec::new(),
            late: Vec::new(),
            config,
            options,
            now: 1,
            clock_offsets: vec![0; quorums.n()],
            latest: (latest, 1),
            base_of: BTreeMap::new(),
            leaders: BTreeMap::new(),
            acknowledged: Slot::ZERO,
            reads_served: 0,
            snapshots: 0,
            is_slow: false,
            transfers: Vec::new(),
            persists: 0,
            cut: BTreeSet::new(),
            hung: BTreeSet::new(),
            violations: Vec::new(),
            trace: None,
            next_read: 0,
        }
    }

    pub(crate) fn replica(&self, index: usize) -> &Replica {
        self.nodes[index].replica.as_ref().expect("running")
    }

    pub(crate) fn is_up(&self, index: usize) -> bool {
        self.nodes[index].replica.is_some()
    }

    /// Starts a replica from what its disk holds.
    pub(crate) fn start(&mut self, index: usize) {
        let node = &mut self.nodes[index];
        assert!(node.replica.is_none());
        node.applied.truncate(node.durable_applied);
        let applied = node.applied.last().map_or(LogBase::default(), |decided| decided.base);
        let me = ReplicaId(u8::try_from(index).unwrap());
        let options =
            Options { seed: self.options.seed + 31 * index as u64 + self.now, ..self.options.clone() };
        match Replica::recover(me, self.config.clone(), options, &node.disk, applied) {
            Ok(replica) => node.replica = Some(replica),
            Err(error) => self.violations.push(Violation(format!("r{index} cannot recover: {error}"))),
        }
        self.tick(index);
    }

    /// Ends a replica at once. Of the commits under way, the first `kept` reach the disk.
    pub(crate) fn crash(&mut self, index: usize, kept: usize) {
        let of_node = |transfer: &Transfer| transfer.from == index || transfer.to == index;
        let (ended, others) = std::mem::take(&mut self.transfers).into_iter().partition(of_node);
        self.transfers = others;
        for Transfer { from, to, .. } in ended {
            // Who gave it gives it up, sooner or later.
            self.act(from, |replica| replica.snapshot_ended(ReplicaId(to as u8)));
        }
        let node = &mut self.nodes[index];
        node.replica = None;
        let kept: Vec<Bytes> = node.pending.drain(..).take(kept).flat_map(|(records, _)| records).collect();
        node.keep(kept);
        node.pending.clear();
        node.gated.clear();
        node.proposed.clear();
        node.reads.clear();
        node.durable_token = PersistToken(0);
    }

    pub(crate) fn tick(&mut self, index: usize) {
        let (now, wall) = (Ticks(self.now), self.wall(index));
        self.step(index, Event::Tick { now, wall });
    }

    /// What this replica's clock says.
    pub(crate) fn wall(&self, index: usize) -> Timestamp {
        let right = 100 * YEAR_MICROS + self.now * 1000;
        Timestamp(right.saturating_add_signed(self.clock_offsets[index]))
    }

    /// The latest log time that is allowed: what a majority of all clocks has reached, or had reached once and what passed since.
    fn latest_time(&mut self) -> u64 {
        let mut clocks: Vec<u64> = (0..self.nodes.len()).map(|index| self.wall(index).0).collect();
        clocks.sort_unstable_by(|a, b| b.cmp(a));
        let (latest, at) = self.latest;
        let latest = (latest + (self.now - at) * 1000).max(clocks[clocks.len() / 2]);
        self.latest = (latest, self.now);
        latest
    }

    /// Lets time pass everywhere.
    pub(crate) fn advance(&mut self, millis: u64) {
        self.now += millis;
        for index in 0..self.nodes.len() {
            self.tick(index);
        }
    }

    pub(crate) fn step(&mut self, index: usize, event: Event) {
        self.act(index, |replica| replica.step(event));
    }

    pub(crate) fn act(&mut self, index: usize, act: impl FnOnce(&mut Replica)) {
        let Some(replica) = self.nodes[index].replica.as_mut() else {
            return;
        };
        act(replica);
        self.collect(index);
    }

    pub(crate) fn propose(&mut self, index: usize, value: &str) -> Result<Slot, ProposeError> {
        let value = Bytes::copy_from_slice(value.as_bytes());
        self.propose_raw(index, Proposal::Batch(value.clone()), value)
    }

    pub(crate) fn propose_raw(
        &mut self,
        index: usize,
        proposal: Proposal,
        value: Bytes,
    ) -> Result<Slot, ProposeError> {
        let Some(replica) = self.nodes[index].replica.as_mut() else {
            return Err(ProposeError::NotLeader { leader: None });
        };
        let result = replica.propose(proposal);
        if let Ok(slot) = result {
            self.nodes[index].proposed.insert(slot, value);
        }
        self.collect(index);
        result
    }

    pub(crate) fn read(&mut self, index: usize) -> ReadId {
        self.next_read += 1;
        let id = ReadId(self.next_read);
        let acknowledged = self.acknowledged;
        self.nodes[index].reads.insert(id, acknowledged);
        self.act(index, |replica| replica.read(vec![id]));
        id
    }

    /// Makes the oldest commit of a replica durable.
    pub(crate) fn persist(&mut self, index: usize) -> bool {
        if self.hung.contains(&index) {
            return false;
        }
        let node = &mut self.nodes[index];
        let Some((records, token)) = node.pending.pop_front() else {
            return false;
        };
        node.keep(records);
        node.durable_token = token;
        self.persists += 1;
        let (ready, wait) =
            std::mem::take(&mut node.gated).into_iter().partition(|(_, after)| *after <= token);
        node.gated = wait;
        let ready: Vec<(Envelope, PersistToken)> = ready;
        for (envelope, _) in ready {
            self.leave(index, envelope);
        }
        self.step(index, Event::Persisted { token });
        true
    }

    pub(crate) fn persist_all(&mut self, index: usize) {
        while self.persist(index) {}
    }

    /// Delivers one message, unless the link is cut or the receiver is down.
    pub(crate) fn deliver(&mut self, position: usize) {
        let envelope = self.network.remove(position);
        if self.cut.contains(&(envelope.from.0, envelope.to.0)) {
            return;
        }
        if self.is_up(usize::from(envelope.to.0)) {
            self.note(|| format!("{} -> {} {}", envelope.from, envelope.to, describe(&envelope.message)));
        }
        self.step(
            usize::from(envelope.to.0),
            Event::Receive { from: envelope.from, message: envelope.message },
        );
    }

    /// Delivers and persists until nothing moves.
    pub(crate) fn settle(&mut self) {
        for step in 0..20_000 {
            if step == 19_950 {
                self.trace = Some(Vec::new());
            }
            if !self.network.is_empty() {
                self.deliver(0);
            } else if !(0..self.nodes.len()).any(|index| self.persist(index)) {
                return;
            }
        }
        panic!("the cluster does not come to rest: {:#?}", self.trace);
    }

    /// Lets time pass in small steps, settling in between.
    pub(crate) fn run(&mut self, millis: u64) {
        let end = self.now + millis;
        while self.now < end {
            self.advance(10);
            self.settle();
        }
    }

    pub(crate) fn leader(&self) -> Option<usize> {
        let leads = |index: &usize| self.nodes[*index].replica.as_ref().is_some_and(Replica::is_leader);
        (0..self.nodes.len()).filter(leads).max_by_key(|index| self.replica(*index).promised())
    }

    /// Cuts all links between the two sides, in both directions.
    pub(crate) fn partition(&mut self, left: &[u8], right: &[u8]) {
        for a in left {
            for b in right {
                self.cut.insert((*a, *b));
                self.cut.insert((*b, *a));
            }
        }
    }

    pub(crate) fn heal(&mut self) {
        self.cut.clear();
    }

    /// Makes the applied state durable and drops the log behind it, on disk too.
    pub(crate) fn checkpoint(&mut self, index: usize, retain_bytes: usize) {
        if let Some(slot) = self.make_applied_durable(index) {
            self.step(index, Event::Compact { slot, retain: Retain::last(retain_bytes) });
        }
    }

    /// The same, but the log is dropped from memory alone.
    pub(crate) fn trim(&mut self, index: usize, retain_bytes: usize) {
        if let Some(slot) = self.make_applied_durable(index) {
            self.step(index, Event::Trim { slot, retain: Retain::last(retain_bytes) });
        }
    }

    fn make_applied_durable(&mut self, index: usize) -> Option<Slot> {
        if !self.is_up(index) {
            return None;
        }
        let node = &mut self.nodes[index];
        node.durable_applied = node.applied.len();
        node.applied.last().map(|decided| decided.base.slot)
    }

    /// The state machine of one replica is on its way to another, as in a snapshot transfer.
    fn transfer(&mut self, from: usize, to: usize) {
        let state = self.nodes[from].applied.clone();
        if self.is_slow {
            self.note(|| format!("r{from} begins to give r{to} its state"));
        }
        self.transfers.push(Transfer { from, to, state });
        if !self.is_slow {
            self.finish_transfer(self.transfers.len() - 1);
        }
    }

    /// A state that was on its way is there.
    pub(crate) fn finish_transfer(&mut self, position: usize) {
        let Transfer { from, to, state } = self.transfers.remove(position);
        let node = &mut self.nodes[to];
        if node.replica.is_some()
            && state.len() > node.applied.len()
            && !self.cut.contains(&(from as u8, to as u8))
        {
            node.applied = state;
            node.durable_applied = node.applied.len();
            let base = node.applied.last().expect("longer than another").base;
            self.snapshots += 1;
            self.note(|| format!("r{from} -> r{to} snapshot {}", base.slot));
            self.step(to, Event::SnapshotInstalled { base });
        }
        let to = ReplicaId(to as u8);
        self.act(from, |replica| replica.snapshot_ended(to));
    }

    fn note(&mut self, line: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            trace.push(line());
        }
    }

    fn collect(&mut self, index: usize) {
        let Some(replica) = self.nodes[index].replica.as_mut() else {
            return;
        };
        let effects = replica.take_effects();
        if replica.is_leader() {
            self.watch_leader(index);
        }
        let mut snapshots = Vec::new();
        for effect in effects {
            self.carry_out(index, effect, &mut snapshots);
        }
        for to in snapshots {
            self.transfer(index, to);
        }
    }

    /// One replica leads a ballot, and a quorum has durably promised it. One that needs no other's promise leads before its own is durable:
    /// [`Self::leave`] sees to it that nobody hears of that.
    fn watch_leader(&mut self, index: usize) {
        let replica = self.replica(index);
        let (promised, me) = (replica.promised(), replica.id());
        let ballot = promised.to_string();
        let is_new = !self.leaders.contains_key(&ballot);
        if *self.leaders.entry(ballot.clone()).or_insert(me) != me {
            self.violations.push(Violation(format!("two leaders in ballot {ballot}")));
        }
        let promises = self.nodes.iter().filter(|node| node.durable.promised >= promised).count();
        if is_new && promises < self.config.quorums.phase1() && self.config.quorums.phase1() > 1 {
            self.violations.push(Violation(format!("r{index} leads in {ballot} with {promises} promises")));
        }
    }

    /// A message leaves. What only a leader says, a quorum has durably promised to listen to.
    fn leave(&mut self, index: usize, envelope: Envelope) {
        if let Ok(
            Message::Accept { ballot, .. }
            | Message::AcceptSync { ballot, .. }
            | Message::Heartbeat { ballot, .. },
        ) = codec::decode(&envelope.message)
        {
            let promises = self.nodes.iter().filter(|node| node.durable.promised >= ballot).count();
            if promises < self.config.quorums.phase1() {
                let text = format!("r{index} speaks as leader in {ballot}, which {promises} have promised");
                self.violations.push(Violation(text));
            }
        }
        self.network.push(envelope);
    }

    /// What is decided is durable at a quorum; where the leader says so, in its ballot or a later one.
    fn watch_decision(&mut self, index: usize, base: LogBase) {
        let replica = self.replica(index);
        let ballot = if replica.is_leader() { replica.promised() } else { Ballot::ZERO };
        let holders = self.nodes.iter().filter(|node| node.holds(base, ballot)).count();
        if holders < self.config.quorums.phase2() {
            let text = format!("r{index} decides slot {}, and {holders} disks hold it", base.slot);
            self.violations.push(Violation(text));
        }
    }

    fn carry_out(&mut self, index: usize, effect: Effect, snapshots: &mut Vec<usize>) {
        match effect {
            Effect::Persist { records, token, .. } => {
                self.note(|| format!("r{index} writes {}", describe_records(&records)));
                self.nodes[index].pending.push_back((records, token));
            }
            Effect::Send { to, message, after } => {
                let envelope = Envelope { from: ReplicaId(index as u8), to, message };
                match after.filter(|token| *token > self.nodes[index].durable_token) {
                    Some(token) => self.nodes[index].gated.push((envelope, token)),
                    None => self.leave(index, envelope),
                }
            }
            Effect::Apply(decided) => self.apply(index, decided),
            Effect::Own(Own::ReadReady { id, slot }) => {
                self.note(|| format!("r{index} read {id} at {slot}"));
                if let Some(expected) = self.nodes[index].reads.remove(&id) {
                    self.reads_served += 1;
                    if slot < expected {
                        let text = format!(
                            "r{index} serves a read at {slot}, but {expected} was acknowledged before"
                        );
                        self.violations.push(Violation(text));
                    }
                }
                self.nodes[index].ready.push((id, slot));
            }
            Effect::Own(Own::ReadRefused { id }) => {
                self.note(|| format!("r{index} read {id} refused"));
                self.nodes[index].reads.remove(&id);
            }
            Effect::Own(Own::SendSnapshot { to }) => snapshots.push(usize::from(to.0)),
            Effect::LeaderChanged { leader } => {
                self.note(|| {
                    format!("r{index} leader is {}", leader.map_or("unknown".into(), |l| l.to_string()))
                });
            }
            Effect::EpochEnded { slot, .. } => self.note(|| format!("r{index} epoch ended at {slot}")),
            Effect::Fatal { reason } => {
                self.note(|| format!("r{index} fatal: {reason}"));
                self.violations.push(Violation(format!("r{index} stopped: {reason}")));
                self.nodes[index].fatal = Some(reason);
            }
        }
    }

    fn apply(&mut self, index: usize, decided: Decided) {
        self.note(|| format!("r{index} applies {} {}", decided.base.slot, describe_proposal(&decided)));
        let node = &mut self.nodes[index];
        if decided.base.slot.0 <= node.applied.len() as u64 {
            return;
        }
        if decided.base.slot.0 != node.applied.len() as u64 + 1 {
            let text = format!("r{index} applies {} after {}", decided.base.slot, node.applied.len());
            self.violations.push(Violation(text));
        }
        if node.applied.last().is_some_and(|last| last.base.sealed) {
            self.violations.push(Violation(format!("r{index} decides behind a stop-sign")));
        }
        let slot = decided.base.slot;
        if decided.base.time.0 > self.latest_time() {
            let text = format!("log time is ahead of a majority of all clocks at {slot}");
            self.violations.push(Violation(text));
        }
        if !self.base_of.contains_key(&slot) {
            self.watch_decision(index, decided.base);
        }
        let node = &mut self.nodes[index];
        if *self.base_of.entry(slot).or_insert(decided.base) != decided.base {
            self.violations.push(Violation(format!("r{index} decides another entry for slot {slot}")));
        }
        let value = node.proposed.remove(&slot);
        if let (Some(mine), Some(Proposal::Batch(value))) = (&value, &decided.proposal)
            && mine == value
        {
            self.acknowledged = self.acknowledged.max(slot);
        }
        self.nodes[index].applied.push(decided);
    }
}

pub(crate) fn describe(message: &[u8]) -> String {
    match codec::decode::<Message>(message) {
        Ok(message) => describe_message(&message),
        Err(error) => format!("unreadable: {error}"),
    }
}

fn describe_message(message: &Message) -> String {
    match message {
        Message::PreVote { ballot } => format!("PreVote {ballot}"),
        Message::PreVoteReply { ballot, granted, promised } => {
            format!("PreVoteReply {ballot} {} promised {promised}", if *granted { "yes" } else { "no" })
        }
        Message::Prepare { ballot } => format!("Prepare {ballot}"),
        Message::Promise { ballot, view, .. } => {
            format!(
                "Promise {ballot} accepted {} last {} decided {}",
                view.accepted, view.last.slot, view.decided
            )
        }
        Message::FetchLog { ballot, from, bytes } => format!("FetchLog {ballot} behind {from} of {bytes}"),
        Message::LogChunk { ballot, previous, entries } => {
            format!("LogChunk {ballot} behind {} {entries:?}", previous.slot)
        }
        Message::AcceptSync { ballot, sync, entries, adopted, .. } => {
            format!("AcceptSync {ballot} behind {} {entries:?} up to {}", sync.slot, adopted.slot)
        }
        Message::Accept { ballot, previous, entries, decided, .. } => {
            format!("Accept {ballot} behind {} {entries:?} decided {decided}", previous.slot)
        }
        Message::Accepted { ballot, durable } => format!("Accepted {ballot} durable {durable}"),
        Message::Reject { ballot, reason: Reason::NeedSync { view } } => {
            format!("Reject {ballot} NeedSync behind {}", view.gathered.unwrap_or(view.last).slot)
        }
        Message::Reject { ballot, reason } => format!("Reject {ballot} {reason:?}"),
        Message::Heartbeat { ballot, round, decided, quorate } => {
            format!(
                "Heartbeat {ballot} round {round} decided {decided}{}",
                if *quorate { "" } else { " alone" }
            )
        }
        Message::HeartbeatReply { ballot, round, view, durable, .. } => {
            let gathered = view.gathered.map_or(String::new(), |end| format!(" gathered {}", end.slot));
            format!(
                "HeartbeatReply {ballot} round {round} accepted {} last {}{gathered} durable {durable}",
                view.accepted, view.last.slot
            )
        }
        Message::TransferLeader { ballot } => format!("TransferLeader {ballot}"),
    }
}

fn describe_records(records: &[Bytes]) -> String {
    use tetrachord_consensus::paxos::Record;
    let one = |bytes: &Bytes| match codec::decode::<Record>(bytes) {
        Ok(Record::Promise { ballot }) => format!("Promise {ballot}"),
        Ok(Record::Append { accepted, entries }) => format!("Append in {accepted} {entries:?}"),
        Ok(Record::Replace { accepted, keep, .. }) => format!("Replace in {accepted} behind {keep}"),
        Ok(Record::State { promised, accepted, base, .. }) => {
            format!("State promised {promised} accepted {accepted} base {}", base.slot)
        }
        Err(error) => format!("unreadable: {error}"),
    };
    records.iter().map(one).collect::<Vec<_>>().join(", ")
}

fn describe_proposal(decided: &Decided) -> String {
    match &decided.proposal {
        None => "noop".to_string(),
        Some(Proposal::Batch(bytes)) => bytes.escape_ascii().to_string(),
        Some(Proposal::StopSign(next)) => format!("stop({})", next.escape_ascii()),
    }
}
