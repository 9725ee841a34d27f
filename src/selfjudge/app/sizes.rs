//! Sizes of the KV cache and of the context that fit the machine.

use candle_core::DType;

use super::memory::Footprint;
use engine::{EngineConfig, block_bytes};
use kernels::device::size;

/// Maximum bytes of the cache by default. More is for operators to ask for: the memory is reserved at the start.
const MOST: u64 = 4 << 30;

/// Bytes of the cache of a small model, whose contexts all fit in less: the rest keeps the prefixes of earlier prompts.
const LEAST: u64 = 256 << 20;

/// Minimum tokens of a shortened context. A cache that holds less is an error of the operator.
const USEFUL: usize = 256;

/// The sizes for a model on a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Sizes {
    pub kv_cache_memory: usize,
    /// Maximum tokens of prompt and answer together; none if the operator set none and the model's whole context fits.
    pub max_model_len: Option<usize>,
    /// Why contexts are shorter than the model's, and how to change it.
    pub shortened: Option<String>,
}

impl Sizes {
    /// Chooses the sizes. `asked` is the operator's size of the cache in bytes; by default the cache takes the least of:
    ///
    /// - full contexts for all concurrent sequences, or 256 MiB if that is more;
    /// - half of `rest`, the memory in bytes that everything else leaves;
    /// - 4 GiB.
    ///
    /// If the operator set the length of contexts, the cache holds at least one where `rest` allows it. Otherwise contexts are shortened to
    /// what the cache holds.
    pub fn choose(
        footprint: &Footprint,
        engine: &EngineConfig,
        asked: Option<usize>,
        rest: u64,
    ) -> Self {
        let spec = footprint.spec();
        let dtype = engine
            .kv_cache_dtype
            .for_weights(footprint.weights_dtype(), DType::F32);
        let block = block_bytes(spec, engine.block_size, dtype).max(1) as u64;
        let context = engine.max_model_len.unwrap_or(spec.max_context());
        let one = (context.div_ceil(engine.block_size) as u64).saturating_mul(block);
        let all = one.saturating_mul(engine.max_concurrent as u64).max(LEAST);
        let memory = asked.map_or_else(
            || {
                let memory = all.min(rest / 2).min(MOST);
                match engine.max_model_len {
                    Some(_) if one <= rest => memory.max(one),
                    _ => memory,
                }
            },
            |asked| asked as u64,
        );
        let held = (memory / block).saturating_mul(engine.block_size as u64);
        let held = usize::try_from(held).unwrap_or(usize::MAX);
        let short = engine.max_model_len.is_none() && (USEFUL..context).contains(&held);
        Self {
            kv_cache_memory: usize::try_from(memory).unwrap_or(usize::MAX),
            max_model_len: match short {
                true => Some(held),
                false => engine.max_model_len,
            },
            shortened: short.then(|| {
                format!(
                    "contexts are limited to {held} of the model's {context} tokens, because the KV cache of {} holds no more; \
                     --kv-cache-memory {}M holds a whole context",
                    size(memory),
                    one.div_ceil(1 << 20),
                )
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// A model of 2 MiB of cache per 16 tokens and of 32,768 positions: 4 GiB for each context.
    fn large() -> Footprint {
        let text = r#"{
            "model_type": "llama", "hidden_size": 4096, "intermediate_size": 64, "num_hidden_layers": 32, "num_attention_heads": 32,
            "num_key_value_heads": 8, "vocab_size": 64, "max_position_embeddings": 32768, "rms_norm_eps": 1e-5
        }"#;
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("config.json"), text).unwrap();
        let spec = model::ModelConfig::from_dir(dir.path()).unwrap().spec;
        Footprint::of_spec(spec, DType::BF16)
    }

    fn pocket() -> Footprint {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/pocket");
        Footprint::of(&dir, None).unwrap()
    }

    const GIB: u64 = 1 << 30;

    #[test]
    fn the_default_is_the_least_of_its_bounds() {
        let engine = EngineConfig::default();
        let memory = |footprint: &Footprint, rest| {
            Sizes::choose(footprint, &engine, None, rest).kv_cache_memory as u64
        };
        // Pocket's 128 contexts take less than what small models get.
        assert_eq!(memory(&pocket(), 16 * GIB), LEAST);
        assert_eq!(memory(&pocket(), 300 << 20), 150 << 20);
        assert_eq!(memory(&large(), 64 * GIB), MOST);
        assert_eq!(memory(&large(), 3 * GIB), 3 * GIB / 2);
        assert_eq!(memory(&large(), u64::MAX), MOST);
    }

    #[test]
    fn contexts_are_shortened_to_what_the_cache_holds_and_it_is_said() {
        let engine = EngineConfig::default();
        let whole = Sizes::choose(&large(), &engine, None, 64 * GIB);
        assert_eq!((whole.max_model_len, whole.shortened), (None, None));
        for (asked, rest, held) in [
            (None, 4 * GIB, 16384),
            (None, GIB, 4096),
            (Some(GIB as usize), 64 * GIB, 8192),
        ] {
            let sizes = Sizes::choose(&large(), &engine, asked, rest);
            assert_eq!(sizes.max_model_len, Some(held));
            let line = sizes.shortened.unwrap();
            assert!(
                line.contains(&held.to_string()) && line.contains("32768"),
                "{line}"
            );
            assert!(line.contains("--kv-cache-memory 4096M"), "{line}");
        }
    }

    #[test]
    fn a_cache_that_holds_next_to_nothing_is_left_to_the_engine_to_refuse() {
        let sizes = Sizes::choose(&large(), &EngineConfig::default(), Some(16 << 20), u64::MAX);
        assert_eq!((sizes.max_model_len, sizes.shortened), (None, None));
        assert_eq!(sizes.kv_cache_memory, 16 << 20);
    }

    #[test]
    fn a_context_that_is_asked_for_gets_its_cache() {
        let engine = EngineConfig {
            max_model_len: Some(16384),
            ..EngineConfig::default()
        };
        let sizes = Sizes::choose(&large(), &engine, None, 3 * GIB);
        assert_eq!(sizes.kv_cache_memory as u64, 2 * GIB);
        assert_eq!((sizes.max_model_len, sizes.shortened), (Some(16384), None));
        // The check of memory refuses what does not fit.
        let sizes = Sizes::choose(&large(), &engine, None, GIB);
        assert_eq!(sizes.max_model_len, Some(16384));
    }
}
