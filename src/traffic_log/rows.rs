//! Conversion of records to rows and back.

use sqlx::any::AnyRow;
use sqlx::{AnyConnection, AssertSqlSafe, Row};

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
    connection: &mut AnyConnection,
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
    let made = sqlx::query(
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
    .execute(&mut *connection)
    .await?;
    if made.rows_affected() == 0 {
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
async fn repeated(connection: &mut AnyConnection, row: &NewRow) -> Result<Option<Inserted>> {
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

pub(super) async fn insert_samples(
    connection: &mut AnyConnection,
    id: &RecordId,
    first: i64,
    samples: &[Sample],
) -> Result<()> {
    for (place, sample) in (first..).zip(samples) {
        sqlx::query(
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
        .execute(&mut *connection)
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

/// The number of rows per statement: a record of a large tournament has thousands, and each statement is a round trip.
const CHUNK: usize = 64;

/// Returns the placeholders of `rows` rows: `($1, $2), ($3, $4)`.
fn placeholders(rows: usize, columns: usize) -> String {
    let row = |row: usize| {
        let columns = (1..=columns).map(|column| format!("${}", row * columns + column));
        format!("({})", columns.collect::<Vec<_>>().join(", "))
    };
    (0..rows).map(row).collect::<Vec<_>>().join(", ")
}

/// Inserts verdicts with places from `first`; `first_sample` is added to the indices of samples.
pub(super) async fn insert_verdicts(
    connection: &mut AnyConnection,
    id: &RecordId,
    [first, first_sample]: [i64; 2],
    asked: Asked,
    verdicts: &[LoggedVerdict],
) -> Result<()> {
    const COLUMNS: &str = "verdicts (record_id, place, a, b, p_first, p_second, p, consistent, label_mass, principles, version, pinned)";
    insert_numbered(
        connection,
        COLUMNS,
        first,
        verdicts,
        |query, place, verdict| {
            Ok(query
                .bind(id.as_str())
                .bind(place)
                .bind(first_sample + index(verdict.a))
                .bind(first_sample + index(verdict.b))
                .bind(f64::from(verdict.orders[0]))
                .bind(f64::from(verdict.orders[1]))
                .bind(f64::from(verdict.p))
                .bind(i64::from(verdict.consistent))
                .bind(f64::from(verdict.label_mass))
                .bind(to_json(&verdict.principles)?)
                .bind(verdict.version.as_str())
                .bind(i64::from(asked == Asked::ByLearner)))
        },
    )
    .await
}

/// Inserts pairs; `first_sample` is added to the indices of samples.
pub(super) async fn insert_pairs(
    connection: &mut AnyConnection,
    id: &RecordId,
    first: i64,
    first_sample: i64,
    pairs: &[LoggedPair],
) -> Result<()> {
    const COLUMNS: &str = "pairs (record_id, place, chosen, rejected, margin, source, principles)";
    insert_numbered(connection, COLUMNS, first, pairs, |query, place, pair| {
        Ok(query
            .bind(id.as_str())
            .bind(place)
            .bind(first_sample + index(pair.chosen))
            .bind(first_sample + index(pair.rejected))
            .bind(f64::from(pair.margin))
            .bind(pair.source.as_str())
            .bind(to_json(&pair.principles)?))
    })
    .await
}

type InsertQuery<'q> = sqlx::query::Query<'q, sqlx::Any, <sqlx::Any as sqlx::Database>::Arguments>;

/// Inserts items with numbers from `first`, one chunk per statement. `into` is the table with its columns; `bind` binds all columns of
/// one item.
async fn insert_numbered<'q, T>(
    connection: &mut AnyConnection,
    into: &str,
    first: i64,
    items: &'q [T],
    bind: impl Fn(InsertQuery<'q>, i64, &'q T) -> Result<InsertQuery<'q>>,
) -> Result<()> {
    let columns = into.matches(',').count() + 1;
    let mut place = first;
    for chunk in items.chunks(CHUNK) {
        let mut query = sqlx::query(AssertSqlSafe(format!(
            "INSERT INTO {into} VALUES {}",
            placeholders(chunk.len(), columns)
        )));
        for item in chunk {
            query = bind(query, place, item)?;
            place += 1;
        }
        query.execute(&mut *connection).await?;
    }
    Ok(())
}

/// Returns the first free places among a record's samples, verdicts and pairs.
pub(super) async fn free_places(connection: &mut AnyConnection, id: &RecordId) -> Result<[i64; 3]> {
    let row = sqlx::query(
        "SELECT (SELECT COALESCE(MAX(place) + 1, 0) FROM samples WHERE record_id = $1) AS samples, \
         (SELECT COALESCE(MAX(place) + 1, 0) FROM verdicts WHERE record_id = $1) AS verdicts, \
         (SELECT COALESCE(MAX(place) + 1, 0) FROM pairs WHERE record_id = $1) AS pairs",
    )
    .bind(id.as_str())
    .fetch_one(connection)
    .await?;
    Ok([
        row.try_get("samples")?,
        row.try_get("verdicts")?,
        row.try_get("pairs")?,
    ])
}

/// Reads the size of a record.
pub(super) async fn read_size(
    connection: &mut AnyConnection,
    id: &RecordId,
    scope: &Scope,
) -> Result<Option<RecordSize>> {
    let found = sqlx::query("SELECT principal, shown, bytes FROM records WHERE id = $1")
        .bind(id.as_str())
        .fetch_optional(&mut *connection)
        .await?;
    let Some(row) = found else { return Ok(None) };
    let principal = Principal::stored(row.try_get("principal")?);
    if !scope.includes(&principal) {
        return Ok(None);
    }
    // The record's own byte count does not include the learner's additions.
    let samples = sqlx::query(
        "SELECT COUNT(*) AS samples, CAST(COALESCE(MAX(octet_length(sampling)), 0) AS BIGINT) AS sampling, \
         CAST(COALESCE(SUM(octet_length(text) + octet_length(token_ids) + octet_length(logprobs)), 0) AS BIGINT) AS written \
         FROM samples WHERE record_id = $1",
    )
    .bind(id.as_str())
    .fetch_one(connection)
    .await?;
    let number = |row: &AnyRow, column: &str| -> Result<usize> {
        let number: i64 = row.try_get(column)?;
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
    connection: &mut AnyConnection,
    id: &RecordId,
    scope: &Scope,
) -> Result<Option<LoggedRecord>> {
    let found = sqlx::query(
        "SELECT kind, principal, created_at, retain, train, prompt, prompt_token_ids, redacted, version \
         FROM records WHERE id = $1",
    )
    .bind(id.as_str())
    .fetch_optional(&mut *connection)
    .await?;
    let Some(row) = found else { return Ok(None) };
    let principal = Principal::stored(row.try_get("principal")?);
    if !scope.includes(&principal) {
        return Ok(None);
    }
    Ok(Some(LoggedRecord {
        id: id.clone(),
        kind: RecordKind::stored(row.try_get("kind")?)?,
        principal,
        created_at: row.try_get("created_at")?,
        consent: Consent {
            retain: truth(&row, "retain")?,
            train: truth(&row, "train")?,
        },
        prompt: from_json::<Prompt>(row.try_get("prompt")?)?,
        prompt_token_ids: ids_of_bytes(row.try_get("prompt_token_ids")?)?,
        redacted: truth(&row, "redacted")?,
        version: row.try_get("version")?,
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

async fn read_samples(connection: &mut AnyConnection, id: &RecordId) -> Result<Vec<Sample>> {
    let rows = sqlx::query(
        "SELECT token_ids, text, logprobs, seed, sampling, finish_reason, version \
         FROM samples WHERE record_id = $1 ORDER BY place",
    )
    .bind(id.as_str())
    .fetch_all(connection)
    .await?;
    let sample = |row: AnyRow| -> Result<Sample> {
        Ok(Sample {
            token_ids: ids_of_bytes(row.try_get("token_ids")?)?,
            text: row.try_get("text")?,
            logprobs: logprobs_of_bytes(row.try_get("logprobs")?)?,
            seed: row
                .try_get::<Option<i64>, _>("seed")?
                .map(i64::cast_unsigned),
            sampling: from_json(row.try_get("sampling")?)?,
            finish_reason: row.try_get("finish_reason")?,
            version: row.try_get("version")?,
        })
    };
    let samples: Result<Vec<Sample>> = rows.into_iter().map(sample).collect();
    let mut samples = samples?;
    Sample::write_out(&mut samples);
    Ok(samples)
}

async fn read_verdicts(
    connection: &mut AnyConnection,
    id: &RecordId,
) -> Result<Vec<LoggedVerdict>> {
    let rows = sqlx::query(
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
    connection: &mut AnyConnection,
    id: &RecordId,
) -> Result<Vec<LoggedVerdict>> {
    let rows = sqlx::query(
        "SELECT a, b, p_first, p_second, p, consistent, label_mass, principles, version \
         FROM verdicts WHERE record_id = $1 AND (pinned = 1 OR principles = '[]') ORDER BY place",
    )
    .bind(id.as_str())
    .fetch_all(connection)
    .await?;
    verdicts(rows)
}

fn verdicts(rows: Vec<AnyRow>) -> Result<Vec<LoggedVerdict>> {
    let verdict = |row: AnyRow| -> Result<LoggedVerdict> {
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
            principles: from_json(row.try_get("principles")?)?,
            version: row.try_get("version")?,
        })
    };
    rows.into_iter().map(verdict).collect()
}

async fn read_pairs(connection: &mut AnyConnection, id: &RecordId) -> Result<Vec<LoggedPair>> {
    let rows = sqlx::query(
        "SELECT chosen, rejected, margin, source, principles FROM pairs WHERE record_id = $1 ORDER BY place",
    )
    .bind(id.as_str())
    .fetch_all(connection)
    .await?;
    let pair = |row: AnyRow| -> Result<LoggedPair> {
        Ok(LoggedPair {
            chosen: place(&row, "chosen")?,
            rejected: place(&row, "rejected")?,
            margin: probability(&row, "margin")?,
            source: PairSource::stored(row.try_get("source")?)?,
            principles: from_json(row.try_get("principles")?)?,
        })
    };
    rows.into_iter().map(pair).collect()
}

/// Reads a record's feedback, with the sample of each edit.
pub(super) async fn read_feedback(
    connection: &mut AnyConnection,
    id: &RecordId,
) -> Result<Vec<(LoggedFeedback, Option<usize>)>> {
    let rows = sqlx::query(
        "SELECT principal, created_at, body, written FROM feedback WHERE record_id = $1 \
         ORDER BY created_at, principal, kind, slot",
    )
    .bind(id.as_str())
    .fetch_all(connection)
    .await?;
    let feedback = |row: AnyRow| -> Result<_> {
        let written: Option<i64> = row.try_get("written")?;
        let feedback = LoggedFeedback {
            principal: Principal::stored(row.try_get("principal")?),
            created_at: row.try_get("created_at")?,
            feedback: from_json::<Feedback>(row.try_get("body")?)?,
        };
        Ok((feedback, written.and_then(|at| usize::try_from(at).ok())))
    };
    rows.into_iter().map(feedback).collect()
}

/// Converts the index of a sample to the database's integer type.
pub(super) fn index(place: usize) -> i64 {
    i64::try_from(place).unwrap_or(i64::MAX)
}

fn place(row: &AnyRow, column: &str) -> Result<usize> {
    let place: i64 = row.try_get(column)?;
    usize::try_from(place).map_err(|_| LogError::Corrupt(format!("{column} is {place}")))
}

fn probability(row: &AnyRow, column: &str) -> Result<f32> {
    Ok(row.try_get::<f64, _>(column)? as f32)
}

pub(super) fn truth(row: &AnyRow, column: &str) -> Result<bool> {
    Ok(row.try_get::<i64, _>(column)? != 0)
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
