//! What a line of a history may hold, what it means, and what is said of one that is wrong.
#![allow(clippy::unwrap_used, reason = "test code")]

use tetrachord_checker::{History, Limits, Verdict, check};

/// Operations of one key, one after another; a line gives all of it but process, key and times.
fn one_after_another(lines: &[&str]) -> String {
    let numbered = lines.iter().enumerate().map(|(index, line)| {
        let (call, end) = (10 * index, 10 * index + 5);
        format!(r#"{{"process":1,"key":"x","call":{call},"return":{end},"ok":true,{line}}}"#)
    });
    numbered.collect::<Vec<_>>().join("\n")
}

fn holds(lines: &[&str]) -> bool {
    let history = History::parse(&one_after_another(lines)).unwrap();
    match check(&history, Limits::default()).verdict {
        Verdict::Linearizable => true,
        Verdict::Violation { .. } => false,
        Verdict::Undecided { .. } => panic!("undecided"),
    }
}

fn put_then_get(put: &str, got: &str) -> bool {
    let (put, got) = (format!(r#""op":"put","value":{put}"#), format!(r#""op":"get","result":{got}"#));
    holds(&[&put, &got])
}

#[test]
fn numbers_are_compared_exactly() {
    assert!(put_then_get("18446744073709551617", "18446744073709551617"));
    assert!(!put_then_get("18446744073709551617", "18446744073709551999"));
    assert!(!put_then_get("0.1", "0.1000000000000000055511151231257827"));
    assert!(!put_then_get("1e400", "1e401"));
    assert!(!put_then_get("-7", "7"));
    for same in ["7", "7.0", "7e0", "0.7e1", "70e-1", "700E-2", "0.0007e+4"] {
        assert!(put_then_get("7", same), "{same} is seven");
    }
    for zero in ["0", "-0", "0.000", "0e99999999999999999999"] {
        assert!(put_then_get("0", zero), "{zero} is nought");
    }
}

#[test]
fn a_number_is_never_a_string() {
    assert!(put_then_get(r#""7""#, r#""7""#));
    assert!(!put_then_get(r#""7""#, "7"));
    assert!(!put_then_get("7", r#""7""#));
    assert!(!put_then_get(r#""7""#, r#""7.0""#), "texts are compared letter by letter");
    assert!(!holds(&[r#""op":"put","value":7"#, r#""op":"cas","expect":"7","value":"8","result":true"#]));
}

/// A sum is a number however the store keeps it; what a get sees of it is of the kind that the store keeps.
#[test]
fn a_sum_is_kept_as_what_was_there() {
    let incr = |sum: i64| format!(r#""op":"incr","value":1,"result":{sum}"#);
    // Stores that hold texts, and stores that hold numbers, from no such key on.
    assert!(holds(&[&incr(1), r#""op":"get","result":"1""#, &incr(2)]));
    assert!(holds(&[&incr(1), r#""op":"get","result":1"#, &incr(2)]));
    assert!(!holds(&[&incr(1), r#""op":"get","result":"1""#, r#""op":"get","result":1"#]));
    // From a value on.
    assert!(holds(&[r#""op":"put","value":"41""#, &incr(42), r#""op":"get","result":"42""#]));
    assert!(!holds(&[r#""op":"put","value":"41""#, &incr(42), r#""op":"get","result":42"#]));
    assert!(holds(&[r#""op":"put","value":4.1e1"#, &incr(42), r#""op":"get","result":42"#]));
    assert!(!holds(&[r#""op":"put","value":41"#, &incr(42), r#""op":"get","result":"42""#]));
    // What is no whole number has no sum.
    assert!(!holds(&[r#""op":"put","value":4.5"#, &incr(5)]));
    assert!(!holds(&[r#""op":"put","value":"four""#, &incr(5)]));
    assert!(!holds(&[r#""op":"put","value":7"#, r#""op":"append","value":"0""#]), "7 is no text");
}

/// What is wrong, as it is said: the line, the field, what is there and what may be.
#[test]
fn errors_name_the_line_and_the_field_and_what_is_allowed() {
    let good = r#""process":1,"op":"get","key":"x","call":1,"return":2,"ok":true,"result":null"#;
    let with = |field: &str, value: &str| {
        let fields: Vec<String> = serde_json::from_str::<serde_json::Map<_, _>>(&format!("{{{good}}}"))
            .unwrap()
            .into_iter()
            .filter(|(name, _)| name != field)
            .map(|(name, value)| format!("\"{name}\":{value}"))
            .collect();
        let added = if value.is_empty() { String::new() } else { format!(",\"{field}\":{value}") };
        format!("{{{}{added}}}", fields.join(","))
    };
    let whole = "a whole number from 0 to 18446744073709551615";
    for (line, words) in [
        (with("result", ""), vec!["\"result\" is missing", "null if there was no such key"]),
        (with("result", "[1]"), vec!["\"result\"", "[1]", "a string, a number or null"]),
        (with("result", "true"), vec!["\"result\"", "true", "a string, a number or null"]),
        (with("ok", ""), vec!["\"ok\" is missing", "true, false or null"]),
        (with("ok", "1"), vec!["\"ok\"", "is 1", "true, false or null"]),
        (with("return", ""), vec!["\"return\" is missing"]),
        (with("return", "2.5"), vec!["\"return\"", "2.5", whole]),
        (with("return", "-1"), vec!["\"return\"", "-1", whole]),
        (with("return", "18446744073709551616"), vec!["\"return\"", "18446744073709551616", whole]),
        (with("call", "\"1\""), vec!["\"call\"", "\"1\"", whole]),
        (with("call", ""), vec!["\"call\" is missing"]),
        (with("process", ""), vec!["\"process\" is missing"]),
        (with("process", "\"worker 1\""), vec!["\"process\"", "worker 1", whole]),
        (with("key", "7"), vec!["\"key\"", "is 7", "a string"]),
        (with("key", ""), vec!["\"key\" is missing"]),
        (with("op", "\"pet\""), vec!["\"op\"", "pet", "get, put, delete, cas, append or incr"]),
        (with("op", "\"read\""), vec!["\"op\"", "read"]),
        (with("op", ""), vec!["\"op\" is missing"]),
        (with("opp", "1"), vec!["\"opp\"", "process, op, key, value, expect, call, return, ok and result"]),
        (with("value", "\"7\""), vec!["\"value\"", "a get has none"]),
        (with("txn", "[]"), vec!["\"txn\""]),
        (with("op", "\"put\""), vec!["\"value\" is missing", "a string or a number"]),
        (with("op", "\"cas\""), vec!["\"expect\" is missing", "null"]),
        (with("op", "\"delete\"").replace(":null", ":true"), vec!["\"result\"", "a delete has none"]),
        (r#"{"process":1,"process":2}"#.to_string(), vec!["\"process\"", "twice"]),
        ("{".to_string(), vec!["no JSON"]),
        ("7".to_string(), vec!["an object", "is 7"]),
    ] {
        let error = History::parse(&format!("# a comment\n\n{line}")).unwrap_err().to_string();
        assert!(error.starts_with("line 3: "), "{line}: {error}");
        for word in words {
            assert!(error.contains(word), "{line}: {error} says nothing of {word}");
        }
    }
}

#[test]
fn what_each_operation_needs_is_demanded() {
    let error = |rest: &str| {
        let line = format!(r#"{{"process":1,"key":"x","call":1,{rest}}}"#);
        History::parse(&line).unwrap_err().to_string()
    };
    let done = r#""return":2,"ok":true"#;
    assert!(error(&format!(r#""op":"put","value":null,{done}"#)).contains("use a delete"));
    assert!(error(&format!(r#""op":"append","value":7,{done}"#)).contains("must be a string"));
    assert!(
        error(&format!(r#""op":"cas","expect":"a",{done},"result":true"#)).contains("\"value\" is missing")
    );
    let cas = r#""op":"cas","expect":"a","value":"b""#;
    assert!(error(&format!("{cas},{done}")).contains("\"result\" is missing"));
    assert!(error(&format!("{cas},{done},\"result\":\"b\"")).contains("true or false"));
    assert!(
        error(&format!(r#""op":"incr","value":"1",{done},"result":1"#)).contains("a whole number from -9223")
    );
    assert!(error(&format!(r#""op":"incr","value":1.5,{done},"result":1"#)).contains("\"value\""));
    assert!(error(&format!(r#""op":"incr","value":1,{done}"#)).contains("\"result\" is missing"));
    assert!(error(r#""op":"delete","return":null,"ok":true"#).contains("\"return\""));
    assert!(error(r#""op":"delete","return":2,"ok":null"#).contains("\"return\" must be null"));
    assert!(error(r#""op":"delete","return":0,"ok":true"#).contains("before its \"call\" at 1"));
    assert!(error(r#""op":"get","return":null,"ok":null,"result":"7""#).contains("\"result\""));
    // What surely did not happen is held against the same rules.
    assert!(error(r#""op":"pet","return":2,"ok":false"#).contains("\"op\""));
}

#[test]
fn a_history_may_begin_with_a_mark_of_byte_order_and_end_its_lines_as_it_likes() {
    let text = "\u{feff}# mark\r\n{\"process\":1,\"op\":\"delete\",\"key\":\"x\",\"call\":1,\"return\":2,\"ok\":true}\r\n";
    assert_eq!(History::parse(text).unwrap().operations().len(), 1);
}

/// Two operations of one moment have an order if one of them took no time.
#[test]
fn the_order_of_lines_does_not_matter() {
    let long = r#"{"process":1,"op":"delete","key":"x","call":5,"return":9,"ok":true}"#;
    let short = r#"{"process":1,"op":"delete","key":"x","call":5,"return":5,"ok":true}"#;
    for text in [format!("{long}\n{short}"), format!("{short}\n{long}")] {
        assert!(History::parse(&text).is_ok());
    }
}
