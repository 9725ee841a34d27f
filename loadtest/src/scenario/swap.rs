//! Weights that are swapped again and again under load: nothing fails, no answer is of two versions, nobody waits.
//!
//! On a processor an answer depends on its prompt, its seed and its weights alone, not on what else runs. So what each version answers
//! to each prompt is asked once, and under load every answer must be, token by token, that of the version it names.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::Args;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::Context;
use crate::admin::Admin;
use crate::client::Client;
use crate::stats::Spread;
use crate::summary::{OwnTable, Report};
use crate::workload::questions;

#[derive(Debug, Args)]
pub struct Swap {
    /// The admin listener; plain HTTP.
    #[arg(long, default_value = "http://127.0.0.1:8081")]
    admin_url: String,
    /// Clients that read streams, one answer after the other.
    #[arg(long, default_value_t = 8)]
    clients: usize,
    /// Different prompts.
    #[arg(long, default_value_t = 32)]
    prompts: usize,
    #[arg(long, default_value_t = 64)]
    output_tokens: usize,
    /// Seconds.
    #[arg(long, default_value_t = 30.0)]
    duration: f64,
    /// Seconds between one swap and the next.
    #[arg(long, default_value_t = 0.5)]
    every: f64,
}

/// The tokens that each version answers to each prompt.
type Expected = HashMap<(String, usize), Vec<u64>>;

/// An answer under load.
struct Heard {
    prompt: usize,
    /// As every event names it; the first that is another is the second.
    versions: Vec<String>,
    tokens: Vec<u64>,
    /// When its tokens came.
    moments: Vec<Instant>,
}

impl Swap {
    /// # Errors
    /// If the server has no generation that ever served, or cannot be seen.
    pub async fn run(&self, context: &Context) -> anyhow::Result<Report> {
        let client = &context.server.client;
        let admin = Admin::new(Client::new(&self.admin_url, Duration::from_secs(60))?);
        admin.pause().await?;
        let (before, newest) = admin.policy().await?;
        let other = newest.context("the server has no generation that was ever promoted")?;
        let prompts = Arc::new(questions(context.seed, self.prompts));
        let mut expected = Expected::new();
        let mut at = before.clone();
        for version in ["base", other.as_str()] {
            move_to(&admin, &mut at, version).await?;
            for (number, prompt) in prompts.iter().enumerate() {
                let heard = hear(client, number, prompt, self.output_tokens).await?;
                anyhow::ensure!(
                    heard.versions == [version],
                    "{version} serves, and an answer is of {:?}",
                    heard.versions
                );
                expected.insert((version.to_owned(), number), heard.tokens);
            }
        }
        let of = |version: &str, number| &expected[&(version.to_owned(), number)];
        let told_apart = (0..prompts.len()).filter(|&n| of("base", n) != of(&other, n));
        let told_apart = told_apart.count();

        let over = Arc::new(AtomicBool::new(false));
        let mut readers = self.readers(client, &prompts, &over);
        let begun = Instant::now();
        let lasting = Duration::try_from_secs_f64(self.duration)?;
        let mut swaps = Vec::new();
        while begun.elapsed() < lasting {
            tokio::time::sleep(Duration::try_from_secs_f64(self.every)?).await;
            let to = if at == "base" { other.as_str() } else { "base" };
            let sent = Instant::now();
            move_to(&admin, &mut at, to).await?;
            swaps.push((sent, Instant::now()));
        }
        over.store(true, Ordering::Relaxed);
        let (mut heard, mut report) = (Vec::new(), Report::default());
        while let Some(reader) = readers.join_next().await {
            for answer in reader? {
                match answer {
                    Ok(answer) => heard.push(answer),
                    Err(error) => report.violations.push(format!("an answer failed: {error}")),
                }
            }
        }
        move_to(&admin, &mut at, &before).await?;

        report.notes.push(format!(
            "{} swaps between base and {other} under {} clients, {} answers; {told_apart} of {} prompts tell the versions apart",
            swaps.len(),
            self.clients,
            heard.len(),
            prompts.len(),
        ));
        if told_apart == 0 {
            report
                .violations
                .push("both versions answer alike: nothing was tried".into());
        }
        check_versions(&mut report, &heard, &expected);
        check_stalls(&mut report, &heard, &swaps);
        Ok(report)
    }

    fn readers(
        &self,
        client: &Client,
        prompts: &Arc<Vec<String>>,
        over: &Arc<AtomicBool>,
    ) -> JoinSet<Vec<anyhow::Result<Heard>>> {
        let (next, tokens) = (Arc::new(AtomicUsize::new(0)), self.output_tokens);
        let mut readers = JoinSet::new();
        for _ in 0..self.clients {
            let (client, prompts) = (client.clone(), Arc::clone(prompts));
            let (next, over) = (Arc::clone(&next), Arc::clone(over));
            readers.spawn(async move {
                let mut answers = Vec::new();
                while !over.load(Ordering::Relaxed) {
                    let number = next.fetch_add(1, Ordering::Relaxed) % prompts.len();
                    answers.push(hear(&client, number, &prompts[number], tokens).await);
                }
                answers
            });
        }
        readers
    }
}

async fn move_to(admin: &Admin, at: &mut String, to: &str) -> anyhow::Result<()> {
    if at != to {
        admin.move_policy(at, to).await?;
        to.clone_into(at);
    }
    Ok(())
}

/// Asks for an answer of a fixed length, drawn with a seed of its prompt's own, and reads its stream.
async fn hear(
    client: &Client,
    number: usize,
    prompt: &str,
    tokens: usize,
) -> anyhow::Result<Heard> {
    let body = json!({
        "prompt": prompt, "max_tokens": tokens, "seed": number, "ignore_eos": true, "stream": true, "log": {"retain": false},
    });
    let mut heard = Heard {
        prompt: number,
        versions: Vec::new(),
        tokens: Vec::new(),
        moments: Vec::new(),
    };
    for (moment, event) in client.events("/generate", &body).await? {
        let version = event["version"]
            .as_str()
            .context("an event names no version")?;
        if heard.versions.last().is_none_or(|last| last != version) {
            heard.versions.push(version.to_owned());
        }
        let ids: Vec<u64> = event["outputs"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|output| output["token_ids"].as_array())
            .flatten()
            .filter_map(Value::as_u64)
            .collect();
        if !ids.is_empty() {
            heard.tokens.extend(ids);
            heard.moments.push(moment);
        }
    }
    Ok(heard)
}

/// Every answer is of one version, and what that version answers.
fn check_versions(report: &mut Report, heard: &[Heard], expected: &Expected) {
    let mixed = heard.iter().filter(|answer| match &answer.versions[..] {
        [version] => expected.get(&(version.clone(), answer.prompt)) != Some(&answer.tokens),
        _ => true,
    });
    let mixed = mixed.count();
    if mixed > 0 {
        let violation = format!("{mixed} answers are not those of the one version that they name");
        report.violations.push(violation);
    }
    let mut versions: HashMap<&str, usize> = HashMap::new();
    for version in heard.iter().flat_map(|answer| &answer.versions) {
        *versions.entry(version).or_default() += 1;
    }
    if versions.len() < 2 {
        report.violations.push(format!(
            "all answers are of {versions:?}: nothing was tried"
        ));
    }
}

/// What lies between two tokens of a stream while the weights are swapped, beside what lies between them otherwise. A swap may cost
/// one decode step.
fn check_stalls(report: &mut Report, heard: &[Heard], swaps: &[(Instant, Instant)]) {
    let (mut across, mut otherwise) = (Vec::new(), Vec::new());
    for pair in heard.iter().flat_map(|answer| answer.moments.windows(2)) {
        let gap = (pair[1] - pair[0]).as_secs_f64();
        let meets = |&(sent, done): &(Instant, Instant)| sent <= pair[1] && pair[0] <= done;
        match swaps.iter().any(meets) {
            true => across.push(gap),
            false => otherwise.push(gap),
        }
    }
    let longest = |gaps: &[f64]| gaps.iter().copied().fold(0.0, f64::max);
    let longest = [longest(&across), longest(&otherwise)];
    let counts = [across.len(), otherwise.len()];
    let (Some(swapping), Some(usual)) = (Spread::of(across), Spread::of(otherwise)) else {
        report
            .violations
            .push("no token came while weights were swapped: nothing was tried".into());
        return;
    };
    let ms = |seconds: f64| format!("{:.2}", 1e3 * seconds);
    let rows = [("while swapped", swapping, 0), ("otherwise", usual, 1)];
    report.table = Some(OwnTable {
        header: vec![
            "between two tokens, ms",
            "gaps",
            "p50",
            "p90",
            "p99",
            "longest",
        ],
        rows: rows
            .into_iter()
            .map(|(label, Spread { p50, p90, p99 }, at)| {
                let numbers = [p50, p90, p99, longest[at]].map(ms);
                let mut row = vec![label.to_owned(), counts[at].to_string()];
                row.extend(numbers);
                row
            })
            .collect(),
    });
    if swapping.p99 > usual.p99 + usual.p50 {
        report.violations.push(format!(
            "at the 99th percentile a swap costs {} ms, and a step takes {} ms",
            ms(swapping.p99 - usual.p99),
            ms(usual.p50)
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(versions: &[&str], tokens: &[u64]) -> Heard {
        Heard {
            prompt: 0,
            versions: versions.iter().map(|&version| version.to_owned()).collect(),
            tokens: tokens.to_vec(),
            moments: Vec::new(),
        }
    }

    #[test]
    fn an_answer_is_that_of_the_version_it_names() {
        let expected: Expected = [
            (("base".to_owned(), 0), vec![1, 2]),
            (("new".to_owned(), 0), vec![1, 3]),
        ]
        .into();
        let violations = |answers: &[Heard]| {
            let mut report = Report::default();
            check_versions(&mut report, answers, &expected);
            report.violations.len()
        };
        let (base, new) = (heard(&["base"], &[1, 2]), heard(&["new"], &[1, 3]));
        assert_eq!(violations(&[base, new]), 0);
        let (base, mixed) = (heard(&["base"], &[1, 2]), heard(&["new"], &[1, 2]));
        assert_eq!(violations(&[base, mixed]), 1, "the other's tokens");
        let both = heard(&["base", "new"], &[1, 2]);
        assert_eq!(violations(&[both]), 1, "named twice");
        assert_eq!(
            violations(&[heard(&["base"], &[1, 2])]),
            1,
            "nothing was swapped"
        );
    }

    #[test]
    fn a_stall_is_seen_where_weights_are_swapped() {
        let zero = Instant::now();
        let at = |ms: u64| zero + Duration::from_millis(ms);
        let stream = |moments: &[u64]| Heard {
            moments: moments.iter().map(|&ms| at(ms)).collect(),
            ..heard(&["base"], &[])
        };
        let swaps = [(at(31), at(32))];
        let violations = |heard: &[Heard]| {
            let mut report = Report::default();
            check_stalls(&mut report, heard, &swaps);
            report.violations.len()
        };
        assert_eq!(violations(&[stream(&[0, 10, 20, 30, 40, 50, 60])]), 0);
        assert_eq!(
            violations(&[stream(&[0, 10, 20, 30, 40]), stream(&[0, 10, 25, 49])]),
            0,
            "one step"
        );
        assert_eq!(violations(&[stream(&[0, 10, 20, 30, 55, 65])]), 1);
        assert_eq!(violations(&[stream(&[40, 50])]), 1, "nothing was tried");
    }
}
