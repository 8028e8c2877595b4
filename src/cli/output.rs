//! Printing for people and for programs.
//!
//! What is printed may not arrive: the reader of a pipe may be gone, a disk full. The macros of the standard library panic then,
//! in the middle of something that was done. Here the first failure is kept, and [`finish`] says at the end what it means.

use super::Exit;
use super::log::Log;
use crate::client::{NotDone, Refusal};
use comfy_table::{Table, presets};
use serde_json::{Value, json};
use std::fmt;
use std::io::{self, ErrorKind, Write};
use std::sync::{Mutex, PoisonError};

/// Why standard output does not take what is printed.
static FAILURE: Mutex<Option<io::Error>> = Mutex::new(None);

fn keep(result: io::Result<()>) {
    if let Err(error) = result {
        FAILURE.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
    }
}

/// Prints a line to standard output.
pub(crate) fn print(line: fmt::Arguments<'_>) {
    keep(writeln!(io::stdout(), "{line}"));
}

/// Prints bytes as they are.
pub(crate) fn print_bytes(bytes: &[u8]) {
    keep(io::stdout().write_all(bytes));
}

/// Prints a line to standard error. If nobody takes it, nobody is told.
pub(crate) fn remark(line: fmt::Arguments<'_>) {
    let _ = writeln!(io::stderr(), "{line}");
}

/// The exit code, if all that was printed has arrived. Who closes a pipe has read enough; anything else is an error.
pub(crate) fn finish(exit: Exit, log: &Log) -> Exit {
    keep(io::stdout().flush());
    match FAILURE.lock().unwrap_or_else(PoisonError::into_inner).take() {
        Some(error) if error.kind() != ErrorKind::BrokenPipe => {
            let line = format!("error: cannot write to standard output: {error}. Only the answer is lost");
            let done = if exit == Exit::Ok { ": what was asked for is done" } else { "" };
            log.line(format!("{line}{done}\n").into_bytes());
            if exit == Exit::Ok { Exit::Error } else { exit }
        }
        _ => exit,
    }
}

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
        NotDone::Refused(Refusal::Unavailable(_) | Refusal::Cancelled(_)) => {
            (Exit::Unavailable, "unavailable")
        }
        NotDone::Refused(Refusal::Denied(_)) => (Exit::Denied, "denied"),
    };
    if is_json {
        print_json(&json!({ "outcome": word, "error": error.to_string() }));
    } else {
        eprintln!("{error}");
        if matches!(exit, Exit::Unavailable | Exit::Unknown) {
            eprintln!("`tetrachord status` shows which nodes answer, and which groups have a quorum");
        }
    }
    exit
}
