//! The end of a stage: its candidate is written, evaluated, and promoted or rejected.

use std::path::Path;

use super::LearnError;
use super::config::LearnConfig;
use super::gate::anchor::{AnchorScores, AnchorSet};
use super::gate::measure::{
    answers_of, cut_off, divergence, largest_change, mean, meet, moved, not_finite, parity,
};
use super::gate::{BaseMeasurements, GateResult, Measurements, judge as judge_gates};
use super::generation::{Lineage, extrapolate};
use super::learner::{Learner, Running};
use super::rollout::{Answer, Prompt};
use super::stage::{Draw, StageState};
use super::status::Phase;
use super::trainer::Trainer;
use model::{WeightsLease, WeightsName};
use traffic_log::{
    GenerationId, GenerationState, LogError, NewGeneration, Pointer, PointerMove, StageId,
    StageOutcome,
};
use train::base::Adapter;
use train::dpo::Scorer;

impl Learner {
    /// Writes the trained adapter as a generation, and records its id in the stage's state.
    pub(super) async fn write_candidate(
        &self,
        running: &mut Running<'_>,
        mut trainer: Trainer,
        updates: u64,
    ) -> Result<(), LearnError> {
        let state = &running.state;
        let lineage = Lineage {
            parent: state.train.clone(),
            reference: state.reference.clone(),
            judge: state.judge.clone(),
            stage: running.id.0 as u64,
            updates,
            pairs: state.pairs,
            base: self.workshop.base_digest.clone(),
            adapter: self.bases.adapter()?,
            tokenizer: Some(self.bases.tokenizer().to_owned()),
            extrapolate: state.config.publish.extrapolate,
            config: serde_json::to_value(&state.config)?,
        };
        let (generations, by) = (self.generations.clone(), lineage.extrapolate);
        let written = trainer.with(move |trainer, _| {
            Ok(generations.write(lineage, |dir| {
                let trained = trainer.adapter()?;
                trained.save(dir)?;
                match by {
                    0.0 => Ok(()),
                    by => extrapolate(dir, trained, by),
                }
            }))
        });
        let id = written.await??;
        let (_, manifest) = self.generations.verified(&id)?;
        running
            .lease
            .insert_generation(NewGeneration {
                id: GenerationId::new(id.as_str()),
                parent: GenerationId::new(state.train.as_str()),
                reference: GenerationId::new(state.reference.as_str()),
                stage: Some(running.id),
                manifest: serde_json::to_value(&manifest)?,
            })
            .await?;
        fault::point("generation.inserted");
        running.state.candidate = Some(id);
        running.save().await
    }

    /// Evaluates the candidate and closes the stage.
    pub(super) async fn conclude(&self, running: &mut Running<'_>) -> Result<(), LearnError> {
        let Some(candidate) = running.state.candidate.clone() else {
            return Err(LearnError::Config(
                "a stage without a candidate was concluded".into(),
            ));
        };
        self.control.enter(Phase::Gating);
        let id = GenerationId::new(candidate.as_str());
        // The process was killed after the pointers moved and before the stage was closed: the gates have passed already.
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
        self.control
            .change(|status| status.last_outcome = Some(outcome.to_string()));
        self.control.follow(self.log.learning_switch().await?);
        tracing::info!(
            "learning: stage {} {outcome}: generation {candidate}",
            running.id
        );
        // `follow` logs its own errors, and it is retried every few seconds.
        let _ = self.publisher.follow().await;
        self.tidy(running).await;
        Ok(())
    }

    /// Stores the gates' results and promotes a candidate that passed all of them.
    async fn decide(
        &self,
        running: &Running<'_>,
        id: &GenerationId,
        gates: Vec<GateResult>,
    ) -> Result<StageOutcome, LearnError> {
        let passed = gates.iter().all(|gate| gate.passed);
        self.control.show_gates(&gates);
        say_gates(running.id, &gates);
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
            // The candidate waits for an operator; the next stage starts from the served policy.
            return Ok(StageOutcome::Passed);
        }
        // An operator who paused learning during the evaluation does not want the weights to change now.
        self.unpaused().await?;
        let state = &running.state;
        let step = |pointer, from: &str| PointerMove {
            pointer,
            from: GenerationId::new(from),
            to: id.clone(),
        };
        let canary = self.log.pointers().await?.canary;
        let moves = [
            step(Pointer::Policy, &state.policy),
            step(Pointer::Train, &state.train),
            step(Pointer::Reference, &state.reference),
            step(Pointer::Canary, canary.as_str()),
        ];
        match running.lease.promote(&moves, "passed all gates").await {
            Ok(()) => Ok(StageOutcome::Promoted),
            // An operator moved the policy while the stage ran. A candidate replaces only the policy it was trained from.
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

    /// Returns the result of every gate.
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
        let prompts: Vec<_> = prompts.into_iter().map(|drawn| drawn.prompt).collect();
        let (service, rollout, judging) = (&self.service, &config.rollout, &config.judging);
        let count = config.gates.answers;
        let answers = answers_of(service, rollout, &contender, &prompts, count).await?;
        let before = answers_of(service, rollout, &live, &prompts, count).await?;
        let duels = meet(service, judging, &judge, &prompts, [&answers, &before]).await?;
        // Generation 0 is measured too, so that the losses allowed to each stage do not accumulate.
        let (base_duels, base_truncated) = if state.policy == WeightsName::BASE {
            (duels.clone(), cut_off(&before))
        } else {
            let base = self.service.weights().base().clone();
            let first = answers_of(service, rollout, &base, &prompts, count).await?;
            let duels = meet(service, judging, &judge, &prompts, [&answers, &first]).await?;
            (duels, cut_off(&first))
        };
        let adapter = self.generations.served(candidate)?;
        let adapter = adapter.ok_or_else(|| LearnError::NoGeneration(candidate.to_owned()))?;
        // Means over answers use only the first answer to each prompt.
        let answered = prompts.iter().zip(answers.iter().step_by(count.max(1)));
        let answered: Vec<_> = answered.filter(|(_, a)| !a.ids.is_empty()).collect();
        let scored = self.scored(state, adapter.clone(), &answered).await?;
        let anchored = match config.gates.anchor.as_ref().or(self.anchors.as_ref()) {
            Some(path) => Some(
                self.anchored(state, path, candidate, [&contender, &live])
                    .await?,
            ),
            None => None,
        };
        let both = |of: fn(&AnchorScores) -> Option<f64>| {
            let [candidate, live, _] = anchored.as_ref()?;
            Some([of(candidate)?, of(live)?])
        };
        let first = |of: fn(&AnchorScores) -> Option<f64>| of(&anchored.as_ref()?[2]);
        let scores: Vec<f64> = base_duels.iter().map(|duel| duel.score).collect();
        let measured = Measurements {
            not_finite: not_finite(&adapter.weights)?,
            norm: largest_change(&self.workshop.base, &adapter, self.generations.first())?,
            moved: moved(
                self.generations.trained(candidate)?.as_ref(),
                self.generations.trained(&state.train)?.as_ref(),
            )?,
            step_zero: state.step_zero,
            parity: parity(answered.iter().map(|(_, answer)| *answer), &scored.own),
            kl: divergence(&scored.own, &scored.base),
            duels,
            truncated: [cut_off(&answers), cut_off(&before)],
            anchor: both(|scores| scores.preferred),
            judge: both(|scores| scores.judged),
            base: BaseMeasurements {
                win_rate: mean(&scores),
                truncated: base_truncated,
                anchor: first(|scores| scores.preferred),
                judge: first(|scores| scores.judged),
            },
        };
        Ok(judge_gates(&config.gates, &measured))
    }

    /// Computes the log-probabilities of the candidate's answers with the trainer's forward pass, under the candidate and under the base.
    async fn scored(
        &self,
        state: &StageState,
        candidate: Adapter,
        answered: &[(&Prompt, &Answer)],
    ) -> Result<Scored, LearnError> {
        let dpo = &state.config.dpo;
        let mut scorer = self.workshop.trainer(dpo, Some(candidate), 1).await?;
        let asked = answered.iter();
        let asked: Vec<_> = asked
            .map(|(prompt, answer)| (prompt.ids.clone(), answer.ids.clone()))
            .collect();
        let scored = scorer.with(move |scorer, pace| {
            Ok(Scored {
                own: scorer.score(Scorer::Policy, &asked, pace)?,
                base: scorer.score(Scorer::Base, &asked, pace)?,
            })
        });
        scored.await
    }

    /// Returns the accuracies of the candidate, the live policy and generation 0 on the anchor set.
    async fn anchored(
        &self,
        state: &StageState,
        path: &Path,
        candidate: &str,
        [contender, live]: [&WeightsLease; 2],
    ) -> Result<[AnchorScores; 3], LearnError> {
        let set = AnchorSet::read(path, &self.service).await?;
        let base = self.service.weights().base();
        let of = [
            (candidate, contender),
            (&*state.policy, live),
            (WeightsName::BASE, base),
        ];
        let mut measured: Vec<(&str, AnchorScores)> = Vec::with_capacity(of.len());
        for (name, weights) in of {
            let known = measured.iter().find(|(known, _)| *known == name);
            let known = known.map(|(_, scores)| *scores);
            let scores = match known.or_else(|| self.last_scores.get(set.digest(), name)) {
                Some(scores) => scores,
                None => self.anchor_scores(state, &set, name, weights).await?,
            };
            measured.push((name, scores));
        }
        self.last_scores.replace(set.digest(), &measured);
        Ok([measured[0].1, measured[1].1, measured[2].1])
    }

    async fn anchor_scores(
        &self,
        state: &StageState,
        set: &AnchorSet,
        generation: &str,
        weights: &WeightsLease,
    ) -> Result<AnchorScores, LearnError> {
        let dpo = &state.config.dpo;
        let adapter = self.generations.served(generation)?;
        let mut scorer = self.workshop.trainer(dpo, adapter, 1).await?;
        let sequences = set.sequences();
        // The trainer and the server work concurrently.
        let (logprobs, judged) = tokio::try_join!(
            scorer.with(move |scorer, pace| scorer.score(Scorer::Policy, &sequences, pace)),
            set.judged(&self.service, weights),
        )?;
        Ok(AnchorScores {
            preferred: set.preferred(&logprobs),
            judged,
        })
    }
}

/// Logs which gates rejected a candidate, with their numbers, or that all of them passed.
fn say_gates(stage: StageId, gates: &[GateResult]) {
    let passed = gates.iter().filter(|gate| gate.passed).count();
    let win_rate = gates.iter().find(|gate| gate.gate == "win_rate");
    let win_rate = win_rate.and_then(|gate| gate.value);
    let refused: Vec<String> = gates
        .iter()
        .filter(|gate| !gate.passed)
        .map(|gate| match gate.value {
            Some(value) => format!("{} {value:.3} (bound {:.3})", gate.gate, gate.bound),
            None => format!("{} not measured", gate.gate),
        })
        .collect();
    let win_rate = win_rate.map_or(String::new(), |rate| format!(", win rate {rate:.3}"));
    let refused = match refused.is_empty() {
        true => String::new(),
        false => format!("; refused by {}", refused.join(", ")),
    };
    tracing::info!(
        "stage {stage}: gates {passed}/{}{win_rate}{refused}",
        gates.len()
    );
}

/// Log-probabilities per token.
struct Scored {
    /// The candidate's answers under the candidate.
    own: Vec<Vec<f32>>,
    /// The candidate's answers under the base.
    base: Vec<Vec<f32>>,
}
