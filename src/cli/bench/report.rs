//! What a run came to, for people and for programs.

use super::super::output::table;
use super::BenchArgs;
use super::tally::Tally;
use crate::cli::Exit;
use clap::ValueEnum;
use serde_json::{Value, json};

/// A time without an answer is worth a line from here on, in microseconds.
const GAP_MICROS_SAID: u64 = 500_000;

/// A run that is over.
pub(super) struct Report<'a> {
    pub(super) args: &'a BenchArgs,
    pub(super) tally: &'a Tally,
    /// What was measured, in microseconds.
    pub(super) micros: u64,
    /// The longest part of it without an answer.
    pub(super) gap: u64,
    /// CPU of all nodes, in microseconds; none if it is not known of each.
    pub(super) cpu_micros: Option<u64>,
}

impl Report<'_> {
    /// A run without a single answer is no measurement.
    pub(super) fn exit(&self) -> Exit {
        let Tally { done, unknown, unavailable, not_sent, .. } = *self.tally;
        match (done, unknown, unavailable + not_sent) {
            (1.., ..) => Exit::Ok,
            (0, 1.., _) => Exit::Unknown,
            (0, 0, 1..) => Exit::Unavailable,
            (0, 0, 0) if self.tally.refused > 0 => Exit::Refused,
            (0, 0, 0) => Exit::Error,
        }
    }

    fn workload(&self) -> String {
        self.args.workload.to_possible_value().map(|value| value.get_name().to_string()).unwrap_or_default()
    }

    fn per_second(&self) -> f64 {
        self.tally.answered as f64 / (self.micros.max(1) as f64 / 1e6)
    }

    fn cpu_per_operation(&self) -> Option<f64> {
        let answered = self.tally.answered;
        (answered > 0).then(|| self.cpu_micros.map(|cpu| cpu as f64 / answered as f64)).flatten()
    }

    /// For programs.
    pub(super) fn json(&self) -> Value {
        let (tally, latency, service) = (self.tally, &self.tally.latency, &self.tally.service);
        json!({
            "workload": self.workload(),
            "clients": self.args.clients,
            "rate": self.args.rate,
            "seconds": self.micros as f64 / 1e6,
            "value_bytes": self.args.value_bytes,
            "operations": tally.done,
            "ops_per_s": self.per_second().round(),
            "p50_us": latency.value_at_quantile(0.5),
            "p99_us": latency.value_at_quantile(0.99),
            "max_us": latency.max(),
            "sent_p50_us": service.value_at_quantile(0.5),
            "sent_p99_us": service.value_at_quantile(0.99),
            "sent_max_us": service.max(),
            "errors": tally.errors(),
            "refused": tally.refused,
            "unavailable": tally.unavailable,
            "unknown": tally.unknown,
            "not_sent": tally.not_sent,
            "open_at_end": tally.open,
            "longest_gap_us": self.gap,
            "error": tally.reason,
            "cpu_us_per_op": self.cpu_per_operation().map(|cpu| (cpu * 10.0).round() / 10.0),
        })
    }

    /// For people.
    pub(super) fn words(&self) -> String {
        let (tally, latency) = (self.tally, &self.tally.latency);
        let millis = |micros: u64| format!("{:.2} ms", micros as f64 / 1e3);
        let mut rows = table(&["WORKLOAD", "CLIENTS", "OPS/S", "P50", "P99", "MAX", "ERRORS", "NODE CPU/OP"]);
        rows.add_row(vec![
            self.workload(),
            self.args.clients.to_string(),
            format!("{:.0}", self.per_second()),
            millis(latency.value_at_quantile(0.5)),
            millis(latency.value_at_quantile(0.99)),
            millis(latency.max()),
            tally.errors().to_string(),
            self.cpu_per_operation().map_or("unknown".to_string(), |cpu| format!("{cpu:.1} us")),
        ]);
        let mut text = rows.to_string();
        if self.args.rate.is_some() {
            let service = &tally.service;
            text += &format!(
                "\nfrom the moment of sending: P50 {}, P99 {}, MAX {}",
                millis(service.value_at_quantile(0.5)),
                millis(service.value_at_quantile(0.99)),
                millis(service.max())
            );
        }
        if tally.errors() > 0 {
            let Tally { refused, unavailable, unknown, not_sent, .. } = tally;
            text += &format!(
                "\nnot done: {unknown} unknown, {unavailable} unavailable (surely not applied), {refused} refused, {not_sent} not \
                 sent before the time was over"
            );
            text += &tally.reason.as_ref().map(|reason| format!("\nthe first: {reason}")).unwrap_or_default();
        }
        if tally.errors() > 0 && tally.open > 0 {
            text += &format!("\n{} were open when the time was over, and were waited for", tally.open);
        }
        if self.gap >= GAP_MICROS_SAID {
            text += &format!("\nlongest time without an answer: {:.1} s", self.gap as f64 / 1e6);
        }
        text
    }
}
