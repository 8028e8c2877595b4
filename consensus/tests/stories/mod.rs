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
            Some(story) => {
                println!("> {command}");
                let followed = story.act(command);
                print!("{followed}");
                told.push_str(&followed);
            }
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
        // Where a story ends that cannot go on.
        println!("{}", file.display());
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

/// Which lines are told: `quiet` none, `loud` all, `show WORD ...` those in which one of these words stands.
#[derive(Default)]
pub(crate) struct Shown {
    is_quiet: bool,
    words: Vec<String>,
}

impl Shown {
    /// Whether the command was about this.
    pub(crate) fn obeys(&mut self, command: &[&str]) -> bool {
        let (is_quiet, words): (bool, &[&str]) = match command {
            ["quiet"] => (true, &[]),
            ["loud"] => (false, &[]),
            ["show", words @ ..] => (false, words),
            _ => return false,
        };
        *self = Self { is_quiet, words: words.iter().map(ToString::to_string).collect() };
        true
    }

    /// What is told of these lines.
    pub(crate) fn tell(&self, lines: Vec<String>) -> String {
        let holds = |line: &str, word: &str| line.split([' ', ',', ':', '[', ']']).any(|part| part == word);
        let is_told =
            |line: &String| self.words.is_empty() || self.words.iter().any(|word| holds(line, word));
        lines.into_iter().filter(|line| !self.is_quiet && is_told(line)).map(|line| line + "\n").collect()
    }
}

/// Messages under way, which a script may lose, keep back, or have twice.
pub(crate) struct Traffic<E> {
    between: fn(&E) -> (usize, usize),
    late: Vec<E>,
}

impl<E: Clone> Traffic<E> {
    /// Nothing is kept back yet. `between` says from whom to whom a message goes.
    pub(crate) fn new(between: fn(&E) -> (usize, usize)) -> Self {
        Self { between, late: Vec::new() }
    }

    /// Where the oldest message between the two is.
    fn oldest(&self, messages: &[E], from: &str, to: &str) -> usize {
        let found = messages.iter().position(|message| (self.between)(message) == (index(from), index(to)));
        found.unwrap_or_else(|| panic!("nothing is under way from {from} to {to}"))
    }

    /// Where the message is that a command wants to be delivered now.
    pub(crate) fn delivers(&mut self, command: &[&str], network: &mut Vec<E>) -> Option<usize> {
        match command {
            ["deliver", from, to] => Some(self.oldest(network, from, to)),
            ["last", from, to] => {
                let pair = (index(from), index(to));
                Some(network.iter().rposition(|message| (self.between)(message) == pair).unwrap())
            }
            ["late", from, to] => {
                network.insert(0, self.late.remove(self.oldest(&self.late, from, to)));
                Some(0)
            }
            _ => None,
        }
    }

    /// Whether the command was about messages that are not delivered now.
    pub(crate) fn obeys(&mut self, command: &[&str], network: &mut Vec<E>) -> bool {
        match command {
            ["drop", from, to] => {
                let pair = (index(from), index(to));
                network.retain(|message| (self.between)(message) != pair);
            }
            ["lose", from, to] => drop(network.remove(self.oldest(network, from, to))),
            ["delay", from, to] => self.late.push(network.remove(self.oldest(network, from, to))),
            ["copy", from, to] => self.late.push(network[self.oldest(network, from, to)].clone()),
            _ => return false,
        }
        true
    }
}

/// The number of a replica that a script names as `r2`.
pub(crate) fn index(word: &str) -> usize {
    word.trim_start_matches('r').parse().unwrap_or_else(|_| panic!("\"{word}\" is no replica"))
}
