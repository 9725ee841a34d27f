//! Records: appending them through the writer's queue, and reading them.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use sql::{query, with_list};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{Semaphore, oneshot};

use super::database::Database;
use super::idempotency::{Earlier, StoredKey};
use super::model::ModelBinding;
use super::record_write::NewRow;
use super::redact::Redactor;
use super::writer::{Counters, Job, Writer};
use super::{
    IdempotencyKey, LogError, LoggedRecord, NewRecord, Principal, RecordId, RecordSize, Result,
    Scope, columns, now, record_read,
};

/// Bytes per permit of the queue's semaphore.
pub(super) const QUEUE_UNIT: usize = 1024;

/// The result of appending a record.
#[derive(Debug)]
pub(super) struct Appended {
    pub id: RecordId,
    /// False if the record repeats the call of an earlier one, which has this id.
    pub is_new: bool,
}

/// The records of the log.
#[derive(Debug)]
pub struct Records {
    pub(super) database: Arc<Database>,
    pub(super) redactor: Arc<Redactor>,
    /// The salt of the digests of idempotency keys.
    pub(super) salt: Arc<str>,
    pub(super) max_record: usize,
    /// The queue's limit in bytes, one permit for each [`QUEUE_UNIT`].
    pub(super) waiting: Arc<Semaphore>,
    pub(super) counters: Arc<Counters>,
    pub(super) model: Arc<ModelBinding>,
    pub(super) writer: Arc<Writer>,
}

impl Records {
    /// Appends a record and returns its id after the commit.
    ///
    /// # Errors
    /// Errors with [`LogError::TooLarge`]; at once with [`LogError::Overloaded`] if the queue is full; with [`LogError::Unavailable`] if
    /// the database cannot write; with [`LogError::PrincipalQuota`] or [`LogError::Full`] if there is no room; with
    /// [`LogError::IdempotencyReused`] if its key belongs to another request; with [`LogError::Redaction`]; and with
    /// [`LogError::Invalid`] for a record without consent to retention or with indices out of range.
    pub async fn append(&self, record: NewRecord) -> Result<RecordId> {
        Ok(self.append_or_find(record).await?.id)
    }

    /// Appends a record as [`Self::append`] does, and returns whether it is new or repeats the call of an earlier one.
    ///
    /// # Errors
    /// As [`Self::append`].
    pub(super) async fn append_or_find(&self, mut record: NewRecord) -> Result<Appended> {
        record.check()?;
        let (bytes, most) = (record.bytes(), self.max_record);
        if bytes > most {
            return Err(LogError::TooLarge { bytes, most });
        }
        let counters = &self.counters;
        let Some(queue) = self.writer.queue() else {
            return Err(LogError::Unavailable("the log was closed".to_owned()));
        };
        // The place is reserved before redaction, which may be slow, so that a full queue refuses a record at once.
        let units = u32::try_from(bytes.div_ceil(QUEUE_UNIT)).unwrap_or(u32::MAX);
        let Ok(waiting) = Arc::clone(&self.waiting).try_acquire_many_owned(units) else {
            counters.overloaded.fetch_add(1, Ordering::Relaxed);
            return Err(LogError::Overloaded);
        };
        let place = match queue.try_reserve() {
            Ok(place) => place,
            Err(TrySendError::Full(())) => {
                counters.overloaded.fetch_add(1, Ordering::Relaxed);
                return Err(LogError::Overloaded);
            }
            Err(TrySendError::Closed(())) => {
                counters.failed.fetch_add(1, Ordering::Relaxed);
                return Err(LogError::Unavailable(
                    "the log's writer task has ended".to_owned(),
                ));
            }
        };
        let queued = Instant::now();
        let redacted = match self.redactor.redact_record(&mut record).await {
            Ok(redacted) => redacted,
            Err(error) => {
                counters.failed.fetch_add(1, Ordering::Relaxed);
                return Err(error);
            }
        };
        let created_at = now();
        let key = record
            .idempotency_key
            .as_ref()
            .map(|key| StoredKey::of(key, &record.principal, &self.salt));
        let (reply, answer) = oneshot::channel();
        place.send(Job {
            row: NewRow {
                id: RecordId::new(created_at),
                created_at,
                record,
                redacted,
                tokenizer: self.model.tokenizer(),
                key,
            },
            queued,
            _waiting: waiting,
            reply,
        });
        answer.await.unwrap_or_else(|_| {
            Err(LogError::Unavailable(
                "the log's writer task has ended".to_owned(),
            ))
        })
    }

    /// Returns a record with its samples, verdicts, pairs and feedback; none if it does not exist or is out of scope.
    pub async fn get(&self, id: &RecordId, scope: &Scope) -> Result<Option<LoggedRecord>> {
        let mut reading = self.database.snapshot().await?;
        let record = record_read::read_record(&mut reading, id, scope).await?;
        reading.end().await?;
        Ok(record)
    }

    /// Returns the size of a record without reading it; none if it does not exist or is out of scope.
    pub async fn size_of(&self, id: &RecordId, scope: &Scope) -> Result<Option<RecordSize>> {
        let mut reading = self.database.snapshot().await?;
        let size = record_read::read_size(&mut reading, id, scope).await?;
        reading.end().await?;
        Ok(size)
    }

    /// Returns the maximum size of a record in bytes.
    pub fn max_record(&self) -> usize {
        self.max_record
    }

    /// Returns the record of a principal's key, if there is one.
    ///
    /// # Errors
    /// Errors with [`LogError::IdempotencyReused`] if the record is known to be of another request.
    pub async fn find_by_key(
        &self,
        principal: &Principal,
        key: &IdempotencyKey,
    ) -> Result<Option<RecordId>> {
        let stored = StoredKey::of(key, principal, &self.salt);
        let mut reading = self.database.snapshot().await?;
        let earlier = Earlier::find(&mut reading, principal, &stored).await?;
        reading.end().await?;
        match earlier {
            Some(Earlier {
                request: Some(request),
                ..
            }) if request != stored.request => Err(LogError::IdempotencyReused),
            earlier => Ok(earlier.map(|earlier| earlier.id)),
        }
    }

    /// Returns the newest record's id without a scan. If it is unchanged, no record has been added.
    pub async fn newest(&self) -> Result<Option<RecordId>> {
        let newest: Option<String> = query("SELECT MAX(id) FROM records")
            .fetch_value(&mut self.database.reader().await?)
            .await?;
        newest.map(columns::stored_id).transpose()
    }

    /// Returns the number of records of each of the principals, in their order.
    pub async fn count_of(&self, principals: &[Principal]) -> Result<Vec<u64>> {
        let names = principals
            .iter()
            .map(|principal| principal.as_str().to_owned());
        let rows = query(with_list!(
            "SELECT principal, COUNT(*) AS records FROM records WHERE principal",
            "$1",
            "GROUP BY principal"
        ))
        .bind(names.collect::<Vec<String>>())
        .fetch_all(&mut self.database.reader().await?)
        .await?;
        let mut counts: HashMap<String, u64> = HashMap::new();
        for row in &rows {
            counts.insert(
                row.get("principal")?,
                row.get::<i64>("records")?.unsigned_abs(),
            );
        }
        let count = |principal: &Principal| counts.get(principal.as_str()).copied().unwrap_or(0);
        Ok(principals.iter().map(count).collect())
    }
}
