//! The history format: JSON lines, one operation a line, in any order; lines that begin with `#` are skipped.
//!
//! | field | meaning |
//! |---|---|
//! | `process` | integer; a process has one operation open at a time |
//! | `op`, `key` | `get`, `put`, `delete`, `cas`, `append`, `incr` |
//! | `value` | put: the new value; cas: the new value, null removes the key; append: what is added; incr: by how much |
//! | `expect` | cas: the value compared with; null means no such key |
//! | `call`, `return` | nanoseconds on one clock; `return` is null only if `ok` is |
//! | `ok` | true: answered. false: surely did not happen. null: nobody knows; it may take effect at any time after the call, or never |
//! | `result` | get: the value or null. cas: whether it compared equal. incr: the new value |

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use thiserror::Error;

/// What an operation did, with what it saw if it was answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Read the key; saw this value, or that there is none.
    Get(Option<String>),
    /// Set the key.
    Put(String),
    /// Removed the key.
    Delete,
    /// Compared with the first and, if equal, set to the second; saw whether it was equal.
    Cas(Option<String>, Option<String>, bool),
    /// Added behind the value.
    Append(String),
    /// Added this much; saw this sum.
    Incr(i64, i64),
}

/// One operation on one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation {
    /// Who did it.
    pub process: u64,
    /// The key.
    pub key: String,
    /// What was done. For an operation whose outcome is unknown, what it saw has no meaning.
    pub action: Action,
    /// When it was called, in nanoseconds.
    pub call: u64,
    /// When it was answered; none if nobody knows its outcome.
    pub end: Option<u64>,
    /// The line in the file, counted from 1; 0 if it never was in one.
    pub line: usize,
}

/// What clients saw of a store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct History {
    /// Operations that happened, or may have.
    pub operations: Vec<Operation>,
    /// Operations that surely did not happen; they do not matter to the verdict.
    pub failed: usize,
}

/// What is wrong with a history.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum HistoryError {
    /// A line is not an operation.
    #[error("line {line}: {reason}")]
    Line {
        /// Counted from 1.
        line: usize,
        /// What is wrong.
        reason: String,
    },
    /// A process had two operations open at once.
    #[error(
        "line {line}: process {process} calls at {call}, but its operation of line {before} is open until {until}; \
         a process does one thing at a time"
    )]
    Overlap {
        /// Counted from 1.
        line: usize,
        /// The process.
        process: u64,
        /// When it calls.
        call: u64,
        /// The line of the operation before.
        before: usize,
        /// When that one was answered.
        until: String,
    },
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    process: u64,
    op: String,
    key: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    value: Option<serde_json::Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    expect: Option<serde_json::Value>,
    call: u64,
    #[serde(rename = "return")]
    end: Option<u64>,
    ok: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    result: Option<serde_json::Value>,
}

impl History {
    /// Reads a history. Says which line is wrong and why.
    pub fn parse(text: &str) -> Result<Self, HistoryError> {
        let mut history = Self::default();
        for (index, line) in text.lines().enumerate() {
            let number = index + 1;
            if line.trim().is_empty() || line.starts_with('#') {
                continue;
            }
            let wrong = |reason: String| HistoryError::Line { line: number, reason };
            let value: serde_json::Value =
                serde_json::from_str(line).map_err(|error| wrong(error.to_string()))?;
            if value.get("txn").is_some() {
                return Err(wrong("transactions (\"txn\") are not judged by this version".to_string()));
            }
            let line: Line = serde_json::from_value(value).map_err(|error| wrong(error.to_string()))?;
            match line.into_operation(number).map_err(wrong)? {
                Some(operation) => history.operations.push(operation),
                None => history.failed += 1,
            }
        }
        history.check_processes()?;
        Ok(history)
    }

    fn check_processes(&self) -> Result<(), HistoryError> {
        let mut by_process: BTreeMap<u64, Vec<&Operation>> = BTreeMap::new();
        for operation in &self.operations {
            by_process.entry(operation.process).or_default().push(operation);
        }
        for operations in by_process.values_mut() {
            operations.sort_by_key(|operation| operation.call);
            for pair in operations.windows(2) {
                let [before, after] = pair else { continue };
                if before.end.is_none_or(|end| end > after.call) {
                    return Err(HistoryError::Overlap {
                        line: after.line,
                        process: after.process,
                        call: after.call,
                        before: before.line,
                        until: before
                            .end
                            .map_or("ever (its outcome is unknown)".to_string(), |end| end.to_string()),
                    });
                }
            }
        }
        Ok(())
    }

    /// How many operations have an unknown outcome.
    #[must_use]
    pub fn unknown(&self) -> usize {
        self.operations.iter().filter(|operation| operation.end.is_none()).count()
    }

    /// Why the history can show nothing, if so: a store that was never written to, or never looked at, is always right.
    #[must_use]
    pub fn is_too_thin(&self) -> Option<String> {
        let answered = self.operations.iter().filter(|operation| operation.end.is_some());
        let observes =
            |action: &Action| matches!(action, Action::Get(_) | Action::Cas(..) | Action::Incr(..));
        let changes = |action: &Action| !matches!(action, Action::Get(_));
        let observed = answered.filter(|operation| observes(&operation.action)).count();
        let changed = self.operations.iter().filter(|operation| changes(&operation.action)).count();
        match (observed, changed) {
            (0, _) => Some("no answered operation looks at a value (get, cas or incr)".to_string()),
            (_, 0) => Some("no operation changes a value".to_string()),
            _ => None,
        }
    }
}

impl Line {
    fn into_operation(self, line: usize) -> Result<Option<Operation>, String> {
        let is_answered = match (self.ok, self.end) {
            (Some(false), _) => return Ok(None),
            (Some(true), None) => return Err("\"ok\" is true, so \"return\" cannot be null".to_string()),
            (Some(true), Some(end)) if end < self.call => {
                return Err(format!("it returns at {end}, before its call at {}", self.call));
            }
            (Some(true), Some(_)) => true,
            (None, Some(_)) => return Err("\"ok\" is null, so \"return\" must be null".to_string()),
            (None, None) => false,
        };
        let action = self.action(is_answered)?;
        let end = self.end.filter(|_| is_answered);
        Ok(Some(Operation { process: self.process, key: self.key, action, call: self.call, end, line }))
    }

    fn action(&self, is_answered: bool) -> Result<Action, String> {
        let op = self.op.as_str();
        let action = match op {
            // An answered get without a result saw no value: JSON's null is read as absent.
            "get" if is_answered => Action::Get(text(self.result.as_ref(), "result")?),
            "get" => Action::Get(None),
            "put" => Action::Put(text(self.value.as_ref(), "value")?.ok_or("a put needs a \"value\"")?),
            "delete" => Action::Delete,
            "append" => {
                Action::Append(text(self.value.as_ref(), "value")?.ok_or("an append needs a \"value\"")?)
            }
            "cas" => {
                let swapped = match &self.result {
                    Some(serde_json::Value::Bool(swapped)) => *swapped,
                    _ if !is_answered => false,
                    _ => return Err("an answered cas needs a \"result\" of true or false".to_string()),
                };
                Action::Cas(
                    text(self.expect.as_ref(), "expect")?,
                    text(self.value.as_ref(), "value")?,
                    swapped,
                )
            }
            "incr" => {
                let by = number(self.value.as_ref()).ok_or("an incr needs a whole number as \"value\"")?;
                let sum = number(self.result.as_ref());
                if is_answered && sum.is_none() {
                    return Err("an answered incr needs the new value as \"result\"".to_string());
                }
                Action::Incr(by, sum.unwrap_or(0))
            }
            _ => {
                return Err(format!("\"op\" is \"{op}\"; known are get, put, delete, cas, append and incr"));
            }
        };
        Ok(action)
    }
}

fn text(value: Option<&serde_json::Value>, field: &str) -> Result<Option<String>, String> {
    match value {
        None | Some(serde_json::Value::Null) => Ok(None),
        Some(serde_json::Value::String(text)) => Ok(Some(text.clone())),
        Some(serde_json::Value::Number(number)) => Ok(Some(number.to_string())),
        Some(other) => Err(format!("\"{field}\" must be a string, a number or null, it is {other}")),
    }
}

fn number(value: Option<&serde_json::Value>) -> Option<i64> {
    match value? {
        serde_json::Value::Number(number) => number.as_i64(),
        serde_json::Value::String(text) => text.parse().ok(),
        _ => None,
    }
}

impl Operation {
    /// The operation as a line of a history file, without the line end.
    #[must_use]
    pub fn to_json(&self) -> String {
        let text =
            |value: &Option<String>| value.clone().map_or(serde_json::Value::Null, serde_json::Value::String);
        let known = self.end.is_some();
        let (op, value, expect, result) = match &self.action {
            Action::Get(seen) => ("get", None, None, known.then(|| text(seen))),
            Action::Put(value) => ("put", Some(serde_json::Value::String(value.clone())), None, None),
            Action::Delete => ("delete", None, None, None),
            Action::Append(value) => ("append", Some(serde_json::Value::String(value.clone())), None, None),
            Action::Cas(expect, value, swapped) => (
                "cas",
                Some(text(value)),
                Some(text(expect)),
                known.then_some(serde_json::Value::Bool(*swapped)),
            ),
            Action::Incr(by, sum) => ("incr", Some((*by).into()), None, known.then(|| (*sum).into())),
        };
        let line = Line {
            process: self.process,
            op: op.to_string(),
            key: self.key.clone(),
            value,
            expect,
            call: self.call,
            end: self.end,
            ok: known.then_some(true),
            result,
        };
        serde_json::to_string(&line).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXAMPLE: &str = r#"# what clients saw
{"process":3,"op":"put","key":"x","value":"7","call":1200,"return":1900,"ok":true}
{"process":4,"op":"get","key":"x","call":1300,"return":1500,"ok":true,"result":"7"}
{"process":5,"op":"cas","key":"x","expect":"7","value":"8","call":1600,"return":1700,"ok":true,"result":true}
{"process":5,"op":"delete","key":"x","call":1800,"return":null,"ok":null}
{"process":6,"op":"put","key":"x","value":"1","call":1,"return":2,"ok":false}
"#;

    #[test]
    fn the_documented_example_is_read() {
        let history = History::parse(EXAMPLE).unwrap();
        assert_eq!((history.operations.len(), history.failed, history.unknown()), (4, 1, 1));
        assert_eq!(history.operations[2].action, Action::Cas(Some("7".into()), Some("8".into()), true));
        assert_eq!(history.operations[1].line, 3);
        assert_eq!(history.is_too_thin(), None);
    }

    #[test]
    fn what_is_written_is_read_back() {
        let history = History::parse(EXAMPLE).unwrap();
        let text: Vec<String> = history.operations.iter().map(Operation::to_json).collect();
        let again = History::parse(&text.join("\n")).unwrap();
        for (before, after) in history.operations.iter().zip(&again.operations) {
            assert_eq!((&before.action, before.call, before.end), (&after.action, after.call, after.end));
        }
    }

    #[test]
    fn errors_name_the_line_and_the_reason() {
        let error = |text: &str| History::parse(text).unwrap_err().to_string();
        assert!(error("\n{").starts_with("line 2:"));
        assert!(
            error(r#"{"process":1,"op":"pet","key":"x","call":1,"return":2,"ok":true}"#)
                .contains("known are get")
        );
        assert!(
            error(r#"{"process":1,"op":"get","key":"x","call":3,"return":2,"ok":true}"#)
                .contains("before its call")
        );
        assert!(
            error(r#"{"process":1,"op":"get","key":"x","call":1,"return":null,"ok":true}"#)
                .contains("cannot be null")
        );
        assert!(
            error(r#"{"process":1,"op":"get","key":"x","call":1,"return":2,"ok":null}"#)
                .contains("must be null")
        );
        assert!(
            error(r#"{"process":1,"op":"cas","key":"x","call":1,"return":2,"ok":true}"#)
                .contains("true or false")
        );
        let open = r#"{"process":1,"op":"delete","key":"x","call":1,"return":null,"ok":null}"#;
        let next = r#"{"process":1,"op":"delete","key":"x","call":5,"return":6,"ok":true}"#;
        assert!(error(&format!("{open}\n{next}")).contains("one thing at a time"));
    }
}
