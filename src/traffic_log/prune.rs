//! Limits for the data that a log keeps beside records: tombstones and the audit trail.
//!
//! Callers create both by deleting records, and neither counts towards their quotas. Only tombstones that show which generations read a
//! record are stored. The audit trail loses its oldest events, which it records in an event of its own. The rest of the chain starts
//! after the last removed event, whose number and hash are kept.

use serde_json::json;
use sql::{Connection, query};

use super::database::Database;
use super::events::{self, Start};
use super::{Result, UnixMillis};

/// The age in milliseconds up to which events and tombstones are kept: a little more than a year.
const KEPT: UnixMillis = 400 * 24 * 3600 * 1000;

/// The maximum number of events, and of tombstones: a few hundred bytes each.
pub(super) const MOST: i64 = 1_000_000;

/// The number of events that are read at a time.
const PAGE: i64 = 512;

/// Deletes events and tombstones that are too old or too many: the oldest of each first, so that at most `most` remain.
pub(super) async fn prune(database: &Database, now: UnixMillis, most: i64) -> Result<()> {
    let oldest = now.saturating_sub(KEPT);
    let mut transaction = database.begin().await?;
    let connection = transaction.connection();
    prune_tombstones(connection, oldest, most).await?;
    prune_events(connection, oldest, most).await?;
    transaction.commit().await
}

async fn prune_tombstones(
    connection: &mut Connection,
    oldest: UnixMillis,
    most: i64,
) -> Result<()> {
    query(
        "DELETE FROM tombstones WHERE deleted_at < $1 OR deleted_at < (\
         SELECT deleted_at FROM tombstones ORDER BY deleted_at DESC LIMIT 1 OFFSET $2)",
    )
    .bind(oldest)
    .bind(most)
    .execute(connection)
    .await?;
    Ok(())
}

async fn prune_events(connection: &mut Connection, oldest: UnixMillis, most: i64) -> Result<()> {
    let start = Start::read(connection).await?;
    let end: i64 = query("SELECT sequence FROM chain WHERE one = 1")
        .fetch_value(connection)
        .await?;
    // The last event to remove, because of number or age. Events after one that is recent enough are recent enough too.
    let mut last = start.sequence.max(end - most);
    'old: loop {
        let page = events::times(connection, last, PAGE).await?;
        if page.is_empty() {
            break;
        }
        for (sequence, at) in page {
            if at >= oldest {
                break 'old;
            }
            last = sequence;
        }
    }
    if last <= start.sequence {
        return Ok(());
    }
    let hash: String = query("SELECT hash FROM events WHERE sequence = $1")
        .bind(last)
        .fetch_value(connection)
        .await?;
    let start = Start {
        sequence: last,
        hash,
    };
    start.write(connection).await?;
    let detail = json!({ "through": last, "hash": start.hash });
    events::append(connection, "retention", "events.pruned", detail).await?;
    query("DELETE FROM events WHERE sequence <= $1")
        .bind(last)
        .execute(connection)
        .await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::{
        Consent, LogConfig, NewRecord, Principal, Prompt, RecordId, RecordKind, Scope, TrafficLog,
        now,
    };
    use super::*;
    use sql::Sql;

    async fn count(log: &TrafficLog, rows: &'static str) -> i64 {
        query(rows)
            .fetch_value(&mut log.database().reader().await.unwrap())
            .await
            .unwrap()
    }

    async fn appended(log: &TrafficLog) -> RecordId {
        let record = NewRecord {
            kind: RecordKind::Generate,
            principal: Principal::of_key("ann"),
            consent: Consent {
                retain: true,
                train: true,
            },
            idempotency_key: None,
            prompt: Prompt::Text("x".to_owned()),
            prompt_token_ids: Vec::new(),
            version: "base".to_owned(),
            samples: Vec::new(),
            verdicts: Vec::new(),
            pairs: Vec::new(),
        };
        log.records.append(record).await.unwrap()
    }

    #[tokio::test]
    async fn events_go_by_number_and_age_and_the_rest_is_a_chain() {
        let dir = tempfile::tempdir().unwrap();
        let log = TrafficLog::open(&LogConfig::sqlite(&dir.path().join("log.sqlite")))
            .await
            .unwrap();
        for at in 0..20 {
            let detail = json!({ "at": at });
            log.audit
                .append("ann", "train.paused", detail)
                .await
                .unwrap();
        }
        const EVENTS: &str = "SELECT COUNT(*) FROM events";
        // The time, the limit, the number that remains, and the first that remains: pruning itself appends one.
        for (at, most, stay, first) in [
            (now(), MOST, 20, 1),
            (now(), 20, 20, 1),
            (now(), 12, 13, 9),
            (now(), 13, 13, 9),
            (now() + 2 * KEPT, MOST, 1, 22),
        ] {
            prune(log.database(), at, most).await.unwrap();
            assert_eq!(count(&log, EVENTS).await, stay, "{most}");
            assert_eq!(log.audit.verify().await.unwrap(), stay.unsigned_abs());
            assert_eq!(log.audit.after(0, 1).await.unwrap()[0].sequence, first);
        }
        let event = log.audit.after(0, 1).await.unwrap().remove(0);
        assert_eq!(event.action, "events.pruned");
        assert_eq!(event.detail["through"], 21);
        query("UPDATE settings SET value = '21 00' WHERE name = 'events.start'")
            .execute(&mut log.database().reader().await.unwrap())
            .await
            .unwrap();
        assert!(log.audit.verify().await.is_err());
    }

    #[tokio::test]
    async fn what_erases_nothing_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let log = TrafficLog::open(&LogConfig::sqlite(&dir.path().join("log.sqlite")))
            .await
            .unwrap();
        let ann = Principal::of_key("ann");
        const EVENTS: &str = "SELECT COUNT(*) FROM events";
        const TOMBSTONES: &str = "SELECT COUNT(*) FROM tombstones";
        for _ in 0..3 {
            assert_eq!(log.deletions.delete_principal(&ann).await.unwrap(), 0);
            assert_eq!(log.deletions.withdraw_training(&ann).await.unwrap(), 0);
        }
        assert_eq!(count(&log, EVENTS).await, 0);
        // A record that no stage has read leaves no tombstone.
        for _ in 0..3 {
            let id = appended(&log).await;
            assert!(log.deletions.delete(&id, &Scope::All).await.unwrap());
        }
        assert_eq!(count(&log, TOMBSTONES).await, 0);
        assert_eq!(count(&log, EVENTS).await, 3);
        appended(&log).await;
        assert_eq!(log.deletions.withdraw_training(&ann).await.unwrap(), 1);
        assert_eq!(log.deletions.delete_principal(&ann).await.unwrap(), 1);
        assert_eq!(count(&log, EVENTS).await, 5);
        // A record that a stage has read leaves a tombstone until it is too old.
        let id = appended(&log).await;
        for claim in [
            "INSERT INTO stages (id, epoch, reference, state, opened_at) VALUES (1, 1, 'base', 'null', 0)".to_owned(),
            format!("INSERT INTO stage_rows (record_id, stage) VALUES ('{id}', 1)"),
        ] {
            query(Sql::Built(claim))
                .execute(&mut log.database().reader().await.unwrap())
                .await
                .unwrap();
        }
        assert!(log.deletions.delete(&id, &Scope::All).await.unwrap());
        assert_eq!(count(&log, TOMBSTONES).await, 1);
        prune(log.database(), now(), 1).await.unwrap();
        assert_eq!(count(&log, TOMBSTONES).await, 1);
        prune(log.database(), now() + 2 * KEPT, MOST).await.unwrap();
        assert_eq!(count(&log, TOMBSTONES).await, 0);
    }
}
