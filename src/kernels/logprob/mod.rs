//! Log-probabilities of given tokens, `log softmax(h W^T)[target]`, without the logits of all positions in memory.
//!
//! Logits exist for one chunk of rows at a time; the backward recomputes them from `h` and the saved log-sum-exp:
//! `dlogits = g (onehot(target) - softmax)`. Peak memory is one chunk, whatever the vocabulary.
//!
//! # Shapes
//! `hidden` is `[rows, d]`, `weight` (the language-model head) is `[vocab, d]`, `targets` has one id per row,
//! the result is `[rows]`, natural log. Logits may have a soft cap ([`crate::soft_cap`]).

mod frozen;

use std::sync::{Arc, OnceLock};

use candle_core::{CpuStorage, CustomOp2, D, DType, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use crate::cpu::{exp, multiversioned};
use crate::linear::gemm_f32;
use crate::soft_cap::{self, cap, slope};
use crate::{Backward, fused, input, with_all_f32};
pub use frozen::score_over;

/// The number of logits in memory at a time (32 MiB): even with a large vocabulary enough rows that packing the head pays off.
const CHUNK_ELEMENTS: usize = 1 << 23;

/// The scores of each row's target.
#[derive(Debug, Clone)]
pub struct Scores {
    /// Log-probability of the target, `[rows]`; differentiable.
    pub logprobs: Tensor,
    /// Whether no token is more probable than the target.
    pub top1: Vec<bool>,
    /// Entropy of the row's distribution over the whole vocabulary, nats; not differentiable.
    pub entropy: Vec<f32>,
}

/// Computes [`logprob`], whether each target was the most probable token, and the entropies.
pub fn score(
    hidden: &Tensor,
    weight: &Tensor,
    targets: &[u32],
    soft_cap: Option<f32>,
) -> Result<Scores> {
    check(hidden, weight.dims2()?, targets)?;
    if fused(&[hidden, weight], Backward::Own) {
        let op = LogProb::new(hidden, weight, targets, soft_cap);
        let saved = op.saved.clone();
        let logprobs = hidden.contiguous()?.apply_op2(&weight.contiguous()?, op)?;
        return saved.into_scores(logprobs);
    }
    let logits = hidden.detach().matmul(&weight.detach().t()?)?;
    let logits = soft_cap::plain(&logits, soft_cap)?;
    let best: Vec<u32> = logits.argmax(D::Minus1)?.to_vec1()?;
    Ok(Scores {
        logprobs: plain(hidden, weight, targets, soft_cap)?,
        top1: best.iter().zip(targets).map(|(a, b)| a == b).collect(),
        entropy: plain_entropy(&logits)?,
    })
}

/// Returns the entropy of each row of logits, computed by candle's ops.
fn plain_entropy(logits: &Tensor) -> Result<Vec<f32>> {
    let logits = logits.to_dtype(DType::F32)?;
    let shifted = logits.broadcast_sub(&logits.max_keepdim(D::Minus1)?)?;
    let exps = shifted.exp()?;
    let sum = exps.sum(D::Minus1)?;
    let mean = ((exps * shifted)?.sum(D::Minus1)? / &sum)?;
    (sum.log()? - mean)?.to_vec1()
}

/// Returns the log-probability of each row's target, with the fused version where [`fused`] allows it.
///
/// # Errors
/// Errors if a target is outside the vocabulary or the shapes do not match.
pub fn logprob(
    hidden: &Tensor,
    weight: &Tensor,
    targets: &[u32],
    soft_cap: Option<f32>,
) -> Result<Tensor> {
    check(hidden, weight.dims2()?, targets)?;
    if fused(&[hidden, weight], Backward::Own) {
        let op = LogProb::new(hidden, weight, targets, soft_cap);
        return hidden.contiguous()?.apply_op2(&weight.contiguous()?, op);
    }
    plain(hidden, weight, targets, soft_cap)
}

fn check(hidden: &Tensor, (vocab, wd): (usize, usize), targets: &[u32]) -> Result<()> {
    let (rows, d) = hidden.dims2()?;
    if rows != targets.len() || d != wd {
        candle_core::bail!(
            "logprob: hidden {:?}, weight [{vocab}, {wd}], {} targets",
            hidden.dims(),
            targets.len()
        );
    }
    if let Some(target) = targets.iter().find(|&&t| t as usize >= vocab) {
        candle_core::bail!("logprob: target {target} is outside the vocabulary of {vocab}");
    }
    Ok(())
}

/// Computes the same from differentiable candle ops, all logits at once.
pub fn plain(
    hidden: &Tensor,
    weight: &Tensor,
    targets: &[u32],
    soft_cap: Option<f32>,
) -> Result<Tensor> {
    let logits = hidden.matmul(&weight.t()?)?.to_dtype(DType::F32)?;
    let logits = soft_cap::plain(&logits, soft_cap)?;
    let shifted = logits.broadcast_sub(&logits.max_keepdim(D::Minus1)?.detach())?;
    let log_sum_exp = shifted.exp()?.sum_keepdim(D::Minus1)?.log()?;
    let targets = Tensor::new(targets, hidden.device())?.unsqueeze(1)?;
    (shifted.gather(&targets, 1)? - log_sum_exp)?.squeeze(1)
}

struct LogProb {
    targets: Arc<[u32]>,
    soft_cap: Option<f32>,
    saved: Kept,
    dh: bool,
    dw: bool,
}

/// The values of a forward pass, once it has run.
#[derive(Clone, Default)]
struct Kept(Arc<OnceLock<Saved>>);

impl Kept {
    /// Keeps the values. An op has only one forward pass: a second would keep the same ones.
    fn set(&self, saved: Saved) {
        let _ = self.0.set(saved);
    }

    fn get(&self) -> Result<&Saved> {
        match self.0.get() {
            Some(saved) => Ok(saved),
            None => candle_core::bail!("logprob: the forward pass has not run"),
        }
    }

    fn into_scores(self, logprobs: Tensor) -> Result<Scores> {
        let Saved { top1, entropy, .. } = self.get()?;
        Ok(Scores {
            logprobs,
            top1: top1.clone(),
            entropy: entropy.clone(),
        })
    }
}

/// Values per row, kept from the forward pass.
#[derive(Default)]
struct Saved {
    soft_cap: Option<f32>,
    log_sum_exp: Vec<f32>,
    top1: Vec<bool>,
    entropy: Vec<f32>,
}

impl Saved {
    fn new(soft_cap: Option<f32>) -> Self {
        Self {
            soft_cap,
            ..Self::default()
        }
    }

    /// Caps rows of logits, and adds the values of those with these targets, and their log-probabilities to `picked`.
    fn read(&mut self, logits: &mut [f32], targets: &[u32], picked: &mut Vec<f32>) {
        let chunk: Vec<(f32, (f32, f32, f32))> = logits
            .par_chunks_mut(logits.len() / targets.len().max(1))
            .zip(targets)
            .map(|(row, &target)| {
                cap_logits(row, self.soft_cap);
                (row[target as usize], max_log_sum_exp_and_entropy(row))
            })
            .collect();
        for (z, (max, lse, entropy)) in chunk {
            picked.push(z - lse);
            self.log_sum_exp.push(lse);
            self.top1.push(z == max);
            self.entropy.push(entropy);
        }
    }

    /// Turns rows of logits, from row `start` on, into their gradients.
    fn gradients(&self, logits: &mut [f32], start: usize, targets: &[u32], grad: &[f32]) {
        let rows = logits.par_chunks_mut(logits.len() / targets.len().max(1));
        rows.zip(targets)
            .enumerate()
            .for_each(|(i, (row, &target))| {
                let (lse, grad) = (self.log_sum_exp[start + i], grad[start + i]);
                cap_logits(row, self.soft_cap);
                logits_gradient(row, lse, target as usize, grad, self.soft_cap);
            });
    }
}

impl LogProb {
    fn new(hidden: &Tensor, weight: &Tensor, targets: &[u32], soft_cap: Option<f32>) -> Self {
        Self {
            targets: targets.into(),
            soft_cap,
            saved: Kept::default(),
            dh: hidden.track_op(),
            dw: weight.track_op(),
        }
    }
}

multiversioned! {
    /// Returns the largest logit, the log-sum-exp, and the entropy: `ln S - sum(e d) / S` with `d = z - max`, `e = exp(d)`, `S = sum(e)`.
    fn max_log_sum_exp_and_entropy(logits: &[f32]) -> (f32, f32, f32) {
        let mut lanes = [f32::NEG_INFINITY; 32];
        let chunks = logits.chunks_exact(32);
        let mut max = chunks.remainder().iter().copied().fold(f32::NEG_INFINITY, f32::max);
        for chunk in chunks {
            for lane in 0..32 {
                lanes[lane] = if chunk[lane] > lanes[lane] { chunk[lane] } else { lanes[lane] };
            }
        }
        for lane in lanes {
            max = max.max(lane);
        }
        let (mut sums, mut products) = ([0f32; 32], [0f32; 32]);
        let chunks = logits.chunks_exact(32);
        let (mut tail, mut tail_product) = (0f32, 0f32);
        for &z in chunks.remainder() {
            let d = z - max;
            tail += exp(d);
            tail_product += exp(d) * d;
        }
        for chunk in chunks {
            for lane in 0..32 {
                let d = chunk[lane] - max;
                let e = exp(d);
                sums[lane] += e;
                products[lane] += e * d;
            }
        }
        let sum = sums.iter().sum::<f32>() + tail;
        let product = products.iter().sum::<f32>() + tail_product;
        // Rounding can give a slightly negative value for a row with one certain token.
        (max, max + sum.ln(), (sum.ln() - product / sum).max(0.0))
    }
}

multiversioned! {
    fn cap_logits(logits: &mut [f32], soft_cap: Option<f32>) {
        if let Some(bound) = soft_cap {
            cap(logits, bound);
        }
    }
}

multiversioned! {
    /// Turns a row of capped logits into `g (onehot - softmax)`, times the slope of the cap, in place.
    fn logits_gradient(logits: &mut [f32], log_sum_exp: f32, target: usize, grad: f32, soft_cap: Option<f32>) {
        let Some(bound) = soft_cap else {
            for z in logits.iter_mut() {
                *z = -grad * exp(*z - log_sum_exp);
            }
            logits[target] += grad;
            return;
        };
        let of_target = grad * slope(logits[target], bound);
        for z in logits.iter_mut() {
            *z = -grad * exp(*z - log_sum_exp) * slope(*z, bound);
        }
        logits[target] += of_target;
    }
}

/// Returns the number of rows of logits that fit a chunk; at least one.
fn chunk_rows(vocab: usize) -> usize {
    (CHUNK_ELEMENTS / vocab.max(1)).max(1)
}

impl CustomOp2 for LogProb {
    fn name(&self) -> &'static str {
        "logprob"
    }

    fn cpu_fwd(
        &self,
        h: &CpuStorage,
        lh: &Layout,
        w: &CpuStorage,
        lw: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let ((rows, d), (vocab, _)) = (lh.shape().dims2()?, lw.shape().dims2()?);
        let (h, w) = (input(h, lh)?, input(w, lw)?);
        let step = chunk_rows(vocab);
        let mut logits = vec![0f32; step.min(rows) * vocab];
        let mut picked = Vec::with_capacity(rows);
        let mut saved = Saved::new(self.soft_cap);
        for start in (0..rows).step_by(step) {
            let m = step.min(rows - start);
            let logits = &mut logits[..m * vocab];
            gemm_f32(
                m,
                vocab,
                d,
                &h[start * d..],
                (d, 1),
                w,
                (1, d),
                logits,
                (vocab, 1),
                false,
            );
            saved.read(logits, &self.targets[start..start + m], &mut picked);
        }
        self.saved.set(saved);
        Ok((CpuStorage::F32(picked), rows.into()))
    }

    fn bwd(
        &self,
        hidden: &Tensor,
        weight: &Tensor,
        _y: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let ((rows, d), vocab) = (hidden.dims2()?, weight.dim(0)?);
        let saved = self.saved.get()?;
        let grad = grad.contiguous()?;
        let step = chunk_rows(vocab);
        let mut logits = vec![0f32; step.min(rows) * vocab];
        let mut dh = vec![0f32; if self.dh { rows * d } else { 0 }];
        let mut dw = vec![0f32; if self.dw { vocab * d } else { 0 }];
        with_all_f32([hidden, weight, &grad], |[h, w, g]| {
            for start in (0..rows).step_by(step) {
                let m = step.min(rows - start);
                let logits = &mut logits[..m * vocab];
                let h = &h[start * d..(start + m) * d];
                gemm_f32(m, vocab, d, h, (d, 1), w, (1, d), logits, (vocab, 1), false);
                saved.gradients(logits, start, &self.targets[start..start + m], g);
                if self.dh {
                    let dh = &mut dh[start * d..(start + m) * d];
                    gemm_f32(
                        m,
                        d,
                        vocab,
                        logits,
                        (vocab, 1),
                        w,
                        (d, 1),
                        dh,
                        (d, 1),
                        false,
                    );
                }
                if self.dw {
                    gemm_f32(
                        vocab,
                        d,
                        m,
                        logits,
                        (1, vocab),
                        h,
                        (d, 1),
                        &mut dw,
                        (d, 1),
                        true,
                    );
                }
            }
        })?;
        let dh = self
            .dh
            .then(|| Tensor::from_vec(dh, hidden.shape(), hidden.device()));
        let dw = self
            .dw
            .then(|| Tensor::from_vec(dw, weight.shape(), weight.device()));
        Ok((dh.transpose()?, dw.transpose()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_same_gradients, random};

    #[test]
    fn fused_equals_plain_forward_and_backward() -> Result<()> {
        for (rows, d, vocab) in [(1, 1, 2), (5, 7, 33), (40, 16, 70_001)] {
            let (h, w) = (random(&[rows, d], 9), random(&[vocab, d], 10));
            let targets: Vec<u32> = (0..rows).map(|i| ((i * 7919) % vocab) as u32).collect();
            for cap in [None, Some(0.5), Some(30.0)] {
                assert_same_gradients(
                    &[&h, &w],
                    |t| logprob(&t[0], &t[1], &targets, cap),
                    |t| plain(&t[0], &t[1], &targets, cap),
                    2e-5,
                )?;
            }
        }
        Ok(())
    }

    #[test]
    fn top1_is_whether_the_target_is_the_argmax() -> Result<()> {
        let (h, w) = (random(&[50, 8], 1), random(&[37, 8], 2));
        let best: Vec<u32> = h.matmul(&w.t()?)?.argmax(D::Minus1)?.to_vec1()?;
        assert!(score(&h, &w, &best, None)?.top1.iter().all(|&hit| hit));
        let other: Vec<u32> = best.iter().map(|&id| (id + 1) % 37).collect();
        assert!(!score(&h, &w, &other, None)?.top1.iter().any(|&hit| hit));
        Ok(())
    }

    #[test]
    fn entropy_is_that_of_plain_ops() -> Result<()> {
        for (rows, d, vocab) in [(1, 1, 2), (5, 7, 33), (9, 16, 70_001)] {
            let (h, w) = (random(&[rows, d], 3), random(&[vocab, d], 4));
            let h = (h * 3.0)?;
            let fused = score(&h, &w, &vec![0; rows], None)?.entropy;
            let plain = plain_entropy(&h.matmul(&w.t()?)?)?;
            assert_eq!(fused.len(), rows);
            for (fused, plain) in fused.iter().zip(&plain) {
                assert!((fused - plain).abs() < 1e-4, "{fused} against {plain}");
            }
        }
        // A row of equally probable tokens, and a row with one certain token.
        let (h, w) = (
            Tensor::ones((1, 1), DType::F32, &candle_core::Device::Cpu)?,
            random(&[40, 1], 5),
        );
        let alike = score(&h, &w.zeros_like()?, &[0], None)?.entropy[0];
        assert!((alike - 40f32.ln()).abs() < 1e-5, "{alike}");
        let certain = score(&(h * 1e4)?, &w, &[0], None)?.entropy[0];
        assert!((0.0..1e-5).contains(&certain), "{certain}");
        Ok(())
    }

    #[test]
    fn a_target_outside_the_vocabulary_is_an_error() {
        assert!(logprob(&random(&[1, 2], 1), &random(&[3, 2], 2), &[3], None).is_err());
    }
}
