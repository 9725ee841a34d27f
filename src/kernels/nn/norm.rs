//! Root-mean-square norm as a layer.

use candle_core::{DType, Result, Tensor};

use crate::rms_norm::{add_rms_norm, rms_norm};

/// The norm over the last axis; see [`crate::rms_norm`].
#[derive(Debug, Clone)]
pub struct RmsNorm {
    weight: Tensor,
    /// Whether 1 is added to the weight at each use: to a trained one, whose values change.
    around_one: bool,
    eps: f64,
}

impl RmsNorm {
    pub fn new(weight: Tensor, eps: f64) -> Self {
        Self {
            weight,
            around_one: false,
            eps,
        }
    }

    /// Returns the norm whose weight is `1 + difference` (Gemma), in f32.
    ///
    /// # Errors
    /// Those of candle.
    pub fn around_one(difference: Tensor, eps: f64) -> Result<Self> {
        let around_one = difference.track_op();
        let weight = match around_one {
            true => difference,
            false => one_more(&difference)?,
        };
        Ok(Self {
            weight,
            around_one,
            eps,
        })
    }

    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        rms_norm(x, &self.weight()?, self.eps)
    }

    /// Returns `x + residual` and the norm of that sum.
    pub fn forward_sum(&self, x: &Tensor, residual: &Tensor) -> Result<(Tensor, Tensor)> {
        add_rms_norm(x, residual, &self.weight()?, self.eps)
    }

    fn weight(&self) -> Result<Tensor> {
        match self.around_one {
            true => one_more(&self.weight),
            false => Ok(self.weight.clone()),
        }
    }
}

fn one_more(difference: &Tensor) -> Result<Tensor> {
    difference.to_dtype(DType::F32)? + 1.0
}

#[cfg(test)]
mod tests {
    use candle_core::Var;

    use super::*;
    use crate::testing::{max_difference, random};

    #[test]
    fn a_weight_around_one_is_used_and_trained_as_a_difference() -> Result<()> {
        let (x, difference) = (random(&[5, 7], 1), random(&[7], 2));
        let want = rms_norm(&x, &(&difference + 1.0)?, 1e-6)?;
        let frozen = RmsNorm::around_one(difference.clone(), 1e-6)?;
        assert_eq!(max_difference(&frozen.forward(&x)?, &want)?, 0.0);
        let var = Var::from_tensor(&difference)?;
        let trained = RmsNorm::around_one(var.as_tensor().clone(), 1e-6)?;
        let y = trained.forward(&x)?;
        assert_eq!(max_difference(&y, &want)?, 0.0);
        assert!(y.sum_all()?.backward()?.get(&var).is_some());
        // The next step sees the value that an optimizer writes.
        var.set(&var.zeros_like()?)?;
        let one = rms_norm(&x, &difference.ones_like()?, 1e-6)?;
        assert_eq!(max_difference(&trained.forward(&x)?, &one)?, 0.0);
        Ok(())
    }
}
