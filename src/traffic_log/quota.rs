//! Disk quotas for records: of each principal, of all records, and by the file system's free space.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use sql::{Connection, query};

use super::{LogConfig, LogError, NewRecord, Principal, Result, disk_space, locked};

/// The time for which a computed sum is used: other processes on the same log add and delete records.
const FRESH: Duration = Duration::from_secs(60);

/// The maximum number of principals whose sums are cached.
const KNOWN: usize = 4096;

/// The bytes that a record counts for besides its texts and numbers: its rows and their index entries.
const OVERHEAD: usize = 256;
/// The bytes that a row of a record counts for.
const ROW: usize = 64;

/// The quotas and the cached sums of their use.
#[derive(Debug)]
pub(super) struct Quotas {
    /// The limit in bytes for the records of one principal.
    principal: Option<u64>,
    /// The limit in bytes for all records.
    all: Option<u64>,
    /// The directory of an SQLite file, whose file system must keep some free space.
    dir: Option<PathBuf>,
    /// The used bytes by principal (none: of all), and when they were summed.
    used: Mutex<HashMap<Option<Principal>, (u64, Instant)>>,
}

impl Quotas {
    pub fn of(config: &LogConfig, dir: Option<PathBuf>) -> Self {
        Self {
            principal: config.principal_quota,
            all: config.quota,
            dir,
            used: Mutex::default(),
        }
    }

    /// Returns the reason why a record of `bytes` bytes is refused, if it is.
    pub async fn refusal(
        &self,
        connection: &mut Connection,
        principal: &Principal,
        bytes: u64,
    ) -> Result<Option<LogError>> {
        for (whose, quota) in [(Some(principal), self.principal), (None, self.all)] {
            let Some(quota) = quota else { continue };
            if self.used(connection, whose).await?.saturating_add(bytes) > quota {
                return Ok(Some(match whose {
                    Some(_) => LogError::PrincipalQuota { quota },
                    None => LogError::Full("its quota is used up".to_owned()),
                }));
            }
        }
        let low = self.dir.as_deref().is_some_and(disk_space::is_low);
        Ok(low.then(|| LogError::Full("the file system has little space left".to_owned())))
    }

    /// Adds a written record to the sums.
    pub fn add(&self, principal: &Principal, bytes: u64) {
        let mut used = locked(&self.used);
        for whose in [Some(principal.clone()), None] {
            if let Some((sum, _)) = used.get_mut(&whose) {
                *sum = sum.saturating_add(bytes);
            }
        }
    }

    /// Discards the sums, because records were deleted.
    pub fn forget(&self) {
        locked(&self.used).clear();
    }

    async fn used(&self, connection: &mut Connection, whose: Option<&Principal>) -> Result<u64> {
        let whose = whose.cloned();
        let known = locked(&self.used).get(&whose).copied();
        if let Some((sum, at)) = known
            && at.elapsed() < FRESH
        {
            return Ok(sum);
        }
        let sum = "SELECT CAST(COALESCE(SUM(bytes), 0) AS BIGINT) FROM records";
        let sum: i64 = match &whose {
            None => query(sum).fetch_value(connection).await?,
            Some(principal) => query(
                "SELECT CAST(COALESCE(SUM(bytes), 0) AS BIGINT) FROM records WHERE principal = $1",
            )
            .bind(principal.as_str())
            .fetch_value(connection)
            .await?,
        };
        let sum = u64::try_from(sum).unwrap_or(0);
        let mut used = locked(&self.used);
        if used.len() >= KNOWN {
            used.clear();
        }
        used.insert(whose, (sum, Instant::now()));
        Ok(sum)
    }
}

/// Returns the bytes that a record counts for; its prompt takes `prompt` bytes.
pub(super) fn bytes(record: &NewRecord, prompt: usize) -> u64 {
    let samples = record.samples.iter().map(|sample| {
        let sampling = sample.sampling.to_string().len();
        ROW + sample.text.len() + 4 * (sample.token_ids.len() + sample.logprobs.len()) + sampling
    });
    let names = |principles: &[String]| principles.iter().map(String::len).sum::<usize>();
    let verdicts = record
        .verdicts
        .iter()
        .map(|v| 2 * ROW + names(&v.principles));
    let pairs = record.pairs.iter().map(|p| ROW + names(&p.principles));
    let rows: usize = samples.chain(verdicts).chain(pairs).sum();
    (OVERHEAD + prompt + 4 * record.prompt_token_ids.len() + rows) as u64
}
