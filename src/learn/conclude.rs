//! How a stage ends: its candidate is written, measured, and promoted or not.

use super::LearnError;
use super::config::LearnConfig;
use super::gate::anchor::AnchorSet;
use super::gate::measure::{divergence, largest_change, meet, not_finite, parity};
use super::gate::{GateResult, Measurements, judge as judge_gates};
use super::generation::Lineage;
use super::learner::{Learner, Running};
use super::stage::Draw;
use super::status::Phase;
use super::trainer::Trainer;
use crate::fault;
use crate::preference::log::{
    GenerationId, GenerationState, LogError, NewGeneration, Pointer, PointerMove, StageOutcome,
};
use crate::train::base::Adapter;
use crate::train::dpo::Scorer;

impl Learner {
    /// Writes what the updates made as a generation, and names it in the stage's state.
    pub(super) async fn write_candidate(
        &self,
        running: &mut Running<'_>,
        mut trainer: Trainer,
        updates: u64,
    ) -> Result<(), LearnError> {
        let state = &running.state;
        let lineage = Lineage {
            parent: state.policy.clone(),
            reference: state.reference.clone(),
            judge: state.judge.clone(),
            stage: running.id.0 as u64,
            updates,
            pairs: state.pairs,
            base: self.workshop.base_digest.clone(),
            config: serde_json::to_value(&state.config)?,
        };
        let (generations, extrapolate) =
            (self.generations.clone(), state.config.publish.extrapolate);
        let written = trainer.with(move |trainer, _| {
            Ok(generations.write(lineage, |dir| {
                trainer.save_state(dir)?;
                match extrapolate {
                    0.0 => Ok(()),
                    by => extrapolated(trainer.adapter()?, by)?.save(dir),
                }
            }))
        });
        let id = written.await??;
        let (_, manifest) = self.generations.verified(&id)?;
        running
            .lease
            .insert_generation(NewGeneration {
                id: GenerationId::new(id.as_str()),
                parent: GenerationId::new(state.policy.as_str()),
                reference: GenerationId::new(state.reference.as_str()),
                stage: Some(running.id),
                manifest: serde_json::to_value(&manifest)?,
            })
            .await?;
        fault::point("generation.inserted");
        running.state.candidate = Some(id);
        running.save().await
    }

    /// Measures the candidate and closes the stage.
    pub(super) async fn conclude(&self, running: &mut Running<'_>) -> Result<(), LearnError> {
        let Some(candidate) = running.state.candidate.clone() else {
            return Err(LearnError::Config(
                "a stage without a candidate was concluded".into(),
            ));
        };
        self.control.enter(Phase::Gating);
        let id = GenerationId::new(candidate.as_str());
        // Killed after the pointers moved and before the stage was closed: the gates have been passed.
        let outcome = if self.log.pointers().await?.policy == id {
            StageOutcome::Promoted
        } else {
            match self.measured(running, &candidate).await {
                Ok(gates) => self.decide(running, &id, gates).await?,
                Err(
                    error @ (LearnError::DamagedGeneration { .. } | LearnError::NoGeneration(_)),
                ) => {
                    tracing::error!("learning: {error}; the stage is given up");
                    let none = serde_json::Value::Null;
                    let failed = Some(GenerationState::Failed);
                    running.lease.record_gates(&id, &none, failed).await?;
                    StageOutcome::Failed
                }
                Err(error) => return Err(error),
            }
        };
        let state = serde_json::to_value(&running.state)?;
        running
            .lease
            .close_stage(running.id, outcome, &state)
            .await?;
        let metrics = self.control.metrics();
        metrics.stages.with_label_values(&[outcome.as_str()]).inc();
        self.control.change(|status| {
            status.last_outcome = Some(outcome.to_string());
            if outcome == StageOutcome::Promoted {
                status.unattended += 1;
            }
        });
        tracing::info!(
            "learning: stage {} {outcome}: generation {candidate}",
            running.id
        );
        if let Err(error) = self.publisher.follow().await {
            tracing::warn!("what serves stays as it is: {error}");
        }
        Ok(())
    }

    /// Stores the gates' numbers; promotes what passed all of them.
    async fn decide(
        &self,
        running: &Running<'_>,
        id: &GenerationId,
        gates: Vec<GateResult>,
    ) -> Result<StageOutcome, LearnError> {
        let passed = gates.iter().all(|gate| gate.passed);
        for gate in &gates {
            let value = gate.value.unwrap_or(f64::NAN);
            self.control
                .metrics()
                .gates
                .with_label_values(&[&gate.gate])
                .set(value);
        }
        self.control
            .change(|status| status.gates.clone_from(&gates));
        let refused = (!passed).then_some(GenerationState::Rejected);
        running
            .lease
            .record_gates(id, &serde_json::to_value(&gates)?, refused)
            .await?;
        fault::point("gate.recorded");
        if !passed {
            return Ok(StageOutcome::Rejected);
        }
        if !running.state.config.publish.promote {
            // It waits for an operator; the next stage starts from what serves.
            return Ok(StageOutcome::Passed);
        }
        let state = &running.state;
        let step = |pointer, from: &str| PointerMove {
            pointer,
            from: GenerationId::new(from),
            to: id.clone(),
        };
        let pointers = self.log.pointers().await?;
        let moves = [
            step(Pointer::Policy, &state.policy),
            step(Pointer::Train, pointers.train.as_str()),
            step(Pointer::Reference, pointers.reference.as_str()),
            step(Pointer::Canary, pointers.canary.as_str()),
        ];
        match running.lease.promote(&moves, "passed all gates").await {
            Ok(()) => Ok(StageOutcome::Promoted),
            // An operator moved the policy while the stage ran: a candidate of the old one replaces nothing.
            Err(LogError::Conflict { .. }) => {
                tracing::warn!("learning: the policy was moved during stage {}", running.id);
                let rejected = Some(GenerationState::Rejected);
                let gates = serde_json::to_value(&gates)?;
                running.lease.record_gates(id, &gates, rejected).await?;
                Ok(StageOutcome::Rejected)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Every gate's number.
    async fn measured(
        &self,
        running: &Running<'_>,
        candidate: &str,
    ) -> Result<Vec<GateResult>, LearnError> {
        let state = &running.state;
        let config: &LearnConfig = &state.config;
        let contender = self.publisher.weights(candidate).await?;
        let live = self.publisher.weights(&state.policy).await?;
        let judge = self.judge(state).await?;
        let maker = self.pair_maker(running.id, state, judge.clone());
        let places = (0_u64..).zip(&state.gate_rows);
        let prompts = maker.prompts(Draw::Gate, places).await?;
        let prompts: Vec<_> = prompts.into_iter().map(|(_, prompt)| prompt).collect();
        let meeting = meet(
            &self.service,
            &config.rollout,
            &judge,
            [&contender, &live],
            &prompts,
        )
        .await?;

        let adapter = self.adapter(candidate)?;
        let adapter = adapter.ok_or_else(|| LearnError::NoGeneration(candidate.to_owned()))?;
        let anchor = match config.gates.anchor.as_ref().or(self.anchors.as_ref()) {
            Some(path) => Some(AnchorSet::read(path, &self.service).await?),
            None => None,
        };
        // The candidate as the trainer computes it, beside the live policy as its reference.
        let mut scorer = self
            .workshop
            .trainer(&config.dpo, Some(adapter.clone()), 1)
            .await?;
        let before = self.adapter(&state.policy)?;
        let asked: Vec<(Vec<u32>, Vec<u32>)> = prompts
            .iter()
            .zip(&meeting.answers)
            .filter(|(_, answer)| !answer.ids.is_empty())
            .map(|(prompt, answer)| (prompt.ids.clone(), answer.ids.clone()))
            .collect();
        let anchored = anchor
            .as_ref()
            .map(AnchorSet::sequences)
            .unwrap_or_default();
        let scored = scorer.with(move |scorer, pace| {
            scorer.set_reference(before.as_ref())?;
            Ok([
                scorer.score(Scorer::Policy, &asked, pace)?,
                scorer.score(Scorer::Base, &asked, pace)?,
                scorer.score(Scorer::Policy, &anchored, pace)?,
                scorer.score(Scorer::Reference, &anchored, pace)?,
            ])
        });
        let [own, base, anchor_candidate, anchor_live] = scored.await?;
        let answered: Vec<_> = meeting
            .answers
            .iter()
            .filter(|a| !a.ids.is_empty())
            .cloned()
            .collect();
        let measured = Measurements {
            not_finite: not_finite(&adapter.weights)?,
            norm: largest_change(&self.workshop.base, &adapter)?,
            step_zero: state.step_zero,
            parity: parity(&answered, &own),
            kl: divergence(&own, &base),
            duels: meeting.duels,
            truncated: meeting.truncated,
            anchor: anchor.as_ref().and_then(|set| {
                let (candidate, live) = (&anchor_candidate, &anchor_live);
                Some([set.preferred(candidate)?, set.preferred(live)?])
            }),
            judge: match &anchor {
                Some(set) => set
                    .judged(&self.service, &contender)
                    .await?
                    .zip(set.judged(&self.service, &live).await?)
                    .map(<[f64; 2]>::from),
                None => None,
            },
        };
        Ok(judge_gates(&config.gates, &measured))
    }
}

/// ExPO (arXiv 2404.16792): `base + (1 + by) (trained - base)`, which for an adapter is its `B` scaled.
fn extrapolated(adapter: Adapter, by: f32) -> Result<Adapter, crate::train::TrainError> {
    let mut adapter = adapter;
    for pair in adapter.weights.values_mut() {
        pair.b = (&pair.b * f64::from(1.0 + by))?;
    }
    Ok(adapter)
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor};

    use super::*;
    use crate::model::adapter::{AdapterWeights, LoraConfig, LoraPair};

    #[test]
    fn extrapolating_scales_the_change() {
        let ones = Tensor::ones((2, 2), candle_core::DType::F32, &Device::Cpu).unwrap();
        let pair = LoraPair {
            a: ones.clone(),
            b: ones,
        };
        let adapter = Adapter {
            config: LoraConfig::default(),
            weights: AdapterWeights::from([("layer".to_owned(), pair)]),
        };
        let scaled = extrapolated(adapter, 0.5).unwrap();
        let b = scaled.weights["layer"].b.to_vec2::<f32>().unwrap();
        assert_eq!(b, [[1.5, 1.5], [1.5, 1.5]]);
    }
}
