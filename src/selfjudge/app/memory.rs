//! Memory needed at the start, compared with the available memory before any is allocated.

use std::path::Path;

use candle_core::DType;

use super::AppError;
use engine::EngineConfig;
use kernels::{
    device::{Available, PROGRAM, size},
    linear::WeightFormat,
};
use model::{Checkpoint, DecoderSpec, Kept, ModelConfig, ModelError};
use train::{dpo::DpoConfig, memory::kept_activations};

/// The memory needed at the start, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Needed {
    /// The weights as they are kept in memory; see [`Kept::of`].
    weights: u64,
    /// The KV cache.
    cache: u64,
    /// The intermediate results of the largest step.
    activations: u64,
    /// The program itself, and the tables of its tokenizer.
    program: u64,
    /// The trainer's copy of the weights, and the activations kept for its backward pass.
    trainer: u64,
}

/// Bytes of memory per byte of the tokenizer's file, which is parsed into tables of strings and pairs.
const TOKENIZER: u64 = 10;

/// The sizes of a model, from the metadata of its files.
#[derive(Debug, Clone)]
pub(super) struct Footprint {
    spec: DecoderSpec,
    weights_dtype: DType,
    /// Bytes of the weights as stored in memory.
    weights: u64,
    /// Bytes of the weights as a trainer keeps them: quantised ones as they are served, others in f32.
    trained: u64,
    /// Bytes of the tokenizer's file.
    tokenizer: u64,
}

impl Footprint {
    /// Reads the metadata of a model's files; no tensor is read.
    ///
    /// # Errors
    /// Fails if files are missing or broken.
    pub fn of(dir: &Path, format: Option<WeightFormat>) -> Result<Self, ModelError> {
        let spec = ModelConfig::from_dir(dir)?.spec;
        let checkpoint = Checkpoint::open(dir)?;
        let (mut weights, mut trained) = (0_u64, 0_u64);
        for name in checkpoint.names() {
            let shape = checkpoint.shape(name).unwrap_or_default();
            let count = shape
                .iter()
                .fold(1_u64, |all, &one| all.saturating_mul(one as u64));
            let wide = WeightFormat::F32.bytes(1, count);
            let kept = Kept::of(&checkpoint, name, format);
            let (served, below) = match shape {
                [n, k] => {
                    let (n, k) = (*n as u64, *k as u64);
                    (kept.bytes(n, k), kept.frozen_bytes(n, k))
                }
                _ => (wide, wide),
            };
            weights = weights.saturating_add(served);
            trained = trained.saturating_add(below);
        }
        let weights_dtype = Kept::of(&checkpoint, spec.head_name(), format).dtype();
        let tokenizer = std::fs::metadata(dir.join("tokenizer.json")).map_or(0, |file| file.len());
        Ok(Self {
            spec,
            weights_dtype,
            weights,
            trained,
            tokenizer,
        })
    }

    /// A model without weights.
    #[cfg(test)]
    pub fn of_spec(spec: DecoderSpec, weights_dtype: DType) -> Self {
        Self {
            spec,
            weights_dtype,
            weights: 0,
            trained: 0,
            tokenizer: 0,
        }
    }

    pub fn spec(&self) -> &DecoderSpec {
        &self.spec
    }

    /// The dtype of the weights in memory.
    pub fn weights_dtype(&self) -> DType {
        self.weights_dtype
    }

    /// Computes the memory needed to serve with these settings, and to learn.
    pub fn needed(&self, engine: &EngineConfig, learns: Option<&DpoConfig>) -> Needed {
        let spec = &self.spec;
        Needed {
            weights: self.weights,
            cache: cache(spec, engine),
            activations: activations(spec, engine),
            program: PROGRAM.saturating_add(self.tokenizer.saturating_mul(TOKENIZER)),
            trainer: learns.map_or(0, |dpo| {
                let kept = kept_activations(spec, dpo.micro_batch_tokens, dpo.recompute);
                self.trained.saturating_add(kept)
            }),
        }
    }
}

impl Needed {
    /// Returns the bytes of everything but the cache.
    pub fn without_cache(self) -> u64 {
        Self { cache: 0, ..self }.all()
    }

    fn all(self) -> u64 {
        let Self {
            weights,
            cache,
            activations,
            program,
            trainer,
        } = self;
        let parts = [weights, cache, activations, program, trainer];
        parts.into_iter().fold(0, u64::saturating_add)
    }

    /// Checks that the available memory suffices.
    ///
    /// # Errors
    /// Otherwise returns one line with the parts and the bound. It names the flag for the largest part, unless the command does not have
    /// these flags (`flags` is false).
    pub fn check(self, available: Option<Available>, flags: bool) -> Result<(), AppError> {
        let Some(available) = available.filter(|available| available.bytes < self.all()) else {
            return Ok(());
        };
        let trainer = match self.trainer {
            0 => String::new(),
            bytes => format!(", the trainer {}", size(bytes)),
        };
        Err(AppError::Config(format!(
            "{} of memory are needed, but {available} (weights {}, cache {}, activations {}, the program {}{trainer}): {}",
            size(self.all()),
            size(self.weights),
            size(self.cache),
            size(self.activations),
            size(self.program),
            match flags {
                true => format!("{}, or use --no-memory-check", self.advice()),
                false => "give the process more memory".to_owned(),
            },
        )))
    }

    /// Returns advice on how to reduce the largest part.
    fn advice(self) -> &'static str {
        let parts = [
            (self.cache, "reduce --kv-cache-memory"),
            (
                self.activations,
                "reduce --max-batch-tokens or --max-concurrent",
            ),
            (
                self.trainer,
                "serve without --learn, or set a smaller dpo.micro_batch_tokens in its file",
            ),
            (self.weights, "serve a smaller model"),
            (self.program, "give the process more memory"),
        ];
        // Among equal parts the first wins, because it is the easiest to change.
        let largest = parts.into_iter().rev().max_by_key(|(bytes, _)| *bytes);
        largest.map_or("give the process more memory", |(_, advice)| advice)
    }
}

/// Returns the size of the cache: the requested size, limited by the maximum number of blocks.
fn cache(spec: &DecoderSpec, engine: &EngineConfig) -> u64 {
    /// Maximum bytes per number.
    const NUMBER: u64 = 4;
    let width = 2 * (spec.num_kv_heads * spec.head_dim) as u64 * spec.num_layers() as u64;
    let most = u64::from(u32::MAX).saturating_mul(width.saturating_mul(NUMBER));
    most.min(engine.kv_cache_memory as u64)
}

/// Returns the memory of the intermediate results of a step with the maximum number of tokens: residual stream, projections and the
/// MLP's numbers in f32, and a row of logits for each sequence.
fn activations(spec: &DecoderSpec, engine: &EngineConfig) -> u64 {
    let heads = (spec.num_heads + 2 * spec.num_kv_heads) * spec.head_dim;
    let row = 3 * spec.hidden_size + heads + spec.mlp_row();
    let of_tokens = (row as u64).saturating_mul(engine.max_batch_tokens as u64);
    let logits = (spec.vocab_size as u64).saturating_mul(engine.max_concurrent as u64);
    of_tokens.saturating_add(logits).saturating_mul(4)
}

#[cfg(test)]
mod tests {
    use super::*;
    use kernels::device::MemoryBound;

    fn needed(engine: &EngineConfig, learns: bool) -> Needed {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/pocket");
        let dpo = DpoConfig::default();
        let footprint = Footprint::of(&dir, None).unwrap();
        footprint.needed(engine, learns.then_some(&dpo))
    }

    /// Regression test: a server of the pocket model was killed at a limit that its cache nearly filled, because the program itself takes
    /// memory too.
    #[test]
    fn the_program_itself_is_counted() {
        for (cache, limit) in [
            (600_u64, 680_u64),
            (670, 700),
            (684, 700),
            (16, 60),
            (4, 64),
        ] {
            let engine = EngineConfig {
                kv_cache_memory: (cache << 20) as usize,
                ..EngineConfig::default()
            };
            let available = Available {
                bytes: limit << 20,
                bound: MemoryBound::Cgroup { limit: limit << 20 },
            };
            let refused = needed(&engine, false).check(Some(available), true);
            let error = refused.unwrap_err().to_string();
            assert!(error.contains("the program"), "{cache} of {limit}: {error}");
        }
    }

    #[test]
    fn the_weights_are_counted_as_they_are_kept() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/pocket");
        let mut before = u64::MAX;
        for format in ["f32", "bf16", "int8", "int4"] {
            let format = Some(format.parse().unwrap());
            let counted = Footprint::of(&dir, format).unwrap();
            let options = model::LoadOptions {
                format,
                ..model::LoadOptions::default()
            };
            let model = model::LanguageModel::load(&dir, &options).unwrap();
            let kept = model.decoder().bytes() as u64;
            // Norms are counted too.
            assert!(
                (kept..kept + 16 * 1024).contains(&counted.weights),
                "{format:?}"
            );
            assert_eq!(counted.weights_dtype(), model.decoder().weights_dtype());
            assert!(
                kept < before / 10 * 6 + before / 100,
                "{format:?}: {kept} of {before}"
            );
            before = kept;
        }
    }

    #[test]
    fn the_advice_is_about_the_largest_part() {
        let part = |name: &str| {
            let bytes = |own: &str| if own == name { 100 << 30 } else { 1 << 20 };
            Needed {
                weights: bytes("weights"),
                cache: bytes("cache"),
                activations: bytes("activations"),
                program: bytes("program"),
                trainer: bytes("trainer"),
            }
        };
        let available = Some(Available {
            bytes: 1 << 30,
            bound: MemoryBound::Machine,
        });
        for (largest, named) in [
            ("weights", "smaller model"),
            ("cache", "--kv-cache-memory"),
            ("activations", "--max-concurrent"),
            ("program", "more memory"),
            ("trainer", "--learn"),
        ] {
            let error = part(largest)
                .check(available, true)
                .unwrap_err()
                .to_string();
            assert!(
                error.contains(named) && error.contains("--no-memory-check"),
                "{error}"
            );
            let flags = error.matches("--").count();
            assert!(flags <= 3, "{error}");
            // The stand-alone learner has none of the flags.
            let error = part(largest)
                .check(available, false)
                .unwrap_err()
                .to_string();
            assert!(!error.contains("--"), "{error}");
        }
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
        assert!(needed.check(enough, true).is_ok() && needed.check(None, true).is_ok());
        let cgroup = MemoryBound::Cgroup { limit: 700 << 20 };
        for (bound, named) in [(MemoryBound::Machine, "machine"), (cgroup, "700 MiB")] {
            let error = needed
                .check(there_is(needed.all() - 1, bound), true)
                .unwrap_err();
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
