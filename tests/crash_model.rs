//! Power cuts of the store in a model: the real store runs under a recorder of its system calls, and every point of the
//! recording is turned into what a disk may then hold. Each such disk is opened, and must hold what was promised.
#![allow(clippy::unwrap_used, dead_code, reason = "test code, of which this file uses a part")]

#[path = "crash/disk.rs"]
mod disk;
#[path = "crash/files.rs"]
mod files;
#[path = "crash/script.rs"]
mod script;

use disk::{Call, Disk, Image, Lie, Survivors, Writes, read_trace};
use files::{files_below, scratch};
use script::Promised;
use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// Runs in a process of its own, under the recorder; does nothing by itself.
#[test]
#[ignore = "the other tests run it under the recorder"]
fn child() {
    let Ok(dir) = std::env::var("CRASH_DIR") else { return };
    let dir = PathBuf::from(dir);
    match std::env::var("CRASH_DO").as_deref() {
        Ok("run") => script::run(&dir.join("data"), &dir.join("marks")),
        Ok("recover") => drop(script::open(&dir.join("data")).unwrap()),
        other => panic!("{other:?}"),
    }
}

/// The recorder, compiled once: tests run beside one another, and it must not change under a process that has loaded it.
fn recorder() -> PathBuf {
    static COMPILED: OnceLock<PathBuf> = OnceLock::new();
    COMPILED.get_or_init(compile_recorder).clone()
}

fn compile_recorder() -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("recorder-{}.so", std::process::id()));
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/crash/recorder.c");
    let compiled = Command::new("cc").args(["-shared", "-fPIC", "-O1", "-o"]).arg(&path).arg(source).status();
    assert!(compiled.is_ok_and(|status| status.success()), "a C compiler makes the recorder");
    path
}

/// Runs this program's child under the recorder and returns what it did below `dir`.
fn record(recorder: &Path, dir: &Path, task: &str) -> Vec<Call> {
    let trace = dir.with_extension("trace");
    let _ = std::fs::remove_file(&trace);
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--ignored", "--nocapture"])
        .env("LD_PRELOAD", recorder)
        .env("RECORD_DIR", dir)
        .env("RECORD_OUT", &trace)
        .env("CRASH_DIR", dir)
        .env("CRASH_DO", task)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    read_trace(&trace)
}

fn prepare(dir: &Path) -> Image {
    std::fs::create_dir_all(dir.join("data")).unwrap();
    let bootstrap = dir.join("data").join(tetrachord::storage::disk::BOOTSTRAP_FILE);
    std::fs::write(&bootstrap, b"").unwrap();
    Image::from([(bootstrap.to_str().unwrap().to_string(), Vec::new())])
}

/// Every combination that is tried at one point.
fn survivors(disk: &Disk, sectors: u64) -> Vec<Survivors> {
    const SINGLES_MAX: usize = 6;
    let count = disk.unsafe_writes();
    let mut kinds = vec![Writes::None];
    if count > 0 {
        kinds.extend([Writes::All, Writes::TornFront, Writes::TornBack]);
        kinds.extend((0..sectors).map(Writes::Sectors));
    }
    if count > 1 {
        let singles = count.saturating_sub(SINGLES_MAX)..count;
        kinds.extend(singles.flat_map(|at| [Writes::Only(at), Writes::AllBut(at)]));
    }
    let all = kinds.iter().map(|writes| Survivors { names: true, writes: *writes });
    let mut found: Vec<Survivors> = all.collect();
    if disk.has_unsafe_names() {
        found.push(Survivors { names: false, writes: Writes::None });
        found.push(Survivors { names: false, writes: Writes::All });
    }
    found
}

/// Puts an image into a directory of its own; paths are moved from the recorded directory.
fn lay_out(image: &Image, from: &Path, to: &Path) {
    for (path, bytes) in image {
        let path = to.join(Path::new(path).strip_prefix(from).unwrap());
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }
}

struct Cuts<'a> {
    dir: &'a Path,
    scratch: tempfile::TempDir,
    seen: HashSet<u64>,
    points: usize,
    opened: usize,
    failures: Vec<String>,
}

impl<'a> Cuts<'a> {
    fn new(dir: &'a Path) -> Self {
        Self { dir, scratch: scratch(), seen: HashSet::new(), points: 0, opened: 0, failures: Vec::new() }
    }

    /// Opens one image, unless the same was opened before under the same promise.
    fn try_image(&mut self, image: &Image, promised: Promised, what: &str) {
        self.points += 1;
        let mut hasher = DefaultHasher::new();
        (image, promised).hash(&mut hasher);
        if !self.seen.insert(hasher.finish()) {
            return;
        }
        self.opened += 1;
        let to = self.scratch.path().join(self.opened.to_string());
        lay_out(image, self.dir, &to);
        if let Err(problem) = script::verify(&to.join("data"), promised) {
            self.failures.push(format!("{what}: {problem} ({promised:?})"));
        }
        std::fs::remove_dir_all(to).unwrap();
    }
}

/// Walks a recording and cuts the power after every call in it.
fn cut_everywhere(calls: &[Call], start: Disk, promised: Promised, sectors: u64, cuts: &mut Cuts<'_>) {
    let mut disk = start;
    let mut promised = promised;
    for (index, call) in calls.iter().enumerate() {
        if let Call::Write(path, _, line) = call
            && path.ends_with("/marks")
        {
            promised.note(line);
            continue;
        }
        let is_mark = matches!(call, Call::Create(path) if path.ends_with("/marks"));
        if is_mark {
            continue;
        }
        disk.take(call);
        for survivors in survivors(&disk, sectors) {
            let what = format!("call {index} {}, {survivors:?}", name_of(call));
            cuts.try_image(&disk.image(survivors), promised, &what);
        }
        if cuts.failures.len() > 20 {
            return;
        }
    }
}

fn name_of(call: &Call) -> String {
    let short = |path: &str| path.rsplit('/').next().unwrap_or_default().to_string();
    match call {
        Call::Create(path) => format!("create {}", short(path)),
        Call::Write(path, at, bytes) => format!("write {} at {at}, {} bytes", short(path), bytes.len()),
        Call::Truncate(path, to) => format!("truncate {} to {to}", short(path)),
        Call::Sync(path) => format!("sync {}", short(path)),
        Call::Rename(from, to) => format!("rename {} {}", short(from), short(to)),
        Call::Remove(path) => format!("remove {}", short(path)),
        Call::MakeDirectory(path) => format!("make {}", short(path)),
    }
}

#[test]
fn what_was_promised_survives_a_cut_after_every_system_call() {
    let dir = scratch();
    let initial = prepare(dir.path());
    let calls = record(&recorder(), dir.path(), "run");
    let count = |is_it: fn(&Call) -> bool| calls.iter().filter(|call| is_it(call)).count();
    let (writes, syncs) =
        (count(|call| matches!(call, Call::Write(..))), count(|call| matches!(call, Call::Sync(_))));
    let packings = count(|call| matches!(call, Call::Create(path) if path.ends_with("/whole"))) - 1;
    let mut cuts = Cuts::new(dir.path());
    cut_everywhere(&calls, Disk::holding(&initial), Promised::default(), 2, &mut cuts);
    println!(
        "{} calls ({writes} writes, {syncs} syncs, {packings} packings): {} cuts, {} different disks opened",
        calls.len(),
        cuts.points,
        cuts.opened
    );
    assert!(cuts.failures.is_empty(), "{}", cuts.failures.join("\n"));
    assert!(writes + syncs > 600 && cuts.points >= 5_000 && packings >= 3, "too little was tried");
}

/// A call happens to the disk; what the program says of itself is no part of it.
fn take(call: &Call, disk: &mut Disk, promised: &mut Promised) {
    match call {
        Call::Write(path, _, line) if path.ends_with("/marks") => promised.note(line),
        Call::Create(path) if path.ends_with("/marks") => {}
        call => disk.take(call),
    }
}

#[test]
fn a_second_cut_while_the_first_is_recovered_from_is_survived() {
    let recorder = recorder();
    let dir = scratch();
    let initial = prepare(dir.path());
    let calls = record(&recorder, dir.path(), "run");
    let mut disk = Disk::holding(&initial);
    let mut promised = Promised::default();
    let (mut recoveries, mut points, mut opened) = (0, 0, 0);
    for (index, call) in calls.iter().enumerate() {
        take(call, &mut disk, &mut promised);
        // Chosen by place, so that every kind of call is among them over a whole recording.
        if !index.is_multiple_of(23) {
            continue;
        }
        let kinds = [Writes::None, Writes::All, Writes::TornFront, Writes::Sectors(index as u64)];
        let writes = kinds[index / 23 % kinds.len()];
        let second = scratch();
        lay_out(&disk.image(Survivors { names: true, writes }), dir.path(), second.path());
        let absolute = |path: &Path| second.path().join(path).to_str().unwrap().to_string();
        let found: Image =
            files_below(second.path()).into_iter().map(|(path, bytes)| (absolute(&path), bytes)).collect();
        let recovery = record(&recorder, second.path(), "recover");
        let mut cuts = Cuts::new(second.path());
        cut_everywhere(&recovery, Disk::holding(&found), promised, 1, &mut cuts);
        assert!(cuts.failures.is_empty(), "after call {index}, {writes:?}:\n{}", cuts.failures.join("\n"));
        recoveries += 1;
        points += cuts.points;
        opened += cuts.opened;
    }
    println!("{recoveries} recoveries: {points} second cuts, {opened} different disks opened");
    assert!(recoveries >= 50 && points >= 4_000, "too little was tried");
}

/// The same calls as if they had been made below another directory.
fn moved(calls: Vec<Call>, from: &Path, to: &Path) -> Vec<Call> {
    let place = |path: String| path.replacen(from.to_str().unwrap(), to.to_str().unwrap(), 1);
    let moved = |call| match call {
        Call::Create(path) => Call::Create(place(path)),
        Call::Write(path, at, bytes) => Call::Write(place(path), at, bytes),
        Call::Truncate(path, length) => Call::Truncate(place(path), length),
        Call::Sync(path) => Call::Sync(place(path)),
        Call::Rename(from, to) => Call::Rename(place(from), place(to)),
        Call::Remove(path) => Call::Remove(place(path)),
        Call::MakeDirectory(path) => Call::MakeDirectory(place(path)),
    };
    calls.into_iter().map(moved).collect()
}

/// A process that is killed leaves everything it wrote to be seen by the next one, also what is not on the disk yet.
#[test]
fn a_cut_after_a_kill_finds_nothing_built_on_what_was_not_durable() {
    let recorder = recorder();
    let dir = scratch();
    let initial = prepare(dir.path());
    let calls = record(&recorder, dir.path(), "run");
    let mut disk = Disk::holding(&initial);
    let mut promised = Promised::default();
    let (mut kills, mut points, mut jobs) = (0, 0, 0);
    for (index, call) in calls.iter().enumerate() {
        take(call, &mut disk, &mut promised);
        let is_named = matches!(call, Call::Create(path) if path.ends_with("/whole"));
        // A job that was just written down, and not synced, is carried out by the next process.
        let is_written_down = matches!(call, Call::Write(path, ..) if path.ends_with("/redo"));
        jobs += usize::from(is_written_down);
        let is_due = is_named || is_written_down && jobs.is_multiple_of(3) || index.is_multiple_of(41);
        if !is_due {
            continue;
        }
        let second = scratch();
        lay_out(&disk.image(Survivors { names: true, writes: Writes::All }), dir.path(), second.path());
        let recovery = moved(record(&recorder, second.path(), "recover"), second.path(), dir.path());
        let mut cuts = Cuts::new(dir.path());
        cut_everywhere(&recovery, disk.clone(), promised, 1, &mut cuts);
        assert!(cuts.failures.is_empty(), "after call {index}:\n{}", cuts.failures.join("\n"));
        kills += 1;
        points += cuts.points;
    }
    println!("{kills} kills: {points} cuts after them");
    assert!(kills >= 30 && points >= 2_000, "too little was tried");
}

#[test]
fn a_sync_that_is_left_out_anywhere_is_noticed() {
    let dir = scratch();
    let initial = prepare(dir.path());
    let calls = record(&recorder(), dir.path(), "run");
    let lies: [(&str, Lie); 8] = [
        ("the log", |path| path.ends_with(".seg")),
        ("the log's directory", |path| path.ends_with("/log")),
        ("the data directory", |path| path.ends_with("/data")),
        ("the redo file", |path| path.ends_with("/redo")),
        ("sled's file", |path| path.ends_with("/db")),
        ("sled's file in a packed tree", |path| path.ends_with("/db") && !path.contains("/tree-1/")),
        ("the directory of a packed tree", |path| {
            path.rsplit_once('/').is_some_and(|(_, name)| name.starts_with("tree-") && name != "tree-1")
        }),
        ("the witness", |path| path.ends_with("/witness")),
    ];
    for (what, lie) in lies {
        let mut cuts = Cuts::new(dir.path());
        let mut disk = Disk::holding(&initial);
        disk.lies_about = Some(lie);
        cut_everywhere(&calls, disk, Promised::default(), 1, &mut cuts);
        let first = cuts.failures.first().cloned().unwrap_or_default();
        println!("without syncs of {what}: noticed after {} cuts: {first}", cuts.points);
        assert!(!cuts.failures.is_empty(), "{what} is never synced, and nothing is missed");
    }
}
