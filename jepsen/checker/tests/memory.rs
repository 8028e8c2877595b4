//! What the search takes of memory, as it is told to whoever raises its limit.
#![allow(clippy::unwrap_used, reason = "test code")]

use peak_alloc::PeakAlloc;
use tetrachord_checker::linearizability::BYTES_PER_STEP;
use tetrachord_checker::{Action, History, Limits, Operation, Verdict, check};

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

/// Writes of which nobody knows in which order they happened, and a read that none of these orders explains.
fn hopeless() -> History {
    let operation = |process: u64, action, call, end| Operation {
        process,
        key: "x".to_string(),
        action,
        call,
        end,
        line: 0,
    };
    let mut operations: Vec<Operation> =
        (0..30).map(|process| operation(process, Action::Put(process.to_string().into()), 1, None)).collect();
    operations.push(operation(99, Action::Get(Some("nobody's".into())), 2, Some(3)));
    History::new(operations, 0).unwrap()
}

#[test]
fn a_step_takes_as_much_memory_as_is_said() {
    let history = hopeless();
    let before = MEMORY.current_usage();
    let mut most = 0;
    // A table that is full to its brim, one that has just grown, and some between.
    for steps in [57_343, 57_345, 60_000, 80_000, 114_688, 114_690, 917_505] {
        MEMORY.reset_peak_usage();
        let judgement = check(&history, Limits { configurations: steps });
        assert!(matches!(judgement.verdict, Verdict::Undecided { .. }));
        let bytes = (MEMORY.peak_usage() - before) / steps;
        println!("{steps} steps: {bytes} bytes each");
        most = most.max(bytes);
    }
    assert!(most <= BYTES_PER_STEP, "{most} bytes a step");
    assert!(most > BYTES_PER_STEP * 4 / 5, "{most} bytes a step are much less than is said");
}
