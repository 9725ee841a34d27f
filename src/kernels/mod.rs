//! Ops: each stands as a plain, differentiable version beside a fused one, and [`fused`] is the one rule that picks.
//!
//! A fused op either carries its own backward ([`Backward::Own`]: every op a trainer meets) or none
//! ([`Backward::None`]: reads of packed weights and of the paged cache). Where an input is tracked by
//! autograd and the op has no backward, the plain version runs, so a gradient is never silently cut.

pub mod attention;
mod cpu;
pub mod isa;
pub mod kv_store;
pub mod linear;
pub mod logits;
pub mod logprob;
mod micro;
pub mod rms_norm;
pub mod rope;
mod scratch;
mod simd;
pub mod swiglu;
#[cfg(test)]
pub(crate) mod testing;

use candle_core::{DType, Result, Storage, Tensor, WithDType};

/// What a fused op can do for autograd.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backward {
    Own,
    None,
}

/// The dispatch rule: the fused version runs where all inputs are f32 on the CPU and no gradient would be lost.
pub fn fused(inputs: &[&Tensor], backward: Backward) -> bool {
    inputs.iter().all(|t| {
        t.device().is_cpu()
            && t.dtype() == DType::F32
            && (backward == Backward::Own || !t.track_op())
    })
}

/// Reads a contiguous f32 CPU tensor as a slice.
pub(crate) fn with_f32<R>(t: &Tensor, f: impl FnOnce(&[f32]) -> R) -> Result<R> {
    with_slices([t], |[values]| f(values))
}

/// Reads contiguous f32 CPU tensors as slices.
pub(crate) fn with_all_f32<const N: usize, R>(
    tensors: [&Tensor; N],
    f: impl FnOnce([&[f32]; N]) -> R,
) -> Result<R> {
    with_slices(tensors, f)
}

/// Reads contiguous CPU tensors of `T` as slices.
pub(crate) fn with_slices<T: WithDType, const N: usize, R>(
    tensors: [&Tensor; N],
    f: impl FnOnce([&[T]; N]) -> R,
) -> Result<R> {
    let held = tensors.map(Tensor::storage_and_layout);
    let mut slices: [&[T]; N] = [&[]; N];
    for (slice, (storage, layout)) in slices.iter_mut().zip(&held) {
        let Some((start, end)) = layout.contiguous_offsets() else {
            let shape = layout.shape();
            candle_core::bail!("a fused op met a strided tensor of shape {shape:?}")
        };
        let Storage::Cpu(cpu) = &**storage else {
            candle_core::bail!("a fused CPU op met a tensor of another device")
        };
        *slice = &cpu.as_slice::<T>()?[start..end];
    }
    Ok(f(slices))
}

/// The f32 slice a custom op's forward was handed.
pub(crate) fn input<'a>(
    storage: &'a candle_core::CpuStorage,
    layout: &candle_core::Layout,
) -> Result<&'a [f32]> {
    let Some((start, end)) = layout.contiguous_offsets() else {
        candle_core::bail!("a fused op met a strided input: {layout:?}")
    };
    Ok(&storage.as_slice::<f32>()?[start..end])
}
