//! Root-mean-square layer norm: `y = x / sqrt(mean(x^2) + eps) * weight` (Zhang and Sennrich 2019).
//!
//! # Shapes
//! `x` is `[.., d]`, `weight` is `[d]`; the norm is over the last axis.

use candle_core::{CpuStorage, CustomOp2, D, DType, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::cpu::{ROW_CHUNK, dot, multiversioned};
use super::{Backward, fused, input, with_f32};

/// The norm, fused where it can be.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    if fused(&[x, weight], Backward::Own) {
        let op = RmsNorm { eps: eps as f32 };
        return x.contiguous()?.apply_op2(&weight.contiguous()?, op);
    }
    plain(x, weight, eps)
}

/// `sum = x + residual` and its norm, the pair every block boundary needs.
pub fn add_rms_norm(
    x: &Tensor,
    residual: &Tensor,
    weight: &Tensor,
    eps: f64,
) -> Result<(Tensor, Tensor)> {
    let sum = (x + residual)?;
    Ok((rms_norm(&sum, weight, eps)?, sum))
}

/// Composed from differentiable candle ops; f32 inside whatever the dtype, as transformers does.
pub fn plain(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    let dtype = x.dtype();
    let x = x.to_dtype(DType::F32)?;
    let mean_square = x.sqr()?.mean_keepdim(D::Minus1)?;
    let normed = x.broadcast_div(&(mean_square + eps)?.sqrt()?)?;
    normed.to_dtype(dtype)?.broadcast_mul(weight)
}

struct RmsNorm {
    eps: f32,
}

multiversioned! {
    fn forward_rows(x: &[f32], weight: &[f32], eps: f32, y: &mut [f32]) {
        let d = weight.len();
        for (x, y) in x.chunks_exact(d).zip(y.chunks_exact_mut(d)) {
            let scale = 1.0 / (dot(x, x) / d as f32 + eps).sqrt();
            for i in 0..d {
                y[i] = x[i] * scale * weight[i];
            }
        }
    }
}

multiversioned! {
    /// `dx = r (g w - x r^2 mean(g w x))` and `dw += g x r`, r the reciprocal root mean square.
    fn backward_rows(x: &[f32], weight: &[f32], grad: &[f32], eps: f32, dx: &mut [f32], dw: &mut [f32]) {
        let d = weight.len();
        for ((x, g), dx) in x.chunks_exact(d).zip(grad.chunks_exact(d)).zip(dx.chunks_exact_mut(d)) {
            let r = 1.0 / (dot(x, x) / d as f32 + eps).sqrt();
            for i in 0..d {
                dx[i] = g[i] * weight[i];
                dw[i] += g[i] * x[i] * r;
            }
            let c = dot(dx, x) * r * r / d as f32;
            for i in 0..d {
                dx[i] = r * (dx[i] - x[i] * c);
            }
        }
    }
}

impl CustomOp2 for RmsNorm {
    fn name(&self) -> &'static str {
        "rms-norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        lx: &Layout,
        w: &CpuStorage,
        lw: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (x, w) = (input(x, lx)?, input(w, lw)?);
        if x.len() % w.len() != 0 || lx.dims().last() != Some(&w.len()) {
            candle_core::bail!("rms_norm: x {:?} does not end in {}", lx.dims(), w.len());
        }
        let mut y = vec![0f32; x.len()];
        let chunk = ROW_CHUNK * w.len();
        y.par_chunks_mut(chunk)
            .zip(x.par_chunks(chunk))
            .for_each(|(y, x)| forward_rows(x, w, self.eps, y));
        Ok((CpuStorage::F32(y), lx.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        _y: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        let (dx, dw) = with_f32(x, |x| {
            with_f32(weight, |w| {
                with_f32(&grad, |g| {
                    let chunk = ROW_CHUNK * w.len();
                    let mut dx = vec![0f32; x.len()];
                    let partial: Vec<Vec<f32>> = dx
                        .par_chunks_mut(chunk)
                        .zip(x.par_chunks(chunk))
                        .zip(g.par_chunks(chunk))
                        .map(|((dx, x), g)| {
                            let mut dw = vec![0f32; w.len()];
                            backward_rows(x, w, g, self.eps, dx, &mut dw);
                            dw
                        })
                        .collect();
                    // Summed in row order: the gradient does not depend on the thread count.
                    let mut dw = vec![0f32; w.len()];
                    for part in &partial {
                        for (sum, term) in dw.iter_mut().zip(part) {
                            *sum += term;
                        }
                    }
                    (dx, dw)
                })
            })
        })???;
        Ok((
            Some(Tensor::from_vec(dx, x.shape(), x.device())?),
            Some(Tensor::from_vec(dw, weight.shape(), weight.device())?),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::testing::{assert_same_gradients, random};

    #[test]
    fn fused_equals_plain_forward_and_backward() -> Result<()> {
        for (rows, d) in [(1, 1), (3, 7), (70, 64), (129, 33), (5, 192)] {
            let x = random(&[rows, d], 1);
            let w = random(&[d], 2);
            assert_same_gradients(
                &[&x, &w],
                |t| rms_norm(&t[0], &t[1], 1e-5),
                |t| plain(&t[0], &t[1], 1e-5),
                1e-5,
            )?;
        }
        Ok(())
    }
}
