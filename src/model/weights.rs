//! A checkpoint on disk: one `model.safetensors`, shards listed in `model.safetensors.index.json`, or a GGUF file.
//!
//! Files are mapped, not read: a tensor's bytes are touched when it is converted to the requested dtype, and its pages are released then.
//! So file pages that were read do not count as this process's memory beside the converted tensors.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{DType, Device, Shape, Tensor};
use half::{bf16, f16};
use rayon::prelude::*;
use serde_json::Value;

use super::error::ModelError;
use super::gguf::{self, BlockFormat, GgufFile};
use super::kept::{EMBEDDING, HEAD};
use super::safetensors::{self, SafetensorsFile};
pub use super::stored::RowOrder;
use super::stored::{Format, Shard, Stored};

pub const WEIGHTS_FILE: &str = "model.safetensors";
pub const INDEX_FILE: &str = "model.safetensors.index.json";
/// The name of a GGUF file in a directory in Hugging Face layout.
pub const GGUF_FILE: &str = "model.gguf";

/// The tensors of a model directory (or of one file), by name.
#[derive(Debug)]
pub struct Checkpoint {
    /// The opened file or index, for messages.
    path: PathBuf,
    tensors: BTreeMap<String, Stored>,
    metadata: BTreeMap<String, String>,
    check_finite: bool,
}

/// A quantised matrix as its file has it, for kernels that compute with blocks.
#[derive(Debug, Clone, Copy)]
pub struct QuantizedMatrix<'a> {
    pub format: BlockFormat,
    /// `[out, in]`; each row is `in / format.values` blocks.
    pub shape: [usize; 2],
    /// The blocks of all rows, in the file's order.
    pub blocks: &'a [u8],
    pub order: RowOrder,
}

impl Checkpoint {
    /// Opens a model directory: `model.safetensors` if it exists, otherwise the shards of the index, otherwise `model.gguf`.
    ///
    /// # Errors
    /// Errors with [`ModelError::Io`] or [`ModelError::Checkpoint`] if a file is missing, truncated or corrupt, or the index does not
    /// match.
    pub fn open(dir: &Path) -> Result<Self, ModelError> {
        let single = dir.join(WEIGHTS_FILE);
        if single.exists() {
            return Self::open_file(&single);
        }
        let index = dir.join(INDEX_FILE);
        if index.exists() {
            return Self::open_shards(dir, &index);
        }
        let gguf = dir.join(GGUF_FILE);
        if gguf.exists() {
            return Self::open_gguf(&gguf);
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

    /// Opens one safetensors file of any name.
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
                .map(|(name, entry)| (name, Stored::of_safetensors(&file, entry)))
                .collect(),
            metadata,
            check_finite: false,
        })
    }

    /// Opens a GGUF file of any name. Its tensors have the names, and their rows the order, of a checkpoint in Hugging Face layout.
    ///
    /// # Errors
    /// Errors as [`GgufFile::open`], and with [`ModelError::UnsupportedArchitecture`].
    pub fn open_gguf(path: &Path) -> Result<Self, ModelError> {
        Ok(Self {
            path: path.to_owned(),
            tensors: gguf::stored_tensors(GgufFile::open(path)?)?,
            metadata: BTreeMap::new(),
            check_finite: false,
        })
    }

    fn open_shards(dir: &Path, index: &Path) -> Result<Self, ModelError> {
        let text = files::read_settings(index).map_err(|source| ModelError::Io {
            path: index.to_owned(),
            source,
        })?;
        let json: Value =
            serde_json::from_str(&text).map_err(|e| corrupt(index, format!("not JSON: {e}")))?;
        let map = json
            .get("weight_map")
            .and_then(Value::as_object)
            .ok_or_else(|| corrupt(index, "the index has no weight_map"))?;
        let mut by_shard: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for (name, file) in map {
            // A shard is beside its index: a path here could read files outside the model directory.
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
                        format!(
                            "tensor `{name}` is not in {file_name}, although the index lists it there"
                        ),
                    ));
                }
            }
            for (name, entry) in entries {
                if !names.contains(name.as_str()) {
                    return Err(corrupt(
                        index,
                        format!(
                            "{file_name} holds tensor `{name}`, which the index does not list there"
                        ),
                    ));
                }
                tensors.insert(name, Stored::of_safetensors(&file, entry));
            }
        }
        Ok(Self {
            path: index.to_owned(),
            tensors,
            metadata: BTreeMap::new(),
            check_finite: false,
        })
    }

    /// Sets whether [`Checkpoint::tensor`] rejects NaN and infinities (also those that a conversion to f16 produces).
    pub fn check_finite(mut self, check: bool) -> Self {
        self.check_finite = check;
        self
    }

    /// Returns the names of all tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|t| t.shape.as_slice())
    }

    /// Returns the dtype in which a tensor is stored, if [`Checkpoint::tensor`] can read it; of a quantised one F32, which alone holds
    /// its numbers exactly.
    pub fn dtype(&self, name: &str) -> Option<DType> {
        self.tensors.get(name)?.format.dtype()
    }

    /// Returns the format of a quantised matrix; none if the tensor is not quantised.
    pub fn blocks(&self, name: &str) -> Option<BlockFormat> {
        let stored = self.tensors.get(name)?;
        match (&stored.format, &stored.shape[..]) {
            (Format::Blocks(format), [_, _]) => Some(*format),
            _ => None,
        }
    }

    /// Reads a quantised matrix of this shape.
    ///
    /// # Errors
    /// Errors as [`Checkpoint::tensor`], and with [`ModelError::TensorDtype`] if the tensor is not quantised.
    pub fn quantized(
        &self,
        name: &str,
        shape: [usize; 2],
    ) -> Result<QuantizedMatrix<'_>, ModelError> {
        let stored = self.stored(name, &shape)?;
        let Format::Blocks(format) = &stored.format else {
            return Err(ModelError::TensorDtype {
                path: stored.file.path.clone(),
                name: name.to_owned(),
                found: "not quantised".to_owned(),
            });
        };
        Ok(QuantizedMatrix {
            format: *format,
            shape,
            blocks: stored.raw(),
            order: stored.order,
        })
    }

    /// Releases the file's pages of a tensor that has been read.
    pub(crate) fn release(&self, name: &str) {
        if let Some(stored) = self.tensors.get(name) {
            stored.release();
        }
    }

    /// Returns a tensor of this shape, and marks it as read.
    fn stored(&self, name: &str, expected: &[usize]) -> Result<&Stored, ModelError> {
        let Some(stored) = self.tensors.get(name) else {
            return Err(ModelError::MissingTensor {
                path: self.path.clone(),
                name: name.to_owned(),
                expected: expected.to_vec(),
            });
        };
        stored.mark_read();
        if stored.shape != expected {
            return Err(ModelError::TensorShape {
                path: stored.file.path.clone(),
                name: name.to_owned(),
                expected: expected.to_vec(),
                found: stored.shape.clone(),
            });
        }
        Ok(stored)
    }

    /// Returns the header's `__metadata__` (of a single file).
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// Reads a tensor, converted to `dtype` (F32, F16 or BF16; rounded to nearest, ties to even).
    ///
    /// # Errors
    /// Errors with [`ModelError::MissingTensor`], [`ModelError::TensorShape`] with both shapes,
    /// [`ModelError::TensorDtype`], or [`ModelError::NotFinite`] if [`Checkpoint::check_finite`] is set.
    pub fn tensor(
        &self,
        name: &str,
        expected: impl Into<Shape>,
        dtype: DType,
        device: &Device,
    ) -> Result<Tensor, ModelError> {
        let expected = expected.into();
        let stored = self.stored(name, expected.dims())?;
        if let Format::Other(found) = &stored.format {
            return Err(ModelError::TensorDtype {
                path: stored.file.path.clone(),
                name: name.to_owned(),
                found: found.clone(),
            });
        }
        let not_finite = |(count, first)| ModelError::NotFinite {
            path: stored.file.path.clone(),
            name: name.to_owned(),
            count,
            first,
        };
        macro_rules! read {
            ($from_f32:expr, $to_f32:expr) => {{
                let values = stored.values($from_f32);
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
                    found: format!("requested as {other:?}"),
                });
            }
        })
    }

    /// Errors if a tensor has not been read: a checkpoint of another architecture, or of a variant that the configuration
    /// does not describe (with biases, for example), must not load as if it fitted.
    ///
    /// Ignored are buffers that older exporters saved (`...rotary_emb.inv_freq`) and, with tied embeddings, an equal copy
    /// of them in `lm_head.weight`. A different `lm_head.weight` is rejected: it was trained, and would not be used.
    pub fn refuse_unread(&self, tie_word_embeddings: bool) -> Result<(), ModelError> {
        if tie_word_embeddings {
            self.refuse_other_head()?;
        }
        let unread: Vec<&str> = self
            .tensors
            .iter()
            .filter(|(name, stored)| {
                let tolerated = name.ends_with(".rotary_emb.inv_freq")
                    || (tie_word_embeddings && *name == HEAD);
                !tolerated && !stored.is_read()
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
    /// Errors if the output layer differs from the embedding to which the configuration ties it.
    fn refuse_other_head(&self) -> Result<(), ModelError> {
        let (Some(head), Some(embedding)) = (self.tensors.get(HEAD), self.tensors.get(EMBEDDING))
        else {
            return Ok(());
        };
        if head.is_read() || head.equals(embedding) {
            return Ok(());
        }
        Err(corrupt(
            &head.file.path,
            "`lm_head.weight` differs from the embedding, but config.json ties the two: set `tie_word_embeddings` to false there to use \
             it, or remove it from the file",
        ))
    }
}

/// Writes `model.safetensors` into a model directory, tensors sorted by name, atomically. Stale shards of an earlier
/// save are ignored, because the single file takes precedence (see [`Checkpoint::open`]).
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

/// Returns the number of values that are NaN or infinite, and the index of the first.
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
