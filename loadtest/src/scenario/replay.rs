//! A recorded trace in an open loop: requests are sent at their recorded times, without waiting for answers.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context as _;
use clap::Args;

use super::Context;
use crate::drive::{Calls, Until, closed, open};
use crate::summary::{Report, Summary};
use crate::trace::{Scaled, fit, read};
use crate::workload::{Texts, completion};

#[derive(Debug, Args)]
pub struct Replay {
    /// The trace: a `.csv` file (arrival_s,prompt_tokens,output_tokens) or a `.jsonl` file, gzipped or not.
    #[arg(long)]
    trace: PathBuf,
    /// The number of requests, counted from the first one.
    #[arg(long, default_value_t = 200)]
    take: usize,
    /// The longest sequence that lengths are scaled to. The default is the model's context.
    #[arg(long)]
    max_context: Option<usize>,
    /// Requests a second. The default is a share of the server's capacity.
    #[arg(long)]
    rate: Option<f64>,
    /// The share of the server's capacity, where --rate is not given.
    #[arg(long, default_value_t = 0.7)]
    load: f64,
    /// The number of clients that measure the capacity.
    #[arg(long, default_value_t = 16)]
    clients: usize,
    /// The number of requests that measure the capacity.
    #[arg(long, default_value_t = 64)]
    calibrate: usize,
}

impl Replay {
    /// Replays the trace and returns the report.
    ///
    /// # Errors
    /// If the trace cannot be read, or the server cannot be reached.
    pub async fn run(&self, context: &Context) -> anyhow::Result<Report> {
        let server = &context.server;
        let max_context = match self.max_context {
            Some(tokens) => tokens,
            None => Texts::of(&server.client).await?.max_context,
        };
        anyhow::ensure!(max_context > 1, "--max-context must be at least 2");
        let trace = Arc::new(fit(read(&self.trace, self.take)?, max_context));
        let mut report = Report::default();
        let rate = match self.rate {
            Some(rate) => rate,
            None => {
                let until = Until::Requests(self.calibrate.min(trace.entries.len()));
                // These prompts differ from those of the replay, so that the cache holds none of them.
                let calls = calls(&trace, !context.seed, context.vocab);
                let run = closed(&server.client, self.clients, until, calls).await;
                let row = Summary::by_kind("capacity", &run, context.limits).swap_remove(0);
                let rate = row.requests_per_second * self.load;
                report.rows.push(row);
                rate
            }
        };
        anyhow::ensure!(rate > 0.0, "the rate must be above 0");
        let before = (server.metrics().await, server.rss_mib()?);
        let calls = calls(&trace, context.seed, context.vocab);
        let run = open(&server.client, trace.arrivals(rate), calls).await;
        let label = self.trace.file_name().context("the trace has no name")?;
        let label = label.to_string_lossy();
        report.check_answered(&run.records);
        report
            .rows
            .extend(Summary::by_kind(&label, &run, context.limits));
        report.notes.push(format!(
            "lengths times {:.3} (context {max_context}), {rate:.2} requests/s",
            trace.factor
        ));
        report.note_memory(before.1, server.rss_mib()?);
        report.note_work(&before.0, &server.metrics().await);
        Ok(report)
    }
}

fn calls(trace: &Arc<Scaled>, seed: u64, vocab: u32) -> Calls {
    let trace = Arc::clone(trace);
    Arc::new(move |number| {
        let prompt = trace.prompt(number, seed, vocab);
        completion("completion", &prompt, trace.entries[number].output_tokens)
    })
}
