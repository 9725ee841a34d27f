//! Where the model's files are: a directory, or unpacked from the program itself.

use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::model::{ModelError, hub};

/// A model's own anchor set, beside its weights.
pub(super) const ANCHORS: &str = "anchors.jsonl";

/// The default model, in the program itself: file names and contents.
const POCKET: [(&str, &[u8]); 8] = [
    (
        "config.json",
        include_bytes!("../../models/pocket/config.json"),
    ),
    (
        "generation_config.json",
        include_bytes!("../../models/pocket/generation_config.json"),
    ),
    (
        "model.safetensors",
        include_bytes!("../../models/pocket/model.safetensors"),
    ),
    (
        "tokenizer.json",
        include_bytes!("../../models/pocket/tokenizer.json"),
    ),
    (
        "tokenizer_config.json",
        include_bytes!("../../models/pocket/tokenizer_config.json"),
    ),
    (
        "judge_template.toml",
        include_bytes!("../../models/pocket/judge_template.toml"),
    ),
    (
        "principles.toml",
        include_bytes!("../../models/pocket/principles.toml"),
    ),
    (ANCHORS, include_bytes!("../../models/pocket/anchors.jsonl")),
];

/// A model's directory; unpacked files go with it.
#[derive(Debug)]
pub enum ModelFiles {
    Directory(PathBuf),
    Unpacked(TempDir),
}

impl ModelFiles {
    /// A directory or hub id; the pocket model where none is named.
    ///
    /// # Errors
    /// A model that cannot be found or fetched; a full disk.
    pub fn resolve(model: Option<&str>) -> Result<Self, ModelError> {
        match model {
            Some(model) => Ok(Self::Directory(hub::resolve(model)?)),
            None => Self::pocket(),
        }
    }

    /// The default model.
    ///
    /// # Errors
    /// The file system's.
    pub fn pocket() -> Result<Self, ModelError> {
        let cannot = |path: &Path| {
            let path = path.to_owned();
            move |source| ModelError::Io { path, source }
        };
        let dir = tempfile::tempdir().map_err(cannot(&std::env::temp_dir()))?;
        for (name, contents) in POCKET {
            let path = dir.path().join(name);
            std::fs::write(&path, contents).map_err(cannot(&path))?;
        }
        Ok(Self::Unpacked(dir))
    }

    pub fn path(&self) -> &Path {
        match self {
            Self::Directory(path) => path,
            Self::Unpacked(dir) => dir.path(),
        }
    }
}
