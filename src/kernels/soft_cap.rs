//! The soft cap of scores and logits: `c tanh(x / c)`, which bounds them by `c` and leaves small ones as they are (Bello et al. 2017; Gemma 2).

use candle_core::{CpuStorage, InplaceOp1, Layout, Result, Tensor};

use super::cpu::{multiversioned, tanh};
use super::{Backward, fused};
use crate::device::team;

/// The number of elements per task.
const CHUNK: usize = 1 << 13;

/// Bounds `x` by `bound`, and may overwrite it: it must have no other users. With `None` it returns `x`. The fused version runs where
/// [`fused`] allows it.
pub fn soft_cap(x: Tensor, bound: Option<f32>) -> Result<Tensor> {
    match bound {
        Some(bound) if fused(&[&x], Backward::None) && x.is_contiguous() => {
            x.inplace_op1(&SoftCap { bound })?;
            Ok(x)
        }
        bound => plain(&x, bound),
    }
}

/// Computes [`soft_cap`] from differentiable candle ops.
pub fn plain(x: &Tensor, bound: Option<f32>) -> Result<Tensor> {
    match bound {
        Some(bound) => (x / f64::from(bound))?.tanh()? * f64::from(bound),
        None => Ok(x.clone()),
    }
}

/// Bounds a slice: the part of other fused ops.
#[inline(always)]
pub(crate) fn cap(values: &mut [f32], bound: f32) {
    let inverse = 1.0 / bound;
    for value in values {
        *value = bound * tanh(*value * inverse);
    }
}

/// Returns the derivative of the cap where it gave `capped`: `1 - tanh^2`.
#[inline(always)]
pub(crate) fn slope(capped: f32, bound: f32) -> f32 {
    let ratio = capped / bound;
    1.0 - ratio * ratio
}

multiversioned! {
    fn cap_slice(values: &mut [f32], bound: f32) {
        cap(values, bound);
    }
}

struct SoftCap {
    bound: f32,
}

impl InplaceOp1 for SoftCap {
    fn name(&self) -> &'static str {
        "soft-cap"
    }

    fn cpu_fwd(&self, x: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let (Some((start, end)), CpuStorage::F32(x)) = (layout.contiguous_offsets(), x) else {
            candle_core::bail!("soft_cap: x is not contiguous f32: {layout:?}")
        };
        team::each(x[start..end].chunks_mut(CHUNK), |part| {
            cap_slice(part, self.bound);
        });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{max_difference, random};

    #[test]
    fn fused_equals_plain_on_odd_shapes() -> Result<()> {
        for shape in [vec![1], vec![3, 7], vec![3, 1 << 13], vec![2, 10_007]] {
            for bound in [0.1, 1.0, 30.0] {
                let x = (random(&shape, 7) * 50.0)?;
                let want = plain(&x, Some(bound))?;
                let got = soft_cap(x.copy()?, Some(bound))?;
                let difference = max_difference(&got, &want)?;
                assert!(
                    difference <= 4e-7 * bound,
                    "{shape:?} {bound}: {difference}"
                );
                let same = soft_cap(x.copy()?, None)?;
                assert_eq!(max_difference(&same, &x)?, 0.0);
            }
        }
        Ok(())
    }

    #[test]
    fn a_part_of_a_tensor_is_capped_alone_and_a_gradient_is_not_cut() -> Result<()> {
        let x = (random(&[4, 5], 1) * 9.0)?;
        let got = soft_cap(x.copy()?.narrow(0, 1, 2)?, Some(2.0))?;
        let want = plain(&x.narrow(0, 1, 2)?, Some(2.0))?;
        assert!(max_difference(&got, &want)? < 1e-6);
        let var = candle_core::Var::from_tensor(&x)?;
        let y = soft_cap(var.as_tensor().clone(), Some(2.0))?;
        let gradients = y.sum_all()?.backward()?;
        assert!(gradients.get(&var).is_some());
        Ok(())
    }
}
