//! Connections to the nodes, and who is believed to lead.

use super::collect::{Collectors, Members};
use super::connection::Open;
use super::dial::{self, Found, Slot};
use super::hints::Hints;
use crate::config::{ClusterConfig, GenesisNode};
use crate::kv;
use crate::limits::Limits;
use crate::ring::{GroupId, NodeId, RingMap};
use crate::transport::{ClientEndpoint, ClientLink, LinkError, Patience};
use crate::wire::{self, Answer, Hello, Request};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, RwLock};
use std::time::{Duration, Instant};
use tetrachord_consensus::pbft::ClientSigner;
use tetrachord_consensus::quorum::liars;
use thiserror::Error;
use tokio::sync::watch;

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

/// All connections of a client.
#[derive(Debug)]
pub(super) struct Links {
    cluster: ClusterConfig,
    endpoint: ClientEndpoint,
    open: BTreeMap<NodeId, Slot>,
    known: RwLock<Option<(Arc<RingMap>, Limits)>>,
    leaders: Mutex<BTreeMap<GroupId, NodeId>>,
    failed: Mutex<BTreeMap<NodeId, Instant>>,
    /// In Byzantine mode, whose requests every node is asked to tell about, and who waits for them.
    watched: Option<kv::Client>,
    members: Arc<Members>,
    collectors: Arc<Collectors>,
    hints: Arc<Hints>,
}

/// A node that did not answer, or knew no leader, is asked last for this long.
const AVOID_FOR: Duration = Duration::from_millis(1_000);

/// A node that does not even say within this time that a request has arrived is given up, and its connection with it:
/// another node is asked. What was asked may be asked again safely. On long links it is a few round trips.
const SILENCE: Duration = Duration::from_millis(150);
const SILENT_ROUND_TRIPS: u32 = 4;

/// So is one from which nothing at all comes for so many times that long: connections are kept alive more often.
const SILENT_TIMES_MAX: u32 = 3;

/// A caller waits so long for a connection; a node that is down does not refuse, it is silent. The dial goes on.
const CONNECT_PATIENCE: Duration = Duration::from_millis(600);

/// The next node is asked when the last one that was asked has not greeted within this time.
const NEXT_AFTER: Duration = Duration::from_millis(100);

impl Links {
    pub(super) fn new(cluster: ClusterConfig) -> std::io::Result<Self> {
        let is_ipv6 = cluster.nodes.iter().any(|node| node.address.is_ipv6());
        let endpoint = ClientEndpoint::new(is_ipv6)?;
        let open = cluster.nodes.iter().map(|node| (node.id, Slot::default())).collect();
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

    /// Begins to open connections to all of these nodes that have none; waits only if there is none at all.
    pub(super) async fn open_all(self: &Arc<Self>, nodes: &[NodeId]) {
        self.dial_all(nodes);
        if nodes.iter().any(|node| self.is_open(*node)) {
            return;
        }
        let mut tasks = tokio::task::JoinSet::new();
        for node in nodes.iter().copied() {
            let links = Arc::clone(self);
            tasks.spawn(async move { links.connect(node, CONNECT_PATIENCE).await.is_ok() });
        }
        // One connection more than the liars could have: enough to be heard.
        let mut opened = 0;
        while let Some(joined) = tasks.join_next().await {
            opened += usize::from(joined.unwrap_or(false));
            if opened > liars(nodes.len()) {
                return;
            }
        }
    }

    /// Connects to a node, whichever it is. Nodes are dialled one after the other: one that is down is silent, and waiting for it alone
    /// would cost its whole patience; all at once, and many clients that begin together would be too much for all of them.
    pub(super) async fn greet(self: &Arc<Self>) -> Result<(), LinkError> {
        let mut nodes = self.nodes();
        let turn = usize::try_from(getrandom::u32().unwrap_or(0)).expect("a number of 32 bits");
        nodes.rotate_left(turn % self.cluster.nodes.len());
        let mut tasks = tokio::task::JoinSet::new();
        let mut failed: Option<LinkError> = None;
        let mut not_asked = nodes.into_iter();
        loop {
            let next = not_asked.next();
            let is_last = next.is_none();
            if let Some(node) = next {
                let links = Arc::clone(self);
                tasks.spawn(async move { links.connect(node, CONNECT_PATIENCE).await.map(drop) });
            }
            let patience = if is_last { CONNECT_PATIENCE } else { NEXT_AFTER };
            match tokio::time::timeout(patience, tasks.join_next()).await {
                Ok(Some(Ok(Ok(())))) => return Ok(()),
                // That a node does not know this client is worth more to know than that others are silent.
                Ok(Some(Ok(Err(error)))) if !matches!(failed, Some(LinkError::Denied(_))) => {
                    failed = Some(error);
                }
                Ok(None) => {
                    let (address, reason) = (self.cluster.nodes[0].address, "nobody was dialled".to_string());
                    return Err(failed.unwrap_or(LinkError::Unreachable { address, reason }));
                }
                Ok(Some(_)) | Err(_) => {}
            }
        }
    }

    fn failed_lately(&self, node: NodeId) -> bool {
        let failed = self.failed.lock().expect("never held while panicking");
        failed.get(&node).is_some_and(|at| at.elapsed() < AVOID_FOR)
    }

    /// Sends a request to a node to which there is a connection, and waits for nothing; false if there is none.
    pub(super) fn cast(&self, node: NodeId, request: &Request) -> bool {
        self.open.get(&node).and_then(Slot::open).is_some_and(|open| open.cast(request))
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
        self.open.get(&node).and_then(Slot::open).is_some()
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
    pub(super) async fn connect(
        self: &Arc<Self>,
        node: NodeId,
        patience: Duration,
    ) -> Result<Arc<Open>, LinkError> {
        let result = self.try_connect(node, patience.min(CONNECT_PATIENCE)).await;
        self.note(node, result.is_err());
        result
    }

    async fn try_connect(self: &Arc<Self>, node: NodeId, patience: Duration) -> Result<Arc<Open>, LinkError> {
        let Some(known) = self.cluster.nodes.iter().find(|known| known.id == node) else {
            let address = self.cluster.nodes[0].address;
            let reason = format!("{node} is not in the cluster file");
            return Err(LinkError::Unreachable { address, reason });
        };
        let mut dialled = loop {
            match self.open[&node].find() {
                Found::Open(open) => return Ok(open),
                Found::Dialling(dialled) => break dialled,
                Found::Nothing(sender, failures) => self.begin_dial(known, sender, failures),
            }
        };
        let unreachable = |reason| LinkError::Unreachable { address: known.address, reason };
        match tokio::time::timeout(patience, dialled.wait_for(Option::is_some)).await {
            Ok(Ok(result)) => result.clone().expect("it was waited for"),
            Ok(Err(_)) => Err(unreachable("nobody dials it any more".to_string())),
            Err(_) => Err(unreachable(format!("no answer within {} ms", patience.as_millis()))),
        }
    }

    /// Begins to open connections to all of these nodes that have none, and waits for nothing.
    pub(super) fn dial_all(self: &Arc<Self>, nodes: &[NodeId]) {
        for known in self.cluster.nodes.iter().filter(|known| nodes.contains(&known.id)) {
            if let Found::Nothing(sender, failures) = self.open[&known.id].find() {
                self.begin_dial(known, sender, failures);
            }
        }
    }

    fn begin_dial(
        self: &Arc<Self>,
        known: &GenesisNode,
        sender: watch::Sender<dial::Dialled>,
        failures: u32,
    ) {
        let (links, known) = (Arc::clone(self), known.clone());
        tokio::spawn(async move {
            // Without chance all rest equally long.
            let chance = getrandom::u32().unwrap_or(u32::MAX);
            tokio::time::sleep(dial::rest(failures, chance)).await;
            let result = links.open(&known, dial::silence(failures)).await;
            links.open[&known.id].dialled(&sender, result);
        });
    }

    async fn open(&self, known: &GenesisNode, silence: Duration) -> Result<Arc<Open>, LinkError> {
        let ClusterConfig { identity, protocol, .. } = &self.cluster;
        let patience = Patience { silence, handshake: dial::HANDSHAKE };
        let connecting =
            ClientLink::connect(&self.endpoint, identity, known.address, known.key, protocol, patience);
        let (link, greeting, frames) = connecting.await?;
        if let Ok(hello) = wire::decode::<Hello>(&greeting) {
            let mut known = self.known.write().expect("never held while panicking");
            known.get_or_insert((Arc::new(hello.ring), hello.limits));
        }
        let (collectors, hints) = (Arc::clone(&self.collectors), Arc::clone(&self.hints));
        let open = Arc::new(Open::new(known.id, link, frames, collectors, hints));
        if let Some(client) = self.watched {
            // Only a connection that is gone does not take its first frame.
            let _ = open.cast(&Request::Watch { client });
        }
        Ok(open)
    }

    /// Asks a node and waits for its answer.
    pub(super) async fn call(
        self: &Arc<Self>,
        node: NodeId,
        request: &Request,
        patience: Duration,
    ) -> Result<Answer, CallError> {
        let open = self.connect(node, patience).await.map_err(CallError::Link)?;
        let Some((id, mut answer)) = open.ask(request) else {
            return Err(CallError::Clogged(node));
        };
        let asked = Instant::now();
        let before = open.link.packets_received();
        let (mut heard, mut silent) = (before, 0);
        let silence = SILENCE.max(open.link.round_trip() * SILENT_ROUND_TRIPS);
        loop {
            let left = patience.saturating_sub(asked.elapsed());
            let (waits, since) = (left.min(silence), Instant::now());
            match tokio::time::timeout(waits, &mut answer).await {
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
                    // on the same connection. Nor has one that is woken far too late: it has too much to do itself, and what
                    // came from the node may wait to be looked at.
                    let is_known = left >= silence && since.elapsed() < 2 * waits;
                    let is_dead = is_known && (now == before || silent >= SILENT_TIMES_MAX);
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
