//! Checks of a newly opened log that an operator should see: records of keys that have another name now, and generations that are missing
//! from the log.

use super::{AppConfig, AppError, DataDir};
use crate::http::ApiKeys;
use crate::learn::generation::Generations;
use traffic_log::{Principal, TrafficLog};

/// Highest position in a key file that is checked; earlier versions named unnamed keys by position.
const PLACES: usize = 10_000;

/// Warns of records in the log without a current owner, and of generations that are missing from it.
pub(super) async fn look_into(log: &TrafficLog, config: &AppConfig) -> Result<(), AppError> {
    warn_of_places(log, &config.http.keys).await?;
    if let Some(data_dir) = &config.data_dir {
        warn_of_generations(log, data_dir).await?;
    }
    Ok(())
}

/// Warns of records under positional key names. Earlier versions named a key without a name by its position among the keys; its records
/// stay, and the operator must assign them.
async fn warn_of_places(log: &TrafficLog, keys: &ApiKeys) -> Result<(), AppError> {
    let names = (1..=PLACES).map(|place| format!("key-{place}"));
    let names: Vec<String> = names.filter(|name| !keys.has_name(name)).collect();
    let principals: Vec<Principal> = names.iter().map(|name| Principal::of_key(name)).collect();
    let counts = log.records.count_of(&principals).await?;
    let found = names.iter().zip(counts).filter(|(_, records)| *records > 0);
    let found: Vec<String> = found
        .map(|(name, records)| format!("{records} of `{name}`"))
        .collect();
    if let Some(first) = found.first() {
        let name = first.split('`').nth(1).unwrap_or("key-1");
        tracing::warn!(
            "the log has records of keys that earlier versions named by position ({}); no current key can read them. Write the key's line \
             as `{name}:KEY` to give it its records back, or delete them with DELETE /records?principal={name} as an operator",
            found.join(", ")
        );
    }
    Ok(())
}

/// Warns of generations without a row, because a removed or truncated log looks like an empty one.
async fn warn_of_generations(log: &TrafficLog, data_dir: &DataDir) -> Result<(), AppError> {
    let dir = data_dir.generations();
    if !dir.is_dir() {
        return Ok(());
    }
    let known = log.generations.all().await?;
    let ids = Generations::open(&dir)?.ids()?;
    let unknown = ids
        .iter()
        .filter(|id| known.iter().all(|one| one.id.as_str() != **id));
    // A trainer that died between writing a generation and its row writes the row when it restarts.
    let unknown = unknown.count();
    if unknown > 0 && log.stages.current().await?.is_none() {
        tracing::warn!(
            "{}: {unknown} of {} generations are missing from the log. Was the log or its write-ahead log removed? The log's pointers \
             decide what is served (the base if the log is empty); earlier records, idempotency keys and events are lost",
            dir.display(),
            ids.len(),
        );
    }
    Ok(())
}
