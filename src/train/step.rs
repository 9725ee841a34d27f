//! Forward and backward of one micro-batch: `loss = -sum_i w_i log p(token_i) / sum_i w_i` over the optimizer's whole batch.
//!
//! The denominator is the weight of the whole batch, not of the micro-batch, so gradient accumulation and packing
//! change nothing but memory.

use candle_core::{Tensor, Var};

use super::TrainError;
use super::batch::{MicroBatch, TargetKind};
use super::optim::GradBuffers;
use crate::model::Decoder;
use crate::nn::{AttentionBackend, Rotations};

/// Sums over the supervised tokens of one kind.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct TokenStats {
    pub tokens: u64,
    /// Unweighted negative log-likelihood, in nats.
    pub nll: f64,
    /// Targets that were the most probable token.
    pub top1: u64,
}

impl TokenStats {
    fn add(&mut self, other: &Self) {
        self.tokens += other.tokens;
        self.nll += other.nll;
        self.top1 += other.top1;
    }
}

/// What a micro-batch, or a sum of them, scored.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct BatchStats {
    /// This part's share of the batch loss: the shares add up to the loss.
    pub loss: f64,
    /// Tokens of imitated answers.
    pub sft: TokenStats,
    /// The judge's decisions.
    pub judge: TokenStats,
}

impl BatchStats {
    pub fn add(&mut self, other: &Self) {
        self.loss += other.loss;
        self.sft.add(&other.sft);
        self.judge.add(&other.judge);
    }
}

/// Where gradients go: the variables by the index of their buffer.
pub struct Accumulator<'a> {
    pub vars: &'a [(String, Var)],
    pub grads: &'a mut GradBuffers,
}

impl Accumulator<'_> {
    fn collect(&mut self, store: &mut candle_core::backprop::GradStore) -> Result<(), TrainError> {
        for (name, var) in self.vars {
            if let Some(grad) = store.remove(var) {
                self.grads.add_named(name, &grad, 1.0)?;
            }
        }
        Ok(())
    }
}

/// Runs a micro-batch and adds its gradients to the accumulator.
///
/// With `recompute`, block activations are dropped after the forward pass and computed again in the backward one, a
/// block at a time: memory is the block boundaries plus one block (Chen et al. 2016), for one more forward pass.
pub fn forward_backward(
    decoder: &Decoder,
    batch: &MicroBatch,
    batch_weight: f64,
    recompute: bool,
    accumulator: &mut Accumulator<'_>,
) -> Result<BatchStats, TrainError> {
    if batch.rows.is_empty() {
        return Ok(BatchStats::default());
    }
    let pass = Pass {
        decoder,
        batch,
        rotations: decoder.rotations(batch.tokens.as_packed())?,
        rows: Tensor::new(batch.rows.as_slice(), decoder.device())?,
        batch_weight,
    };
    if recompute {
        pass.layer_by_layer(accumulator)
    } else {
        pass.whole(accumulator)
    }
}

struct Pass<'a> {
    decoder: &'a Decoder,
    batch: &'a MicroBatch,
    rotations: Rotations,
    /// The micro-batch's rows that carry loss.
    rows: Tensor,
    batch_weight: f64,
}

impl Pass<'_> {
    /// The last block only computes the rows that carry loss.
    fn block(&self, layer: usize, x: &Tensor) -> Result<Tensor, TrainError> {
        let last = layer + 1 == self.decoder.num_layers();
        let backend = AttentionBackend::Dense {
            cu_seqlens: self.batch.tokens.cu_seqlens(),
        };
        Ok(self.decoder.block(
            layer,
            x,
            last.then_some(&self.rows),
            &self.rotations,
            &backend,
        )?)
    }

    /// The loss share of the last block's rows, and what they scored.
    fn loss(&self, x: &Tensor) -> Result<(Tensor, BatchStats), TrainError> {
        let batch = self.batch;
        let hidden = self.decoder.final_norm(x)?;
        let scores = self.decoder.score(&hidden, &batch.targets)?;
        let weights: Vec<f32> = batch
            .weights
            .iter()
            .map(|&w| (-f64::from(w) / self.batch_weight) as f32)
            .collect();
        let weights = Tensor::from_vec(weights, batch.weights.len(), x.device())?;
        let loss = (&scores.logprobs * weights)?.sum_all()?;
        let mut stats = BatchStats {
            loss: f64::from(loss.to_scalar::<f32>()?),
            ..BatchStats::default()
        };
        let logprobs: Vec<f32> = scores.logprobs.to_vec1()?;
        for ((&logprob, &top1), kind) in logprobs.iter().zip(&scores.top1).zip(&batch.kinds) {
            let half = match kind {
                TargetKind::Answer => &mut stats.sft,
                TargetKind::Label => &mut stats.judge,
                TargetKind::Auxiliary => continue,
            };
            half.tokens += 1;
            half.nll -= f64::from(logprob);
            half.top1 += u64::from(top1);
        }
        Ok((loss, stats))
    }

    fn whole(&self, accumulator: &mut Accumulator<'_>) -> Result<BatchStats, TrainError> {
        let mut x = self.decoder.embed(self.batch.tokens.ids())?;
        for layer in 0..self.decoder.num_layers() {
            x = self.block(layer, &x)?;
        }
        let (loss, stats) = self.loss(&x)?;
        accumulator.collect(&mut loss.backward()?)?;
        Ok(stats)
    }

    fn layer_by_layer(&self, accumulator: &mut Accumulator<'_>) -> Result<BatchStats, TrainError> {
        let embedded = self.decoder.embed(self.batch.tokens.ids())?;
        let mut boundaries = vec![embedded.detach()];
        for layer in 0..self.decoder.num_layers() {
            let x = self.block(layer, &boundaries[layer])?.detach();
            boundaries.push(x);
        }
        let mut top =
            Var::from_tensor(&boundaries.pop().expect("a boundary a layer; this is a bug"))?;
        let (loss, stats) = self.loss(&top)?;
        let mut grads = loss.backward()?;
        for layer in (0..self.decoder.num_layers()).rev() {
            let gradient = take(&mut grads, &top)?;
            accumulator.collect(&mut grads)?;
            top = Var::from_tensor(&boundaries.pop().expect("a boundary a layer; this is a bug"))?;
            let y = self.block(layer, &top)?;
            // d/dx of <y, g> is g pulled back through the block.
            grads = (y * gradient)?.sum_all()?.backward()?;
        }
        let gradient = take(&mut grads, &top)?;
        accumulator.collect(&mut grads)?;
        if embedded.track_op() {
            accumulator.collect(&mut (embedded * gradient)?.sum_all()?.backward()?)?;
        }
        Ok(stats)
    }
}

fn take(
    grads: &mut candle_core::backprop::GradStore,
    boundary: &Var,
) -> Result<Tensor, TrainError> {
    grads.remove(boundary).map(|g| g.detach()).ok_or_else(|| {
        TrainError::Mismatch("a block boundary received no gradient; this is a bug".into())
    })
}
