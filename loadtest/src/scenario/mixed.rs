//! Answers, verdicts, tournaments and best-of-N at once.

use std::sync::Arc;
use std::time::Duration;

use clap::Args;

use super::Context;
use crate::drive::{Until, closed};
use crate::summary::{Report, Summary};
use crate::workload::{Mix, Texts};

#[derive(Debug, Args)]
pub struct Mixed {
    #[command(flatten)]
    mix: Mix,
    /// The number of clients.
    #[arg(long, default_value_t = 16)]
    clients: usize,
    /// The duration in seconds.
    #[arg(long, default_value_t = 60.0)]
    duration: f64,
}

impl Mixed {
    /// Runs the load and returns the report.
    ///
    /// # Errors
    /// If the server cannot be reached.
    pub async fn run(&self, context: &Context) -> anyhow::Result<Report> {
        self.mix.check()?;
        let server = &context.server;
        let texts = Texts::of(&server.client).await?;
        let before = (server.metrics().await, server.rss_mib()?);
        let (mix, seed) = (self.mix.clone(), context.seed);
        let calls = Arc::new(move |number| mix.call(&texts, seed, number));
        let until = Until::Elapsed(Duration::try_from_secs_f64(self.duration)?);
        let run = closed(&server.client, self.clients, until, calls).await;
        let mut report = Report {
            rows: Summary::by_kind("all", &run, context.limits),
            ..Report::default()
        };
        report.check_answered(&run.records);
        report.note_memory(before.1, server.rss_mib()?);
        report.note_work(&before.0, &server.metrics().await);
        Ok(report)
    }
}
