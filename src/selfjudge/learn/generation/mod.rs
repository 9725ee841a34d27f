//! Generations: immutable directories named by the digest of their contents, written atomically.
//!
//! ```text
//! generations/<id>/adapter_config.json  adapter_model.safetensors    the served adapter, in PEFT's format
//!                  trained.safetensors                               with ExPO: the factors as they were trained
//!                  manifest.json                                     its lineage, and the digest of every file
//! ```
//!
//! The next stage starts from the trained factors with a new optimizer and schedule: a stage of sDPO is a training run of its own, and
//! moments of gradients against the last reference do not apply to the new one. A generation therefore has no optimizer state; an
//! interrupted stage continues from its checkpoints. (Generations of earlier versions have optimizer state, which is never read.)
//!
//! For a model that is served with an adapter, learning starts there: generation 0 is the model with that adapter, and every later
//! generation is a whole adapter over the bare model, which serves without the first.
//!
//! An adapter is a change of one base: a generation is served and trained further only on the weights, in the type, and with the tokenizer
//! that its manifest names ([`Bases`]). Weights of another type answer in another way than those that passed the gates.
//!
//! The id is the SHA-256 of the manifest. The manifest does not depend on the clock or the machine, so the same trajectory gives the
//! same id however often it was interrupted. A generation is written into `tmp-*`; every file is synced, then the directory, which is
//! then renamed, and finally the parent is synced.

mod resident;

use std::fs;
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::LearnError;
use super::base::Bases;
use model::adapter::{CONFIG_FILE, WEIGHTS_FILE};
use resident::{Adapters, Resident};
use train::{
    TrainError,
    base::Adapter,
    checkpoint::{entries, sync},
    digest::{ListedFile, sha256_bytes},
    identity::BaseIdentity,
};

/// The prefix of directories that are not generations.
const TEMPORARY: &str = "tmp-";
/// The prefix of a generation's directory while it is decided whether it is removed.
const ASIDE: &str = "tmp-aside-";
/// The prefix of the directory of a removed generation, until its files are deleted.
const REMOVED: &str = "tmp-removed-";
const MANIFEST: &str = "manifest.json";
const TRAINED: &str = "trained.safetensors";
/// The name of the model without an adapter in pointers.
const BASE: &str = "base";

/// The origin of a generation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Lineage {
    /// The version it was trained from.
    pub parent: String,
    /// The reference policy of its updates.
    pub reference: String,
    /// The version that judged its pairs.
    pub judge: String,
    pub stage: u64,
    pub updates: u64,
    /// Number of pairs in its updates.
    pub pairs: u64,
    /// The model that it is a change of.
    #[serde(flatten)]
    pub made_with: BaseIdentity,
    /// ExPO: the served change of the base is the trained change times `1 + extrapolate`.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub extrapolate: f32,
    /// All settings of its training.
    pub config: serde_json::Value,
}

fn is_zero(number: &f32) -> bool {
    *number == 0.0
}

/// The contents of `manifest.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    #[serde(flatten)]
    pub lineage: Lineage,
    pub files: Vec<ListedFile>,
}

impl Manifest {
    /// Checks that every listed file is directly in the directory, and that the loaded files are listed, because unlisted files are not
    /// verified. Returns the problem as the error.
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

fn damaged(id: &str, detail: String) -> LearnError {
    LearnError::DamagedGeneration {
        id: id.to_owned(),
        detail,
    }
}

fn rename(from: &Path, to: &Path) -> Result<(), TrainError> {
    fs::rename(from, to).map_err(TrainError::io("cannot rename", from))
}

/// Returns whether a name is a SHA-256 in hexadecimal.
fn is_digest(name: &str) -> bool {
    name.len() == 64 && name.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// Applies ExPO (arXiv 2404.16792): returns `base + (1 + by) (trained - base)`, which for an adapter scales its `B`.
///
/// # Errors
/// Errors from the device.
fn extrapolated(trained: &Adapter, by: f32) -> Result<Adapter, TrainError> {
    let mut served = trained.clone();
    for pair in served.weights.values_mut() {
        pair.b = (&pair.b * f64::from(1.0 + by))?;
    }
    Ok(served)
}

/// The generations in one directory. Clones share the adapters in memory.
#[derive(Debug, Clone)]
pub struct Generations {
    root: PathBuf,
    /// The adapters that were written or loaded last.
    resident: Resident,
    /// The model that serves them; none if this process does not serve.
    bases: Option<Bases>,
    /// The adapter of generation 0, applied to the model.
    first: Option<Adapter>,
}

impl Generations {
    /// Opens (and creates) the directory. Only the one trainer may sweep it, see [`Self::sweep`]. Serving and learning require
    /// binding it to a model first: [`Self::of`].
    ///
    /// # Errors
    /// Errors from the file system.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self, LearnError> {
        let root = root.into();
        fs::create_dir_all(&root).map_err(TrainError::io("cannot create", &root))?;
        Ok(Self {
            root,
            resident: Resident::default(),
            bases: None,
            first: None,
        })
    }

    /// Keeps the adapters of the `most` generations that were written or loaded last in memory, so that a learner neither reads back what
    /// it has just written nor verifies it again.
    pub fn keeping(self, most: usize) -> Self {
        Self {
            resident: Resident::of(most),
            ..self
        }
    }

    /// Restricts the generations to those of this model.
    pub fn of(self, bases: Bases) -> Self {
        Self {
            bases: Some(bases),
            ..self
        }
    }

    /// Sets the adapter of generation 0, from which learning starts and which a rollback restores.
    pub fn beginning_with(self, first: Option<Adapter>) -> Self {
        Self { first, ..self }
    }

    /// Returns the adapter of generation 0; none if generation 0 is the bare model.
    pub fn first(&self) -> Option<&Adapter> {
        self.first.as_ref()
    }

    /// Checks that no generation here was trained over the same model with another initial adapter, or without one.
    ///
    /// # Errors
    /// Names such a generation and both adapters; errors from the file system.
    pub fn check_first(&self) -> Result<(), LearnError> {
        let Some(bases) = &self.bases else {
            return Ok(());
        };
        for id in self.ids()? {
            let path = self.root.join(&id).join(MANIFEST);
            let text = fs::read(&path).map_err(TrainError::io("cannot read", &path))?;
            // A damaged manifest is reported when its generation is used.
            if let Ok(manifest) = serde_json::from_slice::<Manifest>(&text) {
                bases.check_adapter(&id, &manifest.lineage.made_with)?;
            }
        }
        Ok(())
    }

    /// Removes the incomplete files of a killed trainer. A generation that it had moved aside and not yet removed is whole, and a pointer
    /// may name it: it is moved back.
    ///
    /// # Errors
    /// Errors from the file system.
    pub fn sweep(&self) -> Result<(), LearnError> {
        for aside in self.prefixed(ASIDE)? {
            let name = aside.file_name().and_then(|name| name.to_str());
            let id = name.and_then(|name| name.strip_prefix(ASIDE));
            if let Some(id) = id.filter(|id| is_digest(id)) {
                rename(&aside, &self.root.join(id))?;
            }
        }
        self.delete_all(TEMPORARY)
    }

    /// Writes the adapter that a stage trained as a generation. Returns its id and its manifest.
    ///
    /// # Errors
    /// Errors from the file system, for example a full disk; no files are left behind then.
    pub fn write_adapter(
        &self,
        lineage: Lineage,
        trained: Adapter,
    ) -> Result<(String, Manifest), LearnError> {
        let by = lineage.extrapolate;
        let served = match by {
            0.0 => trained.clone(),
            by => extrapolated(&trained, by)?,
        };
        let (id, manifest) = self.write(lineage, |dir| {
            if by != 0.0 {
                trained.save(dir)?;
                let (from, to) = (dir.join(WEIGHTS_FILE), dir.join(TRAINED));
                fs::rename(&from, &to).map_err(TrainError::io("cannot rename", &from))?;
            }
            served.save(dir)
        })?;
        self.resident.insert(&id, Adapters { served, trained });
        Ok((id, manifest))
    }

    /// Writes a generation: `write` puts files (no directories) into the directory it is given. Returns the id and the manifest; an
    /// existing generation with that id stays unchanged.
    ///
    /// # Errors
    /// Errors from `write` and the file system, for example a full disk; no files are left behind then.
    fn write(
        &self,
        lineage: Lineage,
        write: impl FnOnce(&Path) -> Result<(), TrainError>,
    ) -> Result<(String, Manifest), LearnError> {
        let tmp = self.root.join(format!("{TEMPORARY}{}", std::process::id()));
        let written = self.write_into(&tmp, lineage, write);
        if written.is_err() {
            // On a full disk the space is needed; if this fails too, the next start sweeps.
            let _ = fs::remove_dir_all(&tmp);
        }
        written
    }

    fn write_into(
        &self,
        tmp: &Path,
        lineage: Lineage,
        write: impl FnOnce(&Path) -> Result<(), TrainError>,
    ) -> Result<(String, Manifest), LearnError> {
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
        let listed = Manifest { lineage, files };
        let text = serde_json::to_vec_pretty(&listed)?;
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
        Ok((id, listed))
    }

    /// Returns the directory of a generation and its manifest, after verifying that the manifest is intact and that the generation belongs
    /// to this model's base and tokenizer. The other files are not read.
    ///
    /// # Errors
    /// Fails if the id is malformed or unknown, or if the manifest is damaged; [`LearnError::OtherBase`].
    pub fn listed(&self, id: &str) -> Result<(PathBuf, Manifest), LearnError> {
        // The id comes from a client: only a well-formed digest may become part of a path.
        let dir = self.root.join(if is_digest(id) { id } else { "" });
        let path = dir.join(MANIFEST);
        if !is_digest(id) || !path.is_file() {
            return Err(LearnError::NoGeneration(id.to_owned()));
        }
        let text = fs::read(&path).map_err(TrainError::io("cannot read", &path))?;
        if sha256_bytes(&text) != id {
            return Err(damaged(id, format!("{MANIFEST} is not what was written")));
        }
        let manifest: Manifest = serde_json::from_slice(&text)?;
        if let Some(bases) = &self.bases {
            bases.check(id, &manifest.lineage.made_with)?;
        }
        manifest
            .check_names()
            .map_err(|detail| damaged(id, detail))?;
        Ok((dir, manifest))
    }

    /// Returns what [`Self::listed`] returns, after verifying every file's digest as well.
    ///
    /// # Errors
    /// Errors as [`Self::listed`]; fails if a file is missing or damaged.
    pub fn verified(&self, id: &str) -> Result<(PathBuf, Manifest), LearnError> {
        // A generation of another model is unusable even if it is intact, so the digests, which take long, come last.
        let (dir, manifest) = self.listed(id)?;
        for listed in &manifest.files {
            match listed.is_in(&dir) {
                Ok(true) => {}
                Ok(false) => {
                    let detail = format!("{} is not what was written", listed.name);
                    return Err(damaged(id, detail));
                }
                Err(error) => return Err(damaged(id, error.to_string())),
            }
        }
        Ok((dir, manifest))
    }

    /// Removes the directories of generations beyond the newest. `ids` names them, the newest first; `keep` of those that have a directory
    /// stay. After a directory is moved aside, `pointed` returns whether a pointer names it by now; then it is moved back. Returns the
    /// removed ids. Their files are deleted by [`Self::sweep_removed`].
    ///
    /// # Errors
    /// Errors from the file system and from `pointed`.
    pub async fn remove(
        &self,
        ids: Vec<String>,
        keep: usize,
        pointed: impl AsyncFn(&str) -> Result<bool, LearnError>,
    ) -> Result<Vec<String>, LearnError> {
        let mut removed = Vec::new();
        let there = ids.into_iter();
        let there = there.filter(|id| is_digest(id) && self.root.join(id).is_dir());
        for id in there.skip(keep) {
            // It can no longer be promoted from memory.
            self.resident.remove(&id);
            let [dir, aside, gone] = [id.clone(), format!("{ASIDE}{id}"), format!("{REMOVED}{id}")]
                .map(|name| self.root.join(name));
            rename(&dir, &aside)?;
            // A directory that was moved aside cannot be promoted any more, because a promotion checks its files first.
            if pointed(&id).await? {
                rename(&aside, &dir)?;
                continue;
            }
            rename(&aside, &gone)?;
            removed.push(id);
        }
        if !removed.is_empty() {
            sync(&self.root)?;
        }
        Ok(removed)
    }

    /// Deletes the files of removed generations.
    ///
    /// # Errors
    /// Errors from the file system.
    pub fn sweep_removed(&self) -> Result<(), LearnError> {
        self.delete_all(REMOVED)
    }

    /// Deletes the directories whose names have a prefix.
    fn delete_all(&self, prefix: &str) -> Result<(), LearnError> {
        for path in self.prefixed(prefix)? {
            fs::remove_dir_all(&path).map_err(TrainError::io("cannot remove", &path))?;
        }
        Ok(())
    }

    /// Returns the entries whose names have a prefix.
    fn prefixed(&self, prefix: &str) -> Result<Vec<PathBuf>, LearnError> {
        let named = |path: &PathBuf| {
            let name = path.file_name().unwrap_or_default();
            name.as_encoded_bytes().starts_with(prefix.as_bytes())
        };
        Ok(entries(&self.root)?.into_iter().filter(named).collect())
    }

    /// Returns the served adapter of a generation, verified; for the base, its initial adapter if there is one.
    ///
    /// # Errors
    /// Errors as [`Self::verified`]; files that are not an adapter.
    pub fn served(&self, name: &str) -> Result<Option<Adapter>, LearnError> {
        if name == BASE {
            return Ok(self.first.clone());
        }
        Ok(Some(self.adapters(name)?.served))
    }

    /// Returns the adapter from which training continues: the one after the stage's updates. For the base as [`Self::served`].
    ///
    /// # Errors
    /// Errors as [`Self::served`].
    pub fn trained(&self, name: &str) -> Result<Option<Adapter>, LearnError> {
        if name == BASE {
            return Ok(self.first.clone());
        }
        Ok(Some(self.adapters(name)?.trained))
    }

    /// Returns the adapters of a generation, from memory or from its verified files.
    fn adapters(&self, id: &str) -> Result<Adapters, LearnError> {
        if let Some(adapters) = self.resident.get(id) {
            return Ok(adapters);
        }
        let (dir, manifest) = self.verified(id)?;
        let served = Adapter::load(&dir)?;
        let trained = match manifest.lineage.extrapolate {
            0.0 => served.clone(),
            _ => Adapter::load_weights(&dir, TRAINED)?,
        };
        let adapters = Adapters { served, trained };
        self.resident.insert(id, adapters.clone());
        Ok(adapters)
    }

    /// Returns whether the served adapter differs from the trained one.
    ///
    /// # Errors
    /// Errors as [`Self::listed`].
    pub fn is_extrapolated(&self, name: &str) -> Result<bool, LearnError> {
        Ok(name != BASE && self.listed(name)?.1.lineage.extrapolate != 0.0)
    }

    /// Returns the ids of all complete generations.
    ///
    /// # Errors
    /// Errors from the file system.
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
