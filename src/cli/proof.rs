//! `get --verify` and `proof check`: what replicas signed about an answer, shown and judged.

use super::bytes::{in_words, put_bytes};
use super::kv::{RAW_AND_JSON, print_value, put_found};
use super::output::{not_done, print_json};
use super::proof_file::ProofFile;
use super::{Common, Exit, usage, when};
use crate::client::wall_micros;
use crate::config::{ClusterConfig, Genesis, Mode, cluster_digest};
use crate::kv::{Operation, Reply};
use crate::proof::{Proof, keyring_of};
use crate::ring::{GroupId, NodeId, Tenure};
use anyhow::Context;
use clap::{Args, Subcommand};
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};
use tetrachord_consensus::Digest;
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
        after_help = "Examples:\n  tetrachord proof check k.json --genesis c/genesis.toml\n  tetrachord --cluster c/cluster.toml proof check k.json\n\nSays what the key was and when, not what it is: it may have changed since. Exits 0 if enough replicas signed the answer that one of them is honest (3 if it is that there was no such key), 9 if not."
    )]
    Check {
        /// The proof
        file: PathBuf,
        /// The genesis record of the cluster, which holds the keys [default: a client's cluster file holds them, too]
        #[arg(long, value_name = "FILE")]
        genesis: Option<PathBuf>,
        /// Print the value's bytes and nothing else, no newline
        #[arg(long)]
        raw: bool,
    },
}

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

/// What a proof is judged by: who has a replica of which group, and with which key it votes.
struct Keys {
    cluster: String,
    tenures: Vec<Tenure>,
}

impl Keys {
    fn of_genesis(genesis: &Genesis) -> anyhow::Result<Self> {
        anyhow::ensure!(genesis.mode == Mode::Byzantine, "{CRASH_MODE}");
        Ok(Self { cluster: genesis.protocol_name(), tenures: genesis.founding() })
    }

    /// A cluster file holds what a client believes, which is all that it takes.
    fn of_cluster(cluster: &ClusterConfig) -> anyhow::Result<Self> {
        let tenures = cluster.founding.clone().context(CRASH_MODE)?;
        Ok(Self { cluster: cluster.protocol.clone(), tenures })
    }

    fn tenure(&self, group: GroupId) -> Option<&Tenure> {
        self.tenures.iter().find(|tenure| tenure.group() == group)
    }

    fn judge(&self, proof: &Proof) -> anyhow::Result<Judgement> {
        let tenure =
            self.tenure(proof.group).context("the proof names a group that this cluster does not have")?;
        let cluster = Digest(cluster_digest(&self.cluster));
        let (slot, signers) = proof.signers(&keyring_of(cluster, tenure, [])?);
        let signers = signers.iter().map(|signer| tenure.members[usize::from(signer.0)].node).collect();
        Ok(Judgement { slot, signers, needed: liars(tenure.members.len()) + 1 })
    }
}

const CRASH_MODE: &str =
    "proofs are for Byzantine mode: this cluster runs in crash mode, in which nodes sign nothing";

/// Reads a key, and shows which replicas signed the answer.
pub(crate) async fn get(
    common: &Common,
    key: &[u8],
    is_raw: bool,
    file: Option<&Path>,
) -> anyhow::Result<Exit> {
    let keys =
        Keys::of_cluster(&common.cluster_config()?).context("--verify and --proof mean nothing here")?;
    let client = common.client()?;
    let proven = match client.read_proven(key).await.done() {
        Ok(proven) => proven,
        Err(error) => return Ok(not_done(&error, common.json)),
    };
    let judgement = keys.judge(&proven.proof)?;
    if let Some(path) = file {
        let written = ProofFile::of(keys.cluster, &proven.proof)?;
        std::fs::write(path, serde_json::to_string_pretty(&written)?)
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    print(common, &proven.proof, &judgement, Printed { is_raw, is_old: false })
}

/// Judges a file.
pub(crate) fn run(common: &Common, args: &ProofArgs) -> anyhow::Result<Exit> {
    let What::Check { file, genesis, raw } = &args.what;
    if *raw && common.json {
        return Err(usage(RAW_AND_JSON));
    }
    let keys = match (genesis, &common.cluster) {
        (Some(path), _) => Keys::of_genesis(&Genesis::load(path)?),
        (None, Some(path)) => Keys::of_cluster(&ClusterConfig::load(path)?),
        (None, None) => Err(usage(
            "by which keys? Name the cluster's genesis record with --genesis FILE, or a client's cluster file with --cluster FILE or \
             in TETRACHORD_CLUSTER",
        )),
    }?;
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    let what = || format!("{} is not a proof", file.display());
    let found: ProofFile = serde_json::from_str(&text).with_context(what)?;
    if found.cluster != keys.cluster {
        eprintln!(
            "NOT proved: the proof is of cluster {}, the keys are those of {}",
            found.cluster, keys.cluster
        );
        return Ok(Exit::ProofFailed);
    }
    let proof = found.proof().with_context(what)?;
    if keys.tenure(proof.group).is_none() {
        eprintln!("NOT proved: this cluster has no {}, which the proof is about", proof.group);
        return Ok(Exit::ProofFailed);
    }
    let judgement = keys.judge(&proof)?;
    print(common, &proof, &judgement, Printed { is_raw: *raw, is_old: true })
}

/// How a proof is shown.
struct Printed {
    is_raw: bool,
    /// It was read some time ago.
    is_old: bool,
}

fn print(common: &Common, proof: &Proof, judgement: &Judgement, how: Printed) -> anyhow::Result<Exit> {
    let (Operation::Get { key }, Reply::Value { found, time }) = (&proof.operation, &proof.reply) else {
        anyhow::bail!("the proof is not about a value that was read");
    };
    let now = wall_micros();
    let holds = judgement.holds();
    let names: Vec<String> = judgement.signers.iter().map(ToString::to_string).collect();
    if common.json {
        let mut object = Map::new();
        put_bytes(&mut object, "key", "key_encoding", key);
        put_found(&mut object, found.as_ref());
        let more = json!({
            "group": proof.group,
            "slot": judgement.slot,
            "time_us": time,
            "age_us": i128::from(now) - i128::from(*time),
            "signed_by": names,
            "needed": judgement.needed,
            "holds": holds,
        });
        object.extend(more.as_object().cloned().unwrap_or_default());
        print_json(&Value::Object(object));
    } else {
        // What is not proved is no answer.
        if let Some((_, value)) = found.as_ref().filter(|_| holds) {
            print_value(Some(value), how.is_raw);
        }
        let what = match (found.is_some(), holds) {
            (true, true) => "this value",
            (true, false) => "its value",
            (false, _) => "no such key",
        };
        let (verdict, needed) = (if holds { "proved" } else { "NOT proved" }, judgement.needed);
        let (group, key, slot) = (proof.group, in_words(key), judgement.slot);
        match names.as_slice() {
            [] => eprintln!("{verdict}: nobody of {group} signed {what} for {key}; {needed} are enough"),
            names => eprintln!(
                "{verdict}: {} of {group} signed {what} for {key} in slot {slot}; {needed} are enough",
                names.join(", ")
            ),
        }
        if holds && how.is_old {
            eprintln!(
                "so it was at {} by the cluster's clock, by this machine's {}; it may have changed since",
                when::date(*time),
                when::ago(*time, now)
            );
        }
    }
    Ok(match (holds, found) {
        (false, _) => Exit::ProofFailed,
        (true, Some(_)) => Exit::Ok,
        (true, None) => Exit::NotFound,
    })
}
