//! `get --verify` and `proof check`: what replicas signed about an answer, shown and judged.

use super::output::{bytes_json, not_done, print_bytes, print_json};
use super::{Common, Exit};
use crate::config::{Genesis, Mode, cluster_digest};
use crate::group::Byzantine;
use crate::kv::{Operation, Reply};
use crate::limits::WINDOW;
use crate::proof::Proof;
use crate::ring::NodeId;
use anyhow::Context;
use clap::{Args, Subcommand};
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::path::{Path, PathBuf};
use tetrachord_consensus::quorum::liars;

/// Judge what replicas have signed
#[derive(Debug, Args)]
pub(crate) struct ProofArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Check a file that `get --proof FILE` wrote; needs no cluster
    #[command(
        after_help = "Example:\n  tetrachord proof check k.json --genesis c/genesis.toml\n\nExits 0 if enough replicas signed the answer that one of them is honest, 9 if not."
    )]
    Check {
        /// The proof
        file: PathBuf,
        /// The genesis record of the cluster, which holds the keys
        #[arg(long)]
        genesis: PathBuf,
    },
}

/// A proof with what it belongs to.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ProofFile {
    version: u32,
    cluster: String,
    key: String,
    proof: Proof,
}

const VERSION: u32 = 1;

/// Who signed what, and whether that is enough.
struct Judgement {
    slot: u64,
    signers: Vec<NodeId>,
    needed: usize,
}

impl Judgement {
    fn holds(&self) -> bool {
        self.signers.len() >= self.needed
    }
}

/// Judges a proof by the keys of a genesis record alone.
fn judge(genesis: &Genesis, proof: &Proof) -> anyhow::Result<Judgement> {
    anyhow::ensure!(genesis.mode == Mode::Byzantine, "a cluster in crash mode signs nothing");
    let ring = genesis.ring();
    let place = ring.group(proof.group).context("the proof names a group that this cluster does not have")?;
    let nodes = genesis.nodes.iter().filter_map(|node| Some((node.id, node.signing_key?.0)));
    let keys = Byzantine {
        cluster: cluster_digest(&genesis.protocol_name()),
        secret: [0; 32],
        nodes: nodes.collect(),
        clients: Vec::new(),
        request_millis: genesis.timing.request_millis,
        window: WINDOW,
        scrub_millis: 0,
        chaos: None,
    };
    let (slot, signers) = proof.signers(&keys.keyring(place)?);
    let signers = signers.iter().map(|signer| place.nodes[usize::from(signer.0)]).collect();
    Ok(Judgement { slot, signers, needed: liars(place.nodes.len()) + 1 })
}

/// Reads a key, and shows which replicas signed the answer. The genesis record lies beside the cluster file.
pub(crate) async fn get(common: &Common, key: &str, file: Option<&Path>) -> anyhow::Result<Exit> {
    let client = common.client()?;
    let cluster_file = common.cluster_file()?;
    let genesis = Genesis::load(&cluster_file.with_file_name("genesis.toml"))?;
    let proven = match client.read_proven(key).await.done() {
        Ok(proven) => proven,
        Err(error) => return Ok(not_done(&error, common.json)),
    };
    let judgement = judge(&genesis, &proven.proof)?;
    if let Some(path) = file {
        let written = ProofFile {
            version: VERSION,
            cluster: genesis.protocol_name(),
            key: key.to_string(),
            proof: proven.proof.clone(),
        };
        std::fs::write(path, serde_json::to_string_pretty(&written)?)
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    print(common, key, &proven.proof, &judgement)
}

/// Judges a file.
pub(crate) fn run(common: &Common, args: &ProofArgs) -> anyhow::Result<Exit> {
    let What::Check { file, genesis } = &args.what;
    let genesis = Genesis::load(genesis)?;
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    let found: ProofFile =
        serde_json::from_str(&text).with_context(|| format!("{} is not a proof", file.display()))?;
    anyhow::ensure!(found.version == VERSION, "proof version {} is not supported", found.version);
    anyhow::ensure!(
        found.cluster == genesis.protocol_name(),
        "the proof is of cluster {}, the genesis record of {}",
        found.cluster,
        genesis.protocol_name()
    );
    let judgement = judge(&genesis, &found.proof)?;
    print(common, &found.key, &found.proof, &judgement)
}

fn print(common: &Common, key: &str, proof: &Proof, judgement: &Judgement) -> anyhow::Result<Exit> {
    let is_about_key =
        matches!(&proof.operation, Operation::Get { key: asked } if asked.as_ref() == key.as_bytes());
    let Reply::Value { found } = &proof.reply else {
        anyhow::bail!("the proof is not about a value that was read");
    };
    let holds = judgement.holds() && is_about_key;
    let names: Vec<String> = judgement.signers.iter().map(ToString::to_string).collect();
    if common.json {
        let value = found.as_ref().map(|(_, value)| bytes_json(value));
        print_json(&json!({
            "key": key,
            "value": value.as_ref().map(|(value, _)| value),
            "encoding": value.as_ref().map(|(_, encoding)| encoding),
            "version": found.as_ref().map(|(version, _)| version),
            "group": proof.group.0,
            "slot": judgement.slot,
            "signed_by": names,
            "needed": judgement.needed,
            "holds": holds,
        }));
    } else {
        if let Some((_, value)) = found {
            print_bytes(value);
            print_bytes(b"\n");
        }
        let what = if found.is_some() { "this value" } else { "no such key" };
        let names = if names.is_empty() { vec!["nobody".to_string()] } else { names };
        eprintln!(
            "{}: {} of {} signed {what} for {key} in slot {}; {} are enough",
            if holds { "proved" } else { "NOT proved" },
            names.join(", "),
            proof.group,
            judgement.slot,
            judgement.needed
        );
    }
    Ok(match (holds, found) {
        (false, _) => Exit::ProofFailed,
        (true, Some(_)) => Exit::Ok,
        (true, None) => Exit::NotFound,
    })
}
