//! The DPO trainer: one step, and the scoring that it needs.

use std::time::Instant;

use candle_core::Tensor;

use super::objective::{Objective, summed};
use super::pack::{CompletionBatch, Group, pack};
use super::pair::check_tokens;
use super::report::Sums;
use super::state::DpoState;
use super::{DpoConfig, PairError, PairExample, StepReport};
use crate::TrainError;
use crate::base::{Adapter, FrozenBase};
use crate::optim::{GradBuffers, Optimizer};
use crate::pass::{Accumulator, Pass};
use crate::schedule::Schedule;
use crate::trainable::{Factors, Trainable};
use model::Decoder;

/// The model that computes log-probabilities.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scorer {
    Policy,
    Reference,
    /// Generation 0: the frozen model, with the adapter that learning started from, if any.
    Base,
}

/// A trained policy and its reference policy, as two adapters over one frozen model.
///
/// Every method that computes calls `pace` between layers, which may block to let other work on the machine go first.
pub struct DpoTrainer {
    pub(super) config: DpoConfig,
    pub(super) base: FrozenBase,
    pub(super) policy: Trainable,
    reference: Decoder,
    pub(super) optimizer: Optimizer,
    grads: GradBuffers,
    schedule: Schedule,
    pub(super) state: DpoState,
}

impl DpoTrainer {
    /// Creates a trainer. The policy starts at `start`, or at the base itself with a fresh adapter; the reference is an adapter, or the
    /// base. `total_steps` is the length of the schedule: beyond it the last learning rate stays.
    ///
    /// # Errors
    /// If the configuration is invalid, an adapter does not fit the base, or the start has other layers, ranks or scales than the
    /// configuration.
    pub fn new(
        base: &FrozenBase,
        reference: Option<&Adapter>,
        start: Option<&Adapter>,
        config: DpoConfig,
        total_steps: u64,
    ) -> Result<Self, TrainError> {
        config.validate()?;
        let factors = match start {
            Some(adapter) => Factors::From(adapter),
            None => Factors::Fresh { seed: config.seed },
        };
        let policy = Trainable::adapter(base, config.lora.clone(), factors)?;
        let optimizer = Optimizer::new(&policy.vars, config.optim.clone())?;
        Ok(Self {
            reference: base.decoder(reference)?,
            grads: optimizer.grad_buffers()?,
            schedule: Schedule::new(&config.schedule, total_steps)?,
            state: DpoState::begin(&config, total_steps)?,
            base: base.clone(),
            policy,
            optimizer,
            config,
        })
    }

    pub fn config(&self) -> &DpoConfig {
        &self.config
    }

    pub fn state(&self) -> &DpoState {
        &self.state
    }

    /// Returns the number of steps taken.
    pub fn step(&self) -> u64 {
        self.state.step
    }

    /// Replaces the reference by another adapter, or by the base.
    ///
    /// # Errors
    /// If the adapter does not fit the base.
    pub fn set_reference(&mut self, reference: Option<&Adapter>) -> Result<(), TrainError> {
        self.reference = self.base.decoder(reference)?;
        Ok(())
    }

    /// Returns a copy of the policy's adapter, which later steps do not change.
    ///
    /// # Errors
    /// Those of the device.
    pub fn adapter(&self) -> Result<Adapter, TrainError> {
        let adapter = self.policy.to_adapter()?;
        Ok(adapter.expect("an adapter is trained; this is a bug"))
    }

    /// Checks whether a pair can be trained on.
    ///
    /// # Errors
    /// The reason why not.
    pub fn check_pair(&self, pair: &PairExample) -> Result<(), PairError> {
        pair.check(self.base.spec())
    }

    /// Checks all pairs as [`Self::check_pair`].
    ///
    /// # Errors
    /// If a pair is unfit; the message gives its index and the reason.
    pub fn check(&self, pairs: &[PairExample]) -> Result<(), TrainError> {
        for (i, pair) in pairs.iter().enumerate() {
            self.check_pair(pair)
                .map_err(|why| TrainError::Data(format!("pair {i}: {why}")))?;
        }
        Ok(())
    }

    fn decoder(&self, scorer: Scorer) -> Result<Decoder, TrainError> {
        match scorer {
            Scorer::Policy => Ok(self.policy.decoder.clone()),
            Scorer::Reference => Ok(self.reference.clone()),
            Scorer::Base => self.base.first_decoder(),
        }
    }

    /// Returns the summed log-probabilities (chosen, rejected) of each pair under the reference, as [`Self::update`] takes them.
    ///
    /// # Errors
    /// If a pair is unfit, see [`Self::check`].
    pub fn reference_logps(
        &self,
        pairs: &[PairExample],
        pace: &mut dyn FnMut(),
    ) -> Result<Vec<(f32, f32)>, TrainError> {
        self.pair_logps(Scorer::Reference, pairs, pace)
    }

    /// Returns the summed log-probabilities (chosen, rejected) of each pair under the current policy.
    ///
    /// # Errors
    /// As [`Self::reference_logps`].
    pub fn policy_logps(
        &self,
        pairs: &[PairExample],
        pace: &mut dyn FnMut(),
    ) -> Result<Vec<(f32, f32)>, TrainError> {
        self.pair_logps(Scorer::Policy, pairs, pace)
    }

    fn pair_logps(
        &self,
        scorer: Scorer,
        pairs: &[PairExample],
        pace: &mut dyn FnMut(),
    ) -> Result<Vec<(f32, f32)>, TrainError> {
        self.check(pairs)?;
        let decoder = self.decoder(scorer)?;
        let mut logps = Vec::with_capacity(pairs.len());
        for batch in self.pack(pairs.iter().map(PairExample::group)) {
            let scored = token_logprobs(&decoder, &batch, pace)?;
            for pair in batch.completions.chunks_exact(2) {
                let (chosen, rejected) = (&scored[pair[0].clone()], &scored[pair[1].clone()]);
                let sum = |own, other| summed(self.config.ld_alpha, own, other);
                logps.push((sum(chosen, rejected.len()), sum(rejected, chosen.len())));
            }
        }
        Ok(logps)
    }

    /// Returns the log-probability, in nats, of every completion token after its prompt; the sequences are `(prompt, completion)`.
    ///
    /// # Errors
    /// If a sequence has an empty part, is too long, or has an unknown token; the message gives its index.
    pub fn score(
        &self,
        scorer: Scorer,
        sequences: &[(Vec<u32>, Vec<u32>)],
        pace: &mut dyn FnMut(),
    ) -> Result<Vec<Vec<f32>>, TrainError> {
        for (i, (prompt, completion)) in sequences.iter().enumerate() {
            check_tokens(self.base.spec(), prompt, completion, "completion")
                .map_err(|why| TrainError::Data(format!("sequence {i}: {why}")))?;
        }
        let decoder = self.decoder(scorer)?;
        let groups = sequences.iter().map(|(prompt, completion)| Group {
            prompt,
            completions: [completion.as_slice()],
        });
        let mut logprobs = Vec::with_capacity(sequences.len());
        for batch in self.pack(groups) {
            let scored = token_logprobs(&decoder, &batch, pace)?;
            logprobs.extend(batch.completions.iter().map(|r| scored[r.clone()].to_vec()));
        }
        Ok(logprobs)
    }

    fn pack<'a, const N: usize>(
        &self,
        groups: impl Iterator<Item = Group<'a, N>>,
    ) -> Vec<CompletionBatch> {
        pack(groups, self.config.micro_batch_tokens)
    }

    /// Takes one optimizer step on a batch, over as many micro-batches as it needs. `reference` holds the result of
    /// [`Self::reference_logps`] for the same pairs.
    ///
    /// # Errors
    /// If there are no pairs or unfit ones, or a loss or a gradient is not finite. Weights, moments and counts then stay unchanged.
    pub fn update(
        &mut self,
        pairs: &[PairExample],
        reference: &[(f32, f32)],
        pace: &mut dyn FnMut(),
    ) -> Result<StepReport, TrainError> {
        let began = Instant::now();
        self.check(pairs)?;
        if pairs.is_empty() || reference.len() != pairs.len() {
            return Err(TrainError::Data(format!(
                "there are {} pairs, but reference log-probabilities for {}",
                pairs.len(),
                reference.len()
            )));
        }
        let batches = self.pack(pairs.iter().map(PairExample::group));
        let objective = Objective::new(&self.config, pairs);
        let mut sums = Sums::default();
        let mut done = 0;
        self.grads.zero()?;
        for batch in &batches {
            let count = batch.completions.len() / 2;
            let part = done..done + count;
            let mut accumulator = Accumulator {
                vars: &self.policy.vars,
                grads: &mut self.grads,
            };
            let decoder = &self.policy.decoder;
            let pass = Pass::new(decoder, &batch.tokens, &batch.prefixes, &batch.rows)?
                .with_dropout(self.config.seed, self.state.step);
            pass.backward(self.config.recompute, &mut accumulator, pace, |hidden| {
                let scores = decoder.score(hidden, &batch.targets)?;
                sums.add_tokens(&scores);
                let logprobs: Vec<f32> = scores.logprobs.to_vec1()?;
                let mut gradients = vec![0f32; logprobs.len()];
                for (i, of_pair) in part.clone().zip(batch.completions.chunks_exact(2)) {
                    let (chosen, rejected) = (of_pair[0].clone(), of_pair[1].clone());
                    let both = &mut gradients[chosen.start..rejected.end];
                    let (of_chosen, of_rejected) = both.split_at_mut(chosen.len());
                    let score = objective.score(
                        &pairs[i],
                        reference[i],
                        [&logprobs[chosen], &logprobs[rejected]],
                        [of_chosen, of_rejected],
                    );
                    if !score.loss.is_finite() {
                        return Err(TrainError::NonFiniteLoss { pair: i });
                    }
                    sums.add(&self.config, &pairs[i], &score);
                }
                // The loss is already known; the backward pass needs only its derivative with respect to each log-probability.
                let gradients = Tensor::from_vec(gradients, logprobs.len(), hidden.device())?;
                Ok(((&scores.logprobs * gradients)?.sum_all()?, ()))
            })?;
            done += count;
        }
        fault::point("train.step");
        let lr = self.schedule.learning_rate(self.state.step);
        let step = self.optimizer.clip_and_step(&self.grads, lr)?;
        let report = sums.report(&step, lr, began.elapsed().as_secs_f64());
        self.state.advance(&report);
        Ok(report)
    }
}

/// Returns the log-probabilities of a batch's targets, without a gradient.
fn token_logprobs(
    decoder: &Decoder,
    batch: &CompletionBatch,
    pace: &mut dyn FnMut(),
) -> Result<Vec<f32>, TrainError> {
    let pass = Pass::new(decoder, &batch.tokens, &batch.prefixes, &batch.rows)?;
    let hidden = pass.forward(pace)?;
    Ok(decoder.score(&hidden, &batch.targets)?.logprobs.to_vec1()?)
}
