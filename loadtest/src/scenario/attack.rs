//! A hostile caller beside an ordinary one. Each attack runs on a new server, on which the ordinary caller is measured alone
//! first.
//!
//! The two callers are two API keys. The bounds are on the ordinary caller and the server: its tokens a second against those
//! without an attack, the time until each of its answers begins, the time of `/health`, and the server's peak memory.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::Args;
use serde_json::json;

use super::Context;
use crate::attack::{ATTACKS, Attack, Attacker, Heard, Size};
use crate::call::{Call, Outcome, Reading, Record};
use crate::client::Client;
use crate::drive::{Run, Until, closed};
use crate::process::Process;
use crate::server::memory_mib;
use crate::stats::Spread;
use crate::summary::{OwnTable, Report, Summary};
use crate::workload::{completion, ids, rng};

const ATTACKERS_KEY: &str = "attacker-attacker-attacker-attack";
const OTHERS_KEY: &str = "ordinary-ordinary-ordinary-ordina";

/// The interval between two requests of `/health`.
const HEALTH_EVERY: Duration = Duration::from_millis(50);

/// The timeout of a request of `/health`. A failed request counts as this long.
const HEALTH_AT_MOST: Duration = Duration::from_secs(10);

/// The time in which a server has to answer again after the attack.
const RECOVERY: Duration = Duration::from_secs(30);

#[derive(Debug, Args)]
pub struct Attacks {
    /// Runs only attacks whose name or finding contains one of these. `together` is all attacks at once.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Seconds in which the ordinary caller is measured alone.
    #[arg(long, default_value_t = 8.0)]
    quiet: f64,
    /// Seconds of each attack.
    #[arg(long, default_value_t = 12.0)]
    duration: f64,
    /// The scale of the attacks. 1 is the size that was reported.
    #[arg(long, default_value_t = 1.0)]
    size: f64,
    /// The number of clients of the ordinary caller.
    #[arg(long, default_value_t = 2)]
    clients: usize,
    /// The share of its tokens a second without an attack that the ordinary caller has to keep.
    #[arg(long, default_value_t = 1.0 / 3.0)]
    share: f64,
    /// Seconds within which each of its answers has to begin.
    #[arg(long, default_value_t = 1.0)]
    begins_within: f64,
    /// Seconds within which `/health` has to answer, at the 99th percentile.
    #[arg(long, default_value_t = 0.1)]
    health_within: f64,
    /// The bound of the server's peak memory in MiB.
    #[arg(long, default_value_t = 1536.0)]
    memory: f64,
    /// The file that receives the servers' logs.
    #[arg(long)]
    server_log: Option<PathBuf>,
    /// The server's command with its arguments, after `--`. Addresses, keys and the data directory are added.
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

/// The measurements of an attack.
struct Measured {
    quiet: Run,
    attacked: Run,
    /// Seconds of each request of `/health`.
    health: Vec<f64>,
    heard: Heard,
    /// The exit status, if the process ended.
    ended: Option<String>,
    recovered: bool,
    peak_mib: Option<f64>,
    disk_mib: f64,
}

/// The numbers that have bounds, and the violations.
struct Verdict {
    tokens_per_second: f64,
    share: f64,
    begins: f64,
    health: f64,
    violations: Vec<String>,
}

impl Attacks {
    /// Runs the chosen attacks and returns the report.
    ///
    /// # Errors
    /// If a server cannot be started.
    pub async fn run(&self, context: &Context) -> anyhow::Result<Report> {
        let mut report = Report::default();
        let mut table = OwnTable {
            header: vec![
                "attack",
                "finding",
                "tok/s",
                "% of quiet",
                "begins ms",
                "not 200",
                "/health p99 ms",
                "peak MiB",
                "disk MiB",
                "attacker heard",
                "kept",
            ],
            rows: Vec::new(),
        };
        let each = ATTACKS.iter().map(|attack| {
            let name = (attack.name, attack.finding);
            (name, std::slice::from_ref(attack))
        });
        let together = std::iter::once((("together", "all"), ATTACKS));
        let wanted = |(name, finding): &(&str, &str)| {
            let is = |only: &String| name.contains(only.as_str()) || finding == only;
            self.only.is_empty() || self.only.iter().any(is)
        };
        for ((name, finding), attacks) in each.chain(together) {
            if !wanted(&(name, finding)) {
                continue;
            }
            let measured = self.measure(context, attacks).await;
            let measured = measured.with_context(|| format!("attack `{name}`"))?;
            let verdict = self.judge(&measured, context);
            table.rows.push(row(name, finding, &measured, &verdict));
            eprintln!("{}", table.rows[table.rows.len() - 1].join(" | "));
            for (label, run) in [("alone", &measured.quiet), (name, &measured.attacked)] {
                let records: Vec<&Record> = run.records.iter().collect();
                let row = Summary::of(label, &records, run.wall, context.limits);
                report.rows.push(row);
            }
            let violations = verdict.violations.into_iter();
            report
                .violations
                .extend(violations.map(|violation| format!("{name}: {violation}")));
        }
        anyhow::ensure!(
            !table.rows.is_empty(),
            "no attack has such a name or finding (--only)"
        );
        report.table = Some(table);
        Ok(report)
    }

    async fn measure(&self, context: &Context, attacks: &[Attack]) -> anyhow::Result<Measured> {
        let dir = tempfile::tempdir()?;
        let keys = dir.path().join("keys");
        write_keys(&keys)?;
        let data = dir.path().join("data");
        let arguments = [
            "--listen",
            "0.0.0.0:0",
            "--api-key-file",
            keys.to_str().context("no UTF-8 path")?,
            "--data-dir",
            data.to_str().context("no UTF-8 path")?,
        ];
        let mut process = Process::start(&self.command, &arguments, self.server_log.as_deref())?;
        let listens: SocketAddr = process.url.trim_start_matches("http://").parse()?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, listens.port()));
        let url = format!("http://{}:{}", other_address(), listens.port());
        let patience = Duration::try_from_secs_f64(2.0 * self.duration)?;
        let client = Client::new(&url, patience)?.with_key(OTHERS_KEY);

        let quiet = self.ordinary(&client, context, 0, self.quiet).await?;
        let attackers = attacks
            .iter()
            .map(|attack| Attacker::start(attack, Size(self.size), ATTACKERS_KEY, address));
        let attackers: Vec<Attacker> = attackers.collect();
        let over = AtomicBool::new(false);
        let attacked = async {
            let run = self.ordinary(&client, context, 1, self.duration).await;
            over.store(true, Ordering::Relaxed);
            run
        };
        let (attacked, health) = tokio::join!(attacked, look_at_health(&url, &over));
        let mut heard = Heard::new();
        for attacker in attackers {
            for (status, count) in attacker.stop() {
                *heard.entry(status).or_default() += count;
            }
        }
        let recovered = recovers(&client, context).await;
        let ended = process.ended()?;
        Ok(Measured {
            quiet,
            attacked: attacked?,
            health: health?,
            heard,
            recovered,
            peak_mib: match ended {
                None => Some(memory_mib(process.id(), "VmHWM:")?),
                Some(_) => None,
            },
            ended: ended.map(|status| status.to_string()),
            disk_mib: size_of(&data) as f64 / f64::from(1 << 20),
        })
    }

    /// Runs the ordinary caller: streamed completions, and a verdict as every sixth call.
    async fn ordinary(
        &self,
        client: &Client,
        context: &Context,
        part: u64,
        seconds: f64,
    ) -> anyhow::Result<Run> {
        let (seed, vocab) = (context.seed ^ part << 32, context.vocab);
        let calls = move |number: usize| match number % 6 {
            5 => Call {
                kind: "verdict",
                path: "/judge",
                body: json!({"prompt": format!("What is {number} plus 28?"), "candidates": ["62", "I do not know."]}),
                reading: Reading::Whole,
            },
            _ => {
                let prompt = ids(&mut rng(seed, number as u64), 48, vocab);
                completion("completion", &prompt, 48)
            }
        };
        let until = Until::Elapsed(Duration::try_from_secs_f64(seconds)?);
        Ok(closed(client, self.clients, until, Arc::new(calls)).await)
    }

    fn judge(&self, measured: &Measured, context: &Context) -> Verdict {
        let rate = |run: &Run| {
            let records: Vec<&Record> = run.records.iter().collect();
            Summary::of("", &records, run.wall, context.limits).output_tokens_per_second
        };
        let (alone, beside) = (rate(&measured.quiet), rate(&measured.attacked));
        let share = beside / alone.max(f64::MIN_POSITIVE);
        let records = &measured.attacked.records;
        let begins = records
            .iter()
            .map(|record| record.ttft.unwrap_or(record.e2e));
        let begins = begins.fold(0.0, f64::max);
        let health = Spread::of(measured.health.clone()).map_or(f64::INFINITY, |all| all.p99);
        let mut violations = Vec::new();
        let mut broken = |is: bool, what: String| {
            if is {
                violations.push(what);
            }
        };
        if let Some(ended) = &measured.ended {
            broken(true, format!("the server process ended: {ended}"));
        }
        let refused = not_answered(&measured.attacked);
        broken(
            refused > 0,
            format!(
                "{refused} of {} ordinary calls were not answered",
                records.len()
            ),
        );
        broken(
            share < self.share,
            format!(
                "the ordinary caller keeps {:.0} % of its tokens a second",
                100.0 * share
            ),
        );
        broken(
            begins > self.begins_within,
            format!("an ordinary answer began after {begins:.2} s"),
        );
        broken(
            health > self.health_within,
            format!("/health took {:.0} ms at the 99th percentile", 1e3 * health),
        );
        if let Some(peak) = measured.peak_mib {
            broken(
                peak > self.memory,
                format!("the peak memory was {peak:.0} MiB"),
            );
        }
        let internal = measured.heard.get("500").copied().unwrap_or(0);
        broken(
            internal > 0,
            format!("{internal} calls were answered with 500"),
        );
        broken(
            !measured.recovered && measured.ended.is_none(),
            format!("no ordinary call was answered within {RECOVERY:?} after the attack"),
        );
        Verdict {
            tokens_per_second: beside,
            share,
            begins,
            health,
            violations,
        }
    }
}

fn not_answered(run: &Run) -> usize {
    let answered = |record: &&Record| record.outcome != Outcome::Done;
    run.records.iter().filter(answered).count()
}

fn row(name: &str, finding: &str, measured: &Measured, verdict: &Verdict) -> Vec<String> {
    let heard = measured.heard.iter();
    let heard: Vec<String> = heard
        .map(|(what, count)| format!("{count} x {what}"))
        .collect();
    let peak = match (&measured.ended, measured.peak_mib) {
        (Some(ended), _) => ended.clone(),
        (None, peak) => format!("{:.0}", peak.unwrap_or(f64::NAN)),
    };
    vec![
        name.to_owned(),
        finding.to_owned(),
        format!("{:.0}", verdict.tokens_per_second),
        format!("{:.0}", 100.0 * verdict.share),
        format!("{:.0}", 1e3 * verdict.begins),
        not_answered(&measured.attacked).to_string(),
        format!("{:.0}", 1e3 * verdict.health),
        peak,
        format!("{:.1}", measured.disk_mib),
        heard.join(", "),
        match verdict.violations.is_empty() {
            true => "yes".to_owned(),
            false => "**no**".to_owned(),
        },
    ]
}

/// Returns an address of this machine that is not a loopback address, if it has one. The attacker and the ordinary caller then
/// have different addresses, as they would on different machines.
fn other_address() -> IpAddr {
    let outward = || {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        // No packet is sent. The address is reserved for documentation (RFC 5737).
        socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9))?;
        Ok::<_, std::io::Error>(socket.local_addr()?.ip())
    };
    outward().unwrap_or(Ipv4Addr::LOCALHOST.into())
}

/// Requests `/health` until `over` is set, and returns the seconds of each request.
async fn look_at_health(url: &str, over: &AtomicBool) -> anyhow::Result<Vec<f64>> {
    let client = Client::new(url, HEALTH_AT_MOST)?;
    let mut seconds = Vec::new();
    while !over.load(Ordering::Relaxed) {
        let begun = Instant::now();
        let answered = client.get("/health").await.is_ok();
        seconds.push(match answered {
            true => begun.elapsed().as_secs_f64(),
            false => HEALTH_AT_MOST.as_secs_f64(),
        });
        tokio::time::sleep(HEALTH_EVERY).await;
    }
    Ok(seconds)
}

/// Returns whether an ordinary call is answered soon after the attack.
async fn recovers(client: &Client, context: &Context) -> bool {
    let begun = Instant::now();
    while begun.elapsed() < RECOVERY {
        let prompt = ids(&mut rng(context.seed, 7), 48, context.vocab);
        let record = client.send(&completion("completion", &prompt, 4)).await;
        if record.outcome == Outcome::Done {
            return true;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    false
}

/// Writes the keys of both callers to a file that only its owner may read.
fn write_keys(path: &Path) -> anyhow::Result<()> {
    use std::io::Write;
    let mut options = std::fs::OpenOptions::new();
    let mut file = options
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    writeln!(file, "attacker:{ATTACKERS_KEY}\nordinary:{OTHERS_KEY}")?;
    Ok(())
}

/// Returns the total size in bytes of the files below a directory.
fn size_of(dir: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(dir) else {
        return 0;
    };
    let sizes = entries.flatten().map(|entry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => size_of(&entry.path()),
        Ok(metadata) => metadata.len(),
        Err(_) => 0,
    });
    sizes.sum()
}
