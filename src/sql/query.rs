//! Statements with typed arguments.

use futures::FutureExt;
use futures::future::BoxFuture;
use serde::Serialize;
use sqlx::{Executor, IntoArguments};

use crate::driver::{Connection, Driver, on_driver};
use crate::row::{Column, Row};

/// The text of a statement.
#[derive(Debug, Clone)]
pub enum Sql {
    /// One text for both databases.
    Both(&'static str),
    Each {
        sqlite: &'static str,
        postgres: &'static str,
    },
    /// A text that was put together from the names of tables and columns.
    Built(String),
}

impl From<&'static str> for Sql {
    fn from(sql: &'static str) -> Self {
        Self::Both(sql)
    }
}

/// Returns the text of a statement with a condition that a value is in the list `$list`: `with_list!("... id ", "$1", " AND ...")`.
/// PostgreSQL binds the list as an array, SQLite as JSON.
#[macro_export]
macro_rules! with_list {
    ($before:expr, $list:literal, $after:expr) => {
        $crate::Sql::Each {
            sqlite: concat!(
                $before,
                " IN (SELECT value FROM json_each(",
                $list,
                ")) ",
                $after
            ),
            postgres: concat!($before, " = ANY(", $list, ") ", $after),
        }
    };
}

/// Returns the text of a query that locks the rows it finds until the end of the transaction. SQLite has a single writer, so that its
/// rows are locked by the transaction itself.
#[macro_export]
macro_rules! locking {
    ($query:expr) => {
        $crate::Sql::Each {
            sqlite: $query,
            postgres: concat!($query, " FOR UPDATE"),
        }
    };
}

/// An argument of a statement.
#[derive(Debug, Clone)]
pub enum Argument {
    Integer(Option<i64>),
    Real(f64),
    Text(Option<String>),
    Bytes(Vec<u8>),
    List(List),
}

/// A list: an array in PostgreSQL, JSON in SQLite.
#[derive(Debug, Clone, Serialize)]
#[serde(untagged)]
pub enum List {
    Integers(Vec<i64>),
    Reals(Vec<f64>),
    Texts(Vec<String>),
}

impl List {
    pub fn is_empty(&self) -> bool {
        match self {
            Self::Integers(list) => list.is_empty(),
            Self::Reals(list) => list.is_empty(),
            Self::Texts(list) => list.is_empty(),
        }
    }
}

/// Implements the conversion of types to the variant of an argument.
macro_rules! arguments {
    ($($type:ty => $variant:ident($value:ident) $converted:expr),+ $(,)?) => {
        $(impl From<$type> for Argument {
            fn from($value: $type) -> Self {
                Self::$variant($converted)
            }
        })+
    };
}
arguments!(
    i64 => Integer(value) Some(value),
    Option<i64> => Integer(value) value,
    f64 => Real(value) value,
    &str => Text(value) Some(value.to_owned()),
    Option<&str> => Text(value) value.map(str::to_owned),
    String => Text(value) Some(value),
    Vec<u8> => Bytes(value) value,
    Vec<String> => List(value) List::Texts(value),
    List => List(value) value,
);

/// A statement with its arguments, `$1` and following. It is prepared once per connection.
#[derive(Debug, Clone)]
pub struct Query {
    sql: Sql,
    arguments: Vec<Argument>,
}

/// Returns a statement without arguments.
pub fn query(sql: impl Into<Sql>) -> Query {
    Query {
        sql: sql.into(),
        arguments: Vec::new(),
    }
}

impl Query {
    /// Adds the next argument.
    pub fn bind(mut self, argument: impl Into<Argument>) -> Self {
        self.arguments.push(argument.into());
        self
    }

    // The futures are boxed: the drivers' own would be compiled into every caller.

    /// Runs the statement. Returns the number of rows that it changed.
    pub fn execute(self, connection: &mut Connection) -> BoxFuture<'_, sqlx::Result<u64>> {
        on_driver!(connection, Connection(handle) => self.execute_on(&mut **handle).boxed())
    }

    pub fn fetch_all(self, connection: &mut Connection) -> BoxFuture<'_, sqlx::Result<Vec<Row>>> {
        on_driver!(connection, Connection(handle) => self.fetch_all_on(&mut **handle).boxed())
    }

    /// Returns the first row; none if there is no row.
    pub fn fetch_optional(
        self,
        connection: &mut Connection,
    ) -> BoxFuture<'_, sqlx::Result<Option<Row>>> {
        on_driver!(connection, Connection(handle) => self.fetch_optional_on(&mut **handle).boxed())
    }

    /// Returns the first row.
    ///
    /// # Errors
    /// Errors with [`sqlx::Error::RowNotFound`] if there is no row.
    pub async fn fetch_one(self, connection: &mut Connection) -> sqlx::Result<Row> {
        let row = self.fetch_optional(connection).await?;
        row.ok_or(sqlx::Error::RowNotFound)
    }

    /// Returns the first column of all rows.
    pub async fn fetch_values<T>(self, connection: &mut Connection) -> sqlx::Result<Vec<T>>
    where
        T: for<'r> Column<'r>,
    {
        let rows = self.fetch_all(connection).await?;
        rows.iter().map(Row::first).collect()
    }

    /// Returns the first column of the first row; none if there is no row.
    pub async fn fetch_optional_value<T>(
        self,
        connection: &mut Connection,
    ) -> sqlx::Result<Option<T>>
    where
        T: for<'r> Column<'r>,
    {
        let row = self.fetch_optional(connection).await?;
        row.as_ref().map(Row::first).transpose()
    }

    /// Returns the first column of the first row.
    ///
    /// # Errors
    /// Errors as [`Self::fetch_one`] does.
    pub async fn fetch_value<T>(self, connection: &mut Connection) -> sqlx::Result<T>
    where
        T: for<'r> Column<'r>,
    {
        self.fetch_one(connection).await?.first()
    }

    async fn execute_on<'c, D: Driver>(
        self,
        on: impl Executor<'c, Database = D>,
    ) -> sqlx::Result<u64>
    where
        D::Arguments: IntoArguments<D>,
    {
        let arguments = D::arguments(self.arguments)?;
        let done = sqlx::query_with(D::text(self.sql), arguments);
        Ok(D::affected(&done.execute(on).await?))
    }

    async fn fetch_all_on<'c, D: Driver>(
        self,
        on: impl Executor<'c, Database = D>,
    ) -> sqlx::Result<Vec<Row>>
    where
        D::Arguments: IntoArguments<D>,
    {
        let arguments = D::arguments(self.arguments)?;
        let rows = sqlx::query_with(D::text(self.sql), arguments);
        Ok(rows.fetch_all(on).await?.into_iter().map(D::row).collect())
    }

    async fn fetch_optional_on<'c, D: Driver>(
        self,
        on: impl Executor<'c, Database = D>,
    ) -> sqlx::Result<Option<Row>>
    where
        D::Arguments: IntoArguments<D>,
    {
        let arguments = D::arguments(self.arguments)?;
        let row = sqlx::query_with(D::text(self.sql), arguments);
        Ok(row.fetch_optional(on).await?.map(D::row))
    }
}
