//! Serving beside learning: the same moderate load with and without the learner, and the learner with and without the load.
//!
//! The server is started with learning on. Logged calls give the learner records to learn from. Then the learner is paused and
//! resumed in rounds, so that other work of the machine affects all parts alike.

use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Args;

use super::Context;
use super::overload::poisson;
use crate::admin::Admin;
use crate::call::Record;
use crate::client::Client;
use crate::drive::{Calls, Run, Until, closed, open};
use crate::stats::Spread;
use crate::summary::{Report, Summary};
use crate::workload::{completion, ids, logged, questions, rng};

#[derive(Debug, Args)]
pub struct Interference {
    /// The URL of the operators' listener, with plain HTTP.
    #[arg(long, default_value = "http://127.0.0.1:8081")]
    admin_url: String,
    /// The number of logged prompts that are sent first, for the learner.
    #[arg(long, default_value_t = 4000)]
    prompts: usize,
    /// The share of the server's capacity alone that is asked of it.
    #[arg(long, default_value_t = 0.3)]
    load: f64,
    /// The number of clients that measure the capacity.
    #[arg(long, default_value_t = 16)]
    clients: usize,
    /// The number of requests that measure the capacity.
    #[arg(long, default_value_t = 128)]
    calibrate: usize,
    /// The length of a prompt in tokens.
    #[arg(long, default_value_t = 128)]
    prompt_tokens: usize,
    /// The length of an answer in tokens.
    #[arg(long, default_value_t = 64)]
    output_tokens: usize,
    /// Seconds of each part of a round.
    #[arg(long, default_value_t = 20.0)]
    duration: f64,
    /// The number of rounds.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// The counter of `GET /train` that measures the learner's progress.
    #[arg(long, default_value = "updates")]
    progress: String,
    /// The factor by which the p99 between tokens may rise.
    #[arg(long, default_value_t = 1.2)]
    itl_ratio: f64,
    /// The share of its own speed that the learner must keep.
    #[arg(long, default_value_t = 0.5)]
    learner_share: f64,
}

/// The learner's progress in a time.
#[derive(Debug, Clone, Copy, Default)]
struct Learnt {
    steps: f64,
    seconds: f64,
}

impl Learnt {
    fn add(&mut self, other: Self) {
        self.steps += other.steps;
        self.seconds += other.seconds;
    }

    fn per_second(self) -> f64 {
        self.steps / self.seconds
    }
}

impl Interference {
    /// Measures the rounds and returns the report.
    ///
    /// # Errors
    /// If the server or its learner cannot be reached, if nothing is learned, or if there are too few records.
    pub async fn run(&self, context: &Context) -> anyhow::Result<Report> {
        anyhow::ensure!(self.rounds > 0, "--rounds must be at least 1");
        let client = &context.server.client;
        let admin = Admin::new(Client::new(&self.admin_url, Duration::from_secs(120))?);
        let mut report = Report::default();
        let before = context.server.metrics().await;

        admin.pause().await?;
        let prompts = questions(context.seed, self.prompts);
        let taught: Calls = Arc::new(move |number| logged(&prompts[number], number as u64));
        let taught = closed(client, 8, Until::Requests(self.prompts), taught).await;
        report.check_answered(&taught.records);
        let until = Until::Requests(self.calibrate);
        let capacity = closed(client, self.clients, until, self.calls(context, 0)).await;
        let row = Summary::by_kind("capacity", &capacity, context.limits).swap_remove(0);
        let rate = row.requests_per_second * self.load;
        anyhow::ensure!(rate > 0.0, "the server answered nothing");
        report.rows.push(row);

        let (mut serving, mut both) = (Vec::new(), Vec::new());
        let (mut alone, mut beside) = (Learnt::default(), Learnt::default());
        for round in 0..self.rounds as u64 {
            admin.pause().await?;
            serving.push(self.serve(context, rate, 2 * round + 1).await);
            admin.resume().await?;
            let quiet = tokio::time::sleep(Duration::try_from_secs_f64(self.duration)?);
            alone.add(self.learnt(&admin, quiet).await?.0);
            let loaded = self.serve(context, rate, 2 * round + 2);
            let (learnt, run) = self.learnt(&admin, loaded).await?;
            beside.add(learnt);
            both.push(run);
        }
        let (serving, both) = (joined(serving), joined(both));
        for (label, run) in [
            ("serving alone", &serving),
            ("serving while learning", &both),
        ] {
            report.check_answered(&run.records);
            report
                .rows
                .extend(Summary::by_kind(label, run, context.limits));
        }
        self.judge(&mut report, [&serving, &both], [alone, beside]);
        report.notes.push(format!(
            "{rate:.2} requests/s, {:.0} % of the capacity",
            100.0 * self.load
        ));
        report.note_work(&before, &context.server.metrics().await);
        Ok(report)
    }

    fn judge(&self, report: &mut Report, serving: [&Run; 2], learnt: [Learnt; 2]) {
        let p99 = serving.map(|run| {
            let gaps = run
                .records
                .iter()
                .flat_map(|record| record.gaps.iter().copied());
            Spread::of(gaps.collect()).map_or(f64::NAN, |spread| spread.p99)
        });
        let ratio = p99[1] / p99[0];
        report.notes.push(format!(
            "p99 between tokens alone {:.2} ms, while learning {:.2} ms: times {ratio:.2}",
            1e3 * p99[0],
            1e3 * p99[1]
        ));
        // A ratio that is not a number is a violation too.
        if ratio.is_nan() || ratio > self.itl_ratio {
            report.violations.push(format!(
                "learning multiplies the p99 between tokens by {ratio:.2}, and {:.2} is allowed",
                self.itl_ratio
            ));
        }
        let [alone, beside] = learnt.map(Learnt::per_second);
        let share = beside / alone;
        report.notes.push(format!(
            "{} a second alone {alone:.3}, beside the load {beside:.3}: {:.0} %",
            self.progress,
            100.0 * share
        ));
        if share.is_nan() || share < self.learner_share {
            report.violations.push(format!(
                "the learner keeps {:.0} % of its speed, and {:.0} % is asked for",
                100.0 * share,
                100.0 * self.learner_share
            ));
        }
    }

    /// Runs `work` and measures the learner's progress meanwhile.
    async fn learnt<T>(
        &self,
        admin: &Admin,
        work: impl Future<Output = T>,
    ) -> anyhow::Result<(Learnt, T)> {
        let (before, begun) = (admin.train().await?.count(&self.progress)?, Instant::now());
        let done = work.await;
        let seconds = begun.elapsed().as_secs_f64();
        let after = admin.train().await?;
        // A learner without prompts stands still. Its speed would mean nothing.
        anyhow::ensure!(
            !after.is_starved()?,
            "the learner ran out of prompts: send more of them (--prompts)"
        );
        let steps = after.count(&self.progress)? - before;
        Ok((Learnt { steps, seconds }, done))
    }

    /// Sends requests as a Poisson process of `rate` a second.
    async fn serve(&self, context: &Context, rate: f64, part: u64) -> Run {
        let arrivals = poisson(rate, self.duration, context.seed ^ part);
        open(&context.server.client, arrivals, self.calls(context, part)).await
    }

    /// Returns completions that are not logged, each with another prompt.
    fn calls(&self, context: &Context, part: u64) -> Calls {
        let (seed, vocab) = (context.seed ^ part << 32, context.vocab);
        let (prompt_tokens, output_tokens) = (self.prompt_tokens, self.output_tokens);
        Arc::new(move |number| {
            let prompt = ids(&mut rng(seed, number as u64), prompt_tokens, vocab);
            completion("completion", &prompt, output_tokens)
        })
    }
}

fn joined(runs: Vec<Run>) -> Run {
    let wall = runs.iter().map(|run| run.wall).sum();
    let records: Vec<Record> = runs.into_iter().flat_map(|run| run.records).collect();
    Run { records, wall }
}
