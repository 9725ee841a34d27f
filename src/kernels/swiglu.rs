//! The gated activation of Llama-family MLPs: `y = silu(gate) * up`, `silu(z) = z * sigmoid(z)` (Shazeer 2020).
//!
//! # Shapes
//! `gate`, `up` and `y` share one shape.

use candle_core::{CpuStorage, CustomOp2, InplaceOp2, Layout, Result, Shape, Tensor};

use super::cpu::{exp, multiversioned};
use super::{Backward, fused, input, with_all_f32};
use crate::device::team;

/// The number of elements per task.
const CHUNK: usize = 1 << 14;

/// Computes the activation, with the fused version where [`fused`] allows it.
pub fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    if fused(&[gate, up], Backward::Own) {
        return gate.contiguous()?.apply_op2(&up.contiguous()?, SwiGlu);
    }
    plain(gate, up)
}

/// Computes [`swiglu`] and may overwrite `gate`, which must have no other users.
pub fn swiglu_into(gate: Tensor, up: &Tensor) -> Result<Tensor> {
    if !fused(&[&gate, up], Backward::None) || !gate.is_contiguous() {
        return swiglu(&gate, up);
    }
    gate.inplace_op2(&up.contiguous()?, &SwiGlu)?;
    Ok(gate)
}

/// Computes the activation from differentiable candle ops.
pub fn plain(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    gate.silu()? * up
}

struct SwiGlu;

multiversioned! {
    fn forward_slice(gate: &[f32], up: &[f32], y: &mut [f32]) {
        for ((y, &g), &u) in y.iter_mut().zip(gate).zip(up) {
            *y = g / (1.0 + exp(-g)) * u;
        }
    }
}

multiversioned! {
    /// Gives the same bits as [`forward_slice`].
    fn forward_slice_into(gate: &mut [f32], up: &[f32]) {
        for (g, &u) in gate.iter_mut().zip(up) {
            *g = *g / (1.0 + exp(-*g)) * u;
        }
    }
}

impl InplaceOp2 for SwiGlu {
    fn name(&self) -> &'static str {
        "swiglu_into"
    }

    fn cpu_fwd(
        &self,
        gate: &mut CpuStorage,
        lg: &Layout,
        up: &CpuStorage,
        lu: &Layout,
    ) -> Result<()> {
        let up = input(up, lu)?;
        let Some((start, end)) = lg.contiguous_offsets() else {
            candle_core::bail!("swiglu: the gate is not contiguous: {lg:?}")
        };
        if lg.shape() != lu.shape() {
            candle_core::bail!("swiglu: gate {:?} against up {:?}", lg.dims(), lu.dims());
        }
        let CpuStorage::F32(gate) = gate else {
            candle_core::bail!("swiglu: the gate is not f32")
        };
        let parts = gate[start..end].chunks_mut(CHUNK).zip(up.chunks(CHUNK));
        team::each(parts, |(gate, up)| forward_slice_into(gate, up));
        Ok(())
    }
}

multiversioned! {
    /// Computes both gradients, with s = sigmoid(z): d silu / dz = s (1 + z (1 - s)).
    fn backward_slice(gate: &[f32], up: &[f32], grad: &[f32], dgate: &mut [f32], dup: &mut [f32]) {
        let n = gate.len();
        let (up, grad, dgate, dup) = (&up[..n], &grad[..n], &mut dgate[..n], &mut dup[..n]);
        for i in 0..n {
            let s = 1.0 / (1.0 + exp(-gate[i]));
            dgate[i] = grad[i] * up[i] * s * (1.0 + gate[i] * (1.0 - s));
            dup[i] = grad[i] * gate[i] * s;
        }
    }
}

impl CustomOp2 for SwiGlu {
    fn name(&self) -> &'static str {
        "swiglu"
    }

    fn cpu_fwd(
        &self,
        gate: &CpuStorage,
        lg: &Layout,
        up: &CpuStorage,
        lu: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        if lg.shape() != lu.shape() {
            candle_core::bail!("swiglu: gate {:?} against up {:?}", lg.dims(), lu.dims());
        }
        let (gate, up) = (input(gate, lg)?, input(up, lu)?);
        let mut y = vec![0f32; gate.len()];
        let parts = y
            .chunks_mut(CHUNK)
            .zip(gate.chunks(CHUNK))
            .zip(up.chunks(CHUNK));
        team::each(parts, |((y, g), u)| forward_slice(g, u, y));
        Ok((CpuStorage::F32(y), lg.shape().clone()))
    }

    fn bwd(
        &self,
        gate: &Tensor,
        up: &Tensor,
        _y: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        let (dgate, dup) = with_all_f32([gate, up, &grad], |[g, u, dy]| {
            let (mut dgate, mut dup) = (vec![0f32; g.len()], vec![0f32; g.len()]);
            let parts = dgate
                .chunks_mut(CHUNK)
                .zip(dup.chunks_mut(CHUNK))
                .zip(g.chunks(CHUNK))
                .zip(u.chunks(CHUNK))
                .zip(dy.chunks(CHUNK));
            team::each(parts, |((((dg, du), g), u), dy)| {
                backward_slice(g, u, dy, dg, du);
            });
            (dgate, dup)
        })?;
        Ok((
            Some(Tensor::from_vec(dgate, gate.shape(), gate.device())?),
            Some(Tensor::from_vec(dup, up.shape(), up.device())?),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_same_gradients, random};

    #[test]
    fn fused_equals_plain_forward_and_backward() -> Result<()> {
        for shape in [vec![1, 1], vec![3, 7], vec![513, 65]] {
            let (gate, up) = (random(&shape, 3), random(&shape, 4));
            assert_same_gradients(
                &[&gate, &up],
                |t| swiglu(&t[0], &t[1]),
                |t| plain(&t[0], &t[1]),
                1e-5,
            )?;
            let want = swiglu(&gate, &up)?.flatten_all()?.to_vec1::<f32>()?;
            let got = swiglu_into(gate.copy()?, &up)?.flatten_all()?;
            assert_eq!(got.to_vec1::<f32>()?, want);
        }
        Ok(())
    }
}
