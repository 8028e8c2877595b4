//! `tetrachord check`: judge a history.

use super::picture::{self, Place};
use super::{Common, Exit};
use anyhow::Context;
use clap::Args;
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use tetrachord_checker::linearizability::BYTES_PER_STEP;
use tetrachord_checker::{
    Counterexample, History, HistoryError, Judgement, Limits, Verdict, check, counterexample,
};

const EXAMPLES: &str = "\
Example:
  tetrachord check run.jsonl

Exits 0 if the history is linearizable, 7 if not (a picture is drawn beside it), 10 if it is malformed, 11 if it is too thin to
mean anything, 12 if it could not be decided within the limit. The format is described in docs/testing.md.";

/// Judge a recorded history
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct CheckArgs {
    /// The history: JSON lines, one operation a line; - is standard input
    file: PathBuf,
    /// Where to draw a violation [default: beside the history, ending in .html]
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Give up on a key after so many steps of the search
    #[arg(long, value_name = "STEPS", default_value_t = Limits::default().configurations)]
    limit: usize,
}

/// What `check` has found out.
struct Findings {
    history: History,
    judgement: Judgement,
    thin: Option<String>,
    example: Option<Counterexample>,
}

pub(crate) fn run(common: &Common, args: &CheckArgs) -> anyhow::Result<Exit> {
    let place = picture::place(&args.file, args.report.as_deref())?;
    let bytes = read(&args.file).with_context(|| format!("cannot read {}", args.file.display()))?;
    let history = match parse(&bytes) {
        Ok(history) => history,
        Err(error) => return Ok(malformed(common, args, &error)),
    };
    drop(bytes);
    let judgement = check(&history, Limits { configurations: args.limit });
    let thin = history.is_too_thin().filter(|_| judgement.verdict == Verdict::Linearizable);
    let exit = exit_of(&judgement.verdict, thin.is_some());
    let example = example_of(&history, &judgement);
    let findings = Findings { history, judgement, thin, example };
    if common.json {
        let drawn = findings.example.as_ref().map(|example| picture::draw(example, place));
        say(&findings.json(drawn).to_string());
    } else {
        say(&findings.words());
        if let Some(example) = &findings.example {
            match picture::draw(example, place) {
                Ok(place) => say(&format!("picture: {}", place.display())),
                Err(lack) => remark(&format!("no picture: {lack}")),
            }
        }
    }
    Ok(exit)
}

fn read(file: &Path) -> std::io::Result<Vec<u8>> {
    if file.as_os_str() != "-" {
        return std::fs::read(file);
    }
    let mut bytes = Vec::new();
    std::io::stdin().read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn parse(bytes: &[u8]) -> Result<History, HistoryError> {
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let line = 1 + bytes[..error.valid_up_to()].iter().filter(|byte| **byte == b'\n').count();
        HistoryError { line, reason: "no UTF-8 text".to_string() }
    })?;
    History::parse(text)
}

fn malformed(common: &Common, args: &CheckArgs, error: &HistoryError) -> Exit {
    if common.json {
        let line = (error.line > 0).then_some(error.line);
        say(&json!({ "verdict": "malformed", "line": line, "explanation": error.to_string() }).to_string());
    } else {
        remark(&format!("error: {} is malformed: {error}", args.file.display()));
    }
    Exit::Malformed
}

impl Findings {
    fn json(&self, drawn: Option<Place>) -> Value {
        let (report, lack) = match drawn {
            Some(Ok(place)) => (Some(place), None),
            Some(Err(lack)) => (None, Some(lack)),
            None => (None, None),
        };
        json!({
            "verdict": if self.thin.is_some() { "too thin" } else { word(&self.judgement.verdict) },
            "operations": self.judgement.operations,
            "unknown": self.history.unknown(),
            "keys": self.judgement.keys,
            "explanation": self.example.as_ref().map(|example| &example.explanation).or(self.thin.as_ref()),
            "report": report,
            "no_report": lack,
        })
    }

    fn words(&self) -> String {
        let counted = format!(
            "{} operations ({} unknown) on {} keys",
            self.judgement.operations,
            self.history.unknown(),
            self.judgement.keys
        );
        match (&self.judgement.verdict, &self.thin, &self.example) {
            (_, Some(thin), _) => format!("too thin to mean anything: {thin} ({counted})"),
            (Verdict::Linearizable, ..) => format!("linearizable: {counted}"),
            (Verdict::Violation { .. }, _, Some(example)) => {
                format!("NOT linearizable: {counted}\n{}", example.explanation)
            }
            (Verdict::Violation { key }, ..) => format!("NOT linearizable: key {key:?}, {counted}"),
            (Verdict::Undecided { key, configurations }, ..) => format!(
                "undecided after {configurations} steps on key {key:?}: {counted}. Raise --limit (up to {BYTES_PER_STEP} bytes \
                 of memory a step), or record with more keys or fewer clients"
            ),
        }
    }
}

/// What of a violation cannot be explained.
pub(crate) fn example_of(history: &History, judgement: &Judgement) -> Option<Counterexample> {
    match &judgement.verdict {
        Verdict::Violation { key } => counterexample::find(history, key),
        _ => None,
    }
}

/// The verdict as programs see it.
pub(crate) fn word(verdict: &Verdict) -> &'static str {
    match verdict {
        Verdict::Linearizable => "linearizable",
        Verdict::Violation { .. } => "violation",
        Verdict::Undecided { .. } => "undecided",
    }
}

/// The verdict as an exit code.
pub(crate) fn exit_of(verdict: &Verdict, is_thin: bool) -> Exit {
    match verdict {
        Verdict::Violation { .. } => Exit::Violation,
        Verdict::Undecided { .. } => Exit::Undecided,
        Verdict::Linearizable if is_thin => Exit::Thin,
        Verdict::Linearizable => Exit::Ok,
    }
}

/// Prints lines of a verdict. Who does not take them still has the exit code, which is never lost for want of a reader.
pub(crate) fn say(text: &str) {
    let mut out = std::io::stdout().lock();
    match writeln!(out, "{text}").and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            remark(&format!("cannot write to standard output: {error}"));
        }
        _ => {}
    }
}

/// Says something beside, as far as somebody listens.
pub(crate) fn remark(text: &str) {
    // There is no third place to say that nobody listens here either.
    let _ = writeln!(std::io::stderr(), "{text}");
}
