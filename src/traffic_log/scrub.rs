//! Removal of deleted text from every file.
//!
//! SQLite overwrites deleted data in the database's file (`secure_delete`), but its write-ahead log still contains the old pages, so a
//! checkpoint that truncates it follows every deletion. On PostgreSQL deleted rows remain in the tables until a VACUUM.

use std::sync::{Arc, Weak};
use std::time::Duration;

use sql::{Connection, query};
use tokio::sync::Notify;

use super::Result;
use super::database::Database;

/// The pause between attempts while a reader is active: reads take milliseconds.
const RETRY: Duration = Duration::from_millis(20);
/// The pause between attempts after a failure of the database.
const FAILED: Duration = Duration::from_secs(1);
/// The pause after a VACUUM, which reads whole tables.
const VACUUM: Duration = Duration::from_secs(10);

/// Scrubs on each notification of `wanted`, retrying until it succeeds, as long as the database exists.
pub(super) async fn run(database: Weak<Database>, wanted: Arc<Notify>) {
    loop {
        wanted.notified().await;
        loop {
            let Some(database) = database.upgrade() else {
                return;
            };
            if database.is_closed() {
                return;
            }
            if !database.is_sqlite() {
                if let Err(error) = database.vacuum().await {
                    tracing::warn!(
                        "deleted rows remain in PostgreSQL's files until the next vacuum: {error}"
                    );
                }
                drop(database);
                tokio::time::sleep(VACUUM).await;
                break;
            }
            let pause = match database.truncate_log().await {
                Ok(true) => break,
                Ok(false) => RETRY,
                Err(_) => FAILED,
            };
            drop(database);
            tokio::time::sleep(pause).await;
        }
    }
}

impl Database {
    /// Removes deleted text from every file: at once, or as soon as no reader needs it any more.
    pub async fn scrub(&self) {
        match self.is_sqlite() {
            true => self.scrub_file().await,
            false => self.scrub_wanted.notify_one(),
        }
    }

    /// Scrubs an SQLite file as [`Self::scrub`] does; has no effect on PostgreSQL.
    pub async fn scrub_file(&self) {
        if self.is_sqlite() && !matches!(self.truncate_log().await, Ok(true)) {
            self.scrub_wanted.notify_one();
        }
    }

    /// Writes SQLite's write-ahead log back and truncates it. Returns false if a reader prevents it.
    pub async fn truncate_log(&self) -> Result<bool> {
        let mut slot = self.writer.clone().lock_owned().await;
        let mut connection = match slot.take() {
            Some(connection) => connection,
            None => self.connect().await?,
        };
        // Does not wait for a reader, because writers would wait behind it. On an error the connection is discarded.
        let done = self
            .with_timeout(checkpoint(&mut connection, self.patience))
            .await?;
        *slot = Some(connection);
        Ok(done)
    }

    /// Makes PostgreSQL remove deleted rows from its tables.
    async fn vacuum(&self) -> Result<()> {
        let mut connection = self.connect().await?;
        connection
            .run("VACUUM records, samples, verdicts, pairs, feedback")
            .await?;
        connection.close().await?;
        Ok(())
    }

    /// Frees space for a deletion on a full disk. Returns whether there was any to free.
    pub async fn free_space(&self) -> bool {
        let Some(reserve) = &self.reserve else {
            return false;
        };
        let released = reserve.release();
        // Truncating the write-ahead log frees space too.
        matches!(self.truncate_log().await, Ok(true)) || released
    }

    /// Allocates the reserve again, if there is room for it.
    pub fn refill(&self) {
        if let Some(reserve) = &self.reserve
            && let Err(error) = reserve.fill()
        {
            tracing::warn!("cannot reserve disk space for deletions on a full disk: {error}");
        }
    }
}

async fn checkpoint(connection: &mut Connection, patience: Duration) -> Result<bool> {
    connection.run("PRAGMA busy_timeout = 0").await?;
    let busy: i64 = query("PRAGMA wal_checkpoint(TRUNCATE)")
        .fetch_value(connection)
        .await?;
    connection
        .run(format!("PRAGMA busy_timeout = {}", patience.as_millis()))
        .await?;
    Ok(busy == 0)
}
