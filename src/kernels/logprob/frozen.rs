//! Log-probabilities over a head that is not trained and may be packed.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};

use super::{Kept, Saved, Scores, check, chunk_rows};
use crate::linear::Frozen;
use crate::{input, with_all_f32};

/// Works as [`score`](super::score) for a head that is not trained; differentiable in `hidden`.
///
/// # Errors
/// Errors if a target is outside the vocabulary, the shapes do not match, or `hidden` is not in f32 on the CPU.
pub fn score_over(
    hidden: &Tensor,
    weight: &Frozen,
    targets: &[u32],
    soft_cap: Option<f32>,
) -> Result<Scores> {
    check(hidden, weight.dims()?, targets)?;
    let kept = Kept::default();
    let op = LogProb {
        weight: weight.clone(),
        targets: targets.into(),
        soft_cap,
        kept: kept.clone(),
    };
    let logprobs = hidden.contiguous()?.apply_op1(op)?;
    kept.into_scores(logprobs)
}

struct LogProb {
    weight: Frozen,
    targets: Arc<[u32]>,
    soft_cap: Option<f32>,
    kept: Kept,
}

impl LogProb {
    /// Calls `f` with chunks of rows, as their first row, their targets and their logits. `h` is `[rows, d]`.
    fn chunks(
        &self,
        h: &[f32],
        mut f: impl FnMut(usize, &[u32], &mut [f32]) -> Result<()>,
    ) -> Result<()> {
        let (vocab, d) = self.weight.dims()?;
        let step = chunk_rows(vocab);
        let mut logits = vec![0f32; step.min(self.targets.len()) * vocab];
        for (at, targets) in self.targets.chunks(step).enumerate() {
            let (start, m) = (at * step, targets.len());
            let logits = &mut logits[..m * vocab];
            let h = &h[start * d..(start + m) * d];
            self.weight.product(h, m, logits)?;
            f(start, targets, logits)?;
        }
        Ok(())
    }
}

impl CustomOp1 for LogProb {
    fn name(&self) -> &'static str {
        "logprob-frozen"
    }

    fn cpu_fwd(&self, h: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let rows = self.targets.len();
        let mut picked = Vec::with_capacity(rows);
        let mut saved = Saved::new(self.soft_cap);
        self.chunks(input(h, layout)?, |_, targets, logits| {
            saved.read(logits, targets, &mut picked);
            Ok(())
        })?;
        self.kept.set(saved);
        Ok((CpuStorage::F32(picked), rows.into()))
    }

    fn bwd(&self, hidden: &Tensor, _y: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let (rows, d) = hidden.dims2()?;
        let saved = self.kept.get()?;
        let mut dh = vec![0f32; rows * d];
        with_all_f32([hidden, &grad.contiguous()?], |[h, g]| {
            self.chunks(h, |start, targets, logits| {
                saved.gradients(logits, start, targets, g);
                let dh = &mut dh[start * d..(start + targets.len()) * d];
                self.weight.product_back(logits, targets.len(), dh)
            })
        })??;
        Ok(Some(Tensor::from_vec(dh, (rows, d), hidden.device())?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linear::{PackedLinear, WeightFormat};
    use crate::logprob::{plain, score};
    use crate::testing::{assert_same_gradients, random};

    #[test]
    fn a_packed_head_scores_as_its_numbers_do() -> Result<()> {
        for (rows, d, vocab) in [(1, 1, 2), (5, 7, 33), (40, 16, 70_001)] {
            let targets: Vec<u32> = (0..rows).map(|i| ((i * 7919) % vocab) as u32).collect();
            let hidden = random(&[rows, d], 9);
            for (format, cap) in [
                (WeightFormat::F32, None),
                (WeightFormat::Int8, None),
                (WeightFormat::Int8, Some(0.5)),
            ] {
                let packed = PackedLinear::from_tensor(&random(&[vocab, d], 10), None, format)?;
                let ids: Vec<u32> = (0..vocab as u32).collect();
                let numbers = packed.rows(&ids)?;
                let head = Frozen::Packed(Arc::new(packed));
                assert_same_gradients(
                    &[&hidden],
                    |t| Ok(score_over(&t[0], &head, &targets, cap)?.logprobs),
                    |t| plain(&t[0], &numbers, &targets, cap),
                    5e-5,
                )?;
                let (own, want) = (
                    score_over(&hidden, &head, &targets, cap)?,
                    score(&hidden, &numbers, &targets, cap)?,
                );
                assert_eq!(own.top1, want.top1);
                for (own, want) in own.entropy.iter().zip(&want.entropy) {
                    assert!((own - want).abs() < 1e-4, "{own} against {want}");
                }
                assert!(score_over(&hidden, &head, &vec![vocab as u32; rows], cap).is_err());
            }
        }
        Ok(())
    }
}
