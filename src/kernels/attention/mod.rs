//! Attention: over packed sequences with a backward (training), and over the paged cache (serving).

mod dense;
mod dense_sequence;
mod metadata;
mod paged;
mod paged_cpu;
mod paged_tile;

pub use dense::{branched_attention, dense_attention, plain as dense_plain};
pub use metadata::{AttentionMetadata, MetadataError};
pub use paged::{paged_attention, plain as paged_plain};

/// What an attention layer is configured with.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttentionParams {
    /// Multiplies the scores, usually `1 / sqrt(head_dim)`.
    pub scale: f32,
    /// A token sees itself and the `window - 1` before it; `None` sees all before it.
    pub window: Option<usize>,
}

impl AttentionParams {
    /// The first position the token at `position` sees.
    #[inline(always)]
    pub fn first_visible(&self, position: usize) -> usize {
        match self.window {
            Some(window) => (position + 1).saturating_sub(window),
            None => 0,
        }
    }
}
