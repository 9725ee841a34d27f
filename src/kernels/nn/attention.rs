//! The attention block: projections, optional q/k norm, rotation, and the attention backend of the caller's choice.

use std::ops::Range;

use candle_core::{Result, Tensor};

use super::{AdaptedRows, Joint, Linear, RmsNorm};
use crate::attention::{
    AttentionMetadata, AttentionParams, branched_attention, dense_attention, paged_attention,
};
use crate::kv_store::{KvCache, kv_store};
use crate::rope::rope;

/// The source of keys and values: chosen by the caller, never by the model.
pub enum AttentionBackend<'a> {
    /// Packed sequences attend to themselves; differentiable. Sequence `s` is rows `cu_seqlens[s]..cu_seqlens[s + 1]`.
    Dense { cu_seqlens: &'a [u32] },
    /// Works as `Dense`, but sequence `s` continues the rows `prefixes[s]` (an empty range for none): sequences with a
    /// common prefix hold it once. Differentiable.
    Branched {
        cu_seqlens: &'a [u32],
        prefixes: &'a [Range<u32>],
    },
    /// New tokens attend to the paged cache of their layer, after their own keys and values are stored in it.
    Paged {
        /// One cache per layer.
        caches: &'a [KvCache],
        metadata: &'a AttentionMetadata,
    },
}

/// cos and sin of each packed token, `[tokens, rotated components / 2]`.
#[derive(Debug, Clone)]
pub struct Rotation {
    pub cos: Tensor,
    pub sin: Tensor,
}

/// The rotations of a model's layers; a layer uses one of them.
pub type Rotations = Vec<Rotation>;

/// The part of a projection over which queries and keys are normalised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QkNormWidth {
    /// Each head alone (Qwen3, Gemma 3).
    Head,
    /// All heads together (OLMo 2).
    Projection,
}

/// The norms of queries and keys, before the rotation.
#[derive(Debug, Clone)]
pub struct QkNorm {
    pub q: RmsNorm,
    pub k: RmsNorm,
    pub width: QkNormWidth,
}

/// The row ranges that are computed with adapters: ranges of all tokens, and of the rows of the result.
#[derive(Debug, Clone, Copy, Default)]
pub struct Adapted<'a> {
    pub tokens: &'a [AdaptedRows<'a>],
    pub rows: &'a [AdaptedRows<'a>],
}

/// Self-attention of one layer.
#[derive(Debug, Clone)]
pub struct Attention {
    /// The index of this layer's cache.
    pub layer: usize,
    pub qkv: Joint<3>,
    pub o: Linear,
    pub qk_norm: Option<QkNorm>,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    /// The index of the layer's rotation among the model's [`Rotations`]; SmolLM3 omits the rotation in some layers.
    pub rotation: Option<usize>,
    pub params: AttentionParams,
}

impl Attention {
    /// Returns its linear layers.
    pub fn linears(&self) -> impl Iterator<Item = &Linear> {
        self.qkv.linears().iter().chain([&self.o])
    }

    /// Computes `[tokens, hidden]` from `x` of the same shape; with `rows` (u32, `[n]`) only those rows of it, `[n, hidden]`.
    pub fn forward(
        &self,
        x: &Tensor,
        rows: Option<&Tensor>,
        rotations: &[Rotation],
        backend: &AttentionBackend<'_>,
        adapted: Adapted<'_>,
    ) -> Result<Tensor> {
        let tokens = x.dim(0)?;
        let heads = |t: Tensor, n: usize| t.reshape((tokens, n, self.head_dim));
        let [mut q, mut k, v] = self.qkv.forward(x, adapted.tokens)?;
        let norm_of = |width| self.qk_norm.as_ref().filter(|norm| norm.width == width);
        if let Some(norm) = norm_of(QkNormWidth::Projection) {
            (q, k) = (norm.q.forward(&q)?, norm.k.forward(&k)?);
        }
        (q, k) = (heads(q, self.heads)?, heads(k, self.kv_heads)?);
        let v = heads(v, self.kv_heads)?;
        if let Some(norm) = norm_of(QkNormWidth::Head) {
            (q, k) = (norm.q.forward(&q)?, norm.k.forward(&k)?);
        }
        if let Some(rotation) = self.rotation {
            let Rotation { cos, sin } = &rotations[rotation];
            (q, k) = (rope(&q, cos, sin)?, rope(&k, cos, sin)?);
        }
        let params = self.params;
        let attended = match backend {
            AttentionBackend::Dense { cu_seqlens } => {
                dense_attention(&q, &k, &v, cu_seqlens, params)?
            }
            AttentionBackend::Branched {
                cu_seqlens,
                prefixes,
            } => branched_attention(&q, &k, &v, cu_seqlens, prefixes, params)?,
            AttentionBackend::Paged { caches, metadata } => {
                let cache = &caches[self.layer];
                kv_store(cache, &k, &v, metadata.slot_mapping())?;
                paged_attention(&q, cache, metadata, params)?
            }
        };
        let attended = attended.reshape((tokens, self.heads * self.head_dim))?;
        match rows {
            Some(rows) => {
                let attended = attended.index_select(rows, 0)?;
                self.o.forward(&attended, adapted.rows)
            }
            None => self.o.forward(&attended, adapted.rows),
        }
    }
}
