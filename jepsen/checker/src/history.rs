//! What clients saw of a store: operations, and what must be true of any history.

use crate::line;
use crate::value::Value;
use std::collections::BTreeMap;
use thiserror::Error;

/// What an operation did, with what it saw if it was answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Read the key; saw this value, or that there is none.
    Get(Option<Value>),
    /// Set the key.
    Put(Value),
    /// Removed the key.
    Delete,
    /// Compared with the first and, if equal, set to the second; saw whether it was equal.
    Cas(Option<Value>, Option<Value>, bool),
    /// Added behind the text.
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

/// What clients saw of a store. Whatever made it, no operation ends before it is called, and no process does two things at once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct History {
    operations: Vec<Operation>,
    failed: usize,
}

/// What is wrong with a history.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{}{reason}", if *.line > 0 { format!("line {line}: ") } else { String::new() })]
pub struct HistoryError {
    /// The line in the file, counted from 1; 0 if the history was never in one.
    pub line: usize,
    /// What is wrong.
    pub reason: String,
}

impl History {
    /// A history of operations that happened, or may have. So many others surely did not; they do not matter to the verdict.
    pub fn new(operations: Vec<Operation>, failed: usize) -> Result<Self, HistoryError> {
        for operation in &operations {
            if let Some(end) = operation.end.filter(|end| *end < operation.call) {
                let (process, call) = (operation.process, operation.call);
                let reason = format!(
                    "an operation of process {process} is answered at {end}, before its call at {call}"
                );
                return Err(HistoryError { line: operation.line, reason });
            }
        }
        check_processes(&operations)?;
        Ok(Self { operations, failed })
    }

    /// Reads a history. Says which line is wrong and why.
    pub fn parse(text: &str) -> Result<Self, HistoryError> {
        let (mut operations, mut failed) = (Vec::new(), 0);
        for (index, line) in text.strip_prefix('\u{feff}').unwrap_or(text).lines().enumerate() {
            let number = index + 1;
            if line.trim().is_empty() || line.starts_with('#') {
                continue;
            }
            let read = line::read(line, number);
            match read.map_err(|reason| HistoryError { line: number, reason })? {
                Some(operation) => operations.push(operation),
                None => failed += 1,
            }
        }
        Self::new(operations, failed)
    }

    /// Operations that happened, or may have.
    #[must_use]
    pub fn operations(&self) -> &[Operation] {
        &self.operations
    }

    /// The same, to be kept.
    #[must_use]
    pub fn into_operations(self) -> Vec<Operation> {
        self.operations
    }

    /// How many operations surely did not happen.
    #[must_use]
    pub fn failed(&self) -> usize {
        self.failed
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

/// A process has one operation open at a time, and none behind one whose outcome is unknown: that one is open for ever.
fn check_processes(operations: &[Operation]) -> Result<(), HistoryError> {
    let mut by_process: BTreeMap<u64, Vec<&Operation>> = BTreeMap::new();
    for operation in operations {
        by_process.entry(operation.process).or_default().push(operation);
    }
    for operations in by_process.values_mut() {
        operations.sort_by_key(|operation| (operation.call, operation.end.unwrap_or(u64::MAX)));
        for pair in operations.windows(2) {
            let [before, after] = pair else { continue };
            if before.end.is_none_or(|end| end > after.call) {
                return Err(overlap(before, after));
            }
        }
    }
    Ok(())
}

fn overlap(before: &Operation, after: &Operation) -> HistoryError {
    let place = match before.line {
        0 => format!("called at {}", before.call),
        line => format!("of line {line}"),
    };
    let until = match before.end {
        Some(end) => format!("open until {end}"),
        None => "open for ever (its outcome is unknown: the client goes on as another process)".to_string(),
    };
    let (process, call) = (after.process, after.call);
    let reason = format!(
        "process {process} calls at {call}, but its operation {place} is {until}; a process does one thing at a time"
    );
    HistoryError { line: after.line, reason }
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
{"process":7,"op":"append","key":"y","value":"\"quoted\"\n","call":1,"return":2,"ok":true}
{"process":7,"op":"incr","key":"z","value":-3,"call":3,"return":4,"ok":true,"result":-3}
{"process":7,"op":"put","key":"\u0001","value":1.50e400,"call":5,"return":6,"ok":true}
{"process":7,"op":"get","key":"y","call":7,"return":null,"ok":null}
"#;

    #[test]
    fn the_documented_example_is_read() {
        let history = History::parse(EXAMPLE).unwrap();
        assert_eq!((history.operations.len(), history.failed, history.unknown()), (8, 1, 2));
        assert_eq!(history.operations[2].action, Action::Cas(Some("7".into()), Some("8".into()), true));
        assert_eq!(history.operations[1].line, 3);
        assert_eq!(history.is_too_thin(), None);
    }

    #[test]
    fn what_is_written_is_read_back() {
        let history = History::parse(EXAMPLE).unwrap();
        let text: Vec<String> = history.operations.iter().map(Operation::to_json).collect();
        let again = History::parse(&text.join("\n")).unwrap();
        assert_eq!(history.operations.len(), again.operations.len());
        for (before, after) in history.operations.iter().zip(&again.operations) {
            assert_eq!((&before.action, before.call, before.end), (&after.action, after.call, after.end));
            assert_eq!((&before.key, before.process), (&after.key, after.process));
        }
    }

    #[test]
    fn nothing_is_done_by_a_process_behind_an_unknown_outcome() {
        let open = r#"{"process":1,"op":"delete","key":"x","call":1,"return":null,"ok":null}"#;
        let next = r#"{"process":1,"op":"delete","key":"x","call":5,"return":6,"ok":true}"#;
        let error = History::parse(&format!("{open}\n{next}")).unwrap_err();
        assert_eq!(error.line, 2);
        let words = error.to_string();
        assert!(words.contains("line 1") && words.contains("one thing at a time"), "{words}");
    }

    #[test]
    fn a_history_made_by_hand_is_held_against_the_same_rules() {
        let operation = |process, call, end| Operation {
            process,
            key: "x".to_string(),
            action: Action::Delete,
            call,
            end,
            line: 0,
        };
        let error = |operations| History::new(operations, 0).unwrap_err().to_string();
        assert!(
            error(vec![operation(1, 5, Some(4))]).starts_with("an operation of process 1 is answered at 4")
        );
        let words = error(vec![operation(1, 5, Some(9)), operation(1, 1, Some(6))]);
        assert!(words.starts_with("process 1 calls at 5") && words.contains("called at 1"), "{words}");
        assert!(error(vec![operation(1, 1, None), operation(1, 6, None)]).contains("for ever"));
        let good = vec![operation(1, 1, Some(5)), operation(1, 5, Some(5)), operation(2, 1, None)];
        assert_eq!(History::new(good, 3).unwrap().failed(), 3);
    }
}
