//! `tetrachord record`: use a live cluster and write down what the clients see.

use super::check::{remark, say};
use super::history_file::HistoryFile;
use super::workload::{Recorder, read_all, run_client};
use super::{Common, Exit};
use crate::client::{Client, ClientOptions};
use anyhow::Context;
use clap::Args;
use indicatif::ProgressBar;
use serde_json::json;
use std::path::PathBuf;
use std::time::Duration;
use tetrachord_checker::Operation;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinSet;

const EXAMPLES: &str = "\
Example:
  tetrachord --cluster c/cluster.toml record -o run.jsonl --seconds 10
  tetrachord check run.jsonl

Kill a node meanwhile: the history must stay linearizable. Each run uses keys of its own (register-0@RUN, counter-1@RUN, ...), which
nobody has used before; they stay in the cluster. Ctrl-C ends a recording early: what was seen until then is in the file.
Exits 11 if nothing was answered.";

/// Record what clients see of a cluster
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct RecordArgs {
    /// Where to write the history
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// How long
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..))]
    seconds: u64,
    /// Concurrent clients
    #[arg(long, default_value_t = 8)]
    clients: usize,
    /// Keys that they use
    #[arg(long, default_value_t = 16)]
    keys: usize,
}

/// Nobody waits longer for an answer: what is under way when a node dies would say little for long.
const DEADLINE: Duration = Duration::from_secs(3);

/// What has been written so far.
#[derive(Debug, Default)]
struct Count {
    answered: usize,
    unknown: usize,
}

impl Count {
    fn add(&mut self, operations: &[Operation]) {
        let answered = operations.iter().filter(|operation| operation.end.is_some()).count();
        self.answered += answered;
        self.unknown += operations.len() - answered;
    }
}

pub(crate) async fn run(common: &Common, args: &RecordArgs) -> anyhow::Result<Exit> {
    anyhow::ensure!(args.clients > 0 && args.keys > 0, "at least one client and one key are needed");
    let cluster = common.cluster_config()?;
    let recorder = Recorder::new()?;
    let version = env!("CARGO_PKG_VERSION");
    let head = format!("recorded by tetrachord {version}; keys end in @{}, and are new", recorder.name());
    let mut file = HistoryFile::create(&args.output, &head)?;
    let mut interrupts = Interrupts::new()?;
    let options = ClientOptions { deadline: common.deadline(DEADLINE), ..ClientOptions::default() };
    let observer = Client::with_options(cluster.clone(), options)?;
    let mut tasks = JoinSet::new();
    for index in 0..args.clients {
        let client = Client::with_options(cluster.clone(), options)?;
        tasks.spawn(run_client(client, recorder.clone(), args.keys, seed(index)?));
    }
    let mut count = Count::default();
    let is_interrupted = gather(args, &recorder, &mut file, &mut count, &mut interrupts).await?;
    recorder.stop();
    let end = async {
        while let Some(ended) = tasks.join_next().await {
            ended.context("a client of the recording has failed")?;
        }
        if !is_interrupted {
            read_all(&observer, &recorder, args.keys).await;
        }
        anyhow::Ok(())
    };
    // Whoever interrupts a second time does not want to wait for what is open: nobody knows its outcome.
    tokio::select! {
        ended = end => ended?,
        () = interrupts.next() => {}
    }
    let (operations, open) = recorder.news();
    let failed = recorder.failed();
    let is_regular = file.is_regular();
    file.finish(&operations, &open, &format!("{failed} other operations surely did not happen"))?;
    count.add(&operations);
    count.add(&open);
    report(common, args, &count, failed, is_regular);
    Ok(if count.answered > 0 { Exit::Ok } else { Exit::Thin })
}

/// Writes down what clients see, for as long as was asked for. True if somebody interrupts it.
async fn gather(
    args: &RecordArgs,
    recorder: &Recorder,
    file: &mut HistoryFile,
    count: &mut Count,
    interrupts: &mut Interrupts,
) -> anyhow::Result<bool> {
    let bar = ProgressBar::new(args.seconds);
    let mut is_interrupted = false;
    for _ in 0..args.seconds {
        tokio::select! {
            () = tokio::time::sleep(Duration::from_secs(1)) => {}
            () = interrupts.next() => is_interrupted = true,
        }
        let (operations, open) = recorder.news();
        count.add(&operations);
        file.add(&operations, &open)?;
        if is_interrupted {
            break;
        }
        bar.inc(1);
        bar.set_message(format!("{} operations", count.answered + count.unknown));
    }
    bar.finish_and_clear();
    Ok(is_interrupted)
}

fn report(common: &Common, args: &RecordArgs, count: &Count, failed: u64, is_regular: bool) {
    let (recorded, unknown) = (count.answered + count.unknown, count.unknown);
    let mut text = match common.json {
        true => {
            let history = &args.output;
            json!({ "operations": recorded, "unknown": unknown, "refused": failed, "history": history })
                .to_string()
        }
        false => {
            let path = args.output.display();
            format!("{recorded} operations ({unknown} unknown, {failed} refused) recorded in {path}")
        }
    };
    if count.answered == 0 && !common.json {
        text += "\ntoo thin to mean anything: nothing was answered";
    }
    // A history may go to standard output itself.
    if is_regular { say(&text) } else { remark(&text) }
}

/// What ends a recording: Ctrl-C, or SIGTERM. Whatever else ends it, the file holds what was seen until a second before.
struct Interrupts([Signal; 2]);

impl Interrupts {
    fn new() -> anyhow::Result<Self> {
        let watch = |kind| signal(kind).context("cannot wait for interrupts");
        Ok(Self([watch(SignalKind::interrupt())?, watch(SignalKind::terminate())?]))
    }

    async fn next(&mut self) {
        let [interrupt, terminate] = &mut self.0;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    }
}

/// A different start for every client and every run.
pub(crate) fn seed(index: usize) -> anyhow::Result<u64> {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).context("no randomness")?;
    Ok(u64::from_le_bytes(bytes) ^ index as u64)
}
