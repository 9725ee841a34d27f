//! Tests of a data directory that commit 999f5af wrote (tests/fixtures/make_data_dir.py): this version finds all its contents.

use std::path::Path;

use selfjudge::learn::generation::Generations;
use serde_json::{Value, json};
use sqlx::migrate::Migrator;
use sqlx::{AssertSqlSafe, Connection, PgConnection, Row, SqliteConnection};
use traffic_log::{LogConfig, Principal, RecordId, SaltPlace, Scope, TrafficLog};

use crate::learn::support::{Program, Setup, copy};
use crate::log::{fresh_schema, run};
use crate::support::fixture;

const DIR: &str = "data-dir-999f5af";

fn expected() -> Value {
    let text = std::fs::read_to_string(fixture(DIR).join("expected.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// Parses an owner: `key:alice`, `key:alice user:eve`, `user:eve`, `operator:root`, `anonymous`.
fn scope(owner: &str) -> Scope {
    let (whose, user) = match owner.split_once("user:") {
        Some((whose, user)) => (whose.trim(), Some(user)),
        None => (owner, None),
    };
    let whose = if whose.is_empty() { "anonymous" } else { whose };
    let principal = Principal::spelled(whose, user).unwrap();
    match whose.strip_prefix("operator:").zip(user) {
        Some((name, user)) => Scope::Either(principal, Principal::of_user(Some(name), user)),
        None => Scope::Only(principal),
    }
}

/// Asserts that every record is there and belongs to its owner alone, and that pointers, generations and events are there.
async fn assert_whole(log: &TrafficLog) {
    let expected = expected();
    let records = expected["records"].as_array().unwrap();
    assert!(records.len() > 50);
    assert_eq!(log.stats().records, records.len() as u64);
    let owners = [
        "key:alice",
        "key:bob",
        "key:key-3",
        "operator:root",
        "anonymous",
        "user:eve",
    ];
    for record in records {
        let id = RecordId::parse(record["id"].as_str().unwrap()).unwrap();
        let owner = record["owner"].as_str().unwrap();
        let read = log.records.get(&id, &scope(owner)).await.unwrap();
        let read = read.unwrap_or_else(|| panic!("{record}"));
        if !record["prompt"].is_null() {
            assert_eq!(json!(read.prompt), record["prompt"]);
            let counts = json!({"samples": read.samples.len(), "verdicts": read.verdicts.len(), "pairs": read.pairs.len(),
                "feedback": read.feedback.len()});
            assert_eq!(counts, record["counts"], "{record}");
        }
        for other in owners.iter().filter(|other| **other != owner) {
            let seen = log.records.get(&id, &scope(other)).await.unwrap();
            assert!(seen.is_none(), "{other} sees {record}");
        }
    }
    let pointers = json!(log.generations.pointers().await.unwrap());
    assert_eq!(pointers, expected["pointers"]);
    let generations: Vec<Value> = log
        .generations
        .all()
        .await
        .unwrap()
        .iter()
        .map(|one| json!({"id": one.id, "state": one.state, "stage": one.stage}))
        .collect();
    assert_eq!(json!(generations), expected["generations"]);
    assert!(log.audit.verify().await.unwrap() >= expected["events"].as_u64().unwrap());
    let last = log.audit.after(0, 1000).await.unwrap();
    let at = expected["events"].as_u64().unwrap() as usize - 1;
    assert_eq!(json!(last[at].hash), expected["last_event"]);
    // The records are counted, so the quota includes them.
    let count = log
        .records
        .count_of(&[Principal::of_key("key-3"), Principal::anonymous()])
        .await;
    assert_eq!(count.unwrap(), [2, 2]);
}

#[test]
fn its_log_opens_whole() {
    let dir = copy(&fixture(DIR));
    run(async {
        for _ in 0..2 {
            let log = TrafficLog::open(&LogConfig::sqlite(&dir.path().join("traffic.sqlite")))
                .await
                .unwrap();
            assert_whole(&log).await;
            log.close().await;
        }
    });
    let expected = expected();
    let generations = Generations::open(dir.path().join("generations")).unwrap();
    let id = expected["generations"][0]["id"].as_str().unwrap();
    generations.verified(id).unwrap();
}

/// The tables in an order in which rows can be inserted. Tables that the migrations fill are emptied first.
const TABLES: [&str; 15] = [
    "settings",
    "records",
    "samples",
    "verdicts",
    "pairs",
    "feedback",
    "tombstones",
    "trainer",
    "stages",
    "stage_rows",
    "generations",
    "pointers",
    "chain",
    "events",
    "stage_feedback",
];

/// Copies an SQLite log of that version into a PostgreSQL log of the same version.
async fn carry_over(from: &Path, to: &str) {
    let old = tempfile::tempdir().unwrap();
    let migrations = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../src/traffic_log/migrations");
    for name in [
        "0001_traffic_log.sql",
        "0002_stage_feedback.sql",
        "0003_learning_switch.sql",
    ] {
        std::fs::copy(migrations.join(name), old.path().join(name)).unwrap();
    }
    let mut target = PgConnection::connect(to).await.unwrap();
    sqlx::raw_sql("CREATE DOMAIN blob AS bytea")
        .execute(&mut target)
        .await
        .unwrap();
    Migrator::new(old.path())
        .await
        .unwrap()
        .run(&mut target)
        .await
        .unwrap();
    let source = format!("sqlite:{}", from.display());
    let mut source = SqliteConnection::connect(&source).await.unwrap();
    for table in TABLES.iter().chain(&["learning_switch"]) {
        let columns: Vec<String> =
            sqlx::query(AssertSqlSafe(format!("PRAGMA table_info({table})")))
                .fetch_all(&mut source)
                .await
                .unwrap()
                .iter()
                .map(|row| row.get::<String, _>("name"))
                .collect();
        insert(&mut source, &mut target, table, &columns).await;
    }
}

async fn insert(
    source: &mut SqliteConnection,
    target: &mut PgConnection,
    table: &str,
    columns: &[String],
) {
    let quoted: Vec<String> = columns
        .iter()
        .map(|column| format!("quote({column})"))
        .collect();
    let rows = format!("SELECT {} FROM {table}", quoted.join(", "));
    let rows = sqlx::query(AssertSqlSafe(rows))
        .fetch_all(source)
        .await
        .unwrap();
    let mut sql = format!("DELETE FROM {table};");
    for row in rows {
        let values = (0..columns.len()).map(|at| {
            let value: String = row.get(at);
            match value.strip_prefix("X'") {
                Some(bytes) => format!("'\\x{bytes}"),
                None => value,
            }
        });
        let values: Vec<String> = values.collect();
        sql += &format!(
            "INSERT INTO {table} ({}) VALUES ({});",
            columns.join(", "),
            values.join(", ")
        );
    }
    sqlx::raw_sql(AssertSqlSafe(sql))
        .execute(target)
        .await
        .unwrap();
}

#[test]
fn its_log_on_postgres_opens_whole() {
    run(async {
        let Some(url) = fresh_schema().await else {
            return;
        };
        carry_over(&fixture(DIR).join("traffic.sqlite"), &url).await;
        let mut config = LogConfig::new(url);
        config.salt = SaltPlace::Given(fixture(DIR).join("traffic.sqlite.salt"));
        for _ in 0..2 {
            let log = TrafficLog::open(&config).await.unwrap();
            assert_whole(&log).await;
            log.close().await;
        }
    });
}

/// Starts a server on a copy of the directory, with these keys.
fn start(dir: &Path, keys: &str) -> Program {
    let expected = expected();
    let (file, admins) = (dir.join("keys"), dir.join("admin-keys"));
    std::fs::write(&file, keys).unwrap();
    std::fs::write(&admins, expected["admin_keys"].as_str().unwrap()).unwrap();
    Program::start(&Setup {
        arguments: &[
            "--trust-user",
            "--api-key-file",
            file.to_str().unwrap(),
            "--admin-key-file",
            admins.to_str().unwrap(),
        ],
        ..Setup::new(dir)
    })
}

#[test]
fn its_callers_find_their_records_and_a_key_without_a_name_is_told_of() {
    let expected = expected();
    let keys = expected["keys"].as_str().unwrap();
    let dir = copy(&fixture(DIR));
    let records = expected["records"].as_array().unwrap();
    let secret = |owner: &str| {
        let name = owner.split(' ').next().unwrap();
        match name {
            "key:alice" => Some("alice-secret"),
            "key:bob" => Some("bob-secret"),
            "key:key-3" => Some("unnamed-secret"),
            "operator:root" => Some("root-secret"),
            _ => None,
        }
    };
    let status = |program: &Program, record: &Value, key: &str| {
        let owner = record["owner"].as_str().unwrap();
        let user = owner
            .split_once("user:")
            .map_or_else(String::new, |(_, user)| format!("?user={user}"));
        program
            .get_with_key(
                &format!("/records/{}{user}", record["id"].as_str().unwrap()),
                key,
            )
            .0
    };

    let program = start(dir.path(), keys);
    for record in records {
        let owner = record["owner"].as_str().unwrap();
        let Some(key) = secret(owner) else { continue };
        let orphaned = owner == "key:key-3";
        assert_eq!(
            status(&program, record, key),
            if orphaned { 404 } else { 200 },
            "{record}"
        );
        let other = if key == "bob-secret" {
            "alice-secret"
        } else {
            "bob-secret"
        };
        assert_eq!(status(&program, record, other), 404, "{record}");
    }
    let warned = program
        .said
        .lines()
        .find(|line| line.contains("named by position"));
    let warned = warned.unwrap_or_else(|| panic!("{}", program.said));
    assert!(
        warned.contains("2 of `key-3`") && warned.contains("`key-3:KEY`"),
        "{warned}"
    );

    // Idempotency keys still name their records.
    let call = |record: &Value| record["call"].clone();
    let named = |owner: &str| {
        let of = |record: &&Value| record["owner"] == owner && record["idempotency"] == "order-17";
        records.iter().find(of).unwrap()
    };
    let again = named("key:alice");
    let (code, answer) = program.named(
        again["path"].as_str().unwrap(),
        "alice-secret",
        "order-17",
        &call(again),
    );
    assert_eq!(
        (code, &answer["record_id"]),
        (200, &again["id"]),
        "{answer}"
    );
    let mut other = call(again);
    other["messages"][0]["content"] = json!("What is 1 plus 1?");
    let (code, answer) = program.named("/generate", "alice-secret", "order-17", &other);
    assert_eq!(
        (code, &answer["error"]["code"]),
        (422, &json!("idempotency_key_reused")),
        "{answer}"
    );

    // The learned generation still serves.
    let (code, answer) = program.get_with_key("/generations", "root-secret");
    assert_eq!((code, &answer["pointers"]), (200, &expected["pointers"]));
    let answer = program.post_with_key("/generate", "alice-secret", &expected["question"]);
    assert_eq!(answer["version"], expected["version"]);
    program.stop();

    // A key that gets its old name again owns its records again.
    let program = start(
        dir.path(),
        &keys.replace("unnamed-secret", "key-3:unnamed-secret"),
    );
    assert!(
        !program.said.contains("named by position"),
        "{}",
        program.said
    );
    for record in records
        .iter()
        .filter(|record| record["owner"] == "key:key-3")
    {
        assert_eq!(status(&program, record, "unnamed-secret"), 200);
    }
    program.stop();
}

#[test]
fn its_files_become_their_owners_alone() {
    use std::os::unix::fs::PermissionsExt;
    fn open_to_others(path: &Path) -> Vec<std::path::PathBuf> {
        let mode = std::fs::symlink_metadata(path)
            .unwrap()
            .permissions()
            .mode();
        let mut open = Vec::new();
        // The test itself wrote these files.
        let foreign = ["keys", "admin-keys", "expected.json"]
            .iter()
            .any(|name| path.ends_with(name));
        if mode & 0o077 != 0 && !foreign {
            open.push(path.to_owned());
        }
        if path.is_dir() {
            for entry in std::fs::read_dir(path).unwrap() {
                open.extend(open_to_others(&entry.unwrap().path()));
            }
        }
        open
    }
    let dir = copy(&fixture(DIR));
    for (path, mode) in [
        ("", 0o755),
        ("generations", 0o755),
        ("traffic.sqlite", 0o644),
        ("training", 0o755),
    ] {
        let mode = std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(dir.path().join(path), mode).unwrap();
    }
    let program = start(dir.path(), expected()["keys"].as_str().unwrap());
    let told = program
        .said
        .lines()
        .filter(|line| line.contains("were readable by other users"));
    assert_eq!(told.count(), 1, "{}", program.said);
    program.post_with_key(
        "/generate",
        "alice-secret",
        &json!({"prompt": "2 plus", "max_tokens": 1}),
    );
    assert!(dir.path().join("traffic.sqlite-wal").exists());
    assert_eq!(open_to_others(dir.path()), Vec::<std::path::PathBuf>::new());
    program.stop();
    let program = start(dir.path(), expected()["keys"].as_str().unwrap());
    assert!(
        !program.said.contains("were readable by other users"),
        "{}",
        program.said
    );
}

#[test]
fn a_log_that_was_removed_is_told_of() {
    let dir = copy(&fixture(DIR));
    std::fs::remove_file(dir.path().join("traffic.sqlite")).unwrap();
    let program = start(dir.path(), expected()["keys"].as_str().unwrap());
    assert!(
        program
            .said
            .contains("generations are missing from the log"),
        "{}",
        program.said
    );
    let answer = program.post_with_key("/generate", "alice-secret", &expected()["question"]);
    assert_eq!(answer["version"], "base");
}

/// Only the database has the text of records. The files of generations have none.
#[test]
fn an_erased_principal_is_in_no_file() {
    fn with(path: &Path, text: &[u8]) -> Vec<std::path::PathBuf> {
        if path.is_dir() {
            let entries = std::fs::read_dir(path).unwrap();
            return entries
                .flat_map(|entry| with(&entry.unwrap().path(), text))
                .collect();
        }
        let bytes = std::fs::read(path).unwrap();
        let found = bytes.windows(text.len()).any(|part| part == text);
        found.then(|| path.to_owned()).into_iter().collect()
    }
    let dir = copy(&fixture(DIR));
    std::fs::remove_file(dir.path().join("expected.json")).unwrap();
    let texts: Vec<String> = (100..140)
        .map(|number| {
            format!(
                "What is {} plus {}?",
                10 + number % 80,
                10 + number * 7 % 80
            )
        })
        .collect();
    assert_eq!(with(dir.path(), texts[0].as_bytes()).len(), 1);
    let program = start(dir.path(), expected()["keys"].as_str().unwrap());
    let (status, deleted) = program.delete_with_key("/records", "alice-secret");
    assert_eq!(status, 200, "{deleted}");
    assert!(deleted["records"].as_u64().unwrap() >= 40, "{deleted}");
    crate::learn::support::wait_for("the end of every text", || {
        let left = texts
            .iter()
            .any(|text| !with(dir.path(), text.as_bytes()).is_empty());
        (!left).then_some(())
    });
    program.stop();
}
