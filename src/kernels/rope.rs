//! Rotary position embedding in the half-split convention of Hugging Face checkpoints (Su et al. 2021).
//!
//! Pair `i` of a head is `(x[i], x[i + r/2])`, rotated by the angle of its token's position. Where `r`, the number of rotated components,
//! is below that of a head (partial rotation), the others stay as they are.
//!
//! # Shapes
//! `x` is `[tokens, heads, d]`; `cos` and `sin` are `[tokens, r/2]`, already gathered for the tokens' positions.

use candle_core::{CpuStorage, CustomOp1, D, Layout, Result, Shape, Tensor};

use super::cpu::{ROW_CHUNK, multiversioned};
use super::{Backward, fused, input, with_all_f32};
use crate::device::team;

/// Computes the rotation, with the fused version where [`fused`] allows it. `cos` and `sin` are constants: no gradient flows into them.
pub fn rope(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    if fused(&[x, cos, sin], Backward::Own) {
        return x.contiguous()?.apply_op1(Rope {
            cos: cos.detach(),
            sin: sin.detach(),
            direction: 1.0,
        });
    }
    plain(x, cos, sin)
}

/// Computes the rotation from differentiable candle ops.
pub fn plain(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    let (_, _, d) = x.dims3()?;
    let half = cos.dim(1)?;
    let (cos, sin) = (
        cos.unsqueeze(1)?.to_dtype(x.dtype())?,
        sin.unsqueeze(1)?.to_dtype(x.dtype())?,
    );
    let (first, second) = (x.narrow(2, 0, half)?, x.narrow(2, half, half)?);
    let mut parts = vec![
        (first.broadcast_mul(&cos)? - second.broadcast_mul(&sin)?)?,
        (second.broadcast_mul(&cos)? + first.broadcast_mul(&sin)?)?,
    ];
    if 2 * half < d {
        parts.push(x.narrow(2, 2 * half, d - 2 * half)?);
    }
    Tensor::cat(&parts, 2)
}

struct Rope {
    cos: Tensor,
    sin: Tensor,
    /// 1 rotates forward; -1 is the inverse, which is also the transpose, for the backward pass.
    direction: f32,
}

multiversioned! {
    fn rotate_rows(x: &[f32], cos: &[f32], sin: &[f32], half: usize, d: usize, row: usize, direction: f32, y: &mut [f32]) {
        for (t, (x, y)) in x.chunks_exact(row).zip(y.chunks_exact_mut(row)).enumerate() {
            let (cos, sin) = (&cos[t * half..][..half], &sin[t * half..][..half]);
            for (x, y) in x.chunks_exact(d).zip(y.chunks_exact_mut(d)) {
                let ((x, x_rest), (y, y_rest)) = (x.split_at(2 * half), y.split_at_mut(2 * half));
                y_rest.copy_from_slice(x_rest);
                let (x0, x1) = x.split_at(half);
                let (y0, y1) = y.split_at_mut(half);
                for i in 0..half {
                    let s = sin[i] * direction;
                    y0[i] = x0[i] * cos[i] - x1[i] * s;
                    y1[i] = x1[i] * cos[i] + x0[i] * s;
                }
            }
        }
    }
}

impl CustomOp1 for Rope {
    fn name(&self) -> &'static str {
        "rope"
    }

    fn cpu_fwd(&self, x: &CpuStorage, lx: &Layout) -> Result<(CpuStorage, Shape)> {
        let &[tokens, heads, d] = lx.dims() else {
            candle_core::bail!("rope: x {:?} is not [tokens, heads, d]", lx.dims())
        };
        let half = self.cos.dim(D::Minus1)?;
        let table = [tokens, half];
        if half == 0 || 2 * half > d || self.cos.dims() != table || self.sin.dims() != table {
            candle_core::bail!(
                "rope: x {:?} against cos {:?}, sin {:?}",
                lx.dims(),
                self.cos.dims(),
                self.sin.dims()
            );
        }
        let x = input(x, lx)?;
        let row = heads * d;
        let mut y = vec![0f32; x.len()];
        with_all_f32([&self.cos, &self.sin], |[cos, sin]| {
            let parts = y
                .chunks_mut(ROW_CHUNK * row)
                .zip(x.chunks(ROW_CHUNK * row))
                .zip(cos.chunks(ROW_CHUNK * half))
                .zip(sin.chunks(ROW_CHUNK * half));
            team::each(parts, |(((y, x), cos), sin)| {
                rotate_rows(x, cos, sin, half, d, row, self.direction, y);
            });
        })?;
        Ok((CpuStorage::F32(y), lx.shape().clone()))
    }

    fn bwd(&self, _x: &Tensor, _y: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let inverse = Rope {
            cos: self.cos.clone(),
            sin: self.sin.clone(),
            direction: -self.direction,
        };
        Ok(Some(grad.contiguous()?.apply_op1_no_bwd(&inverse)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_same_gradients, max_difference, random};

    #[test]
    fn fused_equals_plain_forward_and_backward() -> Result<()> {
        for (tokens, heads, d, rotated) in [
            (1, 1, 2, 2),
            (5, 3, 24, 24),
            (130, 2, 32, 32),
            (1, 1, 3, 2),
            (5, 3, 24, 18),
            (130, 2, 33, 2),
        ] {
            let x = random(&[tokens, heads, d], 5);
            let angle = random(&[tokens, rotated / 2], 6);
            let (cos, sin) = (angle.cos()?, angle.sin()?);
            assert_same_gradients(
                &[&x],
                |t| rope(&t[0], &cos, &sin),
                |t| plain(&t[0], &cos, &sin),
                1e-5,
            )?;
            let rest = |t: &Tensor| t.narrow(2, rotated, d - rotated);
            let y = rope(&x, &cos, &sin)?;
            assert_eq!(max_difference(&rest(&y)?, &rest(&x)?)?, 0.0);
        }
        Ok(())
    }

    #[test]
    fn tables_that_do_not_fit_are_refused() {
        let x = random(&[4, 2, 6], 1);
        for table in [[4, 4], [3, 3], [4, 0]] {
            let table = random(&table, 2);
            assert!(rope(&x, &table, &table).is_err(), "{:?}", table.dims());
        }
    }
}
