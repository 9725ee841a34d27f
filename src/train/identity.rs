//! The model over which an adapter was trained, by digests: a part of a generation's manifest, and `base.json` beside a trained adapter.
//!
//! Adapters of other programs have no such file, and are taken for what they fit.

use std::cell::OnceCell;
use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::TrainError;
use super::checkpoint::write_json;
use super::digest::{FileDigest, sha256_bytes, weights_digest};

/// The file beside an adapter's own.
const FILE: &str = "base.json";
/// A generation's manifest, which has the same fields among others.
const MANIFEST: &str = "manifest.json";
/// The name of the tokenizer's file in a model directory.
const TOKENIZER: &str = "tokenizer.json";

/// The base of an adapter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BaseIdentity {
    /// Digest of the weights, including the adapter applied to them at the start.
    pub base: String,
    /// Digest of that adapter; none if training started from the bare model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adapter: Option<String>,
    /// Digest of the tokenizer; none in generations of earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokenizer: Option<String>,
    /// Type of the weights in memory, with which a generation passed the gates or over which an adapter was trained; none in generations of
    /// earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weights: Option<String>,
}

/// Returns the digest of the tokenizer in a model directory.
///
/// # Errors
/// Errors from the file system.
pub fn tokenizer_digest(dir: &Path) -> Result<String, TrainError> {
    Ok(FileDigest::of(&dir.join(TOKENIZER))?.sha256)
}

/// Returns the digest of weights together with an adapter that is applied to them, if there is one.
pub fn base_digest(weights: &str, adapter: Option<&str>) -> String {
    match adapter {
        Some(adapter) => sha256_bytes(format!("{weights}\n{adapter}").as_bytes()),
        None => weights.to_owned(),
    }
}

impl BaseIdentity {
    /// Writes the file beside an adapter.
    ///
    /// # Errors
    /// Errors from the file system.
    pub fn write(&self, adapter_dir: &Path) -> Result<(), TrainError> {
        write_json(&adapter_dir.join(FILE), self)
    }

    /// Reads the file beside an adapter, or the manifest of a generation; none if there is neither.
    fn beside(adapter_dir: &Path) -> Result<Option<Self>, TrainError> {
        for name in [FILE, MANIFEST] {
            let path = adapter_dir.join(name);
            if path.exists() {
                let text = fs::read(&path).map_err(TrainError::io("cannot read", &path))?;
                let read = serde_json::from_slice(&text);
                return read.map(Some).map_err(|e| TrainError::bad_file(&path, e));
            }
        }
        Ok(None)
    }
}

/// The model of a directory, whose weights are digested once, when that is asked for.
pub struct Digested<'a> {
    dir: &'a Path,
    weights: OnceCell<String>,
}

impl<'a> Digested<'a> {
    pub fn new(dir: &'a Path) -> Self {
        Self {
            dir,
            weights: OnceCell::new(),
        }
    }

    /// Returns the directory.
    pub fn dir(&self) -> &'a Path {
        self.dir
    }

    fn weights(&self) -> Result<&str, TrainError> {
        match self.weights.get() {
            Some(digest) => Ok(digest),
            None => {
                let digest = weights_digest(self.dir)?;
                Ok(self.weights.get_or_init(|| digest))
            }
        }
    }

    /// Returns the digest of the tokenizer, if the directory has one.
    fn tokenizer(&self) -> Result<Option<String>, TrainError> {
        let has_tokenizer = self.dir.join(TOKENIZER).exists();
        let digest = has_tokenizer.then(|| tokenizer_digest(self.dir));
        digest.transpose()
    }

    /// Returns the identity of the model as a base whose weights are kept in the type `weights`.
    ///
    /// # Errors
    /// Errors from the file system.
    pub fn identity(&self, weights: String) -> Result<BaseIdentity, TrainError> {
        Ok(BaseIdentity {
            base: self.weights()?.to_owned(),
            adapter: None,
            tokenizer: self.tokenizer()?,
            weights: Some(weights),
        })
    }

    /// Checks that an adapter, if it names its base, was trained over this model. Reads the weights only if it names one.
    ///
    /// # Errors
    /// Errors with both digests if the weights or the tokenizers differ; also if a file cannot be read.
    pub fn check(&self, adapter_dir: &Path) -> Result<(), TrainError> {
        let Some(made) = BaseIdentity::beside(adapter_dir)? else {
            return Ok(());
        };
        let differ = |what: &str, made: &str, here: &str| {
            Err(TrainError::Mismatch(format!(
                "the adapter {} was trained over another model: {what} differ (made with {made}, here {here} of {})",
                adapter_dir.display(),
                self.dir.display()
            )))
        };
        if let Some(tokenizer) = &made.tokenizer
            && let Some(here) = self.tokenizer()?
            && *tokenizer != here
        {
            return differ("the tokenizers", tokenizer, &here);
        }
        let here = base_digest(self.weights()?, made.adapter.as_deref());
        match made.base == here {
            true => Ok(()),
            false => differ("the weights", &made.base, &here),
        }
    }
}

/// Checks an adapter once; see [`Digested::check`].
///
/// # Errors
/// Same as [`Digested::check`].
pub fn check_adapter(adapter_dir: &Path, model_dir: &Path) -> Result<(), TrainError> {
    Digested::new(model_dir).check(adapter_dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(dir: &Path, weights: &str, tokenizer: &str) {
        fs::create_dir_all(dir).unwrap();
        fs::write(dir.join("model.safetensors"), weights).unwrap();
        fs::write(dir.join(TOKENIZER), tokenizer).unwrap();
    }

    #[test]
    fn an_adapter_belongs_to_the_weights_and_the_tokenizer_that_it_names() {
        let dir = tempfile::tempdir().unwrap();
        let of = |name: &str| dir.path().join(name);
        model(&of("own"), "w", "t");
        model(&of("same"), "w", "t");
        model(&of("weights"), "v", "t");
        model(&of("tokenizer"), "w", "u");
        let adapter = of("adapter");
        fs::create_dir(&adapter).unwrap();
        // Adapters of other programs name nothing.
        check_adapter(&adapter, &of("weights")).unwrap();

        let identity = Digested::new(&of("own"))
            .identity("f32".to_owned())
            .unwrap();
        identity.write(&adapter).unwrap();
        assert_eq!(
            BaseIdentity::beside(&adapter).unwrap(),
            Some(identity.clone())
        );
        check_adapter(&adapter, &of("own")).unwrap();
        check_adapter(&adapter, &of("same")).unwrap();
        for (other, what) in [("weights", "the weights"), ("tokenizer", "the tokenizers")] {
            let error = check_adapter(&adapter, &of(other)).unwrap_err().to_string();
            let here = Digested::new(&of(other)).identity(String::new()).unwrap();
            let (made, here) = match other {
                "weights" => (identity.base.clone(), here.base),
                _ => (identity.tokenizer.clone().unwrap(), here.tokenizer.unwrap()),
            };
            for part in [what, &made, &here, adapter.to_str().unwrap()] {
                assert!(
                    error.contains(part) && !error.contains('\n'),
                    "{part}: {error}"
                );
            }
        }
        fs::write(adapter.join(FILE), "{").unwrap();
        let error = check_adapter(&adapter, &of("own")).unwrap_err().to_string();
        assert!(error.contains(FILE), "{error}");
    }

    #[test]
    fn a_generation_is_compared_with_the_adapter_that_learning_began_at() {
        let dir = tempfile::tempdir().unwrap();
        let (own, generation) = (dir.path().join("own"), dir.path().join("generation"));
        model(&own, "w", "t");
        fs::create_dir(&generation).unwrap();
        let bare = weights_digest(&own).unwrap();
        let manifest = |base: &str| {
            let text =
                serde_json::json!({"parent": "base", "base": base, "adapter": "a", "files": []});
            fs::write(generation.join(MANIFEST), text.to_string()).unwrap();
            check_adapter(&generation, &own)
        };
        manifest(&base_digest(&bare, Some("a"))).unwrap();
        assert!(manifest(&bare).is_err());
    }
}
