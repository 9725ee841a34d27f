//! The gated activation of MLPs: `y = act(gate) * up` (Shazeer 2020), with `act(z) = z / (1 + e^-t(z))`.
//!
//! | activation | `t(z)` |
//! |---|---|
//! | SiLU | `z` |
//! | GELU by tanh (Hendrycks and Gimpel 2016) | `2 sqrt(2/pi) (z + 0.044715 z^3)`, because `1/2 (1 + tanh x)` is the sigmoid of `2x` |
//!
//! # Shapes
//! `gate`, `up` and `y` share one shape.

use candle_core::{CpuStorage, CustomOp2, InplaceOp2, Layout, Result, Shape, Tensor};

use super::cpu::{exp, multiversioned};
use super::{Backward, fused, input, with_all_f32};
use crate::device::team;

/// The number of elements per task.
const CHUNK: usize = 1 << 14;

/// The activation of the gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    Silu,
    /// GELU in its approximation by tanh (`gelu_pytorch_tanh`).
    GeluTanh,
}

/// Computes the gated activation, with the fused version where [`fused`] allows it.
pub fn glu(activation: Activation, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    if fused(&[gate, up], Backward::Own) {
        return gate
            .contiguous()?
            .apply_op2(&up.contiguous()?, Glu { activation });
    }
    plain(activation, gate, up)
}

/// Computes [`glu`] and may overwrite `gate`, which must have no other users.
pub fn glu_into(activation: Activation, gate: Tensor, up: &Tensor) -> Result<Tensor> {
    if !fused(&[&gate, up], Backward::None) || !gate.is_contiguous() {
        return glu(activation, &gate, up);
    }
    gate.inplace_op2(&up.contiguous()?, &Glu { activation })?;
    Ok(gate)
}

/// Computes the gated activation from differentiable candle ops.
pub fn plain(activation: Activation, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    match activation {
        Activation::Silu => gate.silu()? * up,
        // candle's `gelu` is the approximation by tanh.
        Activation::GeluTanh => gate.gelu()? * up,
    }
}

struct Glu {
    activation: Activation,
}

/// The factors of `z` and `z^3` in GELU's `t(z)`: `2 sqrt(2/pi)`, and 0.044715 times that.
const LINEAR: f32 = 1.595_769;
const CUBIC: f32 = 0.071_354_814;

#[inline(always)]
fn silu_t(z: f32) -> f32 {
    z
}

#[inline(always)]
fn silu_t_slope(_z: f32) -> f32 {
    1.0
}

#[inline(always)]
fn gelu_t(z: f32) -> f32 {
    z * (z * z).mul_add(CUBIC, LINEAR)
}

#[inline(always)]
fn gelu_t_slope(z: f32) -> f32 {
    (z * z).mul_add(3.0 * CUBIC, LINEAR)
}

/// Defines the loops of one activation, given its `t` and the derivative of that.
macro_rules! loops {
    ($forward:ident, $forward_into:ident, $backward:ident, $t:ident, $slope:ident) => {
        multiversioned! {
            fn $forward(gate: &[f32], up: &[f32], y: &mut [f32]) {
                for ((y, &g), &u) in y.iter_mut().zip(gate).zip(up) {
                    *y = g / (1.0 + exp(-$t(g))) * u;
                }
            }
        }

        multiversioned! {
            /// Gives the same bits as the loop that writes elsewhere.
            fn $forward_into(gate: &mut [f32], up: &[f32]) {
                for (g, &u) in gate.iter_mut().zip(up) {
                    *g = *g / (1.0 + exp(-$t(*g))) * u;
                }
            }
        }

        multiversioned! {
            /// Computes both gradients, with s = sigmoid(t(z)): d act / dz = s (1 + z t'(z) (1 - s)).
            fn $backward(gate: &[f32], up: &[f32], grad: &[f32], dgate: &mut [f32], dup: &mut [f32]) {
                let n = gate.len();
                let (up, grad, dgate, dup) = (&up[..n], &grad[..n], &mut dgate[..n], &mut dup[..n]);
                for i in 0..n {
                    let s = 1.0 / (1.0 + exp(-$t(gate[i])));
                    dgate[i] = grad[i] * up[i] * s * (1.0 + gate[i] * $slope(gate[i]) * (1.0 - s));
                    dup[i] = grad[i] * gate[i] * s;
                }
            }
        }
    };
}

loops!(silu, silu_into, silu_backward, silu_t, silu_t_slope);
loops!(gelu, gelu_into, gelu_backward, gelu_t, gelu_t_slope);

impl InplaceOp2 for Glu {
    fn name(&self) -> &'static str {
        "glu_into"
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
            candle_core::bail!("glu: the gate is not contiguous: {lg:?}")
        };
        if lg.shape() != lu.shape() {
            candle_core::bail!("glu: gate {:?} against up {:?}", lg.dims(), lu.dims());
        }
        let CpuStorage::F32(gate) = gate else {
            candle_core::bail!("glu: the gate is not f32")
        };
        let run = match self.activation {
            Activation::Silu => silu_into,
            Activation::GeluTanh => gelu_into,
        };
        let parts = gate[start..end].chunks_mut(CHUNK).zip(up.chunks(CHUNK));
        team::each(parts, |(gate, up)| run(gate, up));
        Ok(())
    }
}

impl CustomOp2 for Glu {
    fn name(&self) -> &'static str {
        "glu"
    }

    fn cpu_fwd(
        &self,
        gate: &CpuStorage,
        lg: &Layout,
        up: &CpuStorage,
        lu: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        if lg.shape() != lu.shape() {
            candle_core::bail!("glu: gate {:?} against up {:?}", lg.dims(), lu.dims());
        }
        let (gate, up) = (input(gate, lg)?, input(up, lu)?);
        let run = match self.activation {
            Activation::Silu => silu,
            Activation::GeluTanh => gelu,
        };
        let mut y = vec![0f32; gate.len()];
        let parts = y
            .chunks_mut(CHUNK)
            .zip(gate.chunks(CHUNK))
            .zip(up.chunks(CHUNK));
        team::each(parts, |((y, g), u)| run(g, u, y));
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
        let run = match self.activation {
            Activation::Silu => silu_backward,
            Activation::GeluTanh => gelu_backward,
        };
        let (dgate, dup) = with_all_f32([gate, up, &grad], |[g, u, dy]| {
            let (mut dgate, mut dup) = (vec![0f32; g.len()], vec![0f32; g.len()]);
            let parts = dgate
                .chunks_mut(CHUNK)
                .zip(dup.chunks_mut(CHUNK))
                .zip(g.chunks(CHUNK))
                .zip(u.chunks(CHUNK))
                .zip(dy.chunks(CHUNK));
            team::each(parts, |((((dg, du), g), u), dy)| run(g, u, dy, dg, du));
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
    use crate::testing::{assert_same_gradients, max_difference, random};

    const ALL: [Activation; 2] = [Activation::Silu, Activation::GeluTanh];

    #[test]
    fn fused_equals_plain_forward_and_backward() -> Result<()> {
        for activation in ALL {
            for shape in [vec![1, 1], vec![3, 7], vec![513, 65]] {
                let (gate, up) = ((random(&shape, 3) * 3.0)?, random(&shape, 4));
                assert_same_gradients(
                    &[&gate, &up],
                    |t| glu(activation, &t[0], &t[1]),
                    |t| plain(activation, &t[0], &t[1]),
                    1e-5,
                )?;
                let want = glu(activation, &gate, &up)?
                    .flatten_all()?
                    .to_vec1::<f32>()?;
                let got = glu_into(activation, gate.copy()?, &up)?.flatten_all()?;
                assert_eq!(got.to_vec1::<f32>()?, want);
            }
        }
        Ok(())
    }

    #[test]
    fn large_gates_stay_finite() -> Result<()> {
        let gate = Tensor::new(
            &[-1e4f32, -100.0, -20.0, 20.0, 100.0, 1e4],
            &candle_core::Device::Cpu,
        )?;
        for activation in ALL {
            let got = glu(activation, &gate, &gate.ones_like()?)?;
            let want = gate.relu()?;
            let difference = max_difference(&got, &want)?;
            assert!(difference < 1e-6, "{activation:?}: {difference}");
        }
        Ok(())
    }
}
