//! A load of several times the capacity. Queues must stay bounded, admitted requests must be answered, and memory must stay flat
//! once the queue is full.

use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use rand::RngExt;

use super::Context;
use crate::call::{Call, Outcome};
use crate::drive::{Until, closed, open};
use crate::server::Sample;
use crate::summary::{Report, Summary};
use crate::workload::{completion, ids, rng};

#[derive(Debug, Args)]
pub struct Overload {
    /// The load as a multiple of the capacity.
    #[arg(long, default_value_t = 5.0)]
    factor: f64,
    /// The duration of the overload in seconds.
    #[arg(long, default_value_t = 60.0)]
    duration: f64,
    /// Seconds of overload before the measurement. The system hands out the reserved KV cache at its first use.
    #[arg(long, default_value_t = 15.0)]
    warm_up: f64,
    /// The number of clients that measure the capacity.
    #[arg(long, default_value_t = 64)]
    clients: usize,
    /// The number of requests of each of these clients.
    #[arg(long, default_value_t = 4)]
    rounds: usize,
    /// The length of a prompt in tokens.
    #[arg(long, default_value_t = 128)]
    prompt_tokens: usize,
    /// The length of an answer in tokens.
    #[arg(long, default_value_t = 64)]
    output_tokens: usize,
    /// MiB by which the peak memory of the second half of the time with a full queue may exceed that of the first half.
    #[arg(long, default_value_t = 16.0)]
    growth: f64,
}

impl Overload {
    /// Runs the load and returns the report.
    ///
    /// # Errors
    /// If the server cannot be reached.
    pub async fn run(&self, context: &Context) -> anyhow::Result<Report> {
        let server = &context.server;
        let mut report = Report::default();
        let before = server.metrics().await;
        let until = Until::Requests(self.clients * self.rounds);
        let calls = Arc::new(self.calls(context, 0));
        let capacity = closed(&server.client, self.clients, until, calls).await;
        report.check_answered(&capacity.records);
        let row = Summary::by_kind("capacity", &capacity, context.limits).swap_remove(0);
        let rate = row.requests_per_second * self.factor;
        anyhow::ensure!(rate > 0.0, "the server answered nothing");
        report.rows.push(row);

        let arrivals = poisson(rate, self.warm_up, !context.seed);
        let calls = Arc::new(self.calls(context, 2));
        let warm_up = open(&server.client, arrivals, calls).await;
        report.check_answered(&warm_up.records);
        let resting = server.rss_mib()?;
        let watch = server.watch(Duration::from_millis(500));
        let arrivals = poisson(rate, self.duration, context.seed);
        let calls = Arc::new(self.calls(context, 1));
        let run = open(&server.client, arrivals, calls).await;
        report.samples = watch.stop();
        let label = format!("{} times capacity", self.factor);
        report
            .rows
            .extend(Summary::by_kind(&label, &run, context.limits));
        report.check_answered(&run.records);
        let silent = Outcome::Rejected { retry_after: false };
        if run.records.iter().any(|record| record.outcome == silent) {
            report
                .violations
                .push("an answer with 429 has no Retry-After".into());
        }
        let peak = |of: fn(&Sample) -> f64| report.samples.iter().map(of).fold(0.0, f64::max);
        let note = format!(
            "{rate:.1} requests/s for {} s; at most {} ran and {} waited, {:.0} % of the blocks were held",
            self.duration,
            peak(|sample| sample.running),
            peak(|sample| sample.waiting),
            100.0 * peak(|sample| sample.kv_usage),
        );
        report.notes.push(note);
        report.check_idle(server.settle().await);
        if let Some(resting) = resting {
            self.judge_memory(&mut report, resting);
        }
        report.note_work(&before, &server.metrics().await);
        Ok(report)
    }

    /// Checks the memory with a full queue. Waiting requests take memory up to the queue's bound; it may not grow further.
    fn judge_memory(&self, report: &mut Report, resting: f64) {
        let waited = report.samples.iter().map(|sample| sample.waiting);
        let waited = waited.fold(1.0, f64::max);
        let full = report.samples.iter();
        let full = full.filter(|sample| sample.waiting > 0.95 * waited);
        let rss: Vec<f64> = full.filter_map(|sample| sample.rss_mib).collect();
        let (first, second) = rss.split_at(rss.len() / 2);
        let [first, second] = [first, second].map(|half| half.iter().copied().fold(0.0, f64::max));
        report.notes.push(format!(
            "resident memory {resting:.1} MiB after the warm-up; with a full queue at most {first:.1} MiB at first, {:.0} KiB for each call that \
             waited, and {second:.1} MiB later",
            1024.0 * (first - resting).max(0.0) / waited,
        ));
        if rss.len() < 10 {
            let violation = "the queue was full for too short a time to measure the growth of memory: raise --duration";
            report.violations.push(violation.into());
        } else if second > first + self.growth {
            let violation = format!("memory grew by {:.1} MiB with a full queue", second - first);
            report.violations.push(violation);
        }
    }

    fn calls(&self, context: &Context, part: u64) -> impl Fn(usize) -> Call + use<> {
        let (seed, vocab) = (context.seed ^ part << 32, context.vocab);
        let (prompt_tokens, output_tokens) = (self.prompt_tokens, self.output_tokens);
        move |number| {
            let prompt = ids(&mut rng(seed, number as u64), prompt_tokens, vocab);
            completion("completion", &prompt, output_tokens)
        }
    }
}

/// Returns the arrival times of a Poisson process of `rate` a second over `seconds`.
pub fn poisson(rate: f64, seconds: f64, seed: u64) -> Vec<Duration> {
    let mut rng = rng(seed, u64::MAX);
    let mut at = 0.0;
    let mut arrivals = Vec::new();
    loop {
        let uniform: f64 = rng.random();
        at -= (1.0 - uniform).ln() / rate;
        if at > seconds {
            return arrivals;
        }
        arrivals.push(Duration::from_secs_f64(at));
    }
}

#[cfg(test)]
mod tests {
    use super::poisson;

    #[test]
    fn arrivals_have_their_rate() {
        let arrivals = poisson(50.0, 40.0, 7);
        // The mean is 2000, and the standard deviation is 45.
        assert!((1800..2200).contains(&arrivals.len()), "{}", arrivals.len());
        assert!(arrivals.is_sorted());
        assert!(poisson(1e-9, 1.0, 7).is_empty());
    }
}
