//! Root-mean-square layer norm: `y = x / sqrt(mean(x^2) + eps) * weight` (Zhang and Sennrich 2019).
//!
//! # Shapes
//! `x` is `[.., d]`, `weight` is `[d]`; the norm is over the last axis.

use candle_core::{CpuStorage, CustomOp2, D, DType, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::cpu::{LANES, ROW_CHUNK, dot, multiversioned};
use super::{Backward, fused, input, with_all_f32};
use crate::device::team;

/// Computes the norm, with the fused version where [`fused`] allows it.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    if fused(&[x, weight], Backward::Own) {
        let op = RmsNorm { eps: eps as f32 };
        return x.contiguous()?.apply_op2(&weight.contiguous()?, op);
    }
    plain(x, weight, eps)
}

/// Returns `sum = x + residual` and its norm, as `(sum, normed)`: the pair of ops in the middle of every block.
///
/// In the fused version a row is still in the first-level cache when it is scaled, and the sum is not read back from
/// memory.
pub fn add_rms_norm(
    x: &Tensor,
    residual: &Tensor,
    weight: &Tensor,
    eps: f64,
) -> Result<(Tensor, Tensor)> {
    if fused(&[x, residual, weight], Backward::None) {
        return add_rms_norm_fused(x, residual, weight, eps as f32);
    }
    // A custom op can give autograd only one output. The sum needs no op of its own for its gradient, and the
    // norm has one.
    let sum = (x + residual)?;
    let normed = rms_norm(&sum, weight, eps)?;
    Ok((sum, normed))
}

/// Computes the norm from differentiable candle ops, in f32 for every dtype, as transformers does. A weight in f32 is also applied in
/// f32, one in the dtype of `x` after the rounding to it.
pub fn plain(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    let dtype = x.dtype();
    let x = x.to_dtype(DType::F32)?;
    let mean_square = x.sqr()?.mean_keepdim(D::Minus1)?;
    let normed = x.broadcast_div(&(mean_square + eps)?.sqrt()?)?;
    match weight.dtype() {
        DType::F32 => normed.broadcast_mul(weight)?.to_dtype(dtype),
        _ => normed.to_dtype(dtype)?.broadcast_mul(weight),
    }
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
    /// Computes the sum and its norm. The additions and their order are those of [`forward_rows`] over the sum, so the bits are the same.
    fn add_forward_rows(x: &[f32], residual: &[f32], weight: &[f32], eps: f32, sum: &mut [f32], y: &mut [f32]) {
        let d = weight.len();
        let rows = x.chunks_exact(d).zip(residual.chunks_exact(d));
        for ((x, residual), (sum, y)) in rows.zip(sum.chunks_exact_mut(d).zip(y.chunks_exact_mut(d))) {
            let ((x, x_tail), (residual, residual_tail)) = (x.as_chunks::<LANES>(), residual.as_chunks::<LANES>());
            let (chunks, sum_tail) = sum.as_chunks_mut::<LANES>();
            let mut squares = [0f32; LANES];
            for ((x, residual), sum) in x.iter().zip(residual).zip(chunks) {
                for lane in 0..LANES {
                    sum[lane] = x[lane] + residual[lane];
                    squares[lane] = sum[lane].mul_add(sum[lane], squares[lane]);
                }
            }
            let mut tail = 0f32;
            for ((x, residual), sum) in x_tail.iter().zip(residual_tail).zip(sum_tail) {
                *sum = x + residual;
                tail += *sum * *sum;
            }
            let mean_square = (squares.iter().sum::<f32>() + tail) / d as f32;
            let scale = 1.0 / (mean_square + eps).sqrt();
            for i in 0..d {
                y[i] = sum[i] * scale * weight[i];
            }
        }
    }
}

fn add_rms_norm_fused(
    x: &Tensor,
    residual: &Tensor,
    weight: &Tensor,
    eps: f32,
) -> Result<(Tensor, Tensor)> {
    let (shape, d) = (x.shape(), weight.elem_count());
    if residual.shape() != shape || weight.dims() != [d] || shape.dims().last() != Some(&d) {
        candle_core::bail!(
            "add_rms_norm: x {shape:?}, residual {:?} and weight {:?} do not fit",
            residual.shape(),
            weight.shape()
        );
    }
    let mut sum = vec![0f32; x.elem_count()];
    let mut y = vec![0f32; x.elem_count()];
    let (x, residual, weight) = (
        x.contiguous()?,
        residual.contiguous()?,
        weight.contiguous()?,
    );
    with_all_f32([&x, &residual, &weight], |[x, residual, w]| {
        let chunk = ROW_CHUNK * d;
        let parts = sum
            .chunks_mut(chunk)
            .zip(y.chunks_mut(chunk))
            .zip(x.chunks(chunk).zip(residual.chunks(chunk)));
        team::each(parts, |((sum, y), (x, residual))| {
            add_forward_rows(x, residual, w, eps, sum, y);
        });
    })?;
    Ok((
        Tensor::from_vec(sum, shape, x.device())?,
        Tensor::from_vec(y, shape, x.device())?,
    ))
}

multiversioned! {
    /// Computes `dx = r (g w - x r^2 mean(g w x))` and `dw += g x r`, where r is the reciprocal root mean square.
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
        let parts = y.chunks_mut(chunk).zip(x.chunks(chunk));
        team::each(parts, |(y, x)| forward_rows(x, w, self.eps, y));
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
        let (dx, dw) = with_all_f32([x, weight, &grad], |[x, w, g]| {
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
        })?;
        Ok((
            Some(Tensor::from_vec(dx, x.shape(), x.device())?),
            Some(Tensor::from_vec(dw, weight.shape(), weight.device())?),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_same_gradients, max_difference, random};

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

    const SHAPES: [(usize, usize); 7] = [
        (1, 1),
        (3, 7),
        (2, 32),
        (70, 64),
        (129, 33),
        (5, 192),
        (65, 95),
    ];

    fn bits(t: &Tensor) -> Result<Vec<u32>> {
        let values: Vec<f32> = t.flatten_all()?.to_vec1()?;
        Ok(values.into_iter().map(f32::to_bits).collect())
    }

    #[test]
    fn the_sum_and_its_norm_are_the_two_ops_bit_by_bit() -> Result<()> {
        for (rows, d) in SHAPES {
            let (x, residual) = (random(&[rows, d], 1), random(&[rows, d], 2));
            let w = random(&[d], 3);
            let (sum, normed) = add_rms_norm(&x, &residual, &w, 1e-5)?;
            let want = (&x + &residual)?;
            assert_eq!(bits(&sum)?, bits(&want)?, "{rows}x{d}");
            assert_eq!(
                bits(&normed)?,
                bits(&rms_norm(&want, &w, 1e-5)?)?,
                "{rows}x{d}"
            );
            let difference = max_difference(&normed, &plain(&want, &w, 1e-5)?)?;
            assert!(difference < 1e-5, "{rows}x{d}: {difference}");
            // A strided input gives the same result as its contiguous copy.
            let strided = x.t()?.contiguous()?.t()?;
            let again = add_rms_norm(&strided, &residual, &w, 1e-5)?;
            assert_eq!(bits(&again.1)?, bits(&normed)?);
        }
        Ok(())
    }

    #[test]
    fn a_row_is_the_same_bits_among_any_others() -> Result<()> {
        let (rows, d) = (130, 95);
        let (x, residual, w) = (
            random(&[rows, d], 1),
            random(&[rows, d], 2),
            random(&[d], 3),
        );
        let (sum, normed) = add_rms_norm(&x, &residual, &w, 1e-5)?;
        for (start, some) in [(0, 1), (63, 2), (129, 1), (1, 100)] {
            let part = |t: &Tensor| t.narrow(0, start, some);
            let (s, n) = add_rms_norm(&part(&x)?, &part(&residual)?, &w, 1e-5)?;
            assert_eq!(bits(&s)?, bits(&part(&sum)?)?);
            assert_eq!(bits(&n)?, bits(&part(&normed)?)?);
        }
        Ok(())
    }

    #[test]
    fn gradients_flow_through_the_sum_and_its_norm() -> Result<()> {
        for (rows, d) in SHAPES {
            let (x, residual) = (random(&[rows, d], 1), random(&[rows, d], 2));
            let w = random(&[d], 3);
            assert_same_gradients(
                &[&x, &residual, &w],
                |t| {
                    let (sum, normed) = add_rms_norm(&t[0], &t[1], &t[2], 1e-5)?;
                    sum * normed
                },
                |t| {
                    let sum = (&t[0] + &t[1])?;
                    &sum * plain(&sum, &t[2], 1e-5)?
                },
                1e-5,
            )?;
        }
        Ok(())
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let (x, w) = (random(&[4, 6], 1), random(&[6], 2));
        assert!(add_rms_norm(&x, &random(&[3, 6], 3), &w, 1e-5).is_err());
        assert!(add_rms_norm(&x, &x, &random(&[4], 3), 1e-5).is_err());
    }
}
