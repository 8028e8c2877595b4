//! `tetrachord record`: use a live cluster and write down what the clients see.

use super::output::print_json;
use super::workload::{Recorder, read_all, run_client};
use super::{Common, Exit};
use crate::client::{Client, ClientOptions};
use anyhow::Context;
use clap::Args;
use indicatif::ProgressBar;
use serde_json::json;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tetrachord_checker::Operation;

/// Record what clients see of a cluster
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  tetrachord --cluster c/cluster.toml record -o run.jsonl --seconds 10\n  tetrachord check run.jsonl\n\nKill a node meanwhile: the history must stay linearizable."
)]
pub(crate) struct RecordArgs {
    /// Where to write the history
    #[arg(short, long)]
    output: PathBuf,
    /// How long
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Concurrent clients
    #[arg(long, default_value_t = 8)]
    clients: usize,
    /// Keys that they use
    #[arg(long, default_value_t = 16)]
    keys: usize,
}

pub(crate) async fn run(common: &Common, args: &RecordArgs) -> anyhow::Result<Exit> {
    anyhow::ensure!(args.clients > 0 && args.keys > 0, "at least one client and one key are needed");
    let cluster = common.cluster_config()?;
    let options = ClientOptions { deadline: Duration::from_secs(3), ..ClientOptions::default() };
    let recorder = Recorder::new();
    let mut clients = Vec::new();
    let mut tasks = Vec::new();
    for index in 0..args.clients {
        let client = Client::with_options(cluster.clone(), options)?;
        clients.push(client.clone());
        tasks.push(tokio::spawn(run_client(client, recorder.clone(), args.keys, seed(index)?)));
    }
    let bar = ProgressBar::new(args.seconds);
    for _ in 0..args.seconds {
        tokio::time::sleep(Duration::from_secs(1)).await;
        bar.inc(1);
        bar.set_message(format!("{} operations", recorder.len()));
    }
    bar.finish_and_clear();
    recorder.stop();
    for task in tasks {
        task.await?;
    }
    read_all(&clients[0], &recorder, args.keys).await;
    let (operations, failed) = recorder.take();
    let unknown = operations.iter().filter(|operation| operation.end.is_none()).count();
    write_history(&args.output, &operations, failed)?;
    let path = args.output.display();
    if common.json {
        let (recorded, history) = (operations.len(), &args.output);
        print_json(
            &json!({ "operations": recorded, "unknown": unknown, "refused": failed, "history": history }),
        );
    } else {
        println!("{} operations ({unknown} unknown, {failed} refused) recorded in {path}", operations.len());
    }
    Ok(Exit::Ok)
}

/// A different start for every client and every run.
pub(crate) fn seed(index: usize) -> anyhow::Result<u64> {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).context("no randomness")?;
    Ok(u64::from_le_bytes(bytes) ^ index as u64)
}

/// Writes a history in the documented format.
pub(crate) fn write_history(path: &Path, operations: &[Operation], failed: u64) -> anyhow::Result<()> {
    let file = std::fs::File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
    let mut out = std::io::BufWriter::new(file);
    writeln!(
        out,
        "# recorded by tetrachord {}; {failed} operations surely did not happen",
        env!("CARGO_PKG_VERSION")
    )?;
    for operation in operations {
        writeln!(out, "{}", operation.to_json())?;
    }
    out.flush()?;
    Ok(())
}
