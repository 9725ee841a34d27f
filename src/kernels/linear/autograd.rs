//! The linear layer for training: `y = x W^T + b`, with a backward pass that computes only the required gradients.
//!
//! candle's own matmul backward computes and keeps `dW` for frozen weights too; with LoRA that is most of the memory.
//!
//! # Shapes
//! `x` is `[rows, k]`, `weight` is `[n, k]`, `bias` is `[n]`, `y` is `[rows, n]`.

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor};

use super::gemm_f32;
use crate::{Backward, fused, input, with_all_f32};

/// Computes the layer, with its own backward pass where [`fused`] allows it.
pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let y = if fused(&[x, weight], Backward::Own) {
        let op = Linear {
            dx: x.track_op(),
            dw: weight.track_op(),
        };
        x.contiguous()?.apply_op2(&weight.contiguous()?, op)?
    } else {
        plain(x, weight)?
    };
    add_bias(y, bias)
}

/// Returns `y + b`, or `y` if there is no bias.
pub fn add_bias(y: Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    match bias {
        Some(bias) => y.broadcast_add(bias),
        None => Ok(y),
    }
}

/// Computes the product from differentiable candle ops.
pub fn plain(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    x.matmul(&weight.t()?)
}

struct Linear {
    dx: bool,
    dw: bool,
}

impl CustomOp2 for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        lx: &Layout,
        w: &CpuStorage,
        lw: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let ((rows, k), (n, wk)) = (lx.shape().dims2()?, lw.shape().dims2()?);
        if k != wk {
            candle_core::bail!("linear: x {:?} against weight {:?}", lx.dims(), lw.dims());
        }
        let (x, w) = (input(x, lx)?, input(w, lw)?);
        let mut y = vec![0f32; rows * n];
        gemm_f32(rows, n, k, x, (k, 1), w, (1, k), &mut y, (n, 1), false);
        Ok((CpuStorage::F32(y), (rows, n).into()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        _y: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let ((rows, k), n) = (x.dims2()?, weight.dim(0)?);
        let grad = grad.contiguous()?;
        let dx = self
            .dx
            .then(|| -> Result<Tensor> {
                let mut dx = vec![0f32; rows * k];
                with_all_f32([&grad, weight], |[g, w]| {
                    gemm_f32(rows, k, n, g, (n, 1), w, (k, 1), &mut dx, (k, 1), false);
                })?;
                Tensor::from_vec(dx, (rows, k), x.device())
            })
            .transpose()?;
        let dw = self
            .dw
            .then(|| -> Result<Tensor> {
                let mut dw = vec![0f32; n * k];
                with_all_f32([&grad, x], |[g, x]| {
                    gemm_f32(n, k, rows, g, (1, n), x, (k, 1), &mut dw, (k, 1), false);
                })?;
                Tensor::from_vec(dw, (n, k), x.device())
            })
            .transpose()?;
        Ok((dx, dw))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_same_gradients, max_difference, random};
    use candle_core::Var;

    #[test]
    fn fused_equals_plain_forward_and_backward() -> Result<()> {
        for (rows, k, n) in [(1, 1, 1), (3, 7, 5), (130, 33, 65)] {
            let (x, w) = (random(&[rows, k], 7), random(&[n, k], 8));
            assert_same_gradients(
                &[&x, &w],
                |t| linear(&t[0], &t[1], None),
                |t| plain(&t[0], &t[1]),
                1e-5,
            )?;
        }
        Ok(())
    }

    #[test]
    fn a_frozen_weight_gets_no_gradient_and_x_still_does() -> Result<()> {
        let (x, w) = (Var::from_tensor(&random(&[4, 3], 1))?, random(&[2, 3], 2));
        let grads = linear(&x, &w, None)?.sum_all()?.backward()?;
        assert!(grads.get(&w).is_none());
        let want = w.sum(0)?.broadcast_as((4, 3))?.contiguous()?;
        assert!(max_difference(grads.get(&x).expect("x is tracked"), &want)? < 1e-6);
        Ok(())
    }

    #[test]
    fn shapes_that_do_not_fit_are_an_error() {
        assert!(linear(&random(&[2, 3], 1), &random(&[2, 4], 2), None).is_err());
    }
}
