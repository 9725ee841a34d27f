//! Deletion: what somebody takes back is gone from replay, from derived pairs and from exports.
//!
//! The rows that hang on a record go with it by the schema. Its id stays as a tombstone, and so do the stages that read it, for
//! [`TrafficLog::lineage`](super::TrafficLog::lineage).

use serde_json::json;

use super::{
    Principal, RecordId, Result, Scope, TrafficLog, UnixMillis, events, feedback, now, rows,
};

impl TrafficLog {
    /// Deletes a record with its samples, verdicts, pairs and feedback. False if it is not there or not in the scope. What stays
    /// is its id, so that [`TrafficLog::lineage`] can say which generations read it.
    pub async fn delete(&self, id: &RecordId, scope: &Scope) -> Result<bool> {
        let mut transaction = self.database().begin().await?;
        let connection = transaction.connection();
        let (actor, deleted) = match scope {
            Scope::All => (
                "operator",
                sqlx::query("DELETE FROM records WHERE id = $1")
                    .bind(id.as_str())
                    .execute(&mut *connection)
                    .await?,
            ),
            Scope::Only(principal) => (
                "principal",
                sqlx::query("DELETE FROM records WHERE id = $1 AND principal = $2")
                    .bind(id.as_str())
                    .bind(principal.as_str())
                    .execute(&mut *connection)
                    .await?,
            ),
        };
        let there = deleted.rows_affected() > 0;
        if there {
            sqlx::query(
                "INSERT INTO tombstones (record_id, deleted_at) VALUES ($1, $2) ON CONFLICT (record_id) DO NOTHING",
            )
            .bind(id.as_str())
            .bind(now())
            .execute(&mut *connection)
            .await?;
            events::append(connection, actor, "record.deleted", json!({ "record": id })).await?;
        }
        transaction.commit().await?;
        self.shared.counters.forget(there.into());
        Ok(there)
    }

    /// Deletes all of a principal's records and its feedback on others'. Returns the number of records.
    ///
    /// Pairs that followed from its feedback are derived anew from what others said; answers it wrote are emptied.
    pub async fn delete_principal(&self, principal: &Principal) -> Result<u64> {
        let mut transaction = self.database().begin().await?;
        let connection = transaction.connection();
        sqlx::query(
            "INSERT INTO tombstones (record_id, deleted_at) SELECT id, $2 FROM records WHERE principal = $1 \
             ON CONFLICT (record_id) DO NOTHING",
        )
        .bind(principal.as_str())
        .bind(now())
        .execute(&mut *connection)
        .await?;
        let deleted = sqlx::query("DELETE FROM records WHERE principal = $1")
            .bind(principal.as_str())
            .execute(&mut *connection)
            .await?
            .rows_affected();
        let others: Vec<String> =
            sqlx::query_scalar("SELECT DISTINCT record_id FROM feedback WHERE principal = $1")
                .bind(principal.as_str())
                .fetch_all(&mut *connection)
                .await?;
        for record in others {
            let record = rows::stored_id(record)?;
            feedback::forget(connection, &record, principal, self.shared.trust).await?;
        }
        // Without the principal: what cannot be deleted must not name who asked for deletion.
        let detail = json!({ "records": deleted });
        events::append(connection, "principal", "principal.deleted", detail).await?;
        transaction.commit().await?;
        self.shared.counters.forget(deleted);
        Ok(deleted)
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
        let detail = json!({ "records": withdrawn });
        events::append(connection, "principal", "consent.withdrawn", detail).await?;
        transaction.commit().await?;
        Ok(withdrawn)
    }

    /// Deletes what is older than the retention. Returns the number of records.
    pub async fn expire(&self, now: UnixMillis) -> Result<u64> {
        let Some(retention) = self.shared.retention else {
            return Ok(0);
        };
        let age = i64::try_from(retention.as_millis()).unwrap_or(i64::MAX);
        let oldest = now.saturating_sub(age);
        let mut transaction = self.database().begin().await?;
        let connection = transaction.connection();
        sqlx::query(
            "INSERT INTO tombstones (record_id, deleted_at) SELECT id, $2 FROM records WHERE created_at < $1 \
             ON CONFLICT (record_id) DO NOTHING",
        )
        .bind(oldest)
        .bind(now)
        .execute(&mut *connection)
        .await?;
        let deleted = sqlx::query("DELETE FROM records WHERE created_at < $1")
            .bind(oldest)
            .execute(&mut *connection)
            .await?
            .rows_affected();
        if deleted > 0 {
            let detail = json!({ "records": deleted, "created_before": oldest });
            events::append(connection, "retention", "records.expired", detail).await?;
        }
        transaction.commit().await?;
        self.shared.counters.forget(deleted);
        Ok(deleted)
    }
}
