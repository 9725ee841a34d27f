//! The two drivers, SQLite's and PostgreSQL's, behind one interface: pools and connections.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use sqlx::migrate::{MigrateError, Migrator};
use sqlx::pool::PoolConnection;
use sqlx::{AssertSqlSafe, Connection as _, SqlStr, Sqlite, Transaction};

#[cfg(feature = "postgres")]
use crate::postgres;
use crate::query::{Argument, Sql};
use crate::row::Row;
use crate::sqlite;

/// The maximum number of connections of a pool.
pub(super) const READERS: u32 = 4;

/// Evaluates an expression for the variant of a value, one for each driver.
macro_rules! on_driver {
    ($value:expr, $kind:ident($name:ident) => $result:expr) => {
        match $value {
            $kind::Sqlite($name) => $result,
            #[cfg(feature = "postgres")]
            $kind::Postgres($name) => $result,
        }
    };
}
pub(super) use on_driver;

/// The differences between the databases that statements and connections depend on.
pub trait Driver: sqlx::Database {
    /// The statement that creates the types which the migrations need and the database lacks.
    const TYPES: Option<&'static str>;
    /// The statement that begins a transaction which writes.
    const BEGIN_WRITE: &'static str;
    /// The statement that begins a transaction which reads from one snapshot.
    const BEGIN_SNAPSHOT: &'static str;

    /// Opens a connection outside the pool, with the settings of the pool's connections.
    fn connect(
        pool: &sqlx::Pool<Self>,
    ) -> impl Future<Output = sqlx::Result<Self::Connection>> + Send;

    /// Returns the text of a statement for this database.
    fn text(sql: Sql) -> SqlStr;

    /// Encodes the arguments of a statement.
    fn arguments(arguments: Vec<Argument>) -> sqlx::Result<Self::Arguments>;

    /// Returns the number of rows that a statement changed.
    fn affected(done: &Self::QueryResult) -> u64;

    fn connection(handle: Handle<Self>) -> Connection;

    fn row(row: Self::Row) -> Row;
}

/// A pool of connections to one of the databases.
#[derive(Debug)]
pub enum Pool {
    Sqlite(sqlx::Pool<Sqlite>),
    #[cfg(feature = "postgres")]
    Postgres(sqlx::Pool<sqlx::Postgres>),
}

impl Pool {
    /// Returns a pool that connects when it is used first. `patience` limits the wait for a connection, and SQLite's wait for the locks of
    /// other processes.
    ///
    /// # Errors
    /// Errors with a sentence if the URL is not of a database that this program was built for.
    pub fn new(url: &str, patience: Duration) -> Result<Self, String> {
        match url.split_once(':').map(|(scheme, _)| scheme) {
            Some("sqlite") => sqlite::pool(url, patience).map(Self::Sqlite),
            #[cfg(feature = "postgres")]
            Some("postgres" | "postgresql") => postgres::pool(url, patience).map(Self::Postgres),
            #[cfg(not(feature = "postgres"))]
            Some("postgres" | "postgresql") => {
                Err("this program was built without PostgreSQL (feature `postgres`)".to_owned())
            }
            _ => Err("the URL must begin with sqlite: or postgres:".to_owned()),
        }
    }

    pub fn is_sqlite(&self) -> bool {
        matches!(self, Self::Sqlite(_))
    }

    /// Opens a connection outside the pool.
    pub fn connect(&self) -> BoxFuture<'_, sqlx::Result<Connection>> {
        on_driver!(self, Self(pool) => connect(pool).boxed())
    }

    /// Takes a connection from the pool.
    pub fn acquire(&self) -> BoxFuture<'_, sqlx::Result<Connection>> {
        on_driver!(self, Self(pool) => acquire(pool).boxed())
    }

    /// Takes a connection from the pool and begins a transaction on one snapshot.
    pub fn snapshot(&self) -> BoxFuture<'_, sqlx::Result<Connection>> {
        on_driver!(self, Self(pool) => snapshot(pool).boxed())
    }

    pub fn is_closed(&self) -> bool {
        on_driver!(self, Self(pool) => pool.is_closed())
    }

    pub fn close(&self) -> BoxFuture<'_, ()> {
        on_driver!(self, Self(pool) => pool.close().boxed())
    }
}

async fn connect<D: Driver>(pool: &sqlx::Pool<D>) -> sqlx::Result<Connection> {
    Ok(D::connection(Handle::Own(D::connect(pool).await?)))
}

async fn acquire<D: Driver>(pool: &sqlx::Pool<D>) -> sqlx::Result<Connection> {
    Ok(D::connection(Handle::Pooled(pool.acquire().await?)))
}

async fn snapshot<D: Driver>(pool: &sqlx::Pool<D>) -> sqlx::Result<Connection> {
    let transaction = pool.begin_with(D::BEGIN_SNAPSHOT).await?;
    Ok(D::connection(Handle::Snapshot(transaction)))
}

/// A connection to one of the databases.
pub enum Connection {
    Sqlite(Handle<Sqlite>),
    #[cfg(feature = "postgres")]
    Postgres(Handle<sqlx::Postgres>),
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(on_driver!(self, Self(handle) => handle.database()))
    }
}

impl Connection {
    pub fn is_sqlite(&self) -> bool {
        matches!(self, Self::Sqlite(_))
    }

    /// Runs statements without arguments, which are not prepared.
    pub fn run(&mut self, sql: impl Into<String>) -> BoxFuture<'_, sqlx::Result<()>> {
        let sql = sqlx::raw_sql(AssertSqlSafe(sql.into()));
        on_driver!(self, Self(handle) => async move {
            sql.execute(&mut **handle).await?;
            Ok(())
        }
        .boxed())
    }

    /// Begins a transaction that writes.
    pub async fn begin_write(&mut self) -> sqlx::Result<()> {
        let begin = on_driver!(self, Self(handle) => handle.begin_write());
        self.run(begin).await
    }

    /// Ends the transaction of [`Pool::snapshot`].
    pub fn end_snapshot(self) -> BoxFuture<'static, sqlx::Result<()>> {
        on_driver!(self, Self(handle) => handle.end_snapshot().boxed())
    }

    /// Creates the types which the migrations need.
    pub async fn create_types(&mut self) -> sqlx::Result<()> {
        match on_driver!(self, Self(handle) => handle.types()) {
            Some(types) => self.run(types).await,
            None => Ok(()),
        }
    }

    pub async fn migrate(&mut self, migrator: &Migrator) -> Result<(), MigrateError> {
        on_driver!(self, Self(handle) => migrator.run(&mut **handle).await)
    }

    pub fn close(self) -> BoxFuture<'static, sqlx::Result<()>> {
        on_driver!(self, Self(handle) => handle.close().boxed())
    }
}

/// A connection by its owner.
pub enum Handle<D: sqlx::Database> {
    /// Outside a pool.
    Own(D::Connection),
    Pooled(PoolConnection<D>),
    /// One of a pool in a transaction, which is rolled back if it is dropped.
    Snapshot(Transaction<'static, D>),
}

impl<D: Driver> Handle<D> {
    fn types(&self) -> Option<&'static str> {
        D::TYPES
    }

    fn begin_write(&self) -> &'static str {
        D::BEGIN_WRITE
    }

    fn database(&self) -> &'static str {
        D::NAME
    }

    async fn end_snapshot(self) -> sqlx::Result<()> {
        match self {
            Self::Snapshot(transaction) => transaction.commit().await,
            Self::Own(_) | Self::Pooled(_) => Ok(()),
        }
    }

    async fn close(self) -> sqlx::Result<()> {
        match self {
            Self::Own(connection) => connection.close().await,
            Self::Pooled(connection) => connection.close().await,
            Self::Snapshot(transaction) => transaction.rollback().await,
        }
    }
}

impl<D: sqlx::Database> Deref for Handle<D> {
    type Target = D::Connection;

    fn deref(&self) -> &D::Connection {
        match self {
            Self::Own(connection) => connection,
            Self::Pooled(connection) => connection,
            Self::Snapshot(transaction) => transaction,
        }
    }
}

impl<D: sqlx::Database> DerefMut for Handle<D> {
    fn deref_mut(&mut self) -> &mut D::Connection {
        match self {
            Self::Own(connection) => connection,
            Self::Pooled(connection) => connection,
            Self::Snapshot(transaction) => transaction,
        }
    }
}
