//! The location of the model's files: a directory, or files unpacked from the program itself.

use std::path::Path;

use tempfile::TempDir;

use crate::judging::SELF_TEST_FILE;
use model::{
    ModelError,
    hub::{self, ModelDir},
};

/// The file name of a model's own anchor set, beside its weights.
pub(super) const ANCHORS: &str = "anchors.jsonl";

/// The default model, embedded in the program: file names and contents.
const POCKET: [(&str, &[u8]); 9] = [
    (
        "config.json",
        include_bytes!("../../../models/pocket/config.json"),
    ),
    (
        "generation_config.json",
        include_bytes!("../../../models/pocket/generation_config.json"),
    ),
    (
        "model.safetensors",
        include_bytes!("../../../models/pocket/model.safetensors"),
    ),
    (
        "tokenizer.json",
        include_bytes!("../../../models/pocket/tokenizer.json"),
    ),
    (
        "tokenizer_config.json",
        include_bytes!("../../../models/pocket/tokenizer_config.json"),
    ),
    (
        "judge_template.toml",
        include_bytes!("../../../models/pocket/judge_template.toml"),
    ),
    (
        "principles.toml",
        include_bytes!("../../../models/pocket/principles.toml"),
    ),
    (
        SELF_TEST_FILE,
        include_bytes!("../../../models/pocket/judge_self_test.jsonl"),
    ),
    (
        ANCHORS,
        include_bytes!("../../../models/pocket/anchors.jsonl"),
    ),
];

/// Returns the public name of a model given by directory, GGUF file or hub id; it does not reveal the path to callers.
pub fn model_name(model: Option<&str>) -> String {
    let Some(model) = model else {
        return "pocket".to_owned();
    };
    let path = Path::new(model);
    let whole = path.exists().then(|| path.canonicalize().ok()).flatten();
    let last = whole.as_deref().and_then(Path::file_name);
    last.map_or_else(
        || model.to_owned(),
        |last| last.to_string_lossy().into_owned(),
    )
}

/// A model's directory. Unpacked files are deleted when this is dropped.
#[derive(Debug)]
pub enum ModelFiles {
    Resolved(ModelDir),
    /// The default model's files.
    Pocket(TempDir),
}

impl ModelFiles {
    /// Resolves a directory, a GGUF file or a hub id; the pocket model if none is given.
    ///
    /// # Errors
    /// Fails if a model cannot be found or fetched, or on a full disk.
    pub fn resolve(model: Option<&str>) -> Result<Self, ModelError> {
        match model {
            Some(model) => Ok(Self::Resolved(hub::resolve(model)?)),
            None => Self::pocket(),
        }
    }

    /// Unpacks the default model.
    ///
    /// # Errors
    /// Errors from the file system.
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
        Ok(Self::Pocket(dir))
    }

    pub fn path(&self) -> &Path {
        match self {
            Self::Resolved(dir) => dir.path(),
            Self::Pocket(dir) => dir.path(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_models_name_does_not_say_where_it_lies() {
        let dir = tempfile::tempdir().unwrap();
        let model = dir.path().join("secret/place/tiny");
        std::fs::create_dir_all(&model).unwrap();
        for path in [model.clone(), model.join("."), model.join("../tiny/")] {
            assert_eq!(model_name(path.to_str()), "tiny", "{}", path.display());
        }
        let file = dir.path().join("secret/small.Q4_1.gguf");
        std::fs::write(&file, "").unwrap();
        assert_eq!(model_name(file.to_str()), "small.Q4_1.gguf");
        assert_eq!(model_name(Some("owner/name@main")), "owner/name@main");
        assert_eq!(model_name(None), "pocket");
    }
}
