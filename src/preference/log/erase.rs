//! Deletion: what somebody takes back is gone from replay, from derived pairs and from exports.
//!
//! Deleted text leaves every file (see `scrub`), also on a full disk: a reserve is given up then. Many records go a part at a time, so that
//! what a deletion writes before it frees anything stays small.
//!
//! The rows that hang on a record go with it by the schema. Where stages have read it, its id stays as a tombstone and so do they, for
//! [`TrafficLog::lineage`](super::TrafficLog::lineage).

use serde_json::json;
use sqlx::{AnyConnection, Row};

use super::{
    LogError, Principal, RecordId, Result, Scope, TrafficLog, UnixMillis, events, feedback, now,
    prune, rows,
};

/// Records of one part of a deletion at most, and the bytes of one that has more than a single record.
const PART: (usize, i64) = (256, 4 << 20);

/// What a part of a deletion chooses its records by.
#[derive(Debug, Clone, Copy)]
enum Chosen<'a> {
    Of(&'a Principal),
    Before(UnixMillis),
}

impl TrafficLog {
    /// Deletes a record with its samples, verdicts, pairs and feedback. False if it is not there or not in the scope. What stays
    /// is its id, so that [`TrafficLog::lineage`] can say which generations read it.
    pub async fn delete(&self, id: &RecordId, scope: &Scope) -> Result<bool> {
        let there = match self.delete_one(id, scope).await {
            Err(error) if self.made_room(&error).await => self.delete_one(id, scope).await?,
            there => there?,
        };
        if there {
            self.erased(1).await;
        }
        Ok(there)
    }

    async fn delete_one(&self, id: &RecordId, scope: &Scope) -> Result<bool> {
        let mut transaction = self.database().begin().await?;
        let connection = transaction.connection();
        let (actor, deleted) = match scope.principals() {
            None => (
                "operator",
                sqlx::query("DELETE FROM records WHERE id = $1")
                    .bind(id.as_str())
                    .execute(&mut *connection)
                    .await?,
            ),
            Some([principal, former]) => (
                "principal",
                sqlx::query("DELETE FROM records WHERE id = $1 AND principal IN ($2, $3)")
                    .bind(id.as_str())
                    .bind(principal.as_str())
                    .bind(former.as_str())
                    .execute(&mut *connection)
                    .await?,
            ),
        };
        let there = deleted.rows_affected() > 0;
        if there {
            bury(connection, id).await?;
            events::append(connection, actor, "record.deleted", json!({ "record": id })).await?;
        }
        transaction.commit().await?;
        Ok(there)
    }

    /// Deletes all of a principal's records and its feedback on others'. Returns the number of records.
    ///
    /// Pairs that followed from its feedback are derived anew from what others said; answers it wrote are emptied.
    ///
    /// # Errors
    /// [`LogError::Unavailable`] if the database cannot write; some of the records may be deleted then.
    pub async fn delete_principal(&self, principal: &Principal) -> Result<u64> {
        let mut deleted = 0;
        loop {
            let (records, last) = match self.delete_part_of(principal).await {
                Err(error) if self.made_room(&error).await => {
                    self.delete_part_of(principal).await?
                }
                part => part?,
            };
            deleted += records;
            self.erased(records).await;
            if last {
                return Ok(deleted);
            }
        }
    }

    /// Deletes some of a principal's records, and with the last ones its feedback. Returns how many, and whether they were the last.
    async fn delete_part_of(&self, principal: &Principal) -> Result<(u64, bool)> {
        let mut transaction = self.database().begin().await?;
        let connection = transaction.connection();
        let (ids, last) = part(connection, Chosen::Of(principal)).await?;
        for id in &ids {
            delete_row(connection, id).await?;
        }
        let mut others: Vec<String> = Vec::new();
        if last {
            others =
                sqlx::query_scalar("SELECT DISTINCT record_id FROM feedback WHERE principal = $1")
                    .bind(principal.as_str())
                    .fetch_all(&mut *connection)
                    .await?;
            for record in others.clone() {
                let record = rows::stored_id(record)?;
                feedback::forget(connection, &record, principal, self.shared.trust).await?;
            }
        }
        // Without the principal: what cannot be deleted must not name who asked for deletion. Where nothing was there, nothing happened.
        if !ids.is_empty() || !others.is_empty() {
            let detail = json!({ "records": ids.len() });
            events::append(connection, "principal", "principal.deleted", detail).await?;
        }
        transaction.commit().await?;
        Ok((ids.len() as u64, last))
    }

    /// Withdraws the consent to train from all of a principal's records. Returns how many had it.
    pub async fn withdraw_training(&self, principal: &Principal) -> Result<u64> {
        let mut transaction = self.database().begin().await?;
        let connection = transaction.connection();
        let withdrawn =
            sqlx::query("UPDATE records SET train = 0 WHERE principal = $1 AND train = 1")
                .bind(principal.as_str())
                .execute(&mut *connection)
                .await?
                .rows_affected();
        if withdrawn > 0 {
            let detail = json!({ "records": withdrawn });
            events::append(connection, "principal", "consent.withdrawn", detail).await?;
        }
        transaction.commit().await?;
        Ok(withdrawn)
    }

    /// Deletes what is older than the retention, and events and tombstones that are too many or too old; takes the reserve again that a
    /// deletion gave up. Returns the number of records.
    pub async fn expire(&self, now: UnixMillis) -> Result<u64> {
        let database = self.shared.database.clone();
        // It takes blocks of the disk.
        let refilled = tokio::task::spawn_blocking(move || database.refill());
        refilled
            .await
            .map_err(|error| LogError::Unavailable(error.to_string()))?;
        self.prune(now, prune::MOST).await?;
        let Some(retention) = self.shared.retention else {
            return Ok(0);
        };
        let age = i64::try_from(retention.as_millis()).unwrap_or(i64::MAX);
        let oldest = now.saturating_sub(age);
        let mut deleted = 0;
        loop {
            let (records, last) = match self.expire_part(oldest).await {
                Err(error) if self.made_room(&error).await => self.expire_part(oldest).await?,
                part => part?,
            };
            deleted += records;
            self.erased(records).await;
            if last {
                return Ok(deleted);
            }
        }
    }

    /// Deletes some of the records that are older than `oldest`. Returns how many, and whether they were the last.
    async fn expire_part(&self, oldest: UnixMillis) -> Result<(u64, bool)> {
        let mut transaction = self.database().begin().await?;
        let connection = transaction.connection();
        let (ids, last) = part(connection, Chosen::Before(oldest)).await?;
        for id in &ids {
            delete_row(connection, id).await?;
        }
        if !ids.is_empty() {
            let detail = json!({ "records": ids.len(), "created_before": oldest });
            events::append(connection, "retention", "records.expired", detail).await?;
        }
        transaction.commit().await?;
        Ok((ids.len() as u64, last))
    }

    /// Whether a deletion that failed may succeed now: on a full disk the reserve is given up for it.
    async fn made_room(&self, error: &LogError) -> bool {
        let made = matches!(error, LogError::Unavailable(_)) && self.database().make_room().await;
        if made {
            tracing::warn!(
                "a deletion failed and is tried again with the reserve given up: {error}"
            );
        }
        made
    }

    /// What follows a deletion that was committed.
    async fn erased(&self, records: u64) {
        self.shared.counters.forget(records);
        self.shared.quotas.forget();
        self.database().scrub().await;
    }
}

/// Records that are to be deleted, few enough for one transaction, and whether there are no more.
async fn part(connection: &mut AnyConnection, chosen: Chosen<'_>) -> Result<(Vec<RecordId>, bool)> {
    let query = match chosen {
        Chosen::Of(principal) => {
            sqlx::query("SELECT id, bytes FROM records WHERE principal = $1 ORDER BY id LIMIT $2")
                .bind(principal.as_str())
        }
        Chosen::Before(oldest) => sqlx::query(
            "SELECT id, bytes FROM records WHERE created_at < $1 ORDER BY created_at, id LIMIT $2",
        )
        .bind(oldest),
    };
    let (most, room) = PART;
    let found = query
        .bind(rows::index(most + 1))
        .fetch_all(connection)
        .await?;
    let (mut ids, mut bytes) = (Vec::new(), 0);
    for row in found.iter().take(most) {
        bytes += row.try_get::<i64, _>("bytes")?;
        if !ids.is_empty() && bytes > room {
            break;
        }
        ids.push(rows::stored_id(row.try_get("id")?)?);
    }
    let last = ids.len() == found.len();
    Ok((ids, last))
}

async fn delete_row(connection: &mut AnyConnection, id: &RecordId) -> Result<()> {
    sqlx::query("DELETE FROM records WHERE id = $1")
        .bind(id.as_str())
        .execute(&mut *connection)
        .await?;
    bury(connection, id).await
}

/// Keeps the id of a deleted record that a stage has read.
async fn bury(connection: &mut AnyConnection, id: &RecordId) -> Result<()> {
    sqlx::query(
        "INSERT INTO tombstones (record_id, deleted_at) SELECT CAST($1 AS TEXT), CAST($2 AS BIGINT) \
         WHERE EXISTS (SELECT 1 FROM stage_rows WHERE record_id = $1) \
         OR EXISTS (SELECT 1 FROM stage_feedback WHERE record_id = $1) ON CONFLICT (record_id) DO NOTHING",
    )
    .bind(id.as_str())
    .bind(now())
    .execute(connection)
    .await?;
    Ok(())
}
