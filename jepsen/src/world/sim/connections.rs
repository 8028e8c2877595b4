//! What lies between a run's clients and its nodes: the production client's own core ([`tetrachord::client::core`]) in virtual time, and
//! its connections.
//!
//! A connection is a stream: what is sent over it arrives in order and once, or not at all when it ends; a packet that is lost is sent
//! again and comes late. It ends with the life of its node. A client learns of that at once if the node starts again, and else when
//! nothing has been heard for long; by itself it notices sooner that nothing comes, and gives the connection up.

use super::network::{Parcel, index_of};
use super::node::{CLIENT_SECRETS, CLUSTER, EPOCH_MICROS, secret};
use super::{Event, World};
use crate::nemesis::Nemesis;
use crate::plan::{Mode, Plan};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::time::Duration;
use tetrachord::client::ClientOptions;
use tetrachord::client::core::{
    Ask, CallId, Core, Effect, Heard, LinkId, Now, Setup, Signing, ToSign, Unreachable,
};
use tetrachord::kv::{self, Failure, Reply};
use tetrachord::limits::Limits;
use tetrachord::node::core::NodeEvent;
use tetrachord::ring::{GroupId, NodeId, Place, Tenure};
use tetrachord::ticket::ConnectionId;
use tetrachord::wire::{self, Answer, AnswerFrame, Hello, Request, RequestFrame};
use tetrachord_consensus::Digest;
use tetrachord_consensus::pbft::{Bundle, ClientSigner};

/// Connections of those that mean no good have smaller numbers.
pub(super) const FIRST_CONNECTION: u64 = 1_000;

/// A connection whose node is gone ends after so long, in microseconds.
const IDLE_MICROS: u64 = 3_000_000;

/// Clients' clocks are so far ahead: what a request may wait is not what is tested here.
const AHEAD_MICROS: u64 = 244_000_000;

/// A packet that is lost is sent again after so long.
const SENT_AGAIN_MICROS: u64 = 200_000;

/// A node that lives is heard this often, in microseconds.
const HEARD_MICROS: u64 = 10_000;

/// Numbers of requests that this simulator makes up: no client comes to them.
const MADE_UP: u64 = 1 << 40;

/// A connection of a client.
#[derive(Clone, Copy, Debug)]
struct Connection {
    id: ConnectionId,
    life: u64,
    heard_at: u64,
}

/// A client: the core, and what its shell would hold.
pub(super) struct Machine {
    core: Core,
    signer: ClientSigner,
    open: BTreeMap<NodeId, Connection>,
    wakes_at: Option<u64>,
    /// What was signed last, alone in its bundle.
    pub(super) last_signed: Option<(GroupId, Request)>,
    /// Until then a call may be open that was sent on to another group.
    sent_on_until: u64,
}

impl Machine {
    pub(super) fn new(index: usize, plan: &Plan, tenures: &[Tenure]) -> Self {
        let signer = ClientSigner::new(&secret(CLIENT_SECRETS + index));
        let address = |node: usize| format!("127.0.0.1:{}", 7_001 + node).parse().expect("an address");
        let nodes: BTreeMap<NodeId, _> =
            (0..plan.nodes).map(|node| (NodeId::founder(node), address(node))).collect();
        let is_byzantine = plan.mode == Mode::Byzantine;
        let signing = Signing { client: signer.name().0, cluster: Digest(CLUSTER) };
        let mut seed = [0; 32];
        seed[..8].copy_from_slice(&plan.seed.to_be_bytes());
        seed[8] = u8::try_from(index).expect("few clients");
        let setup = Setup {
            nodes,
            founding: is_byzantine.then(|| tenures.to_vec()),
            signing: is_byzantine.then_some(signing),
            options: ClientOptions {
                deadline: Duration::from_millis(plan.deadline_millis),
                ..ClientOptions::default()
            },
            seed,
            mutation: plan.mutation,
        };
        let (core, open) = (Core::new(setup), BTreeMap::new());
        Self { core, signer, open, wakes_at: None, last_signed: None, sent_on_until: 0 }
    }

    /// The key by which its connections are admitted.
    pub(super) fn key(&self) -> kv::Client {
        self.signer.name().0
    }
}

/// What the old maps came to.
const SENT_ON: &str = "a client was sent on to the group that owns its key";

fn link_of(connection: ConnectionId) -> LinkId {
    LinkId(connection.0)
}

impl World {
    fn now_of_clients(&self) -> Now {
        Now { at: Duration::from_micros(self.now), wall_micros: EPOCH_MICROS + self.now + AHEAD_MICROS }
    }

    /// A program asks its client. What it is told when that is known at once comes by [`Self::settle`].
    pub(super) fn ask_machine(&mut self, machine: usize, ask: Ask) -> CallId {
        let now = self.now_of_clients();
        self.machines[machine].core.ask(now, ask)
    }

    /// Tells a client something, and carries out what it wants.
    fn drive(&mut self, machine: usize, input: impl FnOnce(&mut Core, Now)) {
        let now = self.now_of_clients();
        input(&mut self.machines[machine].core, now);
        self.settle(machine);
    }

    /// Carries out what a client wants, until it wants nothing more.
    pub(super) fn settle(&mut self, machine: usize) {
        loop {
            let now = self.now_of_clients();
            let core = &mut self.machines[machine].core;
            let bundles = if core.has_bundles() { core.take_bundles(now) } else { Vec::new() };
            let effects = core.take_effects();
            if effects.is_empty() && bundles.is_empty() {
                break;
            }
            effects.into_iter().for_each(|effect| self.carry_out_for(machine, effect));
            bundles.into_iter().for_each(|to_sign| self.sign_for(machine, to_sign));
        }
        let due = self.machines[machine].core.next_due();
        let micros = |due: Duration| u64::try_from(due.as_nanos().div_ceil(1_000)).unwrap_or(u64::MAX);
        let due = due.map(|due| micros(due).max(self.now));
        let known = self.machines[machine].wakes_at;
        if let Some(due) = due.filter(|due| known.is_none_or(|known| *due < known)) {
            self.machines[machine].wakes_at = Some(due);
            self.at(due, Event::Wake { machine });
        }
    }

    /// Something may be due for a client.
    pub(super) fn wake(&mut self, machine: usize) {
        if self.machines[machine].wakes_at == Some(self.now) {
            self.machines[machine].wakes_at = None;
            self.drive(machine, Core::tick);
        }
    }

    fn carry_out_for(&mut self, machine: usize, effect: Effect) {
        match effect {
            Effect::Dial { node, rest, silence } => {
                let rest = u64::try_from(rest.as_micros()).expect("a short rest");
                let silence = u64::try_from(silence.as_micros()).expect("a short silence");
                let delay = 2 * self.plan.delay_micros;
                self.after(rest + delay, Event::Dialled { machine, node, silence });
            }
            Effect::Send { node, link, id, outgoing } => {
                if !self.send_for(machine, node, link, id, outgoing.encode()) {
                    let now = self.now_of_clients();
                    self.machines[machine].core.not_sent(now, node, id);
                }
            }
            Effect::Look(node) => self.look(machine, node),
            Effect::Close(node, link) => {
                let open = &mut self.machines[machine].open;
                if let Some(connection) = open.remove(&node).filter(|open| link_of(open.id) == link) {
                    self.reach("a client gave a silent connection up");
                    self.connections.remove(&connection.id);
                    let (node, life, connection) = (index_of(node), connection.life, connection.id);
                    self.after(self.plan.delay_micros, Event::Gone { node, life, connection });
                }
            }
            Effect::Done(call, done) => self.on_done(machine, call, done),
        }
    }

    /// False if there is no connection.
    fn send_for(&mut self, machine: usize, to: NodeId, link: LinkId, id: u64, request: Request) -> bool {
        let Some(connection) = self.connection_to(machine, to).filter(|open| link_of(*open) == link) else {
            return false;
        };
        let frame = wire::encode(&RequestFrame { id, request });
        self.send(Parcel::Request { to, client: machine, connection, frame });
        true
    }

    /// A client looks at what has come from a node.
    fn look(&mut self, machine: usize, node: NodeId) {
        let at = &self.nodes[index_of(node)];
        let Some(connection) = self.machines[machine].open.get_mut(&node) else { return };
        if at.is(connection.life) && !at.is_paused {
            connection.heard_at = self.now;
        }
        let round_trip = Duration::from_micros(2 * self.plan.delay_micros);
        let heard = Heard { packets: connection.heard_at / HEARD_MICROS, round_trip };
        let now = self.now_of_clients();
        self.machines[machine].core.heard(now, node, heard);
    }

    fn sign_for(&mut self, machine: usize, to_sign: ToSign) {
        let ToSign { group, domain, requests, mut to } = to_sign;
        let bundle = Bundle::sign(&domain, &self.machines[machine].signer, &requests).bytes().clone();
        let request = Request::Submit { group, bundle };
        if let [_] = requests.as_slice() {
            self.machines[machine].last_signed = Some((group, request.clone()));
        }
        if self.is_hasty || self.plan.shows_all {
            let members =
                self.tenure(group).map(|tenure| tenure.nodes().collect::<Vec<_>>()).unwrap_or_default();
            let more = members.into_iter().filter(|node| to.iter().all(|(known, ..)| known != node));
            let link = |node| Some((node, link_of(self.connection_to(machine, node)?), MADE_UP));
            to.extend(more.filter_map(link).collect::<Vec<_>>());
        }
        for (node, link, id) in to {
            // Whoever does not take it is shown it again.
            let _ = self.send_for(machine, node, link, id, request.clone());
        }
    }

    /// A dial comes to something.
    pub(super) fn dialled(&mut self, machine: usize, node: NodeId, silence: u64) {
        let at = &self.nodes[index_of(node)];
        if at.core.is_none() || at.is_paused {
            return self.after(silence, Event::NotDialled { machine, node });
        }
        let life = at.life;
        self.last_connection += 1;
        let id = ConnectionId(FIRST_CONNECTION + self.last_connection);
        self.connections.insert(id, (machine, node, life));
        self.machines[machine].open.insert(node, Connection { id, life, heard_at: self.now });
        let hello = Hello {
            cluster: "simulated".to_string(),
            node,
            places: self.places_told(),
            limits: Limits::default(),
            is_byzantine: self.plan.mode == Mode::Byzantine,
        };
        self.drive(machine, |core, now| core.greeted(now, node, link_of(id), Some(hello)));
    }

    /// What a node that greets says of the ring: what it knows, or what it knew before everything moved on by one group.
    fn places_told(&mut self) -> Vec<Place> {
        let mut places: Vec<Place> = self.tenures.iter().map(Place::from).collect();
        if self.plan.has_old_maps && self.random.coin() {
            let ranges: Vec<_> = places.iter().map(|place| place.range).collect();
            for (index, place) in places.iter_mut().enumerate() {
                (place.range, place.generation) = (ranges[(index + 1) % ranges.len()], 0);
            }
        }
        places
    }

    /// A dial has heard nothing.
    pub(super) fn not_dialled(&mut self, machine: usize, node: NodeId) {
        let why = Unreachable::Silent(format!("{node} is silent"));
        self.drive(machine, |core, now| core.unreachable(now, node, &why));
    }

    /// A node has ended, or begun another life: connections to the one before end, soon or late.
    pub(super) fn end_connections(&mut self, index: usize) {
        let (is_up, life) = (self.nodes[index].core.is_some(), self.nodes[index].life);
        let ended = self
            .connections
            .iter()
            .filter(|(_, (_, node, of))| index_of(*node) == index && (!is_up || *of != life));
        let ended: Vec<ConnectionId> = ended.map(|(connection, _)| *connection).collect();
        let micros = if is_up { 2 * self.plan.delay_micros } else { IDLE_MICROS };
        for connection in ended {
            self.after(micros, Event::Lost { connection });
        }
    }

    /// A client learns that a connection is gone.
    pub(super) fn lost(&mut self, connection: ConnectionId) {
        let Some((machine, node, _)) = self.connections.remove(&connection) else { return };
        self.machines[machine].open.remove(&node);
        self.drive(machine, |core, now| core.lost(now, node, link_of(connection)));
    }

    /// A node learns that a client has given a connection up.
    pub(super) fn gone(&mut self, node: usize, life: u64, connection: ConnectionId) {
        if self.nodes[node].is(life) && !self.nodes[node].is_paused {
            self.step(node, NodeEvent::ClientGone { connection });
        }
    }

    /// How much longer something takes over a connection on which packets are lost.
    pub(super) fn sent_again(&mut self) -> u64 {
        if self.strikes_now(Nemesis::Loss, 40) {
            self.count(Nemesis::Loss, 0, 1);
            return SENT_AGAIN_MICROS;
        }
        0
    }

    /// A node answers a client, or tells it something.
    pub(super) fn on_answer(
        &mut self,
        from: NodeId,
        machine: usize,
        connection: ConnectionId,
        frame: &Bytes,
    ) {
        let is_open = self.machines[machine].open.get(&from).is_some_and(|open| open.id == connection);
        if !is_open {
            return;
        }
        let Ok(frame) = wire::decode::<AnswerFrame>(&frame[4..]) else {
            return self.violate(|| format!("{from} answers what is no frame"));
        };
        let may_expire = self.may_clocks_all_be_wrong() || self.now < self.machines[machine].sent_on_until;
        match &frame.answer {
            Answer::Unavailable { .. } if self.nodes[index_of(from)].is_short => {
                self.count(Nemesis::DiskFull, 0, 1);
            }
            // Where a majority of clocks jumps, log time may too: sessions expire then. What may have been carried out where the key was
            // before keeps its session, which is of another group if that was never true.
            Answer::Reply { reply: Reply::Failed(Failure::SessionExpired), .. } if !may_expire => {
                return self.violate(|| "a session of a correct client has expired".to_string());
            }
            Answer::Moved { .. } => {
                self.machines[machine].sent_on_until = self.now + self.plan.deadline_millis * 1_000;
                self.reach(SENT_ON);
            }
            _ => {}
        }
        self.drive(machine, |core, now| core.answered(now, from, frame));
    }

    /// The connection of a client to a node.
    pub(super) fn connection_to(&self, machine: usize, node: NodeId) -> Option<ConnectionId> {
        Some(self.machines[machine].open.get(&node)?.id)
    }
}
