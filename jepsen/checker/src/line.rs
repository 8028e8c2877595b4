//! The history format: JSON lines, one operation a line. `docs/testing.md` has the whole of it, field by field.
//!
//! A line is held against these rules in this order: it is a JSON object, each field is known and there once, each is of its kind, and
//! the operation has what it needs and nothing else. Whatever is wrong is said with the field, what it is and what it may be.

use crate::history::{Action, Operation};
use crate::value::{Number, Value};
use serde::de::{Deserializer, Error, MapAccess, Visitor};
use serde_json::value::RawValue;
use std::fmt;

/// Every field that a line may have.
const FIELDS: [&str; 9] = ["process", "op", "key", "value", "expect", "call", "return", "ok", "result"];

const STRING: &str = "a string";
const VALUE: &str = "a string or a number";
const VALUE_OR_NULL: &str = "a string, a number or null";
const BOOLEAN: &str = "true or false";
const ANSWER: &str = "true, false or null";
const OPERATION: &str = "get, put, delete, cas, append or incr";
const UNSIGNED: &str = "a whole number from 0 to 18446744073709551615";
const SIGNED: &str = "a whole number from -9223372036854775808 to 9223372036854775807";

/// Reads a line. None if the operation surely did not happen.
pub(crate) fn read(text: &str, line: usize) -> Result<Option<Operation>, String> {
    let fields = Fields::read(text)?;
    let process = fields.unsigned("process")?;
    let op = fields.op()?;
    let key = fields.text("key")?;
    let call = fields.unsigned("call")?;
    let ok = match fields.need("ok", ANSWER)? {
        "null" => None,
        raw => Some(boolean(raw).ok_or_else(|| wrong("ok", raw, ANSWER))?),
    };
    let end = match fields.need("return", "null, or a whole number of nanoseconds")? {
        "null" => None,
        _ => Some(fields.unsigned("return")?),
    };
    match (ok, end) {
        (Some(true), None) => {
            return Err("\"return\" is null; where \"ok\" is true it must be known".to_string());
        }
        (None, Some(_)) => {
            return Err("\"return\" must be null where \"ok\" is: nobody was answered".to_string());
        }
        (Some(_), Some(end)) if end < call => {
            return Err(format!("\"return\" is {end}, before its \"call\" at {call}"));
        }
        _ => {}
    }
    let action = fields.action(&op, ok == Some(true))?;
    Ok((ok != Some(false)).then_some(Operation { process, key, action, call, end, line }))
}

/// The fields of a line, as they stand there.
#[derive(Default)]
struct Fields<'a> {
    raw: [Option<&'a str>; FIELDS.len()],
    /// What is wrong with their names.
    problem: Option<String>,
}

impl<'a> Fields<'a> {
    fn read(text: &'a str) -> Result<Self, String> {
        if !text.trim_start().starts_with('{') && serde_json::from_str::<&RawValue>(text).is_ok() {
            return Err(format!("a line must be an object, {{...}}; it is {}", shortened(text.trim())));
        }
        let mut deserializer = serde_json::Deserializer::from_str(text);
        let read = deserializer.deserialize_map(FieldsVisitor);
        let fields = read.and_then(|fields| deserializer.end().map(|()| fields)).map_err(no_json)?;
        fields.problem.clone().map_or(Ok(fields), Err)
    }

    fn raw(&self, name: &str) -> Option<&'a str> {
        FIELDS.iter().position(|field| *field == name).and_then(|index| self.raw[index])
    }

    fn need(&self, name: &str, allowed: &str) -> Result<&'a str, String> {
        self.raw(name).ok_or_else(|| format!("\"{name}\" is missing; it must be {allowed}"))
    }

    fn unsigned(&self, name: &str) -> Result<u64, String> {
        let raw = self.need(name, UNSIGNED)?;
        let whole = raw.parse().ok().or_else(|| Number::parse(raw)?.unsigned());
        whole.ok_or_else(|| wrong(name, raw, UNSIGNED))
    }

    fn signed(&self, name: &str) -> Result<i64, String> {
        let raw = self.need(name, SIGNED)?;
        let whole = raw.parse().ok().or_else(|| Number::parse(raw)?.signed());
        whole.ok_or_else(|| wrong(name, raw, SIGNED))
    }

    fn text(&self, name: &str) -> Result<String, String> {
        let raw = self.need(name, STRING)?;
        text(raw).ok_or_else(|| wrong(name, raw, STRING))
    }

    fn op(&self) -> Result<String, String> {
        let raw = self.need("op", OPERATION)?;
        let is_known = |op: &String| ["get", "put", "delete", "cas", "append", "incr"].contains(&op.as_str());
        text(raw).filter(is_known).ok_or_else(|| wrong("op", raw, OPERATION))
    }

    fn boolean(&self, name: &str) -> Result<bool, String> {
        let raw = self.need(name, BOOLEAN)?;
        boolean(raw).ok_or_else(|| wrong(name, raw, BOOLEAN))
    }

    /// A value, or null with this meaning. It must be there: what was left out by mistake would be taken for "no such key".
    fn value_or_null(&self, name: &str, null: &str) -> Result<Option<Value>, String> {
        let raw = self.need(name, &format!("{VALUE_OR_NULL} ({null})"))?;
        let value = value(raw).map(Some).or_else(|| (raw == "null").then_some(None));
        value.ok_or_else(|| wrong(name, raw, VALUE_OR_NULL))
    }

    /// What belongs to another operation is a mistake, and not passed over.
    fn none(&self, op: &str, names: &[&str]) -> Result<(), String> {
        for name in names {
            if let Some(raw) = self.raw(name).filter(|raw| *raw != "null") {
                let article = if op.starts_with(['a', 'i']) { "an" } else { "a" };
                return Err(format!("\"{name}\" is {}; {article} {op} has none", shortened(raw)));
            }
        }
        Ok(())
    }

    fn action(&self, op: &str, is_answered: bool) -> Result<Action, String> {
        if let Some(raw) = self.raw("result").filter(|raw| *raw != "null" && !is_answered) {
            let raw = shortened(raw);
            return Err(format!("\"result\" is {raw}; only an operation whose \"ok\" is true has one"));
        }
        let action = match op {
            "get" => {
                self.none(op, &["value", "expect"])?;
                Action::Get(match is_answered {
                    true => self.value_or_null("result", "null if there was no such key")?,
                    false => None,
                })
            }
            "put" => {
                self.none(op, &["expect", "result"])?;
                let raw = self.need("value", VALUE)?;
                let no_value = || format!("{}; use a delete to remove a key", wrong("value", raw, VALUE));
                Action::Put(value(raw).ok_or_else(no_value)?)
            }
            "delete" => {
                self.none(op, &["value", "expect", "result"])?;
                Action::Delete
            }
            "append" => {
                self.none(op, &["expect", "result"])?;
                Action::Append(self.text("value")?)
            }
            "cas" => Action::Cas(
                self.value_or_null("expect", "null for no such key")?,
                self.value_or_null("value", "null to remove the key")?,
                is_answered && self.boolean("result")?,
            ),
            _ => {
                self.none(op, &["expect"])?;
                let sum = if is_answered { self.signed("result")? } else { 0 };
                Action::Incr(self.signed("value")?, sum)
            }
        };
        Ok(action)
    }
}

struct FieldsVisitor;

impl<'de> Visitor<'de> for FieldsVisitor {
    type Value = Fields<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Self::Value, M::Error> {
        let mut fields = Fields::default();
        while let Some(name) = map.next_key::<Name>()? {
            let raw = map.next_value::<&RawValue>()?.get();
            let problem = match name {
                Name::Field(index) => {
                    fields.raw[index].replace(raw).map(|_| format!("\"{}\" is there twice", FIELDS[index]))
                }
                Name::Other(name) if name == "txn" => {
                    Some("transactions (\"txn\") are not judged by this version".to_string())
                }
                Name::Other(name) => {
                    let (last, first) = FIELDS.split_last().ok_or_else(|| M::Error::custom("no fields"))?;
                    Some(format!("{name:?} is no field; there are {} and {last}", first.join(", ")))
                }
            };
            fields.problem = fields.problem.or(problem);
        }
        Ok(fields)
    }
}

/// The name of a field.
enum Name {
    Field(usize),
    Other(String),
}

impl<'de> serde::Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(NameVisitor)
    }
}

struct NameVisitor;

impl Visitor<'_> for NameVisitor {
    type Value = Name;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the name of a field")
    }

    fn visit_str<E>(self, name: &str) -> Result<Name, E> {
        let index = FIELDS.iter().position(|field| *field == name);
        Ok(index.map_or_else(|| Name::Other(name.to_string()), Name::Field))
    }
}

fn no_json(error: serde_json::Error) -> String {
    let words = error.to_string();
    // Where it is in the line is said by us: the library takes every line for the first.
    let what = words.split(" at line ").next().unwrap_or_default();
    format!("no JSON: {what} at column {}", error.column())
}

fn wrong(name: &str, raw: &str, allowed: &str) -> String {
    format!("\"{name}\" is {}; it must be {allowed}", shortened(raw))
}

fn shortened(raw: &str) -> String {
    const SHOWN_MAX: usize = 60;
    match raw.char_indices().nth(SHOWN_MAX) {
        Some((at, _)) => format!("{}...", &raw[..at]),
        None => raw.to_string(),
    }
}

fn boolean(raw: &str) -> Option<bool> {
    match raw {
        "true" => Some(true),
        "false" => Some(false),
        _ => None,
    }
}

fn text(raw: &str) -> Option<String> {
    serde_json::from_str(raw).ok()
}

fn value(raw: &str) -> Option<Value> {
    match raw.starts_with('"') {
        true => text(raw).map(Value::Text),
        false => Number::parse(raw).map(Value::Number),
    }
}

impl Operation {
    /// The operation as a line of a history file, without the line end.
    #[must_use]
    pub fn to_json(&self) -> String {
        let is_known = self.end.is_some();
        let (op, value, expect, result) = match &self.action {
            Action::Get(seen) => ("get", None, None, Some(json_value(seen))),
            Action::Put(value) => ("put", Some(json(value)), None, None),
            Action::Delete => ("delete", None, None, None),
            Action::Append(value) => ("append", Some(json_text(value)), None, None),
            Action::Cas(expect, value, swapped) => {
                ("cas", Some(json_value(value)), Some(json_value(expect)), Some(swapped.to_string()))
            }
            Action::Incr(by, sum) => ("incr", Some(by.to_string()), None, Some(sum.to_string())),
        };
        let mut line = format!(r#"{{"process":{},"op":"{op}","key":{}"#, self.process, json_text(&self.key));
        let mut add = |name: &str, value: &str| line.extend([",\"", name, "\":", value]);
        if let Some(expect) = expect {
            add("expect", &expect);
        }
        if let Some(value) = value {
            add("value", &value);
        }
        add("call", &self.call.to_string());
        add("return", &self.end.map_or("null".to_string(), |end| end.to_string()));
        add("ok", if is_known { "true" } else { "null" });
        if let Some(result) = result.filter(|_| is_known) {
            add("result", &result);
        }
        line + "}"
    }
}

fn json_text(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

fn json(value: &Value) -> String {
    match value {
        Value::Text(text) => json_text(text),
        Value::Number(_) => value.letters().to_string(),
    }
}

fn json_value(value: &Option<Value>) -> String {
    value.as_ref().map_or("null".to_string(), json)
}
