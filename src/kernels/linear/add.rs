//! The sum of a packed layer's product and what is there already, in place.

use candle_core::{CpuStorage, InplaceOp2, Layout, Result, Tensor};

use super::PackedLinear;
use crate::input;
use crate::scratch::with_shared_scratch;

impl PackedLinear {
    /// Computes `y += x Wᵀ + b` in place: the same bits as [`PackedLinear::apply`] and a sum, without their allocations.
    ///
    /// # Errors
    /// Errors if `x` is not `[m, k]` or `y` is not `[m, n]`, contiguous, f32 and on the CPU.
    pub fn add_to(&self, y: &Tensor, x: &Tensor) -> Result<()> {
        let m = x.dim(0)?;
        if x.dims() != [m, self.in_features()] || y.dims() != [m, self.out_features()] {
            let (x, y) = (x.dims(), y.dims());
            candle_core::bail!("linear: x {x:?} and y {y:?} against {self:?}");
        }
        y.inplace_op2(&x.contiguous()?, &AddProduct(self))
    }
}

struct AddProduct<'a>(&'a PackedLinear);

impl InplaceOp2 for AddProduct<'_> {
    fn name(&self) -> &'static str {
        "linear-add"
    }

    fn cpu_fwd(
        &self,
        sums: &mut CpuStorage,
        sums_layout: &Layout,
        x: &CpuStorage,
        x_layout: &Layout,
    ) -> Result<()> {
        let Some((start, end)) = sums_layout.contiguous_offsets() else {
            candle_core::bail!("linear: y is not contiguous")
        };
        let CpuStorage::F32(sums) = sums else {
            candle_core::bail!("linear: y is not f32")
        };
        let (sums, x) = (&mut sums[start..end], input(x, x_layout)?);
        with_shared_scratch(sums.len(), |product| {
            let product = &mut product[..sums.len()];
            self.0
                .forward(x, sums.len() / self.0.out_features().max(1), product);
            for (sum, term) in sums.iter_mut().zip(&*product) {
                *sum += term;
            }
        });
        Ok(())
    }
}
