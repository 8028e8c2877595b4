//! A trial: clients use a cluster in the real world while nemeses break it; then it must come to rest, and what the clients saw is
//! judged.
//!
//! What must hold, whatever was broken:
//!
//! * the history is linearizable: nothing acknowledged is lost, nothing applies twice, no read is stale;
//! * no node ends by itself, unless its disk failed it;
//! * once faults stop, every client is answered again, every key can be read, and the nodes become equal, within [`CALM`].
//!
//! What makes a trial void, and is no verdict on the cluster: a nemesis that had no effect, a history that shows nothing, a
//! judge that gave up.

mod client;
mod report;
mod schedule;
mod timeline;

use crate::nemesis::Nemesis;
use crate::random::Random;
use crate::workload::Workload;
use crate::world::Kind;
use crate::world::real::{RealWorld, Setup, Statuses, Strike};
use anyhow::Context;
use client::{Recorder, Refused, Work};
use indicatif::ProgressBar;
use schedule::{Step, Turns};
use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::Path;
use std::sync::mpsc::Receiver;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};
use tetrachord::Client;
use tetrachord::client::ClientOptions;
use tetrachord::config::ClusterConfig;
use tetrachord::wire::NodeStatus;
use tetrachord_checker::{
    Counterexample, History, Judgement, Limits, Operation, Verdict, check, counterexample,
};
use timeline::Timeline;
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};

/// Once faults stop, the cluster must have come to rest within this time. Replicas that have lost their patience with many
/// primaries in a row wait up to a minute for the next.
pub const CALM: Duration = Duration::from_secs(90);

/// A cluster must serve within this time after its start.
const START: Duration = Duration::from_secs(60);

/// Nodes scrub all of their state more often than this.
const SCRUB: Duration = Duration::from_secs(10);

/// How often the world is looked after.
const LOOK: Duration = Duration::from_millis(20);

/// What a trial is.
#[derive(Clone, Debug)]
pub struct Options {
    /// The cluster, and what is at work.
    pub setup: Setup,
    /// What clients do.
    pub workload: Workload,
    /// How long things are broken.
    pub seconds: u64,
    /// How many clients.
    pub clients: usize,
    /// How many keys at a time.
    pub keys: u64,
    /// Operations per second that all clients together begin at most.
    pub rate: u64,
    /// Ends the names of all keys. Nobody may have used it before on this cluster: a history begins with keys that are not there.
    pub run: u64,
}

/// One strike from its beginning to its mending, in nanoseconds since the start.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Span {
    nemesis: Nemesis,
    nodes: Vec<usize>,
    words: String,
    from: u64,
    to: u64,
}

/// What a nemesis did in a trial.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Effect {
    /// How often it struck.
    pub strikes: u64,
    /// What that changed, in the nemesis's own count.
    pub effect: u64,
}

/// What a trial came to.
#[derive(Debug)]
pub struct Outcome {
    /// Promises that were broken, in words. Empty is good.
    pub broken: Vec<String>,
    /// Why the trial shows nothing, if it does not.
    pub void: Vec<String>,
    /// What each nemesis did.
    pub effects: BTreeMap<Nemesis, Effect>,
    /// What clients saw.
    pub history: History,
    /// The judge's verdict on it.
    pub judgement: Judgement,
    /// Why operations were not done, or not known to be, and how often.
    pub reasons: BTreeMap<String, u64>,
    /// Somebody wanted it to end early.
    pub is_interrupted: bool,
    /// Why the history could not be written down, if so.
    pub not_written: Option<String>,
    /// Nanoseconds from the start until the last client had ended.
    end: u64,
    refused: Vec<Refused>,
    spans: Vec<Span>,
    timeline: Timeline,
    counterexample: Option<Counterexample>,
}

impl Outcome {
    /// The longest time without any answer.
    #[must_use]
    pub fn longest_gap(&self) -> Duration {
        Duration::from_nanos(self.timeline.gaps.first().map_or(0, |gap| gap.to - gap.from))
    }

    /// In a line.
    #[must_use]
    pub fn verdict(&self) -> String {
        match (self.broken.first(), self.void.first()) {
            (Some(broken), _) => format!("BROKEN: {broken}"),
            (None, Some(void)) => format!("void: {void}"),
            (None, None) => "everything held".to_string(),
        }
    }

    /// Writes the report, one HTML page that needs nothing else.
    pub fn write(&self, options: &Options, page: &Path) -> anyhow::Result<()> {
        let html = report::html(options, self);
        std::fs::write(page, html).with_context(|| format!("cannot write {}", page.display()))
    }
}

/// Carries a trial out. Faults are told as lines above the bar as they happen. Whatever becomes of it, what clients saw is written down in
/// the documented format.
pub fn run(options: &Options, bar: &ProgressBar, history: &mut dyn Write) -> anyhow::Result<Outcome> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let _inside = runtime.enter();
    let interrupted = watch_for_interrupts(&runtime)?;
    bar.set_message("the cluster starts");
    let mut world = RealWorld::start(&options.setup)?;
    let config = ClusterConfig::load(world.cluster_file())?;
    runtime.block_on(wait_for_service(&mut world, &config, &interrupted))?;
    let mut trial = Trial {
        options,
        bar,
        world,
        config,
        recorder: Recorder::new(options.clients),
        spans: Vec::new(),
        effects: BTreeMap::new(),
        broken: Vec::new(),
        void: Vec::new(),
        end: 0,
        interrupted,
        is_interrupted: false,
    };
    let observer = trial.client(Duration::from_secs(1))?;
    runtime.spawn(observe(observer, trial.world.statuses()));
    let mut tasks = trial.start_clients(&runtime)?;
    let done = trial.carry_out(&runtime, &mut tasks);
    trial.recorder.stop();
    if let Err(error) = done {
        while runtime.block_on(tasks.join_next()).is_some() {}
        return Err(match write_history(history, &trial.recorder.take().0) {
            Ok(()) => error,
            Err(lack) => anyhow::anyhow!("{error:#}; {lack:#}"),
        });
    }
    trial.judge(history)
}

fn write_history(history: &mut dyn Write, operations: &[Operation]) -> anyhow::Result<()> {
    let lines = operations.iter().map(|operation| operation.to_json() + "\n").collect::<String>();
    history
        .write_all(lines.as_bytes())
        .and_then(|()| history.flush())
        .context("the history cannot be written")
}

/// From now on an interrupt ends nothing by itself: what was made is taken away again first.
fn watch_for_interrupts(runtime: &Runtime) -> anyhow::Result<Receiver<()>> {
    let (sender, interrupted) = std::sync::mpsc::channel();
    let watch = |kind| signal(kind).context("cannot wait for interrupts");
    let (mut interrupts, mut ends) = (watch(SignalKind::interrupt())?, watch(SignalKind::terminate())?);
    runtime.spawn(async move {
        while tokio::select! { it = interrupts.recv() => it, it = ends.recv() => it }.is_some() {
            // Nobody listens any more when the trial is over.
            let _ = sender.send(());
        }
    });
    Ok(interrupted)
}

fn client_of(config: &ClusterConfig, deadline: Duration) -> anyhow::Result<Client> {
    let options = ClientOptions { deadline, attempt: Duration::from_millis(700) };
    Ok(Client::with_options(config.clone(), options)?)
}

async fn wait_for_service(
    world: &mut RealWorld,
    config: &ClusterConfig,
    interrupted: &Receiver<()>,
) -> anyhow::Result<()> {
    let client = client_of(config, Duration::from_secs(2))?;
    let since = Instant::now();
    loop {
        anyhow::ensure!(interrupted.try_recv().is_err(), "interrupted");
        // Nothing is written: the deployment may be somebody's.
        let Err(reason) = client.get("jepsen").await.done() else { return Ok(()) };
        if let Some((_, crash)) = world.crashed() {
            anyhow::bail!(crash);
        }
        anyhow::ensure!(since.elapsed() < START, "the cluster does not serve after {START:?}: {reason}");
    }
}

struct Trial<'a> {
    options: &'a Options,
    bar: &'a ProgressBar,
    world: RealWorld,
    config: ClusterConfig,
    recorder: Arc<Recorder>,
    spans: Vec<Span>,
    effects: BTreeMap<Nemesis, Effect>,
    broken: Vec<String>,
    void: Vec<String>,
    /// When the last client had ended.
    end: u64,
    interrupted: Receiver<()>,
    is_interrupted: bool,
}

impl Trial<'_> {
    /// A moment. False if somebody wants it all to end: then what was seen is judged, and everything that was made is taken away again.
    fn wait(&mut self) -> bool {
        self.is_interrupted |= self.interrupted.recv_timeout(LOOK).is_ok();
        !self.is_interrupted
    }

    fn client(&self, deadline: Duration) -> anyhow::Result<Client> {
        client_of(&self.config, deadline)
    }

    fn start_clients(&self, runtime: &Runtime) -> anyhow::Result<tokio::task::JoinSet<()>> {
        let mut tasks = tokio::task::JoinSet::new();
        let per_second = (self.options.rate as f64 / self.options.clients as f64).max(0.01);
        let work = Work {
            workload: self.options.workload,
            run: self.options.run,
            keys: self.options.keys,
            pause: Duration::from_secs_f64(1.0 / per_second),
        };
        for index in 0..self.options.clients {
            let client = self.client(Duration::from_secs(3))?;
            let seed = self.options.setup.seed ^ (index as u64 + 1) << 32;
            let recorder = Arc::clone(&self.recorder);
            tasks.spawn_on(client::run(index, client, recorder, work, seed), runtime.handle());
        }
        Ok(tasks)
    }

    /// Breaks things, lets the cluster come to rest, and looks at what is left.
    fn carry_out(&mut self, runtime: &Runtime, tasks: &mut tokio::task::JoinSet<()>) -> anyhow::Result<()> {
        self.torment()?;
        self.calm();
        self.recorder.stop();
        while let Some(ended) = runtime.block_on(tasks.join_next()) {
            ended.context("a client of the trial itself has failed")?;
        }
        self.end = self.recorder.now();
        if self.broken.is_empty() && !self.is_interrupted {
            self.read_all(runtime)?;
        }
        self.wait_for_scrub();
        // Others may go on writing to a deployment that is not ours.
        if self.broken.is_empty() && self.options.setup.existing.is_none() {
            self.wait_for_equality();
        }
        Ok(())
    }

    /// Breaks and mends for as long as was asked for.
    fn torment(&mut self) -> anyhow::Result<()> {
        let seed = Random::new(self.options.setup.seed);
        let of = |of_network: bool| {
            let all = self.options.setup.nemeses.iter().copied();
            let wanted =
                |nemesis: &Nemesis| nemesis.is_of_network() == of_network && *nemesis != Nemesis::Lies;
            Turns::new(all.filter(wanted).collect(), seed.clone())
        };
        let mut lanes = [(of(true), None), (of(false), None)];
        let lies = self.options.setup.nemeses.contains(&Nemesis::Lies);
        let lying = if lies { Some(self.strike(Nemesis::Lies)?) } else { None };
        let (since, length) = (Instant::now(), Duration::from_secs(self.options.seconds));
        while since.elapsed() < length && self.broken.is_empty() && !self.is_interrupted {
            self.bar.set_position(since.elapsed().as_secs());
            let answered: u64 = self.recorder.answered().iter().sum();
            self.bar.set_message(format!("{answered} operations answered"));
            for (turns, broken) in &mut lanes {
                match turns.due(since.elapsed()) {
                    Some(Step::Strike(nemesis)) => *broken = Some(self.strike(nemesis)?),
                    Some(Step::Mend) => self.mend(broken.take())?,
                    None => {}
                }
            }
            let [(_, network), (_, node)] = &lanes;
            self.look_after(&[network.as_ref(), node.as_ref()]);
            self.wait();
        }
        for (_, broken) in &mut lanes {
            self.mend(broken.take())?;
        }
        self.mend(lying)
    }

    fn strike(&mut self, nemesis: Nemesis) -> anyhow::Result<(Strike, u64)> {
        let from = self.recorder.now();
        let strike = self.world.strike(nemesis)?;
        self.broken.extend(strike.broken.clone());
        self.effects.entry(nemesis).or_insert(Effect { strikes: 0, effect: 0 }).strikes += 1;
        let line = format!("{:>7.2} s  {}", from as f64 / 1e9, strike.words);
        // A bar that is no terminal shows nothing.
        if self.bar.is_hidden() {
            // Whether anybody listens or not, the trial goes on.
            let _ = writeln!(std::io::stderr(), "{line}");
        } else {
            self.bar.println(line)
        }
        Ok((strike, from))
    }

    fn mend(&mut self, broken: Option<(Strike, u64)>) -> anyhow::Result<()> {
        let Some((strike, from)) = broken else { return Ok(()) };
        self.world.mend(&strike)?;
        let to = self.recorder.now();
        let Strike { nemesis, nodes, words, .. } = strike;
        self.spans.push(Span { nemesis, nodes, words, from, to });
        Ok(())
    }

    /// Nobody ends by itself, but those whose disks failed them, and liars, who may trip over their own lies.
    fn look_after(&mut self, strikes: &[Option<&(Strike, u64)>]) {
        if let Some((index, words)) = self.world.crashed() {
            let mut strikes = strikes.iter().flatten();
            let is_liar = self.world.liars().contains(&index);
            if !is_liar && !strikes.any(|(strike, _)| RealWorld::may_end(strike, index)) {
                self.broken.push(words);
            }
        }
    }

    /// Everybody is answered again.
    fn calm(&mut self) {
        let (before, since) = (self.recorder.answered(), Instant::now());
        while self.broken.is_empty() && !self.is_interrupted {
            self.look_after(&[]);
            let answered = self.recorder.answered();
            let waiting = answered.iter().zip(&before).filter(|(now, before)| **now < **before + 3).count();
            self.bar.set_message(format!("faults have stopped; {waiting} clients wait for answers"));
            if waiting == 0 {
                return;
            }
            if since.elapsed() > CALM {
                let statuses = self.statuses();
                self.broken.push(format!(
                    "{waiting} of {} clients got no answers within {CALM:?} after faults stopped; {}",
                    answered.len(),
                    describe(&statuses)
                ));
            }
            self.wait();
        }
    }

    /// Nothing acknowledged can be lost unseen.
    fn read_all(&mut self, runtime: &Runtime) -> anyhow::Result<()> {
        let reader = self.client(Duration::from_secs(30))?;
        let unread = runtime.block_on(client::read_all(reader, Arc::clone(&self.recorder)));
        if unread > 0 {
            self.broken.push(format!("{unread} keys could not be read after faults stopped"));
        }
        Ok(())
    }

    /// Damage that nothing has come across yet is found by the next scrub.
    fn wait_for_scrub(&mut self) {
        let since = Instant::now();
        let is_rotten = self.effects.contains_key(&Nemesis::Rot);
        while is_rotten && self.world.effect(Nemesis::Rot) == 0 && since.elapsed() < SCRUB {
            self.bar.set_message("damage is to be noticed");
            if !self.wait() {
                return;
            }
        }
    }

    fn statuses(&self) -> Vec<Option<NodeStatus>> {
        self.world.statuses().lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Honest nodes have applied the same, and have answered the same.
    fn wait_for_equality(&mut self) {
        let (since, liars) = (Instant::now(), self.world.liars());
        while !self.is_interrupted {
            self.bar.set_message("nodes become equal");
            self.look_after(&[]);
            let statuses = self.statuses();
            let honest = statuses.iter().enumerate().filter(|(index, _)| !liars.contains(index));
            let honest: Vec<Option<&NodeStatus>> = honest.map(|(_, status)| status.as_ref()).collect();
            let problem = match are_equal(&honest) {
                Ok(true) => return,
                Ok(false) if !self.broken.is_empty() => return,
                Ok(false) if since.elapsed() < CALM => None,
                Ok(false) => {
                    let what = describe(&statuses);
                    Some(format!("nodes are not equal {CALM:?} after faults stopped: {what}"))
                }
                Err(difference) => Some(difference),
            };
            if let Some(problem) = problem {
                self.broken.push(problem);
                return;
            }
            self.wait();
        }
    }

    fn judge(mut self, file: &mut dyn Write) -> anyhow::Result<Outcome> {
        if self.is_interrupted {
            self.void.push("it was interrupted".to_string());
        }
        for (nemesis, counted) in &mut self.effects {
            counted.effect = self.world.effect(*nemesis);
        }
        for nemesis in &self.options.setup.nemeses {
            match self.effects.get(nemesis) {
                None => {
                    self.void.push(format!("{} never had its turn; give it more --seconds", nemesis.name()))
                }
                Some(counted) if counted.effect == 0 => self.void.push(format!(
                    "{} had no effect ({})",
                    nemesis.name(),
                    nemesis.effect(Kind::Real).unwrap_or_default()
                )),
                Some(_) => {}
            }
        }
        // Nodes end now; the judge has the machine for itself.
        drop(self.world);
        self.bar.set_message("the history is judged");
        let (operations, refused, reasons) = self.recorder.take();
        let not_written = write_history(file, &operations).err().map(|lack| format!("{lack:#}"));
        let history =
            History::new(operations, refused.len()).context("the clients of the trial are wrong")?;
        let judgement = check(&history, Limits::default());
        let mut example = None;
        match &judgement.verdict {
            Verdict::Linearizable => {}
            Verdict::Undecided { key, configurations } => {
                self.void.push(format!("the judge gave up on key {key} after {configurations} steps"));
            }
            Verdict::Violation { key } => {
                example = counterexample::find(&history, key);
                let why = example.as_ref().map(|example| example.explanation.clone());
                self.broken.insert(0, format!("not linearizable: {}", why.unwrap_or_else(|| key.clone())));
            }
        }
        self.void.extend(history.is_too_thin());
        let timeline = Timeline::new(history.operations(), &refused, &self.spans, self.end);
        Ok(Outcome {
            broken: self.broken,
            void: self.void,
            effects: self.effects,
            history,
            judgement,
            reasons,
            is_interrupted: self.is_interrupted,
            not_written,
            end: self.end,
            refused,
            spans: self.spans,
            timeline,
            counterexample: example,
        })
    }
}

/// Asks all nodes about themselves, over and over, until nobody is interested any more.
async fn observe(client: Client, statuses: Statuses) {
    while Arc::strong_count(&statuses) > 1 {
        let mut tasks = tokio::task::JoinSet::new();
        for (index, node) in client.nodes().into_iter().enumerate() {
            let client = client.clone();
            tasks.spawn(async move { (index, client.status(node).await.ok()) });
        }
        for (index, status) in tasks.join_all().await {
            statuses.lock().unwrap_or_else(PoisonError::into_inner)[index] = status;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Whether all nodes have applied the same slots. An error if they have, and differ all the same.
fn are_equal(nodes: &[Option<&NodeStatus>]) -> Result<bool, String> {
    let mut groups: BTreeMap<u128, BTreeSet<(u64, String)>> = BTreeMap::new();
    for status in nodes {
        let Some(status) = status else { return Ok(false) };
        for group in &status.groups {
            groups.entry(group.group.0).or_default().insert((group.applied, group.digest.clone()));
        }
    }
    for (group, states) in groups {
        let slots: BTreeSet<u64> = states.iter().map(|(slot, _)| *slot).collect();
        if slots.len() > 1 {
            return Ok(false);
        }
        if states.len() > 1 {
            return Err(format!("replicas of g{group} applied the same slots and differ: {states:?}"));
        }
    }
    Ok(true)
}

fn describe(statuses: &[Option<NodeStatus>]) -> String {
    let of_node = |(index, status): (usize, &Option<NodeStatus>)| match status {
        None => format!("n{} does not answer", index + 1),
        Some(status) => {
            let groups = status.groups.iter().map(|group| {
                let damage = group.damage.as_ref().map_or(String::new(), |damage| format!(", {damage}"));
                format!("g{} applied {} in {}{damage}", group.group.0, group.applied, group.ballot)
            });
            format!("n{}: {}", index + 1, groups.collect::<Vec<_>>().join("; "))
        }
    };
    statuses.iter().enumerate().map(of_node).collect::<Vec<_>>().join(" | ")
}
