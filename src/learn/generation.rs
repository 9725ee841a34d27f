//! Generations: directories named by what is in them, complete or not there at all, never written to again.
//!
//! ```text
//! generations/<id>/adapter_config.json  adapter_model.safetensors    what is served, as PEFT stores it
//!                  trained.safetensors                               with ExPO: the factors as they were trained
//!                  optimizer.safetensors  trainer_state.json         the optimizer and the counts at the end of its stage
//!                  manifest.json                                     where it comes from, and every file's digest
//! ```
//!
//! The next stage starts from the trained factors, with an optimizer and a schedule of its own: a stage of sDPO is a training by itself,
//! and moments of gradients against the last reference are none against the new one. The optimizer and the counts in a generation are
//! thus a record of how its stage ended, and nothing reads them; what an interrupted stage goes on from are its checkpoints.
//!
//! The id is the SHA-256 of the manifest. Nothing in it depends on the clock or the machine, so the same trajectory ends in the
//! same id however often it was interrupted. A generation is written into `tmp-*`, every file is synced, then the directory, then
//! it is renamed, then the parent is synced.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::LearnError;
use crate::fault;
use crate::model::adapter::WEIGHTS_FILE;
use crate::train::TrainError;
use crate::train::base::Adapter;
use crate::train::checkpoint::{entries, sync};
use crate::train::digest::{ListedFile, sha256_bytes};

const MANIFEST: &str = "manifest.json";
const TRAINED: &str = "trained.safetensors";
/// What pointers call the model without an adapter.
const BASE: &str = "base";

/// Where a generation comes from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Lineage {
    /// The version it was trained from.
    pub parent: String,
    /// The version its updates were measured against.
    pub reference: String,
    /// The version that judged its pairs.
    pub judge: String,
    pub stage: u64,
    pub updates: u64,
    /// Pairs that its updates were made of.
    pub pairs: u64,
    /// The base weights it belongs to.
    pub base: String,
    /// ExPO: what is served is the trained change of the base times one more than this.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub extrapolate: f32,
    /// The settings of its training, whole.
    pub config: serde_json::Value,
}

fn is_zero(number: &f32) -> bool {
    *number == 0.0
}

/// `manifest.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    #[serde(flatten)]
    pub lineage: Lineage,
    pub files: Vec<ListedFile>,
}

/// ExPO (arXiv 2404.16792): `base + (1 + by) (trained - base)`, which for an adapter is its `B` scaled. `dir` has the trained adapter,
/// whose factors are put aside.
///
/// # Errors
/// The file system's.
pub fn extrapolate(dir: &Path, trained: Adapter, by: f32) -> Result<(), TrainError> {
    let (from, to) = (dir.join(WEIGHTS_FILE), dir.join(TRAINED));
    fs::rename(&from, &to).map_err(TrainError::io("cannot rename", &from))?;
    let mut served = trained;
    for pair in served.weights.values_mut() {
        pair.b = (&pair.b * f64::from(1.0 + by))?;
    }
    served.save(dir)
}

/// The generations under one directory.
#[derive(Debug, Clone)]
pub struct Generations {
    root: PathBuf,
}

impl Generations {
    /// Opens (and creates) the directory. Only the one trainer may sweep it, see [`Self::sweep`].
    ///
    /// # Errors
    /// The file system's.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self, LearnError> {
        let root = root.into();
        fs::create_dir_all(&root).map_err(TrainError::io("cannot create", &root))?;
        Ok(Self { root })
    }

    /// Removes what a killed trainer left half-written.
    ///
    /// # Errors
    /// The file system's.
    pub fn sweep(&self) -> Result<(), LearnError> {
        for path in entries(&self.root)? {
            let name = path.file_name().unwrap_or_default();
            if name.as_encoded_bytes().starts_with(b"tmp-") {
                fs::remove_dir_all(&path).map_err(TrainError::io("cannot remove", &path))?;
            }
        }
        Ok(())
    }

    /// Writes a generation: `write` puts files (no directories) into the directory it is given. Returns the id; one that is there
    /// already is left as it is.
    ///
    /// # Errors
    /// What `write` or the file system says, a full disk for one; nothing is left behind then.
    pub fn write(
        &self,
        lineage: Lineage,
        write: impl FnOnce(&Path) -> Result<(), TrainError>,
    ) -> Result<String, LearnError> {
        let tmp = self.root.join(format!("tmp-{}", std::process::id()));
        let written = self.write_into(&tmp, lineage, write);
        if written.is_err() {
            // On a full disk the space is wanted back; if this fails too, the next start sweeps.
            let _ = fs::remove_dir_all(&tmp);
        }
        written
    }

    fn write_into(
        &self,
        tmp: &Path,
        lineage: Lineage,
        write: impl FnOnce(&Path) -> Result<(), TrainError>,
    ) -> Result<String, LearnError> {
        if tmp.exists() {
            fs::remove_dir_all(tmp).map_err(TrainError::io("cannot remove", tmp))?;
        }
        fs::create_dir(tmp).map_err(TrainError::io("cannot create", tmp))?;
        write(tmp)?;
        fault::point("generation.write");
        let mut files = Vec::new();
        for path in entries(tmp)? {
            sync(&path)?;
            files.push(ListedFile::of(&path)?);
        }
        let text = serde_json::to_vec_pretty(&Manifest { lineage, files })?;
        let id = sha256_bytes(&text);
        let manifest = tmp.join(MANIFEST);
        fs::write(&manifest, text).map_err(TrainError::io("cannot write", &manifest))?;
        sync(&manifest)?;
        sync(tmp)?;
        let dir = self.root.join(&id);
        if dir.exists() {
            fs::remove_dir_all(tmp).map_err(TrainError::io("cannot remove", tmp))?;
        } else {
            fs::rename(tmp, &dir).map_err(TrainError::io("cannot rename", tmp))?;
            sync(&self.root)?;
        }
        fault::point("generation.renamed");
        Ok(id)
    }

    /// The directory of a generation, and its manifest, once every file has been found as it was written.
    ///
    /// # Errors
    /// An id that is none, or no generation here; a file that is missing or damaged.
    pub fn verified(&self, id: &str) -> Result<(PathBuf, Manifest), LearnError> {
        // An id comes from a client: it never becomes a path unless it is a digest.
        let is_digest =
            id.len() == 64 && id.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        let dir = self.root.join(if is_digest { id } else { "" });
        let path = dir.join(MANIFEST);
        if !is_digest || !path.is_file() {
            return Err(LearnError::NoGeneration(id.to_owned()));
        }
        let damaged = |detail: String| LearnError::DamagedGeneration {
            id: id.to_owned(),
            detail,
        };
        let text = fs::read(&path).map_err(TrainError::io("cannot read", &path))?;
        if sha256_bytes(&text) != id {
            return Err(damaged(format!("{MANIFEST} is not what was written")));
        }
        let manifest: Manifest = serde_json::from_slice(&text)?;
        for listed in &manifest.files {
            match listed.is_in(&dir) {
                Ok(true) => {}
                Ok(false) => {
                    return Err(damaged(format!("{} is not what was written", listed.name)));
                }
                Err(error) => return Err(damaged(error.to_string())),
            }
        }
        Ok((dir, manifest))
    }

    /// What a generation serves, verified; none of the base.
    ///
    /// # Errors
    /// Those of [`Self::verified`]; files that are no adapter.
    pub fn served(&self, name: &str) -> Result<Option<Adapter>, LearnError> {
        if name == BASE {
            return Ok(None);
        }
        let (dir, _) = self.verified(name)?;
        Ok(Some(Adapter::load(&dir)?))
    }

    /// What training goes on from: the adapter as its stage's updates left it. None of the base.
    ///
    /// # Errors
    /// As [`Self::served`].
    pub fn trained(&self, name: &str) -> Result<Option<Adapter>, LearnError> {
        if name == BASE {
            return Ok(None);
        }
        let (dir, manifest) = self.verified(name)?;
        Ok(Some(match manifest.lineage.extrapolate {
            0.0 => Adapter::load(&dir)?,
            _ => Adapter::load_weights(&dir, TRAINED)?,
        }))
    }

    /// Whether what it serves is another adapter than the one that was trained.
    ///
    /// # Errors
    /// As [`Self::verified`].
    pub fn is_extrapolated(&self, name: &str) -> Result<bool, LearnError> {
        Ok(name != BASE && self.verified(name)?.1.lineage.extrapolate != 0.0)
    }

    /// Ids of all complete generations.
    ///
    /// # Errors
    /// The file system's.
    pub fn ids(&self) -> Result<Vec<String>, LearnError> {
        let ids = entries(&self.root)?.into_iter().filter_map(|path| {
            let name = path.file_name()?.to_str()?;
            (name.len() == 64 && path.join(MANIFEST).is_file()).then(|| name.to_owned())
        });
        Ok(ids.collect())
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor};

    use super::*;
    use crate::model::adapter::{AdapterWeights, LoraConfig, LoraPair};

    fn lineage() -> Lineage {
        Lineage {
            parent: "base".into(),
            reference: "base".into(),
            judge: "base".into(),
            stage: 1,
            updates: 2,
            pairs: 3,
            base: "0".into(),
            extrapolate: 0.0,
            config: serde_json::json!({"a": 1}),
        }
    }

    fn write(dir: &Path) -> Result<(), TrainError> {
        let path = dir.join("adapter_model.safetensors");
        fs::write(&path, b"weights").map_err(TrainError::io("cannot write", &path))
    }

    #[test]
    fn the_same_contents_have_the_same_name() {
        let dir = tempfile::tempdir().unwrap();
        let generations = Generations::open(dir.path()).unwrap();
        let one = generations.write(lineage(), write).unwrap();
        let two = generations.write(lineage(), write).unwrap();
        assert_eq!(one, two);
        assert_eq!(generations.ids().unwrap(), [one.as_str()]);
        let (_, manifest) = generations.verified(&one).unwrap();
        assert_eq!(manifest.lineage, lineage());

        let other = Lineage {
            stage: 2,
            ..lineage()
        };
        assert_ne!(generations.write(other, write).unwrap(), one);
    }

    /// A layer whose `B` has this value everywhere.
    fn adapter(value: f32) -> Adapter {
        let matrix = |value| Tensor::full(value, (2, 2), &Device::Cpu).unwrap();
        let pair = LoraPair {
            a: matrix(1.0),
            b: matrix(value),
        };
        Adapter {
            config: LoraConfig {
                r: 2,
                ..LoraConfig::default()
            },
            weights: AdapterWeights::from([("model.layers.0.mlp.up_proj".to_owned(), pair)]),
        }
    }

    fn value(adapter: Option<Adapter>) -> f32 {
        let adapter = adapter.unwrap();
        let b = &adapter.weights["model.layers.0.mlp.up_proj"].b;
        b.to_vec2::<f32>().unwrap()[1][1]
    }

    #[test]
    fn extrapolation_does_not_compound_over_stages() {
        let dir = tempfile::tempdir().unwrap();
        let generations = Generations::open(dir.path()).unwrap();
        // A stage that starts from a generation, adds one to it, and scales what it serves by one and a half.
        let stage = |start: Option<Adapter>, stage| {
            let trained = adapter(start.map_or(0.0, |start| value(Some(start))) + 1.0);
            let lineage = Lineage {
                stage,
                extrapolate: 0.5,
                ..lineage()
            };
            let write = |dir: &Path| {
                trained.save(dir)?;
                extrapolate(dir, trained, 0.5)
            };
            generations.write(lineage, write).unwrap()
        };
        let first = stage(generations.trained("base").unwrap(), 1);
        assert_eq!(value(generations.trained(&first).unwrap()), 1.0);
        assert_eq!(value(generations.served(&first).unwrap()), 1.5);
        let second = stage(generations.trained(&first).unwrap(), 2);
        assert_eq!(value(generations.trained(&second).unwrap()), 2.0);
        assert_eq!(value(generations.served(&second).unwrap()), 3.0);
        assert!(generations.is_extrapolated(&second).unwrap());

        let plain = generations
            .write(lineage(), |dir| adapter(4.0).save(dir))
            .unwrap();
        assert_eq!(value(generations.trained(&plain).unwrap()), 4.0);
        assert_eq!(value(generations.served(&plain).unwrap()), 4.0);
        assert!(!generations.is_extrapolated(&plain).unwrap());
        assert!(!generations.is_extrapolated("base").unwrap());
    }

    #[test]
    fn damage_is_found_and_strange_ids_are_no_paths() {
        let dir = tempfile::tempdir().unwrap();
        let generations = Generations::open(dir.path()).unwrap();
        let id = generations.write(lineage(), write).unwrap();
        fs::write(dir.path().join(&id).join("adapter_model.safetensors"), "w").unwrap();
        let error = generations.verified(&id).unwrap_err();
        assert!(
            matches!(error, LearnError::DamagedGeneration { .. }),
            "{error}"
        );
        for id in [
            "..",
            "",
            "../../etc/passwd",
            &"g".repeat(64),
            &"0".repeat(64),
        ] {
            let error = generations.verified(id).unwrap_err();
            assert!(matches!(error, LearnError::NoGeneration(_)), "{error}");
        }
    }

    #[test]
    fn a_write_that_fails_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let generations = Generations::open(dir.path()).unwrap();
        let full = |dir: &Path| {
            write(dir)?;
            fs::write("/dev/full", b"x").map_err(TrainError::io("cannot write", dir))
        };
        assert!(generations.write(lineage(), full).is_err());
        assert!(entries(dir.path()).unwrap().is_empty());
        fs::create_dir(dir.path().join("tmp-1")).unwrap();
        generations.sweep().unwrap();
        assert!(entries(dir.path()).unwrap().is_empty());
    }
}
