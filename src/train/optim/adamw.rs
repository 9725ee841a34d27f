//! AdamW (Loshchilov and Hutter 2019), the arithmetic of `torch.optim.AdamW`.
//!
//! ```text
//! w ← w · (1 − lr·λ)
//! m ← m + (1 − β1)(g − m)          v ← β2·v + (1 − β2)·g²
//! w ← w − lr/(1 − β1^t) · m / (√v / √(1 − β2^t) + ε)
//! ```

use std::cell::RefCell;

use candle_core::{CpuStorage, Device, InplaceOp1, Layout, Tensor, Var};
use rayon::prelude::*;

use super::OptimConfig;
use super::grads::{Buffer, CHUNK};
use crate::TrainError;

/// The scalars of a step, computed in f64.
#[derive(Debug, Clone, Copy)]
pub(super) struct Coefficients {
    decay: f32,
    one_minus_beta1: f32,
    beta2: f32,
    one_minus_beta2: f32,
    step_size: f32,
    bias2_sqrt: f32,
    eps: f32,
}

impl Coefficients {
    /// Computes the scalars; `step` counts from 1.
    pub(super) fn new(c: &OptimConfig, lr: f64, weight_decay: f64, step: u64) -> Self {
        let t = step as f64;
        Self {
            decay: (1.0 - lr * weight_decay) as f32,
            one_minus_beta1: (1.0 - c.beta1) as f32,
            beta2: c.beta2 as f32,
            one_minus_beta2: (1.0 - c.beta2) as f32,
            step_size: (lr / (1.0 - c.beta1.powf(t))) as f32,
            bias2_sqrt: (1.0 - c.beta2.powf(t)).sqrt() as f32,
            eps: c.eps as f32,
        }
    }
}

/// First and second moments of one parameter, f32.
#[derive(Debug)]
pub(super) enum Moments {
    Host { m: Vec<f32>, v: Vec<f32> },
    Device { m: Tensor, v: Tensor },
}

impl Moments {
    pub(super) fn zeros(var: &Var) -> Result<Self, TrainError> {
        Ok(match var.device() {
            Device::Cpu => {
                let n = var.elem_count();
                Self::Host {
                    m: vec![0.0; n],
                    v: vec![0.0; n],
                }
            }
            _ => Self::device_zeros(var)?,
        })
    }

    /// Creates moments for the tensor path on any device: the test runs it on the CPU beside the fused loop.
    pub(super) fn device_zeros(var: &Var) -> Result<Self, TrainError> {
        Ok(Self::Device {
            m: var.zeros_like()?.detach(),
            v: var.zeros_like()?.detach(),
        })
    }

    pub(super) fn step(
        &mut self,
        var: &Var,
        grad: &Buffer,
        clip: f32,
        k: &Coefficients,
    ) -> Result<(), TrainError> {
        match (self, grad) {
            (Self::Host { m, v }, Buffer::Host(g)) => {
                let state = RefCell::new((m.as_mut_slice(), v.as_mut_slice()));
                let k = *k;
                var.inplace_op1(&FusedStep { g, clip, k, state })?;
            }
            (Self::Device { m, v }, Buffer::Device(g)) => {
                let g = g.affine(f64::from(clip), 0.0)?;
                // The f32 coefficients are widened: `affine` rounds them back to the values that the fused loop uses.
                let k64 = f64::from;
                *m = (&*m + (&g - &*m)?.affine(k64(k.one_minus_beta1), 0.0)?)?;
                *v = (v.affine(k64(k.beta2), 0.0)?
                    + g.sqr()?.affine(k64(k.one_minus_beta2), 0.0)?)?;
                let denominator = (v.sqrt()? / f64::from(k.bias2_sqrt))?.affine(1.0, k64(k.eps))?;
                let update = (&*m / denominator)?.affine(k64(k.step_size), 0.0)?;
                let kept = var.as_detached_tensor().affine(k64(k.decay), 0.0)?;
                var.set(&(kept - update)?)?;
            }
            _ => {
                return Err(TrainError::Mismatch(
                    "gradient and optimizer state live on different devices".to_owned(),
                ));
            }
        }
        Ok(())
    }
}

/// One fused pass over weight, gradient and both moments.
struct FusedStep<'a> {
    g: &'a [f32],
    clip: f32,
    k: Coefficients,
    state: RefCell<(&'a mut [f32], &'a mut [f32])>,
}

impl InplaceOp1 for FusedStep<'_> {
    fn name(&self) -> &'static str {
        "adamw-step"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> candle_core::Result<()> {
        let w = host_slice(storage, layout, self.name())?;
        let mut state = self.state.borrow_mut();
        let (m, v) = &mut *state;
        let (k, clip) = (self.k, self.clip);
        w.par_chunks_mut(CHUNK)
            .zip(self.g.par_chunks(CHUNK))
            .zip(m.par_chunks_mut(CHUNK))
            .zip(v.par_chunks_mut(CHUNK))
            .for_each(|(((w, g), m), v)| step_slice(w, g, m, v, clip, &k));
        Ok(())
    }
}

/// Returns the elements of a contiguous f32 variable.
pub(super) fn host_slice<'a>(
    storage: &'a mut CpuStorage,
    layout: &Layout,
    op: &'static str,
) -> candle_core::Result<&'a mut [f32]> {
    let Some((from, to)) = layout.contiguous_offsets() else {
        candle_core::bail!("{op} needs a contiguous variable")
    };
    let CpuStorage::F32(values) = storage else {
        candle_core::bail!("{op} needs an f32 variable")
    };
    Ok(&mut values[from..to])
}

fn step_slice(w: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32], clip: f32, k: &Coefficients) {
    for (((w, g), m), v) in w.iter_mut().zip(g).zip(m).zip(v) {
        let g = g * clip;
        *m += k.one_minus_beta1 * (g - *m);
        *v = *v * k.beta2 + k.one_minus_beta2 * (g * g);
        let denominator = v.sqrt() / k.bias2_sqrt + k.eps;
        *w = *w * k.decay - k.step_size * (*m / denominator);
    }
}
