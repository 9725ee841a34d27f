//! Weights that are swapped again and again under load. No request may fail, no answer may mix two versions, and no stream may
//! stall (`stalls`).
//!
//! On a processor an answer depends only on its prompt, its seed and its weights, not on other requests. So the answer of each
//! version to each prompt is recorded first. Under load every answer must equal, token by token, that of the version that it
//! names.

mod stalls;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::Args;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use self::stalls::{Call, Phase};
use super::Context;
use crate::admin::Admin;
use crate::client::Client;
use crate::summary::Report;
use crate::workload::questions;

#[derive(Debug, Args)]
pub struct Swap {
    /// The URL of the operators' listener, with plain HTTP.
    #[arg(long, default_value = "http://127.0.0.1:8081")]
    admin_url: String,
    /// The number of clients that read streams, one answer after the other.
    #[arg(long, default_value_t = 8)]
    clients: usize,
    /// The number of different prompts.
    #[arg(long, default_value_t = 32)]
    prompts: usize,
    /// The length of an answer in tokens.
    #[arg(long, default_value_t = 64)]
    output_tokens: usize,
    /// Seconds of each of two parts: first with an operator who reads, then with an operator who swaps.
    #[arg(long, default_value_t = 20.0)]
    duration: f64,
    /// Seconds between two calls of the operator.
    #[arg(long, default_value_t = 0.02)]
    every: f64,
}

/// The tokens that each version answers to each prompt.
type Expected = HashMap<(String, usize), Vec<u64>>;

/// An answer under load.
struct Heard {
    prompt: usize,
    /// The versions that its events name, without repetition. A second one is a fault.
    versions: Vec<String>,
    tokens: Vec<u64>,
    /// The arrival times of its tokens.
    moments: Vec<Instant>,
}

impl Swap {
    /// Runs both parts and returns the report.
    ///
    /// # Errors
    /// If the server cannot be reached, or has no generation that ever served.
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
                    "{version} serves, and an answer names {:?}",
                    heard.versions
                );
                expected.insert((version.to_owned(), number), heard.tokens);
            }
        }
        let of = |version: &str, number| &expected[&(version.to_owned(), number)];
        let told_apart = (0..prompts.len()).filter(|&n| of("base", n) != of(&other, n));
        let told_apart = told_apart.count();

        let mut load = Load {
            context,
            admin: &admin,
            prompts: &prompts,
            other: &other,
            at,
        };
        let usual = self.under_load(&mut load, Calls::Read).await?;
        let swapped = self.under_load(&mut load, Calls::Swap).await?;
        move_to(&admin, &mut load.at, &before).await?;

        let mut report = Report::default();
        report.notes.push(format!(
            "{} swaps between base and {other} under {} clients, {} answers; {told_apart} of {} prompts tell the versions apart",
            swapped.calls.len(),
            self.clients,
            swapped.heard.len() + usual.heard.len(),
            prompts.len(),
        ));
        if told_apart == 0 {
            report
                .violations
                .push("both versions answer alike: nothing was tested".into());
        }
        let failures = usual.failures.iter().chain(&swapped.failures);
        report.violations.extend(failures.cloned());
        check_versions(&mut report, &usual.heard, &swapped.heard, &expected);
        stalls::check(&mut report, self.clients, &usual, &swapped);
        Ok(report)
    }

    /// Runs clients that read streams while the operator calls again and again.
    async fn under_load(&self, load: &mut Load<'_>, calls: Calls) -> anyhow::Result<Phase> {
        let server = &load.context.server;
        let over = Arc::new(AtomicBool::new(false));
        let mut readers = self.readers(&server.client, load.prompts, &over);
        let before = server.metrics().await.histogram(stalls::GAPS);
        let lasting = Duration::try_from_secs_f64(self.duration)?;
        let pause = Duration::try_from_secs_f64(self.every)?;
        let mut phase = Phase::default();
        let begun = Instant::now();
        while begun.elapsed() < lasting {
            tokio::time::sleep(pause).await;
            let to = match calls {
                Calls::Swap if load.at == "base" => load.other,
                Calls::Swap => "base",
                Calls::Read => "",
            };
            let sent = Instant::now();
            match calls {
                Calls::Swap => move_to(load.admin, &mut load.at, to).await?,
                Calls::Read => drop(load.admin.policy().await?),
            }
            phase.calls.push(Call {
                span: (sent, Instant::now()),
                to: to.to_owned(),
            });
        }
        over.store(true, Ordering::Relaxed);
        while let Some(reader) = readers.join_next().await {
            for answer in reader? {
                match answer {
                    Ok(answer) => phase.heard.push(answer),
                    Err(error) => phase.failures.push(format!("an answer failed: {error}")),
                }
            }
        }
        phase.gaps = server
            .metrics()
            .await
            .histogram(stalls::GAPS)
            .since(&before);
        Ok(phase)
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

/// The calls of the operator under load.
#[derive(Debug, Clone, Copy)]
enum Calls {
    Read,
    Swap,
}

/// The parameters of both parts.
struct Load<'a> {
    context: &'a Context,
    admin: &'a Admin,
    prompts: &'a Arc<Vec<String>>,
    /// The version that is swapped with `base`.
    other: &'a str,
    /// The version that serves now.
    at: String,
}

async fn move_to(admin: &Admin, at: &mut String, to: &str) -> anyhow::Result<()> {
    if at != to {
        admin.move_policy(at, to).await?;
        to.clone_into(at);
    }
    Ok(())
}

/// Asks for an answer of a fixed length, with the prompt's own seed, and reads its stream.
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

/// Checks that every answer names one version and has the tokens of that version.
fn check_versions(report: &mut Report, usual: &[Heard], swapped: &[Heard], expected: &Expected) {
    let mixed = usual
        .iter()
        .chain(swapped)
        .filter(|answer| match &answer.versions[..] {
            [version] => expected.get(&(version.clone(), answer.prompt)) != Some(&answer.tokens),
            _ => true,
        });
    let mixed = mixed.count();
    if mixed > 0 {
        let violation = format!(
            "{mixed} answers name two versions, or differ from the answer of their version"
        );
        report.violations.push(violation);
    }
    let mut versions: HashMap<&str, usize> = HashMap::new();
    for version in swapped.iter().flat_map(|answer| &answer.versions) {
        *versions.entry(version).or_default() += 1;
    }
    if versions.len() < 2 {
        report.violations.push(format!(
            "all answers are of {versions:?}: nothing was tested"
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
            check_versions(&mut report, &[], answers, &expected);
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
}
