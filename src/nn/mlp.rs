//! The gated feed-forward block.

use candle_core::{Result, Tensor};

use super::Linear;
use crate::kernels::swiglu::swiglu;

/// `down(silu(gate(x)) * up(x))`.
#[derive(Debug, Clone)]
pub struct Mlp {
    pub gate: Linear,
    pub up: Linear,
    pub down: Linear,
}

impl Mlp {
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.down
            .forward(&swiglu(&self.gate.forward(x)?, &self.up.forward(x)?)?)
    }
}
