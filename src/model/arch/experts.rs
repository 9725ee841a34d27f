//! Mixtures of experts: the keys of a configuration that describe them, and the names and shapes of their matrices.

use super::{Architecture, DecoderSpec, MAX_HIDDEN, MAX_WIDTH};
use crate::config::Fields;
use crate::error::ModelError;

/// The maximum number of experts of all layers together, far above that of the largest models.
const MAX_EXPERTS: usize = 1 << 16;

/// The experts that some layers have in place of an MLP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExpertsSpec {
    /// The experts of a layer.
    pub count: usize,
    /// The experts that each token goes through.
    pub per_token: usize,
    /// The width of an expert, between gate and down.
    pub width: usize,
    /// Whether the weights of a token's experts are divided by their sum.
    pub normalised: bool,
}

impl ExpertsSpec {
    /// The path of the router within a block.
    pub(crate) const ROUTER: &str = "mlp.gate";

    /// The beginning of an expert's paths within a block.
    const EXPERTS: &str = "mlp.experts.";

    /// Returns whether the path, within a block or the model, is a router's.
    pub(crate) fn is_router(path: &str) -> bool {
        path.ends_with(Self::ROUTER)
    }

    /// Returns whether the path is a router's or that of a matrix of an expert.
    pub(crate) fn names(path: &str) -> bool {
        Self::is_router(path) || path.contains(Self::EXPERTS)
    }

    /// Returns the path within a block of the matrix `name` of an expert.
    pub(crate) fn expert(number: usize, name: &str) -> String {
        format!("{}{number}.{name}", Self::EXPERTS)
    }

    /// Returns the shape `[out, in]` of the router.
    pub(crate) fn router(&self, hidden: usize) -> [usize; 2] {
        [self.count, hidden]
    }

    /// Returns the paths within a block of an expert's gate, up and down, and their shapes `[out, in]`.
    pub(crate) fn linears(&self, number: usize, hidden: usize) -> [(String, [usize; 2]); 3] {
        [
            ("gate_proj", [self.width, hidden]),
            ("up_proj", [self.width, hidden]),
            ("down_proj", [hidden, self.width]),
        ]
        .map(|(name, shape)| (Self::expert(number, name), shape))
    }

    /// Returns the number of weights of a layer's experts and router.
    pub(crate) fn weights(&self, hidden: usize) -> u64 {
        let hidden = hidden as u64;
        let expert = hidden.saturating_mul(3 * self.width as u64);
        (self.count as u64).saturating_mul(expert.saturating_add(hidden))
    }
}

impl DecoderSpec {
    /// Returns the experts of a layer, if it has them in place of an MLP.
    pub fn experts_of(&self, layer: usize) -> Option<&ExpertsSpec> {
        let experts = self.experts.as_ref();
        experts.filter(|_| self.layers[layer].experts)
    }

    /// Returns the numbers that a token has between the input and the output of a block's MLP or experts, at most.
    pub fn mlp_row(&self) -> usize {
        let dense = match self.layers.iter().all(|layer| layer.experts) {
            true => 0,
            false => 2 * self.intermediate_size,
        };
        let of_experts = |experts: &ExpertsSpec| {
            let of_one = 2 * (experts.width + self.hidden_size);
            experts.count + experts.per_token.saturating_mul(of_one)
        };
        dense.max(self.experts.as_ref().map_or(0, of_experts))
    }

    /// Returns the number of weights of all MLPs and experts, without biases.
    pub fn mlp_weights(&self) -> u64 {
        let dense = (self.hidden_size as u64).saturating_mul(3 * self.intermediate_size as u64);
        let of_layer = |layer| match self.experts_of(layer) {
            Some(experts) => experts.weights(self.hidden_size),
            None => dense,
        };
        (0..self.num_layers()).fold(0, |sum: u64, layer| sum.saturating_add(of_layer(layer)))
    }
}

/// Returns the experts of a model, and whether each layer has them.
pub(super) fn read(
    fields: &Fields,
    architecture: Architecture,
    num_layers: usize,
) -> Result<(Option<ExpertsSpec>, Vec<bool>), ModelError> {
    let none = (None, vec![false; num_layers]);
    if architecture != Architecture::Qwen3Moe {
        return Ok(none);
    }
    // transformers 5 writes the second name.
    let count = match fields.optional_count("num_experts", MAX_WIDTH)? {
        Some(count) => count,
        None => fields
            .optional_count("num_local_experts", MAX_WIDTH)?
            .unwrap_or(128),
    };
    if count == 0 {
        return Ok(none);
    }
    if count.saturating_mul(num_layers) > MAX_EXPERTS {
        return Err(fields.error(format!(
            "{count} experts in each of {num_layers} layers are more than {MAX_EXPERTS}"
        )));
    }
    let per_token = fields
        .optional_size("num_experts_per_tok", MAX_WIDTH)?
        .unwrap_or(8);
    if per_token > count {
        return Err(fields.error(format!(
            "num_experts_per_tok {per_token} is more than the number of experts, {count}"
        )));
    }
    let width = fields.optional_size("moe_intermediate_size", MAX_HIDDEN)?;
    let every = fields.optional_size("decoder_sparse_step", MAX_WIDTH)?;
    let every = every.unwrap_or(1);
    let dense = fields.counts("mlp_only_layers")?.unwrap_or_default();
    let has = |layer: usize| (layer + 1).is_multiple_of(every) && !dense.contains(&layer);
    let layers: Vec<bool> = (0..num_layers).map(has).collect();
    let spec = ExpertsSpec {
        count,
        per_token,
        width: width.unwrap_or(768),
        normalised: fields.bool("norm_topk_prob")?.unwrap_or(false),
    };
    Ok((layers.contains(&true).then_some(spec), layers))
}
