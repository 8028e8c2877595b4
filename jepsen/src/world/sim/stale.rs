//! A client that shows replicas what is done with: requests of others that were executed and are still valid, to backups alone, over and
//! over. Liars do the same among nodes.
//!
//! A backup that waits for something waits for its primary. So what a backup takes for new, the primary must take as well: else an
//! honest one is replaced for what it did long ago.

use super::network::{Parcel, index_of};
use super::{Event, World};
use crate::nemesis::Nemesis;
use std::collections::{BTreeMap, VecDeque};
use tetrachord::node::core::Class;
use tetrachord::ring::{GroupId, NodeId, Tenure};
use tetrachord::shares::ClientId;
use tetrachord::ticket::ConnectionId;
use tetrachord::wire::{self, Answer, AnswerFrame, PeerMessage, Request, RequestFrame};

/// Something is shown this often, in microseconds; so many of each group's requests are remembered.
const EVERY_MICROS: u64 = 20_000;
const REMEMBERED: usize = 4;

/// What is told when liars pass on what was executed.
pub const PASSED_ON: &str = "a liar passed an executed request on to a backup";

/// What was executed lately.
#[derive(Default)]
pub(super) struct Stale {
    executed: BTreeMap<GroupId, VecDeque<Request>>,
    shown: u64,
}

impl Stale {
    /// A client was answered: its request was executed.
    pub(super) fn note(&mut self, group: GroupId, request: Request) {
        let known = self.executed.entry(group).or_default();
        known.push_back(request);
        if known.len() > REMEMBERED {
            known.pop_front();
        }
    }
}

impl World {
    /// Its place is behind those of all other clients.
    fn place_of_stale(&self) -> usize {
        self.plan.clients + 2
    }

    /// Whether this is its connection.
    pub(super) fn shows_again(&self, client: usize) -> bool {
        client == self.place_of_stale()
    }

    /// One request of one group. It goes on when faults have ended.
    pub(super) fn show_again(&mut self) {
        self.after(EVERY_MICROS, Event::ShowAgain);
        let place = self.tenures[self.random.index(self.tenures.len())].clone();
        let known = self.stale.executed.get(&place.group()).map_or(0, VecDeque::len);
        let Some(primary) = self.primary_of(&place).filter(|_| known > 0) else { return };
        let request = self.stale.executed[&place.group()][self.random.index(known)].clone();
        self.count(Nemesis::StaleRequests, 1, 0);
        self.stale.shown += 1;
        let id = self.stale.shown;
        let client = self.place_of_stale();
        let frame = wire::encode(&RequestFrame { id, request: request.clone() });
        // An answer to what a liar passed on is nobody's: no node gives such a number.
        let forward = PeerMessage::Forward { id: u64::MAX - id, client: ClientId([0; 32]), request };
        let forward = wire::encode(&forward);
        for to in place.nodes().filter(|node| index_of(*node) != primary) {
            let connection = ConnectionId(client as u64);
            self.send(Parcel::Request { to, client, connection, frame: frame.clone() });
            let liars = self.nodes.iter().enumerate().filter(|(_, node)| node.lies && node.core.is_some());
            let liars: Vec<usize> =
                liars.map(|(index, _)| index).filter(|index| *index != index_of(to)).collect();
            for liar in liars {
                self.reach(PASSED_ON);
                let from = NodeId::founder(liar);
                let (class, frame, link) = (Class::Request, forward.clone(), self.nodes[liar].life);
                self.send(Parcel::Peer { from, to, class, frame, link, only_life: None });
            }
        }
    }

    /// Who orders a group, as far as an honest replica knows.
    pub(super) fn primary_of(&self, place: &Tenure) -> Option<usize> {
        let honest = self.nodes.iter().filter(|node| !node.lies);
        let mut groups = honest.filter_map(|node| node.core.as_ref()).flat_map(|core| core.groups());
        let leader =
            groups.find_map(|group| group.leader().filter(|_| group.tenure().group() == place.group()));
        leader.map(index_of)
    }

    /// What it is told. Only that a backup keeps the request for its primary counts.
    pub(super) fn on_answer_to_stale(&mut self, frame: &[u8]) {
        if let Ok(AnswerFrame { answer: Answer::Kept { .. }, .. }) = wire::decode(&frame[4..]) {
            self.count(Nemesis::StaleRequests, 0, 1);
        }
    }
}
