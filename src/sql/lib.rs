//! Connections to SQLite and PostgreSQL, and statements with typed arguments and typed rows that run on both.
//!
//! | file | |
//! |---|---|
//! | `address` | the file that the URL of an SQLite database names |
//! | `driver` | pools and connections, each of one of the two drivers |
//! | `sqlite`, `postgres` | the settings of each database, and how it encodes statements |
//! | `query`, `row` | statements with their arguments, rows with their columns |
//! | `insert` | the insertion of many rows by one statement |
//!
//! The crate is apart from the log because the drivers' futures are compiled into the crate that polls them. Its own are boxed, so that
//! they are compiled here.

mod address;
mod driver;
mod insert;
#[cfg(feature = "postgres")]
mod postgres;
mod query;
mod row;
mod sqlite;

pub use address::{sqlite_file, sqlite_url};
pub use driver::{Connection, Pool};
pub use insert::insert_rows;
pub use query::{Argument, List, Query, Sql, query};
pub use row::{Column, Row};
