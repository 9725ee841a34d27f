//! The objective of a batch of pairs and its gradient for each token's log-probability: the link between per-token scores and
//! [`super::loss`].
//!
//! `loss = sum_i w_i l_i / sum_i w_i + nll * sum_i w_i (-log pi(chosen_i)) / sum_i w_i |chosen_i|`
//!
//! Both denominators are those of the whole batch, so its division into micro-batches affects only memory.

use super::loss::{Completion, token_weights};
use super::{DpoConfig, PairExample};

/// The objective of one batch, with its denominators.
pub(super) struct Objective<'a> {
    config: &'a DpoConfig,
    weight: f64,
    chosen_tokens: f64,
}

/// The scores of one pair.
#[derive(Debug, Clone, Copy)]
pub(super) struct PairScore {
    /// The pair's share of the batch's loss.
    pub loss: f64,
    /// Log-probabilities as in the loss: with LD-DPO, weighted by its token weights.
    pub chosen: Completion,
    pub rejected: Completion,
}

impl<'a> Objective<'a> {
    pub fn new(config: &'a DpoConfig, pairs: &[PairExample]) -> Self {
        let sum = |f: &dyn Fn(&PairExample) -> f64| pairs.iter().map(f).sum();
        Self {
            config,
            weight: sum(&|p| f64::from(p.weight)),
            chosen_tokens: sum(&|p| f64::from(p.weight) * p.chosen.len() as f64),
        }
    }

    /// Scores a pair from its tokens' log-probabilities, and writes the derivative of the batch's loss with respect to each of them into
    /// `gradients`.
    pub fn score(
        &self,
        pair: &PairExample,
        reference: (f32, f32),
        logprobs: [&[f32]; 2],
        gradients: [&mut [f32]; 2],
    ) -> PairScore {
        let DpoConfig {
            beta,
            nll,
            ld_alpha,
            label_smoothing,
            loss,
            ..
        } = self.config;
        let [chosen, rejected] = logprobs;
        let completion = |own: &[f32], other: &[f32], reference: f32| Completion {
            policy: f64::from(summed(*ld_alpha, own, other.len())),
            reference: f64::from(reference),
            tokens: own.len(),
        };
        let (w, l) = (
            completion(chosen, rejected, reference.0),
            completion(rejected, chosen, reference.1),
        );
        let label = loss.target(f64::from(pair.label), *label_smoothing);
        let costs = loss.evaluate(*beta, label, &w, &l);
        let share = f64::from(pair.weight) / self.weight;
        let imitation = nll * f64::from(pair.weight) / self.chosen_tokens;

        let [of_chosen, of_rejected] = gradients;
        for (g, weight) in
            of_chosen
                .iter_mut()
                .zip(token_weights(*ld_alpha, chosen.len(), rejected.len()))
        {
            *g = (share * costs.d_chosen * weight - imitation) as f32;
        }
        for (g, weight) in
            of_rejected
                .iter_mut()
                .zip(token_weights(*ld_alpha, rejected.len(), chosen.len()))
        {
            *g = (share * costs.d_rejected * weight) as f32;
        }
        let of_chosen = chosen.iter().map(|&l| f64::from(l)).sum::<f64>();
        PairScore {
            loss: share * costs.loss - imitation * of_chosen,
            chosen: w,
            rejected: l,
        }
    }
}

/// Returns a completion's log-probability as used in the loss: summed in f64, returned in f32, so that policy and reference are rounded
/// alike and are equal if their tokens' values are.
pub(super) fn summed(ld_alpha: Option<f64>, logprobs: &[f32], others: usize) -> f32 {
    logprobs
        .iter()
        .zip(token_weights(ld_alpha, logprobs.len(), others))
        .map(|(&logprob, weight)| f64::from(logprob) * weight)
        .sum::<f64>() as f32
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;
    use crate::dpo::PreferenceLoss;

    /// `tests/fixtures/dpo/losses.json`; see `make_dpo.py` beside it.
    #[derive(Deserialize)]
    struct Fixture {
        beta: f64,
        pairs: Vec<Pair>,
        cases: Vec<Case>,
    }

    #[derive(Deserialize)]
    struct Pair {
        chosen: Side,
        rejected: Side,
    }

    #[derive(Deserialize)]
    struct Side {
        policy: Vec<f32>,
        reference: Vec<f32>,
    }

    #[derive(Deserialize)]
    struct Case {
        loss: PreferenceLoss,
        label: f32,
        nll: f64,
        ld_alpha: Option<f64>,
        value: f64,
        gradients: Vec<Gradients>,
    }

    #[derive(Deserialize)]
    struct Gradients {
        chosen: Vec<f64>,
        rejected: Vec<f64>,
    }

    #[test]
    fn losses_and_gradients_are_trls() {
        let path = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../tests/fixtures/dpo/losses.json"
        );
        let fixture: Fixture = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let names: std::collections::BTreeSet<String> = fixture
            .cases
            .iter()
            .map(|case| serde_json::to_value(case.loss).unwrap()["type"].to_string())
            .collect();
        assert_eq!(names.len(), 5, "{names:?}");
        for case in &fixture.cases {
            let config = DpoConfig {
                beta: fixture.beta,
                loss: case.loss,
                nll: case.nll,
                ld_alpha: case.ld_alpha,
                ..DpoConfig::default()
            };
            let examples: Vec<PairExample> = fixture
                .pairs
                .iter()
                .map(|pair| PairExample {
                    label: case.label,
                    ..PairExample::new(
                        vec![0],
                        vec![1; pair.chosen.policy.len()],
                        vec![2; pair.rejected.policy.len()],
                    )
                })
                .collect();
            let objective = Objective::new(&config, &examples);
            let what = format!(
                "{:?}, label {}, nll {}, ld_alpha {:?}",
                case.loss, case.label, case.nll, case.ld_alpha
            );
            let mut loss = 0.0;
            for ((pair, example), want) in fixture.pairs.iter().zip(&examples).zip(&case.gradients)
            {
                let (c, r) = (&pair.chosen, &pair.rejected);
                let reference = (
                    summed(case.ld_alpha, &c.reference, r.reference.len()),
                    summed(case.ld_alpha, &r.reference, c.reference.len()),
                );
                let mut gradients = [vec![0f32; c.policy.len()], vec![0f32; r.policy.len()]];
                let [of_chosen, of_rejected] = &mut gradients;
                let score = objective.score(
                    example,
                    reference,
                    [&c.policy, &r.policy],
                    [of_chosen, of_rejected],
                );
                loss += score.loss;
                for (got, want) in gradients.iter().zip([&want.chosen, &want.rejected]) {
                    assert_eq!(got.len(), want.len());
                    for (&got, &want) in got.iter().zip(want) {
                        assert!(
                            (f64::from(got) - want).abs() < 1e-4,
                            "{what}: a gradient of {got} against {want}"
                        );
                    }
                }
            }
            assert!(
                (loss - case.value).abs() < 1e-4,
                "{what}: {loss} against {}",
                case.value
            );
        }
    }
}
