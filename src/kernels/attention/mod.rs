//! Attention: over packed sequences with a backward pass (training), and over the paged cache (serving).

mod dense;
mod dense_op;
mod dense_sequence;
mod metadata;
mod paged;
mod paged_cpu;
mod paged_gather;
mod paged_softmax;
mod paged_tile;

pub use dense::{branched_attention, dense_attention, plain as dense_plain};
pub use metadata::{AttentionMetadata, MetadataError};
pub use paged::{paged_attention, plain as paged_plain};

/// The settings of an attention layer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttentionParams {
    /// The factor of the scores, usually `1 / sqrt(head_dim)`.
    pub scale: f32,
    /// A token attends to itself and to the `window - 1` tokens before it; with `None` to all before it.
    pub window: Option<usize>,
    /// The bound `c` of the scores: a scaled score `s` counts as `c tanh(s / c)` (Gemma 2). With `None` they have no bound.
    pub soft_cap: Option<f32>,
}

impl AttentionParams {
    /// Returns the first position to which the token at `position` attends.
    #[inline(always)]
    pub fn first_visible(&self, position: usize) -> usize {
        match self.window {
            Some(window) => (position + 1).saturating_sub(window),
            None => 0,
        }
    }
}
