//! Insertion of records with their samples, verdicts and pairs.

use sql::{Connection, List, insert_rows, locking, query};

use super::columns::{bytes_of_ids, bytes_of_logprobs, integer, to_json};
use super::idempotency::{Earlier, StoredKey};
use super::quota::{self, Quotas};
use super::{LogError, LoggedPair, LoggedVerdict, RecordId, Result, Sample, UnixMillis};

/// A record after checks and redaction.
#[derive(Debug)]
pub(super) struct NewRow {
    pub id: RecordId,
    pub created_at: UnixMillis,
    pub record: super::NewRecord,
    /// Whether redaction changed the record.
    pub redacted: bool,
    /// The digest of the tokenizer that produced the record's token ids, if known.
    pub tokenizer: Option<String>,
    pub key: Option<StoredKey>,
}

/// The result of an insertion.
#[derive(Debug)]
pub(super) enum Inserted {
    New(RecordId),
    /// The record repeats the call of this one.
    Known(RecordId),
    /// Nothing was written, for a reason that does not affect other records.
    Refused(LogError),
}

/// Inserts a record with all its rows, unless its idempotency key already has a record or there is no room.
pub(super) async fn insert_record(
    connection: &mut Connection,
    row: &NewRow,
    quotas: &Quotas,
) -> Result<Inserted> {
    let record = &row.record;
    if let Some(repeated) = repeated(connection, row).await? {
        return Ok(repeated);
    }
    let prompt = to_json(&record.prompt)?;
    let bytes = quota::bytes(record, prompt.len());
    if let Some(refusal) = quotas.refusal(connection, &record.principal, bytes).await? {
        return Ok(Inserted::Refused(refusal));
    }
    let made = query(
        "INSERT INTO records (id, kind, principal, idempotency_key, created_at, bucket, retain, train, prompt, \
         prompt_token_ids, redacted, version, shown, tokenizer, request_digest, bytes) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16) \
         ON CONFLICT (principal, idempotency_key) DO NOTHING",
    )
    .bind(row.id.as_str())
    .bind(record.kind.as_str())
    .bind(record.principal.as_str())
    .bind(row.key.as_ref().map(|key| key.digest.as_str()))
    .bind(row.created_at)
    .bind(row.id.bucket())
    .bind(i64::from(record.consent.retain))
    .bind(i64::from(record.consent.train))
    .bind(prompt)
    .bind(bytes_of_ids(&record.prompt_token_ids))
    .bind(i64::from(row.redacted))
    .bind(record.version.as_str())
    .bind(integer(record.samples.len()))
    .bind(row.tokenizer.as_deref().unwrap_or_default())
    .bind(row.key.as_ref().map(|key| key.request.as_str()))
    .bind(i64::try_from(bytes).unwrap_or(i64::MAX))
    .execute(connection)
    .await?;
    if made == 0 {
        // Another server on the same log was faster.
        let repeated = repeated(connection, row).await?;
        return repeated.ok_or_else(|| {
            LogError::Corrupt(
                "an idempotency key is taken, but its record does not exist".to_owned(),
            )
        });
    }
    insert_samples(connection, &row.id, 0, &record.samples).await?;
    insert_verdicts(
        connection,
        &row.id,
        [0, 0],
        Requester::Call,
        &record.verdicts,
    )
    .await?;
    insert_pairs(connection, &row.id, 0, 0, &record.pairs).await?;
    quotas.add(&record.principal, bytes);
    Ok(Inserted::New(row.id.clone()))
}

/// Returns the record of an earlier call with the same idempotency key. The stricter consent of the two applies.
async fn repeated(connection: &mut Connection, row: &NewRow) -> Result<Option<Inserted>> {
    let Some(key) = &row.key else {
        return Ok(None);
    };
    let Some(earlier) = Earlier::find(connection, &row.record.principal, key).await? else {
        return Ok(None);
    };
    if !earlier.is_of(&row.record, key)? {
        return Ok(Some(Inserted::Refused(LogError::IdempotencyReused)));
    }
    earlier.restrict(connection, row.record.consent).await?;
    Ok(Some(Inserted::Known(earlier.id)))
}

/// Locks a record against deletion until the end of the transaction, and marks it as redacted if `redacted`. Returns whether it may be
/// trained on; none if it does not exist.
pub(super) async fn lock(
    connection: &mut Connection,
    id: &RecordId,
    redacted: bool,
) -> Result<Option<bool>> {
    let train: Option<i64> = query(locking!("SELECT train FROM records WHERE id = $1"))
        .bind(id.as_str())
        .fetch_optional_value(connection)
        .await?;
    if redacted && train.is_some() {
        query("UPDATE records SET redacted = 1 WHERE id = $1")
            .bind(id.as_str())
            .execute(connection)
            .await?;
    }
    Ok(train.map(|train| train != 0))
}

pub(super) async fn insert_samples(
    connection: &mut Connection,
    id: &RecordId,
    first: i64,
    samples: &[Sample],
) -> Result<()> {
    for (place, sample) in (first..).zip(samples) {
        query(
            "INSERT INTO samples (record_id, place, token_ids, text, logprobs, seed, sampling, finish_reason, version) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
        )
        .bind(id.as_str())
        .bind(place)
        .bind(bytes_of_ids(&sample.token_ids))
        .bind(sample.text.as_str())
        .bind(bytes_of_logprobs(&sample.logprobs))
        .bind(sample.seed.map(u64::cast_signed))
        .bind(to_json(&sample.sampling)?)
        .bind(sample.finish_reason.as_deref())
        .bind(sample.version.as_deref())
        .execute(connection)
        .await?;
    }
    Ok(())
}

/// The requester of a verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Requester {
    /// A call, under principles of its choice.
    Call,
    /// The learner, under the operator's principles.
    Learner,
}

/// Inserts verdicts with places from `first`; `first_sample` is added to the indices of samples.
pub(super) async fn insert_verdicts(
    connection: &mut Connection,
    id: &RecordId,
    [first, first_sample]: [i64; 2],
    requester: Requester,
    verdicts: &[LoggedVerdict],
) -> Result<()> {
    let integers = |column: &dyn Fn(&LoggedVerdict) -> i64| {
        List::Integers(verdicts.iter().map(column).collect())
    };
    let reals = |column: &dyn Fn(&LoggedVerdict) -> f32| {
        List::Reals(verdicts.iter().map(|one| f64::from(column(one))).collect())
    };
    let principles: Result<Vec<String>> = verdicts
        .iter()
        .map(|one| to_json(&one.principles))
        .collect();
    let columns = vec![
        (
            "place",
            List::Integers((first..).take(verdicts.len()).collect()),
        ),
        ("a", integers(&|one| first_sample + integer(one.a))),
        ("b", integers(&|one| first_sample + integer(one.b))),
        ("p_first", reals(&|one| one.orders[0])),
        ("p_second", reals(&|one| one.orders[1])),
        ("p", reals(&|one| one.p)),
        ("consistent", integers(&|one| i64::from(one.consistent))),
        ("label_mass", reals(&|one| one.label_mass)),
        ("principles", List::Texts(principles?)),
        (
            "version",
            List::Texts(verdicts.iter().map(|one| one.version.clone()).collect()),
        ),
        (
            "pinned",
            integers(&|_| i64::from(requester == Requester::Learner)),
        ),
    ];
    Ok(insert_rows(connection, "verdicts", ("record_id", id.as_str()), columns).await?)
}

/// Inserts pairs; `first_sample` is added to the indices of samples.
pub(super) async fn insert_pairs(
    connection: &mut Connection,
    id: &RecordId,
    first: i64,
    first_sample: i64,
    pairs: &[LoggedPair],
) -> Result<()> {
    let samples = |column: &dyn Fn(&LoggedPair) -> usize| {
        let samples = pairs
            .iter()
            .map(|pair| first_sample + integer(column(pair)));
        List::Integers(samples.collect())
    };
    let principles: Result<Vec<String>> =
        pairs.iter().map(|pair| to_json(&pair.principles)).collect();
    let columns = vec![
        (
            "place",
            List::Integers((first..).take(pairs.len()).collect()),
        ),
        ("chosen", samples(&|pair| pair.chosen)),
        ("rejected", samples(&|pair| pair.rejected)),
        (
            "margin",
            List::Reals(pairs.iter().map(|pair| f64::from(pair.margin)).collect()),
        ),
        (
            "source",
            List::Texts(pairs.iter().map(|pair| pair.source.to_string()).collect()),
        ),
        ("principles", List::Texts(principles?)),
    ];
    Ok(insert_rows(connection, "pairs", ("record_id", id.as_str()), columns).await?)
}

/// Returns the first free places among a record's samples, verdicts and pairs.
pub(super) async fn free_places(connection: &mut Connection, id: &RecordId) -> Result<[i64; 3]> {
    let row = query(
        "SELECT (SELECT COALESCE(MAX(place) + 1, 0) FROM samples WHERE record_id = $1) AS samples, \
         (SELECT COALESCE(MAX(place) + 1, 0) FROM verdicts WHERE record_id = $1) AS verdicts, \
         (SELECT COALESCE(MAX(place) + 1, 0) FROM pairs WHERE record_id = $1) AS pairs",
    )
    .bind(id.as_str())
    .fetch_one(connection)
    .await?;
    Ok([row.get("samples")?, row.get("verdicts")?, row.get("pairs")?])
}
