//! SQLite: the settings of its connections, and the encoding of statements and arguments.

use std::str::FromStr;
use std::time::Duration;

use sqlx::pool::PoolOptions;
use sqlx::sqlite::{
    SqliteArguments, SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqliteQueryResult,
    SqliteRow, SqliteSynchronous,
};
use sqlx::{Arguments, AssertSqlSafe, ConnectOptions, Pool, SqlSafeStr, SqlStr, Sqlite};

use crate::driver::{Connection, Driver, Handle, READERS};
use crate::query::{Argument, Sql};
use crate::row::Row;

/// Returns the pool of an SQLite file, which is created if it does not exist, unless the URL's `mode` forbids it.
pub(super) fn pool(url: &str, patience: Duration) -> Result<Pool<Sqlite>, String> {
    let options = SqliteConnectOptions::from_str(url)
        .map_err(|error| error.to_string())?
        .busy_timeout(patience)
        .journal_mode(SqliteJournalMode::Wal)
        // A commit is on disk when it returns.
        .synchronous(SqliteSynchronous::Full)
        .foreign_keys(true)
        // Deleted rows are overwritten and not just unlinked.
        .pragma("secure_delete", "ON")
        .pragma("temp_store", "MEMORY")
        .disable_statement_logging();
    let options = match url.contains("mode=") {
        true => options,
        false => options.create_if_missing(true),
    };
    Ok(PoolOptions::new()
        .max_connections(READERS)
        .acquire_timeout(patience)
        // A file stays open, and a test would cost as much as a read.
        .test_before_acquire(false)
        .connect_lazy_with(options))
}

impl Driver for Sqlite {
    const TYPES: Option<&'static str> = None;
    // A plain BEGIN takes the write lock only at the first write, when it is too late to wait for another process.
    const BEGIN_WRITE: &'static str = "BEGIN IMMEDIATE";
    const BEGIN_SNAPSHOT: &'static str = "BEGIN";

    async fn connect(pool: &Pool<Self>) -> sqlx::Result<SqliteConnection> {
        pool.connect_options().connect().await
    }

    fn text(sql: Sql) -> SqlStr {
        match sql {
            Sql::Both(sql) | Sql::Each { sqlite: sql, .. } => sql.into_sql_str(),
            Sql::Built(sql) => AssertSqlSafe(sql).into_sql_str(),
        }
    }

    /// SQLite has no arrays: a list is the JSON text that `json_each` reads.
    fn arguments(arguments: Vec<Argument>) -> sqlx::Result<SqliteArguments> {
        let mut encoded = SqliteArguments::default();
        for argument in arguments {
            let added = match argument {
                Argument::Integer(value) => Arguments::add(&mut encoded, value),
                Argument::Real(value) => Arguments::add(&mut encoded, value),
                Argument::Text(value) => Arguments::add(&mut encoded, value),
                Argument::Bytes(value) => Arguments::add(&mut encoded, value),
                Argument::List(list) => serde_json::to_string(&list)
                    .map_err(Into::into)
                    .and_then(|list| Arguments::add(&mut encoded, list)),
            };
            added.map_err(sqlx::Error::Encode)?;
        }
        Ok(encoded)
    }

    fn affected(done: &SqliteQueryResult) -> u64 {
        done.rows_affected()
    }

    fn connection(handle: Handle<Self>) -> Connection {
        Connection::Sqlite(handle)
    }

    fn row(row: SqliteRow) -> Row {
        Row::Sqlite(row)
    }
}
