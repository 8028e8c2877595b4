//! Silent damage at rest: every byte of every file of a small store is flipped, one at a time. The store may refuse, or
//! still know everything; it never answers wrongly.
#![allow(clippy::unwrap_used, dead_code, reason = "test code, of which this file uses a part")]

#[path = "crash/files.rs"]
mod files;
#[path = "crash/script.rs"]
mod script;

use files::{files_below, scratch};
use script::{Problem, Promised};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

/// Enough that the log was replaced once, and that one state job was large.
const COMMITS: u64 = 44;

fn lay_out(files: &BTreeMap<PathBuf, Vec<u8>>, to: &Path) {
    let _ = std::fs::remove_dir_all(to);
    for (name, bytes) in files {
        std::fs::create_dir_all(to.join(name).parent().unwrap()).unwrap();
        std::fs::write(to.join(name), bytes).unwrap();
    }
}

/// How many flips of each file were noticed, and how many changed nothing that counts.
#[derive(Default)]
struct Count {
    refused: AtomicUsize,
    harmless: AtomicUsize,
}

/// A small store that was closed in peace, and then opened and closed once more, so that sled has written its snapshot.
fn small_store(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let data = dir.join("data");
    std::fs::create_dir_all(&data).unwrap();
    std::fs::write(data.join(tetrachord::storage::disk::BOOTSTRAP_FILE), b"").unwrap();
    script::run_briefly(&data, COMMITS);
    let (storage, _, reports) = script::open(&data).unwrap();
    drop(storage);
    while reports.recv().is_ok() {}
    files_below(&data)
}

const PROMISED: Promised = Promised { durable: COMMITS, written: COMMITS };

#[test]
fn no_missing_and_no_shortened_file_makes_a_wrong_answer() {
    let dir = scratch();
    let files = small_store(dir.path());
    let to = dir.path().join("damaged");
    for (name, bytes) in &files {
        for length in [None, Some(0), Some(bytes.len() / 3), Some(bytes.len().saturating_sub(1))] {
            let mut files = files.clone();
            match length {
                None => drop(files.remove(name)),
                Some(length) => files.get_mut(name).unwrap().truncate(length),
            }
            lay_out(&files, &to);
            let found = script::verify(&to, PROMISED);
            println!("{} cut to {length:?}: {found:?}", name.display());
            assert!(!matches!(found, Err(Problem::Wrong(_))), "{} cut to {length:?}", name.display());
        }
    }
}

#[test]
fn snapshots_of_sled_that_were_never_finished_do_no_harm() {
    let dir = scratch();
    let mut files = small_store(dir.path());
    for name in ["snap.00000000FFFFFFFF.generating", "snap.0000000000000001.generating"] {
        files.insert(name.into(), b"half of something".to_vec());
    }
    let to = dir.path().join("damaged");
    lay_out(&files, &to);
    assert_eq!(script::verify(&to, PROMISED), Ok(()));
}

#[test]
fn no_flipped_byte_of_any_file_makes_a_wrong_answer() {
    let dir = scratch();
    let files = small_store(dir.path());
    for (name, bytes) in &files {
        let count = Count::default();
        // Long runs of zeros are all alike, and so is what is void: a sample will do.
        let is_void = name.to_string_lossy().contains("spare-");
        let places: Vec<usize> = (0..bytes.len())
            .filter(|at| {
                let around = &bytes[at.saturating_sub(64)..bytes.len().min(at + 64)];
                (around.iter().any(|byte| *byte != 0) && !is_void) || at.is_multiple_of(509)
            })
            .collect();
        std::thread::scope(|scope| {
            for half in 0..2 {
                let (count, places, files) = (&count, &places, &files);
                let to = dir.path().join(format!("flipped-{half}"));
                scope.spawn(move || {
                    for at in places.iter().skip(half).step_by(2) {
                        let mut files = files.clone();
                        files.get_mut(name).unwrap()[*at] ^= 1 << (at % 8);
                        lay_out(&files, &to);
                        match script::verify(&to, PROMISED) {
                            Ok(()) => count.harmless.fetch_add(1, Ordering::Relaxed),
                            Err(Problem::Refused(_)) => count.refused.fetch_add(1, Ordering::Relaxed),
                            Err(Problem::Wrong(what)) => panic!("{} byte {at}: {what}", name.display()),
                        };
                    }
                });
            }
        });
        println!(
            "{}: {} bytes, {} flipped: {} refused, {} harmless",
            name.display(),
            bytes.len(),
            places.len(),
            count.refused.into_inner(),
            count.harmless.into_inner()
        );
    }
}

/// In Byzantine mode a tree that cannot be read is replaced by an empty one: the node opens and repairs its state. It never
/// answers wrongly, and the log is never touched.
#[test]
fn a_tree_that_others_can_prove_never_keeps_a_store_from_opening() {
    let dir = scratch();
    let files = small_store(dir.path());
    let promised = Promised { durable: COMMITS, written: 0 };
    let to = dir.path().join("damaged");
    let (mut opened, mut unreadable) = (0, 0);
    let mut judge = |what: String, files: &BTreeMap<PathBuf, Vec<u8>>| {
        lay_out(files, &to);
        match script::verify_repairable(&to, promised) {
            Ok(()) => opened += 1,
            Err(Problem::Refused(reason)) if reason.starts_with("cannot be read") => unreadable += 1,
            Err(problem) => panic!("{what}: {problem}"),
        }
    };
    for (name, bytes) in files.iter().filter(|(name, _)| name.starts_with("redo") || is_of_tree(name)) {
        for at in (0..bytes.len()).step_by(if bytes.len() > 4_000 { 97 } else { 3 }) {
            let mut files = files.clone();
            files.get_mut(name).unwrap()[at] ^= 1 << (at % 8);
            judge(format!("{} byte {at}", name.display()), &files);
        }
        for length in [None, Some(0), Some(bytes.len() / 3)] {
            let mut files = files.clone();
            match length {
                None => drop(files.remove(name)),
                Some(length) => files.get_mut(name).unwrap().truncate(length),
            }
            judge(format!("{} cut to {length:?}", name.display()), &files);
        }
    }
    println!("{opened} opened, {unreadable} found damaged when they were read");
    assert!(opened > 300, "{opened}");
}

fn is_of_tree(name: &Path) -> bool {
    name.to_string_lossy().starts_with("tree-")
}
