//! A linear layer whose weight is packed once, at load: `y = x Wᵀ + b` for any number of rows.
//!
//! # Batch invariance
//! A row of the result has the same bits whatever other rows are computed with it and on any number of threads: every
//! element is summed in an order that only `k`, the weight format and the processor determine.
//!
//! # Shapes
//! `weight` is `[n, k]`, `bias` `[n]`, `x` `[m, k]`, the result `[m, n]`; all row-major.

use std::mem::MaybeUninit;

use candle_core::{DType, Device, Result, Storage, Tensor};
use half::{bf16, f16};
use rayon::prelude::*;

use super::panels::{Element, pack_bf16, pack_f32, unpack_bf16, unpack_f32};
use super::product::Inputs;
use super::quant::{self, GROUP, Grid, Group};
use super::widen::{self, Panels};
use super::{WeightFormat, dot, product};
use crate::isa::Isa;
use crate::micro::PANEL;
use crate::scratch::{Line, PairLine, with_scratch};
use crate::with_f32;

/// The minimum number of rows that a task unpacks: those of a decode step are not worth waking the pool.
const UNPACKED_ROWS: usize = 32;

/// A weight in panels, with an optional bias.
#[derive(Clone)]
pub struct PackedLinear {
    n: usize,
    k: usize,
    weight: Weight,
    bias: Option<Vec<f32>>,
    isa: Isa,
}

#[derive(Clone)]
enum Weight {
    F32(Vec<Line>),
    Bf16(Vec<PairLine>),
    Quantised(quant::Panels),
}

impl std::fmt::Debug for PackedLinear {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "PackedLinear({}x{} {:?} {})",
            self.n,
            self.k,
            self.format(),
            self.isa
        )
    }
}

impl PackedLinear {
    /// Packs `weight` (`[n, k]` row-major) for this processor.
    ///
    /// # Errors
    /// Errors if a length does not match the shape.
    pub fn new<T: Element>(
        weight: &[T],
        n: usize,
        k: usize,
        bias: Option<&[f32]>,
        format: WeightFormat,
    ) -> Result<Self> {
        Self::with_isa(weight, n, k, bias, format, Isa::detect())
    }

    /// Works as [`PackedLinear::new`] for a chosen instruction set, which must be one of [`Isa::available`].
    ///
    /// # Errors
    /// Errors as [`PackedLinear::new`] does; also if this machine lacks the instruction set.
    pub fn with_isa<T: Element>(
        weight: &[T],
        n: usize,
        k: usize,
        bias: Option<&[f32]>,
        format: WeightFormat,
        isa: Isa,
    ) -> Result<Self> {
        if weight.len() != n * k {
            candle_core::bail!(
                "linear: {} weights, but the shape is [{n}, {k}]",
                weight.len()
            );
        }
        let packed = match (format, format.grid()) {
            (_, Some(grid)) => Weight::Quantised(quant::Panels::pack((n, k), grid, |row, to| {
                let row = &weight[row * k..(row + 1) * k];
                let mut wide = [0.0; GROUP];
                for (to, from) in to.iter_mut().zip(row.chunks(GROUP)) {
                    wide.iter_mut().zip(from).for_each(|(w, v)| *w = v.f32());
                    *to = Group::round(&wide[..from.len()], grid.bits)?;
                }
                Ok(())
            })?),
            (WeightFormat::F32, None) => Weight::F32(pack_f32(weight, n, k)),
            (_, None) => Weight::Bf16(pack_bf16(weight, n, k)),
        };
        Self::of_parts(packed, n, k, bias, isa)
    }

    /// Packs a weight `[n, k]` that is already quantised: `row` writes the groups of a row.
    ///
    /// # Errors
    /// Errors if `row` does, or if the number of biases is not `n`.
    pub fn of_groups(
        (n, k): (usize, usize),
        grid: Grid,
        bias: Option<&[f32]>,
        row: impl Fn(usize, &mut [Group]) -> Result<()> + Sync,
    ) -> Result<Self> {
        let packed = Weight::Quantised(quant::Panels::pack((n, k), grid, row)?);
        Self::of_parts(packed, n, k, bias, Isa::detect())
    }

    fn of_parts(
        weight: Weight,
        n: usize,
        k: usize,
        bias: Option<&[f32]>,
        isa: Isa,
    ) -> Result<Self> {
        if let Some(bias) = bias
            && bias.len() != n
        {
            candle_core::bail!("linear: {} biases, but {n} outputs", bias.len());
        }
        if !Isa::available().contains(&isa) {
            candle_core::bail!("linear: this machine does not support {isa}");
        }
        Ok(Self {
            n,
            k,
            weight,
            bias: bias.map(<[f32]>::to_vec),
            isa,
        })
    }

    /// Packs a weight tensor (f32, f16 or bf16 on the CPU) and a bias of any float dtype.
    ///
    /// # Errors
    /// Errors if the tensors are not a matching matrix and vector, or are not on the CPU.
    pub fn from_tensor(
        weight: &Tensor,
        bias: Option<&Tensor>,
        format: WeightFormat,
    ) -> Result<Self> {
        let (n, k) = weight.dims2()?;
        let bias = bias
            .map(|b| b.to_dtype(DType::F32)?.to_vec1::<f32>())
            .transpose()?;
        let bias = bias.as_deref();
        let weight = weight.contiguous()?;
        let (storage, layout) = weight.storage_and_layout();
        let (Some((start, end)), Storage::Cpu(cpu)) = (layout.contiguous_offsets(), &*storage)
        else {
            candle_core::bail!("linear: only weights on the CPU can be packed")
        };
        match weight.dtype() {
            DType::F32 => Self::new(&cpu.as_slice::<f32>()?[start..end], n, k, bias, format),
            DType::BF16 => Self::new(&cpu.as_slice::<bf16>()?[start..end], n, k, bias, format),
            DType::F16 => Self::new(&cpu.as_slice::<f16>()?[start..end], n, k, bias, format),
            other => candle_core::bail!("linear: weights of dtype {other:?} cannot be packed"),
        }
    }

    /// Returns the number of outputs of a row.
    pub fn out_features(&self) -> usize {
        self.n
    }

    /// Returns the number of inputs of a row.
    pub fn in_features(&self) -> usize {
        self.k
    }

    pub fn format(&self) -> WeightFormat {
        match &self.weight {
            Weight::F32(_) => WeightFormat::F32,
            Weight::Bf16(_) => WeightFormat::Bf16,
            Weight::Quantised(panels) => match panels.grid.bits {
                quant::Bits::Eight => WeightFormat::Int8,
                quant::Bits::Four => WeightFormat::Int4,
            },
        }
    }

    /// Returns the bytes of the packed weight.
    pub fn bytes(&self) -> usize {
        match &self.weight {
            Weight::F32(lines) => size_of_val(lines.as_slice()),
            Weight::Bf16(lines) => size_of_val(lines.as_slice()),
            Weight::Quantised(panels) => panels.bytes(),
        }
    }

    /// Returns the given rows of the weight in f32, `[rows.len(), k]`: the values that were packed, with bf16 widened
    /// and integers scaled. A tied embedding is looked up this way, without a second copy.
    ///
    /// # Errors
    /// Errors if a row does not exist.
    pub fn rows(&self, rows: &[u32]) -> Result<Tensor> {
        let (n, k) = (self.n, self.k);
        if let Some(row) = rows.iter().find(|&&row| row as usize >= n) {
            candle_core::bail!("linear: no row {row} in a weight [{n}, {k}]");
        }
        let mut values = vec![0f32; rows.len() * k];
        values
            .par_chunks_mut(k.max(1))
            .zip(rows)
            .with_min_len(UNPACKED_ROWS)
            .for_each(|(to, &row)| self.unpack_row(row as usize, to));
        Tensor::from_vec(values, (rows.len(), k), &Device::Cpu)
    }

    /// Writes rows of the weight to `to`, in f32, from row `first` on.
    ///
    /// # Panics
    /// Panics if a row does not exist.
    pub(super) fn unpack(&self, first: usize, to: &mut [f32]) {
        to.par_chunks_mut(self.k.max(1))
            .enumerate()
            .with_min_len(UNPACKED_ROWS)
            .for_each(|(at, to)| self.unpack_row(first + at, to));
    }

    fn unpack_row(&self, row: usize, to: &mut [f32]) {
        match &self.weight {
            Weight::F32(lines) => unpack_f32(lines, row, to),
            Weight::Bf16(lines) => unpack_bf16(lines, row, to),
            Weight::Quantised(panels) => panels.unpack(row, to),
        }
    }

    /// Computes `out[m, n] = x[m, k] · Wᵀ + b`.
    ///
    /// # Panics
    /// Panics if a slice has another length.
    pub fn forward(&self, x: &[f32], m: usize, out: &mut [f32]) {
        // SAFETY: `MaybeUninit<f32>` has the layout of f32, and the products only write initialised values.
        let out = unsafe { &mut *(std::ptr::from_mut(out) as *mut [MaybeUninit<f32>]) };
        product::forward_all(&[self], x, m, &mut [out]);
    }

    /// Returns whether activations are rounded to bf16.
    pub(super) fn rounds(&self) -> bool {
        self.format() == WeightFormat::Bf16 && self.isa.multiplies_bf16()
    }

    /// Returns whether activations are rounded to integers.
    pub(super) fn quantises(&self) -> bool {
        matches!(self.weight, Weight::Quantised(_))
    }

    /// Returns the approximate time of one thread for `m` rows: the weight is read once, from a cache or memory, and multiplied.
    pub(super) fn estimated_ns(&self, m: usize) -> usize {
        const BYTES: usize = 32;
        let multiply_adds = match self.rounds() {
            true if self.isa.amx_bf16 => 512,
            true => 128,
            false if self.quantises() => 96,
            false => 64,
        };
        self.bytes() / BYTES + m.saturating_mul(self.n * self.k) / multiply_adds
    }

    /// Returns the number of panels of the weight.
    pub(super) fn panels(&self) -> usize {
        self.n.div_ceil(PANEL)
    }

    /// Computes some rows times some panels. The inputs have the rows as the layer reads them.
    ///
    /// # Safety
    /// `out` is valid for the block's rows (stride n) and columns, and no other thread writes there.
    pub(super) unsafe fn block(
        &self,
        inputs: Inputs,
        rows: usize,
        panels: (usize, usize),
        out: *mut f32,
    ) {
        let (n, k) = (self.n, self.k);
        let Inputs {
            x,
            rounded,
            quantised,
        } = inputs;
        let exact = |weight| widen::Block {
            x,
            rows,
            k,
            weight,
            panels,
            n,
            out,
        };
        let widened = |block: widen::Block| {
            with_scratch(widen::scratch_len(rows, k), |scratch| {
                // SAFETY: as the caller promises; the isa was checked when the weight was packed.
                unsafe { widen::run(self.isa, &block, scratch) }
            });
        };
        match (&self.weight, rounded, quantised) {
            (Weight::Quantised(weight), _, Some(rows)) => {
                let block = quant::Block {
                    rows,
                    weight,
                    panels,
                    n,
                    out,
                };
                with_scratch(quant::SCRATCH, |scratch| {
                    // SAFETY: as above.
                    unsafe { quant::run(self.isa, &block, scratch) }
                });
            }
            (Weight::Quantised(_), _, None) => {
                // The sum is empty, and `out` has its zeros.
                assert_eq!(k, 0, "the rows were not rounded: this is a bug");
            }
            (Weight::Bf16(lines), Some(rounded), _) if self.rounds() => {
                let block = exact(Panels::Bf16(lines));
                with_scratch(dot::SCRATCH, |scratch| {
                    // SAFETY: as above.
                    unsafe { dot::run(self.isa, &block, &rounded, lines, scratch) }
                });
            }
            (Weight::F32(lines), ..) => widened(exact(Panels::F32(lines))),
            (Weight::Bf16(lines), ..) => widened(exact(Panels::Bf16(lines))),
        }
        self.add_bias(out, rows, panels.0 * PANEL, n.min(panels.1 * PANEL));
    }

    /// Adds the bias to columns `from..to` of `rows` rows at `out`.
    fn add_bias(&self, out: *mut f32, rows: usize, from: usize, to: usize) {
        if let Some(bias) = &self.bias {
            for r in 0..rows {
                // SAFETY: the caller's block belongs to it alone, and bias has n values.
                let row = unsafe {
                    std::slice::from_raw_parts_mut(out.add(r * self.n + from), to - from)
                };
                for (y, b) in row.iter_mut().zip(&bias[from..to]) {
                    *y += b;
                }
            }
        }
    }

    /// Applies the layer to a tensor `[.., k]` (f32, CPU); the result is `[.., n]`, without a gradient.
    ///
    /// # Errors
    /// Errors if `x` has another last dimension, dtype or device.
    pub fn apply(&self, x: &Tensor) -> Result<Tensor> {
        let [y] = Self::apply_all([self], x)?;
        Ok(y)
    }

    /// Applies several layers to one tensor as one product: q, k and v, or gate and up.
    ///
    /// # Errors
    /// Same as [`PackedLinear::apply`].
    pub fn apply_all<const N: usize>(layers: [&Self; N], x: &Tensor) -> Result<[Tensor; N]> {
        let k = x.dims().last().copied();
        if let Some(layer) = layers.iter().find(|layer| k != Some(layer.k)) {
            candle_core::bail!(
                "linear: x {:?} against weight [{}, {}]",
                x.dims(),
                layer.n,
                layer.k
            );
        }
        let rows = &x.dims()[..x.dims().len() - 1];
        let m = rows.iter().product::<usize>();
        let mut outs = layers.map(|layer| Vec::<f32>::with_capacity(m * layer.n));
        let mut room = Vec::with_capacity(N);
        for (layer, out) in layers.iter().zip(&mut outs) {
            room.push(&mut out.spare_capacity_mut()[..m * layer.n]);
        }
        with_f32(&x.contiguous()?, |x| {
            product::forward_all(&layers, x, m, &mut room);
        })?;
        let mut tensors = Vec::with_capacity(N);
        for (layer, mut out) in layers.iter().zip(outs) {
            // SAFETY: the product has written all of the values.
            unsafe { out.set_len(m * layer.n) };
            let shape = [rows, &[layer.n]].concat();
            tensors.push(Tensor::from_vec(out, shape, x.device())?);
        }
        Ok(tensors
            .try_into()
            .expect("one for each layer; this is a bug"))
    }
}
