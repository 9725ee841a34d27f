//! The operators' switch that pauses learning. It is stored in the database, so that it survives restarts and applies to trainers in
//! other processes.

use std::sync::Arc;

use serde_json::json;
use sql::{Connection, query};

use super::database::Database;
use super::{Result, events};

/// The state of the switch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LearningSwitch {
    pub paused: bool,
    /// Stages that passed their gates since learning was last resumed.
    pub unattended: u64,
}

/// The stored switch.
#[derive(Debug)]
pub struct SwitchStore {
    pub(super) database: Arc<Database>,
}

impl SwitchStore {
    /// Returns the state of the switch.
    pub async fn get(&self) -> Result<LearningSwitch> {
        let row = query("SELECT paused, unattended FROM learning_switch WHERE one = 1")
            .fetch_one(&mut self.database.reader().await?)
            .await?;
        Ok(LearningSwitch {
            paused: row.get::<i64>("paused")? != 0,
            unattended: row.get::<i64>("unattended")?.unsigned_abs(),
        })
    }

    /// Pauses learning until [`SwitchStore::resume`]. A repeated call adds no second event.
    pub async fn pause(&self, actor: &str) -> Result<()> {
        pause(&self.database, actor).await
    }

    /// Resumes learning, and resets the count of unattended stages.
    pub async fn resume(&self, actor: &str) -> Result<()> {
        let resume = "UPDATE learning_switch SET paused = 0, unattended = 0 \
                      WHERE one = 1 AND (paused <> 0 OR unattended <> 0)";
        set(&self.database, resume, actor, "train.resumed").await
    }
}

/// Pauses learning as [`SwitchStore::pause`] does.
pub(super) async fn pause(database: &Database, actor: &str) -> Result<()> {
    let pause = "UPDATE learning_switch SET paused = 1 WHERE one = 1 AND paused = 0";
    set(database, pause, actor, "train.paused").await
}

async fn set(database: &Database, change: &'static str, actor: &str, action: &str) -> Result<()> {
    let mut transaction = database.begin().await?;
    let changed = query(change).execute(transaction.connection()).await?;
    if changed > 0 {
        events::append(transaction.connection(), actor, action, json!({})).await?;
    }
    transaction.commit().await
}

/// Counts a stage that passed since an operator last resumed learning, in the transaction that closes it.
pub(super) async fn count_unattended(connection: &mut Connection) -> Result<()> {
    query("UPDATE learning_switch SET unattended = unattended + 1 WHERE one = 1")
        .execute(connection)
        .await?;
    Ok(())
}
