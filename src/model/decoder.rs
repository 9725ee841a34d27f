//! The decoder: one implementation for every supported architecture, configured by a [`DecoderSpec`], for serving and for training.
//!
//! Tokens are packed without a batch axis: sequences lie end to end, and [`Packed`] gives the start of each and the
//! positions of its tokens. The caller chooses the attention backend.

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};

use super::packed::Packed;
use super::parameters::ParameterSource;
use super::{DecoderSpec, LayerSpec, ModelError};
use kernels::{
    logprob::Scores,
    nn::rotary::RotaryEmbedding,
    nn::{Adapted, AdaptedRows, Attention, AttentionBackend, Linear, Mlp, RmsNorm, Rotations},
};

/// A transformer decoder.
#[derive(Debug, Clone)]
pub struct Decoder {
    spec: Arc<DecoderSpec>,
    /// The embedding, of which only rows are looked up. If it is tied, it is also the head: one matrix in memory, in any format.
    embed: Linear,
    blocks: Vec<Block>,
    norm: RmsNorm,
    head: Linear,
    rotary: Arc<RotaryEmbedding>,
    device: Device,
}

/// One layer: attention and MLP, each preceded by a norm and added to the residual stream.
#[derive(Debug, Clone)]
struct Block {
    input_norm: RmsNorm,
    attention: Attention,
    post_norm: RmsNorm,
    mlp: Mlp,
}

impl Block {
    /// Computes the block. With `rows`, only those rows of the result are computed; keys and values are still computed from all of `x`.
    fn forward(
        &self,
        x: &Tensor,
        rows: Option<&Tensor>,
        rotations: &Rotations,
        backend: &AttentionBackend<'_>,
        adapted: Adapted<'_>,
    ) -> candle_core::Result<Tensor> {
        let normed = self.input_norm.forward(x)?;
        let attention = &self.attention;
        let attended = attention.forward(&normed, rows, rotations, backend, adapted)?;
        let x = match rows {
            Some(rows) => x.index_select(rows, 0)?,
            None => x.clone(),
        };
        let (x, normed) = self.post_norm.forward_sum(&x, &attended)?;
        let fed = self.mlp.forward(&normed, adapted.rows)?;
        x + fed
    }
}

impl Decoder {
    /// Builds the decoder from its tensors.
    ///
    /// # Errors
    /// Errors if the source has a missing tensor or one of another shape.
    pub fn new(spec: DecoderSpec, source: &mut dyn ParameterSource) -> Result<Self, ModelError> {
        let (hidden, eps) = (spec.hidden_size, spec.rms_norm_eps);
        let vocab_shape = [spec.vocab_size, hidden];
        let tied = spec.tie_word_embeddings;
        let embed = match tied {
            true => source.linear("model.embed_tokens", vocab_shape, false)?,
            false => source.embedding(vocab_shape)?,
        };
        let blocks = (0..spec.num_layers())
            .map(|layer| Block::new(&spec, layer, source))
            .collect::<Result<_, _>>()?;
        let norm = source.tensor("model.norm.weight", &[hidden])?;
        let device = norm.device().clone();
        let head = match tied {
            true => embed.clone(),
            false => source.linear("lm_head", vocab_shape, false)?,
        };
        Ok(Self {
            rotary: Arc::new(RotaryEmbedding::new(&spec.rope)),
            spec: Arc::new(spec),
            embed,
            blocks,
            norm: RmsNorm::new(norm, eps),
            head,
            device,
        })
    }

    pub fn spec(&self) -> &DecoderSpec {
        &self.spec
    }

    /// Returns the dtype of hidden states: f32 on the CPU, whatever the format of the tables; elsewhere the embedding table's.
    pub fn dtype(&self) -> DType {
        match self.device.is_cpu() {
            true => DType::F32,
            false => self.embed.dtype(),
        }
    }

    /// Returns the dtype of the weight matrices.
    pub fn weights_dtype(&self) -> DType {
        self.head.dtype()
    }

    /// Returns the type of the weight matrices, or their types with `+` between them: `bf16`, `int4+int8`.
    pub fn weights(&self) -> String {
        let mut names: Vec<&str> = self
            .blocks
            .iter()
            .flat_map(Block::linears)
            .map(Linear::kind)
            .collect();
        names.push(self.head.kind());
        names.sort_unstable();
        names.dedup();
        names.join("+")
    }

    pub fn device(&self) -> &Device {
        &self.device
    }

    pub fn num_layers(&self) -> usize {
        self.blocks.len()
    }

    /// Returns whether a step of this many tokens uses the whole device, rather than one thread of a CPU.
    pub fn spreads(&self, tokens: usize) -> bool {
        // All blocks have the same shape.
        let block = self.blocks.first();
        block.is_some_and(|block| block.mlp.spreads(tokens))
    }

    /// Returns the bytes of the weight matrices.
    pub fn bytes(&self) -> usize {
        let embed = match self.spec.tie_word_embeddings {
            true => 0,
            false => self.embed.bytes(),
        };
        let blocks: usize = self.blocks.iter().map(Block::bytes).sum();
        embed + blocks + self.head.bytes()
    }

    /// Returns the hidden states after the last norm, `[tokens, hidden]`.
    pub fn forward(
        &self,
        packed: Packed<'_>,
        backend: &AttentionBackend<'_>,
    ) -> Result<Tensor, ModelError> {
        self.run(packed, None, backend, &[])
    }

    /// Works as [`Self::forward`] for the given rows of the result only, `[rows, hidden]`: the last block computes no others.
    pub fn forward_rows(
        &self,
        packed: Packed<'_>,
        rows: &[u32],
        backend: &AttentionBackend<'_>,
    ) -> Result<Tensor, ModelError> {
        self.run(packed, Some(rows), backend, &[])
    }

    /// Works as [`Self::forward_rows`], with adapters on some tokens. `rows` are ascending, and `adapted` are ranges of the tokens.
    pub fn forward_adapted(
        &self,
        packed: Packed<'_>,
        rows: &[u32],
        backend: &AttentionBackend<'_>,
        adapted: &[AdaptedRows<'_>],
    ) -> Result<Tensor, ModelError> {
        self.run(packed, Some(rows), backend, adapted)
    }

    fn run(
        &self,
        packed: Packed<'_>,
        rows: Option<&[u32]>,
        backend: &AttentionBackend<'_>,
        adapted: &[AdaptedRows<'_>],
    ) -> Result<Tensor, ModelError> {
        let rotations = self.rotations(packed)?;
        let everywhere = Adapted {
            tokens: adapted,
            rows: adapted,
        };
        let of_rows: Vec<AdaptedRows<'_>> = adapted
            .iter()
            .map(|run| run.among(rows.unwrap_or_default()))
            .collect();
        let rows = rows
            .map(|rows| Tensor::new(rows, &self.device))
            .transpose()?;
        let mut x = self.embed(packed.ids)?;
        let last = self.blocks.len() - 1;
        for layer in 0..=last {
            let rows = rows.as_ref().filter(|_| layer == last);
            let adapted = match rows {
                Some(_) => Adapted {
                    rows: &of_rows,
                    ..everywhere
                },
                None => everywhere,
            };
            x = self.blocks[layer].forward(&x, rows, &rotations, backend, adapted)?;
        }
        self.final_norm(&x)
    }

    /// Returns the residual stream before the first block, `[tokens, hidden]`.
    pub fn embed(&self, ids: &[u32]) -> Result<Tensor, ModelError> {
        if let Some(id) = ids.iter().find(|&&id| id as usize >= self.spec.vocab_size) {
            return Err(ModelError::Input(format!(
                "token {id} is outside the vocabulary of {}",
                self.spec.vocab_size
            )));
        }
        // The CPU computes in f32 whatever the format of the table.
        Ok(self.embed.rows(ids)?.to_dtype(self.dtype())?)
    }

    /// Applies one block to the residual stream: for a trainer that recomputes layers.
    ///
    /// With `rows` (u32, `[n]`), only those rows of the result are computed, which is enough for the last block.
    pub fn block(
        &self,
        layer: usize,
        x: &Tensor,
        rows: Option<&Tensor>,
        rotations: &Rotations,
        backend: &AttentionBackend<'_>,
    ) -> Result<Tensor, ModelError> {
        let adapted = Adapted::default();
        Ok(self.blocks[layer].forward(x, rows, rotations, backend, adapted)?)
    }

    /// Applies the norm between the last block and the head.
    pub fn final_norm(&self, x: &Tensor) -> Result<Tensor, ModelError> {
        Ok(self.norm.forward(x)?)
    }

    /// Returns the logits of the given hidden states, `[rows, vocab]` in f32.
    pub fn logits(&self, hidden: &Tensor) -> Result<Tensor, ModelError> {
        Ok(self.head.forward(hidden, &[])?.to_dtype(DType::F32)?)
    }

    /// Returns the log-probability of one target per row, without the logits of all rows.
    ///
    /// # Errors
    /// Errors if the head is packed for serving: its weight is then not a tensor.
    pub fn score(&self, hidden: &Tensor, targets: &[u32]) -> Result<Scores, ModelError> {
        self.head.score(hidden, targets)?.ok_or_else(|| {
            ModelError::Input(
                "scoring needs the head of a trainer, and this model is packed for serving".into(),
            )
        })
    }

    /// Returns cos and sin of every packed token.
    pub fn rotations(&self, packed: Packed<'_>) -> Result<Rotations, ModelError> {
        let half = self.spec.rope.dim / 2;
        let tokens = packed.ids.len();
        let mut cos = Vec::with_capacity(tokens * half);
        let mut sin = Vec::with_capacity(tokens * half);
        let lens = packed.seq_lens.iter().zip(packed.prompt_lens);
        for (w, (&seq_len, &prompt_len)) in packed.cu_seqlens.windows(2).zip(lens) {
            let (new, len) = ((w[1] - w[0]) as usize, seq_len as usize);
            if new > len || len > self.spec.max_context() {
                return Err(ModelError::Input(format!(
                    "a sequence of {len} tokens ({new} of them new) does not fit {} positions",
                    self.spec.max_context()
                )));
            }
            self.rotary
                .extend(len - new..len, prompt_len as usize, &mut cos, &mut sin);
        }
        let tensor = |values| Tensor::from_vec(values, (tokens, half), &self.device);
        Ok(Rotations {
            cos: tensor(cos)?,
            sin: tensor(sin)?,
        })
    }
}

impl Block {
    fn linears(&self) -> [&Linear; 7] {
        let (attention, mlp) = (&self.attention, &self.mlp);
        let Attention { q, k, v, o, .. } = attention;
        let Mlp { gate, up, down } = mlp;
        [q, k, v, o, gate, up, down]
    }

    fn bytes(&self) -> usize {
        self.linears().map(Linear::bytes).iter().sum()
    }

    fn new(
        spec: &DecoderSpec,
        layer: usize,
        source: &mut dyn ParameterSource,
    ) -> Result<Self, ModelError> {
        let prefix = format!("model.layers.{layer}");
        let mut linears = Vec::with_capacity(7);
        for (within, shape) in spec.block_linears() {
            let path = format!("{prefix}.{within}");
            let place = spec.linear_place(&path);
            let linear = source.linear(&path, shape, spec.has_bias(within))?;
            linears.push(linear.at(place.expect("a block's layer has a place; this is a bug")));
        }
        let [q, k, v, o, gate, up, down] =
            <[Linear; 7]>::try_from(linears).expect("a block has seven linears; this is a bug");
        let mut norm = |name: &str, size: usize| -> Result<RmsNorm, ModelError> {
            let weight = source.tensor(&format!("{prefix}.{name}.weight"), &[size])?;
            Ok(RmsNorm::new(weight, spec.rms_norm_eps))
        };
        let LayerSpec {
            sliding_window,
            rope,
        } = spec.layers[layer];
        Ok(Self {
            input_norm: norm("input_layernorm", spec.hidden_size)?,
            attention: Attention {
                layer,
                q,
                k,
                v,
                o,
                qk_norm: if spec.qk_norm {
                    Some((
                        norm("self_attn.q_norm", spec.head_dim)?,
                        norm("self_attn.k_norm", spec.head_dim)?,
                    ))
                } else {
                    None
                },
                heads: spec.num_heads,
                kv_heads: spec.num_kv_heads,
                head_dim: spec.head_dim,
                rotate: rope,
                window: sliding_window,
            },
            post_norm: norm("post_attention_layernorm", spec.hidden_size)?,
            mlp: Mlp { gate, up, down },
        })
    }
}
