//! The connections: one that writes, a few that read.
//!
//! All writes of a process go through one connection, so that two of them never meet in the database: SQLite has one writer and
//! would say BUSY, and transactions of PostgreSQL need not be ordered against each other. Another process on the same SQLite file
//! is waited for. A connection on which anything failed is thrown away, and the database rolls back what it had begun.

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use sqlx::any::{AnyConnectOptions, AnyPoolOptions};
use sqlx::migrate::Migrator;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{Any, AnyConnection, AnyPool, AssertSqlSafe, ConnectOptions, Connection, Transaction};
use tokio::sync::{Mutex, Notify, OwnedMutexGuard};

use super::room::Reserve;
use super::{LogConfig, LogError, Result, private};

static MIGRATIONS: Migrator = sqlx::migrate!("src/preference/log/migrations");

/// Connections that read at the same time.
const READERS: u32 = 4;

/// The URL of an SQLite file that is made if it is not there.
pub(super) fn sqlite_url(file: &Path) -> String {
    let file = std::path::absolute(file).unwrap_or_else(|_| file.to_owned());
    let path = file.to_string_lossy();
    // What a URL would read as its own.
    let path = path
        .replace('%', "%25")
        .replace('?', "%3F")
        .replace('#', "%23");
    format!("sqlite:{path}?mode=rwc")
}

/// The file of an SQLite URL; none of a database in memory, and of PostgreSQL.
pub(super) fn sqlite_file(url: &str) -> Option<PathBuf> {
    url.starts_with("sqlite:")
        .then(|| SqliteConnectOptions::from_str(url).ok())
        .flatten()
        .filter(|_| !url.contains(":memory:") && !url.contains("mode=memory"))
        .map(|options| options.get_filename().to_owned())
}

/// The file of an SQLite URL, as a message begins with it.
fn of_file(url: &str) -> String {
    sqlite_file(url).map_or_else(String::new, |file| format!("{}: ", file.display()))
}

/// Which of the two databases.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Backend {
    Sqlite,
    Postgres,
}

#[derive(Debug)]
pub(super) struct Database {
    options: AnyConnectOptions,
    pub(super) backend: Backend,
    pub(super) patience: Duration,
    readers: AnyPool,
    pub(super) writer: Arc<Mutex<Option<AnyConnection>>>,
    /// Of an SQLite file.
    pub(super) reserve: Option<Reserve>,
    /// Wakes the task that removes what was deleted; see [`Self::scrub`].
    pub(super) scrub_wanted: Arc<Notify>,
}

impl Database {
    /// Connects and brings the schema up to date.
    pub async fn open(config: &LogConfig) -> Result<Self> {
        sqlx::any::install_default_drivers();
        let (backend, url) = match config.url.split_once(':').map(|(scheme, _)| scheme) {
            Some("sqlite") if config.url.contains("mode=") => (Backend::Sqlite, config.url.clone()),
            Some("sqlite") => {
                let sign = if config.url.contains('?') { '&' } else { '?' };
                (Backend::Sqlite, format!("{}{sign}mode=rwc", config.url))
            }
            Some("postgres" | "postgresql") => (Backend::Postgres, config.url.clone()),
            _ => {
                return Err(LogError::Config(
                    "the URL must begin with sqlite: or postgres:".to_owned(),
                ));
            }
        };
        let options = AnyConnectOptions::from_str(&url)
            .map_err(|error| LogError::Config(error.to_string()))?
            .disable_statement_logging();
        let patience = config.patience;
        let file = sqlite_file(&url);
        if let Some(file) = &file {
            private::database(file).map_err(|error| {
                LogError::Config(format!("cannot use {}: {error}", file.display()))
            })?;
        }
        let readers = AnyPoolOptions::new()
            .max_connections(READERS)
            .acquire_timeout(patience)
            // A server may have gone since the last statement; a file is still open, and to ask is as dear as to read.
            .test_before_acquire(backend == Backend::Postgres)
            .after_connect(move |connection, _| {
                Box::pin(async move { prepare(connection, backend, patience).await })
            })
            .connect_lazy_with(options.clone());
        let database = Self {
            options,
            backend,
            patience,
            readers,
            writer: Arc::new(Mutex::new(None)),
            reserve: file.map(|file| Reserve::beside(&file, config.reserve)),
            scrub_wanted: Arc::default(),
        };
        // An SQLite error names no file.
        let named = |error: LogError| match error {
            LogError::Unavailable(what) => {
                LogError::Unavailable(format!("{}{what}", of_file(&url)))
            }
            other => other,
        };
        let mut connection = database.connect().await.map_err(named)?;
        if backend == Backend::Postgres {
            sqlx::raw_sql(
                "DO $$ BEGIN CREATE DOMAIN blob AS bytea; \
                 EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL; END $$",
            )
            .execute(&mut connection)
            .await?;
        }
        MIGRATIONS
            .run(&mut connection)
            .await
            .map_err(|error| LogError::Config(format!("{}{error}", of_file(&url))))?;
        *database.writer.lock().await = Some(connection);
        database.refill();
        Ok(database)
    }

    /// Connections to read with.
    pub fn readers(&self) -> &AnyPool {
        &self.readers
    }

    /// Begins a transaction that sees one moment: what is committed meanwhile is not read by halves.
    pub async fn snapshot(&self) -> Result<Transaction<'static, Any>> {
        let begin = match self.backend {
            Backend::Sqlite => "BEGIN",
            Backend::Postgres => "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY",
        };
        Ok(self.readers.begin_with(begin).await?)
    }

    /// Begins a transaction on the writing connection, connecting anew if that was lost.
    pub async fn begin(&self) -> Result<WriteTransaction> {
        let mut slot = self.writer.clone().lock_owned().await;
        if self.readers.is_closed() {
            return Err(LogError::Unavailable("the log was closed".to_owned()));
        }
        if let Some(connection) = slot.as_mut()
            && self.start(connection).await.is_err()
        {
            *slot = None; // the server went away since the last transaction: what follows connects anew
        } else if slot.is_some() {
            return Ok(WriteTransaction { slot, open: true });
        }
        let mut connection = self.connect().await?;
        self.start(&mut connection).await?;
        *slot = Some(connection);
        Ok(WriteTransaction { slot, open: true })
    }

    async fn start(&self, connection: &mut AnyConnection) -> Result<()> {
        // SQLite's plain BEGIN takes the write lock only at the first write, where waiting for another process is too late.
        let begin = match self.backend {
            Backend::Sqlite => "BEGIN IMMEDIATE",
            Backend::Postgres => "BEGIN",
        };
        self.patiently(async {
            sqlx::raw_sql(begin).execute(connection).await?;
            Ok(())
        })
        .await
    }

    pub(super) async fn connect(&self) -> Result<AnyConnection> {
        self.patiently(async {
            let mut connection = self.options.connect().await?;
            prepare(&mut connection, self.backend, self.patience).await?;
            Ok(connection)
        })
        .await
    }

    /// Gives an operation as long as the database may take, and a moment more, so that SQLite's own complaint comes first.
    pub async fn patiently<T>(&self, doing: impl Future<Output = Result<T>>) -> Result<T> {
        let limit = self.patience + Duration::from_secs(1);
        tokio::time::timeout(limit, doing)
            .await
            .unwrap_or_else(|_| Err(LogError::Unavailable(format!("no answer within {limit:?}"))))
    }

    /// Whether not even an empty transaction can be made.
    pub async fn lost(&self) -> bool {
        match self.begin().await {
            Ok(transaction) => transaction.commit().await.is_err(),
            Err(_) => true,
        }
    }

    /// Closes all connections; nothing can be begun afterwards.
    pub async fn close(&self) {
        self.readers.close().await;
        self.scrub_wanted.notify_one();
        if let Some(connection) = self.writer.lock().await.take() {
            // All that matters was committed.
            let _ = connection.close().await;
        }
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        // The task finds that it is gone.
        self.scrub_wanted.notify_one();
    }
}

/// What every connection is told first.
async fn prepare(
    connection: &mut AnyConnection,
    backend: Backend,
    patience: Duration,
) -> sqlx::Result<()> {
    let said = match backend {
        // FULL: a commit is on the disk when it returns. Deleted rows are overwritten, not just unlinked.
        Backend::Sqlite => format!(
            "PRAGMA busy_timeout = {}; PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; \
             PRAGMA foreign_keys = ON; PRAGMA secure_delete = ON; PRAGMA temp_store = MEMORY;",
            patience.as_millis()
        ),
        Backend::Postgres => {
            "SET synchronous_commit = on; SET client_min_messages = warning".to_owned()
        }
    };
    sqlx::raw_sql(AssertSqlSafe(said))
        .execute(connection)
        .await?;
    Ok(())
}

/// A transaction on the writing connection. Dropped without [`WriteTransaction::commit`] it takes the connection with it, and with
/// that all it did.
#[derive(Debug)]
pub(super) struct WriteTransaction {
    slot: OwnedMutexGuard<Option<AnyConnection>>,
    open: bool,
}

impl WriteTransaction {
    pub fn connection(&mut self) -> &mut AnyConnection {
        self.slot
            .as_mut()
            .expect("a transaction has a connection, this is a bug")
    }

    pub async fn commit(mut self) -> Result<()> {
        sqlx::raw_sql("COMMIT").execute(self.connection()).await?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_files_name_may_hold_what_a_url_would_read_as_its_own() {
        let url = sqlite_url(Path::new("/data/100%?#.db"));
        assert_eq!(url, "sqlite:/data/100%25%3F%23.db?mode=rwc");
    }
}
