//! What surrogates of a log are hashed with: made once, so that equal values stay equal from one start to the next.
//!
//! Whoever has the salt can try addresses and numbers until one of them gives a surrogate, so it does not lie among the records: a
//! copy of the database tells nothing. PostgreSQL is the exception unless a file is named: its servers have nothing in common but the
//! database, and each with a salt of its own would give one value several surrogates.

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use sqlx::AnyConnection;

use super::database::{Database, sqlite_file};
use super::{LogError, Result, id};
use crate::files;

/// Where a log's salt is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SaltPlace {
    /// In this file, made with mode 0600 where it is not there.
    Made(PathBuf),
    /// In this file, which is there: several servers on one log are given the same.
    Given(PathBuf),
    /// In the database itself.
    Database,
}

impl SaltPlace {
    /// Beside an SQLite file, under its name and `.salt`; in any other database.
    pub(super) fn of(url: &str) -> Self {
        match sqlite_file(url) {
            Some(file) => {
                let mut name = file.into_os_string();
                name.push(".salt");
                Self::Made(name.into())
            }
            None => Self::Database,
        }
    }
}

/// Fewer could be tried out.
const LEAST: usize = 32;

/// The salt, made or moved to its place where it is not there yet.
///
/// # Errors
/// [`LogError::Config`] for a file that cannot be read or made, holds no salt, or another one than the log's surrogates were made with.
pub(super) async fn salt(database: &Database, place: &SaltPlace) -> Result<String> {
    // On SQLite this also keeps two processes apart that begin at once.
    let mut transaction = database.begin().await?;
    let connection = transaction.connection();
    let stored = stored(connection).await?;
    let salt = match (place, stored) {
        (SaltPlace::Database, Some(stored)) => stored,
        (SaltPlace::Database, None) => store(connection).await?,
        (SaltPlace::Made(file), stored) => {
            let salt = match read(file)? {
                Some(salt) => salt,
                // A log of before has it in the database.
                None => make(file, stored.as_deref())?,
            };
            forget(connection, stored, &salt, file).await?;
            salt
        }
        (SaltPlace::Given(file), stored) => {
            let there = read(file)?;
            let salt = there.ok_or_else(|| problem(file, "is not there"))?;
            forget(connection, stored, &salt, file).await?;
            salt
        }
    };
    transaction.commit().await?;
    Ok(salt)
}

async fn stored(connection: &mut AnyConnection) -> Result<Option<String>> {
    let found = sqlx::query_scalar("SELECT value FROM settings WHERE name = 'salt'");
    Ok(found.fetch_optional(connection).await?)
}

/// A fresh salt in the database, or the one that another server was faster with.
async fn store(connection: &mut AnyConnection) -> Result<String> {
    sqlx::query(
        "INSERT INTO settings (name, value) VALUES ('salt', $1) ON CONFLICT (name) DO NOTHING",
    )
    .bind(fresh())
    .execute(&mut *connection)
    .await?;
    let stored = stored(connection).await?;
    stored.ok_or_else(|| LogError::Corrupt("a salt was stored and is not there".to_owned()))
}

/// Takes the salt out of the database once it is in its file.
async fn forget(
    connection: &mut AnyConnection,
    stored: Option<String>,
    salt: &str,
    file: &Path,
) -> Result<()> {
    match stored {
        None => Ok(()),
        Some(stored) if stored == salt => {
            sqlx::query("DELETE FROM settings WHERE name = 'salt'")
                .execute(connection)
                .await?;
            Ok(())
        }
        Some(_) => Err(problem(
            file,
            "holds another salt than the log's own, with which its surrogates were made: write that one \
             (SELECT value FROM settings WHERE name = 'salt') into the file, or delete it to begin anew",
        )),
    }
}

/// The salt of a file; none where there is no file.
fn read(file: &Path) -> Result<Option<String>> {
    let text = match files::read_small(file) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        text => text.map_err(|error| problem(file, error))?,
    };
    match text.trim() {
        salt if salt.len() >= LEAST => Ok(Some(salt.to_owned())),
        _ => Err(problem(file, "holds no salt of 32 characters or more")),
    }
}

/// Makes the file whole or not at all, with `salt` or a fresh one. Another's that is there first stays.
fn make(file: &Path, salt: Option<&str>) -> Result<String> {
    let salt = salt.map_or_else(fresh, ToOwned::to_owned);
    let dir = match file.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    };
    let written = || {
        // Nobody but the owner may read it, from the first byte on.
        let mut draft = tempfile::Builder::new().prefix(".salt.").tempfile_in(dir)?;
        writeln!(draft, "{salt}")?;
        draft.as_file().sync_all()?;
        match draft.persist_noclobber(file) {
            Err(error) if error.error.kind() == ErrorKind::AlreadyExists => {}
            persisted => {
                persisted.map_err(|error| error.error)?;
            }
        }
        // Before the database forgets it, so that a crash in between loses nothing.
        File::open(dir)?.sync_all()
    };
    written().map_err(|error: std::io::Error| problem(file, error))?;
    read(file)?.ok_or_else(|| problem(file, "was made and is not there"))
}

fn fresh() -> String {
    id::hex(&rand::random::<[u8; 32]>())
}

fn problem(file: &Path, what: impl std::fmt::Display) -> LogError {
    LogError::Config(format!("the salt's file {} {what}", file.display()))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn an_sqlite_log_has_its_salt_beside_it() {
        let made = |file: &str| SaltPlace::Made(file.into());
        for (url, place) in [
            ("sqlite:/data/log.sqlite", made("/data/log.sqlite.salt")),
            ("sqlite:///data/a%25b?mode=rwc", made("/data/a%b.salt")),
            ("sqlite::memory:", SaltPlace::Database),
            ("postgres://db.example/log", SaltPlace::Database),
        ] {
            assert_eq!(SaltPlace::of(url), place, "{url}");
        }
    }

    #[test]
    fn it_is_made_once_for_its_owner_alone() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("log.salt");
        assert_eq!(read(&file).unwrap(), None);
        let salt = make(&file, None).unwrap();
        assert_eq!(salt.len(), 64);
        assert_eq!(
            fs::metadata(&file).unwrap().permissions().mode() & 0o777,
            0o600
        );
        // Whoever comes second takes what is there.
        assert_eq!(make(&file, None).unwrap(), salt);
        assert_eq!(read(&file).unwrap(), Some(salt));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        fs::write(&file, "short\n").unwrap();
        assert!(read(&file).is_err());
    }
}
