//! Root-mean-square norm as a layer.

use candle_core::{Result, Tensor};

use crate::rms_norm::{add_rms_norm, rms_norm};

/// The norm over the last axis; see [`crate::rms_norm`].
#[derive(Debug, Clone)]
pub struct RmsNorm {
    weight: Tensor,
    eps: f64,
}

impl RmsNorm {
    pub fn new(weight: Tensor, eps: f64) -> Self {
        Self { weight, eps }
    }

    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        rms_norm(x, &self.weight, self.eps)
    }

    /// Returns `x + residual` and the norm of that sum.
    pub fn forward_sum(&self, x: &Tensor, residual: &Tensor) -> Result<(Tensor, Tensor)> {
        add_rms_norm(x, residual, &self.weight, self.eps)
    }
}
