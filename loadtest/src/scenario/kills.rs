//! A server that is killed at random moments under logged traffic, again and again, and loses nothing.
//!
//! After each restart every record that was acknowledged must be there, every pointer must name one generation and be where its last
//! event moved it, and the chain of audit events must verify.

use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::Args;
use rand::RngExt;
use rand::seq::IndexedRandom;
use rand_chacha::ChaCha8Rng;
use tokio::task::JoinSet;

use super::Context;
use crate::admin::Admin;
use crate::call::Call;
use crate::client::Client;
use crate::stats::Spread;
use crate::summary::Report;
use crate::workload::{logged, logged_pair, questions, rng};

/// How long a server may take to be ready again.
const PATIENCE: Duration = Duration::from_secs(120);

/// How long answers are listened for that the server had sent before it was killed.
const ON_ITS_WAY: Duration = Duration::from_millis(100);

/// Older records that are looked up after each restart, beside all of the last round; all of them are at the end.
const LOOKED_UP_AGAIN: usize = 50;

/// Violations that are told one by one.
const TOLD: usize = 10;

#[derive(Debug, Args)]
pub struct Kills {
    /// The admin listener; plain HTTP.
    #[arg(long, default_value = "http://127.0.0.1:8081")]
    admin_url: String,
    /// Times the server is killed.
    #[arg(long, default_value_t = 200)]
    rounds: usize,
    /// Seconds after it is ready within which it is killed.
    #[arg(long, default_value_t = 2.0)]
    within: f64,
    /// Seconds within which it has to be ready again, at the 99th percentile.
    #[arg(long, default_value_t = 2.0)]
    ready_within: f64,
    #[arg(long, default_value_t = 8)]
    clients: usize,
    /// Where the server's log goes.
    #[arg(long)]
    server_log: Option<PathBuf>,
    /// The server's command and its arguments, after `--`: with learning on, a data directory, and the addresses of --url and
    /// --admin-url.
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

/// What has been acknowledged.
#[derive(Debug, Default)]
struct Ledger {
    /// Since the last kill, not looked up yet.
    fresh: Vec<String>,
    /// Found at least once.
    found: Vec<String>,
    lost: Vec<String>,
    /// Answers without a record's name.
    unlogged: usize,
    lookups: usize,
}

/// A server that is gone when this is.
struct Process(Child);

impl Process {
    /// Kills it: no handler runs, nothing is flushed.
    fn kill(mut self) -> anyhow::Result<()> {
        self.0.kill()?;
        self.0.wait()?;
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have gone already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Kills {
    /// # Errors
    /// If the server cannot be started, or does not come back.
    pub async fn run(&self, context: &Context) -> anyhow::Result<Report> {
        let client = &context.server.client;
        let admin = Admin::new(Client::new(&self.admin_url, Duration::from_secs(60))?);
        let mut rng = rng(context.seed, 1);
        let (mut report, mut ledger) = (Report::default(), Ledger::default());
        let (mut recoveries, mut events) = (Vec::new(), 0);
        let mut wrong = Vec::new();
        for round in 0..=self.rounds {
            let (process, ready) = self.start(client).await?;
            recoveries.push(ready);
            let last = round == self.rounds;
            ledger.look_up(client, &mut rng, last).await?;
            let fault = admin.pointer_fault().await?;
            wrong.extend(fault.map(|fault| format!("round {round}: {fault}")));
            let trail = admin.trail().await?;
            if trail.last < events {
                let last = trail.last;
                wrong.push(format!(
                    "round {round}: {last} events, where there were {events}"
                ));
            }
            events = trail.last;
            if !trail.verifies {
                wrong.push(format!("round {round}: the audit trail does not verify"));
            }
            if last {
                process.kill()?;
                break;
            }
            let moment = Duration::try_from_secs_f64(rng.random_range(0.0..self.within))?;
            let traffic = self.traffic(client, context.seed, round as u64);
            tokio::time::sleep(moment).await;
            process.kill()?;
            // What was on its way was acknowledged too.
            tokio::time::sleep(ON_ITS_WAY).await;
            ledger.take(traffic.stop());
        }
        report.notes.push(format!(
            "{} kills, {} records acknowledged, {} lookups, {} lost; {events} audit events",
            self.rounds,
            ledger.found.len() + ledger.lost.len(),
            ledger.lookups,
            ledger.lost.len()
        ));
        if let Some(spread) = Spread::of(recoveries) {
            report.notes.push(format!(
                "ready again after {:.2} s, at the 99th percentile {:.2} s",
                spread.p50, spread.p99
            ));
            if spread.p99 > self.ready_within {
                let violation = format!("not ready within {} s", self.ready_within);
                report.violations.push(violation);
            }
        }
        let lost = ledger.lost.iter().map(|id| format!("record {id} is lost"));
        let all: Vec<String> = lost.chain(wrong).collect();
        report.violations.extend(all.iter().take(TOLD).cloned());
        if all.len() > TOLD {
            report
                .violations
                .push(format!("and {} more", all.len() - TOLD));
        }
        if ledger.found.is_empty() {
            report
                .violations
                .push("no record was acknowledged: nothing was tried".into());
        }
        if ledger.unlogged > 0 {
            let violation = format!("{} answers name no record", ledger.unlogged);
            report.violations.push(violation);
        }
        Ok(report)
    }

    /// Starts the server and waits until it is ready; the seconds that took.
    async fn start(&self, client: &Client) -> anyhow::Result<(Process, f64)> {
        let (program, arguments) = self.command.split_first().context("no command is given")?;
        let log = match &self.server_log {
            Some(path) => Stdio::from(
                File::options()
                    .create(true)
                    .append(true)
                    .open(path)
                    .with_context(|| format!("cannot write {}", path.display()))?,
            ),
            None => Stdio::null(),
        };
        let begun = Instant::now();
        let child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot start {program}"))?;
        let mut process = Process(child);
        loop {
            if let Some(status) = process.0.try_wait()? {
                anyhow::bail!("the server does not start: {status}; see --server-log");
            }
            if client.get("/ready").await.is_ok() {
                return Ok((process, begun.elapsed().as_secs_f64()));
            }
            anyhow::ensure!(begun.elapsed() < PATIENCE, "the server does not get ready");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn traffic(&self, client: &Client, seed: u64, round: u64) -> Traffic {
        let heard: Arc<Mutex<Vec<Heard>>> = Arc::default();
        let mut tasks = JoinSet::new();
        for number in 0..self.clients as u64 {
            let (client, heard) = (client.clone(), Arc::clone(&heard));
            let seed = seed ^ (round << 32) ^ (number << 16);
            tasks.spawn(async move {
                let prompts = questions(seed, 64);
                for at in (0..prompts.len()).cycle() {
                    let Call { path, body, .. } = match at % 4 {
                        3 => logged_pair(&prompts[at]),
                        _ => logged(&prompts[at], seed.wrapping_add(at as u64)),
                    };
                    // Whoever hears nothing has been promised nothing.
                    let Ok(answer) = client.post(path, &body).await else {
                        tokio::time::sleep(Duration::from_millis(5)).await;
                        continue;
                    };
                    let record = answer["record_id"].as_str().map(str::to_owned);
                    let mut heard = heard.lock().unwrap_or_else(PoisonError::into_inner);
                    heard.push(Heard(record));
                }
            });
        }
        Traffic { heard, tasks }
    }
}

/// An answer, and the record it names.
struct Heard(Option<String>);

/// Clients that are answered as long as there is a server.
struct Traffic {
    heard: Arc<Mutex<Vec<Heard>>>,
    tasks: JoinSet<()>,
}

impl Traffic {
    fn stop(mut self) -> Vec<Heard> {
        self.tasks.abort_all();
        std::mem::take(&mut *self.heard.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Ledger {
    fn take(&mut self, heard: Vec<Heard>) {
        for Heard(record) in heard {
            match record {
                Some(id) => self.fresh.push(id),
                None => self.unlogged += 1,
            }
        }
    }

    /// Looks up what is new and some of what is old, or everything.
    async fn look_up(
        &mut self,
        client: &Client,
        rng: &mut ChaCha8Rng,
        everything: bool,
    ) -> anyhow::Result<()> {
        let again: Vec<String> = match everything {
            true => self.found.clone(),
            false => self.found.sample(rng, LOOKED_UP_AGAIN).cloned().collect(),
        };
        for id in again {
            if let Some(status) = self.missed(client, &id).await? {
                self.found.retain(|found| *found != id);
                self.lost.push(format!("{id} (then {status})"));
            }
        }
        for id in std::mem::take(&mut self.fresh) {
            match self.missed(client, &id).await? {
                None => self.found.push(id),
                Some(status) => self.lost.push(format!("{id} ({status})")),
            }
        }
        Ok(())
    }

    /// The status that is not 200, if the record is not there.
    async fn missed(&mut self, client: &Client, id: &str) -> anyhow::Result<Option<u16>> {
        self.lookups += 1;
        let status = client.status(&format!("/records/{id}")).await?;
        Ok((status != 200).then_some(status))
    }
}
