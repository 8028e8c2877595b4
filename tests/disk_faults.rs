//! Disks that fail under a running node: errors of write, sync and read, and no room. The node ends, says why, retries
//! nothing, and nothing acknowledged is lost; or it refuses writes and goes on reading.
#![allow(clippy::unwrap_used, reason = "test code")]

mod common;

use common::{Cluster, program, wait_for};
use std::path::{Path, PathBuf};
use std::process::Command;

const EIO: i32 = 5;
const ENOSPC: i32 = 28;

/// The injector, compiled for this test.
fn injector(name: &str) -> PathBuf {
    let library = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("faults-{name}.so"));
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/crash/faults.c");
    let compiled =
        Command::new("cc").args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(source).status();
    assert!(compiled.is_ok_and(|status| status.success()), "a C compiler makes the injector");
    library
}

fn under(injector: &Path, fault: &Path) -> Command {
    let mut command = program();
    command.env("LD_PRELOAD", injector).env("FAULT_FILE", fault);
    command
}

fn put(cluster: &Cluster, written: &mut u32) {
    *written += 1;
    cluster.ok(&["put", &format!("k{written}"), &format!("v{written}")]);
}

#[test]
fn an_error_of_the_disk_ends_the_node_and_loses_nothing() {
    let injector = injector("errors");
    let mut cluster = Cluster::init(3, 1);
    let fault = cluster.path().join("fault");
    for index in 0..3 {
        // Only the third node's disk fails; the others are a quorum.
        let command = if index == 2 { under(&injector, &fault) } else { program() };
        cluster.start_node_under(index, command);
    }
    let mut written = 0;
    let cases = [
        ("write", EIO, "/data/log/", "append to the write-ahead log"),
        ("sync", EIO, "/data/log/", "sync the write-ahead log"),
        ("write", EIO, "/data/redo", "write the redo file"),
        ("sync", EIO, "/data/redo", "write the redo file"),
        ("write", EIO, "/data/tree-1/db", "storage failed"),
        ("sync", EIO, "/data/tree-1/db", "storage failed"),
        ("write", EIO, "/data/witness", "write the witness file"),
        ("write", ENOSPC, "/data/log/", "the disk is full"),
        ("write", ENOSPC, "/data/redo", "the disk is full"),
        ("write", ENOSPC, "/data/tree-1/db", "the disk is full"),
    ];
    for (call, code, part, said) in cases {
        put(&cluster, &mut written);
        wait_for("the third node", || cluster.status()["nodes"][2]["up"].as_bool().filter(|up| *up));
        let before = cluster.log(2).len();
        std::fs::write(&fault, format!("{call} {code} {part}\n")).unwrap();
        wait_for("the end of the node", || {
            put(&cluster, &mut written);
            cluster.exit_code(2)
        });
        let log = cluster.log(2)[before..].to_string();
        assert!(log.contains(said), "{call} {code} {part}: {log}");
        assert_eq!(cluster.exit_code(2), Some(1), "{call} {code} {part}");
        let count = std::fs::read(fault.with_extension("count")).unwrap().len();
        // One call fails; sled's flush may have begun a few at once. None is tried again and again.
        assert!((1..=8).contains(&count), "{call} {code} {part}: failed {count} times");
        println!(
            "{call} {code} {part}: failed {count} times, then: {}",
            log.lines().last().unwrap_or_default()
        );
        std::fs::remove_file(&fault).unwrap();
        std::fs::remove_file(fault.with_extension("count")).unwrap();
        cluster.kill_node(2);
        cluster.start_node_under(2, under(&injector, &fault));
    }
    // Everybody needs the third node now: with the first away, it is in every quorum.
    wait_for("the third node", || cluster.status()["nodes"][2]["up"].as_bool().filter(|up| *up));
    cluster.kill_node(0);
    for number in 1..=written {
        assert_eq!(cluster.ok(&["get", &format!("k{number}")]), format!("v{number}"));
    }
    std::fs::remove_file(injector).unwrap();
}

#[test]
fn an_error_of_reading_is_no_answer() {
    let injector = injector("reads");
    let mut cluster = Cluster::start(3, 1);
    for number in 0..20 {
        cluster.ok(&["put", &format!("k{number}"), "v"]);
    }
    let fault = cluster.path().join("fault");
    for (part, said) in
        [("/data/log/", "read a segment"), ("/data/tree-1/db", "storage failed"), ("/data/redo", "redo file")]
    {
        cluster.kill_node(2);
        let before = cluster.log(2).len();
        std::fs::write(&fault, format!("read {EIO} {part}\n")).unwrap();
        cluster.start_node_under(2, under(&injector, &fault));
        wait_for("the end of the node", || cluster.exit_code(2));
        let log = cluster.log(2)[before..].to_string();
        assert!(log.contains(said) || log.contains("is damaged"), "{part}: {log}");
        assert_eq!(cluster.ok(&["get", "k7"]), "v");
        std::fs::remove_file(&fault).unwrap();
        cluster.kill_node(2);
        cluster.start_node(2);
        wait_for("the third node", || cluster.status()["nodes"][2]["up"].as_bool().filter(|up| *up));
    }
    std::fs::remove_file(injector).unwrap();
}

fn set_reserve(cluster: &Cluster, bytes: u64) {
    for index in 0..3 {
        let text = std::fs::read_to_string(cluster.node_file(index)).unwrap();
        let line = text.lines().find(|line| line.starts_with("reserve_bytes")).unwrap().to_string();
        std::fs::write(cluster.node_file(index), text.replace(&line, &format!("reserve_bytes = {bytes}")))
            .unwrap();
    }
}

fn is_refused_for_room(cluster: &Cluster) -> bool {
    let output = cluster.run(&["put", "more", "v"]);
    let said = String::from_utf8_lossy(&output.stderr).to_string();
    match output.status.code() {
        Some(5) if said.contains("almost full") => true,
        Some(0) => false,
        code => panic!("{code:?}: {said}"),
    }
}

#[test]
fn a_disk_that_is_almost_full_refuses_writes_and_serves_reads() {
    let mut cluster = Cluster::start(3, 1);
    cluster.ok(&["put", "before", "v"]);
    for index in 0..3 {
        cluster.kill_node(index);
    }
    // More than any disk has: almost full from the first moment on.
    set_reserve(&cluster, 1 << 50);
    for index in 0..3 {
        cluster.start_node(index);
    }
    wait_for("the refusal", || is_refused_for_room(&cluster).then_some(()));
    assert_eq!(cluster.ok(&["get", "before"]), "v");
    for index in 0..3 {
        cluster.kill_node(index);
    }
    set_reserve(&cluster, 0);
    for index in 0..3 {
        cluster.start_node(index);
    }
    cluster.ok(&["put", "after", "v"]);
    assert_eq!(cluster.ok(&["get", "before"]), "v");
}

/// A small file system of its own for each node; unmounted at the end.
struct SmallDisks(Vec<PathBuf>);

impl SmallDisks {
    fn mount(cluster: &Cluster, mebibytes: u32) -> Option<Self> {
        let mut disks = Self(Vec::new());
        for index in 0..3 {
            let data = cluster.node_file(index).with_file_name("data");
            let bootstrap = data.join("bootstrap");
            let text = std::fs::read_to_string(&bootstrap).unwrap();
            let size = format!("size={mebibytes}m");
            let mounted =
                Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(&data).output();
            if !mounted.is_ok_and(|output| output.status.success()) {
                println!("SKIPPED: a small file system needs root and tmpfs");
                return None;
            }
            std::fs::write(bootstrap, text).unwrap();
            disks.0.push(data);
        }
        Some(disks)
    }

    /// Leaves so many bytes free on each.
    fn fill(&self, cluster: &Cluster, leave: u64) {
        for (index, data) in self.0.iter().enumerate() {
            let free = cluster.status()["nodes"][index]["disk_free_bytes"].as_u64().unwrap();
            let file = std::fs::File::create(data.join("filler")).unwrap();
            let zeros = vec![0; usize::try_from(free.saturating_sub(leave)).unwrap()];
            std::io::Write::write_all(&mut &file, &zeros).unwrap();
        }
    }

    fn free(&self) {
        for data in &self.0 {
            std::fs::remove_file(data.join("filler")).unwrap();
        }
    }
}

impl Drop for SmallDisks {
    fn drop(&mut self) {
        for data in &self.0 {
            let _ = Command::new("umount").arg("-l").arg(data).status();
        }
    }
}

#[test]
fn a_full_disk_is_survived_and_the_node_comes_back_when_there_is_room() {
    let mut cluster = Cluster::init(3, 1);
    let Some(disks) = SmallDisks::mount(&cluster, 160) else { return };
    for index in 0..3 {
        let text = std::fs::read_to_string(cluster.node_file(index)).unwrap();
        let text = text.replace("reserve_bytes = 67108864", "reserve_bytes = 33554432");
        std::fs::write(cluster.node_file(index), text).unwrap();
        cluster.start_node(index);
    }
    cluster.ok(&["put", "before", "v"]);
    let up = |cluster: &Cluster| (0..3).all(|index| cluster.status()["nodes"][index]["up"] == true);
    wait_for("all nodes", || up(&cluster).then_some(()));
    disks.fill(&cluster, 16 << 20);
    wait_for("the refusal", || is_refused_for_room(&cluster).then_some(()));
    assert_eq!(cluster.ok(&["get", "before"]), "v");
    disks.free();
    // No restart is needed while there is still some room.
    wait_for("room", || (!is_refused_for_room(&cluster)).then_some(()));
    // Now without a reserve, until a node cannot write what it must: it ends, with its reason.
    for index in 0..3 {
        cluster.kill_node(index);
    }
    set_reserve(&cluster, 0);
    for index in 0..3 {
        cluster.start_node(index);
    }
    cluster.ok(&["put", "again", "v"]);
    wait_for("all nodes", || up(&cluster).then_some(()));
    disks.fill(&cluster, 0);
    let (mut acknowledged, value) = (0, "x".repeat(100_000));
    let ended = wait_for("a node that finds no room", || {
        let output = cluster.run(&["--deadline-ms", "1500", "put", &format!("fill-{acknowledged}"), &value]);
        acknowledged += u32::from(output.status.success());
        (0..3).find(|index| cluster.exit_code(*index).is_some())
    });
    assert!(cluster.log(ended).contains("the disk is full"), "{}", cluster.log(ended));
    disks.free();
    for index in 0..3 {
        cluster.kill_node(index);
        cluster.start_node(index);
    }
    println!("{acknowledged} large writes were acknowledged before n{} found no room", ended + 1);
    for number in 0..acknowledged {
        assert_eq!(cluster.ok(&["get", &format!("fill-{number}")]), value);
    }
    cluster.ok(&["put", "after", "v"]);
    for index in 0..3 {
        cluster.kill_node(index);
    }
}
