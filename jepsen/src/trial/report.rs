//! The report of a trial: one HTML page that needs nothing else. What was broken is shaded behind what clients saw.

use super::timeline::{Gap, Slice, Timeline};
use super::{Options, Outcome, Span};
use crate::nemesis::Nemesis;
use crate::world::Kind;
use std::fmt::Write;
use tetrachord::config::Mode;
use tetrachord_checker::report::{STYLE as COUNTEREXAMPLE_STYLE, escape, section};

const LEFT: f64 = 70.0;
const WIDTH: f64 = 1_100.0;
const FULL: f64 = LEFT + WIDTH + 20.0;

/// Gaps that are listed at most.
const GAPS_SHOWN: usize = 20;

/// Reasons that are listed at most.
const REASONS_SHOWN: usize = 12;

const STYLE: &str = "\
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 1240px; padding: 0 1rem; }
svg { width: 100%; height: auto; background: Canvas; margin-bottom: .5rem; }
table { border-collapse: collapse; margin: .5rem 0 1.5rem; } td, th { padding: .15rem .8rem; text-align: left; }
td.number { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
.verdict { padding: .6rem 1rem; border-radius: 6px; color: #fff; font-weight: 600; white-space: pre-wrap; }
.good { background: #2e7d4f; } .bad { background: #b3261e; } .void { background: #946200; }
.axis { stroke: #8886; } .tick { font: 12px system-ui, sans-serif; fill: CanvasText; }
.of-network { fill: #d98e04; fill-opacity: .16; } .of-node { fill: #b3261e; fill-opacity: .14; }
.answered { fill: none; stroke: #2f6db0; stroke-width: 1.6; } .unknown-line { fill: none; stroke: #b3261e; stroke-width: 1.6; }
.refused-line { fill: none; stroke: #946200; stroke-width: 1.6; }
.p50 { fill: #2f6db0; } .p99 { fill: #8a5ab5; } .max { fill: #b0b0b0; }
.down { fill: #b3261e; fill-opacity: .75; } .key { font-weight: 600; }";

/// The page.
pub(super) fn html(options: &Options, outcome: &Outcome) -> String {
    let timeline = &outcome.timeline;
    let setup = &options.setup;
    let names: Vec<&str> = setup.nemeses.iter().map(|nemesis| nemesis.name()).collect();
    let under = match names.len() {
        0 => "no fault".to_string(),
        1..=4 => names.join(", "),
        count => format!("{count} nemeses"),
    };
    let title = format!("Tetrachord under {under}");
    let class = match (outcome.broken.is_empty(), outcome.void.is_empty()) {
        (false, _) => "bad",
        (true, false) => "void",
        (true, true) => "good",
    };
    let problems: Vec<String> = outcome.broken.iter().chain(&outcome.void).map(|what| escape(what)).collect();
    let problems = if problems.is_empty() { "Everything held.".to_string() } else { problems.join("\n") };
    let counterexample = match &outcome.counterexample {
        Some(counterexample) => format!("<h2>What cannot be explained</h2>\n{}", section(counterexample)),
        None => String::new(),
    };
    format!(
        r#"<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<style>
{STYLE}
{COUNTEREXAMPLE_STYLE}
</style></head><body>
<h1>{title}</h1>
<p class="verdict {class}">{problems}</p>
{facts}
{counterexample}
<h2>Operations per second</h2>
<p><span class="key">Blue</span>: answered. <span class="key">Ochre</span>: surely not done. <span class="key">Red</span>: nobody knows.
Shaded ochre: the network is broken. Shaded red: nodes, disks or clocks are.</p>
{throughput}
<h2>Latency of answers</h2>
<p><span class="key">Blue</span>: median. <span class="key">Violet</span>: 99th percentile. <span class="key">Grey</span>: slowest. The scale is logarithmic.</p>
{latency}
<h2>Nodes</h2>
{lanes}
<h2>What was broken</h2>
{effects}
{strikes}
<h2>Times without any answer</h2>
{gaps}
<h2>Why operations were not done, or not known to be</h2>
{reasons}
</body></html>
"#,
        facts = facts(options, outcome),
        throughput = throughput(timeline, outcome),
        latency = latency(timeline, outcome),
        lanes = lanes(options, outcome),
        effects = effects(outcome),
        strikes = strikes(&outcome.spans),
        gaps = gaps(&timeline.gaps),
        reasons = reasons(outcome),
    )
}

fn seconds(nanos: u64) -> f64 {
    nanos as f64 / 1e9
}

fn facts(options: &Options, outcome: &Outcome) -> String {
    let setup = &options.setup;
    let mode = match setup.mode {
        Mode::Crash => "Multi-Paxos (crash faults)",
        Mode::Byzantine => "PBFT (Byzantine faults)",
    };
    let cluster = match &setup.existing {
        None => format!("{} nodes, {} group(s), {mode}", setup.nodes, setup.groups),
        Some(file) => format!("{} nodes of {}, {mode}", setup.nodes, file.display()),
    };
    let rows = [
        ("cluster", cluster),
        ("workload", format!("{}: {}", options.workload.name(), options.workload.about())),
        ("clients", format!("{}, together at most {} operations a second", options.clients, options.rate)),
        (
            "operations",
            format!(
                "{} judged ({} unknown), {} surely not done, on {} keys",
                outcome.judgement.operations,
                outcome.history.unknown(),
                outcome.refused.len(),
                outcome.judgement.keys
            ),
        ),
        ("longest time without an answer", format!("{:.2} s", outcome.longest_gap().as_secs_f64())),
        ("seed", format!("{} (decides the load and the faults, not the kernel)", setup.seed)),
    ];
    let rows = rows.map(|(name, value)| format!("<tr><th>{name}</th><td>{}</td></tr>", escape(&value)));
    format!("<table>{}</table>", rows.concat())
}

/// Places moments and shades what was broken.
struct Chart {
    end: u64,
    height: f64,
    svg: String,
}

impl Chart {
    fn new(outcome: &Outcome, height: f64, label: &str) -> Self {
        let mut svg =
            format!(r#"<svg viewBox="0 0 {FULL} {}" role="img" aria-label="{label}">"#, height + 30.0);
        let end = outcome.end.max(1);
        let mut chart = Self { end, height, svg: String::new() };
        for span in &outcome.spans {
            let (x, width) = chart.place(span);
            let class = if span.nemesis.is_of_network() { "of-network" } else { "of-node" };
            let words = escape(&span.words);
            let _ = write!(
                svg,
                r#"<g><title>{words}</title><rect class="{class}" x="{x:.1}" y="0" width="{width:.1}" height="{height}"/></g>"#
            );
        }
        let step =
            [1, 2, 5, 10, 20, 60, 120, 300, 600].into_iter().find(|step| end / (step * 1_000_000_000) < 24);
        let step = step.unwrap_or(1_800);
        for second in (0..=end / 1_000_000_000).step_by(step as usize) {
            let x = chart.x(second * 1_000_000_000);
            let _ = write!(
                svg,
                r#"<line class="axis" x1="{x:.1}" x2="{x:.1}" y1="{height}" y2="{}"/><text class="tick" x="{x:.1}" y="{}" text-anchor="middle">{second} s</text>"#,
                height + 5.0,
                height + 20.0
            );
        }
        chart.svg = svg;
        chart
    }

    fn x(&self, moment: u64) -> f64 {
        LEFT + WIDTH * moment.min(self.end) as f64 / self.end as f64
    }

    fn place(&self, span: &Span) -> (f64, f64) {
        let (from, to) = (self.x(span.from), self.x(span.to));
        (from, (to - from).max(1.5))
    }

    fn line_at(&mut self, y: f64, label: &str) {
        let _ = write!(
            self.svg,
            r#"<line class="axis" x1="{LEFT}" x2="{}" y1="{y:.1}" y2="{y:.1}"/><text class="tick" x="{}" y="{:.1}" text-anchor="end">{label}</text>"#,
            LEFT + WIDTH,
            LEFT - 6.0,
            y + 4.0
        );
    }

    fn finish(mut self) -> String {
        self.line_at(self.height, "");
        self.svg + "</svg>"
    }
}

/// What is counted of a slice.
type CountOf = fn(&Slice) -> u64;

fn throughput(timeline: &Timeline, outcome: &Outcome) -> String {
    let mut chart = Chart::new(outcome, 220.0, "operations per second over time");
    let per_second = 1e9 / timeline.slice as f64;
    let highest = |of: CountOf| timeline.slices.iter().map(of).max().unwrap_or(0);
    let top =
        highest(|slice| slice.answered.max(slice.unknown).max(slice.refused)).max(1) as f64 * per_second;
    for part in [0.25, 0.5, 0.75, 1.0] {
        let y = chart.height * (1.0 - part * 0.95);
        chart.line_at(y, &format!("{:.0}", top * part));
    }
    let lines: [(&str, CountOf); 3] = [
        ("answered", |slice| slice.answered),
        ("refused-line", |slice| slice.refused),
        ("unknown-line", |slice| slice.unknown),
    ];
    for (class, of) in lines {
        if highest(of) == 0 {
            continue;
        }
        let mut points = String::new();
        for (index, slice) in (0..).zip(&timeline.slices) {
            let x = chart.x(index * timeline.slice + timeline.slice / 2);
            let y = chart.height * (1.0 - of(slice) as f64 * per_second / top * 0.95);
            let _ = write!(points, "{x:.1},{y:.1} ");
        }
        let _ = write!(chart.svg, r#"<polyline class="{class}" points="{points}"/>"#);
    }
    chart.finish()
}

fn latency(timeline: &Timeline, outcome: &Outcome) -> String {
    const DECADES: [(f64, &str); 6] =
        [(1e2, "0.1 ms"), (1e3, "1 ms"), (1e4, "10 ms"), (1e5, "0.1 s"), (1e6, "1 s"), (1e7, "10 s")];
    let mut chart = Chart::new(outcome, 220.0, "latency over time");
    let height = chart.height;
    let y_of = |micros: f64| height * (1.0 - (micros.clamp(1e2, 1e7).log10() - 2.0) / 5.0 * 0.96);
    for (micros, label) in DECADES {
        chart.line_at(y_of(micros), label);
    }
    for (which, class) in [(2, "max"), (1, "p99"), (0, "p50")] {
        for (index, slice) in (0..).zip(&timeline.slices) {
            if let Some(latency) = slice.latency {
                let x = chart.x(index * timeline.slice + timeline.slice / 2);
                let _ = write!(
                    chart.svg,
                    r#"<circle class="{class}" cx="{x:.1}" cy="{:.1}" r="2.2"/>"#,
                    y_of(latency[which])
                );
            }
        }
    }
    chart.finish()
}

/// A lane for each node, with what struck it.
fn lanes(options: &Options, outcome: &Outcome) -> String {
    const LANE: f64 = 22.0;
    let nodes = options.setup.nodes;
    let mut chart = Chart::new(outcome, LANE * nodes as f64 + 6.0, "what struck each node");
    for node in 0..nodes {
        let y = LANE * (node as f64 + 0.5);
        chart.line_at(y, &format!("n{}", node + 1));
        for span in outcome.spans.iter().filter(|span| span.nodes.contains(&node)) {
            let (x, width) = chart.place(span);
            let words = escape(&span.words);
            let _ = write!(
                chart.svg,
                r#"<g><title>{words}</title><rect class="down" x="{x:.1}" y="{:.1}" width="{width:.1}" height="14" rx="3"/></g>"#,
                y - 7.0
            );
        }
    }
    chart.finish()
}

fn effects(outcome: &Outcome) -> String {
    let rows: String = outcome
        .effects
        .iter()
        .map(|(nemesis, counted)| {
            format!(
                r#"<tr><td>{}</td><td>{}</td><td class="number">{}</td><td class="number">{}</td><td>{}</td></tr>"#,
                nemesis.name(),
                escape(nemesis.about()),
                counted.strikes,
                counted.effect,
                nemesis.effect(Kind::Real).unwrap_or_default()
            )
        })
        .collect();
    format!(
        "<table><thead><tr><th>nemesis</th><th></th><th>strikes</th><th colspan=2>effect</th></tr></thead><tbody>{rows}</tbody></table>"
    )
}

fn strikes(spans: &[Span]) -> String {
    let mut sorted: Vec<&Span> = spans.iter().filter(|span| span.nemesis != Nemesis::Lies).collect();
    sorted.sort_by_key(|span| span.from);
    let rows: String = sorted
        .into_iter()
        .map(|span| {
            format!(
                r#"<tr><td class="number">{:.2} s</td><td class="number">{:.2} s</td><td>{}</td></tr>"#,
                seconds(span.from),
                seconds(span.to),
                escape(&span.words)
            )
        })
        .collect();
    format!(
        "<details><summary>every strike</summary><table><thead><tr><th>from</th><th>to</th><th></th></tr></thead><tbody>{rows}</tbody></table></details>"
    )
}

fn gaps(gaps: &[Gap]) -> String {
    if gaps.is_empty() {
        return "<p>None of 0.2 s or more.</p>".to_string();
    }
    let rows: String = gaps
        .iter()
        .take(GAPS_SHOWN)
        .map(|gap| {
            let meanwhile = gap.meanwhile.join("; ");
            format!(
                r#"<tr><td class="number">{:.2} s</td><td class="number">{:.2} s</td><td>{}</td></tr>"#,
                seconds(gap.to - gap.from),
                seconds(gap.from),
                escape(if meanwhile.is_empty() { "nothing was broken" } else { &meanwhile })
            )
        })
        .collect();
    format!(
        "<table><thead><tr><th>length</th><th>from</th><th>meanwhile</th></tr></thead><tbody>{rows}</tbody></table>"
    )
}

fn reasons(outcome: &Outcome) -> String {
    let mut reasons: Vec<(&String, &u64)> = outcome.reasons.iter().collect();
    reasons.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
    let rows: String = reasons
        .into_iter()
        .take(REASONS_SHOWN)
        .map(|(reason, count)| {
            format!(r#"<tr><td class="number">{count}</td><td>{}</td></tr>"#, escape(reason))
        })
        .collect();
    if rows.is_empty() { "<p>All were.</p>".to_string() } else { format!("<table>{rows}</table>") }
}
