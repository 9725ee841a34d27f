//! Slow readers and clients that leave, beside ordinary clients.
//!
//! The ordinary clients are measured alone, and then among the others. At the end, when all clients have left, no request may run
//! and no block of the KV cache may be held.

use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use rand::RngExt;
use serde_json::json;

use super::Context;
use crate::call::{Call, Reading};
use crate::drive::{Run, Until, closed};
use crate::server::Server;
use crate::summary::{Report, Summary};
use crate::workload::{Mix, Texts, completion, ids, rng};

#[derive(Debug, Args)]
pub struct Slow {
    /// The number of ordinary clients.
    #[arg(long, default_value_t = 8)]
    ordinary: usize,
    /// The number of clients that pause after each event.
    #[arg(long, default_value_t = 16)]
    slow: usize,
    /// The number of clients that leave in the middle of a stream or a verdict.
    #[arg(long, default_value_t = 16)]
    leaving: usize,
    /// Milliseconds of a slow reader's pause.
    #[arg(long, default_value_t = 50)]
    pause: u64,
    /// The length of a prompt in tokens.
    #[arg(long, default_value_t = 128)]
    prompt_tokens: usize,
    /// The length of an answer in tokens.
    #[arg(long, default_value_t = 64)]
    output_tokens: usize,
    /// Seconds of each of the two parts.
    #[arg(long, default_value_t = 20.0)]
    duration: f64,
    #[command(flatten)]
    mix: Mix,
}

/// The number of log-probabilities for each token that slow readers ask for. Large events fill the kernel's buffers.
const BULK: usize = 20;

impl Slow {
    /// Runs both parts and returns the report.
    ///
    /// # Errors
    /// If the server cannot be reached.
    pub async fn run(&self, context: &Context) -> anyhow::Result<Report> {
        self.mix.check()?;
        let server = &context.server;
        let texts = Texts::of(&server.client).await?;
        let before = (server.metrics().await, server.rss_mib()?);
        let mut report = Report::default();

        let alone = self.ordinary(context, 0).await?;
        let rows = Summary::by_kind("ordinary, alone", &alone, context.limits);
        report.rows.extend(rows);
        let (ordinary, slow, leaving) = tokio::join!(
            self.ordinary(context, 1),
            self.slow(context),
            self.leaving(context, &texts)
        );
        let settled = server.settle().await;
        for (label, run) in [
            ("ordinary, among them", ordinary?),
            ("slow readers", slow?),
            ("leaving", leaving?),
        ] {
            report.check_answered(&run.records);
            report
                .rows
                .extend(Summary::by_kind(label, &run, context.limits));
        }
        report.check_answered(&alone.records);
        report.check_idle(settled);
        report.note_memory(before.1, server.rss_mib()?);
        report.note_work(&before.0, &server.metrics().await);
        Ok(report)
    }

    fn until(&self) -> anyhow::Result<Until> {
        Ok(Until::Elapsed(Duration::try_from_secs_f64(self.duration)?))
    }

    /// Returns streamed completions, each with another prompt.
    fn completions(&self, context: &Context, part: u64) -> impl Fn(usize) -> Call + use<> {
        let (seed, vocab) = (context.seed ^ part << 32, context.vocab);
        let (prompt_tokens, output_tokens) = (self.prompt_tokens, self.output_tokens);
        move |number| {
            let prompt = ids(&mut rng(seed, number as u64), prompt_tokens, vocab);
            completion("completion", &prompt, output_tokens)
        }
    }

    async fn ordinary(&self, context: &Context, part: u64) -> anyhow::Result<Run> {
        let calls = Arc::new(self.completions(context, part));
        let Server { client, .. } = &context.server;
        Ok(closed(client, self.ordinary, self.until()?, calls).await)
    }

    async fn slow(&self, context: &Context) -> anyhow::Result<Run> {
        let completions = self.completions(context, 2);
        let pause = Duration::from_millis(self.pause);
        let calls = move |number| {
            let mut call = completions(number);
            call.body["logprobs"] = json!(BULK);
            call.reading = Reading::Slow(pause);
            call
        };
        let Server { client, .. } = &context.server;
        Ok(closed(client, self.slow, self.until()?, Arc::new(calls)).await)
    }

    async fn leaving(&self, context: &Context, texts: &Texts) -> anyhow::Result<Run> {
        let (mix, texts, seed) = (self.mix.clone(), texts.clone(), context.seed);
        let most = self.output_tokens;
        let calls = move |number: usize| {
            let mut call = mix.call(&texts, seed, number);
            let mut rng = rng(!seed, number as u64);
            call.reading = match call.reading {
                Reading::Stream => Reading::Leave {
                    after: rng.random_range(1..most.max(2)),
                },
                _ => Reading::HangUp(Duration::from_millis(rng.random_range(1..200))),
            };
            call
        };
        let Server { client, .. } = &context.server;
        Ok(closed(client, self.leaving, self.until()?, Arc::new(calls)).await)
    }
}
