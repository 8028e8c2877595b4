//! Printing for people and for programs.

use super::Exit;
use crate::client::{NotDone, Refusal};
use comfy_table::{Table, presets};
use serde_json::{Value, json};

/// A table without frames.
pub(crate) fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header.to_vec());
    table
}

/// Prints one JSON object on a line.
pub(crate) fn print_json(value: &Value) {
    println!("{value}");
}

/// Bytes as JSON: text as it is, anything else in hexadecimal, said so beside it.
pub(crate) fn bytes_json(bytes: &[u8]) -> (Value, &'static str) {
    match std::str::from_utf8(bytes) {
        Ok(text) => (json!(text), "utf8"),
        Err(_) => (json!(bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>()), "hex"),
    }
}

/// Says why a request was not done, and what that means for the exit code.
pub(crate) fn not_done(error: &NotDone, is_json: bool) -> Exit {
    let (exit, word) = match error {
        NotDone::Unknown(_) => (Exit::Unknown, "unknown"),
        NotDone::Refused(Refusal::Failure(_)) => (Exit::Refused, "refused"),
        NotDone::Refused(Refusal::Invalid(_)) => (Exit::Error, "invalid"),
        NotDone::Refused(Refusal::Unavailable(_)) => (Exit::Unavailable, "unavailable"),
        NotDone::Refused(Refusal::Denied(_)) => (Exit::Denied, "denied"),
    };
    if is_json {
        print_json(&json!({ "outcome": word, "error": error.to_string() }));
    } else {
        eprintln!("{error}");
    }
    exit
}
