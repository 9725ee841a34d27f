//! Rows that summarize many records, and a report of rows.

use std::collections::BTreeMap;

use comfy_table::presets::ASCII_MARKDOWN;
use comfy_table::{CellAlignment, Table};
use serde::Serialize;

use crate::call::{Outcome, Record};
use crate::drive::Run;
use crate::server::{Metrics, Sample, Work};
use crate::stats::Spread;

/// The limits of a good answer, in seconds.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    pub ttft: f64,
    /// The limit of the mean time between tokens of a request.
    pub itl: f64,
}

impl Limits {
    fn keeps(&self, record: &Record) -> bool {
        let mean = record.gaps.iter().sum::<f64>() / record.gaps.len().max(1) as f64;
        let quick = record.ttft.is_some_and(|ttft| ttft <= self.ttft);
        record.outcome == Outcome::Done && quick && mean <= self.itl
    }
}

/// A row of the report. Times are in seconds.
#[derive(Debug, Clone, Serialize)]
pub struct Summary {
    pub label: String,
    pub requests: usize,
    pub done: usize,
    pub left: usize,
    pub failures: BTreeMap<String, usize>,
    pub wall: f64,
    pub ttft: Option<Spread>,
    pub itl: Option<Spread>,
    pub e2e: Option<Spread>,
    pub output_tokens_per_second: f64,
    pub requests_per_second: f64,
    /// The share of requests that were answered within the limits, of all requests whose client stayed.
    pub goodput: Option<f64>,
}

impl Summary {
    pub fn of(label: impl Into<String>, records: &[&Record], wall: f64, limits: Limits) -> Self {
        let done: Vec<&&Record> = records
            .iter()
            .filter(|record| record.outcome == Outcome::Done)
            .collect();
        let left = records
            .iter()
            .filter(|record| record.outcome == Outcome::Left);
        let left = left.count();
        let mut failures = BTreeMap::new();
        for failure in records.iter().filter_map(|record| record.outcome.failure()) {
            *failures.entry(failure).or_default() += 1;
        }
        let tokens: usize = records.iter().map(|record| record.usage.completion).sum();
        let good = records.iter().filter(|record| limits.keeps(record)).count();
        Self {
            label: label.into(),
            requests: records.len(),
            done: done.len(),
            left,
            failures,
            wall,
            ttft: Spread::of(done.iter().filter_map(|record| record.ttft).collect()),
            itl: Spread::of(
                done.iter()
                    .flat_map(|record| record.gaps.iter().copied())
                    .collect(),
            ),
            e2e: Spread::of(done.iter().map(|record| record.e2e).collect()),
            output_tokens_per_second: tokens as f64 / wall,
            requests_per_second: done.len() as f64 / wall,
            goodput: (records.len() > left).then(|| good as f64 / (records.len() - left) as f64),
        }
    }

    /// Returns a row of the whole run, and one for each kind where there are several.
    pub fn by_kind(label: &str, run: &Run, limits: Limits) -> Vec<Self> {
        let mut kinds: BTreeMap<&str, Vec<&Record>> = BTreeMap::new();
        for record in &run.records {
            kinds.entry(record.kind).or_default().push(record);
        }
        let all: Vec<&Record> = run.records.iter().collect();
        let mut rows = vec![Self::of(label, &all, run.wall, limits)];
        if kinds.len() > 1 {
            let parts = kinds.iter();
            rows.extend(parts.map(|(kind, records)| Self::of(*kind, records, run.wall, limits)));
        }
        rows
    }
}

/// The report of a scenario.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    pub rows: Vec<Summary>,
    /// A table that only this scenario has.
    pub table: Option<OwnTable>,
    pub notes: Vec<String>,
    /// The server's promises that it did not keep.
    pub violations: Vec<String>,
    pub samples: Vec<Sample>,
}

#[derive(Debug, Serialize)]
pub struct OwnTable {
    pub header: Vec<&'static str>,
    pub rows: Vec<Vec<String>>,
}

impl Report {
    /// Adds a note on the server's work between two scrapes.
    pub fn note_work(&mut self, before: &Metrics, after: &Metrics) {
        let work = Work::between(before, after);
        if work.prompt_tokens == 0.0 {
            return;
        }
        self.notes.push(format!(
            "prompt tokens {}, of them cached {:.1} %; generated {}; preemptions {}; comparisons {}; aborted {}",
            work.prompt_tokens,
            100.0 * work.hit_ratio(),
            work.generated_tokens,
            work.preemptions,
            work.comparisons,
            work.aborted,
        ));
    }

    pub fn note_memory(&mut self, before: Option<f64>, after: Option<f64>) {
        if let (Some(before), Some(after)) = (before, after) {
            let note = format!("resident memory before {before:.1} MiB, after {after:.1} MiB");
            self.notes.push(note);
        }
    }

    /// Adds a violation where an admitted request was not answered.
    pub fn check_answered(&mut self, records: &[Record]) {
        let broken = records
            .iter()
            .filter(|record| record.outcome.broke_its_word());
        let broken = broken.count();
        if broken > 0 {
            let violation = format!("{broken} admitted requests were not answered");
            self.violations.push(violation);
        }
    }

    /// Adds a violation where the server is not idle after all clients have left.
    pub fn check_idle(&mut self, settled: anyhow::Result<f64>) {
        match settled {
            Ok(seconds) => self.notes.push(format!(
                "{seconds:.2} s after the last client nothing ran and no block was held"
            )),
            Err(error) => self.violations.push(format!("not idle: {error}")),
        }
    }

    /// Returns the report as Markdown.
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        if !self.rows.is_empty() {
            text.push_str(&latencies(&self.rows));
        }
        if let Some(table) = &self.table {
            text.push_str(&markdown(&table.header, &table.rows));
        }
        for note in &self.notes {
            text.push_str(&format!("- {note}\n"));
        }
        for violation in &self.violations {
            text.push_str(&format!("- **BROKEN**: {violation}\n"));
        }
        text
    }
}

fn latencies(rows: &[Summary]) -> String {
    let header = [
        "load",
        "requests",
        "done",
        "TTFT p50/p90/p99 ms",
        "ITL p50/p90/p99 ms",
        "e2e p50/p90/p99 ms",
        "out tok/s",
        "req/s",
        "goodput %",
        "not done",
    ];
    let spread = |spread: Option<Spread>| match spread {
        None => String::new(),
        Some(Spread { p50, p90, p99 }) => {
            let ms = |seconds: f64| match seconds * 1e3 {
                ms if ms < 10.0 => format!("{ms:.2}"),
                ms if ms < 100.0 => format!("{ms:.1}"),
                ms => format!("{ms:.0}"),
            };
            format!("{} / {} / {}", ms(p50), ms(p90), ms(p99))
        }
    };
    let rows: Vec<Vec<String>> = rows
        .iter()
        .map(|row| {
            let mut other: Vec<String> = row
                .failures
                .iter()
                .map(|(failure, count)| format!("{count} x {failure}"))
                .collect();
            if row.left > 0 {
                other.push(format!("{} left", row.left));
            }
            vec![
                row.label.clone(),
                row.requests.to_string(),
                row.done.to_string(),
                spread(row.ttft),
                spread(row.itl),
                spread(row.e2e),
                format!("{:.1}", row.output_tokens_per_second),
                format!("{:.2}", row.requests_per_second),
                row.goodput
                    .map_or_else(String::new, |good| format!("{:.1}", 100.0 * good)),
                other.join(", "),
            ]
        })
        .collect();
    markdown(&header, &rows)
}

fn markdown(header: &[&str], rows: &[Vec<String>]) -> String {
    let mut table = Table::new();
    table.load_preset(ASCII_MARKDOWN).set_header(header);
    table.add_rows(rows);
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    format!("{table}\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::call::Usage;

    fn record(kind: &'static str, outcome: Outcome, ttft: f64) -> Record {
        Record {
            kind,
            outcome,
            ttft: Some(ttft),
            gaps: vec![0.01, 0.03],
            e2e: ttft + 0.04,
            usage: Usage {
                completion: 3,
                ..Usage::default()
            },
        }
    }

    #[test]
    fn rows_count_what_became_of_requests() {
        let run = Run {
            records: vec![
                record("a", Outcome::Done, 0.1),
                record("a", Outcome::Done, 3.0),
                record("b", Outcome::Rejected { retry_after: true }, 0.1),
                record("b", Outcome::Left, 0.1),
            ],
            wall: 2.0,
        };
        let limits = Limits {
            ttft: 1.0,
            itl: 0.025,
        };
        let rows = Summary::by_kind("all", &run, limits);
        assert_eq!(rows.len(), 3);
        let all = &rows[0];
        assert_eq!((all.requests, all.done, all.left), (4, 2, 1));
        assert_eq!(all.failures["429"], 1);
        assert_eq!(all.goodput, Some(1.0 / 3.0));
        assert_eq!(all.output_tokens_per_second, 6.0);
        let mut report = Report::default();
        report.check_answered(&run.records);
        assert!(report.violations.is_empty());
        report.check_answered(&[record("a", Outcome::Timeout, 0.0)]);
        assert_eq!(report.violations.len(), 1);
    }
}
