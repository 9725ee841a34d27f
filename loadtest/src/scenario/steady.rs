//! A steady number of clients, each with one request at a time.

use std::sync::Arc;

use clap::Args;

use super::Context;
use crate::drive::{Until, closed};
use crate::summary::{Report, Summary};
use crate::workload::{completion, ids, rng};

#[derive(Debug, Args)]
pub struct Steady {
    /// The numbers of clients, one level after the other.
    #[arg(long, value_delimiter = ',', default_value = "1,4,8,16,64")]
    concurrency: Vec<usize>,
    /// The length of a prompt in tokens.
    #[arg(long, default_value_t = 128)]
    prompt_tokens: usize,
    /// The length of an answer in tokens.
    #[arg(long, default_value_t = 64)]
    output_tokens: usize,
    /// The number of requests of each client.
    #[arg(long, default_value_t = 4)]
    rounds: usize,
}

impl Steady {
    /// Runs all levels and returns the report.
    ///
    /// # Errors
    /// If the server cannot be reached.
    pub async fn run(&self, context: &Context) -> anyhow::Result<Report> {
        let Context {
            server,
            seed,
            vocab,
            ..
        } = context;
        let (seed, vocab) = (*seed, *vocab);
        let mut report = Report::default();
        let before = (server.metrics().await, server.rss_mib()?);
        let mut first = 0;
        for &clients in &self.concurrency {
            let (from, prompt_tokens, output_tokens) =
                (first, self.prompt_tokens, self.output_tokens);
            let calls = move |number: usize| {
                let prompt = ids(&mut rng(seed, (from + number) as u64), prompt_tokens, vocab);
                completion("completion", &prompt, output_tokens)
            };
            // The few requests of one client would give poor percentiles.
            let count = (clients * self.rounds).max(8);
            let run = closed(
                &server.client,
                clients,
                Until::Requests(count),
                Arc::new(calls),
            )
            .await;
            first += count;
            report.check_answered(&run.records);
            let label = format!("{clients} clients");
            report
                .rows
                .extend(Summary::by_kind(&label, &run, context.limits));
        }
        report.note_memory(before.1, server.rss_mib()?);
        report.note_work(&before.0, &server.metrics().await);
        Ok(report)
    }
}
