//! Identity of the base model of a generation: the SHA-256 digests of its weights and of its tokenizer.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use super::LearnError;
use model::{
    ModelError,
    adapter::{self, LoraConfig, WEIGHTS_FILE},
};
use traffic_log::ModelIdentity;
use train::{
    digest::{FileDigest, sha256_bytes, weights_digest},
    identity::{BaseIdentity, base_digest, tokenizer_digest},
};

/// The model of this process, identified by digests. The weights are digested lazily, when the first generation is checked, because
/// digesting takes about a second per one or two gigabytes. Clones share the computed digests.
#[derive(Debug, Clone)]
pub struct Bases(Arc<Source>);

#[derive(Debug)]
struct Source {
    dir: PathBuf,
    /// The adapter that is applied to the weights from the start and is part of the base.
    adapter: Option<PathBuf>,
    tokenizer: String,
    /// The type of the weights in memory (`bf16`, `int8`); none if this process does not serve.
    weights: Option<String>,
    digests: OnceLock<Digests>,
}

#[derive(Debug)]
struct Digests {
    /// Digest of the weights alone.
    bare: String,
    /// Digest of the adapter applied to them.
    adapter: Option<String>,
    /// Digest of both together.
    base: String,
}

impl Digests {
    fn new(bare: String, adapter: Option<String>) -> Self {
        Self {
            base: base_digest(&bare, adapter.as_deref()),
            bare,
            adapter,
        }
    }
}

/// Returns the digest of everything in an adapter that affects its output: its factors and their scaling settings.
///
/// # Errors
/// Errors from the file system; a configuration that is not supported.
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
    // No other setting in the configuration file affects the output.
    let scaled = serde_json::to_string(&(r, lora_alpha, use_rslora, rank_pattern, alpha_pattern))?;
    Ok(sha256_bytes(format!("{factors}\n{scaled}").as_bytes()))
}

impl Bases {
    /// Creates the identity of the model in `dir`, with the adapter that is applied to it for serving, and the type of its weights in
    /// memory.
    ///
    /// # Errors
    /// Fails if the tokenizer cannot be read.
    pub fn of(dir: &Path, adapter: Option<&Path>, weights: &str) -> Result<Self, LearnError> {
        Ok(Self(Arc::new(Source {
            tokenizer: tokenizer_digest(dir)?,
            weights: Some(weights.to_owned()),
            dir: dir.to_owned(),
            adapter: adapter.map(Path::to_owned),
            digests: OnceLock::new(),
        })))
    }

    /// Creates the identity of a model whose digests are already known.
    pub fn known(base: &str, tokenizer: &str) -> Self {
        Self::known_with(base, None, tokenizer)
    }

    /// Creates the identity as [`Self::known`] does, for a model that is served with this type of weights.
    #[cfg(test)]
    pub fn known_in(base: &str, tokenizer: &str, weights: &str) -> Self {
        let Ok(source) = Arc::try_unwrap(Self::known(base, tokenizer).0) else {
            unreachable!("it was made here");
        };
        Self(Arc::new(Source {
            weights: Some(weights.to_owned()),
            ..source
        }))
    }

    /// Creates the identity as [`Self::known`] does, with an adapter applied to the model.
    pub fn known_with(bare: &str, adapter: Option<&str>, tokenizer: &str) -> Self {
        let digests = Digests::new(bare.to_owned(), adapter.map(str::to_owned));
        Self(Arc::new(Source {
            dir: PathBuf::new(),
            adapter: None,
            tokenizer: tokenizer.to_owned(),
            weights: None,
            digests: digests.into(),
        }))
    }

    /// Returns the digest of the weights, combined with that of the adapter applied to them. Blocks on the first call while it reads them.
    ///
    /// # Errors
    /// Errors from the file system.
    pub fn base(&self) -> Result<&str, LearnError> {
        Ok(&self.digests()?.base)
    }

    /// Returns the digest of the adapter applied to the weights, if there is one.
    ///
    /// # Errors
    /// Errors from the file system.
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

    /// Returns the type of the weights in memory; none if this process does not serve.
    pub fn weights(&self) -> Option<&str> {
        self.0.weights.as_deref()
    }

    /// Returns the model's identity for the traffic log. It includes the weights' digest only if that has been computed already.
    pub fn identity(&self) -> ModelIdentity {
        ModelIdentity {
            base: self.0.digests.get().map(|digests| digests.base.clone()),
            tokenizer: self.0.tokenizer.clone(),
        }
    }

    /// Checks that generation `id` was not trained from the same weights with another initial adapter, or without one.
    ///
    /// # Errors
    /// Returns [`LearnError::OtherBase`] if it was; errors from the file system.
    pub fn check_adapter(&self, id: &str, made: &BaseIdentity) -> Result<(), LearnError> {
        let here = self.digests()?;
        let whole = base_digest(&here.bare, made.adapter.as_deref());
        if made.adapter == here.adapter || made.base != whole {
            return Ok(());
        }
        let named = |adapter: &Option<String>| adapter.clone().unwrap_or("none".to_owned());
        Err(other(
            id,
            "the adapters at the start",
            &named(&made.adapter),
            &named(&here.adapter),
        ))
    }

    /// Checks that generation `id` was trained from this model.
    ///
    /// # Errors
    /// Returns [`LearnError::OtherBase`] if it was not; errors from the file system.
    pub fn check(&self, id: &str, made: &BaseIdentity) -> Result<(), LearnError> {
        self.check_adapter(id, made)?;
        let base = self.base()?;
        if made.base != base {
            return Err(other(id, "the weights", &made.base, base));
        }
        if let Some(tokenizer) = &made.tokenizer
            && *tokenizer != self.0.tokenizer
        {
            return Err(other(id, "the tokenizers", tokenizer, &self.0.tokenizer));
        }
        match (&made.weights, &self.0.weights) {
            (Some(made), Some(here)) if made != here => {
                Err(other(id, "the types of the weights", made, here))
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
