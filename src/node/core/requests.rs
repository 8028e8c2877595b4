//! Clients' requests, from the connection or the node that brought them to the group that serves them.
//!
//! A request is checked and counted when it comes, and waits until it is its client's turn. Reads and writes that one client sends
//! without end are served as fast as the node can, but they stand in one line: another client's next request waits for one of them, not for
//! all. And a turn is short, whoever asks: see [`TURN_COST_MAX`].

use super::NodeCore;
use crate::error::StorageError;
use crate::gateway::{Gateway, Origin, Watchers, native};
use crate::kv::{self, Command};
use crate::limits::WAITING_BYTES_MAX;
use crate::node::askers::Askers;
use crate::node::face::{Class, NodeEffect, Room};
use crate::node::forwards::{Forward, Forwards};
use crate::ring::{GroupId, NodeId};
use crate::router::{self, Replica, Route, View};
use crate::shares::{Account, ClientId, Shares, Turns};
use crate::ticket::{ConnectionId, Ticket};
use crate::wire::{self, Answer, Consistency, PeerMessage, Request, RequestFrame, RetryReason};
use tetrachord_consensus::Mutation;

/// What requests may cost that are begun before the node turns to other things: a few milliseconds' work. More wait for the next flush.
const TURN_COST_MAX: u32 = 256;

/// So many bytes of a request cost as much as another request.
const COST_BYTES: usize = 16 << 10;

/// A request that was let in.
#[derive(Debug)]
struct Asked {
    origin: Origin,
    ticket: Ticket,
    account: Account,
    request: Request,
    command: Option<Command>,
}

/// Requests that wait for their turn.
#[derive(Debug)]
struct Waiting {
    turns: Turns<Account, Asked>,
    bytes: Shares,
}

impl Default for Waiting {
    fn default() -> Self {
        Self { turns: Turns::default(), bytes: Shares::of(WAITING_BYTES_MAX) }
    }
}

/// Where requests come in: who is let in, what waits, what is checked or was passed on, and who is told what came of it.
#[derive(Debug)]
pub(super) struct Door {
    pub(super) gateway: Gateway,
    pub(super) watchers: Watchers,
    pub(super) askers: Askers,
    pub(super) forwards: Forwards,
    waiting: Waiting,
}

impl Door {
    /// The door of this life of a node.
    pub(super) fn new(incarnation: u64, mutation: Mutation) -> Self {
        Self {
            gateway: Gateway::default(),
            watchers: Watchers::default(),
            askers: Askers::new(mutation.checks_in_one_line()),
            forwards: Forwards::of_life(incarnation),
            waiting: Waiting::default(),
        }
    }
}

/// What a request keeps in memory.
fn bytes_of(request: &Request) -> usize {
    match request {
        Request::Command { envelope, .. } => envelope.len(),
        Request::Submit { bundle, .. } => bundle.len(),
        Request::Get { key, .. } => key.len(),
        Request::Status | Request::Watch { .. } => 0,
    }
}

impl NodeCore {
    pub(super) fn on_client(&mut self, connection: ConnectionId, client: ClientId, body: &[u8]) {
        match native::read(body) {
            Ok(RequestFrame { id, request }) => {
                let who = (Account::Client(client), Some(&client.0));
                self.take_request(Origin::Client { connection, id }, who, request);
            }
            Err(error) => {
                self.effects.push(NodeEffect::Disconnect { connection, reason: error.to_string() });
            }
        }
    }

    /// Lets a request in. It waits for its turn.
    pub(super) fn take_request(
        &mut self,
        origin: Origin,
        (account, client): (Account, Option<&kv::Client>),
        mut request: Request,
    ) {
        let command = match native::check(&mut request, client, &self.settings.group.limits) {
            Ok(command) => command,
            Err(error) => return self.send_answer(origin, Answer::Refused { error }),
        };
        let ticket = match self.door.gateway.admit(origin, account) {
            Ok(ticket) => ticket,
            Err(answer) => return self.send_answer(origin, answer),
        };
        let bytes = bytes_of(&request);
        if !self.door.waiting.bytes.take(account, bytes) {
            let answer = Answer::Retry { reason: RetryReason::Busy, leader: None, maybe_applied: false };
            return self.finish(ticket, answer);
        }
        let cost = u32::try_from(1 + bytes / COST_BYTES).expect("frames are small");
        self.door.waiting.turns.push(account, cost, Asked { origin, ticket, account, request, command });
    }

    /// Whether requests wait that the last flush has left for the next.
    #[must_use]
    pub fn has_waiting(&self) -> bool {
        !self.door.waiting.turns.is_empty()
    }

    /// Gives requests to the groups that they are for: clients in turn, and not too many at a time, so that what replicas say to one
    /// another never waits for long behind what clients ask.
    pub(super) fn take_turns(&mut self) -> Result<(), StorageError> {
        let mut left = TURN_COST_MAX;
        while left > 0
            && let Some((cost, asked)) = self.door.waiting.turns.pop()
        {
            left = left.saturating_sub(cost);
            self.door.waiting.bytes.give_back(asked.account, bytes_of(&asked.request));
            // Else nobody waits for it any more.
            if self.door.gateway.account(asked.ticket).is_some() {
                self.begin(asked)?;
            }
        }
        Ok(())
    }

    /// Gives a request to the group that it is for.
    fn begin(&mut self, asked: Asked) -> Result<(), StorageError> {
        let Asked { origin, ticket, request, command, .. } = asked;
        if request == Request::Status {
            let status = self.status();
            self.finish(ticket, Answer::Status(Box::new(status)));
            return Ok(());
        }
        let is_signed = matches!(request, Request::Submit { .. } | Request::Watch { .. });
        if is_signed != self.settings.group.byzantine.is_some() {
            let (now, then) = if is_signed { ("crash", "signed") } else { ("Byzantine", "unsigned") };
            let error = format!("this cluster runs in {now} mode, which takes no {then} requests");
            self.finish(ticket, Answer::Refused { error });
            return Ok(());
        }
        if let Request::Watch { client } = request {
            self.watch(ticket, origin, client);
            return Ok(());
        }
        let operation = command.as_ref().map(|command| &command.operation);
        let is_passed_on = matches!(origin, Origin::Peer { .. });
        let route = self.view().route(&request, operation, is_passed_on);
        self.follow(route, ticket, request, command)
    }

    /// A request goes where the router says.
    fn follow(
        &mut self,
        route: Route,
        ticket: Ticket,
        request: Request,
        command: Option<Command>,
    ) -> Result<(), StorageError> {
        let retry = |reason, leader| Answer::Retry { reason, leader, maybe_applied: false };
        match route {
            Route::Here(group) => return self.serve(ticket, group, request, command),
            Route::Leader(group, node) => {
                let account = self.door.gateway.account(ticket).expect("what is served is open");
                if self.door.forwards.has_room(account) {
                    self.forward(ticket, group, node, request);
                } else {
                    self.finish(ticket, retry(RetryReason::NotLeader, Some(node)));
                }
            }
            Route::Elsewhere(group) => self.forward_to_stranger(ticket, group, request),
            Route::Moved(place) => self.finish(ticket, Answer::Moved { places: vec![place] }),
            Route::NoLeader => self.finish(ticket, retry(RetryReason::NoLeader, None)),
            Route::NotHere => self.finish(ticket, retry(RetryReason::NotLeader, None)),
            Route::Nowhere => {
                let error = "there is no such group in this cluster".to_string();
                self.finish(ticket, Answer::Refused { error });
            }
            Route::Node => unreachable!("what is for the node itself was answered"),
        }
        Ok(())
    }

    /// What the router knows of this node.
    fn view(&self) -> View<'_, impl Fn(GroupId) -> Option<Replica>> {
        let may_vote = self.roster.may_vote();
        let replica = move |group| Some(Replica { leader: self.groups.get(group)?.leader(), may_vote });
        View { me: self.settings.node, atlas: &self.atlas, replica }
    }

    fn watch(&mut self, ticket: Ticket, origin: Origin, client: kv::Client) {
        let is_told = match origin {
            Origin::Client { connection, .. } => self.door.watchers.watch(connection, client),
            Origin::Peer { .. } => false,
        };
        let error = "a connection may watch few clients, and only its own node".to_string();
        self.finish(ticket, if is_told { Answer::Watching } else { Answer::Refused { error } });
    }

    fn serve(
        &mut self,
        ticket: Ticket,
        owner: GroupId,
        request: Request,
        command: Option<Command>,
    ) -> Result<(), StorageError> {
        let is_write = command.is_some() || matches!(request, Request::Submit { .. });
        if let (Room::Short { reserve_bytes }, true) = (self.life.room, is_write) {
            let reason = format!(
                "the disk of {} is almost full: less than {} MiB are free. Reads go on; writes do when there is space \
                 on the file system of its data directory",
                self.settings.node,
                reserve_bytes >> 20
            );
            self.finish(ticket, Answer::Unavailable { reason });
            return Ok(());
        }
        let account = self.door.gateway.account(ticket).expect("what is served is open");
        if let Request::Submit { bundle, .. } = &request
            && let Err(denied) = self.door.askers.admit(ticket, account, bundle.len())
        {
            self.deny(ticket, denied);
            return Ok(());
        }
        let storage = self.storage.as_ref();
        let group = self.groups.touch(owner).expect("the caller has found the group here");
        match (request, command) {
            (Request::Command { envelope: bytes, .. }, Some(command)) => {
                group.write(account, ticket, &command, bytes);
                Ok(())
            }
            (Request::Get { key, consistency: Consistency::Linearizable, .. }, _) => {
                group.read(ticket, key);
                Ok(())
            }
            (Request::Get { key, consistency: Consistency::Session { at_least }, .. }, _) => {
                group.read_applied(storage, ticket, &key, at_least)
            }
            (Request::Get { key, consistency: Consistency::Eventual, .. }, _) => {
                group.read_applied(storage, ticket, &key, 0)
            }
            (Request::Submit { bundle, .. }, _) => {
                let is_passed_on = !self.door.gateway.is_of_client(ticket);
                group.submit(storage, ticket, bundle, is_passed_on)
            }
            (Request::Command { .. }, None) | (Request::Status | Request::Watch { .. }, _) => {
                unreachable!("checked where it entered")
            }
        }
    }

    fn forward(&mut self, ticket: Ticket, owner: GroupId, to: NodeId, request: Request) {
        let account = self.door.gateway.account(ticket);
        let Some(account @ Account::Client(client)) = account else {
            unreachable!("only what a client brought here is passed on")
        };
        let id = self.door.forwards.add(Forward { ticket, account, since: self.now, owner, to });
        let frame = wire::encode(&PeerMessage::Forward { id, client, request });
        self.effects.push(NodeEffect::Send { to, class: Class::Request, frame });
    }

    /// No replica of the group is here: its replicas are asked in turn, those first to which there is a link.
    fn forward_to_stranger(&mut self, ticket: Ticket, owner: GroupId, request: Request) {
        let nodes = self.atlas.group(owner).map_or(&[][..], |place| &place.nodes);
        let is_linked = |node| self.linked.contains_key(&node);
        match router::choose(nodes, self.door.forwards.count(), is_linked) {
            Some(node) => self.forward(ticket, owner, node, request),
            None => self.finish(ticket, Answer::Refused { error: "the group has no replicas".to_string() }),
        }
    }
}
