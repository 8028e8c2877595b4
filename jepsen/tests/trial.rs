//! Trials in the real world: every nemesis once, a build that breaks its promise, and what cannot be asked for.
#![allow(clippy::unwrap_used, reason = "test code")]

use std::path::Path;
use std::process::{Command, Output};
use tetrachord_jepsen::nemesis::Nemesis;
use tetrachord_jepsen::world::Kind;
use tetrachord_jepsen::world::real::Machine;

fn jepsen(arguments: &[&str], output: &Path) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tetrachord-jepsen"));
    command.args(arguments).arg("--output").arg(output).output().unwrap()
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Those that this machine does not permit are named; all others have an effect that was measured, or the trial would be void.
#[test]
fn every_nemesis_runs_once_and_everything_holds() {
    let dir = tempfile::tempdir().unwrap();
    let machine = Machine::look(dir.path());
    // About 200,000 operations where two processors have nothing else to do.
    let load = ["--clients", "16", "--keys", "20", "--rate", "3000"];
    let output = jepsen(&[&["test", "--all", "--seconds", "5"], &load[..]].concat(), dir.path());
    let text = text(&output);
    println!("{text}");
    assert_eq!(output.status.code(), Some(0), "{text}");
    for nemesis in Nemesis::of(Kind::Real) {
        let begins = match machine.lacks(nemesis) {
            Some(_) => format!("skipped      {}", nemesis.name()),
            None => format!("{:<16} ", nemesis.name()),
        };
        assert!(text.lines().any(|line| line.starts_with(&begins)), "{}: {text}", nemesis.name());
    }
    let reports = std::fs::read_dir(dir.path()).unwrap().filter_map(Result::ok);
    let pages: Vec<_> = reports
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|end| end == "html"))
        .collect();
    let possible = Nemesis::of(Kind::Real).filter(|nemesis| machine.lacks(*nemesis).is_none()).count();
    assert_eq!(pages.len(), possible, "one report each");
    for page in pages {
        let html = std::fs::read_to_string(&page).unwrap();
        assert!(html.contains("Everything held.") && html.contains("<polyline"), "{}", page.display());
        let history = std::fs::read_to_string(page.with_extension("jsonl")).unwrap();
        assert!(tetrachord_checker::History::parse(&history).unwrap().operations().len() > 100);
    }
}

/// Nodes whose syncs do nothing keep their promises until the power goes.
#[test]
fn a_build_that_does_not_sync_is_found_by_a_power_cut_and_by_no_kill() {
    let dir = tempfile::tempdir().unwrap();
    if let Err(reason) = Machine::look(dir.path()).disks {
        println!("skipped: nodes have no disks of their own here: {reason}");
        return;
    }
    let program = unsynced_build(dir.path());
    let test = |nemesis: &str| {
        let program = program.to_str().unwrap();
        jepsen(
            &["test", "--nemesis", nemesis, "--seconds", "6", "--seed", "1", "--program", program],
            dir.path(),
        )
    };
    let killed = test("kill");
    assert_eq!(killed.status.code(), Some(0), "{}", text(&killed));
    let cut = test("power-cut");
    assert_eq!(cut.status.code(), Some(7), "{}", text(&cut));
    assert!(text(&cut).contains("verdict      BROKEN"), "{}", text(&cut));
}

/// The program as it is, on a C library whose syncs do nothing.
fn unsynced_build(dir: &Path) -> std::path::PathBuf {
    let library = dir.join("unsynced.so");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/crash/recorder.c");
    let compiled =
        Command::new("cc").args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(source).status();
    assert!(compiled.is_ok_and(|status| status.success()), "a C compiler makes the library");
    let program = dir.join("unsynced");
    let script = format!(
        "#!/bin/sh\nLD_PRELOAD={} RECORD_DROP_SYNC=1 exec {} \"$@\"\n",
        library.display(),
        env!("CARGO_BIN_EXE_tetrachord-jepsen")
    );
    std::fs::write(&program, script).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&program, mode).unwrap();
    program
}

#[test]
fn what_cannot_be_asked_for_is_refused_with_the_way_out() {
    let dir = tempfile::tempdir().unwrap();
    for (arguments, words) in [
        (&["--nemesis", "earthquake"][..], "list` names them all"),
        (&["--nemesis", "clock-rate"], "tetrachord-jepsen sim"),
        (&["--nemesis", "lies"], "--mode byzantine"),
        (&["--nemesis", "rot,lies", "--mode", "byzantine"], "more than f"),
        (&["--workload", "poetry"], "register, counter, set"),
        (&["--seconds", "0"], "must be positive"),
        (&["--program", "/nowhere"], "there is no /nowhere"),
        (&["--mode", "byzantine", "--nodes", "5"], "3f + 1"),
    ] {
        let all: Vec<&str> = [&["test"], arguments].concat();
        let output = jepsen(&all, dir.path());
        let text = text(&output);
        assert!(!output.status.success() && text.contains(words), "{arguments:?}: {text}");
    }
}
