//! Selection of the rows for training: with consent, out of quarantine, unused, and with a limited share per principal.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use sql::{Row, query, with_list};

use super::database::Database;
use super::model::{ModelBinding, same_tokenizer};
use super::{
    LogError, LoggedPair, Principal, RecordId, Result, StageId, UnixMillis, columns, feedback,
};

/// The conditions of a draw of rows.
#[derive(Debug, Clone, PartialEq)]
pub struct DrawSpec {
    /// The maximum number of rows.
    pub limit: usize,
    /// The minimum age of a row for training.
    pub quarantine: Duration,
    /// The maximum share of one principal in the drawn rows, in (0, 1]. Every principal may have at least one row.
    pub max_share: f64,
    /// A principal without this limit, because it stands for callers that cannot be distinguished.
    pub uncapped: Option<Principal>,
    /// The maximum tokens of a prompt. Imported records have no tokens and are not limited.
    pub longest: usize,
    pub split: Split,
    /// The number of rows per 1000 that are held out from training, chosen by a hash of their id.
    pub held_out_per_mille: u16,
    /// If set, rows are ordered by that hash, cyclically from this position: another turn starts with other rows, regardless of age. If
    /// none, rows are ordered by age.
    pub turn: Option<u64>,
    /// The current time for the quarantine.
    pub now: UnixMillis,
}

impl DrawSpec {
    /// Returns the conditions for training rows without shares, quarantine and held-out rows.
    pub fn new(limit: usize) -> Self {
        Self {
            limit,
            quarantine: Duration::ZERO,
            max_share: 1.0,
            uncapped: None,
            longest: usize::MAX,
            split: Split::Train,
            held_out_per_mille: 0,
            turn: None,
            now: super::now(),
        }
    }

    /// Returns the range of hash buckets of the split; the end is exclusive.
    fn buckets(&self) -> (i64, i64) {
        let held_out = i64::from(self.held_out_per_mille);
        match self.split {
            Split::HeldOut => (0, held_out),
            Split::Train => (held_out, 1000),
        }
    }

    /// Returns the uncapped principal as a parameter of SQL statements. An empty text equals no principal.
    fn uncapped(&self) -> &str {
        self.uncapped.as_ref().map_or("", Principal::as_str)
    }

    /// Returns the maximum bytes of a prompt's token ids.
    fn most_bytes(&self) -> i64 {
        columns::integer(self.longest.saturating_mul(size_of::<u32>()))
    }

    /// Returns the latest creation time of a row that may train.
    fn newest(&self) -> UnixMillis {
        let quarantine = i64::try_from(self.quarantine.as_millis()).unwrap_or(i64::MAX);
        self.now.saturating_sub(quarantine)
    }

    fn check(&self) -> Result<()> {
        if !(self.max_share > 0.0 && self.max_share <= 1.0) {
            return Err(LogError::Invalid(format!(
                "the principal's share must be above 0 and at most 1, not {}",
                self.max_share
            )));
        }
        if self.held_out_per_mille > 1000 {
            return Err(LogError::Invalid(
                "at most 1000 of 1000 rows can be held out".to_owned(),
            ));
        }
        Ok(())
    }
}

/// The two sides of the held-out split.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Split {
    Train,
    /// The rows on which gates measure. No stage claims them.
    HeldOut,
}

/// A drawn row and its principal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DrawnRow {
    pub id: RecordId,
    pub principal: Principal,
}

/// The counts of the rows that a draw would find.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Eligible {
    /// The number of rows that may be drawn, without regard to shares.
    pub rows: usize,
    /// The number of their principals.
    pub principals: usize,
    /// The number of rows that a draw would return without its limit.
    pub drawable: usize,
}

/// A preference that follows from the feedback on a record.
#[derive(Debug, Clone, PartialEq)]
pub struct HeldPreference {
    pub record: RecordId,
    pub pair: LoggedPair,
}

/// An SQL condition for the rows of `trainable` that this model can answer: of its tokenizer (see [`same_tokenizer`]), with token ids of
/// at most `$bytes` bytes.
macro_rules! answerable {
    ($digest:literal, $unnamed:literal, $bytes:literal) => {
        concat!(
            "LENGTH(prompt_token_ids) <= ",
            $bytes,
            " AND ",
            same_tokenizer!($digest, $unnamed)
        )
    };
}

/// The number of records with feedback that are read per wanted preference: a single thumb is not a preference.
const SCANNED_PER_PREFERENCE: usize = 8;

/// The draws of rows for training.
#[derive(Debug)]
pub struct Replay {
    pub(super) database: Arc<Database>,
    pub(super) model: Arc<ModelBinding>,
}

impl Replay {
    /// Counts the rows that [`Self::draw`] would find, in one scan without ordering.
    ///
    /// # Errors
    /// Errors as [`Self::draw`] does.
    pub async fn eligible(&self, spec: &DrawSpec) -> Result<Eligible> {
        spec.check()?;
        let counts = self.counts(spec).await?;
        let cap = largest_cap(&counts, spec);
        let drawable = counts.iter().map(|(principal, &rows)| {
            let capped = principal.as_str() != spec.uncapped();
            if capped { rows.min(cap) } else { rows }
        });
        Ok(Eligible {
            rows: counts.values().sum(),
            principals: counts.len(),
            drawable: drawable.sum(),
        })
    }

    /// Returns the number of rows of each principal that may be drawn.
    async fn counts(&self, spec: &DrawSpec) -> Result<HashMap<String, usize>> {
        let (from, to) = spec.buckets();
        let (tokenizer, unnamed) = self.model.parameters();
        let eligible = query(concat!(
            "SELECT principal, COUNT(*) AS eligible FROM trainable \
             WHERE created_at <= $1 AND bucket >= $2 AND bucket < $3 AND ",
            answerable!("$4", "$5", "$6"),
            " AND NOT EXISTS (SELECT 1 FROM stage_rows WHERE stage_rows.record_id = trainable.id) GROUP BY principal",
        ))
        .bind(spec.newest())
        .bind(from)
        .bind(to)
        .bind(tokenizer)
        .bind(unnamed)
        .bind(spec.most_bytes())
        .fetch_all(&mut self.database.reader().await?)
        .await?;
        let mut counts: HashMap<String, usize> = HashMap::new();
        for row in &eligible {
            counts.insert(row.get("principal")?, count(row, "eligible")?);
        }
        Ok(counts)
    }

    /// Returns rows to train on, oldest first unless `spec.turn` sets another order.
    ///
    /// # Errors
    /// Errors with [`LogError::Invalid`] for a share outside (0, 1] or more than 1000 held-out rows per 1000.
    pub async fn draw(&self, spec: &DrawSpec) -> Result<Vec<DrawnRow>> {
        spec.check()?;
        let (from, to) = spec.buckets();
        let (tokenizer, unnamed) = self.model.parameters();
        let cap = largest_cap(&self.counts(spec).await?, spec);
        // Without a turn all rows have the same position, so that age decides.
        let (turn, places) = match spec.turn {
            Some(turn) if to > from => (
                i64::try_from(turn % (to - from) as u64).unwrap_or(0),
                to - from,
            ),
            _ => (0, 1),
        };
        let ranked = query(concat!(
            "SELECT id, principal FROM (\
             SELECT id, principal, created_at, (bucket - $2 + $5) % $6 AS turn, \
             ROW_NUMBER() OVER (PARTITION BY principal ORDER BY (bucket - $2 + $5) % $6, created_at, id) AS place \
             FROM trainable WHERE created_at <= $1 AND bucket >= $2 AND bucket < $3 AND ",
            answerable!("$8", "$9", "$11"),
            " AND NOT EXISTS (SELECT 1 FROM stage_rows WHERE stage_rows.record_id = trainable.id)) AS ranked \
             WHERE place <= $4 OR principal = $10 ORDER BY turn, created_at, id LIMIT $7",
        ))
        .bind(spec.newest())
        .bind(from)
        .bind(to)
        .bind(columns::integer(cap))
        .bind(turn)
        .bind(places)
        .bind(columns::integer(spec.limit))
        .bind(tokenizer)
        .bind(unnamed)
        .bind(spec.uncapped())
        .bind(spec.most_bytes())
        .fetch_all(&mut self.database.reader().await?)
        .await?;
        ranked.iter().map(drawn).collect()
    }

    /// Returns the ids of the rows that [`Self::draw`] returns.
    ///
    /// # Errors
    /// Errors as [`Self::draw`] does.
    pub async fn draw_ids(&self, spec: &DrawSpec) -> Result<Vec<RecordId>> {
        Ok(self
            .draw(spec)
            .await?
            .into_iter()
            .map(|row| row.id)
            .collect())
    }

    /// Returns those of the given rows that can still be used by a stage, in the given order: not claimed by another stage, not deleted,
    /// of this model's tokenizer, not too long, and on the split's side. The caller has to apply `spec`'s limit, share and turn.
    ///
    /// # Errors
    /// Errors as [`Self::draw`] does.
    pub async fn free_for(
        &self,
        stage: StageId,
        spec: &DrawSpec,
        ids: &[RecordId],
    ) -> Result<Vec<DrawnRow>> {
        spec.check()?;
        let (from, to) = spec.buckets();
        let (tokenizer, unnamed) = self.model.parameters();
        let found = query(with_list!(
            "SELECT id, principal FROM trainable WHERE id",
            "$1",
            concat!(
                "AND bucket >= $2 AND bucket < $3 AND ",
                answerable!("$5", "$6", "$7"),
                " AND NOT EXISTS \
                 (SELECT 1 FROM stage_rows WHERE stage_rows.record_id = trainable.id AND stage_rows.stage <> $4)",
            )
        ))
        .bind(columns::id_list(ids))
        .bind(from)
        .bind(to)
        .bind(stage.0)
        .bind(tokenizer)
        .bind(unnamed)
        .bind(spec.most_bytes())
        .fetch_all(&mut self.database.reader().await?)
        .await?;
        let mut free: HashMap<RecordId, DrawnRow> = HashMap::new();
        for row in &found {
            let row = drawn(row)?;
            free.insert(row.id.clone(), row);
        }
        Ok(ids.iter().filter_map(|id| free.get(id).cloned()).collect())
    }

    /// Returns preferences from feedback that no stage has learned from, on rows that may train: at most one per record, an edit if there
    /// is one. The newest come first, because the current policy is closest to the one that gave those answers. The caller has to decide
    /// whether to trust them.
    ///
    /// The quarantine counts from the feedback, and the share limits one principal's preferences among those drawn.
    ///
    /// # Errors
    /// Errors as [`Self::draw`] does.
    pub async fn draw_preferences(&self, spec: &DrawSpec) -> Result<Vec<HeldPreference>> {
        spec.check()?;
        let (from, to) = spec.buckets();
        let (tokenizer, unnamed) = self.model.parameters();
        let mut reading = self.database.snapshot().await?;
        let records = query(concat!(
            "SELECT trainable.id AS id, trainable.principal AS principal FROM trainable JOIN \
             (SELECT record_id, MAX(created_at) AS given_at FROM feedback GROUP BY record_id) AS latest ON latest.record_id = trainable.id \
             WHERE given_at <= $1 AND bucket >= $2 AND bucket < $3 AND ",
            answerable!("$5", "$6", "$7"),
            " AND NOT EXISTS (SELECT 1 FROM stage_feedback WHERE stage_feedback.record_id = trainable.id) \
             ORDER BY given_at DESC, trainable.id DESC LIMIT $4",
        ))
        .bind(spec.newest())
        .bind(from)
        .bind(to)
        .bind(columns::integer(spec.limit.saturating_mul(SCANNED_PER_PREFERENCE)))
        .bind(tokenizer)
        .bind(unnamed)
        .bind(spec.most_bytes())
        .fetch_all(&mut reading)
        .await?;
        let mut found = Vec::new();
        let mut counts: HashMap<String, usize> = HashMap::new();
        for row in &records {
            let DrawnRow { id, principal } = drawn(row)?;
            // Edits become samples after those that were shown, so their pair is the last.
            if let Some(pair) = feedback::held(&mut reading, &id).await?.pop() {
                *counts.entry(principal.as_str().to_owned()).or_default() += 1;
                found.push((principal, HeldPreference { record: id, pair }));
            }
        }
        reading.end().await?;
        let cap = largest_cap(&counts, spec);
        let mut drawn_rows: HashMap<String, usize> = HashMap::new();
        found.retain(|(principal, _)| {
            if principal.as_str() == spec.uncapped() {
                return true;
            }
            let drawn_rows = drawn_rows.entry(principal.as_str().to_owned()).or_default();
            *drawn_rows += 1;
            *drawn_rows <= cap
        });
        found.truncate(spec.limit);
        Ok(found
            .into_iter()
            .map(|(_, preference)| preference)
            .collect())
    }
}

fn drawn(row: &Row) -> Result<DrawnRow> {
    Ok(DrawnRow {
        id: columns::stored_id(row.get("id")?)?,
        principal: Principal::stored(row.get("principal")?),
    })
}

/// Returns the maximum number of rows per principal that keeps each within its share of the drawn rows: the largest c with c <= max(1,
/// share * T(c)), T(c) = min(limit, sum over principals of min(rows, c)). An uncapped principal counts with all its rows.
///
/// The share refers to the drawn rows and not to the limit: otherwise a flood by one principal would fill the stage when there are few
/// other rows. T(c)/c never increases with c, so that a binary search is valid.
fn largest_cap(counts: &HashMap<String, usize>, spec: &DrawSpec) -> usize {
    let others = counts.get(spec.uncapped()).copied().unwrap_or(0);
    let capped = counts.iter();
    let capped = capped.filter(|(principal, _)| principal.as_str() != spec.uncapped());
    let capped = capped.map(|(_, &rows)| rows);
    let fits = |cap: usize| {
        let total: usize = capped.clone().map(|rows| rows.min(cap)).sum::<usize>() + others;
        cap as f64 <= (spec.max_share * total.min(spec.limit) as f64).max(1.0)
    };
    let most = capped.clone().max().unwrap_or(0);
    let (mut fitting, mut above) = (0, most + 1);
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

fn count(row: &Row, column: &str) -> Result<usize> {
    let count: i64 = row.get(column)?;
    usize::try_from(count).map_err(|_| LogError::Corrupt(format!("{column} is {count}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cap(rows: &[usize], max_share: f64, limit: usize) -> usize {
        let names = (0..).map(|at: usize| at.to_string());
        let counts = names.zip(rows.iter().copied()).collect();
        let spec = DrawSpec {
            max_share,
            ..DrawSpec::new(limit)
        };
        largest_cap(&counts, &spec)
    }

    #[test]
    fn a_flood_has_no_more_than_its_share_of_what_is_drawn() {
        let mut rows = vec![5; 10];
        rows.push(1000);
        // 5 of 55 rows are less than a tenth, 6 of 56 are more.
        assert_eq!(cap(&rows, 0.1, 100), 5);
        assert_eq!(cap(&rows, 1.0, 10_000), 1000);
        // A tenth of 20 rows.
        assert_eq!(cap(&rows, 0.1, 20), 2);
    }

    #[test]
    fn callers_that_cannot_be_distinguished_are_not_capped() {
        let anonymous = Principal::anonymous();
        let counts = |rows: &[(&str, usize)]| {
            let named = rows.iter().map(|(name, rows)| ((*name).to_owned(), *rows));
            named.collect::<HashMap<_, _>>()
        };
        let spec = DrawSpec {
            max_share: 0.25,
            uncapped: Some(anonymous.clone()),
            ..DrawSpec::new(100)
        };
        let alone = counts(&[(anonymous.as_str(), 500)]);
        assert_eq!(largest_cap(&alone, &spec), 0, "no principal has a cap");
        // A quarter of the hundred rows that are drawn.
        let beside = counts(&[(anonymous.as_str(), 500), ("a key", 90)]);
        assert_eq!(largest_cap(&beside, &spec), 25);
    }

    #[test]
    fn one_row_is_always_allowed_and_nothing_has_no_cap() {
        assert_eq!(cap(&[3], 0.001, 100), 1);
        assert_eq!(cap(&[], 0.5, 100), 0);
    }
}
