//! The salt of a log's surrogates: created once, so that equal values keep the same surrogate across restarts.
//!
//! With the salt, addresses and numbers could be tried until one yields a given surrogate. It is therefore not stored among the records,
//! so that a copy of the database reveals nothing. The exception is PostgreSQL without a named file: its servers share only the database,
//! and with a salt each, one value would have several surrogates.

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use sql::{Connection, query, sqlite_file};

use super::database::Database;
use super::{LogError, Result, id};

/// The place where a log's salt is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SaltPlace {
    /// In this file, which is created with mode 0600 if it does not exist.
    Made(PathBuf),
    /// In this file, which must exist: several servers on one log share its content.
    Given(PathBuf),
    /// In the database itself.
    Database,
}

impl SaltPlace {
    /// Returns the default place: beside an SQLite file, with `.salt` appended to its name; for other databases, the database.
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

/// The minimum length of a salt; a shorter one could be guessed.
const LEAST: usize = 32;

/// Returns the salt, and creates it or moves it to its place if it is not there yet.
///
/// # Errors
/// Errors with [`LogError::Config`] if the file cannot be read or created, contains no salt, or another one than that of the log's
/// surrogates.
pub(super) async fn salt(database: &Database, place: &SaltPlace) -> Result<String> {
    // On SQLite this also serialises two processes that start at once.
    let mut transaction = database.begin().await?;
    let connection = transaction.connection();
    let stored = stored(connection).await?;
    let salt = match (place, stored) {
        (SaltPlace::Database, Some(stored)) => stored,
        (SaltPlace::Database, None) => store(connection).await?,
        (SaltPlace::Made(file), stored) => {
            let salt = match read(file)? {
                Some(salt) => salt,
                // Older logs have it in the database.
                None => make(file, stored.as_deref())?,
            };
            forget(connection, stored, &salt, file).await?;
            salt
        }
        (SaltPlace::Given(file), stored) => {
            let there = read(file)?;
            let salt = there.ok_or_else(|| problem(file, "does not exist"))?;
            forget(connection, stored, &salt, file).await?;
            salt
        }
    };
    transaction.commit().await?;
    Ok(salt)
}

async fn stored(connection: &mut Connection) -> Result<Option<String>> {
    let found = query("SELECT value FROM settings WHERE name = 'salt'");
    Ok(found.fetch_optional_value(connection).await?)
}

/// Stores a new salt in the database. Returns it, or the one that another server stored first.
async fn store(connection: &mut Connection) -> Result<String> {
    query("INSERT INTO settings (name, value) VALUES ('salt', $1) ON CONFLICT (name) DO NOTHING")
        .bind(fresh())
        .execute(connection)
        .await?;
    let stored = stored(connection).await?;
    stored.ok_or_else(|| LogError::Corrupt("a salt was stored but cannot be read back".to_owned()))
}

/// Removes the salt from the database after it is in its file.
async fn forget(
    connection: &mut Connection,
    stored: Option<String>,
    salt: &str,
    file: &Path,
) -> Result<()> {
    match stored {
        None => Ok(()),
        Some(stored) if stored == salt => {
            query("DELETE FROM settings WHERE name = 'salt'")
                .execute(connection)
                .await?;
            Ok(())
        }
        Some(_) => Err(problem(
            file,
            "holds another salt than the log, which made its surrogates with its own: write the log's salt (SELECT value FROM settings \
             WHERE name = 'salt') into the file, or delete that row to use the file's salt from now on",
        )),
    }
}

/// Returns the salt of a file; none if the file does not exist.
fn read(file: &Path) -> Result<Option<String>> {
    let text = match files::read_small(file) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        text => text.map_err(|error| problem(file, error))?,
    };
    match text.trim() {
        salt if salt.len() >= LEAST => Ok(Some(salt.to_owned())),
        _ => Err(problem(file, "must hold a salt of at least 32 characters")),
    }
}

/// Creates the file atomically, with `salt` or a new one. If another process has created it first, that file stays.
fn make(file: &Path, salt: Option<&str>) -> Result<String> {
    let salt = salt.map_or_else(fresh, ToOwned::to_owned);
    let dir = match file.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    };
    let written = || {
        // Readable by the owner only, from the first byte on.
        let mut draft = tempfile::Builder::new().prefix(".salt.").tempfile_in(dir)?;
        writeln!(draft, "{salt}")?;
        draft.as_file().sync_all()?;
        match draft.persist_noclobber(file) {
            Err(error) if error.error.kind() == ErrorKind::AlreadyExists => {}
            persisted => {
                persisted.map_err(|error| error.error)?;
            }
        }
        // Synchronised before the database deletes the salt, so that a crash in between loses nothing.
        File::open(dir)?.sync_all()
    };
    written().map_err(|error: std::io::Error| problem(file, error))?;
    read(file)?.ok_or_else(|| problem(file, "was created but cannot be read back"))
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
        // The second caller takes the existing salt.
        assert_eq!(make(&file, None).unwrap(), salt);
        assert_eq!(read(&file).unwrap(), Some(salt));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        fs::write(&file, "short\n").unwrap();
        assert!(read(&file).is_err());
    }
}
