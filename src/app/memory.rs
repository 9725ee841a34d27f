//! Memory that a start needs, compared with what there is before any of it is taken.

use std::path::Path;

use candle_core::DType;

use super::AppError;
use crate::device::{Available, MemoryBound};
use crate::engine::EngineConfig;
use crate::model::{Checkpoint, DecoderSpec, ModelConfig, ModelError};

/// Memory that a start needs, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Needed {
    /// The weights as they are kept: bf16 as it is, other types as f32.
    weights: u64,
    /// Keys and values.
    cache: u64,
    /// The largest step's intermediate results.
    activations: u64,
    /// The trainer's own copy of the weights, in f32.
    trainer: u64,
}

impl Needed {
    /// Reads what a model's files say of its size; no tensor is read.
    ///
    /// # Errors
    /// Files that are missing or broken.
    pub fn of(dir: &Path, engine: &EngineConfig, learns: bool) -> Result<Self, ModelError> {
        let spec = ModelConfig::from_dir(dir)?.spec;
        let checkpoint = Checkpoint::open(dir)?;
        let (mut weights, mut numbers) = (0_u64, 0_u64);
        for name in checkpoint.names() {
            let shape = checkpoint.shape(name).unwrap_or_default();
            let count = shape
                .iter()
                .fold(1_u64, |all, &one| all.saturating_mul(one as u64));
            let bytes = match checkpoint.dtype(name) {
                Some(DType::BF16) => 2,
                _ => 4,
            };
            numbers = numbers.saturating_add(count);
            weights = weights.saturating_add(count.saturating_mul(bytes));
        }
        Ok(Self {
            weights,
            cache: cache(&spec, engine),
            activations: activations(&spec, engine),
            trainer: if learns { numbers.saturating_mul(4) } else { 0 },
        })
    }

    fn all(self) -> u64 {
        let parts = [self.weights, self.cache, self.activations, self.trainer];
        parts.into_iter().fold(0, u64::saturating_add)
    }

    /// # Errors
    /// One line with the parts and the bound, where there is less than needed.
    pub fn check(self, available: Option<Available>) -> Result<(), AppError> {
        let Some(available) = available.filter(|available| available.bytes < self.all()) else {
            return Ok(());
        };
        let bound = match available.bound {
            MemoryBound::Machine => "the machine has".to_owned(),
            MemoryBound::Cgroup { limit } => {
                format!(
                    "the memory limit of {} of the process' cgroup leaves",
                    size(limit)
                )
            }
        };
        let trainer = match self.trainer {
            0 => String::new(),
            bytes => format!(", the trainer's copy of the weights {}", size(bytes)),
        };
        Err(AppError::Config(format!(
            "{} of memory are needed, and {bound} {} (weights {}, cache {}, activations {}{trainer}): give --kv-cache-memory less, or \
             say --no-memory-check",
            size(self.all()),
            size(available.bytes),
            size(self.weights),
            size(self.cache),
            size(self.activations),
        )))
    }
}

/// What the cache takes: what was asked for, but never more than blocks can be numbered.
fn cache(spec: &DecoderSpec, engine: &EngineConfig) -> u64 {
    /// Bytes of a number at most.
    const NUMBER: u64 = 4;
    let width = 2 * (spec.num_kv_heads * spec.head_dim) as u64 * spec.num_layers() as u64;
    let most = u64::from(u32::MAX).saturating_mul(width.saturating_mul(NUMBER));
    most.min(engine.kv_cache_memory as u64)
}

/// What a step of the most tokens holds at once: residual stream, projections and the gate's two halves in f32, and a row of logits for
/// each sequence.
fn activations(spec: &DecoderSpec, engine: &EngineConfig) -> u64 {
    let heads = (spec.num_heads + 2 * spec.num_kv_heads) * spec.head_dim;
    let row = 3 * spec.hidden_size + heads + 2 * spec.intermediate_size;
    let of_tokens = (row as u64).saturating_mul(engine.max_batch_tokens as u64);
    let logits = (spec.vocab_size as u64).saturating_mul(engine.max_concurrent as u64);
    of_tokens.saturating_add(logits).saturating_mul(4)
}

/// A number of bytes, for people.
fn size(bytes: u64) -> String {
    match bytes {
        bytes if bytes >= 10 << 30 => format!("{} GiB", bytes >> 30),
        bytes => format!("{} MiB", bytes >> 20),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn needed(engine: &EngineConfig, learns: bool) -> Needed {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/pocket");
        Needed::of(&dir, engine, learns).unwrap()
    }

    #[test]
    fn what_is_asked_for_is_added_up() {
        let (engine, serving) = (
            EngineConfig::default(),
            needed(&EngineConfig::default(), false),
        );
        assert_eq!(serving.cache, engine.kv_cache_memory as u64);
        assert!(serving.weights > 1 << 20 && serving.activations > 1 << 20);
        let learning = needed(&engine, true);
        assert!(learning.trainer >= learning.weights && serving.trainer == 0);
        let huge = EngineConfig {
            kv_cache_memory: 1000 << 30,
            ..engine
        };
        assert_eq!(needed(&huge, false).cache, 1000 << 30);
        let endless = EngineConfig {
            kv_cache_memory: usize::MAX,
            ..huge
        };
        assert!(needed(&endless, false).cache < u64::MAX / 2);
    }

    #[test]
    fn too_little_memory_is_one_line_with_the_parts() {
        let needed = needed(&EngineConfig::default(), true);
        let there_is = |bytes, bound| Some(Available { bytes, bound });
        let enough = there_is(needed.all(), MemoryBound::Machine);
        assert!(needed.check(enough).is_ok() && needed.check(None).is_ok());
        let cgroup = MemoryBound::Cgroup { limit: 700 << 20 };
        for (bound, named) in [(MemoryBound::Machine, "machine"), (cgroup, "700 MiB")] {
            let error = needed.check(there_is(needed.all() - 1, bound)).unwrap_err();
            let error = error.to_string();
            assert!(
                error.contains(named) && error.contains("cache 256 MiB"),
                "{error}"
            );
            assert!(
                !error.contains('\n') && error.contains("--kv-cache-memory"),
                "{error}"
            );
        }
    }
}
