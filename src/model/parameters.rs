//! The tensors of an architecture, by their checkpoint names.

use candle_core::{Device, Tensor};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::kept::{EMBEDDING, HEAD};
use super::{DecoderSpec, ExpertsSpec, ModelError};
use kernels::nn::{Linear, Lora, QkNormWidth};

/// A source of the decoder's tensors: a checkpoint on disk, or a trainer's variables.
pub trait ParameterSource {
    /// Returns the tensor with this checkpoint name.
    ///
    /// # Errors
    /// Errors if there is none, or if it has another shape.
    fn tensor(&mut self, name: &str, shape: &[usize]) -> Result<Tensor, ModelError>;

    /// Returns the linear layer at `path` (its tensor names without `.weight` and `.bias`).
    ///
    /// # Errors
    /// Same as [`Self::tensor`].
    fn linear(&mut self, path: &str, shape: [usize; 2], bias: bool) -> Result<Linear, ModelError> {
        let weight = self.tensor(&format!("{path}.weight"), &shape)?;
        let bias = match bias {
            true => Some(self.tensor(&format!("{path}.bias"), &shape[..1])?),
            false => None,
        };
        Ok(Linear::plain(weight, bias, self.lora(path)?))
    }

    /// Returns the embedding of a model whose head is another matrix: only rows of it are looked up.
    ///
    /// # Errors
    /// Same as [`Self::tensor`].
    fn embedding(&mut self, shape: [usize; 2]) -> Result<Linear, ModelError> {
        Ok(Linear::plain(self.tensor(EMBEDDING, &shape)?, None, None))
    }

    /// Returns the adapter of the linear layer at `path`, if it has one.
    fn lora(&mut self, path: &str) -> Result<Option<Lora>, ModelError> {
        let _ = path;
        Ok(None)
    }
}

impl DecoderSpec {
    /// Returns the shape `[out, in]` of every linear layer of a block that an adapter may change, with its path within the block: all but
    /// those of experts and their router.
    pub fn block_linears(&self, layer: usize) -> Vec<(&'static str, [usize; 2])> {
        let mut linears = self.dense_linears();
        if self.experts_of(layer).is_some() {
            linears.retain(|(path, _)| path.starts_with("self_attn."));
        }
        linears
    }

    /// Returns the full path (`model.layers.0.mlp.up_proj`) and the shape of every such layer of the model, in its order.
    pub fn linears(&self) -> impl Iterator<Item = (String, [usize; 2])> + '_ {
        (0..self.num_layers()).flat_map(|layer| {
            let linears = self.block_linears(layer).into_iter();
            linears.map(move |(path, shape)| (format!("model.layers.{layer}.{path}"), shape))
        })
    }

    /// Returns the linear layers of a block without experts.
    fn dense_linears(&self) -> Vec<(&'static str, [usize; 2])> {
        let (hidden, ffn) = (self.hidden_size, self.intermediate_size);
        let (q, kv) = (
            self.num_heads * self.head_dim,
            self.num_kv_heads * self.head_dim,
        );
        if self.fused_projections {
            return vec![
                ("self_attn.qkv_proj", [q + 2 * kv, hidden]),
                ("self_attn.o_proj", [hidden, q]),
                ("mlp.gate_up_proj", [2 * ffn, hidden]),
                ("mlp.down_proj", [hidden, ffn]),
            ];
        }
        vec![
            ("self_attn.q_proj", [q, hidden]),
            ("self_attn.k_proj", [kv, hidden]),
            ("self_attn.v_proj", [kv, hidden]),
            ("self_attn.o_proj", [hidden, q]),
            ("mlp.gate_proj", [ffn, hidden]),
            ("mlp.up_proj", [ffn, hidden]),
            ("mlp.down_proj", [hidden, ffn]),
        ]
    }

    /// Returns the name of the output layer's matrix, which may be the embedding.
    pub fn head_name(&self) -> &'static str {
        match self.tie_word_embeddings {
            true => EMBEDDING,
            false => HEAD,
        }
    }

    /// Returns every tensor name of the model with its shape, in the order of the forward pass.
    pub fn parameters(&self) -> Vec<(String, Vec<usize>)> {
        let hidden = self.hidden_size;
        let mut list = vec![(EMBEDDING.to_owned(), vec![self.vocab_size, hidden])];
        for layer in 0..self.num_layers() {
            let mut add = |name: &str, shape: Vec<usize>| {
                list.push((format!("model.layers.{layer}.{name}"), shape));
            };
            let norms = self.norms.names();
            for name in [norms.before_attention, norms.after_attention]
                .into_iter()
                .flatten()
            {
                add(&format!("{name}.weight"), vec![hidden]);
            }
            for (path, shape) in self.block_linears(layer) {
                add(&format!("{path}.weight"), shape.to_vec());
                if self.has_bias(path) {
                    add(&format!("{path}.bias"), vec![shape[0]]);
                }
            }
            if let Some(experts) = self.experts_of(layer) {
                let router = format!("{}.weight", ExpertsSpec::ROUTER);
                add(&router, experts.router(hidden).to_vec());
                let of_all = (0..experts.count).flat_map(|number| experts.linears(number, hidden));
                for (path, shape) in of_all {
                    add(&format!("{path}.weight"), shape.to_vec());
                }
            }
            if let Some([q, k]) = self.qk_norm_sizes() {
                add("self_attn.q_norm.weight", vec![q]);
                add("self_attn.k_norm.weight", vec![k]);
            }
            for name in [norms.before_mlp, norms.after_mlp].into_iter().flatten() {
                add(&format!("{name}.weight"), vec![hidden]);
            }
        }
        list.push(("model.norm.weight".to_owned(), vec![hidden]));
        if !self.tie_word_embeddings {
            list.push((HEAD.to_owned(), vec![self.vocab_size, hidden]));
        }
        list
    }

    /// Returns the sizes of the norms of queries and keys, if there are any.
    pub(super) fn qk_norm_sizes(&self) -> Option<[usize; 2]> {
        let heads = match self.qk_norm? {
            QkNormWidth::Head => [1, 1],
            QkNormWidth::Projection => [self.num_heads, self.num_kv_heads],
        };
        Some(heads.map(|heads| heads * self.head_dim))
    }

    /// Returns the shape `[out, in]` of the linear layer at this full path (`model.layers.0.mlp.up_proj`), if there is one.
    pub fn linear_shape(&self, path: &str) -> Option<[usize; 2]> {
        Some(self.linear_at(path)?.1)
    }

    /// Returns the place of the linear layer at this full path: a number of its own, below [`Self::num_places`].
    pub fn linear_place(&self, path: &str) -> Option<usize> {
        Some(self.linear_at(path)?.0)
    }

    fn linear_at(&self, path: &str) -> Option<(usize, [usize; 2])> {
        let (layer, within) = path.strip_prefix("model.layers.")?.split_once('.')?;
        let layer = layer
            .parse::<usize>()
            .ok()
            .filter(|&layer| layer < self.num_layers())?;
        let linears = self.block_linears(layer);
        let at = linears.iter().position(|(name, _)| *name == within)?;
        Some((layer * self.dense_linears().len() + at, linears[at].1))
    }

    /// Returns the number of places of linear layers; a block with experts leaves some empty.
    pub fn num_places(&self) -> usize {
        self.num_layers() * self.dense_linears().len()
    }

    /// Returns whether the linear layer at this path within a block has a bias.
    pub fn has_bias(&self, path: &str) -> bool {
        match path {
            "self_attn.o_proj" => self.o_bias,
            _ if path.starts_with("self_attn.") => self.qkv_bias,
            _ => self.mlp_bias,
        }
    }

    /// Returns the number of parameters of the model.
    pub fn num_parameters(&self) -> usize {
        self.parameters()
            .iter()
            .map(|(_, shape)| shape.iter().product::<usize>())
            .sum()
    }
}

/// Returns random weights: normal with standard deviation 0.02, projections that write to the residual stream divided
/// by `sqrt(2 layers)` (GPT-2), norms neutral, biases 0. They are a function of the seed alone.
pub fn random_parameters(
    spec: &DecoderSpec,
    seed: u64,
) -> Result<Vec<(String, Tensor)>, ModelError> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let residual = 1.0 / (2.0 * spec.num_layers() as f64).sqrt();
    spec.parameters()
        .into_iter()
        .map(|(name, shape)| {
            let count = shape.iter().product::<usize>();
            let values = if name.ends_with(".bias") {
                vec![0f32; count]
            } else if shape.len() == 1 {
                vec![if spec.norms_around_one { 0.0 } else { 1f32 }; count]
            } else {
                let writes_residual =
                    name.ends_with("o_proj.weight") || name.ends_with("down_proj.weight");
                let deviation = 0.02 * if writes_residual { residual } else { 1.0 };
                (0..count)
                    .map(|_| (normal(&mut rng) * deviation) as f32)
                    .collect()
            };
            let tensor = Tensor::from_vec(values, shape, &Device::Cpu)?;
            Ok((name, tensor))
        })
        .collect()
}

/// Returns one standard normal draw (Box-Muller, one of the pair).
fn normal(rng: &mut ChaCha8Rng) -> f64 {
    let (u, v): (f64, f64) = (rng.random(), rng.random());
    (-2.0 * (1.0 - u).ln()).sqrt() * (std::f64::consts::TAU * v).cos()
}
