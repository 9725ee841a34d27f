//! The phase `Gating`: the candidate of a trained stage is measured, and passes or is refused.

use std::path::Path;

use super::LearnError;
use super::gate::anchor::{AnchorScores, AnchorSet};
use super::gate::measure::{
    answers_of, cut_off, divergence, head_to_head, largest_change, mean, moved, not_finite, parity,
};
use super::gate::{BaseMeasurements, GateResult, Measurements, judge as judge_gates};
use super::learner::Learner;
use super::open_stage::OpenStage;
use super::phase::StageEvent;
use super::rollout::{Answer, Prompt};
use super::seed::Draw;
use super::stage::StagePlan;
use super::status::LearnState;
use model::{WeightsLease, WeightsName};
use traffic_log::{GenerationId, GenerationState, StageId};
use train::{base::Adapter, dpo::Scorer};

/// Measures the candidate of a stage.
pub(super) struct Gating<'a> {
    learner: &'a Learner,
}

impl<'a> Gating<'a> {
    pub fn new(learner: &'a Learner) -> Self {
        Self { learner }
    }

    /// Runs the phase: measures the candidate and stores the gates' results.
    ///
    /// # Errors
    /// Errors from the log, the service, the trainer and the file system.
    pub async fn run(&self, stage: &mut OpenStage<'_>) -> Result<(), LearnError> {
        let Some(candidate) = stage.progress.candidate.clone() else {
            return Err(LearnError::Config(
                "a stage without a candidate came to its gates".into(),
            ));
        };
        let control = &self.learner.control;
        control.enter(LearnState::Gating);
        let id = GenerationId::new(candidate.as_str());
        // An operator promoted the candidate already; or the stage is of version 1, whose pointers moved before it was closed.
        if self.learner.log.generations.pointers().await?.policy == id {
            return stage.advance(StageEvent::Passed { promote: true }).await;
        }
        let event = match self.measured(stage, &candidate).await {
            Ok(gates) => {
                let passed = gates.iter().all(|gate| gate.passed);
                control.show_gates(&gates);
                log_gates(stage.id, &gates);
                let refused = (!passed).then_some(GenerationState::Rejected);
                let gates = serde_json::to_value(&gates)?;
                stage.lease.record_gates(&id, &gates, refused).await?;
                fault::point("gate.recorded");
                let promote = stage.plan.config.publish.promote;
                match passed {
                    true => StageEvent::Passed { promote },
                    false => StageEvent::Refused,
                }
            }
            Err(error @ (LearnError::DamagedGeneration { .. } | LearnError::NoGeneration(_))) => {
                tracing::error!("learning: {error}; the stage is given up");
                let none = serde_json::Value::Null;
                let failed = Some(GenerationState::Failed);
                stage.lease.record_gates(&id, &none, failed).await?;
                StageEvent::CandidateDamaged
            }
            Err(error) => return Err(error),
        };
        stage.advance(event).await
    }

    /// Returns the result of every gate.
    async fn measured(
        &self,
        stage: &OpenStage<'_>,
        candidate: &str,
    ) -> Result<Vec<GateResult>, LearnError> {
        let (learner, plan) = (self.learner, &stage.plan);
        let (config, generations) = (&plan.config, &learner.generations);
        let contender = learner.publisher.weights(candidate).await?;
        let live = learner.publisher.weights(&plan.policy).await?;
        let judge = learner.judge(plan).await?;
        let maker = learner.pair_maker(stage.id, plan, judge.clone());
        let places = (0_u64..).zip(&plan.gate_rows);
        let prompts = maker.prompts(Draw::Gate, places).await?;
        let prompts: Vec<_> = prompts.into_iter().map(|drawn| drawn.prompt).collect();
        let (service, rollout, judging) = (&learner.service, &config.rollout, &config.judging);
        let count = config.gates.answers;
        let answers = answers_of(service, rollout, &contender, &prompts, count).await?;
        let before = answers_of(service, rollout, &live, &prompts, count).await?;
        let duels = head_to_head(service, judging, &judge, &prompts, [&answers, &before]).await?;
        // Generation 0 is measured too, so that the losses allowed to each stage do not accumulate.
        let (base_duels, base_truncated) = if plan.policy == WeightsName::BASE {
            (duels.clone(), cut_off(&before))
        } else {
            let base = self.learner.service.weights().base().clone();
            let first = answers_of(service, rollout, &base, &prompts, count).await?;
            let duels =
                head_to_head(service, judging, &judge, &prompts, [&answers, &first]).await?;
            (duels, cut_off(&first))
        };
        let adapter = generations.served(candidate)?;
        let adapter = adapter.ok_or_else(|| LearnError::NoGeneration(candidate.to_owned()))?;
        // Means over answers use only the first answer to each prompt.
        let answered = prompts.iter().zip(answers.iter().step_by(count.max(1)));
        let answered: Vec<_> = answered.filter(|(_, a)| !a.ids.is_empty()).collect();
        let scored = self.scored(plan, adapter.clone(), &answered).await?;
        let anchored = match config.gates.anchor.as_ref().or(learner.anchors.as_ref()) {
            Some(path) => Some(
                self.anchored(plan, path, candidate, [&contender, &live])
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
            norm: largest_change(&learner.trainers.base, &adapter, generations.first())?,
            moved: moved(
                generations.trained(candidate)?.as_ref(),
                generations.trained(&plan.train)?.as_ref(),
            )?,
            step_zero: stage.progress.step_zero,
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
        plan: &StagePlan,
        candidate: Adapter,
        answered: &[(&Prompt, &Answer)],
    ) -> Result<Scored, LearnError> {
        let dpo = &plan.config.dpo;
        let mut scorer = self
            .learner
            .trainers
            .trainer(dpo, Some(candidate), 1)
            .await?;
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
        plan: &StagePlan,
        path: &Path,
        candidate: &str,
        [contender, live]: [&WeightsLease; 2],
    ) -> Result<[AnchorScores; 3], LearnError> {
        let set = AnchorSet::read(path, &self.learner.service).await?;
        let base = self.learner.service.weights().base();
        let of = [
            (candidate, contender),
            (&*plan.policy, live),
            (WeightsName::BASE, base),
        ];
        let mut measured: Vec<(&str, AnchorScores)> = Vec::with_capacity(of.len());
        for (name, weights) in of {
            let known = measured.iter().find(|(known, _)| *known == name);
            let known = known.map(|(_, scores)| *scores);
            let scores = match known.or_else(|| self.learner.last_scores.get(set.digest(), name)) {
                Some(scores) => scores,
                None => self.anchor_scores(plan, &set, name, weights).await?,
            };
            measured.push((name, scores));
        }
        self.learner.last_scores.replace(set.digest(), &measured);
        Ok([measured[0].1, measured[1].1, measured[2].1])
    }

    async fn anchor_scores(
        &self,
        plan: &StagePlan,
        set: &AnchorSet,
        generation: &str,
        weights: &WeightsLease,
    ) -> Result<AnchorScores, LearnError> {
        let dpo = &plan.config.dpo;
        let adapter = self.learner.generations.served(generation)?;
        let mut scorer = self.learner.trainers.trainer(dpo, adapter, 1).await?;
        let sequences = set.sequences();
        // The trainer and the server work concurrently.
        let (logprobs, judged) = tokio::try_join!(
            scorer.with(move |scorer, pace| scorer.score(Scorer::Policy, &sequences, pace)),
            set.judged(&self.learner.service, weights),
        )?;
        Ok(AnchorScores {
            preferred: set.preferred(&logprobs),
            judged,
        })
    }
}

/// Logs which gates rejected a candidate, with their numbers, or that all of them passed.
fn log_gates(stage: StageId, gates: &[GateResult]) {
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
