//! The gated feed-forward block.

use candle_core::{Result, Tensor};

use super::{AdaptedRows, Linear};
use crate::swiglu::swiglu_into;

/// The block `down(silu(gate(x)) * up(x))`.
#[derive(Debug, Clone)]
pub struct Mlp {
    pub gate: Linear,
    pub up: Linear,
    pub down: Linear,
}

impl Mlp {
    /// Returns whether this many rows use the whole device, rather than one thread of a CPU.
    pub fn spreads(&self, rows: usize) -> bool {
        Linear::spreads(&[&self.gate, &self.up], rows)
    }

    pub fn forward(&self, x: &Tensor, adapted: &[AdaptedRows<'_>]) -> Result<Tensor> {
        let [gate, up] = Linear::forward_all([&self.gate, &self.up], x, adapted)?;
        self.down.forward(&swiglu_into(gate, &up)?, adapted)
    }
}
