//! Ops: each has a plain, differentiable version and a fused one, and [`fused`] is the only rule that selects between
//! them.
//!
//! A fused op either has its own backward pass ([`Backward::Own`]: every op used in training) or none
//! ([`Backward::None`]: reads of packed weights and of the paged cache). If autograd tracks an input and the op has no
//! backward pass, the plain version runs, so a gradient is never silently lost.

pub mod attention;
mod cpu;
pub mod device;
pub mod glu;
pub mod isa;
pub mod kv_store;
pub mod linear;
pub mod logits;
pub mod logprob;
mod micro;
pub mod nn;
pub mod rms_norm;
pub mod rope;
mod scratch;
mod simd;
pub mod soft_cap;
#[cfg(test)]
pub(crate) mod testing;

use candle_core::{DType, Result, Storage, Tensor, WithDType};

/// The support of a fused op for autograd.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backward {
    Own,
    None,
}

/// Returns whether the fused version runs: all inputs are f32 on the CPU and no gradient would be lost.
pub fn fused(inputs: &[&Tensor], backward: Backward) -> bool {
    inputs.iter().all(|t| {
        t.device().is_cpu()
            && t.dtype() == DType::F32
            && (backward == Backward::Own || !t.track_op())
    })
}

/// Calls `f` with a contiguous f32 CPU tensor as a slice.
pub fn with_f32<R>(t: &Tensor, f: impl FnOnce(&[f32]) -> R) -> Result<R> {
    with_slices([t], |[values]| f(values))
}

/// Calls `f` with contiguous f32 CPU tensors as slices.
pub(crate) fn with_all_f32<const N: usize, R>(
    tensors: [&Tensor; N],
    f: impl FnOnce([&[f32]; N]) -> R,
) -> Result<R> {
    with_slices(tensors, f)
}

/// Calls `f` with contiguous CPU tensors of `T` as slices.
pub(crate) fn with_slices<T: WithDType, const N: usize, R>(
    tensors: [&Tensor; N],
    f: impl FnOnce([&[T]; N]) -> R,
) -> Result<R> {
    let held = tensors.map(Tensor::storage_and_layout);
    let mut slices: [&[T]; N] = [&[]; N];
    for (slice, (storage, layout)) in slices.iter_mut().zip(&held) {
        let Some((start, end)) = layout.contiguous_offsets() else {
            let shape = layout.shape();
            candle_core::bail!("a fused op received a non-contiguous tensor of shape {shape:?}")
        };
        let Storage::Cpu(cpu) = &**storage else {
            candle_core::bail!("a fused CPU op received a tensor on another device")
        };
        *slice = &cpu.as_slice::<T>()?[start..end];
    }
    Ok(f(slices))
}

/// Returns the f32 slice of an input of a custom op's forward pass.
pub(crate) fn input<'a>(
    storage: &'a candle_core::CpuStorage,
    layout: &candle_core::Layout,
) -> Result<&'a [f32]> {
    let Some((start, end)) = layout.contiguous_offsets() else {
        candle_core::bail!("a fused op received a non-contiguous input: {layout:?}")
    };
    Ok(&storage.as_slice::<f32>()?[start..end])
}
