//! The audit trail: an append-only hash chain of events. Only its oldest events are removed, if too many or too old; see `prune`.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};
use sql::{Connection, Row, locking, query};
use utoipa::ToSchema;

use super::columns;
use super::database::Database;
use super::{LogError, Result, UnixMillis, id, now};

/// The previous hash of the first event.
const GENESIS: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// The name of the setting that stores the start of the chain after events were pruned.
const START: &str = "events.start";

/// The number of events that are verified at a time.
const PAGE: usize = 512;

/// A change of data, weights or principles.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[schema(as = AuditEvent)]
pub struct Event {
    /// Sequence number, from 1 without gaps.
    pub sequence: i64,
    /// Time in milliseconds since 1970.
    #[schema(value_type = i64)]
    pub at: UnixMillis,
    /// The actor: an operator's key, or a part of the server.
    pub actor: String,
    /// The action, such as `principles.replaced`.
    pub action: String,
    /// Details, depending on the action.
    pub detail: Value,
    /// Hex SHA-256 of the previous event.
    // 64 zeros before the first.
    pub previous: String,
    /// Hex SHA-256 over `previous` and this event.
    pub hash: String,
}

/// The hashed content of an event, as the JSON text that is stored: a text has one spelling, a JSON value has many.
#[derive(Serialize, Deserialize)]
struct Body {
    sequence: i64,
    at: UnixMillis,
    actor: String,
    action: String,
    detail: Value,
}

/// The audit trail of the log.
#[derive(Debug)]
pub struct AuditTrail {
    pub(super) database: Arc<Database>,
}

impl AuditTrail {
    /// Returns the events after a sequence number (0 for all), oldest first.
    pub async fn after(&self, after: i64, limit: usize) -> Result<Vec<Event>> {
        let links = self.links(after, limit).await?;
        links.into_iter().map(Link::event).collect()
    }

    /// Appends an event of the caller (training paused, principles replaced).
    pub async fn append(&self, actor: &str, action: &str, detail: Value) -> Result<()> {
        let mut transaction = self.database.begin().await?;
        append(transaction.connection(), actor, action, detail).await?;
        transaction.commit().await
    }

    /// Recomputes every hash of the chain. Returns the number of stored events.
    ///
    /// # Errors
    /// Errors with [`LogError::Corrupt`] that names the first event which was changed, removed or inserted.
    pub async fn verify(&self) -> Result<u64> {
        loop {
            let start = self.chain_start().await?;
            let verified = self.verify_from(&start).await;
            // If events were pruned meanwhile, the chain starts elsewhere, and the verification is repeated.
            if verified.is_ok() || self.chain_start().await?.sequence == start.sequence {
                return verified;
            }
        }
    }

    async fn chain_start(&self) -> Result<Start> {
        let mut connection = self.database.reader().await?;
        Start::read(&mut connection).await
    }

    async fn verify_from(&self, start: &Start) -> Result<u64> {
        // Events that are appended from now on are left to the next verification.
        let (last, end): (i64, String) = {
            let row = query("SELECT sequence, hash FROM chain WHERE one = 1")
                .fetch_one(&mut self.database.reader().await?)
                .await?;
            (row.get("sequence")?, row.get("hash")?)
        };
        let (mut sequence, mut previous) = (start.sequence, start.hash.clone());
        while sequence < last {
            let links = self.links(sequence, PAGE).await?;
            if links.is_empty() {
                break;
            }
            for link in links {
                if sequence == last {
                    break;
                }
                sequence += 1;
                let whole = link.sequence == sequence
                    && link.previous == previous
                    && link.hash == chained(&previous, &link.body)
                    && columns::from_json::<Body>(&link.body)?.sequence == sequence;
                if !whole {
                    return Err(LogError::Corrupt(format!(
                        "event {sequence} does not follow from the one before"
                    )));
                }
                previous = link.hash;
            }
        }
        if sequence != last || previous != end {
            return Err(LogError::Corrupt(format!(
                "the chain of events ends at {sequence}, not at {last}"
            )));
        }
        Ok((sequence - start.sequence).unsigned_abs())
    }

    async fn links(&self, after: i64, limit: usize) -> Result<Vec<Link>> {
        let found = query(
            "SELECT sequence, body, previous, hash FROM events WHERE sequence > $1 ORDER BY sequence LIMIT $2",
        )
        .bind(after)
        .bind(columns::integer(limit))
        .fetch_all(&mut self.database.reader().await?)
        .await?;
        found.iter().map(Link::read).collect()
    }
}

/// The event after which the stored chain starts.
#[derive(Debug)]
pub(super) struct Start {
    /// 0 if no event has been pruned.
    pub sequence: i64,
    pub hash: String,
}

impl Start {
    pub async fn read(connection: &mut Connection) -> Result<Self> {
        let stored: Option<String> = query("SELECT value FROM settings WHERE name = $1")
            .bind(START)
            .fetch_optional_value(connection)
            .await?;
        let Some(stored) = stored else {
            return Ok(Self {
                sequence: 0,
                hash: GENESIS.to_owned(),
            });
        };
        let parts = stored.split_once(' ');
        let read = parts.and_then(|(sequence, hash)| {
            Some(Self {
                sequence: sequence.parse().ok()?,
                hash: hash.to_owned(),
            })
        });
        read.ok_or_else(|| {
            LogError::Corrupt(format!(
                "the stored start of the event chain is invalid: {stored:?}"
            ))
        })
    }

    pub async fn write(&self, connection: &mut Connection) -> Result<()> {
        query(
            "INSERT INTO settings (name, value) VALUES ($1, $2) ON CONFLICT (name) DO UPDATE SET value = excluded.value",
        )
        .bind(START)
        .bind(format!("{} {}", self.sequence, self.hash))
        .execute(connection)
        .await?;
        Ok(())
    }
}

/// Returns the sequence numbers and times of the events after a sequence number, oldest first.
pub(super) async fn times(
    connection: &mut Connection,
    after: i64,
    limit: i64,
) -> Result<Vec<(i64, UnixMillis)>> {
    let found =
        query("SELECT sequence, body FROM events WHERE sequence > $1 ORDER BY sequence LIMIT $2")
            .bind(after)
            .bind(limit)
            .fetch_all(connection)
            .await?;
    let time = |row: &Row| -> Result<_> {
        let body: Body = columns::from_json(row.get("body")?)?;
        Ok((row.get("sequence")?, body.at))
    };
    found.iter().map(time).collect()
}

/// An event as it is stored.
struct Link {
    sequence: i64,
    body: String,
    previous: String,
    hash: String,
}

impl Link {
    fn read(row: &Row) -> Result<Self> {
        Ok(Self {
            sequence: row.get("sequence")?,
            body: row.get("body")?,
            previous: row.get("previous")?,
            hash: row.get("hash")?,
        })
    }

    fn event(self) -> Result<Event> {
        let body: Body = columns::from_json(&self.body)?;
        Ok(Event {
            sequence: self.sequence,
            at: body.at,
            actor: body.actor,
            action: body.action,
            detail: body.detail,
            previous: self.previous,
            hash: self.hash,
        })
    }
}

/// Appends an event in the transaction of the change that it records: both are committed or neither.
pub(super) async fn append(
    connection: &mut Connection,
    actor: &str,
    action: &str,
    detail: Value,
) -> Result<()> {
    // The end of the chain is locked until the commit, so that no two events have the same predecessor.
    let end = query(locking!("SELECT sequence, hash FROM chain WHERE one = 1"))
        .fetch_one(connection)
        .await?;
    let sequence = end.get::<i64>("sequence")? + 1;
    let previous: String = end.get("hash")?;
    let body = columns::to_json(&Body {
        sequence,
        at: now(),
        actor: actor.to_owned(),
        action: action.to_owned(),
        detail,
    })?;
    let hash = chained(&previous, &body);
    query("INSERT INTO events (sequence, body, previous, hash) VALUES ($1, $2, $3, $4)")
        .bind(sequence)
        .bind(body)
        .bind(previous)
        .bind(hash.as_str())
        .execute(connection)
        .await?;
    query("UPDATE chain SET sequence = $1, hash = $2 WHERE one = 1")
        .bind(sequence)
        .bind(hash)
        .execute(connection)
        .await?;
    Ok(())
}

fn chained(previous: &str, body: &str) -> String {
    let mut hasher = Sha256::new();
    hasher.update(previous);
    hasher.update(body);
    id::hex(&hasher.finalize())
}
