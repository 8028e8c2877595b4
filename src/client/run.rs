//! The shell around [`super::core`]: clocks, connections, signatures and waiting. It decides nothing.
//!
//! One lock around the core, held for as long as one input takes and never while anything is signed, encoded or waited for. What the
//! core puts out is carried out by whoever brought the input. Three kinds of tasks bring the rest: one for each connection, from its
//! dial to its end, which hands over what comes; one that wakes when something is due; and in Byzantine mode one that signs what has
//! gathered meanwhile. They hold the shell only while they work, and end with it: a client that is dropped dials no more.

use super::ClientOptions;
use super::core::{
    Ask, CallId, Core, Done, Effect, Heard, LinkId, Now, Outgoing, Setup, ToSign, Unreachable,
};
use crate::config::ClusterConfig;
use crate::ring::{Atlas, NodeId};
use crate::transport::{ClientEndpoint, ClientLink, LinkError, Patience};
use crate::wire::{self, AnswerFrame, Request, RequestFrame};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, RwLock, Weak};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tetrachord_consensus::pbft::{Bundle, ClientSigner};
use tokio::runtime::Handle;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::Instant;

/// A dial that was answered may take so long.
const HANDSHAKE: Duration = Duration::from_secs(8);

/// Frames of one connection that are handed over together.
const FRAMES_AT_ONCE: usize = 64;

/// When nothing is due, in microseconds.
const NEVER: u64 = u64::MAX;

/// What runs a client.
#[derive(Debug)]
pub(super) struct Shell {
    state: Mutex<State>,
    links: RwLock<BTreeMap<NodeId, (LinkId, Arc<ClientLink>)>>,
    last_link: AtomicU64,
    /// Where its tasks run, whoever asks from wherever.
    runtime: Handle,
    cluster: ClusterConfig,
    endpoint: ClientEndpoint,
    began: Instant,
    /// When whoever waits for the time wakes next, in microseconds since the client began.
    wakes_at: AtomicU64,
    wake: Arc<Notify>,
    sign: Arc<Notify>,
    tasks: Mutex<JoinSet<()>>,
}

/// The core, and who waits for which of its calls.
#[derive(Debug)]
struct State {
    core: Core,
    waiting: BTreeMap<CallId, oneshot::Sender<Done>>,
}

/// What is to be carried out, when the lock is given up.
struct Output {
    effects: Vec<Effect>,
    done: Vec<(oneshot::Sender<Done>, Done)>,
    due: Option<Duration>,
    has_bundles: bool,
}

impl State {
    fn take_output(&mut self) -> Output {
        let mut done = Vec::new();
        let mut effects = self.core.take_effects();
        effects.retain_mut(|effect| {
            let Effect::Done(call, came_to) = effect else { return true };
            if let Some(sender) = self.waiting.remove(call) {
                done.push((sender, std::mem::replace(came_to, Done::Seen(0))));
            }
            false
        });
        Output { effects, done, due: self.core.next_due(), has_bundles: self.core.has_bundles() }
    }
}

fn micros(due: Option<Duration>) -> u64 {
    // Not before it is due.
    due.map_or(NEVER, |due| u64::try_from(due.as_nanos().div_ceil(1_000)).unwrap_or(NEVER))
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("never held while panicking")
}

impl Shell {
    /// Must be called inside a tokio runtime.
    pub(super) fn start(cluster: ClusterConfig, options: ClientOptions) -> std::io::Result<Arc<Self>> {
        let mut seed = [0; 32];
        getrandom::fill(&mut seed).map_err(|error| std::io::Error::other(error.to_string()))?;
        let setup = Setup::of(&cluster, options, seed)
            .map_err(|reason| std::io::Error::new(std::io::ErrorKind::InvalidInput, reason))?;
        let endpoint = ClientEndpoint::new(cluster.nodes.iter().map(|node| &node.address))?;
        let signer = cluster.signing.as_ref().map(|signing| ClientSigner::new(&signing.seed()));
        let shell = Arc::new(Self {
            state: Mutex::new(State { core: Core::new(setup), waiting: BTreeMap::new() }),
            links: RwLock::default(),
            last_link: AtomicU64::new(0),
            runtime: Handle::current(),
            cluster,
            endpoint,
            began: Instant::now(),
            wakes_at: AtomicU64::new(NEVER),
            wake: Arc::default(),
            sign: Arc::default(),
            tasks: Mutex::default(),
        });
        shell.spawn(keep_time(Arc::downgrade(&shell), Arc::clone(&shell.wake), shell.began));
        if let Some(signer) = signer {
            shell.spawn(keep_signing(Arc::downgrade(&shell), Arc::clone(&shell.sign), signer));
        }
        Ok(shell)
    }

    /// Asks, and waits for what it comes to. Whoever drops the future waits no more.
    pub(super) async fn ask(self: &Arc<Self>, ask: Ask) -> Done {
        let (sender, done) = oneshot::channel();
        let call = self.bring(|state, now| {
            let call = state.core.ask(now, ask);
            state.waiting.insert(call, sender);
            call
        });
        let mut asked = Asked { shell: self, call, is_done: false };
        let done = done.await.expect("the core tells of every call that is not forgotten");
        asked.is_done = true;
        done
    }

    /// The ring, if it is known.
    pub(super) fn atlas(&self) -> Option<Arc<Atlas>> {
        locked(&self.state).core.atlas().cloned()
    }

    pub(super) fn nodes(&self) -> Vec<NodeId> {
        self.cluster.nodes.iter().map(|node| node.id).collect()
    }

    fn now(&self) -> Now {
        Now { at: self.began.elapsed(), wall_micros: wall_micros() }
    }

    /// Brings an input to the core, and carries out what it puts out.
    fn drive<T>(self: &Arc<Self>, input: impl FnOnce(&mut Core, Now) -> T) -> T {
        self.bring(|state, now| input(&mut state.core, now))
    }

    fn bring<T>(self: &Arc<Self>, input: impl FnOnce(&mut State, Now) -> T) -> T {
        let (result, output) = {
            let mut state = locked(&self.state);
            let result = input(&mut state, self.now());
            (result, state.take_output())
        };
        self.wake_by(output.due);
        self.carry_out(output);
        result
    }

    /// Tells the core how late it is. When to do so again, in microseconds since the client began.
    fn tick(self: &Arc<Self>) -> u64 {
        let output = {
            let mut state = locked(&self.state);
            state.core.tick(self.now());
            let output = state.take_output();
            self.wakes_at.store(micros(output.due), Ordering::SeqCst);
            output
        };
        self.carry_out(output);
        self.wakes_at.load(Ordering::SeqCst)
    }

    /// Whoever keeps the time wakes by then.
    fn wake_by(&self, due: Option<Duration>) {
        let due = micros(due);
        if self.wakes_at.fetch_min(due, Ordering::SeqCst) > due {
            self.wake.notify_one();
        }
    }

    /// Carries out what the core has put out, and what it puts out when it is told how that went.
    fn carry_out(self: &Arc<Self>, output: Output) {
        if output.has_bundles {
            self.sign.notify_one();
        }
        for (sender, done) in output.done {
            // Nobody waits any more: fine.
            let _ = sender.send(done);
        }
        for effect in output.effects {
            match effect {
                Effect::Dial { node, rest, silence } => self.dial(node, rest, silence),
                Effect::Send { node, link, id, outgoing } => {
                    if !self.send(node, link, id, outgoing) {
                        self.drive(|core, now| core.not_sent(now, node, id));
                    }
                }
                Effect::Look(node) => {
                    if let Some((_, link)) = self.link(node) {
                        let heard = Heard { packets: link.packets_received(), round_trip: link.round_trip() };
                        self.drive(|core, now| core.heard(now, node, heard));
                    }
                }
                // Its task ends with it, and finds that the core knows.
                Effect::Close(node, number) => self.take_link(node, number),
                Effect::Done(..) => unreachable!("whoever waits was told"),
            }
        }
    }

    fn link(&self, node: NodeId) -> Option<(LinkId, Arc<ClientLink>)> {
        self.links.read().expect("never held while panicking").get(&node).cloned()
    }

    /// Takes a connection out, if it is still the one to the node, and ends it.
    fn take_link(&self, node: NodeId, number: LinkId) {
        let mut links = self.links.write().expect("never held while panicking");
        if links.get(&node).is_some_and(|(known, _)| *known == number)
            && let Some((_, link)) = links.remove(&node)
        {
            link.close();
        }
    }

    /// Sends a request over this connection; false if it is not there any more, or does not take it.
    fn send(&self, node: NodeId, number: LinkId, id: u64, outgoing: Outgoing) -> bool {
        let link = self.link(node).filter(|(known, _)| *known == number);
        link.is_some_and(|(_, link)| {
            link.send(wire::encode(&RequestFrame { id, request: outgoing.encode() }))
        })
    }

    /// Runs a task that ends with the shell.
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = locked(&self.tasks);
        while tasks.try_join_next().is_some() {}
        tasks.spawn_on(task, &self.runtime);
    }

    fn dial(self: &Arc<Self>, node: NodeId, rest: Duration, silence: Duration) {
        let known = self.cluster.nodes.iter().find(|known| known.id == node);
        let known = known.expect("only nodes of the cluster file are dialled").clone();
        let (identity, protocol) = (self.cluster.identity.clone(), self.cluster.protocol.clone());
        let (shell, endpoint) = (Arc::downgrade(self), self.endpoint.clone());
        self.spawn(async move {
            tokio::time::sleep(rest).await;
            let patience = Patience { silence, handshake: HANDSHAKE };
            let connecting =
                ClientLink::connect(&endpoint, &identity, &known.address, known.key, &protocol, patience);
            match connecting.await {
                Ok((link, greeting, frames)) => hand_over(&shell, node, link, &greeting, frames).await,
                Err(error) => {
                    let why = match error {
                        LinkError::Denied(_) => Unreachable::Denied(error.to_string()),
                        LinkError::Unreachable { .. } => Unreachable::Silent(error.to_string()),
                    };
                    if let Some(shell) = shell.upgrade() {
                        shell.drive(|core, now| core.unreachable(now, node, &why));
                    }
                }
            }
        });
    }

    /// Signs requests together, and brings them to nodes.
    fn sign(&self, signer: &ClientSigner, to_sign: &ToSign) {
        let group = to_sign.group;
        let bundle = Bundle::sign(&to_sign.domain, signer, &to_sign.requests).bytes().clone();
        for (node, link, id) in &to_sign.to {
            // Whoever does not take it is shown it again.
            let request = Request::Submit { group, bundle: bundle.clone() };
            let _ = self.send(*node, *link, *id, Outgoing::Request(request));
        }
    }
}

/// A call that somebody waits for.
struct Asked<'a> {
    shell: &'a Arc<Shell>,
    call: CallId,
    is_done: bool,
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        if !self.is_done {
            self.shell.bring(|state, now| {
                state.waiting.remove(&self.call);
                state.core.forget(now, self.call);
            });
        }
    }
}

/// Hands what comes from a node over to the core, until the connection ends.
async fn hand_over(
    shell: &Weak<Shell>,
    node: NodeId,
    link: ClientLink,
    greeting: &Bytes,
    mut frames: mpsc::Receiver<Bytes>,
) {
    let link = Arc::new(link);
    let number = {
        let Some(shell) = shell.upgrade() else { return };
        let number = LinkId(shell.last_link.fetch_add(1, Ordering::Relaxed) + 1);
        let known = (number, Arc::clone(&link));
        shell.links.write().expect("never held while panicking").insert(node, known);
        let hello = wire::decode(greeting).ok();
        shell.drive(|core, now| core.greeted(now, node, number, hello));
        number
    };
    let mut taken = Vec::new();
    while frames.recv_many(&mut taken, FRAMES_AT_ONCE).await > 0 {
        let answers: Result<Vec<AnswerFrame>, _> = taken.drain(..).map(|body| wire::decode(&body)).collect();
        let Some(shell) = shell.upgrade() else { return };
        // What cannot be read ends the connection.
        let Ok(answers) = answers else { break };
        shell.drive(|core, now| answers.into_iter().for_each(|answer| core.answered(now, node, answer)));
    }
    link.close();
    let Some(shell) = shell.upgrade() else { return };
    shell.take_link(node, number);
    // One that was given up is none of the core's any more.
    shell.drive(|core, now| core.lost(now, node, number));
}

/// Wakes the core when something is due. Waits without holding the shell.
async fn keep_time(shell: Weak<Shell>, wake: Arc<Notify>, began: Instant) {
    loop {
        let wakes_at = {
            let Some(shell) = shell.upgrade() else { return };
            shell.tick()
        };
        match began.checked_add(Duration::from_micros(wakes_at)).filter(|_| wakes_at != NEVER) {
            Some(until) => _ = tokio::time::timeout_at(until, wake.notified()).await,
            None => wake.notified().await,
        }
    }
}

/// Signs what has gathered while something else was signed. Waits without holding the shell.
async fn keep_signing(shell: Weak<Shell>, sign: Arc<Notify>, signer: ClientSigner) {
    loop {
        sign.notified().await;
        {
            let Some(shell) = shell.upgrade() else { return };
            let bundles = shell.drive(Core::take_bundles);
            bundles.iter().for_each(|to_sign| shell.sign(&signer, to_sign));
        }
        // Others may have something to add to the next bundle.
        tokio::task::yield_now().await;
    }
}

/// Microseconds since 1970.
pub(crate) fn wall_micros() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}
