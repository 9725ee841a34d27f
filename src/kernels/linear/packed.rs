//! A linear layer whose weight is packed once, at load: `y = x Wᵀ + b` for any number of rows.
//!
//! # Batch invariance
//! A row of the result is the same bits whatever other rows are computed with it and on however many threads: every
//! element is summed in an order that only `k`, the weight format and the processor decide.
//!
//! # Shapes
//! `weight` is `[n, k]`, `bias` `[n]`, `x` `[m, k]`, the result `[m, n]`; all row-major.

use candle_core::{DType, Result, Storage, Tensor};
use half::{bf16, f16};
use rayon::prelude::*;

use super::panels::{Element, pack_bf16, pack_f32};
use super::widen::{self, Panels};
use super::{WeightFormat, dot};
use crate::kernels::isa::Isa;
use crate::kernels::micro::PANEL;
use crate::kernels::scratch::{Line, PairLine, SharedOut, with_scratch};
use crate::kernels::with_f32;

/// Multiply-adds below which waking the pool costs more than it brings.
const SERIAL_BELOW: usize = 1 << 19;

/// f32 of packed rows a task keeps at hand: half a second-level cache.
const ROWS_BUDGET: usize = 64 * 1024;

/// Fewest panels worth a task of their own.
const MIN_PANELS: usize = 4;

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
    /// When a length does not fit the shape.
    pub fn new<T: Element>(
        weight: &[T],
        n: usize,
        k: usize,
        bias: Option<&[f32]>,
        format: WeightFormat,
    ) -> Result<Self> {
        Self::with_isa(weight, n, k, bias, format, Isa::detect())
    }

    /// [`PackedLinear::new`] for a chosen instruction set, which must be one of [`Isa::available`].
    ///
    /// # Errors
    /// As `new`; and when this machine lacks the instruction set.
    pub fn with_isa<T: Element>(
        weight: &[T],
        n: usize,
        k: usize,
        bias: Option<&[f32]>,
        format: WeightFormat,
        isa: Isa,
    ) -> Result<Self> {
        if weight.len() != n * k {
            candle_core::bail!("linear: {} weights for [{n}, {k}]", weight.len());
        }
        if let Some(bias) = bias
            && bias.len() != n
        {
            candle_core::bail!("linear: {} biases for {n} outputs", bias.len());
        }
        if !Isa::available().contains(&isa) {
            candle_core::bail!("linear: this machine has no {isa}");
        }
        Ok(Self {
            n,
            k,
            weight: match format {
                WeightFormat::F32 => Weight::F32(pack_f32(weight, n, k)),
                WeightFormat::Bf16 => Weight::Bf16(pack_bf16(weight, n, k)),
            },
            bias: bias.map(<[f32]>::to_vec),
            isa,
        })
    }

    /// Packs a weight tensor (f32, f16 or bf16 on the CPU) and a bias of any float dtype.
    ///
    /// # Errors
    /// When the tensors are no matrix and vector that fit, or not on the CPU.
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

    /// Outputs of a row.
    pub fn out_features(&self) -> usize {
        self.n
    }

    /// Inputs of a row.
    pub fn in_features(&self) -> usize {
        self.k
    }

    pub fn format(&self) -> WeightFormat {
        match self.weight {
            Weight::F32(_) => WeightFormat::F32,
            Weight::Bf16(_) => WeightFormat::Bf16,
        }
    }

    /// Bytes the packed weight takes.
    pub fn bytes(&self) -> usize {
        match &self.weight {
            Weight::F32(lines) => size_of_val(lines.as_slice()),
            Weight::Bf16(lines) => size_of_val(lines.as_slice()),
        }
    }

    /// `out[m, n] = x[m, k] · Wᵀ + b`.
    ///
    /// # Panics
    /// When a slice is not of that length.
    pub fn forward(&self, x: &[f32], m: usize, out: &mut [f32]) {
        let (n, k) = (self.n, self.k);
        assert_eq!(x.len(), m * k, "linear: x is not [{m}, {k}]");
        assert_eq!(out.len(), m * n, "linear: out is not [{m}, {n}]");
        if m == 0 || n == 0 {
            return;
        }
        if k == 0 {
            out.fill(0.0);
            return self.add_bias(out.as_mut_ptr(), m, 0, n);
        }
        let panels = n.div_ceil(PANEL);
        let most_rows = (ROWS_BUDGET / k).clamp(96, 192);
        let row_blocks = m.div_ceil(most_rows);
        let threads = rayon::current_num_threads();
        let serial = threads == 1 || m.saturating_mul(n * k) < SERIAL_BELOW;
        // A few tasks a thread, so that a thread that is held up does not hold up the rest.
        let panel_chunks = if serial {
            1
        } else {
            (4 * threads)
                .div_ceil(row_blocks)
                .min(panels / MIN_PANELS)
                .max(1)
        };
        // SAFETY: every task writes its own rows and columns.
        let shared = unsafe { SharedOut::new(out) };
        let task = |index: usize| {
            let (i, j) = (index / panel_chunks, index % panel_chunks);
            let rows = (m * i / row_blocks, m * (i + 1) / row_blocks);
            let columns = (panels * j / panel_chunks, panels * (j + 1) / panel_chunks);
            // SAFETY: the row is within out, and the isa was checked when the weight was packed.
            unsafe {
                let out = shared.get().add(rows.0 * n);
                self.block(&x[rows.0 * k..rows.1 * k], rows.1 - rows.0, columns, out);
            }
        };
        let tasks = row_blocks * panel_chunks;
        if serial {
            (0..tasks).for_each(task);
        } else {
            (0..tasks).into_par_iter().with_max_len(1).for_each(task);
        }
    }

    /// Some rows against some panels.
    ///
    /// # Safety
    /// `out` is good for the block's rows (stride n) and columns, and nothing else writes there.
    unsafe fn block(&self, x: &[f32], rows: usize, panels: (usize, usize), out: *mut f32) {
        let (n, k) = (self.n, self.k);
        let block = widen::Block {
            x,
            rows,
            k,
            weight: match &self.weight {
                Weight::F32(lines) => Panels::F32(lines),
                Weight::Bf16(lines) => Panels::Bf16(lines),
            },
            panels,
            n,
            out,
        };
        match &self.weight {
            Weight::Bf16(lines) if self.isa.multiplies_bf16() => {
                with_scratch(dot::scratch_len(rows, k), |scratch| {
                    // SAFETY: the caller's promise.
                    unsafe { dot::run(self.isa, &block, lines, scratch) }
                });
            }
            _ => with_scratch(widen::scratch_len(rows, k), |scratch| {
                // SAFETY: the caller's promise.
                unsafe { widen::run(self.isa, &block, scratch) }
            }),
        }
        self.add_bias(out, rows, panels.0 * PANEL, n.min(panels.1 * PANEL));
    }

    /// Adds the bias to columns `from..to` of `rows` rows at `out`.
    fn add_bias(&self, out: *mut f32, rows: usize, from: usize, to: usize) {
        if let Some(bias) = &self.bias {
            for r in 0..rows {
                // SAFETY: the caller's block is its own, and bias has n values.
                let row = unsafe {
                    std::slice::from_raw_parts_mut(out.add(r * self.n + from), to - from)
                };
                for (y, b) in row.iter_mut().zip(&bias[from..to]) {
                    *y += b;
                }
            }
        }
    }

    /// The layer on a tensor `[.., k]` (f32, CPU); the result is `[.., n]`, without a gradient.
    ///
    /// # Errors
    /// When `x` has another last dimension, dtype or device.
    pub fn apply(&self, x: &Tensor) -> Result<Tensor> {
        let mut dims = x.dims().to_vec();
        match dims.last_mut() {
            Some(last) if *last == self.k => *last = self.n,
            _ => candle_core::bail!(
                "linear: x {:?} against weight [{}, {}]",
                x.dims(),
                self.n,
                self.k
            ),
        }
        let m = dims[..dims.len() - 1].iter().product::<usize>();
        let mut out = vec![0f32; m * self.n];
        with_f32(&x.contiguous()?, |x| self.forward(x, m, &mut out))?;
        Tensor::from_vec(out, dims, x.device())
    }
}
