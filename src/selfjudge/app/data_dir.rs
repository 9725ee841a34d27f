//! The data directory, which holds every file that the program writes.

use std::fs::{self, DirBuilder};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use crate::principles::PRINCIPLES_FILE;
use traffic_log::{LogConfig, tighten, tighten_all};

/// Name of the embedded traffic log's file in a data directory.
pub const LOG_FILE: &str = "traffic.sqlite";

/// The data directory, with accessors for its parts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DataDir {
    root: PathBuf,
}

impl DataDir {
    /// Opens (and creates) the directory with access for its owner only. Access by other users to an existing directory is removed.
    ///
    /// # Errors
    /// Errors from the file system.
    pub fn open(root: impl Into<PathBuf>) -> std::io::Result<Self> {
        let root = root.into();
        if !root.is_dir() {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&root)?;
        }
        // Other processes compare the name (to find out which process trains here), so it must not depend on the working directory.
        let root = fs::canonicalize(root)?;
        let dir = Self { root };
        dir.tighten();
        Ok(dir)
    }

    /// Removes all other users' access to the directory and to the program's files in it.
    fn tighten(&self) {
        let ours = ["", "-wal", "-shm", ".salt", ".reserve"].map(|end| format!("{LOG_FILE}{end}"));
        let ours = ours.iter().map(String::as_str).chain([PRINCIPLES_FILE]);
        let files = ours.filter(|name| tighten(&self.root.join(name))).count();
        let dirs = [self.generations(), self.training()];
        let inside: usize = dirs.iter().map(|dir| tighten_all(dir)).sum();
        let changed = usize::from(tighten(&self.root)) + files + inside;
        if changed > 0 {
            tracing::warn!(
                "{}: {changed} files and directories were readable by other users; now only their owner can read them",
                self.root.display()
            );
        }
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Returns the settings of the embedded traffic log, which is used if no other is configured.
    pub fn log(&self) -> LogConfig {
        LogConfig::sqlite(&self.root.join(LOG_FILE))
    }

    pub fn generations(&self) -> PathBuf {
        self.root.join("generations")
    }

    /// Returns the directory for checkpoints and curves of the running stage.
    pub fn training(&self) -> PathBuf {
        self.root.join("training")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_made_and_named_whole() {
        let parent = tempfile::tempdir().unwrap();
        let dir = DataDir::open(parent.path().join("a/b")).unwrap();
        assert!(dir.root().is_absolute() && dir.root().is_dir());
        assert_eq!(
            dir.log().url,
            LogConfig::sqlite(&dir.root().join(LOG_FILE)).url
        );
        assert!(dir.log().url.contains(&*dir.root().to_string_lossy()));
        let file = parent.path().join("file");
        fs::write(&file, "").unwrap();
        assert!(DataDir::open(file.join("x")).is_err());
    }
}
