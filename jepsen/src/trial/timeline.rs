//! What a trial looked like over time: answers and latencies by slices, and the gaps in which nobody was answered.

use super::Span;
use super::client::Refused;
use tetrachord_checker::Operation;

/// Slices of a picture at most.
const SLICES_MAX: u64 = 300;

/// The shortest slice, in nanoseconds.
const SLICE_MIN: u64 = 100_000_000;

/// A pause between two answers is a gap if it is at least so long, in nanoseconds.
const GAP_MIN: u64 = 200_000_000;

/// What happened in one slice.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Slice {
    pub(super) answered: u64,
    pub(super) unknown: u64,
    pub(super) refused: u64,
    /// Median, 99th percentile and maximum of the latencies of what was answered, in microseconds.
    pub(super) latency: Option<[f64; 3]>,
}

/// A time without answers, in nanoseconds since the start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Gap {
    pub(super) from: u64,
    pub(super) to: u64,
    /// What was broken meanwhile.
    pub(super) meanwhile: Vec<String>,
}

/// All of it.
#[derive(Clone, Debug)]
pub(super) struct Timeline {
    /// The length of a slice, in nanoseconds.
    pub(super) slice: u64,
    pub(super) slices: Vec<Slice>,
    /// The longest first.
    pub(super) gaps: Vec<Gap>,
}

impl Timeline {
    pub(super) fn new(operations: &[Operation], refused: &[Refused], spans: &[Span], end: u64) -> Self {
        let slice = SLICE_MIN.max(end / SLICES_MAX + 1);
        let count = usize::try_from(end / slice + 1).expect("few slices");
        let mut slices = vec![Slice::default(); count];
        let mut latencies = vec![Vec::new(); count];
        let place = |moment: u64| usize::try_from(moment.min(end) / slice).expect("few slices");
        for operation in operations.iter().filter(|operation| operation.call <= end) {
            match operation.end {
                Some(end) => {
                    slices[place(end)].answered += 1;
                    latencies[place(end)].push((end - operation.call) as f64 / 1e3);
                }
                None => slices[place(operation.call)].unknown += 1,
            }
        }
        refused.iter().for_each(|refused| slices[place(refused.at)].refused += 1);
        for (slice, latencies) in slices.iter_mut().zip(&mut latencies) {
            latencies.sort_unstable_by(f64::total_cmp);
            slice.latency = quantiles(latencies);
        }
        Self { slice, slices, gaps: gaps(operations, spans, end) }
    }
}

fn quantiles(sorted: &[f64]) -> Option<[f64; 3]> {
    let last = sorted.len().checked_sub(1)?;
    Some([sorted[last / 2], sorted[last * 99 / 100], sorted[last]])
}

fn gaps(operations: &[Operation], spans: &[Span], end: u64) -> Vec<Gap> {
    // Behind the end only the last values are read, by one client.
    let ends = operations.iter().filter_map(|operation| operation.end);
    let mut answers: Vec<u64> = ends.filter(|moment| *moment <= end).collect();
    answers.sort_unstable();
    let moments: Vec<u64> = [0].into_iter().chain(answers).chain([end]).collect();
    let long = moments.windows(2).filter(|pair| pair[1].saturating_sub(pair[0]) >= GAP_MIN);
    let mut gaps: Vec<Gap> = long
        .map(|pair| {
            let overlaps = spans.iter().filter(|span| span.from < pair[1] && span.to > pair[0]);
            let meanwhile = overlaps.map(|span| span.words.clone()).collect();
            Gap { from: pair[0], to: pair[1], meanwhile }
        })
        .collect();
    gaps.sort_by_key(|gap| std::cmp::Reverse(gap.to - gap.from));
    gaps
}

#[cfg(test)]
mod tests {
    use super::*;
    use tetrachord_checker::Action;

    fn answered(call: u64, end: u64) -> Operation {
        let key = "k".to_string();
        Operation { process: 1, key, action: Action::Get(None), call, end: Some(end), line: 0 }
    }

    #[test]
    fn gaps_are_found_with_what_was_broken_meanwhile() {
        const SECOND: u64 = 1_000_000_000;
        let operations = [answered(0, 1), answered(1, SECOND / 10), answered(SECOND, 2 * SECOND)];
        let span = Span {
            nemesis: crate::nemesis::Nemesis::Kill,
            nodes: vec![0],
            words: "kill: n1".to_string(),
            from: SECOND,
            to: 3 * SECOND,
        };
        let timeline = Timeline::new(&operations, &[Refused { at: 5 }], &[span], 2 * SECOND + 1);
        assert_eq!(timeline.gaps.len(), 1);
        assert_eq!((timeline.gaps[0].from, timeline.gaps[0].to), (SECOND / 10, 2 * SECOND));
        assert_eq!(timeline.gaps[0].meanwhile, ["kill: n1"]);
        let total: u64 = timeline.slices.iter().map(|slice| slice.answered).sum();
        assert_eq!((total, timeline.slices[0].refused), (3, 1));
    }

    #[test]
    fn quantiles_of_nothing_are_nothing() {
        assert_eq!(quantiles(&[]), None);
        assert_eq!(quantiles(&[2.0]), Some([2.0, 2.0, 2.0]));
    }
}
