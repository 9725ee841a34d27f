//! A linear layer: a plain weight that can be trained, or one packed for serving; with an optional low-rank adapter.

use std::sync::Arc;

use candle_core::{Result, Tensor};

use crate::kernels::linear::{PackedLinear, linear};

/// `y = x W^T + b`, plus `scale * (x A^T) B^T` where an adapter is attached (Hu et al. 2021).
///
/// # Shapes
/// `x` is `[rows, in]`, `weight` `[out, in]`, `bias` `[out]`, `A` `[r, in]`, `B` `[out, r]`.
#[derive(Debug, Clone)]
pub struct Linear {
    weight: Weight,
    lora: Option<Lora>,
}

#[derive(Debug, Clone)]
enum Weight {
    /// Differentiable, on any device.
    Plain {
        weight: Tensor,
        bias: Option<Tensor>,
    },
    /// Packed once at load, bias included; CPU, no gradient.
    Packed(Arc<PackedLinear>),
}

/// A low-rank update of one linear layer.
#[derive(Debug, Clone)]
pub struct Lora {
    pub a: Tensor,
    pub b: Tensor,
    pub scale: f64,
}

impl Linear {
    pub fn plain(weight: Tensor, bias: Option<Tensor>, lora: Option<Lora>) -> Self {
        Self {
            weight: Weight::Plain { weight, bias },
            lora,
        }
    }

    pub fn packed(packed: PackedLinear, lora: Option<Lora>) -> Self {
        Self {
            weight: Weight::Packed(Arc::new(packed)),
            lora,
        }
    }

    /// The weight as a tensor, where it is one.
    pub fn plain_weight(&self) -> Option<&Tensor> {
        match &self.weight {
            Weight::Plain { weight, .. } => Some(weight),
            Weight::Packed(_) => None,
        }
    }

    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let y = match &self.weight {
            Weight::Plain { weight, bias } => linear(x, weight, bias.as_ref())?,
            Weight::Packed(packed) => {
                if x.track_op() {
                    candle_core::bail!("a packed weight has no gradient: train the plain model");
                }
                packed.apply(x)?
            }
        };
        match &self.lora {
            None => Ok(y),
            Some(Lora { a, b, scale }) => y + (linear(&linear(x, a, None)?, b, None)? * *scale)?,
        }
    }
}
