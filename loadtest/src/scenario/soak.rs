//! A long mixed load with slow readers and clients that leave. Memory must stay flat, and at the end the server must be idle.

use std::sync::Arc;
use std::time::Duration;

use clap::Args;

use super::Context;
use crate::drive::{Until, closed};
use crate::server::Sample;
use crate::summary::{Report, Summary};
use crate::workload::{Mix, Texts};

#[derive(Debug, Args)]
pub struct Soak {
    #[command(flatten)]
    mix: Mix,
    /// The number of clients.
    #[arg(long, default_value_t = 16)]
    clients: usize,
    /// The duration in seconds.
    #[arg(long, default_value_t = 600.0)]
    duration: f64,
    /// MiB by which the mean memory of the last quarter may exceed that of the second.
    #[arg(long, default_value_t = 16.0)]
    growth: f64,
}

impl Soak {
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
        let calls = Arc::new(move |number| mix.unruly_call(&texts, seed, number));
        let until = Until::Elapsed(Duration::try_from_secs_f64(self.duration)?);
        let watch = server.watch(Duration::from_secs(2));
        let run = closed(&server.client, self.clients, until, calls).await;
        let settled = server.settle().await;
        let mut report = Report {
            rows: Summary::by_kind("all", &run, context.limits),
            samples: watch.stop(),
            ..Report::default()
        };
        report.check_answered(&run.records);
        report.check_idle(settled);
        let quarters = quarters(&report.samples);
        if let Some(means) = quarters {
            let [first, second, third, last] = means.map(|mean| format!("{mean:.1}"));
            report.notes.push(format!(
                "mean resident memory of the quarters {first}, {second}, {third}, {last} MiB"
            ));
            if means[3] > means[1] + self.growth {
                let violation = format!("memory grew by {:.1} MiB", means[3] - means[1]);
                report.violations.push(violation);
            }
        }
        report.note_memory(before.1, server.rss_mib()?);
        report.note_work(&before.0, &server.metrics().await);
        Ok(report)
    }
}

/// Returns the mean memory of each quarter of the samples.
fn quarters(samples: &[Sample]) -> Option<[f64; 4]> {
    let rss: Vec<f64> = samples.iter().filter_map(|sample| sample.rss_mib).collect();
    let size = rss.len() / 4;
    (size > 0).then(|| {
        std::array::from_fn(|quarter| {
            let part = &rss[quarter * size..(quarter + 1) * size];
            part.iter().sum::<f64>() / size as f64
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quarters_are_means() {
        let sample = |rss| Sample {
            rss_mib: Some(rss),
            ..Sample::default()
        };
        let samples: Vec<Sample> = [1.0, 3.0, 5.0, 5.0, 7.0, 9.0, 2.0, 2.0, 99.0]
            .map(sample)
            .into();
        assert_eq!(quarters(&samples), Some([2.0, 5.0, 8.0, 2.0]));
        assert_eq!(quarters(&samples[..3]), None);
    }
}
