//! A checkpoint on disk: one `model.safetensors`, or shards listed in `model.safetensors.index.json`.
//!
//! Files are mapped, not read: a tensor's bytes are touched when it is converted to the dtype asked for, and let go of then, so
//! that what has been read does not count as this process's memory beside what was made of it.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use candle_core::{DType, Device, Shape, Tensor};
use half::{bf16, f16};
use rayon::prelude::*;
use serde_json::Value;

use super::error::ModelError;
use super::safetensors::{self, Entry, SafetensorsFile};

pub const WEIGHTS_FILE: &str = "model.safetensors";
pub const INDEX_FILE: &str = "model.safetensors.index.json";

/// Values a thread converts at a time.
const CHUNK: usize = 1 << 16;

/// The tensors of a model directory (or of one file), by name.
#[derive(Debug)]
pub struct Checkpoint {
    /// The file or index that was opened, for messages.
    path: PathBuf,
    tensors: BTreeMap<String, Stored>,
    metadata: BTreeMap<String, String>,
    check_finite: bool,
}

#[derive(Debug)]
struct Stored {
    file: Arc<Shard>,
    entry: Entry,
    /// Whether the tensor was ever asked for.
    read: AtomicBool,
}

#[derive(Debug)]
struct Shard {
    path: PathBuf,
    map: memmap2::Mmap,
}

impl Shard {
    /// Lets go of pages that have been read.
    fn release(&self, bytes: &Range<usize>) {
        // SAFETY: the mapping is of a file and only read: a page that is touched again comes from the file again.
        let released = unsafe {
            let advice = memmap2::UncheckedAdvice::DontNeed;
            self.map
                .unchecked_advise_range(advice, bytes.start, bytes.len())
        };
        if let Err(error) = released {
            tracing::debug!("{} stays in memory: {error}", self.path.display());
        }
    }
}

impl Checkpoint {
    /// Opens a model directory: `model.safetensors` if it is there, else the shards of the index.
    ///
    /// # Errors
    /// [`ModelError::Io`] and [`ModelError::Checkpoint`]: missing, truncated, corrupt, or an index that does not fit.
    pub fn open(dir: &Path) -> Result<Self, ModelError> {
        let single = dir.join(WEIGHTS_FILE);
        if single.exists() {
            return Self::open_file(&single);
        }
        let index = dir.join(INDEX_FILE);
        if index.exists() {
            return Self::open_shards(dir, &index);
        }
        let old = dir.join("pytorch_model.bin").exists()
            || dir.join("pytorch_model.bin.index.json").exists();
        Err(corrupt(
            dir,
            match old {
                true => "holds pickled PyTorch weights; only safetensors are read",
                false => "no model.safetensors and no model.safetensors.index.json",
            },
        ))
    }

    /// Opens one safetensors file, whatever its name.
    pub fn open_file(path: &Path) -> Result<Self, ModelError> {
        let SafetensorsFile {
            map,
            entries,
            metadata,
        } = SafetensorsFile::open(path)?;
        let file = Arc::new(Shard {
            path: path.to_owned(),
            map,
        });
        Ok(Self {
            path: path.to_owned(),
            tensors: entries
                .into_iter()
                .map(|(name, entry)| (name, Stored::new(&file, entry)))
                .collect(),
            metadata,
            check_finite: false,
        })
    }

    fn open_shards(dir: &Path, index: &Path) -> Result<Self, ModelError> {
        let text = crate::files::read_settings(index).map_err(|source| ModelError::Io {
            path: index.to_owned(),
            source,
        })?;
        let json: Value =
            serde_json::from_str(&text).map_err(|e| corrupt(index, format!("not JSON: {e}")))?;
        let map = json
            .get("weight_map")
            .and_then(Value::as_object)
            .ok_or_else(|| corrupt(index, "no weight_map"))?;
        let mut by_shard: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for (name, file) in map {
            // A shard lies beside its index: a path in here would read files that are nobody's weights.
            let file = file
                .as_str()
                .filter(|file| file.ends_with(".safetensors") && !file.contains(['/', '\\', '\0']))
                .ok_or_else(|| {
                    corrupt(
                        index,
                        format!("tensor `{name}` is not in a safetensors file of this folder"),
                    )
                })?;
            by_shard.entry(file).or_default().insert(name);
        }
        let mut tensors = BTreeMap::new();
        for (file_name, names) in by_shard {
            let path = dir.join(file_name);
            let SafetensorsFile { map, entries, .. } = SafetensorsFile::open(&path)?;
            let file = Arc::new(Shard { path, map });
            for name in &names {
                if !entries.contains_key(*name) {
                    return Err(corrupt(
                        index,
                        format!("tensor `{name}` is not in {file_name}, where the index has it"),
                    ));
                }
            }
            for (name, entry) in entries {
                if !names.contains(name.as_str()) {
                    return Err(corrupt(
                        index,
                        format!(
                            "{file_name} holds tensor `{name}`, which the index does not have there"
                        ),
                    ));
                }
                tensors.insert(name, Stored::new(&file, entry));
            }
        }
        Ok(Self {
            path: index.to_owned(),
            tensors,
            metadata: BTreeMap::new(),
            check_finite: false,
        })
    }

    /// Makes [`Checkpoint::tensor`] refuse NaN and infinities (also those that a conversion to f16 makes).
    pub fn check_finite(mut self, check: bool) -> Self {
        self.check_finite = check;
        self
    }

    /// The names of all tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|t| t.entry.shape.as_slice())
    }

    /// The dtype a tensor is stored in, where it is one that [`Checkpoint::tensor`] reads.
    pub fn dtype(&self, name: &str) -> Option<DType> {
        stored_dtype(&self.tensors.get(name)?.entry.dtype)
    }

    /// The header's `__metadata__` (of a single file).
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// Reads a tensor, converted to `dtype` (F32, F16 or BF16; rounded to nearest, ties to even).
    ///
    /// # Errors
    /// [`ModelError::MissingTensor`], [`ModelError::TensorShape`] with both shapes, [`ModelError::TensorDtype`], and
    /// [`ModelError::NotFinite`] where [`Checkpoint::check_finite`] asks for it.
    pub fn tensor(
        &self,
        name: &str,
        expected: impl Into<Shape>,
        dtype: DType,
        device: &Device,
    ) -> Result<Tensor, ModelError> {
        let expected = expected.into();
        let Some(stored) = self.tensors.get(name) else {
            return Err(ModelError::MissingTensor {
                path: self.path.clone(),
                name: name.to_owned(),
                expected: expected.into_dims(),
            });
        };
        stored.read.store(true, Ordering::Relaxed);
        if stored.entry.shape != expected.dims() {
            return Err(ModelError::TensorShape {
                path: stored.file.path.clone(),
                name: name.to_owned(),
                expected: expected.into_dims(),
                found: stored.entry.shape.clone(),
            });
        }
        let from = stored_dtype(&stored.entry.dtype).ok_or_else(|| ModelError::TensorDtype {
            path: stored.file.path.clone(),
            name: name.to_owned(),
            found: stored.entry.dtype.clone(),
        })?;
        let bytes = &stored.file.map[stored.entry.bytes.clone()];
        let not_finite = |(count, first)| ModelError::NotFinite {
            path: stored.file.path.clone(),
            name: name.to_owned(),
            count,
            first,
        };
        macro_rules! read {
            ($from_f32:expr, $to_f32:expr) => {{
                let values = convert(bytes, from, $from_f32);
                stored.file.release(&stored.entry.bytes);
                if self.check_finite {
                    non_finite(&values, $to_f32).map_or(Ok(()), |found| Err(not_finite(found)))?;
                }
                Tensor::from_vec(values, expected, device)?
            }};
        }
        Ok(match dtype {
            DType::F32 => read!(|x| x, |x: f32| x),
            DType::F16 => read!(f16::from_f32, f16::to_f32),
            DType::BF16 => read!(bf16::from_f32, bf16::to_f32),
            other => {
                return Err(ModelError::TensorDtype {
                    path: stored.file.path.clone(),
                    name: name.to_owned(),
                    found: format!("asked for as {other:?}"),
                });
            }
        })
    }

    /// Refuses tensors that nobody has read: a checkpoint of another architecture, or of a variant that the
    /// configuration does not tell about (biases, say), must not load as if it fitted.
    ///
    /// Tolerated are buffers that older exporters saved (`...rotary_emb.inv_freq`) and, with tied embeddings, an equal copy
    /// of them in `lm_head.weight`. Another `lm_head.weight` is refused: it was trained, and would not be used.
    pub fn refuse_unread(&self, tie_word_embeddings: bool) -> Result<(), ModelError> {
        if tie_word_embeddings {
            self.refuse_other_head()?;
        }
        let unread: Vec<&str> = self
            .tensors
            .iter()
            .filter(|(name, stored)| {
                let tolerated = name.ends_with(".rotary_emb.inv_freq")
                    || (tie_word_embeddings && *name == "lm_head.weight");
                !tolerated && !stored.read.load(Ordering::Relaxed)
            })
            .map(|(name, _)| name.as_str())
            .collect();
        if unread.is_empty() {
            return Ok(());
        }
        let mut names = unread[..unread.len().min(5)].join(", ");
        if unread.len() > 5 {
            names.push_str(", ...");
        }
        Err(ModelError::UnexpectedTensors {
            path: self.path.clone(),
            count: unread.len(),
            names,
        })
    }
}

impl Checkpoint {
    /// # Errors
    /// An output layer that differs from the embedding it is said to be.
    fn refuse_other_head(&self) -> Result<(), ModelError> {
        let (Some(head), Some(embedding)) = (
            self.tensors.get("lm_head.weight"),
            self.tensors.get("model.embed_tokens.weight"),
        ) else {
            return Ok(());
        };
        if head.read.load(Ordering::Relaxed) || head.equals(embedding) {
            return Ok(());
        }
        Err(corrupt(
            &head.file.path,
            "`lm_head.weight` differs from the embedding, and config.json says that the two are one: set `tie_word_embeddings` to false \
             there to use it, or remove it from the file",
        ))
    }
}

impl Stored {
    /// Whether both hold the same numbers.
    fn equals(&self, other: &Self) -> bool {
        let bytes = |stored: &Self| stored.entry.bytes.clone();
        let (own, others) = (&self.file.map[bytes(self)], &other.file.map[bytes(other)]);
        let (Some(dtype), Some(other_dtype)) = (
            stored_dtype(&self.entry.dtype),
            stored_dtype(&other.entry.dtype),
        ) else {
            return false;
        };
        let equal = self.entry.shape == other.entry.shape
            && own
                .chunks(CHUNK * dtype.size_in_bytes())
                .zip(others.chunks(CHUNK * other_dtype.size_in_bytes()))
                .all(|(own, others)| match dtype == other_dtype {
                    true => own == others,
                    false => convert(own, dtype, |x| x) == convert(others, other_dtype, |x| x),
                });
        self.file.release(&bytes(self));
        other.file.release(&bytes(other));
        equal
    }

    fn new(file: &Arc<Shard>, entry: Entry) -> Self {
        Self {
            file: file.clone(),
            entry,
            read: AtomicBool::new(false),
        }
    }
}

/// Writes `model.safetensors` into a model directory, tensors sorted by name, atomically; stale shards of an earlier
/// save are not looked at again, because the single file wins (see [`Checkpoint::open`]).
///
/// See [`safetensors::write`] for `dtype` and the errors.
pub fn save(
    dir: &Path,
    tensors: &BTreeMap<String, Tensor>,
    dtype: Option<DType>,
) -> Result<(), ModelError> {
    safetensors::write(&dir.join(WEIGHTS_FILE), tensors, dtype, &[])
}

fn corrupt(path: &Path, message: impl Into<String>) -> ModelError {
    ModelError::Checkpoint {
        path: path.to_owned(),
        message: message.into(),
    }
}

fn stored_dtype(header: &str) -> Option<DType> {
    match header {
        "F32" => Some(DType::F32),
        "F16" => Some(DType::F16),
        "BF16" => Some(DType::BF16),
        _ => None,
    }
}

/// Little-endian bytes of one of the three stored dtypes, converted; through f32, which holds each of them exactly.
fn convert<T: Send + Copy + Default>(
    bytes: &[u8],
    from: DType,
    to: impl Fn(f32) -> T + Sync,
) -> Vec<T> {
    let size = from.size_in_bytes();
    let mut values = vec![T::default(); bytes.len() / size];
    values
        .par_chunks_mut(CHUNK)
        .zip(bytes.par_chunks(CHUNK * size))
        .for_each(|(values, bytes)| match from {
            DType::F32 => {
                for (value, b) in values.iter_mut().zip(bytes.as_chunks::<4>().0) {
                    *value = to(f32::from_le_bytes(*b));
                }
            }
            DType::F16 => {
                for (value, b) in values.iter_mut().zip(bytes.as_chunks::<2>().0) {
                    *value = to(f16::from_le_bytes(*b).to_f32());
                }
            }
            _ => {
                for (value, b) in values.iter_mut().zip(bytes.as_chunks::<2>().0) {
                    *value = to(bf16::from_le_bytes(*b).to_f32());
                }
            }
        });
    values
}

/// How many values are NaN or infinite, and the index of the first.
fn non_finite<T: Sync + Copy>(
    values: &[T],
    to_f32: impl Fn(T) -> f32 + Sync,
) -> Option<(usize, usize)> {
    let count = values
        .par_iter()
        .filter(|&&value| !to_f32(value).is_finite())
        .count();
    (count > 0).then(|| {
        let first = values.iter().position(|&value| !to_f32(value).is_finite());
        (count, first.unwrap_or(0))
    })
}
