//! The traffic log on both of its databases: SQLite always, PostgreSQL where `SELFJUDGE_TEST_POSTGRES` holds a URL.

mod durability;
mod erasing;
mod exchanging;
mod idempotency;
mod learning;
mod logging;
mod models;
mod operator;
mod preferences;
mod quota;
mod salt;
mod trainer_lease;
mod versions;

use std::future::Future;
use std::time::Duration;

use serde_json::json;
use traffic_log::{
    Consent, IdempotencyKey, LogConfig, LogError, LoggedVerdict, NewRecord, Principal, Prompt,
    RecordId, RecordKind, Sample, TrafficLog,
};

use crate::patience::PATIENCE;

pub use operator::Operator;

/// Names a PostgreSQL server on which schemas may be made.
const POSTGRES: &str = "SELFJUDGE_TEST_POSTGRES";

/// Runs a test's body on a fresh database of each kind.
fn on_both(body: impl AsyncFn(LogConfig)) {
    run(async {
        let dir = tempfile::tempdir().unwrap();
        body(patient(LogConfig::sqlite(&dir.path().join("log.sqlite")))).await;
        if let Some(url) = fresh_schema().await {
            body(patient(LogConfig::new(url))).await;
        }
    });
}

/// A slow machine is no failure.
fn patient(config: LogConfig) -> LogConfig {
    LogConfig {
        patience: PATIENCE,
        ..config
    }
}

/// One thread: what is ready runs in the order it became so.
pub fn run<T>(doing: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(doing)
}

/// Returns the URL of a new schema; none without `has_postgres`. Tests need not clean up: the server is thrown away.
pub async fn fresh_schema() -> Option<String> {
    if cfg!(not(has_postgres)) {
        return None;
    }
    let server = std::env::var(POSTGRES).expect("SELFJUDGE_REQUIRE lists postgres");
    let schema = format!("log_{:016x}", rand::random::<u64>());
    execute(&server, &format!("CREATE SCHEMA {schema}")).await;
    let sign = if server.contains('?') { '&' } else { '?' };
    Some(format!(
        "{server}{sign}options[search_path]={schema}&application_name={schema}"
    ))
}

async fn execute(url: &str, sql: &str) -> u64 {
    let mut operator = Operator::connect(url).await;
    let changed = operator.run(sql).await;
    operator.close().await;
    changed
}

async fn open(config: &LogConfig) -> TrafficLog {
    TrafficLog::open(config).await.unwrap()
}

/// A log in a file of its own, and the directory it lies in.
fn sqlite() -> (tempfile::TempDir, LogConfig) {
    let dir = tempfile::tempdir().unwrap();
    let config = patient(LogConfig::sqlite(&dir.path().join("log.sqlite")));
    (dir, config)
}

/// A generated record that may be trained on: two samples and a verdict, by the judge's default question, that prefers the second.
fn record(principal: &str, prompt: &str) -> NewRecord {
    NewRecord {
        kind: RecordKind::Generate,
        principal: Principal::of_key(principal),
        consent: Consent {
            retain: true,
            train: true,
        },
        idempotency_key: None,
        prompt: Prompt::Text(prompt.to_owned()),
        prompt_token_ids: vec![1, 70_000, u32::MAX],
        version: "base".to_owned(),
        samples: vec![sample("left"), sample("right")],
        verdicts: vec![by_default(verdict(0, 1, 0.25))],
        pairs: Vec::new(),
    }
}

fn sample(text: &str) -> Sample {
    Sample {
        token_ids: vec![5, 6, 7],
        text: text.to_owned(),
        logprobs: vec![-0.1, -1.0e-30, f32::MIN],
        seed: Some(u64::MAX),
        sampling: json!({"temperature": 0.7}),
        finish_reason: Some("stop".to_owned()),
        version: Some("base".to_owned()),
    }
}

fn verdict(a: usize, b: usize, p: f32) -> LoggedVerdict {
    LoggedVerdict {
        a,
        b,
        orders: [p, p + 0.1],
        p,
        consistent: true,
        label_mass: 0.875,
        principles: vec!["helpful".to_owned()],
        version: "base".to_owned(),
    }
}

/// The same verdict by the judge's default question.
fn by_default(verdict: LoggedVerdict) -> LoggedVerdict {
    LoggedVerdict {
        principles: Vec::new(),
        ..verdict
    }
}

/// The name of a call that asks for `request`.
fn named(name: &str, request: u8) -> IdempotencyKey {
    IdempotencyKey {
        name: name.to_owned(),
        request: [request; 32],
    }
}

/// Appends records of one principal, one after the other.
async fn fill(log: &TrafficLog, principal: &str, count: usize) -> Vec<RecordId> {
    let mut ids = Vec::new();
    for at in 0..count {
        let record = record(principal, &format!("{principal} {at}"));
        ids.push(log.records.append(record).await.unwrap());
    }
    ids
}

/// Appends until the database is there again. Long enough for the slowest machine.
async fn append_when_back(log: &TrafficLog, record: &NewRecord) -> RecordId {
    for _ in 0..240 {
        match log.records.append(record.clone()).await {
            Ok(id) => return id,
            Err(LogError::Unavailable(_) | LogError::Full(_)) => {
                tokio::time::sleep(Duration::from_millis(500)).await
            }
            Err(error) => panic!("{error}"),
        }
    }
    panic!("the database is not available again");
}

/// Runs one of this binary's ignored tests as a process of its own.
fn child(test: &str, environment: &[(&str, &str)]) -> std::process::Command {
    let binary = std::env::current_exe().unwrap();
    let mut command = std::process::Command::new(binary);
    command
        .args([
            test,
            "--exact",
            "--ignored",
            "--nocapture",
            "--test-threads=1",
        ])
        .envs(environment.iter().copied())
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::piped());
    command
}

/// The tests of this folder run on PostgreSQL too.
#[test]
#[cfg_attr(
    not(has_postgres),
    ignore = "needs PostgreSQL: SELFJUDGE_REQUIRE=postgres, SELFJUDGE_TEST_POSTGRES"
)]
fn postgres_is_there() {
    run(async {
        let url = fresh_schema().await.expect("has_postgres is set");
        Operator::connect(&url).await;
    });
}
