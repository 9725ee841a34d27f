//! Database connections: one for writes, a few for reads.
//!
//! All writes of a process use one connection, so that they never compete in the database: SQLite has a single writer and would return
//! BUSY, and PostgreSQL's transactions then need no order among themselves. Other processes that write to the same SQLite file are
//! waited for. After any failure the connection is discarded, and the database rolls back the transaction.

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

static MIGRATIONS: Migrator = sqlx::migrate!("./migrations");

/// The maximum number of concurrent read connections.
const READERS: u32 = 4;

/// Returns the URL of an SQLite file, which is created if it does not exist.
pub(super) fn sqlite_url(file: &Path) -> String {
    let file = std::path::absolute(file).unwrap_or_else(|_| file.to_owned());
    let path = file.to_string_lossy();
    // Characters with a meaning in URLs are escaped.
    let path = path
        .replace('%', "%25")
        .replace('?', "%3F")
        .replace('#', "%23");
    format!("sqlite:{path}?mode=rwc")
}

/// Returns the file of an SQLite URL; none for a database in memory or PostgreSQL.
pub(super) fn sqlite_file(url: &str) -> Option<PathBuf> {
    url.starts_with("sqlite:")
        .then(|| SqliteConnectOptions::from_str(url).ok())
        .flatten()
        .filter(|_| !url.contains(":memory:") && !url.contains("mode=memory"))
        .map(|options| options.get_filename().to_owned())
}

/// Returns the file of an SQLite URL as the prefix of an error message.
fn of_file(url: &str) -> String {
    sqlite_file(url).map_or_else(String::new, |file| format!("{}: ", file.display()))
}

/// The kind of database.
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
    /// The disk reserve; SQLite files only.
    pub(super) reserve: Option<Reserve>,
    /// Wakes the task that removes deleted text from the files; see [`Self::scrub`].
    pub(super) scrub_wanted: Arc<Notify>,
}

impl Database {
    /// Connects to the database and migrates its schema.
    pub async fn open(config: &LogConfig) -> Result<Self> {
        sqlx::any::install_default_drivers();
        let (backend, url) = match config.url.split_once(':').map(|(scheme, _)| scheme) {
            Some("sqlite") if config.url.contains("mode=") => (Backend::Sqlite, config.url.clone()),
            Some("sqlite") => {
                let sign = if config.url.contains('?') { '&' } else { '?' };
                (Backend::Sqlite, format!("{}{sign}mode=rwc", config.url))
            }
            Some("postgres" | "postgresql") if cfg!(not(feature = "postgres")) => {
                return Err(LogError::Config(
                    "this program was built without PostgreSQL (feature `postgres`)".to_owned(),
                ));
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
            // A PostgreSQL server may have gone since the last statement. An SQLite file stays open, and a test would cost as much as a
            // read.
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
        // SQLite's errors do not contain the file's name.
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

    /// Returns the pool of read connections.
    pub fn readers(&self) -> &AnyPool {
        &self.readers
    }

    /// Begins a transaction on one snapshot of the database: concurrent commits are not seen in part.
    pub async fn snapshot(&self) -> Result<Transaction<'static, Any>> {
        let begin = match self.backend {
            Backend::Sqlite => "BEGIN",
            Backend::Postgres => "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY",
        };
        Ok(self.readers.begin_with(begin).await?)
    }

    /// Begins a transaction on the write connection, and reconnects if that was lost.
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
        // SQLite's plain BEGIN takes the write lock only at the first write, when it is too late to wait for another process.
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

    /// Runs an operation within the database's time limit plus a second, so that SQLite's own busy error comes first.
    pub async fn patiently<T>(&self, doing: impl Future<Output = Result<T>>) -> Result<T> {
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

/// Applies the settings of every connection.
async fn prepare(
    connection: &mut AnyConnection,
    backend: Backend,
    patience: Duration,
) -> sqlx::Result<()> {
    let said = match backend {
        // FULL: a commit is on disk when it returns. secure_delete: deleted rows are overwritten and not just unlinked.
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

/// A transaction on the write connection. If it is dropped without [`WriteTransaction::commit`], the connection is closed and everything
/// rolled back.
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
