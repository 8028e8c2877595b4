//! The liars of `demo --mode byzantine`: which nodes lie, which lies, and what came of them.

use super::check::remark;
use super::health::Answer;
use super::status::ask_all;
use crate::client::Client;
use crate::config::ChaosConfig;
use crate::ring::NodeId;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tetrachord_consensus::pbft::Lie;
use tetrachord_consensus::quorum;

/// How often the nodes are asked what is going on.
const SAMPLE: Duration = Duration::from_millis(250);

/// The nodes that lie: as many as the group survives, the first primary among them.
pub(crate) fn liars(nodes: usize) -> Vec<usize> {
    // In epoch 1 the primary of view 0 is the second replica.
    (0..quorum::liars(nodes)).map(|turn| 1 + turn).collect()
}

/// What the first primary begins with: lies that only a primary can tell. To order slowly takes some time to be noticed.
const FIRST: [Lie; 4] = [Lie::Equivocate, Lie::OrderSlowly, Lie::OrderSlowly, Lie::OrderSlowly];

/// All lies in turn, so that each is told for a while in a run of so many seconds.
pub(crate) fn chaos(seconds: u64, turn: usize) -> ChaosConfig {
    let others = Lie::ALL.into_iter().filter(|lie| !FIRST.contains(lie));
    let mut lies: Vec<Lie> = FIRST.into_iter().chain(others).collect();
    lies.rotate_left(turn);
    let every_millis = (seconds * 1000 / lies.len() as u64).clamp(500, 5_000);
    ChaosConfig {
        allow: true,
        lies: lies.into_iter().map(|lie| lie.name().to_string()).collect(),
        every_millis,
    }
}

/// What came of one lie.
#[derive(Clone, Debug, Default)]
struct Fate {
    told: u64,
    rejected: u64,
    views: Vec<(u64, u64)>,
}

impl Fate {
    fn in_words(&self) -> String {
        let mut words = Vec::new();
        if self.rejected > 0 {
            words.push(format!("{} messages rejected", self.rejected));
        }
        for (before, after) in &self.views {
            words.push(format!("view change v{before} -> v{after}"));
        }
        match (self.told, words.is_empty()) {
            (0, _) => "no occasion".to_string(),
            (_, true) => "outvoted".to_string(),
            (_, false) => words.join(", "),
        }
    }
}

/// One look at the cluster.
#[derive(Clone, Debug, Default)]
struct Sample {
    told: BTreeMap<String, u64>,
    rejected: u64,
    view: u64,
}

impl Sample {
    fn of(answers: &[Answer], liars: &[NodeId]) -> Self {
        let mut sample = Self::default();
        for (node, status) in answers.iter().filter_map(|(node, answer)| Some((node, answer.as_ref().ok()?)))
        {
            for group in &status.groups {
                if liars.contains(node) {
                    for (lie, count) in &group.told {
                        *sample.told.entry(lie.clone()).or_default() += count;
                    }
                } else {
                    sample.rejected += group.rejected;
                    sample.view = sample.view.max(group.view);
                }
            }
        }
        sample
    }
}

/// Watches what the liars do and what the others make of it.
#[derive(Clone, Debug)]
pub(crate) struct Watch {
    fates: Arc<Mutex<BTreeMap<String, Fate>>>,
    suspects: Arc<Mutex<BTreeSet<String>>>,
}

impl Watch {
    /// Watches until it is dropped, and names lies as they happen.
    pub(crate) fn start(client: Client, liars: Vec<NodeId>) -> Self {
        let fates = Lie::ALL.iter().map(|lie| (lie.name().to_string(), Fate::default())).collect();
        let watch = Self { fates: Arc::new(Mutex::new(fates)), suspects: Arc::default() };
        let task = watch.clone();
        tokio::spawn(async move { task.run(client, liars).await });
        watch
    }

    async fn run(self, client: Client, liars: Vec<NodeId>) {
        let mut before = Sample::default();
        let mut current = String::new();
        while Arc::strong_count(&self.fates) > 1 {
            tokio::time::sleep(SAMPLE).await;
            let answers = ask_all(&client).await;
            self.note_suspects(&answers, &liars);
            let now = Sample::of(&answers, &liars);
            let grown = now
                .told
                .iter()
                .map(|(lie, count)| (lie, count.saturating_sub(before.told.get(lie).copied().unwrap_or(0))));
            let most = grown.max_by_key(|(_, count)| *count).filter(|(_, count)| *count > 0);
            if let Some((lie, _)) = most
                && *lie != current
            {
                current.clone_from(lie);
                let names: Vec<String> = liars.iter().map(ToString::to_string).collect();
                remark(&format!("{} now: {current}", names.join(", ")));
            }
            self.attribute(&current, &before, &now);
            // A node that restarts begins to count anew.
            let told =
                now.told.into_iter().chain(before.told).fold(BTreeMap::new(), |mut all, (lie, count)| {
                    let known: &mut u64 = all.entry(lie).or_default();
                    *known = (*known).max(count);
                    all
                });
            before = Sample { told, rejected: now.rejected, view: before.view.max(now.view) };
        }
    }

    fn note_suspects(&self, answers: &[Answer], liars: &[NodeId]) {
        let mut suspects = self.suspects.lock().expect("never held while panicking");
        let honest = answers.iter().filter(|(node, _)| !liars.contains(node));
        for status in honest.filter_map(|(_, answer)| answer.as_ref().ok()) {
            let lies = status.groups.iter().flat_map(|group| &group.suspects);
            suspects.extend(lies.filter(|text| !text.contains("do not hold")).cloned());
        }
    }

    fn attribute(&self, current: &str, before: &Sample, now: &Sample) {
        let mut fates = self.fates.lock().expect("never held while panicking");
        for (lie, fate) in fates.iter_mut() {
            fate.told = fate.told.max(now.told.get(lie).copied().unwrap_or(0));
        }
        if let Some(fate) = fates.get_mut(current) {
            fate.rejected += now.rejected.saturating_sub(before.rejected);
            if now.view > before.view {
                fate.views.push((before.view, now.view));
            }
        }
    }

    /// For people.
    pub(crate) fn words(&self, liars: &[NodeId]) -> String {
        let names: Vec<String> = liars.iter().map(ToString::to_string).collect();
        let mut lines = vec![format!("liars        {}", names.join(", "))];
        for (lie, fate) in self.fates.lock().expect("never held while panicking").iter() {
            lines.push(format!("  {lie:<17} told {:>6} times: {}", fate.told, fate.in_words()));
        }
        let suspects = self.suspects.lock().expect("never held while panicking");
        lines.push(format!(
            "  {} signed proofs of lies are kept by the others, the first of them:",
            suspects.len()
        ));
        lines.extend(suspects.iter().take(3).map(|suspect| format!("    {suspect}")));
        lines.join("\n")
    }

    /// For programs.
    pub(crate) fn json(&self) -> Value {
        let fates = self.fates.lock().expect("never held while panicking");
        let lies = fates.iter().map(|(lie, fate)| {
            let fate = json!({ "told": fate.told, "rejected": fate.rejected, "views": fate.views });
            (lie.clone(), fate)
        });
        Value::Object(lies.collect())
    }

    /// View changes that were seen.
    pub(crate) fn view_changes(&self) -> usize {
        let fates = self.fates.lock().expect("never held while panicking");
        fates.values().map(|fate| fate.views.len()).sum()
    }
}
