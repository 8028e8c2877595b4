//! Runs the README's examples, in order, in one shell, and holds what they print against what the README says.
//!
//! `...` stands for any lines, `[..]` for anything within a line, `# exits N` (or `N or M`) for an exit code other than 0.
//! Commands that begin with `cargo` are what runs this test.
#![allow(clippy::unwrap_used, reason = "test code")]

use std::io::Write;
use std::process::{Command, Stdio};

struct Example {
    command: String,
    exits: Vec<i32>,
    expected: Vec<String>,
}

fn examples(readme: &str) -> Vec<Example> {
    let mut examples: Vec<Example> = Vec::new();
    for block in readme.split("```console\n").skip(1).map(|rest| rest.split("```").next().unwrap()) {
        for line in block.lines() {
            let Some(command) = line.strip_prefix("$ ") else {
                examples.last_mut().expect("a block begins with a command").expected.push(line.to_string());
                continue;
            };
            let (command, exits) = match command.split_once(" # exits ") {
                Some((command, codes)) => {
                    (command, codes.split(" or ").map(|code| code.trim().parse().unwrap()).collect())
                }
                None => (command, vec![0]),
            };
            examples.push(Example { command: command.to_string(), exits, expected: Vec::new() });
        }
    }
    examples.retain(|example| !example.command.starts_with("cargo "));
    assert!(examples.len() > 15, "the README shows how to use it");
    examples
}

fn fits(line: &str, pattern: &str) -> bool {
    let parts: Vec<&str> = pattern.split("[..]").collect();
    let Some(mut rest) = line.trim_end().strip_prefix(parts[0]) else { return false };
    for part in &parts[1..] {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.is_empty() || parts.last().is_some_and(|last| last.is_empty() && parts.len() > 1)
}

fn all_fit(lines: &[&str], patterns: &[String]) -> bool {
    match patterns {
        [] => lines.is_empty(),
        [dots, rest @ ..] if dots == "..." => (0..=lines.len()).any(|skip| all_fit(&lines[skip..], rest)),
        [pattern, rest @ ..] => {
            lines.first().is_some_and(|line| fits(line, pattern)) && all_fit(&lines[1..], rest)
        }
    }
}

/// The README's program is the one in the documentation of the client, which is compiled.
#[test]
fn the_program_in_the_readme_is_the_one_that_is_compiled() {
    let shown = include_str!("../README.md").split("```rust\n").nth(1).unwrap().split("```").next().unwrap();
    let essay = include_str!("../src/client.rs").split("//! ```no_run\n").nth(1).unwrap();
    let lines = essay.lines().take_while(|line| *line != "//! ```");
    let lines = lines.map(|line| line.trim_start_matches("//!").trim_start_matches(' '));
    let compiled: Vec<&str> = lines.filter(|line| !line.starts_with("# ")).collect();
    // Indentation aside.
    let shown: Vec<&str> = shown.lines().map(str::trim_start).collect();
    assert_eq!(shown, compiled);
}

#[test]
fn what_the_readme_shows_is_what_happens() {
    let readme = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).unwrap();
    let examples = examples(&readme);
    let dir = tempfile::tempdir().unwrap();
    let program = std::path::Path::new(env!("CARGO_BIN_EXE_tetrachord"));
    let path = format!("{}:{}", program.parent().unwrap().display(), std::env::var("PATH").unwrap());
    let mut script = String::from("set -m\ntrap 'kill -9 $(jobs -p) 2>/dev/null' EXIT\n");
    for (index, example) in examples.iter().enumerate() {
        script.push_str(&format!("echo \"@@@ {index}\"\n{}\necho \"@@@ exit $?\"\n", example.command));
    }
    let mut shell = Command::new("bash")
        .current_dir(dir.path())
        .env("PATH", path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    shell.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
    let output = shell.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).to_string();
    for (index, example) in examples.iter().enumerate() {
        let begin = format!("@@@ {index}\n");
        let part = text
            .split(&begin)
            .nth(1)
            .unwrap_or_else(|| panic!("`{}` was not reached:\n{text}", example.command));
        let (printed, rest) = part.split_once("@@@ exit ").unwrap();
        let code: i32 = rest.lines().next().unwrap().trim().parse().unwrap();
        assert!(example.exits.contains(&code), "`{}` exits {code}, prints:\n{printed}", example.command);
        let lines: Vec<&str> = printed.lines().collect();
        assert!(
            example.expected.is_empty() && example.command.ends_with('&')
                || all_fit(&lines, &example.expected),
            "`{}` prints:\n{printed}\nthe README says:\n{}",
            example.command,
            example.expected.join("\n")
        );
    }
}
