//! Which model generations are used with: the digests of its weights and of its tokenizer.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use super::LearnError;
use super::generation::Lineage;
use crate::model::adapter::WEIGHTS_FILE;
use crate::preference::log::ModelIdentity;
use crate::train::TrainError;
use crate::train::digest::{FileDigest, sha256_bytes, weights_digest};

/// What a tokenizer is read from, in a model's directory.
const TOKENIZER: &str = "tokenizer.json";

/// Returns the digest of the tokenizer of a model's directory.
///
/// # Errors
/// The file system's.
pub fn tokenizer_digest(dir: &Path) -> Result<String, TrainError> {
    Ok(FileDigest::of(&dir.join(TOKENIZER))?.sha256)
}

/// The model of this process. Its weights are digested at the first generation that is looked at, for that takes a second for every
/// gigabyte or two. Clones share what was digested.
#[derive(Debug, Clone)]
pub struct Bases(Arc<Source>);

#[derive(Debug)]
struct Source {
    dir: PathBuf,
    /// What is laid over the weights that serve as base.
    adapter: Option<PathBuf>,
    tokenizer: String,
    base: OnceLock<String>,
}

impl Bases {
    /// The model of a directory, with the adapter that is laid over it for serving.
    ///
    /// # Errors
    /// A tokenizer that cannot be read.
    pub fn of(dir: &Path, adapter: Option<&Path>) -> Result<Self, LearnError> {
        Ok(Self(Arc::new(Source {
            tokenizer: tokenizer_digest(dir)?,
            dir: dir.to_owned(),
            adapter: adapter.map(Path::to_owned),
            base: OnceLock::new(),
        })))
    }

    /// A model whose digests are known.
    pub fn known(base: &str, tokenizer: &str) -> Self {
        Self(Arc::new(Source {
            dir: PathBuf::new(),
            adapter: None,
            tokenizer: tokenizer.to_owned(),
            base: base.to_owned().into(),
        }))
    }

    /// Returns the digest of the weights. Blocks while it reads them for the first time.
    ///
    /// # Errors
    /// The file system's.
    pub fn base(&self) -> Result<&str, LearnError> {
        let Source {
            dir, adapter, base, ..
        } = &*self.0;
        if let Some(base) = base.get() {
            return Ok(base);
        }
        let mut digest = weights_digest(dir)?;
        if let Some(adapter) = adapter {
            let over = FileDigest::of(&adapter.join(WEIGHTS_FILE))?.sha256;
            digest = sha256_bytes(format!("{digest}\n{over}").as_bytes());
        }
        Ok(base.get_or_init(|| digest))
    }

    pub fn tokenizer(&self) -> &str {
        &self.0.tokenizer
    }

    /// Returns what the traffic log is told of the model; the weights only if they were digested.
    pub fn identity(&self) -> ModelIdentity {
        ModelIdentity {
            base: self.0.base.get().cloned(),
            tokenizer: self.0.tokenizer.clone(),
        }
    }

    /// Checks that generation `id` was made of this model.
    ///
    /// # Errors
    /// [`LearnError::OtherBase`]; the file system's.
    pub fn check(&self, id: &str, lineage: &Lineage) -> Result<(), LearnError> {
        let other = |what, made: &str, here: &str| LearnError::OtherBase {
            id: id.to_owned(),
            what,
            made: made.to_owned(),
            here: here.to_owned(),
        };
        let base = self.base()?;
        if lineage.base != base {
            return Err(other("weights", &lineage.base, base));
        }
        match &lineage.tokenizer {
            Some(tokenizer) if *tokenizer != self.0.tokenizer => {
                Err(other("tokenizer", tokenizer, &self.0.tokenizer))
            }
            _ => Ok(()),
        }
    }
}
