//! `tetrachord check`: judge a history.

use super::output::print_json;
use super::{Common, Exit};
use anyhow::Context;
use clap::Args;
use serde_json::json;
use std::path::{Path, PathBuf};
use tetrachord_checker::linearizability::BYTES_PER_STEP;
use tetrachord_checker::{
    Counterexample, History, Judgement, Limits, Verdict, check, counterexample, report,
};

const EXAMPLES: &str = "\
Example:
  tetrachord check run.jsonl

Exits 0 if the history is linearizable, 7 if not (a picture is written beside it), 1 if it is malformed, too thin to
mean anything, or could not be decided within the limit. The format is described in docs/testing.md.";

/// Judge a recorded history
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct CheckArgs {
    /// The history: JSON lines, one operation a line
    file: PathBuf,
    /// Where to draw a violation [default: beside the history, ending in .html]
    #[arg(long)]
    report: Option<PathBuf>,
    /// Give up on a key after so many steps of the search
    #[arg(long, default_value_t = Limits::default().configurations)]
    limit: usize,
}

pub(crate) fn run(common: &Common, args: &CheckArgs) -> anyhow::Result<Exit> {
    let text = std::fs::read_to_string(&args.file)
        .with_context(|| format!("cannot read {}", args.file.display()))?;
    let history = History::parse(&text).with_context(|| format!("{} is malformed", args.file.display()))?;
    let judgement = check(&history, Limits { configurations: args.limit });
    let picture = args.report.clone().unwrap_or_else(|| args.file.with_extension("html"));
    let example = draw_violation(&history, &judgement, &picture)?;
    let thin = history.is_too_thin().filter(|_| judgement.verdict == Verdict::Linearizable);
    let exit = exit_of(&judgement.verdict, thin.is_some());
    if common.json {
        print_json(&json!({
            "verdict": if thin.is_some() { "too thin" } else { word(&judgement.verdict) },
            "operations": judgement.operations,
            "unknown": history.unknown(),
            "keys": judgement.keys,
            "explanation": example.as_ref().map(|example| &example.explanation),
            "report": example.as_ref().map(|_| &picture),
        }));
        return Ok(exit);
    }
    let counted = format!(
        "{} operations ({} unknown) on {} keys",
        judgement.operations,
        history.unknown(),
        judgement.keys
    );
    match (&judgement.verdict, thin, example) {
        (_, Some(thin), _) => println!("too thin to mean anything: {thin} ({counted})"),
        (Verdict::Linearizable, ..) => println!("linearizable: {counted}"),
        (Verdict::Violation { .. }, _, Some(example)) => {
            println!("NOT linearizable: {counted}\n{}\npicture: {}", example.explanation, picture.display());
        }
        (Verdict::Violation { key }, ..) => println!("NOT linearizable: key \"{key}\", {counted}"),
        (Verdict::Undecided { key, configurations }, ..) => println!(
            "undecided after {configurations} steps on key \"{key}\": {counted}. Raise --limit (up to {BYTES_PER_STEP} bytes of memory per \
             step), or record with more keys or fewer clients"
        ),
    }
    Ok(exit)
}

/// Finds and draws the counterexample of a violation.
pub(crate) fn draw_violation(
    history: &History,
    judgement: &Judgement,
    picture: &Path,
) -> anyhow::Result<Option<Counterexample>> {
    let Verdict::Violation { key } = &judgement.verdict else {
        return Ok(None);
    };
    let Some(example) = counterexample::find(history, key) else {
        return Ok(None);
    };
    std::fs::write(picture, report::html(&example, "Tetrachord: not linearizable"))
        .with_context(|| format!("cannot write {}", picture.display()))?;
    Ok(Some(example))
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
        Verdict::Linearizable if !is_thin => Exit::Ok,
        _ => Exit::Error,
    }
}
