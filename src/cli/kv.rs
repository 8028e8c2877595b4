//! `get`, `exists`, `put`, `append`, `del`, `cas`, `incr`.

use super::bytes::{KeyArgs, STANDARD_INPUT, ValueArgs, put_bytes, value};
use super::output::{not_done, print_bytes, print_json};
use super::{Common, Exit, close, usage};
use crate::kv::Expect;
use crate::wire::Consistency;
use bytes::Bytes;
use clap::{ArgGroup, Args, ValueEnum};
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};

/// Read a key
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  tetrachord get k\n  tetrachord get k --raw > file\n  tetrachord get k --consistency eventual --json\n  tetrachord get 00ff --key-hex\n  tetrachord get k --verify --proof k.json   # Byzantine mode\n\nPrints the value and a newline; exits 3 if there is no such key."
)]
pub(crate) struct GetArgs {
    #[command(flatten)]
    key: KeyArgs,
    /// Print the value's bytes and nothing else, no newline
    #[arg(long)]
    raw: bool,
    /// How fresh the answer must be
    #[arg(long, value_enum, default_value_t = ConsistencyArg::Linearizable)]
    consistency: ConsistencyArg,
    /// Byzantine mode: print also which replicas signed the answer; exits 9 if too few did. Always linearizable
    #[arg(long, conflicts_with = "consistency")]
    verify: bool,
    /// Byzantine mode: write what replicas signed to a file, for `proof check`. Always linearizable
    #[arg(long, value_name = "FILE", conflicts_with = "consistency")]
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

/// Say whether a key exists
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  tetrachord exists greeting\n\nPrints yes or no; exits 3 if there is no such key."
)]
pub(crate) struct ExistsArgs {
    #[command(flatten)]
    key: KeyArgs,
}

/// Set a key
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  tetrachord put greeting hello\n  tetrachord put picture --value-file picture.png\n  printf hello | tetrachord put greeting -\n\nKeys have up to 4096 bytes, values up to 1048576; both may hold any bytes."
)]
pub(crate) struct PutArgs {
    #[command(flatten)]
    key: KeyArgs,
    #[command(flatten)]
    value: ValueArgs,
}

/// Add bytes behind a value
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  tetrachord append log \"one more line\"\n\nPrints the new length in bytes. A key that does not exist counts as empty."
)]
pub(crate) struct AppendArgs {
    #[command(flatten)]
    key: KeyArgs,
    #[command(flatten)]
    value: ValueArgs,
}

/// Remove a key
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  tetrachord del greeting\n\nExits 3 if there was no such key.")]
pub(crate) struct DelArgs {
    #[command(flatten)]
    key: KeyArgs,
}

/// Set a key if it is as expected
#[derive(Debug, Args)]
#[command(
    group = ArgGroup::new("condition").args(["expect", "expect_file", "absent", "version"]).required(true),
    after_help = "Examples:\n  tetrachord cas k --expect old new\n  tetrachord cas k --absent first\n  tetrachord cas k --version 1758000000000001 new\n  tetrachord cas k --expect old --delete\n\nExits 4 if it was not as expected."
)]
pub(crate) struct CasArgs {
    #[command(flatten)]
    key: KeyArgs,
    /// The new value; - takes it from standard input, as it is
    value: Option<String>,
    /// Take the new value from a file, as it is
    #[arg(long, value_name = "FILE", conflicts_with = "value")]
    value_file: Option<PathBuf>,
    /// The value that it must have
    #[arg(long, value_name = "VALUE")]
    expect: Option<String>,
    /// A file that holds the value that it must have
    #[arg(long, value_name = "FILE")]
    expect_file: Option<PathBuf>,
    /// The key must not exist
    #[arg(long)]
    absent: bool,
    /// The version that it must have, as `put --json` and `get --json` print it
    #[arg(long)]
    version: Option<u64>,
    /// Remove the key instead of setting it
    #[arg(long, conflicts_with_all = ["value", "value_file"])]
    delete: bool,
}

impl CasArgs {
    fn expectation(&self) -> anyhow::Result<Expect> {
        match self.version {
            Some(version) => Ok(Expect::Version(version)),
            None if self.absent => Ok(Expect::ABSENT),
            None if self.expect_file.as_deref() == Some(Path::new(STANDARD_INPUT)) => {
                Err(usage("--expect-file names a file: standard input is for the new value"))
            }
            None => {
                // What must be there is taken as it is: - stands for itself.
                let text = self.expect.as_ref().map(|text| Bytes::copy_from_slice(text.as_bytes()));
                let expect =
                    text.map_or_else(|| value(None, self.expect_file.as_deref()), |text| Ok(Some(text)));
                Ok(Expect::Value(expect?))
            }
        }
    }

    fn new_value(&self) -> anyhow::Result<Option<Bytes>> {
        let new = value(self.value.as_deref(), self.value_file.as_deref())?;
        match new.is_some() || self.delete {
            true => Ok(new),
            false => Err(usage(
                "set it to what? Give the new value, - for standard input, --value-file FILE, or --delete",
            )),
        }
    }
}

/// Add to a number
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  tetrachord incr visits\n  tetrachord incr balance -- -5\n\nA key that does not exist counts as 0."
)]
pub(crate) struct IncrArgs {
    #[command(flatten)]
    key: KeyArgs,
    /// How much to add
    #[arg(default_value_t = 1, allow_hyphen_values = true)]
    by: i64,
}

pub(crate) const RAW_AND_JSON: &str = "--raw prints bytes, --json prints an object: use one of them";

pub(crate) async fn get(common: &Common, args: &GetArgs) -> anyhow::Result<Exit> {
    if args.raw && common.json {
        return Err(usage(RAW_AND_JSON));
    }
    let key = args.key.bytes()?;
    if args.verify || args.proof.is_some() {
        return super::proof::get(common, &key, args.raw, args.proof.as_deref()).await;
    }
    let client = common.client()?;
    let consistency = match args.consistency {
        ConsistencyArg::Linearizable => Consistency::Linearizable,
        ConsistencyArg::Session => Consistency::Session { at_least: client.seen(&key).await },
        ConsistencyArg::Eventual => Consistency::Eventual,
    };
    let read = match client.read(&key, consistency).await.done() {
        Ok(read) => read,
        Err(error) => return Ok(not_done(&error, common.json)),
    };
    let value = read.found.as_ref().map(|(_, value)| value);
    if common.json {
        let mut object = Map::new();
        put_bytes(&mut object, "key", "key_encoding", &key);
        put_found(&mut object, read.found.as_ref());
        object.insert("group".to_string(), json!(read.served.group));
        object.insert("slot".to_string(), json!(read.served.slot));
        let consistency = match read.served.consistency {
            Consistency::Linearizable => "linearizable",
            Consistency::Session { .. } => "session",
            Consistency::Eventual => "eventual",
        };
        object.insert("consistency".to_string(), json!(consistency));
        print_json(&Value::Object(object));
    } else {
        print_value(value.map(|value| &value[..]), args.raw);
    }
    Ok(if value.is_some() { Exit::Ok } else { Exit::NotFound })
}

/// What was found, or null, as fields of an object.
pub(crate) fn put_found(object: &mut Map<String, Value>, found: Option<&(u64, Bytes)>) {
    let none = ["value", "encoding", "version"].map(|name| (name.to_string(), Value::Null));
    object.extend(none);
    if let Some((version, value)) = found {
        put_bytes(object, "value", "encoding", value);
        object.insert("version".to_string(), json!(version));
    }
}

/// A value for people, or as it is.
pub(crate) fn print_value(value: Option<&[u8]>, is_raw: bool) {
    match value {
        Some(value) => {
            print_bytes(value);
            print_bytes(if is_raw { b"" } else { b"\n" });
        }
        None => eprintln!("no such key"),
    }
}

pub(crate) async fn exists(common: &Common, args: &ExistsArgs) -> anyhow::Result<Exit> {
    match common.client()?.exists(&args.key.bytes()?).await.done() {
        Ok(exists) => {
            say(common, &json!({ "outcome": "done", "exists": exists }), if exists { "yes" } else { "no" });
            Ok(if exists { Exit::Ok } else { Exit::NotFound })
        }
        Err(error) => Ok(not_done(&error, common.json)),
    }
}

pub(crate) async fn put(common: &Common, args: &PutArgs) -> anyhow::Result<Exit> {
    let (key, value) = (args.key.bytes()?, args.value.bytes()?);
    let client = common.client()?;
    let exit = match client.put(&key, &value).await.done() {
        Ok(version) => {
            say(common, &json!({ "outcome": "done", "version": version }), "ok");
            Exit::Ok
        }
        Err(error) => not_done(&error, common.json),
    };
    close(&client).await;
    Ok(exit)
}

pub(crate) async fn append(common: &Common, args: &AppendArgs) -> anyhow::Result<Exit> {
    let (key, value) = (args.key.bytes()?, args.value.bytes()?);
    let client = common.client()?;
    let exit = match client.append(&key, &value).await.done() {
        Ok(length) => {
            say(common, &json!({ "outcome": "done", "length": length }), &length.to_string());
            Exit::Ok
        }
        Err(error) => not_done(&error, common.json),
    };
    close(&client).await;
    Ok(exit)
}

pub(crate) async fn del(common: &Common, args: &DelArgs) -> anyhow::Result<Exit> {
    let key = args.key.bytes()?;
    let client = common.client()?;
    let exit = match client.delete(&key).await.done() {
        Ok(existed) => {
            let text = if existed { "ok" } else { "no such key" };
            say(common, &json!({ "outcome": "done", "existed": existed }), text);
            if existed { Exit::Ok } else { Exit::NotFound }
        }
        Err(error) => not_done(&error, common.json),
    };
    close(&client).await;
    Ok(exit)
}

pub(crate) async fn cas(common: &Common, args: &CasArgs) -> anyhow::Result<Exit> {
    let (key, expect, value) = (args.key.bytes()?, args.expectation()?, args.new_value()?);
    let client = common.client()?;
    let exit = match client.cas(&key, expect, value).await.done() {
        Ok((swapped, version)) => {
            let text = if swapped { "ok" } else { "not as expected; nothing was changed" };
            say(common, &json!({ "outcome": "done", "swapped": swapped, "version": version }), text);
            if swapped { Exit::Ok } else { Exit::Refused }
        }
        Err(error) => not_done(&error, common.json),
    };
    close(&client).await;
    Ok(exit)
}

pub(crate) async fn incr(common: &Common, args: &IncrArgs) -> anyhow::Result<Exit> {
    let key = args.key.bytes()?;
    let client = common.client()?;
    let exit = match client.incr(&key, args.by).await.done() {
        Ok(value) => {
            say(common, &json!({ "outcome": "done", "value": value }), &value.to_string());
            Exit::Ok
        }
        Err(error) => not_done(&error, common.json),
    };
    close(&client).await;
    Ok(exit)
}

fn say(common: &Common, value: &Value, text: &str) {
    if common.json {
        print_json(value);
    } else {
        println!("{text}");
    }
}
