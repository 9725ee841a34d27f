//! A frozen layer with a low-rank adapter, `y = x W^T + s (x A^T) B^T` (Hu et al. 2021), as one op.
//!
//! Composed of single ops, the adapter's part is three tensors of the layer's size (product, scaled, summed), in the
//! forward and again in the backward, all kept until then. This op adds it to the layer's product in place.
//!
//! # Shapes
//! `x` is `[rows, k]`, `weight` `[n, k]`, `a` `[r, k]`, `b` `[n, r]`, `y` `[rows, n]`.

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor};

use super::{Frozen, gemm_f32, linear};
use crate::{Backward, fused, input, with_all_f32};

/// Computes the layer and its adapter, with their own backward pass if the weight is frozen.
pub fn lora_linear(
    x: &Tensor,
    weight: &Tensor,
    a: &Tensor,
    b: &Tensor,
    scale: f64,
) -> Result<Tensor> {
    if weight.track_op() || !fused(&[x, weight, a, b], Backward::Own) {
        return plain(x, weight, a, b, scale);
    }
    lora_over(x, &Frozen::Tensor(weight.contiguous()?), a, b, scale)
}

/// Computes the layer and its adapter over a weight that is not trained, with their own backward pass.
///
/// # Errors
/// Errors if the shapes do not fit, or if a tensor is not in f32 on the CPU.
pub fn lora_over(
    x: &Tensor,
    weight: &Frozen,
    a: &Tensor,
    b: &Tensor,
    scale: f64,
) -> Result<Tensor> {
    let op = LoraLinear {
        weight: weight.clone(),
        scale: scale as f32,
        dx: x.track_op(),
    };
    x.contiguous()?
        .apply_op3(&a.contiguous()?, &b.contiguous()?, op)
}

/// Computes the same from the differentiable layer.
pub fn plain(x: &Tensor, weight: &Tensor, a: &Tensor, b: &Tensor, scale: f64) -> Result<Tensor> {
    linear(x, weight, None)? + (linear(&linear(x, a, None)?, b, None)? * scale)?
}

struct LoraLinear {
    weight: Frozen,
    scale: f32,
    dx: bool,
}

impl LoraLinear {
    /// Computes `s (x A^T)`, `[rows, r]`: little work, so the backward pass repeats it rather than keeping it.
    fn narrow(&self, x: &[f32], a: &[f32], (rows, k, r): (usize, usize, usize)) -> Vec<f32> {
        let mut u = vec![0f32; rows * r];
        gemm_f32(rows, r, k, x, (k, 1), a, (1, k), &mut u, (r, 1), false);
        u.iter_mut().for_each(|u| *u *= self.scale);
        u
    }
}

impl CustomOp3 for LoraLinear {
    fn name(&self) -> &'static str {
        "lora-linear"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        lx: &Layout,
        a: &CpuStorage,
        la: &Layout,
        b: &CpuStorage,
        lb: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let ((rows, k), (n, wk)) = (lx.shape().dims2()?, self.weight.dims()?);
        let ((r, ak), (bn, br)) = (la.shape().dims2()?, lb.shape().dims2()?);
        if (wk, ak, bn, br) != (k, k, n, r) {
            candle_core::bail!(
                "lora: x {:?} against weight [{n}, {wk}], a {:?} and b {:?}",
                lx.dims(),
                la.dims(),
                lb.dims()
            );
        }
        let (x, a, b) = (input(x, lx)?, input(a, la)?, input(b, lb)?);
        let mut y = vec![0f32; rows * n];
        self.weight.product(x, rows, &mut y)?;
        let u = self.narrow(x, a, (rows, k, r));
        gemm_f32(rows, n, r, &u, (r, 1), b, (1, r), &mut y, (n, 1), true);
        Ok((CpuStorage::F32(y), (rows, n).into()))
    }

    /// Computes, with `u = s x A^T`: `dB = dy^T u`, `du = s dy B`, `dA = du^T x`, `dx = dy W + du A`.
    fn bwd(
        &self,
        x: &Tensor,
        a: &Tensor,
        b: &Tensor,
        _y: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let ((rows, k), (n, r)) = (x.dims2()?, b.dims2()?);
        let grad = grad.contiguous()?;
        let mut da = vec![0f32; r * k];
        let mut db = vec![0f32; n * r];
        let mut dx = vec![0f32; if self.dx { rows * k } else { 0 }];
        with_all_f32([x, a, b, &grad], |[x, a, b, g]| {
            let u = self.narrow(x, a, (rows, k, r));
            gemm_f32(n, r, rows, g, (1, n), &u, (r, 1), &mut db, (r, 1), false);
            let mut du = vec![0f32; rows * r];
            gemm_f32(rows, r, n, g, (n, 1), b, (r, 1), &mut du, (r, 1), false);
            du.iter_mut().for_each(|du| *du *= self.scale);
            gemm_f32(r, k, rows, &du, (1, r), x, (k, 1), &mut da, (k, 1), false);
            if self.dx {
                self.weight.product_back(g, rows, &mut dx)?;
                gemm_f32(rows, k, r, &du, (r, 1), a, (k, 1), &mut dx, (k, 1), true);
            }
            Ok::<(), candle_core::Error>(())
        })??;
        let tensor = |values, shape: (usize, usize)| Tensor::from_vec(values, shape, x.device());
        Ok((
            self.dx.then(|| tensor(dx, (rows, k))).transpose()?,
            Some(tensor(da, (r, k))?),
            Some(tensor(db, (n, r))?),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_same_gradients, max_difference, random};
    use candle_core::Var;

    #[test]
    fn fused_equals_plain_forward_and_backward() -> Result<()> {
        for (rows, k, n, r) in [(1, 1, 1, 1), (3, 7, 5, 2), (130, 33, 65, 16)] {
            let (x, w) = (random(&[rows, k], 7), random(&[n, k], 8));
            let (a, b) = (random(&[r, k], 9), random(&[n, r], 10));
            assert_same_gradients(
                &[&x, &a, &b],
                |t| lora_linear(&t[0], &w, &t[1], &t[2], 0.7),
                |t| plain(&t[0], &w, &t[1], &t[2], 0.7),
                1e-5,
            )?;
        }
        Ok(())
    }

    #[test]
    fn an_input_that_is_not_learned_gets_no_gradient_and_a_weight_that_is_keeps_its_own()
    -> Result<()> {
        let (x, w) = (random(&[4, 3], 1), random(&[2, 3], 2));
        let (a, b) = (random(&[1, 3], 3), random(&[2, 1], 4));
        let (va, vb) = (Var::from_tensor(&a)?, Var::from_tensor(&b)?);
        let frozen = lora_linear(&x, &w, &va, &vb, 2.0)?;
        let grads = frozen.sum_all()?.backward()?;
        assert!(grads.get(&x).is_none() && grads.get(&w).is_none());
        assert!(grads.get(&va).is_some() && grads.get(&vb).is_some());
        let vw = Var::from_tensor(&w)?;
        let trained = lora_linear(&x, &vw, &va, &vb, 2.0)?;
        assert!(max_difference(&frozen, &trained)? < 1e-6);
        assert!(trained.sum_all()?.backward()?.get(&vw).is_some());
        Ok(())
    }

    #[test]
    fn shapes_that_do_not_fit_are_an_error() {
        let (x, w) = (random(&[2, 3], 1), random(&[4, 3], 2));
        for (a, b) in [([2, 4], [4, 2]), ([2, 3], [5, 2]), ([2, 3], [4, 3])] {
            assert!(lora_linear(&x, &w, &random(&a, 3), &random(&b, 4), 1.0).is_err());
        }
    }
}
