//! PostgreSQL: the settings of its connections, and the encoding of statements and arguments.

use std::str::FromStr;
use std::time::Duration;

use sqlx::pool::PoolOptions;
use sqlx::postgres::{PgArguments, PgConnectOptions, PgConnection, PgQueryResult, PgRow};
use sqlx::{Arguments, AssertSqlSafe, ConnectOptions, Pool, Postgres, SqlSafeStr, SqlStr};

use crate::driver::{Connection, Driver, Handle, READERS};
use crate::query::{Argument, List, Sql};
use crate::row::Row;

/// The settings of every connection. They are not parameters of its start, which connection poolers refuse.
const SETTINGS: &str = "SET synchronous_commit = on; SET client_min_messages = warning";

/// Returns the pool of a PostgreSQL database.
pub(super) fn pool(url: &str, patience: Duration) -> Result<Pool<Postgres>, String> {
    let options = PgConnectOptions::from_str(url)
        .map_err(|error| error.to_string())?
        .disable_statement_logging();
    Ok(PoolOptions::new()
        .max_connections(READERS)
        .acquire_timeout(patience)
        // The server may have gone since the last statement.
        .test_before_acquire(true)
        .after_connect(|connection, _| Box::pin(prepare(connection)))
        .connect_lazy_with(options))
}

async fn prepare(connection: &mut PgConnection) -> sqlx::Result<()> {
    sqlx::raw_sql(SETTINGS).execute(connection).await.map(drop)
}

impl Driver for Postgres {
    const TYPES: Option<&'static str> = Some(
        "DO $$ BEGIN CREATE DOMAIN blob AS bytea; \
         EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL; END $$",
    );
    const BEGIN_WRITE: &'static str = "BEGIN";
    const BEGIN_SNAPSHOT: &'static str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";

    async fn connect(pool: &Pool<Self>) -> sqlx::Result<PgConnection> {
        let mut connection = pool.connect_options().connect().await?;
        prepare(&mut connection).await?;
        Ok(connection)
    }

    fn text(sql: Sql) -> SqlStr {
        match sql {
            Sql::Both(sql) | Sql::Each { postgres: sql, .. } => sql.into_sql_str(),
            Sql::Built(sql) => AssertSqlSafe(sql).into_sql_str(),
        }
    }

    fn arguments(arguments: Vec<Argument>) -> sqlx::Result<PgArguments> {
        let mut encoded = PgArguments::default();
        for argument in arguments {
            let added = match argument {
                Argument::Integer(value) => Arguments::add(&mut encoded, value),
                Argument::Real(value) => Arguments::add(&mut encoded, value),
                Argument::Text(value) => Arguments::add(&mut encoded, value),
                Argument::Bytes(value) => Arguments::add(&mut encoded, value),
                Argument::List(List::Integers(values)) => Arguments::add(&mut encoded, values),
                Argument::List(List::Reals(values)) => Arguments::add(&mut encoded, values),
                Argument::List(List::Texts(values)) => Arguments::add(&mut encoded, values),
            };
            added.map_err(sqlx::Error::Encode)?;
        }
        Ok(encoded)
    }

    fn affected(done: &PgQueryResult) -> u64 {
        done.rows_affected()
    }

    fn connection(handle: Handle<Self>) -> Connection {
        Connection::Postgres(handle)
    }

    fn row(row: PgRow) -> Row {
        Row::Postgres(row)
    }
}
