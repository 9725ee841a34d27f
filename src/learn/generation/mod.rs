//! Generations: directories named by what is in them, complete or not there at all, never written to again.
//!
//! ```text
//! generations/<id>/adapter_config.json  adapter_model.safetensors    what is served, as PEFT stores it
//!                  trained.safetensors                               with ExPO: the factors as they were trained
//!                  manifest.json                                     where it comes from, and every file's digest
//! ```
//!
//! The next stage starts from the trained factors, with an optimizer and a schedule of its own: a stage of sDPO is a training by itself,
//! and moments of gradients against the last reference are none against the new one. A generation has no optimizer state for this
//! reason; what an interrupted stage goes on from are its checkpoints. (Generations of earlier versions have one, which nothing reads.)
//!
//! A model that is served with an adapter learns from there: generation 0 is the model with that adapter, and every later generation is
//! a whole adapter over the bare model, which serves without the first.
//!
//! An adapter is a change of one base: a generation serves, and is learned from, only on the weights and with the tokenizer that its
//! manifest names ([`Bases`]).
//!
//! The id is the SHA-256 of the manifest. Nothing in it depends on the clock or the machine, so the same trajectory ends in the
//! same id however often it was interrupted. A generation is written into `tmp-*`, every file is synced, then the directory, then
//! it is renamed, then the parent is synced.

use std::fs;
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::LearnError;
use super::base::Bases;
use crate::fault;
use crate::model::adapter::{CONFIG_FILE, WEIGHTS_FILE};
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
    /// Digest of the base weights it belongs to, with the adapter that they had at the start.
    pub base: String,
    /// Digest of that adapter; none where learning began at the bare model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adapter: Option<String>,
    /// Digest of the tokenizer it was trained with; none in generations of earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokenizer: Option<String>,
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

impl Manifest {
    /// Checks that every listed file is one of the directory itself, and that what is loaded is listed: what is not listed is not
    /// verified. Returns what is wrong.
    fn check_names(&self) -> Result<(), String> {
        let plain = |name: &str| {
            let mut parts = Path::new(name).components();
            matches!((parts.next(), parts.next()), (Some(Component::Normal(only)), None) if only == name)
        };
        if let Some(strange) = self.files.iter().find(|listed| !plain(&listed.name)) {
            return Err(format!(
                "{MANIFEST} lists {:?}, which is no file of it",
                strange.name
            ));
        }
        let mut loaded = vec![WEIGHTS_FILE, CONFIG_FILE];
        if self.lineage.extrapolate != 0.0 {
            loaded.push(TRAINED);
        }
        let listed = |name: &&str| self.files.iter().any(|listed| listed.name == *name);
        match loaded.iter().find(|name| !listed(name)) {
            Some(missing) => Err(format!("{MANIFEST} does not list {missing}")),
            None => Ok(()),
        }
    }
}

/// Whether a name is a SHA-256 in hexadecimal.
fn is_digest(name: &str) -> bool {
    name.len() == 64 && name.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
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
    /// None where nothing is served from it.
    bases: Option<Bases>,
    /// The adapter that is laid over the model as generation 0.
    first: Option<Adapter>,
}

impl Generations {
    /// Opens (and creates) the directory. Only the one trainer may sweep it, see [`Self::sweep`]. What is served or learned from is
    /// bound to a model first: [`Self::of`].
    ///
    /// # Errors
    /// The file system's.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self, LearnError> {
        let root = root.into();
        fs::create_dir_all(&root).map_err(TrainError::io("cannot create", &root))?;
        Ok(Self {
            root,
            bases: None,
            first: None,
        })
    }

    /// For this model alone: generations of another one are of no use.
    pub fn of(self, bases: Bases) -> Self {
        Self {
            bases: Some(bases),
            ..self
        }
    }

    /// With the adapter that generation 0 is, so that learning goes on from it and a rollback restores it.
    pub fn beginning_with(self, first: Option<Adapter>) -> Self {
        Self { first, ..self }
    }

    /// The adapter that generation 0 is; none where it is the bare model.
    pub fn first(&self) -> Option<&Adapter> {
        self.first.as_ref()
    }

    /// Checks that no generation here was trained over the same model with another adapter at its start, or without one.
    ///
    /// # Errors
    /// Names such a generation and both adapters; the file system's.
    pub fn check_first(&self) -> Result<(), LearnError> {
        let Some(bases) = &self.bases else {
            return Ok(());
        };
        for id in self.ids()? {
            let path = self.root.join(&id).join(MANIFEST);
            let text = fs::read(&path).map_err(TrainError::io("cannot read", &path))?;
            // A damaged manifest is told where its generation is used.
            if let Ok(manifest) = serde_json::from_slice::<Manifest>(&text) {
                bases.check_adapter(&id, &manifest.lineage)?;
            }
        }
        Ok(())
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

    /// The directory of a generation, and its manifest, once every file has been found as it was written and the generation is known
    /// to be of this model's base and tokenizer.
    ///
    /// # Errors
    /// An id that is none, or no generation here; a file that is missing or damaged; [`LearnError::OtherBase`].
    pub fn verified(&self, id: &str) -> Result<(PathBuf, Manifest), LearnError> {
        // An id comes from a client: it never becomes a path unless it is a digest.
        let dir = self.root.join(if is_digest(id) { id } else { "" });
        let path = dir.join(MANIFEST);
        if !is_digest(id) || !path.is_file() {
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
        // Before the digests, which take long: it is of no use here, whole or not.
        if let Some(bases) = &self.bases {
            bases.check(id, &manifest.lineage)?;
        }
        manifest.check_names().map_err(damaged)?;
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

    /// Deletes the files of generations that never served, beyond the newest. `never_served` are their ids, the newest first, of which
    /// `keep` stay; `pointed` says, once the directory is out of sight, whether a pointer came to one of them meanwhile. Returns what
    /// was deleted.
    ///
    /// # Errors
    /// The file system's, and those of `pointed`.
    pub async fn prune(
        &self,
        never_served: Vec<String>,
        keep: usize,
        pointed: impl AsyncFn(&str) -> Result<bool, LearnError>,
    ) -> Result<Vec<String>, LearnError> {
        let mut pruned = Vec::new();
        let there = never_served.into_iter();
        let there = there.filter(|id| is_digest(id) && self.root.join(id).is_dir());
        for id in there.skip(keep) {
            let (dir, aside) = (
                self.root.join(&id),
                self.root.join(format!("tmp-pruned-{id}")),
            );
            fs::rename(&dir, &aside).map_err(TrainError::io("cannot rename", &dir))?;
            // What is moved aside cannot be promoted any more: a promotion loads it first.
            if pointed(&id).await? {
                fs::rename(&aside, &dir).map_err(TrainError::io("cannot rename", &aside))?;
                continue;
            }
            fs::remove_dir_all(&aside).map_err(TrainError::io("cannot remove", &aside))?;
            pruned.push(id);
        }
        if !pruned.is_empty() {
            sync(&self.root)?;
        }
        Ok(pruned)
    }

    /// What a generation serves, verified. Of the base the adapter that it began with, if there is one.
    ///
    /// # Errors
    /// Those of [`Self::verified`]; files that are no adapter.
    pub fn served(&self, name: &str) -> Result<Option<Adapter>, LearnError> {
        if name == BASE {
            return Ok(self.first.clone());
        }
        let (dir, _) = self.verified(name)?;
        Ok(Some(Adapter::load(&dir)?))
    }

    /// What training goes on from: the adapter as its stage's updates left it. Of the base as [`Self::served`].
    ///
    /// # Errors
    /// As [`Self::served`].
    pub fn trained(&self, name: &str) -> Result<Option<Adapter>, LearnError> {
        if name == BASE {
            return Ok(self.first.clone());
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
mod tests;
