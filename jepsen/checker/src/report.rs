//! A counterexample as a picture: a lane per process, operations as bars in time, the impossible one marked.

use crate::counterexample::Counterexample;
use crate::history::Operation;
use crate::value::Value;
use crate::words::describe;
use std::collections::BTreeMap;
use std::fmt::Write;

const LANE_HEIGHT: f64 = 44.0;
const BAR_HEIGHT: f64 = 26.0;
const LEFT: f64 = 110.0;
const WIDTH: f64 = 1100.0;
const TOP: f64 = 34.0;

/// Operations that a picture shows at most; with more of them nothing could be seen.
const SHOWN_MAX: usize = 120;

/// Stands near the head of every page, so that one can be told from somebody else's file.
pub const MARK: &str = r#"<meta name="generator" content="tetrachord-checker">"#;

/// What [`section`] needs in the style sheet of its page.
pub const STYLE: &str = "\
.lane { stroke: #8884; } .label { font: 13px system-ui, sans-serif; fill: CanvasText; }
.bar { fill: #4c78a8; } .unknown { fill: #b0b0b0; } .culprit { fill: #c0392b; }
.text { font: 12px ui-monospace, monospace; fill: #fff; } .unknown-text { fill: #222; }
tr.culprit { color: #c0392b; font-weight: 600; } code { font-family: ui-monospace, monospace; }";

/// One self-contained HTML page.
#[must_use]
pub fn html(counterexample: &Counterexample, title: &str) -> String {
    let title = escape(title);
    format!(
        r#"<!doctype html>
<html lang="en"><head><meta charset="utf-8">{MARK}<title>{title}</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 1240px; padding: 0 1rem; }}
svg {{ width: 100%; height: auto; background: Canvas; }}
table {{ border-collapse: collapse; margin-top: 1.5rem; }} td, th {{ padding: .2rem .8rem; text-align: left; }}
{STYLE}
</style></head><body>
<h1>Not linearizable</h1>
{section}
</body></html>
"#,
        section = section(counterexample),
    )
}

/// The picture with its explanation and its table, to be put into a page.
#[must_use]
pub fn section(counterexample: &Counterexample) -> String {
    let shown = shown(counterexample);
    let rows: String = shown.iter().map(|operation| table_row(counterexample, operation)).collect();
    let all = counterexample.operations.len();
    let part = match shown.len() < all {
        true => format!(
            "<p><strong>Only the last {} of the {all} operations are shown.</strong> The others are in the history.</p>\n",
            shown.len()
        ),
        false => String::new(),
    };
    format!(
        r#"<p>{explanation}</p>
{part}{svg}
<p>Time runs to the right. A bar spans from the call to the answer. A grey one may have taken effect or not: it had no answer when the
red one was given, or was called before all others that are needed. The red one cannot be explained.</p>
<table><thead><tr><th>process</th><th>operation</th><th>called, ns</th><th>answered, ns</th><th>line</th></tr></thead>
<tbody>{rows}</tbody></table>"#,
        explanation = escape(&counterexample.explanation),
        svg = svg(counterexample, &shown),
    )
}

/// The last operations, as many as a picture can show, always with the culprit.
fn shown(counterexample: &Counterexample) -> Vec<&Operation> {
    let operations = &counterexample.operations;
    let first = operations.len().saturating_sub(SHOWN_MAX);
    match counterexample.culprit < first {
        true => [&operations[counterexample.culprit]].into_iter().chain(&operations[first + 1..]).collect(),
        false => operations[first..].iter().collect(),
    }
}

fn svg(counterexample: &Counterexample, operations: &[&Operation]) -> String {
    let culprit = &counterexample.operations[counterexample.culprit];
    let mut lanes: BTreeMap<u64, usize> = BTreeMap::new();
    for operation in operations {
        let next = lanes.len();
        lanes.entry(operation.process).or_insert(next);
    }
    let scale = Scale::new(operations);
    let height = TOP + LANE_HEIGHT * lanes.len() as f64 + 10.0;
    let full = LEFT + WIDTH + 20.0;
    let mut svg = format!(
        r#"<svg viewBox="0 0 {full} {height}" role="img" aria-label="operations over time"><text class="label" x="{LEFT}" y="16">key {}</text>"#,
        escape(&Value::from(counterexample.key.as_str()).to_string())
    );
    for (process, lane) in &lanes {
        let y = TOP + LANE_HEIGHT * (*lane as f64 + 0.5);
        let _ = write!(
            svg,
            r#"<line class="lane" x1="{LEFT}" x2="{}" y1="{y}" y2="{y}"/><text class="label" x="8" y="{}">process {process}</text>"#,
            LEFT + WIDTH,
            y + 4.0
        );
    }
    for operation in operations {
        let y = TOP + LANE_HEIGHT * (lanes[&operation.process] as f64 + 0.5) - BAR_HEIGHT / 2.0;
        let _ = write!(svg, "{}", bar(operation, *operation == culprit, y, &scale));
    }
    svg.push_str("</svg>");
    svg
}

fn bar(operation: &Operation, is_culprit: bool, y: f64, scale: &Scale) -> String {
    let x = scale.x(operation.call);
    let width = (operation.end.map_or(LEFT + WIDTH, |end| scale.x(end)) - x).max(4.0);
    let (class, text_class) = match (is_culprit, operation.end) {
        (true, _) => ("culprit", "text"),
        (false, None) => ("unknown", "text unknown-text"),
        (false, Some(_)) => ("bar", "text"),
    };
    let words = escape(&describe(operation));
    // Room for about one letter per 7 units; the whole text is in the tooltip and in the table.
    let fits: String = words.chars().take(((width - 8.0) / 7.0).max(0.0) as usize).collect();
    format!(
        r#"<g><title>process {}: {words}, line {}</title><rect class="{class}" x="{x:.1}" y="{y:.1}" width="{width:.1}" height="{BAR_HEIGHT}" rx="4"/><text class="{text_class}" x="{:.1}" y="{:.1}">{fits}</text></g>"#,
        operation.process,
        operation.line,
        x + 5.0,
        y + 17.0
    )
}

fn table_row(counterexample: &Counterexample, operation: &Operation) -> String {
    let is_culprit = *operation == counterexample.operations[counterexample.culprit];
    format!(
        "<tr{}><td>{}</td><td><code>{}</code></td><td>{}</td><td>{}</td><td>{}</td></tr>\n",
        if is_culprit { r#" class="culprit""# } else { "" },
        operation.process,
        escape(&describe(operation)),
        operation.call,
        operation.end.map_or("later, or never".to_string(), |end| end.to_string()),
        operation.line
    )
}

/// Places moments by their order, not by their distance: what matters is what came before what.
struct Scale {
    moments: Vec<u64>,
}

impl Scale {
    fn new(operations: &[&Operation]) -> Self {
        let mut moments: Vec<u64> =
            operations.iter().flat_map(|operation| [Some(operation.call), operation.end]).flatten().collect();
        moments.sort_unstable();
        moments.dedup();
        Self { moments }
    }

    fn x(&self, moment: u64) -> f64 {
        let index = self.moments.partition_point(|other| *other < moment);
        LEFT + WIDTH * index as f64 / self.moments.len().max(1) as f64
    }
}

/// Text as HTML.
#[must_use]
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
