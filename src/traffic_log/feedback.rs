//! Feedback on answers, and the conditions under which it becomes preference pairs.
//!
//! Anyone who may give feedback can poison the training data with it, so by default it is only stored. Under
//! [`FeedbackTrust::Corroborated`] a preference becomes a pair once a verdict on the record agrees in both orders: one that a call
//! requested (`/judge`, `best_of`), or one by a stage's pinned judge, which reads the preferences that [`Replay::draw_preferences`](super::Replay::draw_preferences)
//! returns to the stage.

use std::sync::Arc;

use sql::{Connection, query};

use super::columns::{self, integer};
use super::database::Database;
use super::derive::derive;
use super::quota::Quotas;
use super::redact::Redactor;
use super::{
    Feedback, FeedbackOutcome, FeedbackTrust, LogError, LoggedPair, PairSource, Principal,
    RecordId, Result, Sample, now, record_read, record_write,
};

/// The bytes that a row of feedback counts for, besides the text of an edit.
const ROW: i64 = 128;

/// The feedback on records.
#[derive(Debug)]
pub struct FeedbackStore {
    pub(super) database: Arc<Database>,
    pub(super) redactor: Arc<Redactor>,
    pub(super) quotas: Arc<Quotas>,
    pub(super) max_record: usize,
    pub(super) trust: FeedbackTrust,
}

impl FeedbackStore {
    /// Returns the policy that decides when callers' feedback becomes preference pairs.
    pub fn trust(&self) -> FeedbackTrust {
        self.trust
    }

    /// Stores feedback and derives the pairs that the trust policy allows. New feedback by the same principal on the same answer replaces
    /// the old.
    ///
    /// # Errors
    /// Errors with [`LogError::NotFound`] for an unknown record, with [`LogError::Invalid`] for a sample it does not have, with
    /// [`LogError::TooLarge`] if the record would become too large, and with [`LogError::PrincipalQuota`] or [`LogError::Full`] if there
    /// is no room.
    pub async fn add(
        &self,
        record: &RecordId,
        principal: &Principal,
        mut feedback: Feedback,
    ) -> Result<FeedbackOutcome> {
        let mut redacted = false;
        if let Feedback::Edited { text, .. } = &mut feedback {
            redacted = self.redactor.redact_text(text).await?;
        }
        let mut transaction = self.database.begin().await?;
        let connection = transaction.connection();
        if record_write::lock(connection, record, redacted)
            .await?
            .is_none()
        {
            return Err(LogError::NotFound {
                what: "record",
                id: record.to_string(),
            });
        }
        let growth = store(connection, record, principal, &feedback).await?;
        if growth > 0 {
            let quotas = &self.quotas;
            let bytes = growth.unsigned_abs();
            self.check_growth(connection, record, bytes).await?;
            if let Some(refusal) = quotas.refusal(connection, principal, bytes).await? {
                return Err(refusal);
            }
            quotas.add(principal, bytes);
        }
        if growth != 0 {
            query("UPDATE records SET bytes = bytes + $1 WHERE id = $2")
                .bind(growth)
                .bind(record.as_str())
                .execute(connection)
                .await?;
        }
        let pairs = derive_pairs(connection, record, self.trust).await?;
        transaction.commit().await?;
        if growth < 0 {
            self.quotas.forget();
        }
        if matches!(feedback, Feedback::Edited { .. }) {
            // The text of an earlier edit has been overwritten.
            self.database.scrub_file().await;
        }
        Ok(FeedbackOutcome { pairs })
    }

    /// Refuses a growth by `growth` bytes beyond the maximum size of a record. The caller's transaction is then rolled back.
    async fn check_growth(
        &self,
        connection: &mut Connection,
        record: &RecordId,
        growth: u64,
    ) -> Result<()> {
        let bytes: i64 = query("SELECT bytes FROM records WHERE id = $1")
            .bind(record.as_str())
            .fetch_value(connection)
            .await?;
        let bytes = usize::try_from(bytes.unsigned_abs().saturating_add(growth));
        let (bytes, most) = (bytes.unwrap_or(usize::MAX), self.max_record);
        match bytes > most {
            true => Err(LogError::TooLarge { bytes, most }),
            false => Ok(()),
        }
    }
}

/// Returns the preferences of a record's principals, regardless of trust: the pairs under [`FeedbackTrust::Always`].
pub(super) async fn held(
    connection: &mut Connection,
    record: &RecordId,
) -> Result<Vec<LoggedPair>> {
    let feedback = record_read::read_feedback(connection, record).await?;
    let shown = usize::try_from(shown(connection, record).await?).unwrap_or(0);
    Ok(derive(&feedback, &[], shown, FeedbackTrust::Always))
}

/// Stores feedback, and replaces the principal's earlier feedback on the same answer. Returns the bytes by which the record grows.
async fn store(
    connection: &mut Connection,
    record: &RecordId,
    principal: &Principal,
    feedback: &Feedback,
) -> Result<i64> {
    let (kind, slot, sample) = match feedback {
        Feedback::Thumbs { sample, .. } => ("thumbs", integer(*sample), *sample),
        Feedback::Preferred { sample } => ("preferred", -1, *sample),
        Feedback::Edited { sample, .. } => ("edited", integer(*sample), *sample),
    };
    if integer(sample) >= shown(connection, record).await? {
        return Err(LogError::Invalid(format!(
            "the record has no sample {sample}"
        )));
    }
    let before: Option<Option<i64>> = query(
        "SELECT written FROM feedback WHERE record_id = $1 AND principal = $2 AND kind = $3 AND slot = $4",
    )
    .bind(record.as_str())
    .bind(principal.as_str())
    .bind(kind)
    .bind(slot)
    .fetch_optional_value(connection)
    .await?;
    let mut growth = if before.is_some() { 0 } else { ROW };
    let mut written = before.flatten();
    if let Feedback::Edited { text, .. } = feedback {
        let length = query(
            "SELECT CAST(octet_length(text) AS BIGINT) FROM samples WHERE record_id = $1 AND place = $2",
        );
        let length = length.bind(record.as_str()).bind(written.unwrap_or(-1));
        let length: Option<i64> = length.fetch_optional_value(connection).await?;
        // The text is stored twice: as a sample and in the feedback.
        growth += 2 * (integer(text.len()) - length.unwrap_or(0));
        match written {
            Some(place) => overwrite(connection, record, place, text).await?,
            None => {
                let [free, ..] = record_write::free_places(connection, record).await?;
                let edited = [Sample::given(text.as_str())];
                record_write::insert_samples(connection, record, free, &edited).await?;
                written = Some(free);
            }
        }
    }
    query(
        "INSERT INTO feedback (record_id, principal, kind, slot, body, written, created_at) \
         VALUES ($1, $2, $3, $4, $5, $6, $7) \
         ON CONFLICT (record_id, principal, kind, slot) \
         DO UPDATE SET body = excluded.body, written = excluded.written, created_at = excluded.created_at",
    )
    .bind(record.as_str())
    .bind(principal.as_str())
    .bind(kind)
    .bind(slot)
    .bind(columns::to_json(feedback)?)
    .bind(written)
    .bind(now())
    .execute(connection)
    .await?;
    Ok(growth)
}

async fn overwrite(
    connection: &mut Connection,
    record: &RecordId,
    place: i64,
    text: &str,
) -> Result<()> {
    query("UPDATE samples SET text = $3 WHERE record_id = $1 AND place = $2")
        .bind(record.as_str())
        .bind(place)
        .bind(text)
        .execute(connection)
        .await?;
    Ok(())
}

/// Removes all feedback of a principal on another principal's record. Its edits are emptied and not deleted, because the indices of later
/// samples must not change.
pub(super) async fn forget(
    connection: &mut Connection,
    record: &RecordId,
    principal: &Principal,
    trust: FeedbackTrust,
) -> Result<()> {
    let written: Vec<i64> = query(
        "SELECT written FROM feedback WHERE record_id = $1 AND principal = $2 AND written IS NOT NULL",
    )
    .bind(record.as_str())
    .bind(principal.as_str())
    .fetch_values(connection)
    .await?;
    for place in written {
        overwrite(connection, record, place, "").await?;
    }
    query("DELETE FROM feedback WHERE record_id = $1 AND principal = $2")
        .bind(record.as_str())
        .bind(principal.as_str())
        .execute(connection)
        .await?;
    derive_pairs(connection, record, trust).await?;
    Ok(())
}

/// Replaces a record's pairs from feedback by those that follow from its current feedback. Returns their number.
pub(super) async fn derive_pairs(
    connection: &mut Connection,
    record: &RecordId,
    trust: FeedbackTrust,
) -> Result<usize> {
    query("DELETE FROM pairs WHERE record_id = $1 AND source = $2")
        .bind(record.as_str())
        .bind(PairSource::Feedback.as_str())
        .execute(connection)
        .await?;
    // Under this policy no pair is derived, so no feedback is read.
    if trust == FeedbackTrust::Never {
        return Ok(0);
    }
    let feedback = record_read::read_feedback(connection, record).await?;
    let verdicts = record_read::read_corroborating(connection, record).await?;
    let shown = usize::try_from(shown(connection, record).await?).unwrap_or(0);
    let derived = derive(&feedback, &verdicts, shown, trust);
    let [_, _, pairs] = record_write::free_places(connection, record).await?;
    record_write::insert_pairs(connection, record, pairs, 0, &derived).await?;
    Ok(derived.len())
}

/// Returns the number of samples that the answer had.
async fn shown(connection: &mut Connection, record: &RecordId) -> Result<i64> {
    let shown = query("SELECT shown FROM records WHERE id = $1")
        .bind(record.as_str())
        .fetch_value(connection)
        .await?;
    Ok(shown)
}
