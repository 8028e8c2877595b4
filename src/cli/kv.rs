//! `get`, `put`, `del`, `cas`, `incr`.

use super::output::{bytes_json, not_done, print_bytes, print_json};
use super::{Common, Exit};
use crate::kv::Expect;
use crate::wire::Consistency;
use bytes::Bytes;
use clap::{Args, ValueEnum};
use serde_json::json;
use std::path::PathBuf;

/// Read a key
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  tetrachord get k\n  tetrachord get k --consistency eventual --json\n  tetrachord get k --verify --proof k.json   # Byzantine mode\n\nPrints the value; exits 3 if there is no such key."
)]
pub(crate) struct GetArgs {
    /// The key
    key: String,
    /// How fresh the answer must be
    #[arg(long, value_enum, default_value_t = ConsistencyArg::Linearizable)]
    consistency: ConsistencyArg,
    /// Byzantine mode: print also which replicas signed the answer; exits 9 if too few did
    #[arg(long)]
    verify: bool,
    /// Byzantine mode: write what replicas signed to a file, for `proof check`
    #[arg(long, value_name = "FILE")]
    proof: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum ConsistencyArg {
    /// Sees every write that was acknowledged before
    Linearizable,
    /// Sees what this client has seen or written before
    Session,
    /// Whatever the asked node has applied
    Eventual,
}

/// Set a key
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  tetrachord put greeting hello")]
pub(crate) struct PutArgs {
    /// The key
    key: String,
    /// The value
    value: String,
}

/// Remove a key
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  tetrachord del greeting\n\nExits 3 if there was no such key.")]
pub(crate) struct DelArgs {
    /// The key
    key: String,
}

/// Set a key if it is as expected
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  tetrachord cas k --expect old new\n  tetrachord cas k --absent first\n  tetrachord cas k --version 1758000000000001 new\n  tetrachord cas k --expect old --delete\n\nExits 4 if it was not as expected."
)]
pub(crate) struct CasArgs {
    /// The key
    key: String,
    /// The new value
    #[arg(required_unless_present = "delete")]
    value: Option<String>,
    /// The value that it must have
    #[arg(long, conflicts_with_all = ["absent", "version"], required_unless_present_any = ["absent", "version"])]
    expect: Option<String>,
    /// The key must not exist
    #[arg(long, conflicts_with = "version")]
    absent: bool,
    /// The version that it must have, as `put` and `get --json` print it
    #[arg(long)]
    version: Option<u64>,
    /// Remove the key instead of setting it
    #[arg(long, conflicts_with = "value")]
    delete: bool,
}

/// Add to a number
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  tetrachord incr visits\n  tetrachord incr balance -- -5\n\nA key that does not exist counts as 0."
)]
pub(crate) struct IncrArgs {
    /// The key
    key: String,
    /// How much to add
    #[arg(default_value_t = 1, allow_hyphen_values = true)]
    by: i64,
}

pub(crate) async fn get(common: &Common, args: &GetArgs) -> anyhow::Result<Exit> {
    if args.verify || args.proof.is_some() {
        return super::proof::get(common, &args.key, args.proof.as_deref()).await;
    }
    let client = common.client()?;
    let consistency = match args.consistency {
        ConsistencyArg::Linearizable => Consistency::Linearizable,
        ConsistencyArg::Session => Consistency::Session { at_least: client.seen(&args.key).await },
        ConsistencyArg::Eventual => Consistency::Eventual,
    };
    let read = match client.read(&args.key, consistency).await.done() {
        Ok(read) => read,
        Err(error) => return Ok(not_done(&error, common.json)),
    };
    let exit = if read.found.is_some() { Exit::Ok } else { Exit::NotFound };
    if common.json {
        let value = read.found.as_ref().map(|(_, value)| bytes_json(value));
        print_json(&json!({
            "key": args.key,
            "value": value.as_ref().map(|(value, _)| value),
            "encoding": value.as_ref().map(|(_, encoding)| encoding),
            "version": read.found.as_ref().map(|(version, _)| version),
            "group": read.served.group.0,
            "slot": read.served.slot,
            "consistency": match read.served.consistency {
                Consistency::Linearizable => "linearizable",
                Consistency::Session { .. } => "session",
                Consistency::Eventual => "eventual",
            },
        }));
    } else if let Some((_, value)) = &read.found {
        print_bytes(value);
        print_bytes(b"\n");
    } else {
        eprintln!("no such key");
    }
    Ok(exit)
}

pub(crate) async fn put(common: &Common, args: &PutArgs) -> anyhow::Result<Exit> {
    match common.client()?.put(&args.key, &args.value).await.done() {
        Ok(version) => {
            say(common, &json!({ "outcome": "done", "version": version }), "ok");
            Ok(Exit::Ok)
        }
        Err(error) => Ok(not_done(&error, common.json)),
    }
}

pub(crate) async fn del(common: &Common, args: &DelArgs) -> anyhow::Result<Exit> {
    match common.client()?.delete(&args.key).await.done() {
        Ok(existed) => {
            say(
                common,
                &json!({ "outcome": "done", "existed": existed }),
                if existed { "ok" } else { "no such key" },
            );
            Ok(if existed { Exit::Ok } else { Exit::NotFound })
        }
        Err(error) => Ok(not_done(&error, common.json)),
    }
}

pub(crate) async fn cas(common: &Common, args: &CasArgs) -> anyhow::Result<Exit> {
    let bytes = |text: &String| Bytes::copy_from_slice(text.as_bytes());
    let expect = match args.version {
        Some(version) => Expect::Version(version),
        None => Expect::Value(args.expect.as_ref().map(bytes)),
    };
    match common.client()?.cas(&args.key, expect, args.value.as_ref().map(bytes)).await.done() {
        Ok((swapped, version)) => {
            let text = if swapped { "ok" } else { "not as expected; nothing was changed" };
            say(common, &json!({ "outcome": "done", "swapped": swapped, "version": version }), text);
            Ok(if swapped { Exit::Ok } else { Exit::Refused })
        }
        Err(error) => Ok(not_done(&error, common.json)),
    }
}

pub(crate) async fn incr(common: &Common, args: &IncrArgs) -> anyhow::Result<Exit> {
    match common.client()?.incr(&args.key, args.by).await.done() {
        Ok(value) => {
            say(common, &json!({ "outcome": "done", "value": value }), &value.to_string());
            Ok(Exit::Ok)
        }
        Err(error) => Ok(not_done(&error, common.json)),
    }
}

fn say(common: &Common, value: &serde_json::Value, text: &str) {
    if common.json {
        print_json(value);
    } else {
        println!("{text}");
    }
}
