//! Checkpoints: directories `step-NNNNNNNN`, each either complete or absent.
//!
//! A checkpoint is written into `tmp-<unique>/`; every file is synced, then the directory; then it is renamed, and the parent is synced.
//! If the process is killed in between, only a `tmp-*` remains, which the next [`CheckpointStore::open`] removes. `checkpoint.json` holds
//! every file's length and SHA-256, and [`CheckpointStore::latest`] verifies every file: a damaged newest checkpoint is reported and the
//! previous one is used.

mod state;

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

use super::TrainError;
use super::digest::ListedFile;
pub use state::{TrainerState, load_weights, save_weights};

const MANIFEST: &str = "checkpoint.json";
const LOCK: &str = "run.lock";

/// The contents of `checkpoint.json`.
#[derive(Debug, Serialize, Deserialize)]
struct Manifest {
    step: u64,
    files: Vec<ListedFile>,
}

/// A verified checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    pub step: u64,
    pub dir: PathBuf,
}

/// The result of [`CheckpointStore::latest`].
#[derive(Debug, Default)]
pub struct Latest {
    /// The newest intact checkpoint.
    pub checkpoint: Option<Checkpoint>,
    /// Newer, damaged checkpoints and the damage of each: for the log.
    pub rejected: Vec<(PathBuf, String)>,
}

impl Latest {
    /// Returns the newest intact checkpoint; logs a warning for each damaged one.
    pub fn or_warn(self) -> Option<Checkpoint> {
        for (path, why) in &self.rejected {
            tracing::warn!(
                "checkpoint {} is damaged and skipped: {why}",
                path.display()
            );
        }
        self.checkpoint
    }
}

/// The checkpoints of one run. Holds a lock on the directory, so that two runs cannot write into it.
#[derive(Debug)]
pub struct CheckpointStore {
    root: PathBuf,
    keep: usize,
    /// Locked while this value lives; the operating system releases the lock even after `kill -9`.
    _lock: File,
}

/// The stage at which a test makes a save fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Created,
    Written,
    Listed,
    Renamed,
    Pruned,
}

impl CheckpointStore {
    /// Opens (or creates) the directory and removes incomplete files of a killed run. The store keeps the newest `keep` checkpoints (at
    /// least one).
    ///
    /// # Errors
    /// If another run has the directory open; also those of the file system.
    pub fn open(root: impl Into<PathBuf>, keep: usize) -> Result<Self, TrainError> {
        let root = root.into();
        fs::create_dir_all(&root).map_err(TrainError::io("cannot create", &root))?;
        let path = root.join(LOCK);
        let lock = File::create(&path).map_err(TrainError::io("cannot create", &path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(TrainError::bad_file(
                    path,
                    "another run is writing its checkpoints here",
                ));
            }
            // Some network file systems have no locks; training goes on without one.
            Err(TryLockError::Error(e)) if e.kind() == std::io::ErrorKind::Unsupported => {
                tracing::warn!(
                    "{} cannot be locked; the run continues without a lock: {e}",
                    path.display()
                );
            }
            Err(TryLockError::Error(e)) => return Err(TrainError::io("cannot lock", &path)(e)),
        }
        let store = Self {
            root,
            keep: keep.max(1),
            _lock: lock,
        };
        for dir in store.directories()? {
            if file_name(&dir).starts_with("tmp-") {
                fs::remove_dir_all(&dir).map_err(TrainError::io("cannot remove", &dir))?;
            }
        }
        Ok(store)
    }

    /// Writes the checkpoint of `step`: `write` puts files (no directories) into the directory it receives. Returns the finished
    /// directory.
    ///
    /// # Errors
    /// Those of `write` and of the file system, such as a full disk; older checkpoints then stay intact.
    pub fn save(
        &self,
        step: u64,
        write: impl FnOnce(&Path) -> Result<(), TrainError>,
    ) -> Result<PathBuf, TrainError> {
        let tmp = self.unique("new");
        let saved = self.save_until(step, &tmp, write, None);
        if saved.is_err() {
            // Best effort: on a full disk the space is needed, and the next open removes the directory anyway.
            let _ = fs::remove_dir_all(&tmp);
        }
        saved
    }

    fn save_until(
        &self,
        step: u64,
        tmp: &Path,
        write: impl FnOnce(&Path) -> Result<(), TrainError>,
        dies_after: Option<Stage>,
    ) -> Result<PathBuf, TrainError> {
        let reached = |stage: Stage| match dies_after {
            Some(s) if s == stage => Err(TrainError::bad_file(tmp, "injected failure")),
            _ => Ok(()),
        };
        fs::create_dir(tmp).map_err(TrainError::io("cannot create", tmp))?;
        reached(Stage::Created)?;
        write(tmp)?;
        reached(Stage::Written)?;

        let mut files = Vec::new();
        for path in entries(tmp)? {
            sync(&path)?;
            files.push(ListedFile::of(&path)?);
        }
        let manifest = tmp.join(MANIFEST);
        write_json(&manifest, &Manifest { step, files })?;
        sync(&manifest)?;
        sync(tmp)?;
        reached(Stage::Listed)?;

        let dir = self.root.join(format!("step-{step:08}"));
        if dir.exists() {
            // It can only be a damaged checkpoint, from before the run fell back to the previous one: rename it away, then delete it.
            let aside = self.unique("old");
            fs::rename(&dir, &aside).map_err(TrainError::io("cannot rename", &dir))?;
            fs::rename(tmp, &dir).map_err(TrainError::io("cannot rename", tmp))?;
            fs::remove_dir_all(&aside).map_err(TrainError::io("cannot remove", &aside))?;
        } else {
            fs::rename(tmp, &dir).map_err(TrainError::io("cannot rename", tmp))?;
        }
        sync(&self.root)?;
        reached(Stage::Renamed)?;
        self.prune(step)?;
        reached(Stage::Pruned)?;
        Ok(dir)
    }

    /// Returns the newest checkpoint of which every file exists with the right digest.
    ///
    /// # Errors
    /// If the directory cannot be read. A damaged checkpoint is not an error: it is in [`Latest::rejected`].
    pub fn latest(&self) -> Result<Latest, TrainError> {
        self.latest_from(0)
    }

    /// Returns the newest intact checkpoint from a step on, as [`Self::latest`] does. Earlier checkpoints are not read.
    ///
    /// # Errors
    /// As [`Self::latest`].
    pub fn latest_from(&self, from: u64) -> Result<Latest, TrainError> {
        let mut latest = Latest::default();
        let steps = self.steps()?.into_iter().rev();
        for (step, dir) in steps.take_while(|(step, _)| *step >= from) {
            match verify(&dir, step) {
                Ok(()) => {
                    latest.checkpoint = Some(Checkpoint { step, dir });
                    break;
                }
                Err(e) => latest.rejected.push((dir, e.to_string())),
            }
        }
        Ok(latest)
    }

    /// Removes all but the newest `keep` checkpoints up to `step`. (Those beyond `step` are damaged: a run falls back only past damaged
    /// ones.) A directory is renamed before it is deleted, so a kill here leaves no incomplete checkpoint.
    fn prune(&self, step: u64) -> Result<(), TrainError> {
        let mut steps = self.steps()?;
        steps.retain(|(s, _)| *s <= step);
        let surplus = steps.len().saturating_sub(self.keep);
        for (_, dir) in steps.into_iter().take(surplus) {
            let aside = self.unique("old");
            fs::rename(&dir, &aside).map_err(TrainError::io("cannot rename", &dir))?;
            fs::remove_dir_all(&aside).map_err(TrainError::io("cannot remove", &aside))?;
        }
        Ok(())
    }

    /// Returns all directories named like a checkpoint, oldest first.
    fn steps(&self) -> Result<Vec<(u64, PathBuf)>, TrainError> {
        let mut steps: Vec<(u64, PathBuf)> = self
            .directories()?
            .into_iter()
            .filter_map(|dir| Some((file_name(&dir).strip_prefix("step-")?.parse().ok()?, dir)))
            .collect();
        steps.sort();
        Ok(steps)
    }

    fn directories(&self) -> Result<Vec<PathBuf>, TrainError> {
        let mut found = entries(&self.root)?;
        found.retain(|path| path.is_dir());
        Ok(found)
    }

    fn unique(&self, what: &str) -> PathBuf {
        static COUNTER: AtomicU64 = AtomicU64::new(0);
        let n = COUNTER.fetch_add(1, Ordering::Relaxed);
        self.root
            .join(format!("tmp-{what}-{}-{n}", std::process::id()))
    }
}

/// Checks every listed file of a checkpoint.
fn verify(dir: &Path, step: u64) -> Result<(), TrainError> {
    let path = dir.join(MANIFEST);
    let text = fs::read(&path).map_err(TrainError::io("cannot read", &path))?;
    let manifest: Manifest =
        serde_json::from_slice(&text).map_err(|e| TrainError::bad_file(&path, e))?;
    if manifest.step != step {
        return Err(TrainError::bad_file(
            path,
            format!("belongs to step {}", manifest.step),
        ));
    }
    for listed in &manifest.files {
        if !listed.is_in(dir)? {
            return Err(TrainError::bad_file(
                dir.join(&listed.name),
                format!("is damaged: it does not match {MANIFEST}"),
            ));
        }
    }
    Ok(())
}

/// Returns the entries of a directory, sorted by name.
pub fn entries(dir: &Path) -> Result<Vec<PathBuf>, TrainError> {
    let mut paths = fs::read_dir(dir)
        .and_then(|entries| {
            entries
                .map(|e| Ok(e?.path()))
                .collect::<Result<Vec<_>, _>>()
        })
        .map_err(TrainError::io("cannot list", dir))?;
    paths.sort();
    Ok(paths)
}

fn file_name(path: &Path) -> &str {
    path.file_name().and_then(|n| n.to_str()).unwrap_or("")
}

/// Syncs a file or directory to disk.
pub fn sync(path: &Path) -> Result<(), TrainError> {
    File::open(path)
        .and_then(|f| f.sync_all())
        .map_err(TrainError::io("cannot sync", path))
}

/// Writes an indented JSON file.
pub(super) fn write_json(path: &Path, value: &impl Serialize) -> Result<(), TrainError> {
    let text = serde_json::to_string_pretty(value).map_err(|e| TrainError::bad_file(path, e))?;
    fs::write(path, text + "\n").map_err(TrainError::io("cannot write", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(dir: &Path) -> Result<(), TrainError> {
        let path = dir.join("weights.safetensors");
        fs::write(&path, b"weights").map_err(TrainError::io("cannot write", &path))
    }

    fn names(root: &Path) -> Vec<String> {
        let mut names: Vec<_> = entries(root)
            .unwrap()
            .iter()
            .map(|p| file_name(p).to_owned())
            .collect();
        names.retain(|n| n != LOCK);
        names
    }

    #[test]
    fn keeps_the_newest_and_finds_the_last() {
        let dir = tempfile::tempdir().unwrap();
        let store = CheckpointStore::open(dir.path(), 2).unwrap();
        assert_eq!(store.latest().unwrap().checkpoint, None);
        for step in [10, 20, 30] {
            store.save(step, write).unwrap();
        }
        assert_eq!(names(dir.path()), ["step-00000020", "step-00000030"]);
        let latest = store.latest().unwrap();
        assert_eq!(latest.checkpoint.unwrap().step, 30);
        assert!(latest.rejected.is_empty());
        let from = |step| store.latest_from(step).unwrap().checkpoint;
        assert_eq!(from(30).unwrap().step, 30);
        assert_eq!(from(31), None);
    }

    #[test]
    fn a_second_run_is_refused_until_the_first_ends() {
        let dir = tempfile::tempdir().unwrap();
        let first = CheckpointStore::open(dir.path(), 2).unwrap();
        let refused = CheckpointStore::open(dir.path(), 2).unwrap_err();
        assert!(refused.to_string().contains("another run"), "{refused}");
        drop(first);
        CheckpointStore::open(dir.path(), 2).unwrap();
    }

    #[test]
    fn a_run_killed_at_any_point_leaves_a_whole_checkpoint() {
        for (stage, expected) in [
            (Stage::Created, 10),
            (Stage::Written, 10),
            (Stage::Listed, 10),
            (Stage::Renamed, 20),
            (Stage::Pruned, 20),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let store = CheckpointStore::open(dir.path(), 1).unwrap();
            store.save(10, write).unwrap();
            let tmp = store.unique("new");
            store
                .save_until(20, &tmp, write, Some(stage))
                .expect_err("the failure was injected");
            drop(store);

            let store = CheckpointStore::open(dir.path(), 1).unwrap();
            let latest = store.latest().unwrap();
            assert_eq!(latest.checkpoint.unwrap().step, expected, "{stage:?}");
            assert!(latest.rejected.is_empty());
            assert!(names(dir.path()).iter().all(|n| n.starts_with("step-")));
            // The run can then go on.
            store.save(20, write).unwrap();
            assert_eq!(names(dir.path()), ["step-00000020"]);
        }
    }

    #[test]
    fn a_damaged_newest_is_reported_and_replaced() {
        type Damage = fn(&Path);
        let damages: [Damage; 5] = [
            |d| fs::write(d.join("weights.safetensors"), b"Weights").unwrap(),
            |d| fs::write(d.join("weights.safetensors"), b"weig").unwrap(),
            |d| fs::remove_file(d.join("weights.safetensors")).unwrap(),
            |d| fs::remove_file(d.join(MANIFEST)).unwrap(),
            |d| fs::write(d.join(MANIFEST), b"{\"step\":").unwrap(),
        ];
        for damage in damages {
            let dir = tempfile::tempdir().unwrap();
            let store = CheckpointStore::open(dir.path(), 3).unwrap();
            store.save(10, write).unwrap();
            damage(&store.save(20, write).unwrap());
            let latest = store.latest().unwrap();
            assert_eq!(latest.checkpoint.unwrap().step, 10);
            assert_eq!(latest.rejected.len(), 1);
            assert!(latest.rejected[0].0.ends_with("step-00000020"));

            store.save(20, write).unwrap();
            assert_eq!(store.latest().unwrap().checkpoint.unwrap().step, 20);
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_full_disk_is_an_error_and_the_old_ones_stay() {
        let dir = tempfile::tempdir().unwrap();
        let store = CheckpointStore::open(dir.path(), 1).unwrap();
        store.save(10, write).unwrap();
        let error = store
            .save(20, |d| {
                write(d)?;
                fs::write("/dev/full", b"x").map_err(TrainError::io("cannot write", d))
            })
            .unwrap_err();
        assert!(error.to_string().contains("No space left"), "{error}");
        assert_eq!(names(dir.path()), ["step-00000010"]);
        assert_eq!(store.latest().unwrap().checkpoint.unwrap().step, 10);
    }
}
