//! A linear layer, with an optional low-rank adapter beside it.

use candle_core::{Result, Tensor};

use crate::kernels::linear::linear;

/// `y = x W^T + b`, plus `scale * (x A^T) B^T` where an adapter is attached (Hu et al. 2021).
///
/// # Shapes
/// `x` is `[rows, in]`, `weight` `[out, in]`, `bias` `[out]`, `A` `[r, in]`, `B` `[out, r]`.
#[derive(Debug, Clone)]
pub struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
    lora: Option<Lora>,
}

/// A low-rank update of one linear layer.
#[derive(Debug, Clone)]
pub struct Lora {
    pub a: Tensor,
    pub b: Tensor,
    pub scale: f64,
}

impl Linear {
    pub fn new(weight: Tensor, bias: Option<Tensor>, lora: Option<Lora>) -> Self {
        Self { weight, bias, lora }
    }

    pub fn weight(&self) -> &Tensor {
        &self.weight
    }

    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let y = linear(x, &self.weight, self.bias.as_ref())?;
        match &self.lora {
            None => Ok(y),
            Some(Lora { a, b, scale }) => y + (linear(&linear(x, a, None)?, b, None)? * *scale)?,
        }
    }
}
