//! Reading of records: a record with its samples, verdicts, pairs and feedback, or its size.

use sql::{Connection, Row, query};

use super::columns::{
    boolean, from_json, ids_of_bytes, logprobs_of_bytes, probability, sample_index,
};
use super::{
    Consent, Feedback, LoggedFeedback, LoggedPair, LoggedRecord, LoggedVerdict, PairSource,
    Principal, Prompt, RecordId, RecordKind, RecordSize, Result, Sample, Scope,
};

/// Returns the row of a record and its principal; none if the record does not exist or is out of scope. `columns` selects the row, with
/// its principal, by its id.
async fn find(
    connection: &mut Connection,
    columns: &'static str,
    id: &RecordId,
    scope: &Scope,
) -> Result<Option<(Principal, Row)>> {
    let row = query(columns)
        .bind(id.as_str())
        .fetch_optional(connection)
        .await?;
    let Some(row) = row else { return Ok(None) };
    let principal = Principal::stored(row.get("principal")?);
    Ok(scope.includes(&principal).then_some((principal, row)))
}

/// Reads the size of a record.
pub(super) async fn read_size(
    connection: &mut Connection,
    id: &RecordId,
    scope: &Scope,
) -> Result<Option<RecordSize>> {
    const SIZE: &str = "SELECT principal, shown, bytes FROM records WHERE id = $1";
    let Some((_, row)) = find(connection, SIZE, id, scope).await? else {
        return Ok(None);
    };
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
    const RECORD: &str = "SELECT kind, principal, created_at, retain, train, prompt, prompt_token_ids, redacted, version \
         FROM records WHERE id = $1";
    let Some((principal, row)) = find(connection, RECORD, id, scope).await? else {
        return Ok(None);
    };
    Ok(Some(LoggedRecord {
        id: id.clone(),
        kind: RecordKind::stored(row.get("kind")?)?,
        principal,
        created_at: row.get("created_at")?,
        consent: Consent {
            retain: boolean(&row, "retain")?,
            train: boolean(&row, "train")?,
        },
        prompt: from_json::<Prompt>(row.get("prompt")?)?,
        prompt_token_ids: ids_of_bytes(row.get("prompt_token_ids")?)?,
        redacted: boolean(&row, "redacted")?,
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
            a: sample_index(&row, "a")?,
            b: sample_index(&row, "b")?,
            orders: [
                probability(&row, "p_first")?,
                probability(&row, "p_second")?,
            ],
            p: probability(&row, "p")?,
            consistent: boolean(&row, "consistent")?,
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
            chosen: sample_index(&row, "chosen")?,
            rejected: sample_index(&row, "rejected")?,
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
