//! A row of a result, with typed columns.

#[cfg(feature = "postgres")]
use sqlx::postgres::{PgRow, Postgres};
use sqlx::sqlite::{Sqlite, SqliteRow};
use sqlx::{Decode, Row as _, Type};

use crate::driver::on_driver;

/// A row of one of the databases.
pub enum Row {
    Sqlite(SqliteRow),
    #[cfg(feature = "postgres")]
    Postgres(PgRow),
}

impl Row {
    /// Returns the value of a column.
    ///
    /// # Errors
    /// Errors with [`sqlx::Error::ColumnNotFound`] or [`sqlx::Error::ColumnDecode`] if there is no such column, or its value is not a `T`.
    pub fn get<'r, T: Column<'r>>(&'r self, name: &str) -> sqlx::Result<T> {
        on_driver!(self, Self(row) => row.try_get(name))
    }

    /// Returns the value of the first column.
    ///
    /// # Errors
    /// Errors as [`Self::get`] does.
    pub fn first<'r, T: Column<'r>>(&'r self) -> sqlx::Result<T> {
        on_driver!(self, Self(row) => row.try_get(0))
    }
}

/// A type that a column of either database can have: `i64`, `f64`, `String`, `Vec<u8>`, and their references and options.
#[cfg(feature = "postgres")]
pub trait Column<'r>:
    Decode<'r, Sqlite> + Type<Sqlite> + Decode<'r, Postgres> + Type<Postgres>
{
}

#[cfg(feature = "postgres")]
impl<'r, T> Column<'r> for T where
    T: Decode<'r, Sqlite> + Type<Sqlite> + Decode<'r, Postgres> + Type<Postgres>
{
}

/// A type that a column can have: `i64`, `f64`, `String`, `Vec<u8>`, and their references and options.
#[cfg(not(feature = "postgres"))]
pub trait Column<'r>: Decode<'r, Sqlite> + Type<Sqlite> {}

#[cfg(not(feature = "postgres"))]
impl<'r, T: Decode<'r, Sqlite> + Type<Sqlite>> Column<'r> for T {}
