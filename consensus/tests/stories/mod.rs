//! Scripts that tell a story: commands, each with everything that followed. `UPDATE=1 cargo test` rewrites what followed; the
//! difference then shows what a change altered.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "test code, and it rewrites scripts on request"
)]

use std::path::Path;

/// Somebody who acts on the commands of a script and tells what followed.
pub(crate) trait Story: Sized {
    /// Begins with the words of the first command.
    fn begin(words: &[&str]) -> Self;

    /// Acts, and tells.
    fn act(&mut self, command: &str) -> String;
}

/// Runs a script and returns it with what followed each command.
fn play<S: Story>(script: &str) -> String {
    let mut story: Option<S> = None;
    let mut told = String::new();
    for line in script.lines() {
        let Some(command) = line.strip_prefix("> ") else {
            if line.starts_with('#') || line.is_empty() && told.ends_with("\n") && !told.ends_with("\n\n") {
                told.push_str(line);
                told.push('\n');
            }
            continue;
        };
        told.push_str(line);
        told.push('\n');
        match &mut story {
            None => story = Some(S::begin(&command.split_whitespace().collect::<Vec<_>>())),
            Some(story) => told.push_str(&story.act(command)),
        }
    }
    told
}

/// Every script of a folder still tells what it told.
pub(crate) fn replay_all<S: Story>(folder: &str, at_least: usize) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scripts").join(folder);
    let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(files.len() >= at_least, "{} scripts", files.len());
    let mut changed = Vec::new();
    for file in files {
        let before = std::fs::read_to_string(&file).unwrap();
        let after = play::<S>(&before);
        if before == after {
            continue;
        }
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(&file, &after).unwrap();
            continue;
        }
        let at = before.lines().zip(after.lines()).position(|(a, b)| a != b).unwrap_or(0);
        changed.push(format!(
            "{}:{}\n  before: {}\n  now:    {}",
            file.display(),
            at + 1,
            before.lines().nth(at).unwrap_or("(end)"),
            after.lines().nth(at).unwrap_or("(end)")
        ));
    }
    assert!(changed.is_empty(), "stories changed; UPDATE=1 rewrites them:\n{}", changed.join("\n"));
}

/// The number of a replica that a script names as `r2`.
pub(crate) fn index(word: &str) -> usize {
    word.trim_start_matches('r').parse().unwrap_or_else(|_| panic!("\"{word}\" is no replica"))
}
