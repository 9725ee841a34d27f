//! What people say of answers, and when it is believed.
//!
//! Whoever may give feedback can poison with it, so by default it is only kept. Under [`FeedbackTrust::Corroborated`] a preference
//! becomes a pair once a verdict of the record says the same in both orders: one that a call asked for (`/judge`, `best_of`), or that
//! of a stage's pinned judge, which reads what [`TrafficLog::draw_preferences`] hands to a stage.

use sqlx::AnyConnection;

use super::derive::derive;
use super::rows::{self, index};
use super::{
    Feedback, FeedbackOutcome, FeedbackTrust, LogError, LoggedPair, PairSource, Principal,
    RecordId, Result, Sample, TrafficLog, now,
};

/// Bytes that count for a row of feedback besides an edit's text.
const ROW: i64 = 128;

impl TrafficLog {
    /// Stores feedback and derives the pairs that the trust policy allows. A principal that says something else of the same answer
    /// takes back what it said before.
    ///
    /// # Errors
    /// [`LogError::NotFound`] for an unknown record, [`LogError::Invalid`] for a sample it does not have, [`LogError::TooLarge`] for a
    /// record that would be too large with it, [`LogError::PrincipalQuota`] and [`LogError::Full`] where there is no room for it.
    pub async fn add_feedback(
        &self,
        record: &RecordId,
        principal: &Principal,
        mut feedback: Feedback,
    ) -> Result<FeedbackOutcome> {
        let mut redacted = false;
        if let Feedback::Edited { text, .. } = &mut feedback {
            redacted = self.shared.redactor.redact_text(text).await?;
        }
        let mut transaction = self.database().begin().await?;
        let connection = transaction.connection();
        // Even where it changes nothing, the update keeps the record from being deleted meanwhile.
        let there = sqlx::query(
            "UPDATE records SET redacted = CASE WHEN $1 = 1 THEN 1 ELSE redacted END WHERE id = $2",
        )
        .bind(i64::from(redacted))
        .bind(record.as_str())
        .execute(&mut *connection)
        .await?;
        if there.rows_affected() == 0 {
            return Err(LogError::NotFound {
                what: "record",
                id: record.to_string(),
            });
        }
        let more = store(connection, record, principal, &feedback).await?;
        if more > 0 {
            let quotas = &self.shared.quotas;
            let bytes = more.unsigned_abs();
            self.check_growth(connection, record, bytes).await?;
            if let Some(refusal) = quotas.refusal(connection, principal, bytes).await? {
                return Err(refusal);
            }
            quotas.add(principal, bytes);
        }
        if more != 0 {
            sqlx::query("UPDATE records SET bytes = bytes + $1 WHERE id = $2")
                .bind(more)
                .bind(record.as_str())
                .execute(&mut *connection)
                .await?;
        }
        let pairs = derive_again(connection, record, self.shared.trust).await?;
        transaction.commit().await?;
        if more < 0 {
            self.shared.quotas.forget();
        }
        if matches!(feedback, Feedback::Edited { .. }) {
            // An edit before it is gone.
            self.database().scrub_file().await;
        }
        Ok(FeedbackOutcome { pairs })
    }

    /// Refuses to let a record grow by `more` bytes beyond what a record may have. What was written before is rolled back.
    async fn check_growth(
        &self,
        connection: &mut AnyConnection,
        record: &RecordId,
        more: u64,
    ) -> Result<()> {
        let bytes: i64 = sqlx::query_scalar("SELECT bytes FROM records WHERE id = $1")
            .bind(record.as_str())
            .fetch_one(connection)
            .await?;
        let bytes = usize::try_from(bytes.unsigned_abs().saturating_add(more));
        let (bytes, most) = (bytes.unwrap_or(usize::MAX), self.max_record());
        match bytes > most {
            true => Err(LogError::TooLarge { bytes, most }),
            false => Ok(()),
        }
    }
}

/// What a record's principals prefer, whether it is believed or not: the pairs of a policy that always trusts.
pub(super) async fn held(
    connection: &mut AnyConnection,
    record: &RecordId,
) -> Result<Vec<LoggedPair>> {
    let said = rows::read_feedback(connection, record).await?;
    let shown = usize::try_from(shown(connection, record).await?).unwrap_or(0);
    Ok(derive(&said, &[], shown, FeedbackTrust::Always))
}

/// Stores feedback in place of what the principal said before of the same. Returns the bytes by which the record grows.
async fn store(
    connection: &mut AnyConnection,
    record: &RecordId,
    principal: &Principal,
    feedback: &Feedback,
) -> Result<i64> {
    let (kind, slot, sample) = match feedback {
        Feedback::Thumbs { sample, .. } => ("thumbs", index(*sample), *sample),
        Feedback::Preferred { sample } => ("preferred", -1, *sample),
        Feedback::Edited { sample, .. } => ("edited", index(*sample), *sample),
    };
    if index(sample) >= shown(connection, record).await? {
        return Err(LogError::Invalid(format!(
            "the record has no sample {sample}"
        )));
    }
    let before: Option<Option<i64>> = sqlx::query_scalar(
        "SELECT written FROM feedback WHERE record_id = $1 AND principal = $2 AND kind = $3 AND slot = $4",
    )
    .bind(record.as_str())
    .bind(principal.as_str())
    .bind(kind)
    .bind(slot)
    .fetch_optional(&mut *connection)
    .await?;
    let mut more = if before.is_some() { 0 } else { ROW };
    let mut written = before.flatten();
    if let Feedback::Edited { text, .. } = feedback {
        let length = sqlx::query_scalar(
            "SELECT CAST(octet_length(text) AS BIGINT) FROM samples WHERE record_id = $1 AND place = $2",
        );
        let length = length.bind(record.as_str()).bind(written.unwrap_or(-1));
        let length: Option<i64> = length.fetch_optional(&mut *connection).await?;
        // It is kept as the answer it became and as it was said.
        more += 2 * (index(text.len()) - length.unwrap_or(0));
        match written {
            Some(place) => write_over(connection, record, place, text).await?,
            None => {
                let [free, ..] = rows::free_places(connection, record).await?;
                let edited = [Sample::given(text.as_str())];
                rows::insert_samples(connection, record, free, &edited).await?;
                written = Some(free);
            }
        }
    }
    sqlx::query(
        "INSERT INTO feedback (record_id, principal, kind, slot, body, written, created_at) \
         VALUES ($1, $2, $3, $4, $5, $6, $7) \
         ON CONFLICT (record_id, principal, kind, slot) \
         DO UPDATE SET body = excluded.body, written = excluded.written, created_at = excluded.created_at",
    )
    .bind(record.as_str())
    .bind(principal.as_str())
    .bind(kind)
    .bind(slot)
    .bind(rows::to_json(feedback)?)
    .bind(written)
    .bind(now())
    .execute(connection)
    .await?;
    Ok(more)
}

async fn write_over(
    connection: &mut AnyConnection,
    record: &RecordId,
    place: i64,
    text: &str,
) -> Result<()> {
    sqlx::query("UPDATE samples SET text = $3 WHERE record_id = $1 AND place = $2")
        .bind(record.as_str())
        .bind(place)
        .bind(text)
        .execute(connection)
        .await?;
    Ok(())
}

/// Takes back all a principal said of somebody else's record. What it wrote is emptied and not removed: the indices of the samples
/// behind it must not move.
pub(super) async fn forget(
    connection: &mut AnyConnection,
    record: &RecordId,
    principal: &Principal,
    trust: FeedbackTrust,
) -> Result<()> {
    let written: Vec<i64> = sqlx::query_scalar(
        "SELECT written FROM feedback WHERE record_id = $1 AND principal = $2 AND written IS NOT NULL",
    )
    .bind(record.as_str())
    .bind(principal.as_str())
    .fetch_all(&mut *connection)
    .await?;
    for place in written {
        write_over(connection, record, place, "").await?;
    }
    sqlx::query("DELETE FROM feedback WHERE record_id = $1 AND principal = $2")
        .bind(record.as_str())
        .bind(principal.as_str())
        .execute(&mut *connection)
        .await?;
    derive_again(connection, record, trust).await?;
    Ok(())
}

/// Replaces a record's pairs from feedback by those that follow from what is said now. Returns how many.
pub(super) async fn derive_again(
    connection: &mut AnyConnection,
    record: &RecordId,
    trust: FeedbackTrust,
) -> Result<usize> {
    sqlx::query("DELETE FROM pairs WHERE record_id = $1 AND source = $2")
        .bind(record.as_str())
        .bind(PairSource::Feedback.as_str())
        .execute(&mut *connection)
        .await?;
    // Nothing is believed, so nothing has to be read.
    if trust == FeedbackTrust::Never {
        return Ok(0);
    }
    let said = rows::read_feedback(connection, record).await?;
    let verdicts = rows::read_corroborating(connection, record).await?;
    let shown = usize::try_from(shown(connection, record).await?).unwrap_or(0);
    let derived = derive(&said, &verdicts, shown, trust);
    let [_, _, pairs] = rows::free_places(connection, record).await?;
    rows::insert_pairs(connection, record, pairs, 0, &derived).await?;
    Ok(derived.len())
}

/// How many samples the answer had.
async fn shown(connection: &mut AnyConnection, record: &RecordId) -> Result<i64> {
    let shown = sqlx::query_scalar("SELECT shown FROM records WHERE id = $1")
        .bind(record.as_str())
        .fetch_one(connection)
        .await?;
    Ok(shown)
}
