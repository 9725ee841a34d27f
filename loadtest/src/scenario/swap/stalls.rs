//! Stalls of streams by swapped weights: the time between two tokens around a swap, against the time otherwise. A swap may cost
//! one decode step.
//!
//! At the clients, a gap is longer while any call of an operator arrives, because the call takes a share of the cores that
//! deliver tokens. So gaps during a swap's call are compared with gaps during a call that only reads. After a swap, answers that
//! had begun go on under the old weights, and a step computes two versions. Gaps in that time are compared with gaps that met no
//! call at all. The server's own clock does not depend on delivery. It measures how many streams the swap itself held up.

use std::time::Instant;

use super::Heard;
use crate::server::Histogram;
use crate::stats::Spread;
use crate::summary::{OwnTable, Report};

/// The server's histogram of the time between tokens.
pub const GAPS: &str = "inter_token_latency_seconds";

/// The share of the streams open at a swap that may be held up for longer than a step.
const HELD_UP: f64 = 0.01;

/// The begin and the end of a time span.
type Span = (Instant, Instant);

/// A call of the operator.
pub struct Call {
    pub span: Span,
    /// The version that serves after a swap.
    pub to: String,
}

/// The results of one part of the load.
#[derive(Default)]
pub struct Phase {
    pub calls: Vec<Call>,
    pub heard: Vec<Heard>,
    pub failures: Vec<String>,
    /// The times between two tokens, by the server's clock.
    pub gaps: Histogram,
}

impl Phase {
    fn calls(&self) -> Vec<Span> {
        self.calls.iter().map(|call| call.span).collect()
    }

    /// Returns, for every call, the span from its end to the end of the last answer of another version that had begun by then.
    fn aftermaths(&self) -> Vec<Span> {
        let aftermath = |call: &Call| {
            let done = call.span.1;
            let old = self.heard.iter().filter(|answer| {
                answer.versions.first().is_some_and(|own| *own != call.to)
                    && answer.moments.first().is_some_and(|&first| first < done)
            });
            let last = old.filter_map(|answer| answer.moments.last()).max();
            last.filter(|&&last| last > done).map(|&last| (done, last))
        };
        self.calls.iter().filter_map(aftermath).collect()
    }

    /// Returns the gaps in seconds in three groups: those that met one of the first spans, of the others those that met one of
    /// the second spans, and the rest.
    fn gaps_by(&self, first: &[Span], second: &[Span]) -> [Vec<f64>; 3] {
        let mut gaps: [Vec<f64>; 3] = Default::default();
        for pair in self.heard.iter().flat_map(|one| one.moments.windows(2)) {
            let met = |&(from, to): &Span| from <= pair[1] && pair[0] <= to;
            let kind = match () {
                () if first.iter().any(met) => 0,
                () if second.iter().any(met) => 1,
                () => 2,
            };
            gaps[kind].push((pair[1] - pair[0]).as_secs_f64());
        }
        gaps
    }
}

/// Adds a table to the report, and a violation where a swap costs more than a decode step.
pub fn check(report: &mut Report, clients: usize, usual: &Phase, swapped: &Phase) {
    let [reading, _, nothing] = usual.gaps_by(&usual.calls(), &[]);
    let [swapping, after, _] = swapped.gaps_by(&swapped.calls(), &swapped.aftermaths());
    let rows = [
        ("a swap's call", &swapping),
        ("a call that reads", &reading),
        ("two versions after a swap", &after),
        ("nothing", &nothing),
    ];
    report.table = Some(OwnTable {
        header: vec![
            "between two tokens, ms, that met",
            "gaps",
            "p50",
            "p90",
            "p99",
            "longest",
        ],
        rows: rows
            .into_iter()
            .filter_map(|(met, gaps)| row(met, gaps))
            .collect(),
    });
    let spreads = rows.map(|(_, gaps)| Spread::of(gaps.clone()));
    let [Some(swapping), Some(reading), Some(after), Some(nothing)] = spreads else {
        let missing = rows.into_iter().filter(|(_, gaps)| gaps.is_empty());
        let violation = |(met, _): (&str, _)| format!("no token met {met}: nothing was tested");
        report.violations.extend(missing.map(violation));
        return;
    };
    let step = nothing.p50;
    let bounds = [
        ("a swap's call", swapping, reading, "one that reads"),
        ("what follows a swap", after, nothing, "nothing"),
    ];
    for (what, met, beside, of) in bounds {
        if met.p99 > beside.p99 + step {
            report.violations.push(format!(
                "at the 99th percentile {what} costs {} ms more than {of}, and a step takes {}",
                ms(met.p99 - beside.p99),
                ms(step)
            ));
        }
    }
    held_up(report, clients, step, usual, swapped);
}

/// Counts the streams that swaps held up for longer than a step, by the server's clock.
fn held_up(report: &mut Report, clients: usize, step: f64, usual: &Phase, swapped: &Phase) {
    let counted = usual.gaps.count() > 0.0 && swapped.gaps.count() > 0.0;
    let boundary = swapped.gaps.boundary(2.0 * step);
    let Some(long) = boundary.filter(|_| counted) else {
        report
            .violations
            .push("the server counts no gaps: nothing was tested".into());
        return;
    };
    let streams = (swapped.calls.len() * clients) as f64;
    let expected = usual.gaps.above(long) / usual.gaps.count() * swapped.gaps.count();
    let share = (swapped.gaps.above(long) - expected) / streams;
    report.notes.push(format!(
        "on the server's clock {} of {} gaps were longer than {} ms while weights were swapped, and {} of {} otherwise: of the {streams} \
         streams that met a swap it held up {:.2} %",
        swapped.gaps.above(long),
        swapped.gaps.count(),
        ms(long),
        usual.gaps.above(long),
        usual.gaps.count(),
        100.0 * share.max(0.0),
    ));
    if share > HELD_UP {
        report.violations.push(format!(
            "{:.1} % of the streams that met a swap waited for longer than {} ms, and two steps take {}",
            100.0 * share,
            ms(long),
            ms(2.0 * step)
        ));
    }
}

fn ms(seconds: f64) -> String {
    format!("{:.2}", 1e3 * seconds)
}

fn row(met: &str, gaps: &[f64]) -> Option<Vec<String>> {
    let Spread { p50, p90, p99 } = Spread::of(gaps.to_vec())?;
    let longest = gaps.iter().copied().fold(0.0, f64::max);
    let mut row = vec![met.to_owned(), gaps.len().to_string()];
    row.extend([p50, p90, p99, longest].map(ms));
    Some(row)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::server::Metrics;

    /// Returns streams of the version `old`, a call from 31 to 32 ms, and by the server's clock 1000 gaps, of which `long` exceed
    /// 20 ms.
    fn phase(zero: Instant, streams: &[&[u64]], long: u32) -> Phase {
        let at = |ms: u64| zero + Duration::from_millis(ms);
        let heard = streams.iter().map(|moments| Heard {
            prompt: 0,
            versions: vec!["old".to_owned()],
            tokens: Vec::new(),
            moments: moments.iter().map(|&ms| at(ms)).collect(),
        });
        let buckets = format!(
            "selfjudge:{GAPS}_bucket{{le=\"0.02\"}} {}\nselfjudge:{GAPS}_bucket{{le=\"+Inf\"}} 1000\n",
            1000 - long
        );
        Phase {
            heard: heard.collect(),
            calls: vec![Call {
                span: (at(31), at(32)),
                to: "new".to_owned(),
            }],
            failures: Vec::new(),
            gaps: Metrics::parse(&buckets).histogram(GAPS),
        }
    }

    const STEADY: &[u64] = &[0, 10, 20, 30, 40, 50, 60];

    fn violations(streams: &[&[u64]], long: u32) -> Vec<String> {
        let zero = Instant::now();
        let mut report = Report::default();
        let usual = phase(zero, &[STEADY], 1);
        check(&mut report, 8, &usual, &phase(zero, streams, long));
        assert!(report.table.is_some());
        report.violations
    }

    #[test]
    fn a_swap_may_cost_a_step() {
        assert_eq!(violations(&[STEADY], 1), [""; 0]);
        assert_eq!(violations(&[STEADY, &[0, 10, 25, 44, 54]], 0), [""; 0]);
    }

    #[test]
    fn a_stall_is_seen_in_the_call_and_after_it() {
        let during = violations(&[&[0, 10, 20, 30, 55, 65]], 1);
        assert!(during[0].contains("a swap's call costs"), "{during:?}");
        let after = violations(&[&[0, 10, 20, 30, 40, 65]], 1);
        assert!(after[0].contains("what follows a swap"), "{after:?}");
        let inside = violations(&[STEADY], 9);
        assert!(inside[0].contains("100.0 % of the streams"), "{inside:?}");
    }

    #[test]
    fn what_was_not_met_was_not_tried() {
        assert_eq!(violations(&[&[0, 10, 20]], 1).len(), 2, "no swap");
        assert_eq!(
            violations(&[&[29, 33, 34]], 1),
            [""; 0],
            "two versions until 34 ms"
        );
        assert_eq!(
            violations(&[&[29, 33]], 1).len(),
            1,
            "nothing after the swap"
        );
    }
}
