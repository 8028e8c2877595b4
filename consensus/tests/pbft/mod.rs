//! A group of PBFT replicas in one thread: a network that is a bag of messages, disks that lose what was not flushed,
//! replicas that lie, twins that share an identity. The caller decides what happens next; this harness carries it out and
//! watches what must hold between honest replicas.
#![allow(dead_code, clippy::unwrap_used, reason = "test code, of which each file uses a part")]

#[path = "../random/mod.rs"]
mod random;
pub(crate) mod schedule;

use bytes::Bytes;
pub(crate) use random::Random;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use tetrachord_consensus::pbft::message::{NewView, NewViewBody, ViewChange, ViewChangeBody, Vote};
use tetrachord_consensus::pbft::{
    Batch, Bundle, ClientSigner, Config, Domain, Effect, Keyring, Liar, Lie, Message, Options, Own, Record,
    Replica, RequestName, SignedRequest, Signer, SubmitId, Unverified, Verifier, Window,
};
use tetrachord_consensus::{
    ByzantineQuorum, Decided, Digest, Engine, Epoch, Event, LogBase, PersistToken, Proposal, ReplicaId,
    Retain, Slot, Ticks, Timestamp, View, codec,
};

/// A message under way to one process.
#[derive(Clone, Debug)]
pub(crate) struct Envelope {
    pub(crate) from: usize,
    pub(crate) to: usize,
    pub(crate) message: Bytes,
}

/// One process. Twins are two processes of one replica.
pub(crate) struct Node {
    pub(crate) id: ReplicaId,
    pub(crate) replica: Option<Replica>,
    pub(crate) verifier: Verifier,
    /// Durable vote log.
    pub(crate) disk: Vec<Bytes>,
    /// What it lets the replica say.
    pub(crate) durable: BTreeSet<(u8, u64, u64, Digest)>,
    /// Slots up to here are stable for good: what was said about them needs no record any more, it is never said otherwise.
    pub(crate) durable_base: Slot,
    pub(crate) pending: VecDeque<(Vec<Bytes>, PersistToken)>,
    pub(crate) gated: Vec<(usize, Message, PersistToken)>,
    pub(crate) durable_token: PersistToken,
    pub(crate) emitted: PersistToken,
    /// Checks that the pool has not done yet.
    pub(crate) checks: VecDeque<Unverified>,
    /// The state machine: everything applied.
    pub(crate) applied: Vec<Decided>,
    pub(crate) durable_applied: usize,
    /// Lies, if this process does.
    pub(crate) liar: Option<(Lie, Liar)>,
    /// One of two processes with one identity: honest by itself, not together with the other.
    pub(crate) is_twin: bool,
    /// A state that was tampered with, on disk: its roots are wrong until it is repaired.
    pub(crate) is_rotten: bool,
    /// It executes otherwise than the others: no repair helps.
    pub(crate) is_other_build: bool,
    /// Nothing of the state is believed, until a state with proof is in place.
    pub(crate) is_lost: bool,
    pub(crate) fatal: Option<String>,
    pub(crate) refused: usize,
}

impl Node {
    /// Records reach the disk: from now on the replica may say what rests on them.
    fn write(&mut self, records: Vec<Bytes>) {
        for bytes in &records {
            let allowed = match codec::decode::<Record>(bytes).expect("records can be read") {
                Record::Begin { base } => {
                    self.durable.clear();
                    self.durable_base = base.slot;
                    continue;
                }
                Record::Accepted { vote, .. } => (1, vote.view.0, vote.slot.0, vote.digest),
                Record::Prepared(found) => (2, found.view.0, found.slot.0, found.digest),
                Record::Checkpoint(vote) => (3, 0, vote.slot.0, vote.root),
                Record::Left(message) => (4, message.view.0, 0, Digest(*blake3_of(&message.body))),
                Record::Entered(message) => (5, message.view.0, 0, Digest(*blake3_of(&message.body))),
                Record::Decided { .. } | Record::Earlier { .. } | Record::Stable(_) | Record::Evidence(_) => {
                    continue;
                }
            };
            self.durable.insert(allowed);
        }
        self.disk.extend(records);
    }

    pub(crate) fn is_honest(&self) -> bool {
        self.liar.is_none() && !self.is_twin
    }
}

/// What a watcher from outside found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Violation(pub(crate) String);

/// Names what an honest replica says once.
type Place = (ReplicaId, u8, u64, u64);

pub(crate) struct Group {
    pub(crate) nodes: Vec<Node>,
    pub(crate) network: Vec<Envelope>,
    pub(crate) config: Config,
    pub(crate) options: Options,
    pub(crate) domain: Domain,
    pub(crate) now: u64,
    /// How far each clock is from the right time, in milliseconds.
    pub(crate) clocks: Vec<i64>,
    /// What is decided for each slot, and its time.
    pub(crate) decided: BTreeMap<Slot, LogBase>,
    pub(crate) said: BTreeMap<Place, Digest>,
    /// What clients have signed: names, and the operations under each.
    pub(crate) issued: BTreeSet<(RequestName, Bytes)>,
    pub(crate) cut: BTreeSet<(usize, usize)>,
    pub(crate) violations: Vec<Violation>,
    pub(crate) sent: BTreeMap<&'static str, usize>,
    pub(crate) reached: Reached,
    pub(crate) trace: Option<Vec<String>>,
    /// Some messages of each kind that were sent, for those who want to change them.
    pub(crate) recorded: BTreeMap<&'static str, Vec<Bytes>>,
    next_submit: u64,
}

/// What a run has come to; to see that it was not empty.
#[derive(Clone, Debug, Default)]
pub(crate) struct Reached {
    pub(crate) views: BTreeSet<View>,
    pub(crate) new_views_with_certificates: usize,
    pub(crate) transfers: usize,
    pub(crate) transfers_refused: usize,
    pub(crate) epochs_ended: usize,
    pub(crate) states_lost: usize,
    pub(crate) repairs: usize,
    pub(crate) persists: usize,
    pub(crate) lies: usize,
    pub(crate) rejected: usize,
}

pub(crate) const CLIENTS: u8 = 3;

impl Group {
    pub(crate) fn new(n: usize, window: Window, options: Options) -> Self {
        let ids: Vec<ReplicaId> = (0..n).map(|index| ReplicaId(index as u8)).collect();
        Self::with_ids(n, &ids, window, options)
    }

    /// A group whose processes have these identities; an identity twice makes twins.
    pub(crate) fn with_ids(n: usize, ids: &[ReplicaId], window: Window, options: Options) -> Self {
        let quorum = ByzantineQuorum::new(n).unwrap();
        let config = Config { epoch: Epoch(4), quorum, window };
        let domain = Domain { cluster: Digest([9; 32]), group: 1, epoch: Epoch(4) };
        let keyring = Arc::new(Keyring::toy(domain, n as u8, CLIENTS));
        let node = |id: &ReplicaId| Node {
            id: *id,
            replica: None,
            verifier: Verifier::new(Arc::clone(&keyring), config, options.mutation),
            disk: Vec::new(),
            durable: BTreeSet::new(),
            durable_base: Slot::ZERO,
            pending: VecDeque::new(),
            gated: Vec::new(),
            durable_token: PersistToken(0),
            emitted: PersistToken(0),
            checks: VecDeque::new(),
            applied: Vec::new(),
            durable_applied: 0,
            liar: None,
            is_twin: false,
            is_rotten: false,
            is_other_build: false,
            is_lost: false,
            fatal: None,
            refused: 0,
        };
        let mut group = Self {
            nodes: ids.iter().map(node).collect(),
            network: Vec::new(),
            config,
            options,
            domain,
            now: 1,
            clocks: vec![0; ids.len()],
            decided: BTreeMap::new(),
            said: BTreeMap::new(),
            issued: BTreeSet::new(),
            cut: BTreeSet::new(),
            violations: Vec::new(),
            sent: BTreeMap::new(),
            reached: Reached::default(),
            trace: None,
            recorded: BTreeMap::new(),
            next_submit: 0,
        };
        (0..ids.len()).for_each(|index| group.start(index));
        group
    }

    pub(crate) fn replica(&self, index: usize) -> &Replica {
        self.nodes[index].replica.as_ref().expect("running")
    }

    pub(crate) fn is_up(&self, index: usize) -> bool {
        self.nodes[index].replica.is_some()
    }

    pub(crate) fn honest(&self) -> Vec<usize> {
        (0..self.nodes.len()).filter(|index| self.nodes[*index].is_honest()).collect()
    }

    /// The process that is the primary of the highest view that an honest replica has begun.
    pub(crate) fn primary(&self) -> usize {
        let views = self.honest().into_iter().filter(|index| self.is_up(*index));
        let view = views.map(|index| self.replica(index).view()).filter(|view| view.1).max();
        let id = self.config.primary(view.map_or(View(0), |view| view.0));
        self.nodes.iter().position(|node| node.id == id).unwrap()
    }

    /// The process that is primary in a view.
    pub(crate) fn primary_of(&self, view: View) -> usize {
        let id = self.config.primary(view);
        self.nodes.iter().position(|node| node.id == id).unwrap()
    }

    pub(crate) fn start(&mut self, index: usize) {
        let node = &mut self.nodes[index];
        assert!(node.replica.is_none());
        node.applied.truncate(node.durable_applied);
        let applied = node.applied.last().map_or(LogBase::default(), |decided| decided.base);
        let applied = (!node.is_lost).then_some(applied);
        let signer = Signer::toy(node.id, self.domain);
        match Replica::recover(self.config, self.options.clone(), signer, &node.disk, applied) {
            Ok(replica) => node.replica = Some(replica),
            Err(error) => self.violations.push(Violation(format!("r{index} cannot recover: {error}"))),
        }
        self.collect(index);
        self.tick(index);
    }

    /// Ends a process at once. Of the commits under way, the first `kept` reach the disk.
    pub(crate) fn crash(&mut self, index: usize, kept: usize) {
        let node = &mut self.nodes[index];
        node.replica = None;
        for (records, _) in node.pending.drain(..).take(kept).collect::<Vec<_>>() {
            node.write(records);
        }
        node.pending.clear();
        node.gated.clear();
        node.checks.clear();
        node.durable_token = PersistToken(0);
        node.emitted = PersistToken(0);
    }

    pub(crate) fn tick(&mut self, index: usize) {
        let right = 1_000_000_000 + self.now * 1000;
        let wall = Timestamp(right.saturating_add_signed(self.clocks[index] * 1000));
        self.step(index, Event::Tick { now: Ticks(self.now), wall });
    }

    pub(crate) fn advance(&mut self, millis: u64) {
        self.now += millis;
        (0..self.nodes.len()).for_each(|index| self.tick(index));
    }

    pub(crate) fn step(&mut self, index: usize, event: Event) {
        self.act(index, |replica| replica.step(event));
    }

    pub(crate) fn act(&mut self, index: usize, act: impl FnOnce(&mut Replica)) {
        let Some(replica) = self.nodes[index].replica.as_mut() else { return };
        act(replica);
        self.collect(index);
    }

    /// Ends a turn: the primary may propose.
    pub(crate) fn flush(&mut self, index: usize) {
        self.act(index, |replica| replica.turn_ended(true, true));
    }

    pub(crate) fn request(&mut self, client: u8, number: u64, operation: &str) -> Bundle {
        let signer = ClientSigner::toy(client);
        let name = RequestName { client: signer.name(), session: 1, number };
        let not_after = Timestamp(1_000_000_000 + self.now * 1000 + 100_000_000);
        let operation = Bytes::copy_from_slice(operation.as_bytes());
        self.issued.insert((name, operation.clone()));
        let request =
            SignedRequest { name, ack_below: 1, not_after, wants_proof: false, ends_epoch: false, operation };
        Bundle::sign(&self.domain, &signer, &[request])
    }

    /// What ends the epoch.
    pub(crate) fn stop_sign(&mut self, client: u8) -> Bundle {
        let signer = ClientSigner::toy(client);
        let name = RequestName { client: signer.name(), session: 1, number: 1 };
        let not_after = Timestamp(1_000_000_000 + self.now * 1000 + 100_000_000);
        let operation = Bytes::from_static(b"the next epoch");
        self.issued.insert((name, operation.clone()));
        let request =
            SignedRequest { name, ack_below: 1, not_after, wants_proof: false, ends_epoch: true, operation };
        Bundle::sign(&self.domain, &signer, &[request])
    }

    pub(crate) fn submit(&mut self, index: usize, bundle: &Bundle) {
        self.next_submit += 1;
        let id = SubmitId(self.next_submit);
        self.act(index, |replica| replica.submit(id, bundle.bytes().clone(), false));
    }

    /// The pool does the oldest check of a process.
    pub(crate) fn check(&mut self, index: usize) -> bool {
        let node = &mut self.nodes[index];
        let Some(unverified) = node.checks.pop_front() else { return false };
        let result = node.verifier.verify(unverified);
        if let Err(rejected) = &result {
            self.reached.rejected += 1;
            self.note(|| format!("r{index} rejects: {}", rejected.reason));
        }
        self.act(index, |replica| replica.verified(result));
        self.flush(index);
        true
    }

    /// The oldest commit of a process becomes durable.
    pub(crate) fn persist(&mut self, index: usize) -> bool {
        let node = &mut self.nodes[index];
        let Some((records, token)) = node.pending.pop_front() else { return false };
        node.write(records);
        node.durable_token = token;
        self.reached.persists += 1;
        let (ready, wait): (Vec<_>, Vec<_>) =
            std::mem::take(&mut node.gated).into_iter().partition(|(_, _, after)| *after <= token);
        node.gated = wait;
        for (to, message, _) in ready {
            self.transmit(index, to, message);
        }
        self.step(index, Event::Persisted { token });
        self.flush(index);
        true
    }

    /// Delivers one message, unless the link is cut or the receiver is down.
    pub(crate) fn deliver(&mut self, position: usize) {
        let Envelope { from, to, message } = self.network.remove(position);
        if self.cut.contains(&(from, to)) {
            return;
        }
        if self.is_up(to) {
            self.note(|| format!("r{from} -> r{to} {}", describe(&message)));
        }
        let from = self.nodes[from].id;
        self.step(to, Event::Receive { from, message });
        self.flush(to);
    }

    /// Delivers the oldest message to a process, and checks it.
    pub(crate) fn settle_one(&mut self, to: usize) {
        let position = self.network.iter().position(|envelope| envelope.to == to).expect("one is under way");
        self.deliver(position);
        while self.check(to) {}
    }

    /// Delivers, checks and persists until nothing moves.
    pub(crate) fn settle(&mut self) {
        for _ in 0..200_000 {
            if !self.network.is_empty() {
                self.deliver(0);
                continue;
            }
            let moved = (0..self.nodes.len()).any(|index| self.check(index) || self.persist(index));
            if !moved {
                return;
            }
        }
        panic!("the group does not come to rest");
    }

    pub(crate) fn run(&mut self, millis: u64) {
        let end = self.now + millis;
        while self.now < end {
            self.advance(20);
            self.settle();
        }
    }

    pub(crate) fn partition(&mut self, left: &[usize], right: &[usize]) {
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

    /// Makes the applied state durable and drops the log behind it; on disk too, or in memory alone.
    pub(crate) fn checkpoint(&mut self, index: usize, retain_bytes: usize, on_disk: bool) {
        if !self.is_up(index) {
            return;
        }
        let node = &mut self.nodes[index];
        node.durable_applied = node.applied.len();
        let slot = Slot(node.applied.len() as u64);
        let event = match on_disk {
            true => Event::Compact { slot, retain: Retain::last(retain_bytes) },
            false => Event::Trim { slot, retain: Retain::last(retain_bytes) },
        };
        self.step(index, event);
    }

    fn collect(&mut self, index: usize) {
        loop {
            let Some(replica) = self.nodes[index].replica.as_mut() else { return };
            let effects = replica.take_effects();
            let (view, is_active) = replica.view();
            if is_active {
                self.reached.views.insert(view);
            }
            if effects.is_empty() {
                return;
            }
            for effect in effects {
                self.carry_out(index, effect);
            }
        }
    }

    fn carry_out(&mut self, index: usize, effect: Effect) {
        match effect {
            Effect::Persist { records, token, .. } => {
                let told = || records.iter().map(describe_record).collect::<Vec<_>>().join(", ");
                self.note(|| format!("r{index} writes {}", told()));
                self.nodes[index].emitted = token;
                self.nodes[index].pending.push_back((records, token));
            }
            Effect::Send { to, message, after } => {
                let message: Message = codec::decode(&message).unwrap();
                if after.is_some_and(|token| token > self.nodes[index].emitted) {
                    self.violations
                        .push(Violation(format!("r{index} waits for a record that it has not handed out")));
                }
                let targets: Vec<usize> =
                    (0..self.nodes.len()).filter(|at| self.nodes[*at].id == to).collect();
                for to in targets {
                    match after.filter(|token| *token > self.nodes[index].durable_token) {
                        Some(token) => self.nodes[index].gated.push((to, message.clone(), token)),
                        None => self.transmit(index, to, message.clone()),
                    }
                }
            }
            Effect::Apply(decided) => self.apply(index, decided),
            Effect::Own(Own::Verify(unverified)) => self.nodes[index].checks.push_back(*unverified),
            Effect::Own(Own::Submitted { result, .. }) => {
                self.nodes[index].refused += usize::from(result.is_err());
                if let Err(refusal) = result {
                    self.note(|| format!("r{index} refuses a request: {refusal}"));
                }
            }
            Effect::Own(Own::Checkpoint { slot }) => {
                let root = self.root(index, slot);
                let replica = self.nodes[index].replica.as_mut().expect("it has just asked");
                replica.state_root(slot, root);
            }
            Effect::Own(Own::StateLost { base, .. }) => self.lose_state(index, base),
            Effect::Own(Own::FetchState { from, at_least }) => self.transfer(from, index, at_least),
            Effect::Fatal { reason } => self.on_fatal(index, reason),
            Effect::EpochEnded { slot, .. } => {
                self.reached.epochs_ended += 1;
                self.note(|| format!("r{index} has come to the end of the epoch in slot {slot}"));
            }
            Effect::LeaderChanged { leader: Some(leader) } => {
                let view = self.replica(index).view().0;
                self.note(|| format!("r{index} is in {view}, {leader} is primary"));
            }
            Effect::LeaderChanged { leader: None } => {
                let view = self.replica(index).view().0;
                self.note(|| format!("r{index} has left for {view}"));
            }
        }
    }

    fn on_fatal(&mut self, index: usize, reason: String) {
        self.note(|| format!("r{index} stops: {reason}"));
        let node = &mut self.nodes[index];
        if node.is_honest() && !node.is_other_build {
            self.violations.push(Violation(format!("r{index} stopped: {reason}")));
        }
        node.fatal = Some(reason);
    }

    fn root(&self, index: usize, slot: Slot) -> Digest {
        let node = &self.nodes[index];
        let chain = node.applied[slot.0 as usize - 1].base.chain;
        if node.is_rotten || node.is_other_build { Digest([0xb0 + index as u8; 32]) } else { root_of(chain) }
    }

    /// A state is not believed any more; the empty one is always right, if the log begins there.
    fn lose_state(&mut self, index: usize, base: Slot) {
        self.note(|| format!("r{index} has lost its state, its log begins behind {base}"));
        self.reached.states_lost += 1;
        let node = &mut self.nodes[index];
        node.applied.clear();
        (node.durable_applied, node.is_lost) = (0, true);
        if base == Slot::ZERO {
            self.install(index, LogBase::default());
        }
    }

    fn install(&mut self, index: usize, base: LogBase) {
        let node = &mut self.nodes[index];
        self.reached.repairs += usize::from(node.is_lost);
        (node.is_rotten, node.is_lost) = (false, false);
        node.durable_applied = node.applied.len();
        node.replica.as_mut().expect("it has just asked").step(Event::SnapshotInstalled { base });
    }

    /// One replica gives its state to another, which takes it only if a stable certificate proves it.
    fn transfer(&mut self, from: ReplicaId, to: usize, at_least: Slot) {
        let Some(source) = self.nodes.iter().position(|node| node.id == from) else { return };
        if self.cut.contains(&(source, to)) || !self.is_up(source) {
            return;
        }
        let Some(certificate) = self.replica(source).stable().cloned() else { return };
        if self.nodes[source].applied.len() < certificate.slot.0 as usize || certificate.slot < at_least {
            return;
        }
        let message = codec::encode(&Message::Stable(certificate.clone()));
        let mut state = self.nodes[source].applied[..certificate.slot.0 as usize].to_vec();
        if (!self.nodes[source].is_honest() || self.nodes[source].is_rotten)
            && let Some(last) = state.last_mut()
        {
            last.base.chain = Digest([0xcc; 32]);
        }
        self.nodes[to].replica.as_mut().unwrap().step(Event::Receive { from, message });
        while let Some(effect) =
            self.nodes[to].replica.as_mut().map(Engine::take_effects).filter(|e| !e.is_empty())
        {
            effect.into_iter().for_each(|effect| self.carry_out(to, effect));
        }
        while self.nodes[to].checks.front().is_some() {
            let node = &mut self.nodes[to];
            let unverified = node.checks.pop_front().unwrap();
            let result = node.verifier.verify(unverified);
            node.replica.as_mut().unwrap().verified(result);
        }
        let base = state.last().expect("a checkpoint is above slot 0").base;
        let proven = self.replica(to).stable().filter(|stable| stable.slot == certificate.slot);
        if proven.is_none_or(|proven| proven.root != root_of(base.chain)) {
            self.reached.transfers_refused += 1;
            self.note(|| format!("r{to} refuses the state of r{source}"));
            return;
        }
        if state.len() <= self.nodes[to].applied.len() {
            return;
        }
        self.reached.transfers += 1;
        self.note(|| format!("r{source} -> r{to} state {}", base.slot));
        self.nodes[to].applied = state;
        self.install(to, base);
    }

    fn apply(&mut self, index: usize, decided: Decided) {
        let slot = decided.base.slot;
        let node = &mut self.nodes[index];
        if slot.0 <= node.applied.len() as u64 {
            return;
        }
        if node.is_lost {
            self.violations.push(Violation(format!("r{index} executes {slot} on a state that it lost")));
            return;
        }
        if node.applied.last().is_some_and(|last| last.base.sealed) {
            self.violations.push(Violation(format!("r{index} executes {slot} behind the end of the epoch")));
            return;
        }
        let is_next = slot.0 == node.applied.len() as u64 + 1;
        node.applied.push(decided.clone());
        if !node.is_honest() {
            return;
        }
        if !is_next {
            self.violations.push(Violation(format!("r{index} applies {slot} out of order")));
        }
        let base = *self.decided.entry(slot).or_insert(decided.base);
        if base.chain != decided.base.chain {
            self.violations.push(Violation(format!("r{index} executes another batch in slot {slot}")));
        } else if base != decided.base {
            self.violations.push(Violation(format!("r{index} executes slot {slot} at another time")));
        }
        if let Some(Proposal::Batch(batch)) = decided.proposal {
            let batch = Batch::parse(batch).expect("what is executed can be read");
            let requests = batch.bundles().iter().flat_map(Bundle::requests);
            let mut asked = requests.map(|request| (request.name, request.operation));
            if let Some((name, _)) = asked.find(|asked| !self.issued.contains(asked)) {
                self.violations
                    .push(Violation(format!("r{index} executes {name:?}, which no client signed like that")));
            }
        }
        self.note(|| format!("r{index} executes {slot}"));
    }

    /// A message leaves a process: an honest one says one thing, a liar says what it likes.
    fn transmit(&mut self, from: usize, to: usize, message: Message) {
        *self.sent.entry(kind_of(&message)).or_default() += 1;
        let receiver = self.nodes[to].id;
        let messages = match self.nodes[from].liar.as_mut() {
            Some((lie, liar)) => {
                let lies = liar.twist(*lie, receiver, message.clone());
                self.reached.lies += usize::from(lies.as_slice() != [message]);
                lies
            }
            None => {
                self.watch(from, &message);
                vec![message]
            }
        };
        for message in messages {
            let recorded = self.recorded.entry(kind_of(&message)).or_default();
            if recorded.len() < 20 {
                recorded.push(codec::encode(&message));
            }
            self.network.push(Envelope { from, to, message: codec::encode(&message) });
        }
    }

    /// An honest replica never says two things in one place.
    fn watch(&mut self, from: usize, message: &Message) {
        let id = self.nodes[from].id;
        let (place, digest) = match message {
            Message::PrePrepare { vote, .. } => ((id, 0, vote.view.0, vote.slot.0), vote.digest),
            Message::Prepare(vote) => ((id, 1, vote.view.0, vote.slot.0), vote.digest),
            Message::Commit(vote) => ((id, 2, vote.view.0, vote.slot.0), vote.digest),
            Message::Checkpoint(vote) => ((id, 3, 0, vote.slot.0), vote.root),
            Message::ViewChange(ViewChange { signer, view, body, .. }) if *signer == id => {
                ((id, 4, view.0, 0), Digest(*blake3_of(body)))
            }
            Message::NewView(NewView { view, body, .. }) if self.config.primary(*view) == id => {
                ((id, 5, view.0, 0), Digest(*blake3_of(body)))
            }
            _ => return,
        };
        let (_, kind, first, second) = place;
        // A primary's PRE-PREPARE rests on the same record as a backup's PREPARE.
        // Of a view that was entered no other view change is ever made.
        let has_entered = |(of, view, ..): &(u8, u64, u64, Digest)| *of == 5 && *view >= first;
        // Of a view that was left no PREPARE or PRE-PREPARE is ever made either; one that waited for its record may come later than both.
        let has_left = |(of, view, ..): &(u8, u64, u64, Digest)| matches!(of, 4 | 5) && *view > first;
        let durable = &self.nodes[from].durable;
        let is_settled = match kind {
            4 => durable.iter().any(has_entered),
            _ => {
                kind <= 3 && second <= self.nodes[from].durable_base.0
                    || kind <= 1 && durable.iter().any(has_left)
            }
        };
        if !is_settled && !self.nodes[from].durable.contains(&(kind.max(1), first, second, digest)) {
            self.violations.push(Violation(format!("r{from} says what is not durable: {place:?}")));
        }
        let are_twins = self.nodes.iter().filter(|node| node.id == id).count() > 1;
        if !are_twins && *self.said.entry(place).or_insert(digest) != digest {
            self.violations.push(Violation(format!("r{from} says two things: {place:?}")));
        }
        if let Message::NewView(NewView { body, .. }) = message {
            let body: NewViewBody = codec::decode(body).unwrap();
            self.reached.new_views_with_certificates +=
                usize::from(body.proposals.iter().any(|(_, digest, _)| *digest != Digest::ZERO));
        }
    }

    pub(crate) fn note(&mut self, line: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            trace.push(line());
        }
    }

    /// Whether every honest process has executed a request of this name.
    pub(crate) fn all_executed(&self, name: RequestName) -> bool {
        let has = |index: &usize| self.has_executed(*index, name);
        self.honest().iter().all(has)
    }

    pub(crate) fn has_executed(&self, index: usize, name: RequestName) -> bool {
        self.nodes[index].applied.iter().any(|decided| match &decided.proposal {
            Some(Proposal::Batch(batch)) => {
                Batch::parse(batch.clone()).unwrap().names().any(|known| known == name)
            }
            _ => false,
        })
    }

    pub(crate) fn assert_safe(&self) {
        assert!(self.violations.is_empty(), "{:?}\n{:#?}", self.violations, self.trace);
    }
}

/// The root of the harness's state machine: the chain says all.
pub(crate) fn root_of(chain: Digest) -> Digest {
    Digest(*blake3_of(&[&b"root"[..], &chain.0].concat()))
}

fn blake3_of(bytes: &[u8]) -> Box<[u8; 32]> {
    Box::new(tetrachord_consensus::pbft::message::body_digest(bytes).0)
}

pub(crate) fn kind_of(message: &Message) -> &'static str {
    match message {
        Message::PrePrepare { .. } => "pre-prepare",
        Message::Prepare(_) => "prepare",
        Message::Commit(_) => "commit",
        Message::Checkpoint(_) => "checkpoint",
        Message::ViewChange(_) => "view-change",
        Message::NewView(_) => "new-view",
        Message::Status(_) => "status",
        Message::Certified { .. } => "certified",
        Message::Stable(_) => "stable",
        Message::Fetch { .. } => "fetch",
        Message::Body { .. } => "body",
        Message::Requests(_) => "requests",
    }
}

/// A digest as stories tell it.
fn short(digest: Digest) -> String {
    if digest == Digest::ZERO { "null".to_string() } else { digest.to_string() }
}

fn describe(message: &Bytes) -> String {
    let vote = |name: &str, vote: &Vote| format!("{name} {} {} {}", vote.view, vote.slot, short(vote.digest));
    match codec::decode::<Message>(message) {
        Ok(Message::PrePrepare { vote: found, .. }) => vote("PrePrepare", &found),
        Ok(Message::Prepare(found)) => vote("Prepare", &found),
        Ok(Message::Commit(found)) => vote("Commit", &found),
        Ok(Message::Checkpoint(vote)) => format!("Checkpoint {} {}", vote.slot, short(vote.root)),
        Ok(Message::ViewChange(message)) => format!("ViewChange {} {}", message.view, brought(&message.body)),
        Ok(Message::NewView(message)) => format!("NewView {} {}", message.view, began(&message.body)),
        Ok(Message::Status(status)) => {
            let state = if status.is_active { "" } else { " not begun" };
            format!("Status {}{state}, executed {}, stable {}", status.view, status.executed, status.stable)
        }
        Ok(Message::Certified { certificate, .. }) => {
            format!("Certified {} {}", certificate.slot, short(certificate.digest))
        }
        Ok(Message::Stable(certificate)) => {
            format!("Stable {} {}", certificate.slot, short(certificate.root))
        }
        Ok(Message::Fetch { slot, digest }) => format!("Fetch {slot} {}", short(digest)),
        Ok(Message::Body { slot, .. }) => format!("Body {slot}"),
        Ok(Message::Requests(_)) => "Requests".to_string(),
        Err(_) => "nonsense".to_string(),
    }
}

/// What a view change brings.
fn brought(body: &Bytes) -> String {
    let Ok(body) = codec::decode::<ViewChangeBody>(body) else { return "nonsense".to_string() };
    let stable = body.stable.map_or(Slot::ZERO, |stable| stable.slot);
    let prepared: Vec<String> = body
        .prepared
        .iter()
        .map(|found| format!("{}={} of {}", found.slot, short(found.digest), found.view))
        .collect();
    format!("stable {stable} prepared [{}]", prepared.join(", "))
}

/// What a view begins with.
fn began(body: &Bytes) -> String {
    let Ok(body) = codec::decode::<NewViewBody>(body) else { return "nonsense".to_string() };
    let signers: Vec<String> = body.view_changes.iter().map(|change| change.signer.to_string()).collect();
    let proposals: Vec<String> =
        body.proposals.iter().map(|(slot, digest, _)| format!("{slot}={}", short(*digest))).collect();
    format!("from {} proposes [{}]", signers.join(" "), proposals.join(", "))
}

fn describe_record(bytes: &Bytes) -> String {
    match codec::decode::<Record>(bytes).expect("records can be read") {
        Record::Begin { base } => format!("Begin behind {}", base.slot),
        Record::Accepted { vote, .. } => {
            format!("Accepted {} {} {}", vote.view, vote.slot, short(vote.digest))
        }
        Record::Prepared(found) => format!("Prepared {} {} {}", found.view, found.slot, short(found.digest)),
        Record::Decided { slot, digest, .. } => format!("Decided {slot} {}", short(digest)),
        Record::Earlier { slot, .. } => format!("Earlier {slot}"),
        Record::Left(message) => format!("Left for {}", message.view),
        Record::Entered(message) => format!("Entered {}", message.view),
        Record::Checkpoint(vote) => format!("Checkpoint {} {}", vote.slot, short(vote.root)),
        Record::Stable(certificate) => format!("Stable {}", certificate.slot),
        Record::Evidence(evidence) => format!("Evidence: {evidence}"),
    }
}
