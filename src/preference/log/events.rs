//! The audit trail: events that are only ever appended, each hashed over the one before.

use serde::Serialize;
use serde_json::Value;

use super::{Result, TrafficLog, UnixMillis};

/// Something that happened to data, generations or pointers.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Event {
    /// Counted from 1, without gaps.
    pub sequence: i64,
    pub at: UnixMillis,
    /// Who did it: an admin key's name, `trainer`, `retention`.
    pub actor: String,
    /// `pointers.moved`, `stage.opened`, `record.deleted`, ...
    pub action: String,
    pub detail: Value,
    /// Hex SHA-256 of the event before; 64 zeros before the first.
    pub previous: String,
    /// Hex SHA-256 over `previous` and this event's body.
    pub hash: String,
}

impl TrafficLog {
    /// Events after a sequence number (0 for all), the oldest first.
    pub async fn events(&self, after: i64, limit: usize) -> Result<Vec<Event>> {
        let _ = (after, limit);
        todo!()
    }

    /// Appends an event of the caller's own (training paused, principles replaced).
    pub async fn audit(&self, actor: &str, action: &str, detail: Value) -> Result<()> {
        let _ = (actor, action, detail);
        todo!()
    }

    /// Recomputes every hash. Returns the number of events.
    ///
    /// # Errors
    /// [`LogError::Corrupt`](super::LogError::Corrupt) naming the first event that was changed, removed or put in between.
    pub async fn verify_chain(&self) -> Result<u64> {
        todo!()
    }
}
