//! The attention block: projections, optional q/k norm, rotation, and the attention backend of the caller's choice.

use std::ops::Range;

use candle_core::{Result, Tensor};

use super::{AdaptedRows, Linear, RmsNorm};
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

/// cos and sin of each packed token, `[tokens, head_dim / 2]`.
#[derive(Debug, Clone)]
pub struct Rotations {
    pub cos: Tensor,
    pub sin: Tensor,
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
    pub q: Linear,
    pub k: Linear,
    pub v: Linear,
    pub o: Linear,
    /// The norms of every head's queries and keys (Qwen3).
    pub qk_norm: Option<(RmsNorm, RmsNorm)>,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    /// Whether q and k are rotated; SmolLM3 omits the rotation in some layers.
    pub rotate: bool,
    pub window: Option<usize>,
}

impl Attention {
    /// Computes `[tokens, hidden]` from `x` of the same shape; with `rows` (u32, `[n]`) only those rows of it, `[n, hidden]`.
    pub fn forward(
        &self,
        x: &Tensor,
        rows: Option<&Tensor>,
        rotations: &Rotations,
        backend: &AttentionBackend<'_>,
        adapted: Adapted<'_>,
    ) -> Result<Tensor> {
        let tokens = x.dim(0)?;
        let heads = |t: Tensor, n: usize| t.reshape((tokens, n, self.head_dim));
        let [q, k, v] = Linear::forward_all([&self.q, &self.k, &self.v], x, adapted.tokens)?;
        let (mut q, mut k) = (heads(q, self.heads)?, heads(k, self.kv_heads)?);
        let v = heads(v, self.kv_heads)?;
        if let Some((q_norm, k_norm)) = &self.qk_norm {
            (q, k) = (q_norm.forward(&q)?, k_norm.forward(&k)?);
        }
        if self.rotate {
            q = rope(&q, &rotations.cos, &rotations.sin)?;
            k = rope(&k, &rotations.cos, &rotations.sin)?;
        }
        let params = AttentionParams {
            scale: 1.0 / (self.head_dim as f32).sqrt(),
            window: self.window,
        };
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
