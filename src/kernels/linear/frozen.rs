//! The weight of a layer that is not trained: a tensor, or a packed weight whose rows are unpacked to f32 some at a time, so that there is
//! never a whole copy of it (QLoRA, Dettmers et al. 2023).
//!
//! # Shapes
//! The weight is `[n, k]`, `x` `[rows, k]`, `y` `[rows, n]`.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};

use super::{PackedLinear, gemm_f32};
use crate::scratch::with_shared_scratch;
use crate::{input, with_all_f32, with_f32};

/// The numbers that are unpacked at a time: 2 MiB.
const TILE: usize = 1 << 19;

/// The least rows that are unpacked at a time.
const LEAST_ROWS: usize = 64;

/// The weight of a frozen layer.
#[derive(Clone, Debug)]
pub enum Frozen {
    /// In f32, contiguous and on the CPU.
    Tensor(Tensor),
    /// Its bias, if it has one, is not part of the products here.
    Packed(Arc<PackedLinear>),
}

impl Frozen {
    /// Returns `(n, k)`.
    ///
    /// # Errors
    /// Errors if the tensor is not a matrix.
    pub fn dims(&self) -> Result<(usize, usize)> {
        match self {
            Self::Tensor(weight) => weight.dims2(),
            Self::Packed(packed) => Ok((packed.out_features(), packed.in_features())),
        }
    }

    /// Computes `y = x Wᵀ`.
    ///
    /// # Errors
    /// Errors if the tensor is not what the variant promises.
    pub fn product(&self, x: &[f32], rows: usize, y: &mut [f32]) -> Result<()> {
        let (n, k) = self.dims()?;
        self.tiles(|tile, w| {
            let first = tile.start.min(y.len());
            let y = &mut y[first..];
            gemm_f32(rows, tile.len(), k, x, (k, 1), w, (1, k), y, (n, 1), false);
        })
    }

    /// Computes `x = y W`: the gradient of the product's input from that of its result.
    ///
    /// # Errors
    /// Same as [`Frozen::product`].
    pub fn product_back(&self, y: &[f32], rows: usize, x: &mut [f32]) -> Result<()> {
        let (n, k) = self.dims()?;
        self.tiles(|tile, w| {
            let more = tile.start > 0;
            let y = &y[tile.start.min(y.len())..];
            gemm_f32(rows, k, tile.len(), y, (n, 1), w, (k, 1), x, (k, 1), more);
        })
    }

    /// Calls `f` with ranges of the weight's rows, in order, and their numbers.
    fn tiles(&self, mut f: impl FnMut(Range<usize>, &[f32])) -> Result<()> {
        let (n, k) = self.dims()?;
        match self {
            Self::Tensor(weight) => with_f32(weight, |w| f(0..n, w)),
            Self::Packed(packed) => {
                let rows = (TILE / k.max(1)).max(LEAST_ROWS).min(n);
                with_shared_scratch(rows * k, |room| {
                    for start in (0..n).step_by(rows.max(1)) {
                        let tile = start..n.min(start + rows);
                        let room = &mut room[..tile.len() * k];
                        packed.unpack(tile.start, room);
                        f(tile, room);
                    }
                });
                Ok(())
            }
        }
    }
}

/// Computes `y = x Wᵀ + b` with a weight that is not trained, in f32; differentiable in `x`.
///
/// # Errors
/// Errors if the shapes do not fit, or if `x` is not in f32 on the CPU.
pub fn frozen_linear(x: &Tensor, weight: &Arc<PackedLinear>) -> Result<Tensor> {
    x.contiguous()?
        .apply_op1(FrozenLinear(Frozen::Packed(weight.clone())))
}

struct FrozenLinear(Frozen);

impl CustomOp1 for FrozenLinear {
    fn name(&self) -> &'static str {
        "frozen-linear"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let ((rows, k), (n, wk)) = (layout.shape().dims2()?, self.0.dims()?);
        if k != wk {
            candle_core::bail!("linear: x {:?} against weight [{n}, {wk}]", layout.dims());
        }
        let mut y = vec![0f32; rows * n];
        self.0.product(input(x, layout)?, rows, &mut y)?;
        Ok((CpuStorage::F32(y), (rows, n).into()))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let (rows, k) = x.dims2()?;
        let mut dx = vec![0f32; rows * k];
        with_all_f32([&grad.contiguous()?], |[g]| {
            self.0.product_back(g, rows, &mut dx)
        })??;
        Ok(Some(Tensor::from_vec(dx, (rows, k), x.device())?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linear::{WeightFormat, linear, lora_linear, lora_over};
    use crate::testing::{assert_same_gradients, random};

    /// Returns a packed weight, and the same numbers as a tensor.
    fn packed(n: usize, k: usize, format: WeightFormat) -> Result<(Arc<PackedLinear>, Tensor)> {
        let packed = PackedLinear::from_tensor(&random(&[n, k], 8), None, format)?;
        let rows: Vec<u32> = (0..n as u32).collect();
        let plain = packed.rows(&rows)?;
        Ok((Arc::new(packed), plain))
    }

    /// The last shape is more than a tile.
    const SHAPES: [(usize, usize, usize); 5] = [
        (1, 1, 1),
        (3, 7, 5),
        (40, 33, 65),
        (130, 96, 70),
        (3, 8200, 70),
    ];

    const FORMATS: [WeightFormat; 4] = [
        WeightFormat::F32,
        WeightFormat::Bf16,
        WeightFormat::Int8,
        WeightFormat::Int4,
    ];

    #[test]
    fn a_packed_weight_computes_what_its_numbers_do() -> Result<()> {
        for (rows, k, n) in SHAPES {
            for format in FORMATS {
                let (packed, plain) = packed(n, k, format)?;
                assert_same_gradients(
                    &[&random(&[rows, k], 7)],
                    |t| frozen_linear(&t[0], &packed),
                    |t| linear(&t[0], &plain, None),
                    1e-4,
                )?;
            }
        }
        Ok(())
    }

    #[test]
    fn an_adapter_over_it_has_the_gradients_of_one_over_its_numbers() -> Result<()> {
        for (rows, k, n) in SHAPES {
            for format in FORMATS {
                let (packed, plain) = packed(n, k, format)?;
                let frozen = Frozen::Packed(packed);
                assert_same_gradients(
                    &[
                        &random(&[rows, k], 7),
                        &random(&[4, k], 9),
                        &random(&[n, 4], 10),
                    ],
                    |t| lora_over(&t[0], &frozen, &t[1], &t[2], 0.7),
                    |t| lora_linear(&t[0], &plain, &t[1], &t[2], 0.7),
                    1e-4,
                )?;
            }
        }
        Ok(())
    }

    #[test]
    fn shapes_that_do_not_fit_are_an_error() -> Result<()> {
        let (packed, _) = packed(4, 3, WeightFormat::Int8)?;
        assert!(frozen_linear(&random(&[2, 4], 1), &packed).is_err());
        let frozen = Frozen::Packed(packed);
        let (a, b) = (random(&[1, 4], 1), random(&[4, 1], 2));
        assert!(lora_over(&random(&[2, 3], 1), &frozen, &a, &b, 1.0).is_err());
        Ok(())
    }
}
