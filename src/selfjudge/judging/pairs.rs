//! Verdicts on pairs of answers.
//!
//! The pairs of a round are submitted together, so that the engine batches them and shares their prompts' common prefixes. With several
//! principles each has its own prompt, one forward pass per (pair, order, principle), and their probabilities are averaged by weight.

use std::sync::Arc;

use super::encode::{Pair, Shown};
use super::reading::{Account, Judged, LabelPrompt};
use super::{JudgeTask, ModelJudge};
use crate::call::CallError;
use judge::{LabelLogprobs, PairVerdict};

/// The maximum number of a call's prompts that are encoded at once, each at most as long as the context. It is large so that common
/// prefixes are computed once.
const SLICE: usize = 4096;

/// The maximum number of a call's prompt tokens in memory at once; it limits a slice if contexts are long.
const SLICE_TOKENS: usize = 4 << 20;

impl ModelJudge {
    /// Judges one pair.
    ///
    /// # Errors
    /// Errors if a prompt cannot be served or the queue is full.
    pub async fn judge_pair(
        &self,
        task: &JudgeTask,
        a: &str,
        b: &str,
    ) -> Result<Judged<PairVerdict>, CallError> {
        let mut account = Account::new(self.judging_weights(task.weights.as_ref()));
        let shown = self.show(task, [a, b].map(Arc::from).to_vec()).await?;
        let pair = [(shown.candidates[0].clone(), shown.candidates[1].clone())];
        let verdicts = self.judge_pairs(task, &shown, &pair, &mut account);
        let mut verdicts = verdicts.await?;
        let verdict = verdicts
            .pop()
            .expect("one pair has one verdict; this is a bug");
        Ok(account.close(verdict))
    }

    /// Returns the verdicts on pairs, in their order. At most [`SLICE`] prompts are in memory at once, for any number of pairs.
    pub(super) async fn judge_pairs(
        &self,
        task: &JudgeTask,
        shown: &Shown,
        pairs: &[Pair],
        account: &mut Account,
    ) -> Result<Vec<PairVerdict>, CallError> {
        let mut verdicts = Vec::with_capacity(pairs.len());
        let prompts = SLICE.min(SLICE_TOKENS / self.engine.capacity().max_context);
        for slice in pairs.chunks((prompts / task.reads()).max(1)) {
            verdicts.extend(self.judge_slice(task, shown, slice, account).await?);
        }
        verdicts.iter().for_each(|verdict| self.count(verdict));
        Ok(verdicts)
    }

    /// Returns the verdict on one pair without counting it in the metrics.
    pub(super) async fn uncounted_verdict(
        &self,
        task: &JudgeTask,
        a: &str,
        b: &str,
        account: &mut Account,
    ) -> Result<PairVerdict, CallError> {
        let shown = self.show(task, [a, b].map(Arc::from).to_vec()).await?;
        let pair = [(shown.candidates[0].clone(), shown.candidates[1].clone())];
        let mut verdicts = self.judge_slice(task, &shown, &pair, account).await?;
        Ok(verdicts
            .pop()
            .expect("one pair has one verdict; this is a bug"))
    }

    async fn judge_slice(
        &self,
        task: &JudgeTask,
        shown: &Shown,
        pairs: &[Pair],
        account: &mut Account,
    ) -> Result<Vec<PairVerdict>, CallError> {
        let prompts = self.encode_pairs(task, shown, pairs).await?;
        let labels = self.judge.labels().ids;
        let mut cuts = Vec::with_capacity(prompts.len());
        let mut flat = Vec::with_capacity(prompts.len() * task.reads());
        for pair in prompts {
            cuts.push(pair.as_ref().map(|pair| pair.cut));
            let pair = pair.into_iter();
            let shown = pair.flat_map(|pair| pair.prompts.into_iter().zip(pair.shared));
            flat.extend(shown.map(|(prompt, shared)| LabelPrompt {
                prompt,
                labels: labels.to_vec(),
                reusable: Some(shared),
            }));
        }
        let reads = self.read_labels(task.turn, flat, account).await?;
        let reads: Vec<LabelLogprobs> = reads.iter().map(|read| [read[0], read[1]]).collect();
        let mut of_pairs = reads.chunks_exact(task.reads());
        let passed = self.judges_reliably(account.weights());
        let verdicts = cuts.into_iter().map(|cut| match cut {
            None => PairVerdict::identical(),
            Some(cut) => {
                let reads = of_pairs
                    .next()
                    .expect("every pair that was encoded has been read; this is a bug");
                PairVerdict::join(
                    &task.principles,
                    task.orders,
                    task.on_disagreement,
                    reads,
                    cut,
                )
                .by_judge(passed)
            }
        });
        Ok(verdicts.collect())
    }

    /// Counts a verdict in the metrics. A verdict without reads has no label mass to observe.
    fn count(&self, verdict: &PairVerdict) {
        let metrics = &self.metrics;
        metrics.comparisons.inc();
        metrics
            .flips
            .inc_by(u64::from(verdict.consistent == Some(false)));
        metrics.ties.inc_by(u64::from(verdict.winner.is_none()));
        if !verdict.orders.is_empty() {
            metrics.label_mass.observe(f64::from(verdict.label_mass));
        }
    }
}
