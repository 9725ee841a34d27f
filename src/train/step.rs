//! Forward and backward pass of one micro-batch: `loss = -sum_i w_i log p(token_i) / sum_i w_i` over the optimizer's whole batch.
//!
//! The denominator is the weight of the whole batch, not of the micro-batch, so gradient accumulation and packing affect only memory.

use candle_core::Tensor;

use super::TrainError;
use super::batch::{MicroBatch, TargetKind};
use super::pass::{Accumulator, Pass};
use model::Decoder;

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

/// The statistics of a micro-batch, or of a sum of them.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct BatchStats {
    /// Share of the batch loss: the shares of all parts add up to the loss.
    pub loss: f64,
    /// Tokens of imitated answers.
    pub sft: TokenStats,
    /// Label tokens of judgements.
    pub judge: TokenStats,
}

impl BatchStats {
    pub fn add(&mut self, other: &Self) {
        self.loss += other.loss;
        self.sft.add(&other.sft);
        self.judge.add(&other.judge);
    }
}

/// Runs a micro-batch and adds its gradients to the accumulator; `recompute` is that of [`Pass::backward`], `dropout` the seed and the
/// step for [`Pass::with_dropout`].
pub fn forward_backward(
    decoder: &Decoder,
    batch: &MicroBatch,
    batch_weight: f64,
    recompute: bool,
    dropout: (u64, u64),
    accumulator: &mut Accumulator<'_>,
) -> Result<BatchStats, TrainError> {
    if batch.rows.is_empty() {
        return Ok(BatchStats::default());
    }
    let (seed, step) = dropout;
    Pass::new(decoder, &batch.tokens, &[], &batch.rows)?
        .with_dropout(seed, step)
        .backward(recompute, accumulator, &mut || {}, |hidden| {
            score(decoder, batch, batch_weight, hidden)
        })
}

/// Returns the loss share of the rows' hidden states, and their statistics.
fn score(
    decoder: &Decoder,
    batch: &MicroBatch,
    batch_weight: f64,
    hidden: &Tensor,
) -> Result<(Tensor, BatchStats), TrainError> {
    let scores = decoder.score(hidden, &batch.targets)?;
    let weights: Vec<f32> = batch
        .weights
        .iter()
        .map(|&w| (-f64::from(w) / batch_weight) as f32)
        .collect();
    let weights = Tensor::from_vec(weights, batch.weights.len(), hidden.device())?;
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
