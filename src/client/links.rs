//! Connections to the nodes, and who is believed to lead.

use super::collect::{Collectors, Members};
use super::hints::Hints;
use crate::config::ClusterConfig;
use crate::kv;
use crate::limits::Limits;
use crate::ring::{GroupId, NodeId, RingMap};
use crate::transport::{ClientEndpoint, ClientLink, LinkError};
use crate::wire::{self, Answer, AnswerFrame, Hello, Request, RequestFrame, RetryReason};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::time::{Duration, Instant};
use tetrachord_consensus::pbft::ClientSigner;
use tetrachord_consensus::quorum::liars;
use thiserror::Error;
use tokio::sync::{mpsc, oneshot};

/// Why a call has no answer.
#[derive(Clone, Debug, Error)]
pub(super) enum CallError {
    /// There is no connection; nothing was sent.
    #[error(transparent)]
    Link(LinkError),
    /// The connection does not take more; nothing was sent.
    #[error("{0} does not take requests fast enough")]
    Clogged(NodeId),
    /// The connection was lost before the answer came.
    #[error("the connection to {0} was lost before it answered")]
    Lost(NodeId),
    /// No answer came in time.
    #[error("{0} did not answer within {1} ms")]
    Late(NodeId, u128),
}

impl CallError {
    /// Whether the node may have got the request.
    pub(super) fn may_have_been_sent(&self) -> bool {
        matches!(self, Self::Lost(_) | Self::Late(..))
    }
}

type Waiting = Arc<Mutex<Option<BTreeMap<u64, oneshot::Sender<Answer>>>>>;

/// An open connection and who waits on it.
#[derive(Debug)]
pub(super) struct Open {
    link: ClientLink,
    waiting: Waiting,
    last_id: AtomicU64,
}

/// All connections of a client.
#[derive(Debug)]
pub(super) struct Links {
    cluster: ClusterConfig,
    endpoint: ClientEndpoint,
    open: BTreeMap<NodeId, tokio::sync::Mutex<Option<Arc<Open>>>>,
    known: RwLock<Option<(Arc<RingMap>, Limits)>>,
    leaders: Mutex<BTreeMap<GroupId, NodeId>>,
    failed: Mutex<BTreeMap<NodeId, Instant>>,
    /// In Byzantine mode, whose requests every node is asked to tell about, and who waits for them.
    watched: Option<kv::Client>,
    members: Arc<Members>,
    collectors: Arc<Collectors>,
    hints: Arc<Hints>,
    /// Nodes that [`Links::open_all`] is dialling just now.
    dialling: Mutex<BTreeSet<NodeId>>,
}

/// A node that did not answer, or knew no leader, is asked last for this long.
const AVOID_FOR: Duration = Duration::from_millis(1_000);

/// A node that does not even say within this time that a request has arrived is given up, and its connection with it:
/// another node is asked. What was asked may be asked again safely. On long links it is a few round trips.
const SILENCE: Duration = Duration::from_millis(150);
const SILENT_ROUND_TRIPS: u32 = 4;

/// So is one from which nothing at all comes for so many times that long: connections are kept alive more often.
const SILENT_TIMES_MAX: u32 = 3;

/// Opening a connection may take this long; a node that is down does not refuse, it is silent.
const CONNECT_PATIENCE: Duration = Duration::from_millis(600);

impl Links {
    pub(super) fn new(cluster: ClusterConfig) -> std::io::Result<Self> {
        let is_ipv6 = cluster.nodes.iter().any(|node| node.address.is_ipv6());
        let endpoint = ClientEndpoint::new(is_ipv6)?;
        let open = cluster.nodes.iter().map(|node| (node.id, tokio::sync::Mutex::default())).collect();
        let signer = cluster.signing.as_ref().map(|signing| ClientSigner::new(&signing.seed()));
        let known = cluster.ring.clone().map(|ring| (Arc::new(ring), Limits::default()));
        let members = Arc::new(cluster.ring.as_ref().map(Members::new).unwrap_or_default());
        Ok(Self {
            cluster,
            endpoint,
            open,
            known: RwLock::new(known),
            watched: signer.map(|signer| signer.name().0),
            collectors: Arc::new(Collectors::new(Arc::clone(&members))),
            hints: Arc::new(Hints::new(Arc::clone(&members))),
            members,
            dialling: Mutex::default(),
            leaders: Mutex::default(),
            failed: Mutex::default(),
        })
    }

    pub(super) fn nodes(&self) -> Vec<NodeId> {
        self.cluster.nodes.iter().map(|node| node.id).collect()
    }

    /// Who waits for outcomes that come by themselves.
    pub(super) fn collectors(&self) -> Arc<Collectors> {
        Arc::clone(&self.collectors)
    }

    /// In Byzantine mode, who has a replica of which group.
    pub(super) fn members(&self) -> &Members {
        &self.members
    }

    /// Byzantine mode: the node that most members of the group name as its primary.
    pub(super) fn primary(&self, group: GroupId) -> Option<NodeId> {
        self.hints.primary(group)
    }

    /// Opens connections to all of these nodes that have none; waits only if there is none at all.
    pub(super) async fn open_all(self: &Arc<Self>, nodes: &[NodeId]) {
        let mut tasks = tokio::task::JoinSet::new();
        let is_any_open = nodes.iter().any(|node| self.is_open(*node));
        for node in nodes.iter().copied().filter(|node| !self.is_open(*node) && !self.failed_lately(*node)) {
            // Whoever dials holds the connection's lock: many that wait for it would dial one after the other.
            if !self.dialling.lock().expect("never held while panicking").insert(node) {
                continue;
            }
            let links = Arc::clone(self);
            tasks.spawn(async move {
                let result = links.connect(node, CONNECT_PATIENCE).await;
                links.dialling.lock().expect("never held while panicking").remove(&node);
                result.is_ok()
            });
        }
        if is_any_open {
            tasks.detach_all();
        }
        // One connection more than the liars could have: enough to be heard.
        let mut opened = 0;
        while let Some(joined) = tasks.join_next().await {
            opened += usize::from(joined.unwrap_or(false));
            if opened > liars(nodes.len()) {
                tasks.detach_all();
                return;
            }
        }
    }

    fn failed_lately(&self, node: NodeId) -> bool {
        let failed = self.failed.lock().expect("never held while panicking");
        failed.get(&node).is_some_and(|at| at.elapsed() < AVOID_FOR)
    }

    /// Sends a request to a node to which there is a connection, and waits for nothing; false if there is none.
    pub(super) fn cast(&self, node: NodeId, request: &Request) -> bool {
        let slot = self.open.get(&node).and_then(|slot| slot.try_lock().ok());
        let Some(open) = slot.and_then(|slot| slot.clone()).filter(|open| !open.link.is_closed()) else {
            return false;
        };
        let id = open.last_id.fetch_add(1, Ordering::Relaxed) + 1;
        open.link.send(wire::encode(&RequestFrame { id, request: request.clone() }))
    }

    pub(super) fn ring(&self) -> Option<(Arc<RingMap>, Limits)> {
        self.known.read().expect("never held while panicking").clone()
    }

    /// Byzantine mode: why members of the group did not take what was brought to them since then, as they say.
    pub(super) fn refusals_since(&self, group: GroupId, since: Instant) -> Vec<String> {
        self.hints.refusals_since(group, since)
    }

    pub(super) fn leader(&self, group: GroupId) -> Option<NodeId> {
        self.leaders.lock().expect("never held while panicking").get(&group).copied()
    }

    pub(super) fn set_leader(&self, group: GroupId, leader: Option<NodeId>) {
        let mut leaders = self.leaders.lock().expect("never held while panicking");
        match leader {
            Some(leader) => leaders.insert(group, leader),
            None => leaders.remove(&group),
        };
    }

    /// The nodes in the order in which they should be asked: those to which there is a connection come first, those that
    /// were of no use lately last.
    pub(super) fn by_promise(&self, nodes: &[NodeId]) -> Vec<NodeId> {
        by_promise(nodes, |node| self.failed_lately(node), |node| self.is_open(node))
    }

    /// A node answers, and knows no leader: it may be cut off from the others, and they may know better.
    pub(super) fn knows_no_leader(&self, node: NodeId) {
        self.note(node, true);
    }

    fn is_open(&self, node: NodeId) -> bool {
        let slot = self.open.get(&node).and_then(|slot| slot.try_lock().ok());
        slot.is_some_and(|slot| slot.as_ref().is_some_and(|open| !open.link.is_closed()))
    }

    fn note(&self, node: NodeId, has_failed: bool) {
        let mut failed = self.failed.lock().expect("never held while panicking");
        if has_failed {
            failed.insert(node, Instant::now());
        } else {
            failed.remove(&node);
        }
    }

    /// The connection to a node, opened if need be.
    pub(super) async fn connect(&self, node: NodeId, patience: Duration) -> Result<Arc<Open>, LinkError> {
        let result = self.try_connect(node, patience.min(CONNECT_PATIENCE)).await;
        self.note(node, result.is_err());
        result
    }

    async fn try_connect(&self, node: NodeId, patience: Duration) -> Result<Arc<Open>, LinkError> {
        let known = self.cluster.nodes.iter().find(|known| known.id == node);
        let (Some(slot), Some(known)) = (self.open.get(&node), known) else {
            let address = self.cluster.nodes[0].address;
            let reason = format!("{node} is not in the cluster file");
            return Err(LinkError::Unreachable { address, reason });
        };
        let mut slot = slot.lock().await;
        if let Some(open) = slot.as_ref().filter(|open| !open.link.is_closed()) {
            return Ok(Arc::clone(open));
        }
        let ClusterConfig { identity, protocol, .. } = &self.cluster;
        let connecting =
            ClientLink::connect(&self.endpoint, identity, known.address, known.key, protocol, patience);
        let (link, greeting, frames) = connecting.await?;
        if let Ok(hello) = wire::decode::<Hello>(&greeting) {
            let mut known = self.known.write().expect("never held while panicking");
            known.get_or_insert((Arc::new(hello.ring), hello.limits));
        }
        let waiting: Waiting = Arc::new(Mutex::new(Some(BTreeMap::new())));
        tokio::spawn(hand_out(
            node,
            frames,
            Arc::clone(&waiting),
            Arc::clone(&self.collectors),
            Arc::clone(&self.hints),
        ));
        let open = Arc::new(Open { link, waiting, last_id: AtomicU64::new(0) });
        if let Some(client) = self.watched {
            let id = open.last_id.fetch_add(1, Ordering::Relaxed) + 1;
            let frame = wire::encode(&RequestFrame { id, request: Request::Watch { client } });
            // Only a connection that is gone does not take its first frame.
            let _ = open.link.send(frame);
        }
        *slot = Some(Arc::clone(&open));
        Ok(open)
    }

    /// Asks a node and waits for its answer.
    pub(super) async fn call(
        &self,
        node: NodeId,
        request: &Request,
        patience: Duration,
    ) -> Result<Answer, CallError> {
        let open = self.connect(node, patience).await.map_err(CallError::Link)?;
        let id = open.last_id.fetch_add(1, Ordering::Relaxed) + 1;
        let (sender, mut answer) = oneshot::channel();
        match open.waiting.lock().expect("never held while panicking").as_mut() {
            Some(waiting) => drop(waiting.insert(id, sender)),
            None => return Err(CallError::Clogged(node)),
        }
        let frame = wire::encode(&RequestFrame { id, request: request.clone() });
        if !open.link.send(frame) {
            open.forget(id);
            return Err(CallError::Clogged(node));
        }
        let asked = Instant::now();
        let before = open.link.packets_received();
        let (mut heard, mut silent) = (before, 0);
        let silence = SILENCE.max(open.link.round_trip() * SILENT_ROUND_TRIPS);
        loop {
            let left = patience.saturating_sub(asked.elapsed());
            match tokio::time::timeout(left.min(silence), &mut answer).await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(_)) => {
                    self.note(node, true);
                    return Err(CallError::Lost(node));
                }
                Err(_) => {
                    let now = open.link.packets_received();
                    silent = if now == heard { silent + 1 } else { 0 };
                    heard = now;
                    // A caller whose patience ends sooner has not waited long enough to know, and others may be waiting
                    // on the same connection.
                    let is_dead = left >= silence && (now == before || silent >= SILENT_TIMES_MAX);
                    if is_dead {
                        open.link.close();
                    }
                    if is_dead || asked.elapsed() >= patience {
                        open.forget(id);
                        self.note(node, true);
                        return Err(CallError::Late(node, asked.elapsed().as_millis()));
                    }
                }
            }
        }
    }
}

impl Open {
    fn forget(&self, id: u64) {
        if let Some(waiting) = self.waiting.lock().expect("never held while panicking").as_mut() {
            waiting.remove(&id);
        }
    }
}

/// Sorts nodes; among those of equal promise the order stays.
fn by_promise(
    nodes: &[NodeId],
    has_failed: impl Fn(NodeId) -> bool,
    is_open: impl Fn(NodeId) -> bool,
) -> Vec<NodeId> {
    let mut nodes = nodes.to_vec();
    nodes.sort_by_key(|node| (has_failed(*node), !is_open(*node)));
    nodes
}

/// Gives each answer to who waits for it; when the connection ends, everybody is told.
async fn hand_out(
    node: NodeId,
    mut frames: mpsc::Receiver<Bytes>,
    waiting: Waiting,
    collectors: Arc<Collectors>,
    hints: Arc<Hints>,
) {
    while let Some(body) = frames.recv().await {
        let Ok(AnswerFrame { id, answer }) = wire::decode::<AnswerFrame>(&body) else {
            break;
        };
        if let Answer::Outcomes { group, slot, replies } = answer {
            // What comes as the answer to a request may have been passed on, and be another node's words.
            if id == 0 {
                collectors.take(node, group, slot, replies);
            }
            continue;
        }
        if let Answer::Kept { group, leader } = answer {
            hints.note(node, group, leader);
        }
        let mut waiting = waiting.lock().expect("never held while panicking");
        match waiting.as_mut().and_then(|waiting| waiting.remove(&id)) {
            // Nobody waits any more: fine.
            Some(sender) => drop(sender.send(answer)),
            None => match answer {
                Answer::Refused { error: reason } | Answer::Unavailable { reason } => {
                    hints.note_refusal(node, &reason);
                }
                Answer::Retry { reason: RetryReason::Busy, .. } => {
                    hints.note_refusal(node, "too much waits here");
                }
                _ => {}
            },
        }
    }
    waiting.lock().expect("never held while panicking").take();
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A node that is cut off from the others answers well and knows nothing: an open connection to it must not draw all
    /// requests.
    #[test]
    fn whoever_was_of_no_use_is_asked_after_those_that_were_not_asked_yet() {
        let nodes = [NodeId(1), NodeId(2), NodeId(3)];
        let is_open = |node| node == NodeId(2);
        assert_eq!(by_promise(&nodes, |_| false, is_open)[0], NodeId(2));
        assert_eq!(by_promise(&nodes, |node| node == NodeId(2), is_open), [NodeId(1), NodeId(3), NodeId(2)]);
        assert_eq!(by_promise(&nodes, |_| true, |_| true), nodes, "each in its turn");
    }
}
