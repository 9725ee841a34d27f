//! A server that is killed at random times under logged traffic, again and again, and must lose nothing.
//!
//! After each restart every acknowledged record must be there. Every pointer must name one generation, and must be where its last
//! event moved it. The chain of audit events must verify.

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

/// The longest time until a server is ready again.
const PATIENCE: Duration = Duration::from_secs(120);

/// The time in which answers arrive that the server had sent before it was killed.
const ON_ITS_WAY: Duration = Duration::from_millis(100);

/// The number of older records that are looked up after each restart, beside all of the last round. At the end all are looked up.
const LOOKED_UP_AGAIN: usize = 50;

/// The number of violations that are reported one by one.
const TOLD: usize = 10;

#[derive(Debug, Args)]
pub struct Kills {
    /// The URL of the operators' listener, with plain HTTP.
    #[arg(long, default_value = "http://127.0.0.1:8081")]
    admin_url: String,
    /// The number of times that the server is killed.
    #[arg(long, default_value_t = 200)]
    rounds: usize,
    /// Seconds after the server is ready within which it is killed.
    #[arg(long, default_value_t = 2.0)]
    within: f64,
    /// Seconds within which the server has to be ready again, at the 99th percentile.
    #[arg(long, default_value_t = 2.0)]
    ready_within: f64,
    /// The number of clients that send logged calls.
    #[arg(long, default_value_t = 8)]
    clients: usize,
    /// The file that receives the server's log.
    #[arg(long)]
    server_log: Option<PathBuf>,
    /// The server's command with its arguments, after `--`: with learning on, a data directory, and the addresses of --url and
    /// --admin-url.
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

/// The records that the server acknowledged.
#[derive(Debug, Default)]
struct Ledger {
    /// Records since the last kill, which were not looked up yet.
    fresh: Vec<String>,
    /// Records that were found at least once.
    found: Vec<String>,
    lost: Vec<String>,
    /// The number of answers that name no record.
    unlogged: usize,
    lookups: usize,
}

/// A server process that is killed when it is dropped.
struct Process(Child);

impl Process {
    /// Kills the process: no handler runs, and nothing is flushed.
    fn kill(mut self) -> anyhow::Result<()> {
        self.0.kill()?;
        self.0.wait()?;
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // The process may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Kills {
    /// Runs all rounds and returns the report.
    ///
    /// # Errors
    /// If the server cannot be started, or is not ready in time.
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
                    "round {round}: {last} audit events, and {events} before"
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
            // Answers that the server sent before the kill are acknowledged too.
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
            let violation = format!("{} answers did not name a record", ledger.unlogged);
            report.violations.push(violation);
        }
        Ok(report)
    }

    /// Starts the server and waits until it is ready. Returns the process and the seconds until it was ready.
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
            anyhow::ensure!(
                begun.elapsed() < PATIENCE,
                "the server is not ready in time"
            );
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
                    // A call without an answer is not acknowledged.
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

/// An answer, as the record that it names.
struct Heard(Option<String>);

/// Clients that send one call after the other until they are stopped.
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

    /// Looks up the new records and some of the older ones, or all records.
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

    /// Looks up a record. Returns the status where it is not 200.
    async fn missed(&mut self, client: &Client, id: &str) -> anyhow::Result<Option<u16>> {
        self.lookups += 1;
        let status = client.status(&format!("/records/{id}")).await?;
        Ok((status != 200).then_some(status))
    }
}
