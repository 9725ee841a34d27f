//! A connection beside the log's own, as an operator opens one.

use sqlx::{AssertSqlSafe, Connection, PgConnection, Row, SqliteConnection};

/// A connection to a database of either kind.
pub enum Operator {
    Sqlite(SqliteConnection),
    Postgres(PgConnection),
}

/// Evaluates an expression for the connection of either kind.
macro_rules! on {
    ($operator:expr, $connection:ident => $result:expr) => {
        match $operator {
            Operator::Sqlite($connection) => $result,
            Operator::Postgres($connection) => $result,
        }
    };
}

impl Operator {
    pub async fn connect(url: &str) -> Self {
        match url.starts_with("sqlite:") {
            true => Self::Sqlite(SqliteConnection::connect(url).await.unwrap()),
            false => Self::Postgres(PgConnection::connect(url).await.unwrap()),
        }
    }

    /// Runs statements. Returns the number of rows that they changed.
    pub async fn run(&mut self, sql: &str) -> u64 {
        let sql = sqlx::raw_sql(AssertSqlSafe(sql.to_owned()));
        on!(self, connection => sql.execute(connection).await.unwrap().rows_affected())
    }

    /// Returns the first column of all rows, which is a text.
    pub async fn texts(&mut self, sql: &str) -> Vec<String> {
        let sql = AssertSqlSafe(sql.to_owned());
        on!(self, connection => {
            let rows = sqlx::query(sql).fetch_all(connection).await.unwrap();
            rows.iter().map(|row| row.get(0)).collect()
        })
    }

    /// Returns the first column of the only row, which is an integer.
    pub async fn number(&mut self, sql: &str) -> i64 {
        let sql = AssertSqlSafe(sql.to_owned());
        on!(self, connection => sqlx::query_scalar(sql).fetch_one(connection).await.unwrap())
    }

    pub async fn close(self) {
        on!(self, connection => connection.close().await.unwrap());
    }
}
