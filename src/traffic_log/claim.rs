//! Claims: the prompts and the feedback that belong to a stage. No other stage learns from them.

use std::collections::HashSet;

use sql::{Connection, Sql, query, with_list};

use super::stage::require_open;
use super::{RecordId, Result, StageId, columns};

/// The part of a record that a stage claims.
#[derive(Debug, Clone, Copy)]
pub(super) enum Claimed {
    Prompt,
    Feedback,
}

impl Claimed {
    /// Returns the statement that claims records, and the one that finds the claimed ones.
    fn statements(self) -> (Sql, Sql) {
        match self {
            Self::Prompt => (
                with_list!(
                    "INSERT INTO stage_rows (record_id, stage) SELECT id, $2 FROM trainable WHERE id",
                    "$1",
                    "ON CONFLICT (record_id) DO NOTHING"
                ),
                with_list!(
                    "SELECT trainable.id FROM stage_rows JOIN trainable ON trainable.id = stage_rows.record_id WHERE trainable.id",
                    "$1",
                    "AND stage_rows.stage = $2"
                ),
            ),
            Self::Feedback => (
                with_list!(
                    "INSERT INTO stage_feedback (record_id, stage) SELECT id, $2 FROM trainable WHERE id",
                    "$1",
                    "ON CONFLICT (record_id) DO NOTHING"
                ),
                with_list!(
                    "SELECT trainable.id FROM stage_feedback JOIN trainable ON trainable.id = stage_feedback.record_id WHERE trainable.id",
                    "$1",
                    "AND stage_feedback.stage = $2"
                ),
            ),
        }
    }
}

/// Claims a part of records for an open stage. Returns the records of which it belongs to the stage, in the given order.
pub(super) async fn claim(
    connection: &mut Connection,
    stage: StageId,
    ids: &[RecordId],
    part: Claimed,
) -> Result<Vec<RecordId>> {
    require_open(connection, stage).await?;
    let (claim, own) = part.statements();
    query(claim)
        .bind(columns::id_list(ids))
        .bind(stage.0)
        .execute(connection)
        .await?;
    let own: Vec<String> = query(own)
        .bind(columns::id_list(ids))
        .bind(stage.0)
        .fetch_values(connection)
        .await?;
    let own: HashSet<String> = own.into_iter().collect();
    let claimed = ids.iter().filter(|id| own.contains(id.as_str()));
    Ok(claimed.cloned().collect())
}
