//! A check of the memory that a training run needs against the available memory, before any of it is allocated.

use super::TrainError;
use kernels::device::{Available, PROGRAM, size};
use model::DecoderSpec;

/// The properties of a run that determine its memory.
#[derive(Debug, Clone, Copy)]
pub struct Footprint {
    /// Whether the whole model is trained, rather than an adapter beside it.
    pub whole: bool,
    /// Micro-batches that run at the same time.
    pub lanes: usize,
    /// Tokens per micro-batch.
    pub tokens: usize,
    /// Whether block activations are recomputed in the backward pass instead of being kept.
    pub recompute: bool,
    /// Bytes of frozen weights that are not all in f32.
    pub quantised: Option<u64>,
}

/// Bytes per number in training.
const F32: u64 = 4;

/// Numbers that the optimizer keeps for each trained weight: two moments.
const MOMENTS: u64 = 2;

/// Tensors of a block's width kept for the backward pass, for each one from the forward pass: the value and its gradient.
const KEPT: u64 = 2;

impl Footprint {
    /// Checks the available memory.
    ///
    /// # Errors
    /// If there is less memory than the run needs: one line with the parts and the limit.
    pub fn check(self, spec: &DecoderSpec, available: Option<Available>) -> Result<(), TrainError> {
        let lanes = self.lanes.max(1) as u64;
        let copies = match self.whole {
            // Each lane has a buffer in which gradients are summed.
            true => 1 + MOMENTS + lanes,
            false => 1,
        };
        let weights = self
            .quantised
            .unwrap_or_else(|| parameter_count(spec).saturating_mul(F32 * copies));
        let activations = kept_activations(spec, self.tokens, self.recompute).saturating_mul(lanes);
        let needed = weights.saturating_add(activations).saturating_add(PROGRAM);
        let Some(available) = available.filter(|available| available.bytes < needed) else {
            return Ok(());
        };
        Err(TrainError::Memory(format!(
            "{} of memory are needed, but {available} (weights, gradients and moments {}, activations {}, the program {}): {}, or use \
             --no-memory-check",
            size(needed),
            size(weights),
            size(activations),
            size(PROGRAM),
            match (activations > weights, self.whole) {
                (true, _) => "lower --micro-batch-tokens",
                (false, true) => "train an adapter (--lora-rank) or a smaller model",
                (false, false) => "train a smaller model",
            },
        )))
    }
}

/// Returns the bytes kept for the backward pass over so many tokens: every block's intermediate results (with `recompute`, each block's
/// input and one block's results), and the logits.
pub fn kept_activations(spec: &DecoderSpec, tokens: usize, recompute: bool) -> u64 {
    let heads = (spec.num_heads + 2 * spec.num_kv_heads) * spec.head_dim;
    let block = (3 * spec.hidden_size + heads + spec.mlp_row()) as u64;
    let layers = spec.num_layers() as u64;
    let blocks = match recompute {
        true => layers
            .saturating_mul(spec.hidden_size as u64)
            .saturating_add(KEPT * block),
        false => layers.saturating_mul(KEPT * block),
    };
    let logits = KEPT * spec.vocab_size as u64;
    let row = blocks.saturating_add(logits);
    row.saturating_mul(tokens as u64).saturating_mul(F32)
}

/// Returns the number of the model's weights, without norms and biases.
fn parameter_count(spec: &DecoderSpec) -> u64 {
    let hidden = spec.hidden_size as u64;
    let (queries, keys) = (
        (spec.num_heads * spec.head_dim) as u64,
        (spec.num_kv_heads * spec.head_dim) as u64,
    );
    let attention = hidden.saturating_mul(2 * queries + 2 * keys);
    let embeddings = hidden.saturating_mul(spec.vocab_size as u64);
    let tables = if spec.tie_word_embeddings { 1 } else { 2 };
    (spec.num_layers() as u64)
        .saturating_mul(attention)
        .saturating_add(spec.mlp_weights())
        .saturating_add(embeddings.saturating_mul(tables))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use kernels::device::MemoryBound;
    use model::ModelConfig;

    /// Peak memory of runs with the pocket model, in MiB, measured on a machine with two processors.
    #[test]
    fn what_is_needed_is_near_what_was_measured() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/pocket");
        let spec = ModelConfig::from_dir(&dir).unwrap().spec;
        for (whole, tokens, peak) in [
            (true, 1024, 233),
            (false, 1024, 200),
            (true, 4096, 463),
            (false, 4096, 435),
        ] {
            let run = Footprint {
                whole,
                lanes: 1,
                tokens,
                recompute: false,
                quantised: None,
            };
            let within = |mib: u64| {
                let bytes = mib << 20;
                let bound = MemoryBound::Cgroup { limit: bytes };
                run.check(&spec, Some(Available { bytes, bound }))
            };
            assert!(within(peak * 5 / 4).is_ok(), "{run:?}");
            let error = within(peak * 3 / 4).unwrap_err().to_string();
            for part in ["memory", "cgroup", "activations", "--no-memory-check"] {
                assert!(error.contains(part) && !error.contains('\n'), "{error}");
            }
            assert!(run.check(&spec, None).is_ok());
        }
        let lean = |recompute| kept_activations(&spec, 1024, recompute);
        assert!(lean(true) < lean(false) / 2);
    }
}
