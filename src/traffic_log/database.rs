//! The database of a log: one connection for writes, a few for reads.
//!
//! All writes of a process use one connection, so that they never compete in the database: SQLite has a single writer and would return
//! BUSY, and PostgreSQL's transactions then need no order among themselves. Other processes that write to the same SQLite file are
//! waited for. After any failure the connection is discarded, and the database rolls back the transaction.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::Duration;

use sql::{Connection, Pool, sqlite_file};
use tokio::sync::{Mutex, Notify, OwnedMutexGuard};

use super::disk_space::Reserve;
use super::migrations::MIGRATIONS;
use super::{LogConfig, LogError, Result, private};

/// Returns the file of an SQLite URL as the prefix of an error message.
fn of_file(url: &str) -> String {
    sqlite_file(url).map_or_else(String::new, |file| format!("{}: ", file.display()))
}

#[derive(Debug)]
pub(super) struct Database {
    pub(super) patience: Duration,
    readers: Pool,
    pub(super) writer: Arc<Mutex<Option<Connection>>>,
    /// The disk reserve; SQLite files only.
    pub(super) reserve: Option<Reserve>,
    /// Wakes the task that removes deleted text from the files; see [`Self::scrub`].
    pub(super) scrub_wanted: Arc<Notify>,
}

impl Database {
    /// Connects to the database and migrates its schema.
    pub async fn open(config: &LogConfig) -> Result<Self> {
        let (url, patience) = (config.url.as_str(), config.patience);
        let readers = Pool::new(url, patience).map_err(LogError::Config)?;
        let file = sqlite_file(url);
        if let Some(file) = &file {
            private::database(file).map_err(|error| {
                LogError::Config(format!("cannot use {}: {error}", file.display()))
            })?;
        }
        let database = Self {
            patience,
            readers,
            writer: Arc::new(Mutex::new(None)),
            reserve: file.map(|file| Reserve::beside(&file, config.reserve)),
            scrub_wanted: Arc::default(),
        };
        // SQLite's errors do not contain the file's name.
        let named = |error: LogError| match error {
            LogError::Unavailable(what) => LogError::Unavailable(format!("{}{what}", of_file(url))),
            other => other,
        };
        let mut connection = database.connect().await.map_err(named)?;
        connection.create_types().await?;
        connection
            .migrate(&MIGRATIONS)
            .await
            .map_err(|error| LogError::Config(format!("{}{error}", of_file(url))))?;
        *database.writer.lock().await = Some(connection);
        database.refill();
        Ok(database)
    }

    pub fn is_sqlite(&self) -> bool {
        self.readers.is_sqlite()
    }

    pub fn is_closed(&self) -> bool {
        self.readers.is_closed()
    }

    /// Takes a read connection from the pool, to which it returns when it is dropped.
    pub async fn reader(&self) -> Result<Connection> {
        Ok(self.readers.acquire().await?)
    }

    /// Begins a transaction on one snapshot of the database: concurrent commits are not seen in part.
    pub async fn snapshot(&self) -> Result<Snapshot> {
        Ok(Snapshot(self.readers.snapshot().await?))
    }

    /// Begins a transaction on the write connection, and reconnects if that was lost.
    pub async fn begin(&self) -> Result<WriteTransaction> {
        let mut slot = self.writer.clone().lock_owned().await;
        if self.is_closed() {
            return Err(LogError::Unavailable("the log was closed".to_owned()));
        }
        if let Some(connection) = slot.as_mut()
            && self.with_timeout(begin(connection)).await.is_err()
        {
            *slot = None; // the server went away since the last transaction: what follows connects anew
        } else if slot.is_some() {
            return Ok(WriteTransaction { slot, open: true });
        }
        let mut connection = self.connect().await?;
        self.with_timeout(begin(&mut connection)).await?;
        *slot = Some(connection);
        Ok(WriteTransaction { slot, open: true })
    }

    /// Opens a connection that belongs to no pool.
    pub async fn connect(&self) -> Result<Connection> {
        self.with_timeout(async { Ok(self.readers.connect().await?) })
            .await
    }

    /// Runs an operation within the database's time limit plus a second, so that SQLite's own busy error comes first.
    pub async fn with_timeout<T>(&self, doing: impl Future<Output = Result<T>>) -> Result<T> {
        let limit = self.patience + Duration::from_secs(1);
        tokio::time::timeout(limit, doing)
            .await
            .unwrap_or_else(|_| Err(LogError::Unavailable(format!("no answer within {limit:?}"))))
    }

    /// Returns whether not even an empty transaction can be committed.
    pub async fn lost(&self) -> bool {
        match self.begin().await {
            Ok(transaction) => transaction.commit().await.is_err(),
            Err(_) => true,
        }
    }

    /// Closes all connections; later transactions fail.
    pub async fn close(&self) {
        self.readers.close().await;
        self.scrub_wanted.notify_one();
        if let Some(connection) = self.writer.lock().await.take() {
            // Everything that matters has been committed.
            let _ = connection.close().await;
        }
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        // The woken task finds the database gone and ends.
        self.scrub_wanted.notify_one();
    }
}

async fn begin(connection: &mut Connection) -> Result<()> {
    Ok(connection.begin_write().await?)
}

/// A transaction that reads from one snapshot.
#[derive(Debug)]
pub(super) struct Snapshot(Connection);

impl Snapshot {
    pub async fn end(self) -> Result<()> {
        Ok(self.0.end_snapshot().await?)
    }
}

impl Deref for Snapshot {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        &self.0
    }
}

impl DerefMut for Snapshot {
    fn deref_mut(&mut self) -> &mut Connection {
        &mut self.0
    }
}

/// A transaction on the write connection. If it is dropped without [`WriteTransaction::commit`], the connection is closed and everything
/// rolled back.
#[derive(Debug)]
pub(super) struct WriteTransaction {
    slot: OwnedMutexGuard<Option<Connection>>,
    open: bool,
}

impl WriteTransaction {
    pub fn connection(&mut self) -> &mut Connection {
        self.slot
            .as_mut()
            .expect("a transaction has a connection, this is a bug")
    }

    pub async fn commit(mut self) -> Result<()> {
        self.connection().run("COMMIT").await?;
        self.open = false;
        Ok(())
    }
}

impl Drop for WriteTransaction {
    fn drop(&mut self) {
        if self.open {
            *self.slot = None;
        }
    }
}
