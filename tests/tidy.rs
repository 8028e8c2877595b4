//! The house rules as a test: who may import whom, how long a file and a function may be, which words are not used.
#![allow(clippy::unwrap_used, reason = "test code")]

use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn files_below(folder: &str, ending: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() && !path.ends_with("target") && !path.ends_with(".git") {
                folders.push(path);
            } else if path.to_string_lossy().ends_with(ending) {
                let name = path.strip_prefix(root()).unwrap().to_string_lossy().to_string();
                found.push((name, std::fs::read_to_string(&path).unwrap()));
            }
        }
    }
    found.sort();
    assert!(!found.is_empty(), "{folder} holds no {ending}");
    found
}

/// Production code: test files and inline test modules are left out.
fn production(folder: &str) -> Vec<(String, String)> {
    let is_test = |name: &str| {
        name.contains("/tests/") || name.ends_with("tests.rs") || name.ends_with("conformance.rs")
    };
    let without_tests =
        |text: String| text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default().to_string();
    let files = files_below(folder, ".rs").into_iter().filter(|(name, _)| !is_test(name));
    files.map(|(name, text)| (name, without_tests(text))).collect()
}

fn code_lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines()
        .enumerate()
        .filter(|(_, line)| !line.trim().is_empty() && !line.trim_start().starts_with("//"))
}

/// Which part of `src` may use which others. `limits`, `error` and `ticket` are open to all.
const MAY_USE: &[(&str, &[&str])] = &[
    ("cli", &["client", "config", "group", "kv", "node", "proof", "ring", "wire"]),
    ("client/core", &["client", "config", "kv", "proof", "ring", "wire"]),
    ("client", &["config", "kv", "proof", "ring", "transport", "wire"]),
    ("config/cluster", &["ring", "transport"]),
    ("config/sizes", &[]),
    ("config", &["ring", "storage", "transport"]),
    ("error", &[]),
    ("gateway", &["kv", "ring", "shares", "wire"]),
    ("group", &["kv", "proof", "ring", "shares", "storage"]),
    ("kv/envelope", &[]),
    ("kv/evaluate", &[]),
    ("kv/operation", &[]),
    ("kv/reply", &[]),
    ("kv", &["ring", "storage"]),
    ("limits", &[]),
    ("node/askers", &["shares"]),
    ("node/checks", &["ring", "shares"]),
    ("node/core", &["gateway", "group", "kv", "ring", "router", "shares", "storage", "wire"]),
    ("node/run", &["config", "group", "node", "ring", "storage", "transport", "wire"]),
    ("node/face", &["group", "ring", "shares", "storage", "wire"]),
    ("node/roster", &["ring", "storage", "wire"]),
    ("node/status", &["group", "ring", "wire"]),
    ("proof", &["kv", "ring"]),
    ("ring", &[]),
    ("router", &["kv", "ring", "wire"]),
    ("shares", &["ring"]),
    ("storage", &["ring"]),
    ("transport", &["ring", "shares"]),
    ("wire", &["kv", "proof", "ring", "shares"]),
];

#[test]
fn modules_use_only_what_they_may() {
    let mut wrong = Vec::new();
    for (name, text) in production("src") {
        let part = name.trim_start_matches("src/");
        let Some((own, allowed)) = MAY_USE.iter().find(|(part_name, _)| {
            part.strip_prefix(part_name).is_some_and(|rest| rest.starts_with('/') || rest.starts_with(".rs"))
        }) else {
            continue;
        };
        for (number, line) in code_lines(&text) {
            for used in line.split("crate::").skip(1) {
                let used: String =
                    used.chars().take_while(|letter| letter.is_alphanumeric() || *letter == '_').collect();
                let is_open = ["limits", "error", "mutation", "ticket"].contains(&used.as_str());
                let is_own = own.split('/').next() == Some(used.as_str());
                if !is_open && !is_own && !used.is_empty() && !allowed.contains(&used.as_str()) {
                    wrong.push(format!("{name}:{}: {own} may not use {used}", number + 1));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn outside_libraries_stay_in_their_rooms() {
    let rooms: &[(&str, &[&str])] = &[
        ("sled::", &["src/storage/tree/"]),
        ("quinn::", &["src/transport/"]),
        ("rustls::", &["src/transport/"]),
        ("tokio::", &["src/transport/", "src/node/run.rs", "src/cli/", "src/client/run.rs"]),
        ("std::fs", &["src/storage/", "src/config/", "src/cli/", "src/node/run.rs"]),
        ("Instant::now", &["src/storage/disk.rs", "src/node/run.rs", "src/cli/", "src/client/run.rs"]),
        ("SystemTime", &["src/node/run.rs", "src/client/run.rs"]),
        (
            "tetrachord_consensus",
            &[
                "src/group/",
                "src/node/",
                "src/limits.rs",
                "src/config/",
                "src/client",
                "src/proof.rs",
                "src/cli/",
            ],
        ),
    ];
    let mut wrong = Vec::new();
    for (name, text) in production("src") {
        for (number, line) in code_lines(&text) {
            for (library, allowed) in rooms {
                let uses = line.contains(library) && !line.contains(&format!("storage::{library}"));
                if uses && !allowed.iter().any(|room| name.starts_with(room)) {
                    wrong.push(format!("{name}:{}: {library} is not for this file", number + 1));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_core_depends_on_no_runtime_no_network_and_no_store() {
    let manifest = std::fs::read_to_string(root().join("consensus/Cargo.toml")).unwrap();
    let dependencies =
        manifest.split("[dependencies]").nth(1).unwrap().split("[dev-dependencies]").next().unwrap();
    for banned in ["tokio", "quinn", "sled", "rand", "getrandom", "tracing"] {
        assert!(!dependencies.contains(banned), "the core must not depend on {banned}");
    }
}

/// Whoever only asks brings as little as possible into his program.
#[test]
fn the_client_alone_needs_few_libraries() {
    let manifest = std::fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let package = &manifest[manifest.find("\n[package]").unwrap()..];
    let dependencies = package.split("\n[dependencies]\n").nth(1).unwrap().split("\n\n").next().unwrap();
    let always = dependencies.lines().filter(|line| !line.contains("optional = true"));
    let names: Vec<&str> = always.map(|line| line.split(['.', ' ']).next().unwrap()).collect();
    let known = [
        "tetrachord-consensus",
        "blake3",
        "bytes",
        "ed25519-dalek",
        "getrandom",
        "postcard",
        "quinn",
        "rustls",
        "serde",
        "thiserror",
        "tokio",
        "toml",
        "tracing",
    ];
    assert_eq!(names, known);
}

#[test]
fn files_and_functions_stay_small() {
    let mut wrong = Vec::new();
    for (folder, file_max, function_max) in
        [("consensus/src", 500, 70), ("src", 500, 100), ("jepsen", 500, 100)]
    {
        for (name, text) in production(folder) {
            let count = code_lines(&text).count();
            if count > file_max {
                wrong.push(format!("{name}: {count} lines of code, at most {file_max}"));
            }
            wrong.extend(long_functions(&name, &text, function_max));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn long_functions(name: &str, text: &str, lines_max: usize) -> Vec<String> {
    let lines: Vec<&str> = text.lines().collect();
    let is_start = |line: &str| {
        let mut words = line.trim_start();
        if let Some(rest) = words.strip_prefix("pub") {
            words =
                rest.strip_prefix('(').and_then(|rest| rest.split_once(") ")).map_or(rest, |(_, rest)| rest);
        }
        let before: &[char] = &[' '];
        for word in ["const ", "async "] {
            words = words.trim_start_matches(before).strip_prefix(word).unwrap_or(words);
        }
        words.trim_start_matches(before).starts_with("fn ")
    };
    let mut wrong = Vec::new();
    for (start, line) in lines.iter().enumerate().filter(|(_, line)| is_start(line) && !line.ends_with(';')) {
        let indent = line.len() - line.trim_start().len();
        let end = format!("{}}}", " ".repeat(indent));
        let length = lines[start..].iter().position(|line| *line == end).map_or(1, |position| position + 1);
        if length > lines_max {
            wrong.push(format!("{name}:{}: a function of {length} lines, at most {lines_max}", start + 1));
        }
    }
    wrong
}

#[test]
fn one_word_for_one_thing() {
    // The word that is not used here, and the one that is (docs/glossary.md).
    let synonyms = [
        ("shard", "group"),
        ("validator", "replica"),
        ("committee", "group"),
        ("nonblocking", "say what happens"),
        ("blacklist", "refuse"),
        ("whitelist", "allow"),
        ("todo!", "finish it"),
        ("unimplemented!", "finish it"),
        ("FIXME", "fix it"),
        ("TODO", "do it, or write it down in docs"),
    ];
    let mut wrong = Vec::new();
    for folder in ["src", "consensus/src", "jepsen"] {
        for (name, text) in production(folder) {
            for (number, line) in text.lines().enumerate() {
                for (word, instead) in synonyms {
                    if line.contains(word) {
                        wrong.push(format!("{name}:{}: \"{word}\"; here it is \"{instead}\"", number + 1));
                    }
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_module_begins_with_what_it_is() {
    for folder in ["src", "consensus/src", "jepsen/checker/src"] {
        for (name, text) in files_below(folder, ".rs") {
            assert!(text.starts_with("//!"), "{name} does not say what it is");
        }
    }
}

#[test]
fn documents_point_to_what_exists() {
    let mut wrong = Vec::new();
    let mut documents = files_below("docs", ".md");
    for name in ["README.md", "CHANGELOG.md"] {
        documents.push((name.to_string(), std::fs::read_to_string(root().join(name)).unwrap()));
    }
    for (name, text) in documents {
        let folder = root().join(&name).parent().unwrap().to_path_buf();
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let path = target.split('#').next().unwrap();
            if !path.is_empty() && !target.starts_with("http") && !Path::new(&folder).join(path).exists() {
                wrong.push(format!("{name}: {target} does not exist"));
            }
        }
        for code in text.split('`').skip(1).step_by(2) {
            let is_path = ["src/", "consensus/", "jepsen/", "tests/", "docs/"]
                .iter()
                .any(|start| code.starts_with(start));
            if is_path
                && !code.contains([' ', '*', '{', '<', '\n'])
                && !root().join(code.split("::").next().unwrap()).exists()
            {
                wrong.push(format!("{name}: `{code}` does not exist"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_list_of_documents_names_each() {
    let list = std::fs::read_to_string(root().join("docs/README.md")).unwrap();
    let names = files_below("docs", ".md").into_iter().map(|(name, _)| name);
    let is_listed = |name: &String| {
        let name = name.trim_start_matches("docs/");
        name == "README.md" || name.starts_with("decisions/") || list.contains(&format!("]({name})"))
    };
    let missing: Vec<String> = names.filter(|name| !is_listed(name)).collect();
    assert!(missing.is_empty() && list.contains("](decisions)"), "docs/README.md does not name {missing:?}");
}

/// A registry's page of a library says less than the library's own, and registries change.
#[test]
fn documents_name_no_registry() {
    let mut texts = files_below("docs", ".md");
    texts.extend(files_below("jepsen", ".md"));
    for name in ["README.md", "CHANGELOG.md"] {
        texts.push((name.to_string(), std::fs::read_to_string(root().join(name)).unwrap()));
    }
    for (name, text) in texts {
        for host in ["crates.io", "lib.rs/", "npmjs.com", "pypi.org", "proxy.golang.org", "repo1.maven.org"] {
            assert!(!text.contains(host), "{name} names {host}");
        }
    }
}
