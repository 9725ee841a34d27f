//! The decoder: one implementation for every supported architecture, configured by a [`DecoderSpec`], for serving and for training.
//!
//! Tokens are packed without a batch axis: sequences lie end to end, and [`Packed`] gives the start of each and the
//! positions of its tokens. The caller chooses the attention backend.

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};

use super::block::{Block, norm, times};
use super::packed::Packed;
use super::parameters::ParameterSource;
use super::{DecoderSpec, ModelError};
use kernels::{
    logprob::Scores,
    nn::rotary::RotaryEmbedding,
    nn::{Adapted, AdaptedRows, AttentionBackend, Linear, RmsNorm, Rotation, Rotations},
    soft_cap::soft_cap,
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
    /// That of the spec's `rope`, and of its `local_rope` if there is one.
    rotaries: Arc<[RotaryEmbedding]>,
    device: Device,
}

impl Decoder {
    /// Builds the decoder from its tensors.
    ///
    /// # Errors
    /// Errors if the source has a missing tensor or one of another shape.
    pub fn new(spec: DecoderSpec, source: &mut dyn ParameterSource) -> Result<Self, ModelError> {
        let hidden = spec.hidden_size;
        let vocab_shape = [spec.vocab_size, hidden];
        let tied = spec.tie_word_embeddings;
        let embed = match tied {
            true => source.linear("model.embed_tokens", vocab_shape, false)?,
            false => source.embedding(vocab_shape)?,
        };
        let blocks = (0..spec.num_layers())
            .map(|layer| Block::new(&spec, layer, source))
            .collect::<Result<_, _>>()?;
        let last = source.tensor("model.norm.weight", &[hidden])?;
        let device = last.device().clone();
        let head = match tied {
            true => embed.clone(),
            false => source.linear("lm_head", vocab_shape, false)?,
        };
        Ok(Self {
            rotaries: [&spec.rope]
                .into_iter()
                .chain(&spec.local_rope)
                .map(RotaryEmbedding::new)
                .collect(),
            embed,
            blocks,
            norm: norm(&spec, last)?,
            spec: Arc::new(spec),
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
        self.blocks.iter().any(|block| block.spreads(tokens))
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
        let rows = self.embed.rows(ids)?.to_dtype(self.dtype())?;
        Ok(times(rows, self.spec.multipliers.embedding)?)
    }

    /// Applies one block to the residual stream: for a trainer that recomputes layers.
    ///
    /// With `rows` (u32, `[n]`), only those rows of the result are computed, which is enough for the last block.
    pub fn block(
        &self,
        layer: usize,
        x: &Tensor,
        rows: Option<&Tensor>,
        rotations: &[Rotation],
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
        let hidden = times(hidden.clone(), self.spec.multipliers.logits)?;
        let logits = self.head.forward(&hidden, &[])?.to_dtype(DType::F32)?;
        Ok(soft_cap(logits, self.spec.logits_soft_cap)?)
    }

    /// Returns the log-probability of one target per row, without the logits of all rows.
    ///
    /// # Errors
    /// Errors if the head is packed for serving: its weight is then not a tensor.
    pub fn score(&self, hidden: &Tensor, targets: &[u32]) -> Result<Scores, ModelError> {
        let hidden = times(hidden.clone(), self.spec.multipliers.logits)?;
        let scores = self
            .head
            .score(&hidden, targets, self.spec.logits_soft_cap)?;
        scores.ok_or_else(|| {
            ModelError::Input(
                "scoring needs the head of a trainer, and this model is packed for serving".into(),
            )
        })
    }

    /// Returns cos and sin of every packed token, for each kind of rotation.
    ///
    /// # Errors
    /// Errors if a sequence has no positions in the model.
    pub fn rotations(&self, packed: Packed<'_>) -> Result<Rotations, ModelError> {
        let most = self.spec.max_context();
        for (w, &len) in packed.cu_seqlens.windows(2).zip(packed.seq_lens) {
            let (new, len) = ((w[1] - w[0]) as usize, len as usize);
            if new > len || len > most {
                return Err(ModelError::Input(format!(
                    "a sequence of {len} tokens ({new} of them new) does not fit {most} positions"
                )));
            }
        }
        self.rotaries
            .iter()
            .map(|rotary| Ok(self.rotation(rotary, packed)?))
            .collect()
    }

    fn rotation(
        &self,
        rotary: &RotaryEmbedding,
        packed: Packed<'_>,
    ) -> candle_core::Result<Rotation> {
        let spec = rotary.spec();
        let (half, tokens) = (spec.dim / 2, packed.ids.len());
        let mut cos = Vec::with_capacity(tokens * half);
        let mut sin = Vec::with_capacity(tokens * half);
        let lens = packed.prompt_lens.iter().zip(packed.most_lens);
        let sequences = packed.cu_seqlens.windows(2).zip(packed.seq_lens);
        for ((w, &seq_len), (&prompt, &most)) in sequences.zip(lens) {
            let (new, len) = ((w[1] - w[0]) as usize, seq_len as usize);
            let of_call = spec.call_len(prompt as usize, most as usize);
            rotary.extend(len - new..len, of_call, &mut cos, &mut sin);
        }
        let tensor = |values| Tensor::from_vec(values, (tokens, half), &self.device);
        Ok(Rotation {
            cos: tensor(cos)?,
            sin: tensor(sin)?,
        })
    }
}
