//! Candidate and live policy meet on prompts that never train.

use super::length::Duel;
use crate::learn::LearnError;
use crate::learn::config::RolloutConfig;
use crate::learn::judging::PinnedJudge;
use crate::learn::rollout::{Answer, Prompt, roll_out};
use crate::model::WeightsLease;
use crate::model::adapter::AdapterWeights;
use crate::service::Service;
use crate::train::TrainError;
use crate::train::base::{Adapter, FrozenBase};

/// What the meeting showed.
#[derive(Debug, Clone)]
pub struct Meeting {
    pub duels: Vec<Duel>,
    /// Shares of answers that were cut off, candidate's and live policy's.
    pub truncated: [f64; 2],
    /// The candidate's answers, prompt by prompt.
    pub answers: Vec<Answer>,
}

/// One answer of each to every prompt, compared by the pinned judge.
///
/// # Errors
/// The service's.
pub async fn meet(
    service: &Service,
    rollout: &RolloutConfig,
    judge: &PinnedJudge,
    [candidate, live]: [&WeightsLease; 2],
    prompts: &[Prompt],
) -> Result<Meeting, LearnError> {
    let one = RolloutConfig {
        samples: 1,
        ..rollout.clone()
    };
    let first = |answers: Vec<Vec<Answer>>| answers.into_iter().flatten().collect::<Vec<_>>();
    let candidates = first(roll_out(service, candidate, &one, prompts).await?);
    let lives = first(roll_out(service, live, &one, prompts).await?);
    let texts = prompts.iter().zip(candidates.iter().zip(&lives));
    let texts = texts.map(|(prompt, (a, b))| (prompt.messages.clone(), &*a.text, &*b.text));
    let verdicts = judge.judge_all(service, texts).await?;
    let duels = verdicts.iter().zip(candidates.iter().zip(&lives));
    let duels = duels.map(|(verdict, (a, b))| Duel {
        score: f64::from(verdict.p),
        longer: a.ids.len() as f64 - b.ids.len() as f64,
    });
    Ok(Meeting {
        duels: duels.collect(),
        truncated: [&candidates, &lives].map(|answers| cut_off(answers)),
        answers: candidates,
    })
}

fn cut_off(answers: &[Answer]) -> f64 {
    let cut = answers.iter().filter(|answer| !answer.complete).count();
    cut as f64 / answers.len().max(1) as f64
}

/// Mean absolute difference of two reads of the same tokens' log-probabilities: what the server said, and what the trainer computes.
pub fn parity(answers: &[Answer], scored: &[Vec<f32>]) -> f64 {
    let tokens = answers.iter().zip(scored);
    let tokens = tokens.flat_map(|(answer, scored)| answer.logprobs.iter().zip(scored));
    let (mut sum, mut count) = (0.0, 0usize);
    for (served, scored) in tokens {
        sum += f64::from((served - scored).abs());
        count += 1;
    }
    sum / count.max(1) as f64
}

/// Mean over answers of `log policy - log other`, nats an answer: an unbiased estimate of the KL divergence, as the answers are the
/// policy's own.
pub fn divergence(policy: &[Vec<f32>], other: &[Vec<f32>]) -> f64 {
    let sum = |logprobs: &Vec<f32>| logprobs.iter().map(|&x| f64::from(x)).sum::<f64>();
    let answers = policy.iter().zip(other);
    let total: f64 = answers
        .map(|(policy, other)| sum(policy) - sum(other))
        .sum();
    total / policy.len().max(1) as f64
}

/// Values of an adapter that are no numbers.
///
/// # Errors
/// The tensor library's.
pub fn not_finite(weights: &AdapterWeights) -> Result<usize, LearnError> {
    let mut count = 0;
    for pair in weights.values() {
        for factor in [&pair.a, &pair.b] {
            let values = factor.flatten_all().and_then(|flat| flat.to_vec1::<f32>());
            let values = values.map_err(TrainError::from)?;
            count += values.iter().filter(|value| !value.is_finite()).count();
        }
    }
    Ok(count)
}

/// The largest change of a layer, `|scale B A| / |W|` in Frobenius norms. `B A` is never made: its squared norm is
/// `sum((BᵀB) * (A Aᵀ))`, two matrices of the rank's size.
///
/// # Errors
/// The tensor library's; a layer that the base does not have.
pub fn largest_change(base: &FrozenBase, adapter: &Adapter) -> Result<f64, LearnError> {
    let mut largest = 0.0_f64;
    for (path, pair) in &adapter.weights {
        let change = (|| {
            let outer = pair.b.t()?.matmul(&pair.b)?;
            let inner = pair.a.matmul(&pair.a.t()?)?;
            (outer * inner)?.sum_all()?.to_scalar::<f32>()
        })();
        let change = f64::from(change.map_err(TrainError::from)?).max(0.0).sqrt();
        let scale = adapter.config.scale(path).abs();
        largest = largest.max(scale * change / base.norm(path)?);
    }
    Ok(largest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::learn::judging::tests::answer;

    #[test]
    fn parity_is_by_the_token_and_divergence_by_the_answer() {
        let answers = [answer(&[1, 2]), answer(&[3])];
        // Served: -0.5 each.
        let scored = vec![vec![-0.4, -0.6], vec![-0.2]];
        assert!((parity(&answers, &scored) - 0.5 / 3.0).abs() < 1e-6);
        let base = vec![vec![-1.0, -1.0], vec![-0.2]];
        assert!((divergence(&scored, &base) - 0.5).abs() < 1e-6);
        assert_eq!(divergence(&[], &[]), 0.0);
        assert_eq!(parity(&[], &[]), 0.0);
    }
}
