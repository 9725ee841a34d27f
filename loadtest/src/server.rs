//! The server's metrics and memory, as they are read from outside.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use serde::Serialize;
use tokio::task::JoinHandle;

use crate::client::Client;

/// The longest time until a server is idle after all clients have left.
const SETTLING: Duration = Duration::from_secs(10);

/// A scrape of `/metrics`: series with their labels, and values.
#[derive(Debug, Clone, Default)]
pub struct Metrics(Vec<(String, f64)>);

/// A Prometheus histogram: upper boundaries in rising order, and the number of observations at or below each.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Histogram(Vec<(f64, f64)>);

impl Histogram {
    /// Returns the observations since an earlier scrape of the same histogram.
    pub fn since(&self, before: &Self) -> Self {
        let earlier = |at: usize| before.0.get(at).map_or(0.0, |&(_, count)| count);
        let buckets = self.0.iter().enumerate();
        Self(
            buckets
                .map(|(at, &(edge, count))| (edge, count - earlier(at)))
                .collect(),
        )
    }

    pub fn count(&self) -> f64 {
        self.0.last().map_or(0.0, |&(_, count)| count)
    }

    /// Returns the first boundary that is at least a value.
    pub fn boundary(&self, value: f64) -> Option<f64> {
        let edges = self.0.iter().map(|&(edge, _)| edge);
        edges
            .filter(|edge| edge.is_finite())
            .find(|&edge| edge >= value)
    }

    /// Returns the number of observations above a boundary.
    pub fn above(&self, boundary: f64) -> f64 {
        let below = self.0.iter().find(|&&(edge, _)| edge >= boundary);
        self.count() - below.map_or(0.0, |&(_, count)| count)
    }
}

impl Metrics {
    /// Parses Prometheus' text format.
    pub fn parse(text: &str) -> Self {
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        let values = lines.filter_map(|line| {
            let (series, value) = line.rsplit_once(' ')?;
            Some((series.to_owned(), value.parse().ok()?))
        });
        Self(values.collect())
    }

    /// Returns the sum over all series of `selfjudge:NAME`, or 0 where there is none.
    pub fn get(&self, name: &str) -> f64 {
        self.of(name).map(|(_, value)| value).sum()
    }

    /// Returns the histogram `selfjudge:NAME` of one series, or an empty one.
    pub fn histogram(&self, name: &str) -> Histogram {
        let name = format!("{name}_bucket");
        let buckets = self.of(&name).filter_map(|(labels, value)| {
            let (_, edge) = labels.split_once("le=\"")?;
            Some((edge.split('"').next()?.parse().ok()?, value))
        });
        Histogram(buckets.collect())
    }

    /// Returns the labels and values of the series `selfjudge:NAME`.
    fn of<'a>(&'a self, name: &'a str) -> impl Iterator<Item = (&'a str, f64)> {
        self.0.iter().filter_map(move |(series, value)| {
            let rest = series.strip_prefix("selfjudge:")?.strip_prefix(name)?;
            (rest.is_empty() || rest.starts_with('{')).then_some((rest, *value))
        })
    }
}

/// One measurement of the server.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Sample {
    /// Seconds since the watch began.
    pub at: f64,
    pub rss_mib: Option<f64>,
    pub running: f64,
    pub waiting: f64,
    /// The share of the KV cache blocks that are held.
    pub kv_usage: f64,
}

impl Sample {
    fn is_idle(&self) -> bool {
        self.running == 0.0 && self.waiting == 0.0 && self.kv_usage == 0.0
    }
}

/// The server's work between two scrapes.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Work {
    pub prompt_tokens: f64,
    pub cached_tokens: f64,
    pub generated_tokens: f64,
    pub preemptions: f64,
    pub comparisons: f64,
    pub aborted: f64,
}

impl Work {
    pub fn between(before: &Metrics, after: &Metrics) -> Self {
        let more = |name: &str| after.get(name) - before.get(name);
        Self {
            prompt_tokens: more("prefix_cache_queries_total"),
            cached_tokens: more("prefix_cache_hits_total"),
            generated_tokens: more("generation_tokens_total"),
            preemptions: more("num_preemptions_total"),
            comparisons: more("judge_comparisons_total"),
            aborted: more("request_failure_total"),
        }
    }

    pub fn hit_ratio(&self) -> f64 {
        self.cached_tokens / self.prompt_tokens.max(1.0)
    }
}

/// A server under load.
#[derive(Debug, Clone)]
pub struct Server {
    pub client: Client,
    pid: Option<u32>,
}

impl Server {
    pub fn new(client: Client, pid: Option<u32>) -> Self {
        Self { client, pid }
    }

    /// Scrapes `/metrics`. The result is empty where there is no such route.
    pub async fn metrics(&self) -> Metrics {
        let text = self.client.get("/metrics").await.unwrap_or_default();
        Metrics::parse(&text)
    }

    /// Returns the resident memory in MiB, where the process is known.
    ///
    /// # Errors
    /// If the process has ended.
    pub fn rss_mib(&self) -> anyhow::Result<Option<f64>> {
        self.pid.map(|pid| memory_mib(pid, "VmRSS:")).transpose()
    }

    /// Returns the seconds of processor time of the process, where it is known.
    ///
    /// # Errors
    /// If the process has ended.
    pub fn cpu_seconds(&self) -> anyhow::Result<Option<f64>> {
        let Some(pid) = self.pid else {
            return Ok(None);
        };
        let path = format!("/proc/{pid}/stat");
        let stat = std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
        Ok(Some(
            cpu_seconds(&stat).with_context(|| format!("{path} has another format"))?,
        ))
    }

    async fn sample(&self, begun: Instant) -> anyhow::Result<Sample> {
        let metrics = Metrics::parse(&self.client.get("/metrics").await?);
        Ok(Sample {
            at: begun.elapsed().as_secs_f64(),
            rss_mib: self.rss_mib()?,
            running: metrics.get("num_requests_running"),
            waiting: metrics.get("num_requests_waiting"),
            kv_usage: metrics.get("kv_cache_usage_perc"),
        })
    }

    /// Waits until no request runs and no block is held, and returns the seconds until then.
    ///
    /// # Errors
    /// Reports what is still running or held after `SETTLING`, or why the server cannot be reached.
    pub async fn settle(&self) -> anyhow::Result<f64> {
        let begun = Instant::now();
        loop {
            let sample = self.sample(begun).await?;
            if sample.is_idle() {
                return Ok(sample.at);
            }
            anyhow::ensure!(
                begun.elapsed() < SETTLING,
                "after {:.0} s {} run, {} wait and {:.1} % of the blocks are held",
                sample.at,
                sample.running,
                sample.waiting,
                100.0 * sample.kv_usage
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Measures the server every `interval` until the watch is stopped.
    pub fn watch(&self, interval: Duration) -> Watch {
        let samples: Arc<Mutex<Vec<Sample>>> = Arc::default();
        let (server, into) = (self.clone(), Arc::clone(&samples));
        let task = tokio::spawn(async move {
            let begun = Instant::now();
            let mut ticks = tokio::time::interval(interval);
            loop {
                ticks.tick().await;
                // The series skips a measurement that fails.
                if let Ok(sample) = server.sample(begun).await {
                    into.lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .push(sample);
                }
            }
        });
        Watch { samples, task }
    }
}

/// Returns a line of `/proc/PID/status` in MiB: `VmRSS:`, resident memory, or `VmHWM:`, its peak.
///
/// # Errors
/// If the process has ended.
pub fn memory_mib(pid: u32, line: &str) -> anyhow::Result<f64> {
    let path = format!("/proc/{pid}/status");
    let status = std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    let found = status.lines().find_map(|found| found.strip_prefix(line));
    let kib = found.and_then(|rest| rest.trim().strip_suffix(" kB")?.parse::<f64>().ok());
    Ok(kib.context("the process has no memory")? / 1024.0)
}

/// Returns the user and system time of a line of `/proc/PID/stat`, in seconds.
fn cpu_seconds(stat: &str) -> Option<f64> {
    // Linux reports hundredths of a second to programs (USER_HZ), whatever its own clock rate is.
    const HERTZ: f64 = 100.0;
    // The name, in brackets, may hold any characters. The fields after it start with the third.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = |field: usize| fields.get(field - 3)?.parse::<f64>().ok();
    Some((ticks(14)? + ticks(15)?) / HERTZ)
}

/// A running watch of a server.
pub struct Watch {
    samples: Arc<Mutex<Vec<Sample>>>,
    task: JoinHandle<()>,
}

impl Watch {
    pub fn stop(self) -> Vec<Sample> {
        self.task.abort();
        std::mem::take(&mut *self.samples.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processor_time_is_user_and_system_time() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 900 0 0 0 1250 75 0 0 20 0 9 0 100 5 6";
        assert_eq!(cpu_seconds(stat), Some(13.25));
        assert_eq!(cpu_seconds("7 (a) S 1"), None);
    }

    #[test]
    fn series_of_one_name_are_added_up() {
        let metrics = Metrics::parse(
            "# HELP selfjudge:x_total Help.\n\
             selfjudge:x_total{model_name=\"a b\",reason=\"stop\"} 2\n\
             selfjudge:x_total{model_name=\"a b\",reason=\"length\"} 3\n\
             selfjudge:x_total_more 7\nselfjudge:part 0.25\n",
        );
        assert_eq!(metrics.get("x_total"), 5.0);
        assert_eq!(metrics.get("part"), 0.25);
        assert_eq!(metrics.get("absent"), 0.0);
    }

    #[test]
    fn a_histogram_tells_how_much_lies_above_a_boundary() {
        let scrape = |counts: [u32; 3]| {
            let [a, b, all] = counts;
            Metrics::parse(&format!(
                "selfjudge:gap_bucket{{model_name=\"m\",le=\"0.5\"}} {a}\n\
                 selfjudge:gap_bucket{{model_name=\"m\",le=\"1\"}} {b}\n\
                 selfjudge:gap_bucket{{model_name=\"m\",le=\"+Inf\"}} {all}\n\
                 selfjudge:gap_count {all}\n"
            ))
            .histogram("gap")
        };
        let gaps = scrape([4, 7, 9]).since(&scrape([1, 2, 2]));
        assert_eq!(
            (gaps.count(), gaps.above(0.5), gaps.above(1.0)),
            (7.0, 4.0, 2.0)
        );
        assert_eq!((gaps.boundary(0.6), gaps.boundary(2.0)), (Some(1.0), None));
        assert_eq!(
            scrape([1, 1, 1]),
            scrape([1, 1, 1]).since(&Histogram::default())
        );
        assert_eq!(Metrics::parse("").histogram("gap").count(), 0.0);
    }
}
