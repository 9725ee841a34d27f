//! Tests of deletions: deleted text is in no file, also on a full disk.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use traffic_log::{Feedback, Principal, Scope, now};

use super::*;

/// A text that occurs nowhere else.
const MARKER: &str = "ZEBRAQUARTZ7531";

/// The promised time within which deleted text is gone.
const PATIENCE: Duration = Duration::from_secs(1);

/// Returns all files below a directory.
fn files(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    paths
        .flat_map(|path| match path.is_dir() {
            true => files(&path),
            false => vec![path],
        })
        .collect()
}

/// Counts the marker in the files of a directory.
fn count(dir: &Path) -> usize {
    let found = |path: PathBuf| {
        let bytes = std::fs::read(&path).unwrap_or_default();
        bytes
            .windows(MARKER.len())
            .filter(|part| *part == MARKER.as_bytes())
            .count()
    };
    files(dir).into_iter().map(found).sum()
}

/// Waits until the marker is gone, on a busy machine up to sixty times [`PATIENCE`].
async fn assert_gone(dir: &Path, what: &str) {
    let begun = Instant::now();
    while count(dir) > 0 {
        assert!(
            begun.elapsed() < 60 * PATIENCE,
            "{what}: {} times in {:?}",
            count(dir),
            files(dir)
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Returns a record with the marker in all its texts. Some records are long enough for pages of their own.
fn marked(principal: &str, at: usize) -> NewRecord {
    let words = format!("{MARKER} {at} ").repeat(1 + 40 * (at % 7));
    let mut new = record(principal, &words);
    new.samples[0].text.clone_from(&words);
    new.samples[1].sampling = json!({"stop": [words]});
    new.verdicts[0].principles = vec![format!("{MARKER} principle")];
    new.idempotency_key = Some(named(&format!("{MARKER}-{at}"), 1));
    new
}

#[test]
fn a_deleted_record_is_in_no_file() {
    run(async {
        let (dir, config) = sqlite();
        let log = open(&config).await;
        fill(&log, "bob", 50).await;
        let mut ids = Vec::new();
        for at in 0..60 {
            ids.push(log.records.append(marked("ann", at)).await.unwrap());
            // Records of another principal lie between them.
            log.records
                .append(record("bob", &"o".repeat(at * 50)))
                .await
                .unwrap();
        }
        let edited = Feedback::Edited {
            sample: 0,
            text: format!("{MARKER} edited"),
        };
        let ann = Principal::of_key("ann");
        log.feedback.add(&ids[3], &ann, edited).await.unwrap();
        assert!(count(dir.path()) > 100);
        // Half of the records are deleted one by one in another order, and the others together.
        for id in ids.iter().rev().step_by(2) {
            assert!(
                log.deletions
                    .delete(id, &Scope::Only(ann.clone()))
                    .await
                    .unwrap()
            );
        }
        assert_eq!(log.deletions.delete_principal(&ann).await.unwrap(), 30);
        assert_gone(dir.path(), "after the deletion of a principal").await;
        assert_eq!(log.stats().records, 110);
    });
}

#[test]
fn each_deletion_is_scrubbed_by_itself() {
    run(async {
        let (dir, config) = sqlite();
        let log = open(&config).await;
        fill(&log, "bob", 5).await;
        for at in 0..6 {
            let id = log.records.append(marked("ann", at)).await.unwrap();
            assert!(count(dir.path()) > 0);
            assert!(log.deletions.delete(&id, &Scope::All).await.unwrap());
            assert_gone(dir.path(), "after the deletion of a record").await;
        }
    });
}

#[test]
fn expired_records_are_in_no_file() {
    run(async {
        let (dir, mut config) = sqlite();
        config.retention = Some(Duration::from_secs(60));
        let log = open(&config).await;
        for at in 0..300 {
            log.records.append(marked("ann", at % 3)).await.unwrap();
            log.records
                .append({
                    let mut new = marked("ann", at % 3);
                    new.idempotency_key = None;
                    new
                })
                .await
                .unwrap();
        }
        let deleted = log.deletions.expire(now() + 3_600_000).await.unwrap();
        assert_eq!(deleted, 303);
        assert_gone(dir.path(), "after the retention").await;
        assert_eq!(log.stats().records, 0);
        log.audit.verify().await.unwrap();
    });
}

#[test]
fn a_reader_in_the_way_only_delays_it() {
    run(async {
        let (dir, config) = sqlite();
        let log = open(&config).await;
        let id = log.records.append(marked("ann", 6)).await.unwrap();
        let mut reader = Operator::connect(&config.url).await;
        reader.run("BEGIN; SELECT * FROM records").await;
        assert!(log.deletions.delete(&id, &Scope::All).await.unwrap());
        assert!(
            count(dir.path()) > 0,
            "the text must stay while the reader needs it"
        );
        // New records are written meanwhile.
        fill(&log, "bob", 3).await;
        reader.run("COMMIT").await;
        assert_gone(dir.path(), "after the reader").await;
    });
}

#[test]
fn what_was_taken_back_of_anothers_record_is_in_no_file() {
    run(async {
        let (dir, config) = sqlite();
        let log = open(&config).await;
        let ids = fill(&log, "bob", 3).await;
        let ann = Principal::of_key("ann");
        let edited = Feedback::Edited {
            sample: 0,
            text: MARKER.to_owned(),
        };
        log.feedback.add(&ids[1], &ann, edited).await.unwrap();
        assert_eq!(log.deletions.delete_principal(&ann).await.unwrap(), 0);
        assert_gone(dir.path(), "after its principal was deleted").await;
    });
}

#[test]
fn on_postgres_deleted_rows_are_vacuumed() {
    run(async {
        let Some(url) = fresh_schema().await else {
            return;
        };
        let log = open(&LogConfig::new(url.as_str())).await;
        let id = log.records.append(marked("ann", 1)).await.unwrap();
        assert!(log.deletions.delete(&id, &Scope::All).await.unwrap());
        let schema = url.rsplit_once('=').unwrap().1;
        let mut operator = Operator::connect(&url).await;
        let sql = format!(
            "SELECT COUNT(*) FROM pg_stat_all_tables WHERE schemaname = '{schema}' AND relname = 'samples' AND vacuum_count > 0"
        );
        let begun = Instant::now();
        loop {
            if operator.number(&sql).await == 1 {
                break;
            }
            assert!(
                begun.elapsed() < 60 * PATIENCE,
                "the database was not vacuumed in time"
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
}

/// A file system of a few megabytes. None where this process may not mount one.
struct Small(tempfile::TempDir);

impl Small {
    fn mounted(megabytes: usize) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let mounted = Command::new("mount")
            .args([
                "-t",
                "tmpfs",
                "-o",
                &format!("size={megabytes}m"),
                "selfjudge-test",
            ])
            .arg(dir.path())
            .output();
        if mounted.is_ok_and(|output| output.status.success()) {
            return Some(Self(dir));
        }
        eprintln!("skipped: no file system can be mounted here");
        None
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).output();
    }
}

#[test]
fn on_a_full_disk_records_can_still_be_deleted() {
    let Some(small) = Small::mounted(32) else {
        return;
    };
    run(async {
        let mut config = LogConfig::sqlite(&small.0.path().join("log.sqlite"));
        config.reserve = 32 << 20;
        let log = open(&config).await;
        let mut ids = Vec::new();
        for at in 0..20 {
            let mut new = marked("ann", at);
            new.samples[0].text.push_str(&"x".repeat(200 << 10));
            ids.push(log.records.append(new).await.unwrap());
        }
        // Another principal fills the rest of the disk.
        let filled = std::fs::File::create(small.0.path().join("filler")).and_then(
            |mut file| -> std::io::Result<()> {
                let block = vec![1u8; 4096];
                loop {
                    std::io::Write::write_all(&mut file, &block)?;
                }
            },
        );
        assert!(filled.is_err());
        // The write-ahead log may have room for some more records.
        let mut kept = 0;
        while log.records.append(marked("ann", 99)).await.is_ok() {
            kept += 1;
            assert!(kept < 10_000);
        }
        for id in &ids[..3] {
            assert!(log.deletions.delete(id, &Scope::All).await.unwrap());
        }
        assert_eq!(
            log.deletions
                .delete_principal(&Principal::of_key("ann"))
                .await
                .unwrap(),
            17 + kept
        );
        assert_gone(small.0.path(), "on a full disk").await;
        // With free space the log keeps records again, and restores its reserve.
        std::fs::remove_file(small.0.path().join("filler")).unwrap();
        append_when_back(&log, &record("ann", "after")).await;
        log.deletions.expire(now()).await.unwrap();
        assert!(small.0.path().join("log.sqlite.reserve").exists());
    });
}

#[test]
fn a_disk_with_little_room_keeps_no_records() {
    let Some(small) = Small::mounted(32) else {
        return;
    };
    run(async {
        let config = LogConfig::sqlite(&small.0.path().join("log.sqlite"));
        let log = open(&config).await;
        let large = record("ann", &"x".repeat(256 << 10));
        let mut kept = 0;
        let refused = loop {
            match log.records.append(large.clone()).await {
                Ok(_) => kept += 1,
                Err(error) => break error,
            }
        };
        assert!(kept > 3, "{kept}");
        assert!(matches!(refused, LogError::Full(_)), "{refused}");
    });
}
