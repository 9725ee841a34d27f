//! Conversion of records to rows and back.

use sql::{Connection, List, Row, insert_rows, locking, query};

use super::naming::{Earlier, StoredName};
use super::quota::{self, Quotas};
use super::{
    Consent, Feedback, LogError, LoggedFeedback, LoggedPair, LoggedRecord, LoggedVerdict,
    PairSource, Principal, Prompt, RecordId, RecordKind, RecordSize, Result, Sample, Scope,
    UnixMillis,
};

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
    pub name: Option<StoredName>,
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
    .bind(row.name.as_ref().map(|name| name.digest.as_str()))
    .bind(row.created_at)
    .bind(row.id.bucket())
    .bind(i64::from(record.consent.retain))
    .bind(i64::from(record.consent.train))
    .bind(prompt)
    .bind(bytes_of_ids(&record.prompt_token_ids))
    .bind(i64::from(row.redacted))
    .bind(record.version.as_str())
    .bind(index(record.samples.len()))
    .bind(row.tokenizer.as_deref().unwrap_or_default())
    .bind(row.name.as_ref().map(|name| name.request.as_str()))
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
    insert_verdicts(connection, &row.id, [0, 0], Asked::ByCall, &record.verdicts).await?;
    insert_pairs(connection, &row.id, 0, 0, &record.pairs).await?;
    quotas.add(&record.principal, bytes);
    Ok(Inserted::New(row.id.clone()))
}

/// Returns the record of an earlier call with the same idempotency key. The stricter consent of the two applies.
async fn repeated(connection: &mut Connection, row: &NewRow) -> Result<Option<Inserted>> {
    let Some(name) = &row.name else {
        return Ok(None);
    };
    let Some(earlier) = Earlier::find(connection, &row.record.principal, name).await? else {
        return Ok(None);
    };
    if !earlier.is_of(&row.record, name)? {
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
pub(super) enum Asked {
    /// A call, under principles of its choice.
    ByCall,
    /// The learner, under the operator's principles.
    ByLearner,
}

/// Inserts verdicts with places from `first`; `first_sample` is added to the indices of samples.
pub(super) async fn insert_verdicts(
    connection: &mut Connection,
    id: &RecordId,
    [first, first_sample]: [i64; 2],
    asked: Asked,
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
        ("a", integers(&|one| first_sample + index(one.a))),
        ("b", integers(&|one| first_sample + index(one.b))),
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
            integers(&|_| i64::from(asked == Asked::ByLearner)),
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
        let samples = pairs.iter().map(|pair| first_sample + index(column(pair)));
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

/// Reads the size of a record.
pub(super) async fn read_size(
    connection: &mut Connection,
    id: &RecordId,
    scope: &Scope,
) -> Result<Option<RecordSize>> {
    let found = query("SELECT principal, shown, bytes FROM records WHERE id = $1")
        .bind(id.as_str())
        .fetch_optional(connection)
        .await?;
    let Some(row) = found else { return Ok(None) };
    let principal = Principal::stored(row.get("principal")?);
    if !scope.includes(&principal) {
        return Ok(None);
    }
    // The record's own byte count does not include the learner's additions.
    let samples = query(
        "SELECT COUNT(*) AS samples, CAST(COALESCE(MAX(octet_length(sampling)), 0) AS BIGINT) AS sampling, \
         CAST(COALESCE(SUM(octet_length(text) + octet_length(token_ids) + octet_length(logprobs)), 0) AS BIGINT) AS written \
         FROM samples WHERE record_id = $1",
    )
    .bind(id.as_str())
    .fetch_one(connection)
    .await?;
    let number = |row: &Row, column: &str| -> Result<usize> {
        let number: i64 = row.get(column)?;
        Ok(usize::try_from(number).unwrap_or(0))
    };
    let of_each = number(&samples, "sampling")? + size_of::<Sample>();
    let written_out = number(&samples, "samples")?.saturating_mul(of_each);
    Ok(Some(RecordSize {
        shown: number(&row, "shown")?,
        bytes: number(&row, "bytes")?
            .max(number(&samples, "written")?)
            .saturating_add(written_out),
    }))
}

/// Reads a whole record.
pub(super) async fn read_record(
    connection: &mut Connection,
    id: &RecordId,
    scope: &Scope,
) -> Result<Option<LoggedRecord>> {
    let found = query(
        "SELECT kind, principal, created_at, retain, train, prompt, prompt_token_ids, redacted, version \
         FROM records WHERE id = $1",
    )
    .bind(id.as_str())
    .fetch_optional(connection)
    .await?;
    let Some(row) = found else { return Ok(None) };
    let principal = Principal::stored(row.get("principal")?);
    if !scope.includes(&principal) {
        return Ok(None);
    }
    Ok(Some(LoggedRecord {
        id: id.clone(),
        kind: RecordKind::stored(row.get("kind")?)?,
        principal,
        created_at: row.get("created_at")?,
        consent: Consent {
            retain: truth(&row, "retain")?,
            train: truth(&row, "train")?,
        },
        prompt: from_json::<Prompt>(row.get("prompt")?)?,
        prompt_token_ids: ids_of_bytes(row.get("prompt_token_ids")?)?,
        redacted: truth(&row, "redacted")?,
        version: row.get("version")?,
        samples: read_samples(connection, id).await?,
        verdicts: read_verdicts(connection, id).await?,
        pairs: read_pairs(connection, id).await?,
        feedback: read_feedback(connection, id)
            .await?
            .into_iter()
            .map(|(feedback, _)| feedback)
            .collect(),
    }))
}

async fn read_samples(connection: &mut Connection, id: &RecordId) -> Result<Vec<Sample>> {
    let rows = query(
        "SELECT token_ids, text, logprobs, seed, sampling, finish_reason, version \
         FROM samples WHERE record_id = $1 ORDER BY place",
    )
    .bind(id.as_str())
    .fetch_all(connection)
    .await?;
    let sample = |row: Row| -> Result<Sample> {
        Ok(Sample {
            token_ids: ids_of_bytes(row.get("token_ids")?)?,
            text: row.get("text")?,
            logprobs: logprobs_of_bytes(row.get("logprobs")?)?,
            seed: row.get::<Option<i64>>("seed")?.map(i64::cast_unsigned),
            sampling: from_json(row.get("sampling")?)?,
            finish_reason: row.get("finish_reason")?,
            version: row.get("version")?,
        })
    };
    let samples: Result<Vec<Sample>> = rows.into_iter().map(sample).collect();
    let mut samples = samples?;
    Sample::write_out(&mut samples);
    Ok(samples)
}

async fn read_verdicts(connection: &mut Connection, id: &RecordId) -> Result<Vec<LoggedVerdict>> {
    let rows = query(
        "SELECT a, b, p_first, p_second, p, consistent, label_mass, principles, version \
         FROM verdicts WHERE record_id = $1 ORDER BY place",
    )
    .bind(id.as_str())
    .fetch_all(connection)
    .await?;
    verdicts(rows)
}

/// Reads the verdicts of a record that may corroborate feedback: those by the judge's default question or requested by the learner. A
/// verdict under principles that a call named only reflects the caller's wish.
pub(super) async fn read_corroborating(
    connection: &mut Connection,
    id: &RecordId,
) -> Result<Vec<LoggedVerdict>> {
    let rows = query(
        "SELECT a, b, p_first, p_second, p, consistent, label_mass, principles, version \
         FROM verdicts WHERE record_id = $1 AND (pinned = 1 OR principles = '[]') ORDER BY place",
    )
    .bind(id.as_str())
    .fetch_all(connection)
    .await?;
    verdicts(rows)
}

fn verdicts(rows: Vec<Row>) -> Result<Vec<LoggedVerdict>> {
    let verdict = |row: Row| -> Result<LoggedVerdict> {
        Ok(LoggedVerdict {
            a: place(&row, "a")?,
            b: place(&row, "b")?,
            orders: [
                probability(&row, "p_first")?,
                probability(&row, "p_second")?,
            ],
            p: probability(&row, "p")?,
            consistent: truth(&row, "consistent")?,
            label_mass: probability(&row, "label_mass")?,
            principles: from_json(row.get("principles")?)?,
            version: row.get("version")?,
        })
    };
    rows.into_iter().map(verdict).collect()
}

async fn read_pairs(connection: &mut Connection, id: &RecordId) -> Result<Vec<LoggedPair>> {
    let rows = query(
        "SELECT chosen, rejected, margin, source, principles FROM pairs WHERE record_id = $1 ORDER BY place",
    )
    .bind(id.as_str())
    .fetch_all(connection)
    .await?;
    let pair = |row: Row| -> Result<LoggedPair> {
        Ok(LoggedPair {
            chosen: place(&row, "chosen")?,
            rejected: place(&row, "rejected")?,
            margin: probability(&row, "margin")?,
            source: PairSource::stored(row.get("source")?)?,
            principles: from_json(row.get("principles")?)?,
        })
    };
    rows.into_iter().map(pair).collect()
}

/// Reads a record's feedback, with the sample of each edit.
pub(super) async fn read_feedback(
    connection: &mut Connection,
    id: &RecordId,
) -> Result<Vec<(LoggedFeedback, Option<usize>)>> {
    let rows = query(
        "SELECT principal, created_at, body, written FROM feedback WHERE record_id = $1 \
         ORDER BY created_at, principal, kind, slot",
    )
    .bind(id.as_str())
    .fetch_all(connection)
    .await?;
    let feedback = |row: Row| -> Result<_> {
        let written: Option<i64> = row.get("written")?;
        let feedback = LoggedFeedback {
            principal: Principal::stored(row.get("principal")?),
            created_at: row.get("created_at")?,
            feedback: from_json::<Feedback>(row.get("body")?)?,
        };
        Ok((feedback, written.and_then(|at| usize::try_from(at).ok())))
    };
    rows.into_iter().map(feedback).collect()
}

/// Returns ids as a list for a statement.
pub(super) fn texts(ids: &[RecordId]) -> Vec<String> {
    ids.iter().map(|id| id.as_str().to_owned()).collect()
}

/// Converts the index of a sample to the database's integer type.
pub(super) fn index(place: usize) -> i64 {
    i64::try_from(place).unwrap_or(i64::MAX)
}

fn place(row: &Row, column: &str) -> Result<usize> {
    let place: i64 = row.get(column)?;
    usize::try_from(place).map_err(|_| LogError::Corrupt(format!("{column} is {place}")))
}

fn probability(row: &Row, column: &str) -> Result<f32> {
    Ok(row.get::<f64>(column)? as f32)
}

pub(super) fn truth(row: &Row, column: &str) -> Result<bool> {
    Ok(row.get::<i64>(column)? != 0)
}

pub(super) fn stored_id(id: String) -> Result<RecordId> {
    RecordId::try_from(id).map_err(LogError::Corrupt)
}

pub(super) fn to_json(value: &impl serde::Serialize) -> Result<String> {
    serde_json::to_string(value).map_err(|error| LogError::Invalid(error.to_string()))
}

pub(super) fn from_json<T: serde::de::DeserializeOwned>(text: &str) -> Result<T> {
    serde_json::from_str(text).map_err(|error| LogError::Corrupt(error.to_string()))
}

/// Converts token ids to bytes: little-endian, four bytes each.
fn bytes_of_ids(ids: &[u32]) -> Vec<u8> {
    ids.iter().flat_map(|id| id.to_le_bytes()).collect()
}

pub(super) fn ids_of_bytes(bytes: &[u8]) -> Result<Vec<u32>> {
    Ok(words(bytes)?.into_iter().map(u32::from_le_bytes).collect())
}

/// Converts log-probabilities to bytes: little-endian, four bytes each, so that every bit is preserved.
fn bytes_of_logprobs(logprobs: &[f32]) -> Vec<u8> {
    logprobs.iter().flat_map(|x| x.to_le_bytes()).collect()
}

fn logprobs_of_bytes(bytes: &[u8]) -> Result<Vec<f32>> {
    Ok(words(bytes)?.into_iter().map(f32::from_le_bytes).collect())
}

fn words(bytes: &[u8]) -> Result<Vec<[u8; 4]>> {
    let (words, rest) = bytes.as_chunks::<4>();
    if !rest.is_empty() {
        return Err(LogError::Corrupt(format!(
            "{} bytes are not a whole number of words",
            bytes.len()
        )));
    }
    Ok(words.to_vec())
}
