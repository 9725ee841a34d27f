//! The gated feed-forward block.

use candle_core::{Result, Tensor};

use super::{AdaptedRows, Joint, Linear};
use crate::glu::{Activation, glu_into};

/// The block `down(act(gate(x)) * up(x))`.
#[derive(Debug, Clone)]
pub struct Mlp {
    pub gate_up: Joint<2>,
    pub down: Linear,
    pub activation: Activation,
}

impl Mlp {
    /// Returns whether this many rows use the whole device, rather than one thread of a CPU.
    pub fn spreads(&self, rows: usize) -> bool {
        self.gate_up.spreads(rows)
    }

    /// Returns its linear layers.
    pub fn linears(&self) -> impl Iterator<Item = &Linear> {
        self.gate_up.linears().iter().chain([&self.down])
    }

    pub fn forward(&self, x: &Tensor, adapted: &[AdaptedRows<'_>]) -> Result<Tensor> {
        let [gate, up] = self.gate_up.forward(x, adapted)?;
        let gated = glu_into(self.activation, gate, &up)?;
        self.down.forward(&gated, adapted)
    }
}
