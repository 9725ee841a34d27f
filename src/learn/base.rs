//! Which model generations are used with: the digests of its weights and of its tokenizer.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use super::LearnError;
use super::generation::Lineage;
use crate::model::ModelError;
use crate::model::adapter::{self, LoraConfig, WEIGHTS_FILE};
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
    digests: OnceLock<Digests>,
}

#[derive(Debug)]
struct Digests {
    /// Of the weights alone.
    bare: String,
    /// Of the adapter over them.
    adapter: Option<String>,
    /// Of both.
    base: String,
}

impl Digests {
    fn new(bare: String, adapter: Option<String>) -> Self {
        Self {
            base: match &adapter {
                Some(adapter) => joined(&bare, adapter),
                None => bare.clone(),
            },
            bare,
            adapter,
        }
    }
}

/// The digest of weights with an adapter.
fn joined(weights: &str, adapter: &str) -> String {
    sha256_bytes(format!("{weights}\n{adapter}").as_bytes())
}

/// Returns the digest of what an adapter computes: its factors, and what they are scaled with.
///
/// # Errors
/// The file system's; a configuration that is not supported.
pub fn adapter_digest(dir: &Path) -> Result<String, LearnError> {
    let factors = FileDigest::of(&dir.join(WEIGHTS_FILE))?.sha256;
    let config = adapter::load_config(dir).map_err(ModelError::from)?;
    let LoraConfig {
        r,
        lora_alpha,
        use_rslora,
        rank_pattern,
        alpha_pattern,
        ..
    } = config;
    // Whatever else its file says changes no number.
    let scaled = serde_json::to_string(&(r, lora_alpha, use_rslora, rank_pattern, alpha_pattern))?;
    Ok(sha256_bytes(format!("{factors}\n{scaled}").as_bytes()))
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
            digests: OnceLock::new(),
        })))
    }

    /// A model whose digests are known.
    pub fn known(base: &str, tokenizer: &str) -> Self {
        Self::known_with(base, None, tokenizer)
    }

    /// [`Self::known`], with an adapter laid over it.
    pub fn known_with(bare: &str, adapter: Option<&str>, tokenizer: &str) -> Self {
        let digests = Digests::new(bare.to_owned(), adapter.map(str::to_owned));
        Self(Arc::new(Source {
            dir: PathBuf::new(),
            adapter: None,
            tokenizer: tokenizer.to_owned(),
            digests: digests.into(),
        }))
    }

    /// Returns the digest of the weights, with that of the adapter that is laid over them. Blocks while it reads them for the first time.
    ///
    /// # Errors
    /// The file system's.
    pub fn base(&self) -> Result<&str, LearnError> {
        Ok(&self.digests()?.base)
    }

    /// Returns the digest of the adapter that is laid over the weights, if one is.
    ///
    /// # Errors
    /// The file system's.
    pub fn adapter(&self) -> Result<Option<String>, LearnError> {
        Ok(self.digests()?.adapter.clone())
    }

    fn digests(&self) -> Result<&Digests, LearnError> {
        let Source {
            dir,
            adapter,
            digests,
            ..
        } = &*self.0;
        if let Some(digests) = digests.get() {
            return Ok(digests);
        }
        let adapter = adapter.as_deref().map(adapter_digest).transpose()?;
        let read = Digests::new(weights_digest(dir)?, adapter);
        Ok(digests.get_or_init(|| read))
    }

    pub fn tokenizer(&self) -> &str {
        &self.0.tokenizer
    }

    /// Returns what the traffic log is told of the model; the weights only if they were digested.
    pub fn identity(&self) -> ModelIdentity {
        ModelIdentity {
            base: self.0.digests.get().map(|digests| digests.base.clone()),
            tokenizer: self.0.tokenizer.clone(),
        }
    }

    /// Checks that generation `id` was not made of the same weights with another adapter at its start, or without one.
    ///
    /// # Errors
    /// [`LearnError::OtherBase`]; the file system's.
    pub fn check_adapter(&self, id: &str, lineage: &Lineage) -> Result<(), LearnError> {
        let here = self.digests()?;
        let whole = match &lineage.adapter {
            Some(adapter) => joined(&here.bare, adapter),
            None => here.bare.clone(),
        };
        if lineage.adapter == here.adapter || lineage.base != whole {
            return Ok(());
        }
        let named = |adapter: &Option<String>| adapter.clone().unwrap_or("none".to_owned());
        Err(other(
            id,
            "the adapters at the start",
            &named(&lineage.adapter),
            &named(&here.adapter),
        ))
    }

    /// Checks that generation `id` was made of this model.
    ///
    /// # Errors
    /// [`LearnError::OtherBase`]; the file system's.
    pub fn check(&self, id: &str, lineage: &Lineage) -> Result<(), LearnError> {
        self.check_adapter(id, lineage)?;
        let base = self.base()?;
        if lineage.base != base {
            return Err(other(id, "the weights", &lineage.base, base));
        }
        match &lineage.tokenizer {
            Some(tokenizer) if *tokenizer != self.0.tokenizer => {
                Err(other(id, "the tokenizers", tokenizer, &self.0.tokenizer))
            }
            _ => Ok(()),
        }
    }
}

fn other(id: &str, what: &'static str, made: &str, here: &str) -> LearnError {
    LearnError::OtherBase {
        id: id.to_owned(),
        what,
        made: made.to_owned(),
        here: here.to_owned(),
    }
}
