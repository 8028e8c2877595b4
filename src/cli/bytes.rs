//! Keys and values as the command line gives them: as text, in hexadecimal, from a file, from standard input. Both may hold any bytes.

use super::output::bytes_json;
use super::{refused, usage};
use crate::limits::VALUE_BYTES_CAP;
use anyhow::Context;
use bytes::Bytes;
use clap::Args;
use serde_json::{Map, Value};
use std::io::Read;
use std::path::{Path, PathBuf};

/// Which key.
#[derive(Debug, Args)]
pub(crate) struct KeyArgs {
    /// The key
    key: String,
    /// KEY is in hexadecimal, for keys that are no text
    #[arg(long)]
    key_hex: bool,
}

impl KeyArgs {
    pub(crate) fn bytes(&self) -> anyhow::Result<Bytes> {
        match self.key_hex {
            false => Ok(Bytes::copy_from_slice(self.key.as_bytes())),
            true => unhex(&self.key).with_context(|| {
                format!("--key-hex: {:?} is no even number of hexadecimal digits", self.key)
            }),
        }
    }
}

/// Bytes as fields of an object: under the name, and beside it how they are written.
pub(crate) fn put_bytes(object: &mut Map<String, Value>, name: &str, encoding: &str, bytes: &[u8]) {
    let (value, how) = bytes_json(bytes);
    object.insert(name.to_string(), value);
    object.insert(encoding.to_string(), Value::from(how));
}

/// Bytes for people: text as it is, anything else in hexadecimal.
pub(crate) fn in_words(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.chars().any(char::is_control) => text.to_string(),
        _ => format!("0x{}", hex(bytes)),
    }
}

/// In hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// From hexadecimal.
pub(crate) fn unhex(text: &str) -> Option<Bytes> {
    if !text.is_ascii() || !text.len().is_multiple_of(2) {
        return None;
    }
    let digit = |letter: u8| char::from(letter).to_digit(16);
    let pairs = text.as_bytes().chunks_exact(2);
    let bytes = pairs.map(|pair| u8::try_from(digit(pair[0])? * 16 + digit(pair[1])?).ok());
    bytes.collect::<Option<Vec<u8>>>().map(Bytes::from)
}

/// Standard input, by name.
pub(crate) const STANDARD_INPUT: &str = "-";

/// A value that is given as text, `-`, or a file; none if it is not given.
pub(crate) fn value(text: Option<&str>, file: Option<&Path>) -> anyhow::Result<Option<Bytes>> {
    match (text, file) {
        (_, Some(path)) if path.as_os_str() != STANDARD_INPUT => {
            let open = std::fs::File::open(path);
            let file = open.with_context(|| format!("cannot read {}", path.display()))?;
            up_to_limit(file, &path.display().to_string()).map(Some)
        }
        (Some(STANDARD_INPUT), None) | (_, Some(_)) => {
            up_to_limit(std::io::stdin().lock(), "standard input").map(Some)
        }
        (Some(text), None) => Ok(Some(Bytes::copy_from_slice(text.as_bytes()))),
        (None, None) => Ok(None),
    }
}

/// All that is there, if no value is larger: whatever it is that is read, it may never end.
fn up_to_limit(from: impl Read, name: &str) -> anyhow::Result<Bytes> {
    let mut bytes = Vec::new();
    let most = VALUE_BYTES_CAP as u64 + 1;
    from.take(most).read_to_end(&mut bytes).with_context(|| format!("cannot read {name}"))?;
    if bytes.len() > VALUE_BYTES_CAP {
        let what = format!("{name} holds more than {VALUE_BYTES_CAP} bytes, the most that a value may have");
        return Err(refused(what));
    }
    Ok(Bytes::from(bytes))
}

/// A value to write.
#[derive(Debug, Args)]
pub(crate) struct ValueArgs {
    /// The value; - takes it from standard input, as it is
    #[arg(required_unless_present = "value_file", conflicts_with = "value_file")]
    value: Option<String>,
    /// Take the value from a file, as it is
    #[arg(long, value_name = "FILE")]
    value_file: Option<PathBuf>,
}

impl ValueArgs {
    pub(crate) fn bytes(&self) -> anyhow::Result<Bytes> {
        let given = value(self.value.as_deref(), self.value_file.as_deref())?;
        given.ok_or_else(|| usage("which value? Give it, - for standard input, or --value-file FILE"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hexadecimal_goes_both_ways_and_nothing_else_passes() {
        let bytes = Bytes::from_static(&[0, 0xff, 0x10, b'a']);
        assert_eq!(unhex(&hex(&bytes)).unwrap(), bytes);
        assert_eq!(unhex("00FF10").unwrap(), &[0, 0xff, 0x10][..]);
        for wrong in ["0", "0g", "é", "+1", " 1"] {
            assert_eq!(unhex(wrong), None, "{wrong}");
        }
        assert_eq!(
            (in_words(b"plain"), in_words(b"a\n"), in_words(&[0xff])),
            ("plain".into(), "0x610a".into(), "0xff".into())
        );
    }

    #[test]
    fn what_is_too_large_for_a_value_is_not_read_to_its_end() {
        let error = up_to_limit(std::io::repeat(7), "that").unwrap_err();
        assert_eq!(crate::cli::exit_of(&error), crate::cli::Exit::Refused, "as if the cluster had said so");
        let error = error.to_string();
        assert!(error.contains("1048576 bytes"), "{error}");
        assert_eq!(up_to_limit(&[7; VALUE_BYTES_CAP][..], "that").unwrap().len(), VALUE_BYTES_CAP);
    }
}
