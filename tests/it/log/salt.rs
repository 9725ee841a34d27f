//! Tests of the salt of surrogates: it lies outside the database where possible, and is the same after a move.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use traffic_log::{SaltPlace, Scope};

use super::*;

const SALT: &str = "0123456789abcdef0123456789abcdef";

/// Returns the surrogate of an address in the log.
async fn surrogate(config: &LogConfig) -> String {
    let log = open(config).await;
    let id = log
        .records
        .append(record("a", "Write to ann@example.org"))
        .await
        .unwrap();
    let read = log.records.get(&id, &Scope::All).await.unwrap().unwrap();
    log.close().await;
    let Prompt::Text(text) = read.prompt else {
        panic!("the prompt must be a text");
    };
    text.strip_prefix("Write to ").unwrap().to_owned()
}

async fn salts_in(url: &str) -> i64 {
    let mut operator = Operator::connect(url).await;
    let count = operator
        .number("SELECT COUNT(*) FROM settings WHERE name = 'salt'")
        .await;
    operator.close().await;
    count
}

fn file_of(config: &LogConfig) -> PathBuf {
    match &config.salt {
        SaltPlace::Made(file) => file.clone(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_sqlite_log_has_none_in_its_database() {
    let (_dir, config) = sqlite();
    run(async {
        let before = surrogate(&config).await;
        let file = file_of(&config);
        let mode = std::fs::metadata(&file).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(salts_in(&config.url).await, 0);
        assert_eq!(surrogate(&config).await, before);
        // The database alone gives another surrogate for the same address.
        std::fs::remove_file(&file).unwrap();
        assert_ne!(surrogate(&config).await, before);
    });
}

#[test]
fn a_log_that_has_it_in_its_database_gives_it_up_and_keeps_its_surrogates() {
    let (_dir, config) = sqlite();
    run(async {
        // Earlier versions kept the salt in the database.
        let old = LogConfig {
            salt: SaltPlace::Database,
            ..config.clone()
        };
        let before = surrogate(&old).await;
        assert_eq!(salts_in(&config.url).await, 1);
        assert_eq!(surrogate(&config).await, before);
        assert_eq!(salts_in(&config.url).await, 0);
        assert_eq!(surrogate(&config).await, before);
    });
}

#[test]
fn a_file_that_is_given_is_the_same_for_all_and_is_never_made_up() {
    on_both(async |config| {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("salt");
        let given = LogConfig {
            salt: SaltPlace::Given(file.clone()),
            ..config.clone()
        };
        let result = TrafficLog::open(&given).await.unwrap_err().to_string();
        assert!(result.contains("does not exist"), "{result}");
        assert!(!file.exists());
        std::fs::write(&file, format!("{SALT}\n")).unwrap();
        let surrogates = [surrogate(&given).await, surrogate(&given).await];
        assert_eq!(surrogates[0], surrogates[1]);
        assert_eq!(salts_in(&config.url).await, 0);

        // A log with surrogates of another salt is refused, since new surrogates would differ.
        let own = LogConfig {
            salt: SaltPlace::Database,
            ..config.clone()
        };
        surrogate(&own).await;
        let result = TrafficLog::open(&given).await.unwrap_err().to_string();
        assert!(result.contains("another salt"), "{result}");
    });
}
