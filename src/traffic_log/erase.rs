//! Deletion of records and of principals' data from replay, derived pairs and exports.
//!
//! Deleted text is removed from every file (see `scrub`), also on a full disk, where a reserve is given up first. Many records are
//! deleted in parts, so that the space which a deletion needs before it frees any stays small.
//!
//! The schema cascades deletions to the rows that belong to a record. If stages have read the record, its id remains as a tombstone and
//! their claims remain, for [`Stages::lineage`](super::Stages::lineage).

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use sql::{Connection, query, with_list};

use super::database::Database;
use super::quota::Quotas;
use super::writer::Counters;
use super::{
    FeedbackTrust, LogError, Principal, RecordId, Result, Scope, UnixMillis, columns, events,
    feedback, now, prune,
};

/// The maximum number of records in one part of a deletion, and its maximum bytes if it has more than one record.
const PART: (usize, i64) = (256, 4 << 20);

/// The condition that selects records for deletion.
#[derive(Debug, Clone, Copy)]
enum Selection<'a> {
    Of(&'a Principal),
    Before(UnixMillis),
}

/// Deletions of records and of principals' data, at a principal's request or after the retention period.
#[derive(Debug)]
pub struct Deletions {
    pub(super) database: Arc<Database>,
    pub(super) counters: Arc<Counters>,
    pub(super) quotas: Arc<Quotas>,
    pub(super) trust: FeedbackTrust,
    pub(super) retention: Option<Duration>,
}

impl Deletions {
    /// Deletes a record with its samples, verdicts, pairs and feedback. Returns false if it does not exist or is out of scope. If a stage
    /// has read the record, its id remains, so that [`Stages::lineage`](super::Stages::lineage) can find the generations trained on it.
    pub async fn delete(&self, id: &RecordId, scope: &Scope) -> Result<bool> {
        let there = match self.delete_one(id, scope).await {
            Err(error) if self.freed_space(&error).await => self.delete_one(id, scope).await?,
            there => there?,
        };
        if there {
            self.after_deletion(1).await;
        }
        Ok(there)
    }

    async fn delete_one(&self, id: &RecordId, scope: &Scope) -> Result<bool> {
        let mut transaction = self.database.begin().await?;
        let connection = transaction.connection();
        let (actor, deleted) = match scope.principals() {
            None => (
                "operator",
                query("DELETE FROM records WHERE id = $1")
                    .bind(id.as_str())
                    .execute(connection)
                    .await?,
            ),
            Some([principal, former]) => (
                "principal",
                query("DELETE FROM records WHERE id = $1 AND principal IN ($2, $3)")
                    .bind(id.as_str())
                    .bind(principal.as_str())
                    .bind(former.as_str())
                    .execute(connection)
                    .await?,
            ),
        };
        let there = deleted > 0;
        if there {
            insert_tombstones(connection, std::slice::from_ref(id)).await?;
            events::append(connection, actor, "record.deleted", json!({ "record": id })).await?;
        }
        transaction.commit().await?;
        Ok(there)
    }

    /// Deletes all records of a principal and its feedback on the records of others. Returns the number of records.
    ///
    /// Pairs that followed from its feedback are derived again from the others' feedback; the answers that it wrote are emptied.
    ///
    /// # Errors
    /// Errors with [`LogError::Unavailable`] if the database cannot write; some of the records may have been deleted by then.
    pub async fn delete_principal(&self, principal: &Principal) -> Result<u64> {
        let mut deleted = 0;
        loop {
            let (records, last) = match self.delete_part_of(principal).await {
                Err(error) if self.freed_space(&error).await => {
                    self.delete_part_of(principal).await?
                }
                part => part?,
            };
            deleted += records;
            self.after_deletion(records).await;
            if last {
                return Ok(deleted);
            }
        }
    }

    /// Deletes a part of a principal's records, and with the last part its feedback. Returns their number, and whether it was the last
    /// part.
    async fn delete_part_of(&self, principal: &Principal) -> Result<(u64, bool)> {
        let mut transaction = self.database.begin().await?;
        let connection = transaction.connection();
        let (ids, last) = part(connection, Selection::Of(principal)).await?;
        delete_all(connection, &ids).await?;
        let mut others: Vec<String> = Vec::new();
        if last {
            others = query("SELECT DISTINCT record_id FROM feedback WHERE principal = $1")
                .bind(principal.as_str())
                .fetch_values(connection)
                .await?;
            for record in others.clone() {
                let record = columns::stored_id(record)?;
                feedback::forget(connection, &record, principal, self.trust).await?;
            }
        }
        // The event omits the principal that requested the deletion, because the audit trail itself cannot be deleted. Nothing is recorded
        // if there was nothing to delete.
        if !ids.is_empty() || !others.is_empty() {
            let detail = json!({ "records": ids.len() });
            events::append(connection, "principal", "principal.deleted", detail).await?;
        }
        transaction.commit().await?;
        Ok((ids.len() as u64, last))
    }

    /// Withdraws the consent to training from all records of a principal. Returns the number of records that had it.
    pub async fn withdraw_training(&self, principal: &Principal) -> Result<u64> {
        let mut transaction = self.database.begin().await?;
        let connection = transaction.connection();
        let withdrawn = query("UPDATE records SET train = 0 WHERE principal = $1 AND train = 1")
            .bind(principal.as_str())
            .execute(connection)
            .await?;
        if withdrawn > 0 {
            let detail = json!({ "records": withdrawn });
            events::append(connection, "principal", "consent.withdrawn", detail).await?;
        }
        transaction.commit().await?;
        Ok(withdrawn)
    }

    /// Deletes records older than the retention period, and events and tombstones that are too many or too old. Refills the reserve if a
    /// deletion gave it up. Returns the number of deleted records.
    pub async fn expire(&self, now: UnixMillis) -> Result<u64> {
        let database = self.database.clone();
        // Refilling allocates disk blocks, which may block the thread.
        let refilled = tokio::task::spawn_blocking(move || database.refill());
        refilled
            .await
            .map_err(|error| LogError::Unavailable(error.to_string()))?;
        prune::prune(&self.database, now, prune::MOST).await?;
        let Some(retention) = self.retention else {
            return Ok(0);
        };
        let age = i64::try_from(retention.as_millis()).unwrap_or(i64::MAX);
        let oldest = now.saturating_sub(age);
        let mut deleted = 0;
        loop {
            let (records, last) = match self.expire_part(oldest).await {
                Err(error) if self.freed_space(&error).await => self.expire_part(oldest).await?,
                part => part?,
            };
            deleted += records;
            self.after_deletion(records).await;
            if last {
                return Ok(deleted);
            }
        }
    }

    /// Deletes a part of the records that are older than `oldest`. Returns their number, and whether it was the last part.
    async fn expire_part(&self, oldest: UnixMillis) -> Result<(u64, bool)> {
        let mut transaction = self.database.begin().await?;
        let connection = transaction.connection();
        let (ids, last) = part(connection, Selection::Before(oldest)).await?;
        delete_all(connection, &ids).await?;
        if !ids.is_empty() {
            let detail = json!({ "records": ids.len(), "created_before": oldest });
            events::append(connection, "retention", "records.expired", detail).await?;
        }
        transaction.commit().await?;
        Ok((ids.len() as u64, last))
    }

    /// Returns whether a failed deletion should be tried again: on a full disk the reserve is given up for it.
    async fn freed_space(&self, error: &LogError) -> bool {
        let made = matches!(error, LogError::Unavailable(_)) && self.database.free_space().await;
        if made {
            tracing::warn!(
                "a deletion failed; it is retried after releasing the disk reserve: {error}"
            );
        }
        made
    }

    /// Updates the counters and scrubs the files after a committed deletion.
    async fn after_deletion(&self, records: u64) {
        self.counters.forget(records);
        self.quotas.forget();
        self.database.scrub().await;
    }
}

/// Returns the ids of records to delete, few enough for one transaction, and whether these are the last.
async fn part(
    connection: &mut Connection,
    selection: Selection<'_>,
) -> Result<(Vec<RecordId>, bool)> {
    let select = match selection {
        Selection::Of(principal) => {
            query("SELECT id, bytes FROM records WHERE principal = $1 ORDER BY id LIMIT $2")
                .bind(principal.as_str())
        }
        Selection::Before(oldest) => query(
            "SELECT id, bytes FROM records WHERE created_at < $1 ORDER BY created_at, id LIMIT $2",
        )
        .bind(oldest),
    };
    let (most, room) = PART;
    let found = select
        .bind(columns::integer(most + 1))
        .fetch_all(connection)
        .await?;
    let (mut ids, mut bytes) = (Vec::new(), 0);
    for row in found.iter().take(most) {
        bytes += row.get::<i64>("bytes")?;
        if !ids.is_empty() && bytes > room {
            break;
        }
        ids.push(columns::stored_id(row.get("id")?)?);
    }
    let last = ids.len() == found.len();
    Ok((ids, last))
}

async fn delete_all(connection: &mut Connection, ids: &[RecordId]) -> Result<()> {
    query(with_list!("DELETE FROM records WHERE id", "$1", ""))
        .bind(columns::id_list(ids))
        .execute(connection)
        .await?;
    insert_tombstones(connection, ids).await
}

/// Stores a tombstone for each deleted record that a stage has read.
async fn insert_tombstones(connection: &mut Connection, ids: &[RecordId]) -> Result<()> {
    for claims in [
        with_list!(
            "INSERT INTO tombstones (record_id, deleted_at) SELECT record_id, $2 FROM stage_rows WHERE record_id",
            "$1",
            "ON CONFLICT (record_id) DO NOTHING"
        ),
        with_list!(
            "INSERT INTO tombstones (record_id, deleted_at) SELECT record_id, $2 FROM stage_feedback WHERE record_id",
            "$1",
            "ON CONFLICT (record_id) DO NOTHING"
        ),
    ] {
        query(claims)
            .bind(columns::id_list(ids))
            .bind(now())
            .execute(connection)
            .await?;
    }
    Ok(())
}
