//! What a demo came to, for people and for programs. The verdict is told whatever becomes of the files.

use super::Exit;
use super::check::{example_of, exit_of, remark, say, word};
use super::cluster::Size;
use super::liars::Watch;
use super::picture;
use crate::ring::NodeId;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::time::{Duration, Instant};
use tetrachord_checker::{Counterexample, History, Judgement, Limits, Verdict, check};

/// What the demo counts.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) leader_kills: usize,
    pub(crate) restarts: usize,
    pub(crate) full_stops: usize,
    pub(crate) failover_ms: Vec<u128>,
    pub(crate) liars: Vec<NodeId>,
    /// Acknowledged increments that are missing at the end.
    pub(crate) lost: u64,
    /// Keys that nobody could read at the end.
    pub(crate) unread: usize,
}

/// What it found.
pub(crate) struct Report {
    size: Size,
    history: History,
    path: PathBuf,
    tally: Tally,
    watch: Option<Watch>,
    judgement: Judgement,
    took: Duration,
    thin: Option<String>,
    example: Option<Counterexample>,
}

impl Report {
    /// Judges the history.
    pub(crate) fn new(
        size: Size,
        history: History,
        path: PathBuf,
        tally: Tally,
        watch: Option<Watch>,
    ) -> Self {
        let since = Instant::now();
        let judgement = check(&history, Limits::default());
        let took = since.elapsed();
        let (thin, example) = (history.is_too_thin(), example_of(&history, &judgement));
        Self { size, history, path, tally, watch, judgement, took, thin, example }
    }

    pub(crate) fn exit(&self) -> Exit {
        match exit_of(&self.judgement.verdict, self.thin.is_some()) {
            Exit::Ok | Exit::Thin | Exit::Undecided if self.tally.lost > 0 => Exit::Violation,
            Exit::Ok if self.tally.unread > 0 => Exit::Unavailable,
            exit => exit,
        }
    }

    fn verdict(&self) -> String {
        match (&self.judgement.verdict, &self.thin) {
            (Verdict::Violation { .. }, _) => "NOT linearizable".to_string(),
            _ if self.tally.lost > 0 => "NOT linearizable: acknowledged writes are lost".to_string(),
            (Verdict::Undecided { configurations, .. }, _) => {
                format!("undecided after {configurations} steps")
            }
            (Verdict::Linearizable, Some(thin)) => format!("too thin: {thin}"),
            (Verdict::Linearizable, None) if self.tally.unread > 0 => {
                format!("linearizable, but {} keys could not be read at the end", self.tally.unread)
            }
            (Verdict::Linearizable, None) => {
                format!("linearizable ({} keys, {} ms)", self.judgement.keys, self.took.as_millis())
            }
        }
    }

    /// Prints it, and draws what cannot be explained.
    pub(crate) fn tell(&self, is_json: bool) -> anyhow::Result<()> {
        let place = picture::place(&self.path, None)?;
        let drawn = self.example.as_ref().map(|example| picture::draw(example, place));
        if is_json {
            say(&self.json(drawn.as_ref().and_then(|drawn| drawn.as_ref().ok())).to_string());
            return Ok(());
        }
        say(&self.words());
        match drawn {
            Some(Ok(picture)) => say(&format!("picture      {}", picture.display())),
            Some(Err(lack)) => remark(&format!("no picture: {lack}")),
            None => {}
        }
        Ok(())
    }

    fn json(&self, picture: Option<&PathBuf>) -> Value {
        let verdict = match self.exit() {
            Exit::Thin => "too thin",
            Exit::Violation => "violation",
            _ => word(&self.judgement.verdict),
        };
        json!({
            "verdict": verdict,
            "mode": self.size.mode(),
            "nodes": self.size.nodes(),
            "groups": self.size.groups(),
            "operations": self.history.operations().len(),
            "unknown": self.history.unknown(),
            "refused": self.history.failed(),
            "lost": self.tally.lost,
            "unread": self.tally.unread,
            "faults": {
                "leader_kills": self.tally.leader_kills,
                "restarts": self.tally.restarts,
                "full_stops": self.tally.full_stops,
            },
            "failover_ms": self.tally.failover_ms,
            "lies": self.watch.as_ref().map(Watch::json),
            "view_changes": self.watch.as_ref().map(Watch::view_changes),
            "explanation": self.example.as_ref().map(|example| &example.explanation),
            "history": self.path,
            "report": picture,
        })
    }

    fn words(&self) -> String {
        let tally = &self.tally;
        let (unknown, failed) = (self.history.unknown(), self.history.failed());
        let mut lines = vec![
            format!(
                "operations   {} ({unknown} unknown, {failed} surely not done)",
                self.history.operations().len()
            ),
            format!(
                "faults       {} leaders killed, {} full stops, {} restarts",
                tally.leader_kills, tally.full_stops, tally.restarts
            ),
        ];
        match &self.watch {
            Some(watch) => lines.push(watch.words(&tally.liars)),
            None => {
                let failovers: Vec<String> =
                    tally.failover_ms.iter().map(|millis| format!("{millis} ms")).collect();
                lines.push(format!("failover     {}", failovers.join(", ")));
            }
        }
        lines.push(format!("lost         {} acknowledged writes", tally.lost));
        lines.push(format!("verdict      {}", self.verdict()));
        lines.extend(self.example.as_ref().map(|example| format!("             {}", example.explanation)));
        lines.push(format!("history      {}", self.path.display()));
        lines.join("\n")
    }
}
