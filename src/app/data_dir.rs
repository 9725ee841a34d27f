//! The data directory: everything the program writes.

use std::fs;
use std::path::{Path, PathBuf};

use crate::preference::log::LogConfig;

/// The embedded traffic log's file in a data directory.
pub const LOG_FILE: &str = "traffic.sqlite";

/// Its parts by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DataDir {
    root: PathBuf,
}

impl DataDir {
    /// Opens (and creates) the directory.
    ///
    /// # Errors
    /// The file system's.
    pub fn open(root: impl Into<PathBuf>) -> std::io::Result<Self> {
        let root = root.into();
        fs::create_dir_all(&root)?;
        // Told to others (who trains here?), it must be the same name from every working directory.
        let root = fs::canonicalize(root)?;
        Ok(Self { root })
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The embedded traffic log, for whoever names no other.
    pub fn log(&self) -> LogConfig {
        LogConfig::sqlite(&self.root.join(LOG_FILE))
    }

    pub fn generations(&self) -> PathBuf {
        self.root.join("generations")
    }

    /// Checkpoints and curves of the running stage.
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
