//! The principle table in force: versioned, shared, and kept across restarts.
//!
//! A call or training stage takes one [`VersionedTable`] and uses it to its end; a new table applies from the next call or stage on. A
//! replacement names the version that it replaces, so that the second of two concurrent edits is refused.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use serde::{Deserialize, Serialize};

use judge::{Principle, PrincipleError, PrincipleTable};

/// The table's file in the data directory.
pub const PRINCIPLES_FILE: &str = "principles.toml";

/// A principle table and its version. Versions begin at 1 and only rise.
#[derive(Debug, Clone, PartialEq)]
pub struct VersionedTable {
    pub version: u64,
    pub table: PrincipleTable,
}

/// An error in reading or replacing the table.
#[derive(Debug, thiserror::Error)]
pub enum PrinciplesError {
    #[error("{path}: {source}")]
    Io {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("{path}: {message}")]
    Toml { path: PathBuf, message: String },
    #[error("{path}: {source}")]
    Table {
        path: PathBuf,
        source: PrincipleError,
    },
    #[error("the table's version is {current}, not {expected}")]
    Stale { expected: u64, current: u64 },
}

/// The table in force. Clones share it.
#[derive(Debug, Clone)]
pub struct Principles {
    current: Arc<RwLock<Arc<VersionedTable>>>,
    /// The path of the stored table; the mutex serialises writers. Without a path the table is lost when the process ends.
    file: Arc<Mutex<Option<PathBuf>>>,
}

/// The content of the table's file.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    version: u64,
    #[serde(rename = "principle", default)]
    principles: Vec<Principle>,
}

impl Principles {
    /// Returns `table` as version 1, without a file.
    pub fn in_memory(table: PrincipleTable) -> Self {
        Self::with(VersionedTable { version: 1, table }, None)
    }

    /// Returns the table that is stored in `dir`, or `default` as version 1 if there is none.
    ///
    /// # Errors
    /// Errors if the file cannot be read or is not a valid table.
    pub fn open(dir: &Path, default: PrincipleTable) -> Result<Self, PrinciplesError> {
        let path = dir.join(PRINCIPLES_FILE);
        let first = kept(&path)?.unwrap_or(VersionedTable {
            version: 1,
            table: default,
        });
        Ok(Self::with(first, Some(path)))
    }

    fn with(first: VersionedTable, file: Option<PathBuf>) -> Self {
        Self {
            current: Arc::new(RwLock::new(Arc::new(first))),
            file: Arc::new(Mutex::new(file)),
        }
    }

    /// Returns the table in force.
    pub fn current(&self) -> Arc<VersionedTable> {
        // The reference is replaced in one assignment, so that a panic elsewhere cannot leave it half-written.
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Loads a newer table that another process has stored in the same directory.
    ///
    /// # Errors
    /// Errors if the file cannot be read or is not a valid table; the table in force then stays.
    pub fn refresh(&self) -> Result<(), PrinciplesError> {
        let file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        match file.as_deref() {
            Some(path) => self.refresh_from(path),
            None => Ok(()),
        }
    }

    fn refresh_from(&self, path: &Path) -> Result<(), PrinciplesError> {
        let Some(kept) = kept(path)? else {
            return Ok(());
        };
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        if kept.version > current.version {
            *current = Arc::new(kept);
        }
        Ok(())
    }

    /// Replaces version `expected` by `table`. Blocks until the new table is on disk.
    ///
    /// # Errors
    /// Errors with [`PrinciplesError::Stale`] if another version is in force. On this and on a failed write the old table stays in force.
    pub fn replace(
        &self,
        expected: u64,
        table: PrincipleTable,
    ) -> Result<Arc<VersionedTable>, PrinciplesError> {
        let file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        // Held until the end of the function: if two processes replace the table at once, the second sees the first one's version.
        let _held = match file.as_deref() {
            Some(path) => {
                let held = lock(path).map_err(|source| PrinciplesError::Io {
                    path: path.to_owned(),
                    source,
                })?;
                self.refresh_from(path)?;
                Some(held)
            }
            None => None,
        };
        let current = self.current().version;
        if current != expected {
            return Err(PrinciplesError::Stale { expected, current });
        }
        let next = Arc::new(VersionedTable {
            version: current + 1,
            table,
        });
        if let Some(path) = file.as_deref() {
            write(path, &next).map_err(|source| PrinciplesError::Io {
                path: path.to_owned(),
                source,
            })?;
        }
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&next);
        Ok(next)
    }
}

/// Returns the table that is stored at `path`, if there is one.
fn kept(path: &Path) -> Result<Option<VersionedTable>, PrinciplesError> {
    match files::read_settings(path) {
        Ok(text) => read(path, &text).map(Some),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => {
            let path = path.to_owned();
            Err(PrinciplesError::Io { path, source })
        }
    }
}

/// Takes the lock that excludes other processes which replace the table. It is on the directory, because the file itself is replaced.
fn lock(path: &Path) -> std::io::Result<File> {
    let dir = File::open(path.parent().unwrap_or(Path::new(".")))?;
    dir.lock()?;
    Ok(dir)
}

fn read(path: &Path, text: &str) -> Result<VersionedTable, PrinciplesError> {
    let stored: Stored = settings::parse(text).map_err(|error| PrinciplesError::Toml {
        path: path.to_owned(),
        message: error.to_string(),
    })?;
    let table =
        PrincipleTable::new(stored.principles).map_err(|source| PrinciplesError::Table {
            path: path.to_owned(),
            source,
        })?;
    Ok(VersionedTable {
        version: stored.version,
        table,
    })
}

/// Writes the table atomically: the file holds either the old or the new table at any time.
fn write(path: &Path, table: &VersionedTable) -> std::io::Result<()> {
    let stored = Stored {
        version: table.version,
        principles: table.table.iter().cloned().collect(),
    };
    let text = toml::to_string(&stored).map_err(std::io::Error::other)?;
    let dir = path.parent().unwrap_or(Path::new("."));
    let mut draft = tempfile::NamedTempFile::new_in(dir)?;
    draft.write_all(text.as_bytes())?;
    draft.as_file().sync_all()?;
    fault::point("principles.before_rename");
    draft.persist(path)?;
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn table(weight: f64) -> PrincipleTable {
        PrincipleTable::from_toml(&format!(
            "[[principle]]\nid = 'brief'\ntext = 'brief'\nweight = {weight:.2}\npolarity = 'forbid'"
        ))
        .unwrap()
    }

    #[test]
    fn a_table_is_replaced_by_who_knows_its_version_and_outlives_the_process() {
        let dir = tempfile::tempdir().unwrap();
        let open = || Principles::open(dir.path(), table(1.0)).unwrap();
        let principles = open();
        let held = principles.current();
        assert_eq!(held.version, 1);
        let clone = principles.clone();
        assert_eq!(clone.replace(1, table(0.25)).unwrap().version, 2);
        assert!(matches!(
            principles.replace(1, table(9.0)),
            Err(PrinciplesError::Stale {
                expected: 1,
                current: 2
            })
        ));
        assert_eq!(
            *principles.current(),
            VersionedTable {
                version: 2,
                table: table(0.25)
            }
        );
        assert_eq!(held.table, table(1.0), "who judges by the old one goes on");
        assert_eq!(*open().current(), *principles.current());
        let names: Vec<_> = fs::read_dir(dir.path()).unwrap().collect();
        assert_eq!(names.len(), 1, "no draft is left: {names:?}");
    }

    #[test]
    fn a_table_of_another_process_is_taken_over_and_not_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let [one, other] = [(), ()].map(|()| Principles::open(dir.path(), table(1.0)).unwrap());
        one.replace(1, table(2.0)).unwrap();
        assert_eq!(other.current().version, 1);
        assert!(matches!(
            other.replace(1, table(9.0)),
            Err(PrinciplesError::Stale { current: 2, .. })
        ));
        assert_eq!(other.current().table, table(2.0), "and seen since");
        other.replace(2, table(3.0)).unwrap();
        one.refresh().unwrap();
        assert_eq!(one.current().table, table(3.0));
        fs::write(dir.path().join(PRINCIPLES_FILE), "torn").unwrap();
        assert!(one.refresh().is_err());
        assert_eq!(one.current().table, table(3.0));
    }

    #[test]
    fn one_of_many_that_replace_the_same_version_succeeds() {
        let principles = Principles::in_memory(table(1.0));
        let won = std::thread::scope(|scope| {
            let tries: Vec<_> = (2..10)
                .map(|weight| {
                    let principles = &principles;
                    scope.spawn(move || principles.replace(1, table(f64::from(weight))).is_ok())
                })
                .collect();
            tries
                .into_iter()
                .filter_map(|attempt| attempt.join().ok())
                .filter(|won| *won)
                .count()
        });
        assert_eq!((won, principles.current().version), (1, 2));
    }

    #[test]
    fn what_cannot_be_kept_is_not_in_force() {
        let dir = tempfile::tempdir().unwrap();
        let principles = Principles::open(&dir.path().join("gone"), table(1.0)).unwrap();
        assert!(matches!(
            principles.replace(1, table(2.0)),
            Err(PrinciplesError::Io { .. })
        ));
        assert_eq!(principles.current().version, 1);
    }

    #[test]
    fn a_broken_file_is_an_error_that_names_it() {
        let dir = tempfile::tempdir().unwrap();
        for text in [
            "version = 1\n[[principle]]\nid = ''\ntext = 'x'",
            "version = 1\nprinciples = 3",
            "[[principle]]\nid = 'a'\ntext = 'x'",
        ] {
            fs::write(dir.path().join(PRINCIPLES_FILE), text).unwrap();
            let error = Principles::open(dir.path(), table(1.0)).unwrap_err();
            assert!(error.to_string().contains(PRINCIPLES_FILE), "{error}");
        }
    }
}
