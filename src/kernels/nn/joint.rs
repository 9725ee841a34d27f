//! Projections of one input: layers of their own, or one layer whose rows are those of all (`qkv_proj`, `gate_up_proj`).

use candle_core::{D, Result, Tensor};

use super::{AdaptedRows, Linear};

/// `N` projections of one input, computed together.
#[derive(Debug, Clone)]
pub struct Joint<const N: usize>(Layout<N>);

#[derive(Debug, Clone)]
enum Layout<const N: usize> {
    Separate([Linear; N]),
    /// One layer, whose rows are cut at these widths.
    Fused([Linear; 1], [usize; N]),
}

impl<const N: usize> Joint<N> {
    pub fn separate(layers: [Linear; N]) -> Self {
        Self(Layout::Separate(layers))
    }

    /// Takes one layer with the outputs of all projections, of these widths, side by side.
    pub fn fused(layer: Linear, widths: [usize; N]) -> Self {
        Self(Layout::Fused([layer], widths))
    }

    /// Returns the layers.
    pub fn linears(&self) -> &[Linear] {
        match &self.0 {
            Layout::Separate(layers) => layers,
            Layout::Fused(layer, _) => layer,
        }
    }

    /// Returns whether this many rows use the whole device, rather than one thread of a CPU.
    pub fn spreads(&self, rows: usize) -> bool {
        let layers: Vec<&Linear> = self.linears().iter().collect();
        Linear::spreads(&layers, rows)
    }

    /// Applies the projections to `x`, with adapters on the rows of `adapted`. No other tensor shares the results' memory.
    pub fn forward(&self, x: &Tensor, adapted: &[AdaptedRows<'_>]) -> Result<[Tensor; N]> {
        let (layer, widths) = match &self.0 {
            Layout::Separate(layers) => {
                return Linear::forward_all(layers.each_ref(), x, adapted);
            }
            Layout::Fused([layer], widths) => (layer, widths),
        };
        let y = layer.forward(x, adapted)?;
        let mut start = 0;
        let parts = widths.map(|width| {
            let part = y.narrow(D::Minus1, start, width);
            start += width;
            part?.force_contiguous()
        });
        let parts: Vec<Tensor> = parts.into_iter().collect::<Result<_>>()?;
        Ok(parts.try_into().expect("one for each width; this is a bug"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_same_gradients, max_difference, random};

    #[test]
    fn a_fused_layer_is_its_parts_forward_and_backward() -> Result<()> {
        let widths = [6, 3, 5];
        for rows in [1, 7] {
            let (x, weight) = (random(&[rows, 4], 1), random(&[14, 4], 2));
            let parts = |weight: &Tensor| -> Result<Joint<3>> {
                let part = |start, rows| -> Result<Linear> {
                    Ok(Linear::plain(weight.narrow(0, start, rows)?, None, None))
                };
                Ok(Joint::separate([part(0, 6)?, part(6, 3)?, part(9, 5)?]))
            };
            let fused =
                |weight: &Tensor| Joint::fused(Linear::plain(weight.clone(), None, None), widths);
            let apart = parts(&weight)?.forward(&x, &[])?;
            let together = fused(&weight).forward(&x, &[])?;
            for (a, b) in apart.iter().zip(&together) {
                assert!(max_difference(a, b)? < 1e-6);
            }
            assert_same_gradients(
                &[&x, &weight],
                |t| Tensor::cat(&fused(&t[1]).forward(&t[0], &[])?, 1),
                |t| Tensor::cat(&parts(&t[1])?.forward(&t[0], &[])?, 1),
                1e-6,
            )?;
        }
        Ok(())
    }
}
