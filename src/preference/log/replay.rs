//! Which rows may train: consented, out of quarantine, unused, capped for each principal.

use std::collections::HashMap;
use std::time::Duration;

use sqlx::Row;
use sqlx::any::AnyRow;

use super::{
    LogError, Principal, Prompt, RecordId, RecordKind, Result, StageId, TrafficLog, UnixMillis,
    rows,
};

/// Which rows are drawn.
#[derive(Debug, Clone, PartialEq)]
pub struct DrawSpec {
    /// Rows at most.
    pub limit: usize,
    /// The stage they are for: what it has claimed already counts towards the caps.
    pub stage: Option<StageId>,
    /// The age below which a row may not train yet.
    pub quarantine: Duration,
    /// One principal's largest share of the stage, in (0, 1]. A principal always may have one row.
    pub max_share: f64,
    /// One principal's largest number of rows in the stage.
    pub max_per_principal: usize,
    pub split: Split,
    /// Rows of 1000 that are held out from training, chosen by a hash of their id.
    pub held_out_per_mille: u16,
    /// The moment quarantine is counted to.
    pub now: UnixMillis,
}

impl DrawSpec {
    /// Training rows without caps, quarantine and held-out rows.
    pub fn new(limit: usize) -> Self {
        Self {
            limit,
            stage: None,
            quarantine: Duration::ZERO,
            max_share: 1.0,
            max_per_principal: usize::MAX,
            split: Split::Train,
            held_out_per_mille: 0,
            now: super::now(),
        }
    }
}

/// Which side of the held-out split.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Split {
    Train,
    /// What gates measure on. Never claimed by a stage.
    HeldOut,
}

/// A prompt to learn from.
#[derive(Debug, Clone, PartialEq)]
pub struct PromptRow {
    pub id: RecordId,
    pub kind: RecordKind,
    pub principal: Principal,
    pub created_at: UnixMillis,
    pub prompt: Prompt,
    /// Empty if redaction changed the prompt: it must be encoded anew then.
    pub prompt_token_ids: Vec<u32>,
    /// The weights that answered when it was logged.
    pub version: String,
}

impl TrafficLog {
    /// Rows to train on, the oldest first.
    ///
    /// # Errors
    /// [`LogError::Invalid`] for a share outside (0, 1] or more than 1000 held-out rows of 1000.
    pub async fn draw(&self, spec: &DrawSpec) -> Result<Vec<PromptRow>> {
        let mut rows = Vec::new();
        for id in self.draw_ids(spec).await? {
            let found = sqlx::query(
                "SELECT id, kind, principal, created_at, prompt, prompt_token_ids, version FROM trainable WHERE id = $1",
            )
            .bind(id.as_str())
            .fetch_optional(self.database().readers())
            .await?;
            // Deleted since it was drawn.
            if let Some(row) = found {
                rows.push(read(&row)?);
            }
        }
        Ok(rows)
    }

    /// What [`TrafficLog::draw`] would return, without reading the prompts.
    pub async fn draw_ids(&self, spec: &DrawSpec) -> Result<Vec<RecordId>> {
        if !(spec.max_share > 0.0 && spec.max_share <= 1.0) {
            return Err(LogError::Invalid(format!(
                "a principal's share of {} is not in (0, 1]",
                spec.max_share
            )));
        }
        if spec.held_out_per_mille > 1000 {
            return Err(LogError::Invalid(
                "more than 1000 rows of 1000 cannot be held out".to_owned(),
            ));
        }
        let held_out = i64::from(spec.held_out_per_mille);
        let (from, to) = match spec.split {
            Split::HeldOut => (0, held_out),
            Split::Train => (held_out, 1000),
        };
        let quarantine = i64::try_from(spec.quarantine.as_millis()).unwrap_or(i64::MAX);
        let newest = spec.now.saturating_sub(quarantine);

        let claimed = self.claimed(spec.stage).await?;
        let mut counts = claimed.clone();
        let eligible = sqlx::query(
            "SELECT principal, COUNT(*) AS eligible FROM trainable \
             WHERE created_at <= $1 AND bucket >= $2 AND bucket < $3 \
             AND NOT EXISTS (SELECT 1 FROM stage_rows WHERE stage_rows.record_id = trainable.id) GROUP BY principal",
        )
        .bind(newest)
        .bind(from)
        .bind(to)
        .fetch_all(self.database().readers())
        .await?;
        for row in &eligible {
            *counts.entry(row.try_get("principal")?).or_default() += count(row, "eligible")?;
        }
        let already: usize = claimed.values().sum();
        let cap = largest_cap(&counts, spec, spec.limit.saturating_add(already));

        let ranked = sqlx::query(
            "SELECT id, principal FROM (\
             SELECT id, principal, created_at, ROW_NUMBER() OVER (PARTITION BY principal ORDER BY created_at, id) AS place \
             FROM trainable WHERE created_at <= $1 AND bucket >= $2 AND bucket < $3 \
             AND NOT EXISTS (SELECT 1 FROM stage_rows WHERE stage_rows.record_id = trainable.id)) AS ranked \
             WHERE place <= $4 ORDER BY created_at, id LIMIT $5",
        )
        .bind(newest)
        .bind(from)
        .bind(to)
        .bind(rows::index(cap))
        .bind(rows::index(spec.limit.saturating_add(already)))
        .fetch_all(self.database().readers())
        .await?;
        let mut taken = claimed;
        let mut drawn = Vec::new();
        for row in &ranked {
            let taken = taken.entry(row.try_get("principal")?).or_default();
            if *taken < cap && drawn.len() < spec.limit {
                *taken += 1;
                drawn.push(rows::stored_id(row.try_get("id")?)?);
            }
        }
        Ok(drawn)
    }

    /// How many rows of each principal a stage has claimed.
    async fn claimed(&self, stage: Option<StageId>) -> Result<HashMap<String, usize>> {
        let Some(stage) = stage else {
            return Ok(HashMap::new());
        };
        let found = sqlx::query(
            "SELECT records.principal AS principal, COUNT(*) AS claimed \
             FROM stage_rows JOIN records ON records.id = stage_rows.record_id \
             WHERE stage_rows.stage = $1 GROUP BY records.principal",
        )
        .bind(stage.0)
        .fetch_all(self.database().readers())
        .await?;
        found
            .iter()
            .map(|row| Ok((row.try_get("principal")?, count(row, "claimed")?)))
            .collect()
    }
}

/// The most rows one principal may have so that it has no more than its share of what is then drawn: the largest c with
/// c <= max(1, share * T(c)), T(c) = min(limit, sum over principals of min(rows, c)).
///
/// Measured against what is drawn and not against the limit: where few rows come in, a flood would fill the stage otherwise. T(c)/c
/// never grows with c, so the search may halve.
fn largest_cap(counts: &HashMap<String, usize>, spec: &DrawSpec, limit: usize) -> usize {
    let fits = |cap: usize| {
        let total: usize = counts.values().map(|&rows| rows.min(cap)).sum();
        cap as f64 <= (spec.max_share * total.min(limit) as f64).max(1.0)
    };
    let most = counts.values().copied().max().unwrap_or(0);
    let (mut fitting, mut above) = (0, most.min(spec.max_per_principal) + 1);
    while above - fitting > 1 {
        let middle = fitting + (above - fitting) / 2;
        if fits(middle) {
            fitting = middle;
        } else {
            above = middle;
        }
    }
    fitting
}

fn count(row: &AnyRow, column: &str) -> Result<usize> {
    let count: i64 = row.try_get(column)?;
    usize::try_from(count).map_err(|_| LogError::Corrupt(format!("{column} is {count}")))
}

fn read(row: &AnyRow) -> Result<PromptRow> {
    Ok(PromptRow {
        id: rows::stored_id(row.try_get("id")?)?,
        kind: RecordKind::stored(row.try_get("kind")?)?,
        principal: Principal::stored(row.try_get("principal")?),
        created_at: row.try_get("created_at")?,
        prompt: rows::from_json(row.try_get("prompt")?)?,
        prompt_token_ids: rows::ids_of_bytes(row.try_get("prompt_token_ids")?)?,
        version: row.try_get("version")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cap(rows: &[usize], max_share: f64, max_per_principal: usize, limit: usize) -> usize {
        let names = (0..).map(|at: usize| at.to_string());
        let counts = names.zip(rows.iter().copied()).collect();
        let spec = DrawSpec {
            max_share,
            max_per_principal,
            ..DrawSpec::new(limit)
        };
        largest_cap(&counts, &spec, limit)
    }

    #[test]
    fn a_flood_has_no_more_than_its_share_of_what_is_drawn() {
        let mut rows = vec![5; 10];
        rows.push(1000);
        // 5 of 55 are under a tenth, 6 of 56 are not.
        assert_eq!(cap(&rows, 0.1, usize::MAX, 100), 5);
        assert_eq!(cap(&rows, 1.0, usize::MAX, 10_000), 1000);
        assert_eq!(cap(&rows, 1.0, 7, 10_000), 7);
        // A tenth of 20 rows.
        assert_eq!(cap(&rows, 0.1, usize::MAX, 20), 2);
    }

    #[test]
    fn one_row_is_always_allowed_and_nothing_has_no_cap() {
        assert_eq!(cap(&[3], 0.001, usize::MAX, 100), 1);
        assert_eq!(cap(&[], 0.5, usize::MAX, 100), 0);
        assert_eq!(cap(&[3], 1.0, 0, 100), 0);
    }
}
