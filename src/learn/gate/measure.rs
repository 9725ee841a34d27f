//! Candidate and live policy meet on prompts that never train.

use candle_core::Tensor;

use super::length::Duel;
use crate::learn::LearnError;
use crate::learn::config::{JudgingConfig, RolloutConfig};
use crate::learn::judging::PinnedJudge;
use crate::learn::rollout::{Answer, Prompt, roll_out};
use crate::model::WeightsLease;
use crate::model::adapter::AdapterWeights;
use crate::service::Service;
use crate::train::TrainError;
use crate::train::base::{Adapter, FrozenBase};

/// `samples` answers of `weights` to every prompt, one behind the other, drawn as the updates draw theirs.
///
/// # Errors
/// The service's.
pub async fn answers_of(
    service: &Service,
    rollout: &RolloutConfig,
    weights: &WeightsLease,
    prompts: &[Prompt],
    samples: usize,
) -> Result<Vec<Answer>, LearnError> {
    let drawn = RolloutConfig {
        samples,
        ..rollout.clone()
    };
    let answers = roll_out(service, weights, &drawn, prompts).await?;
    Ok(answers.into_iter().flatten().collect())
}

/// The candidate's answers beside a rival's, as many of each to a prompt, compared by the pinned judge. A verdict with too little probability
/// on its labels compares nothing: it counts as a tie.
///
/// # Errors
/// The service's.
pub async fn meet(
    service: &Service,
    config: &JudgingConfig,
    judge: &PinnedJudge,
    prompts: &[Prompt],
    [candidates, rivals]: [&[Answer]; 2],
) -> Result<Vec<Duel>, LearnError> {
    let answers = candidates.len() / prompts.len().max(1);
    let prompts = prompts.iter().flat_map(|prompt| vec![prompt; answers]);
    let texts = prompts.zip(candidates.iter().zip(rivals));
    let texts = texts.map(|(prompt, (a, b))| (prompt.messages.clone(), &*a.text, &*b.text));
    let verdicts = judge.judge_all(service, texts).await?;
    let duels = verdicts.iter().zip(candidates.iter().zip(rivals));
    let duels = duels.map(|(verdict, (a, b))| Duel {
        score: match config.compares(verdict) {
            true => f64::from(verdict.p),
            false => 0.5,
        },
        longer: a.ids.len() as f64 - b.ids.len() as f64,
    });
    Ok(duels.collect())
}

/// Returns the share of answers that their length cut off.
pub fn cut_off(answers: &[Answer]) -> f64 {
    let cut = answers.iter().filter(|answer| !answer.complete).count();
    cut as f64 / answers.len().max(1) as f64
}

/// Mean absolute difference of two reads of the same tokens' log-probabilities: what the server said, and what the trainer computes.
/// None of no tokens.
pub fn parity<'a>(
    answers: impl IntoIterator<Item = &'a Answer>,
    scored: &[Vec<f32>],
) -> Option<f64> {
    let tokens = answers.into_iter().zip(scored);
    let tokens = tokens.flat_map(|(answer, scored)| answer.logprobs.iter().zip(scored));
    let (mut sum, mut count) = (0.0, 0usize);
    for (served, scored) in tokens {
        sum += f64::from((served - scored).abs());
        count += 1;
    }
    (count > 0).then(|| sum / count as f64)
}

/// Mean over answers of `log policy - log other`, nats an answer; none of no answers.
///
/// Of answers that the policy drew at temperature 1 from its whole vocabulary it is an unbiased estimate of the KL divergence. Of a
/// nucleus (`rollout.top_p` below 1) or of another temperature it is the mean log-ratio over the answers that the policy is asked for
/// in that way: it leaves out what the tail differs by, and is no bound on the divergence.
pub fn divergence(policy: &[Vec<f32>], other: &[Vec<f32>]) -> Option<f64> {
    mean(&log_ratios(policy, other))
}

/// `log policy - log other` of each answer, nats.
pub fn log_ratios(policy: &[Vec<f32>], other: &[Vec<f32>]) -> Vec<f64> {
    let sum = |logprobs: &Vec<f32>| logprobs.iter().map(|&x| f64::from(x)).sum::<f64>();
    let answers = policy.iter().zip(other);
    answers
        .map(|(policy, other)| sum(policy) - sum(other))
        .collect()
}

/// None of nothing.
pub fn mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
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

/// Whether an adapter computes with other factors than the one it started from; without a start, whether it changes the base at all.
///
/// # Errors
/// The tensor library's.
pub fn moved(trained: Option<&Adapter>, start: Option<&Adapter>) -> Result<bool, LearnError> {
    let Some(trained) = trained else {
        return Ok(start.is_some());
    };
    for (path, pair) in &trained.weights {
        let before = start.and_then(|start| start.weights.get(path));
        let factors = match before {
            Some(before) => vec![(&pair.a, Some(&before.a)), (&pair.b, Some(&before.b))],
            // A fresh adapter: its A is drawn, and nothing changes while its B is 0.
            None => vec![(&pair.b, None)],
        };
        for (now, before) in factors {
            let values = |of: &Tensor| of.flatten_all().and_then(|flat| flat.to_vec1::<f32>());
            let now = values(now).map_err(TrainError::from)?;
            let same = match before {
                Some(before) => now == values(before).map_err(TrainError::from)?,
                None => now.iter().all(|&value| value == 0.0),
            };
            if !same {
                return Ok(true);
            }
        }
    }
    Ok(false)
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
    use candle_core::Device;

    use super::*;
    use crate::learn::judging::tests::answer;
    use crate::model::adapter::{LoraConfig, LoraPair};

    #[test]
    fn parity_is_by_the_token_and_divergence_by_the_answer() {
        let answers = [answer(&[1, 2]), answer(&[3])];
        // Served: -0.5 each.
        let scored = vec![vec![-0.4, -0.6], vec![-0.2]];
        assert!((parity(&answers, &scored).unwrap() - 0.5 / 3.0).abs() < 1e-6);
        let base = vec![vec![-1.0, -1.0], vec![-0.2]];
        assert!((divergence(&scored, &base).unwrap() - 0.5).abs() < 1e-6);
        assert_eq!(divergence(&[], &[]), None);
        assert_eq!(parity(&[], &[]), None);
    }

    #[test]
    fn an_adapter_has_moved_where_any_factor_has() {
        let adapter = |a: f32, b: f32| {
            let matrix = |value| Tensor::full(value, (2, 2), &Device::Cpu).unwrap();
            let pair = LoraPair {
                a: matrix(a),
                b: matrix(b),
            };
            Adapter {
                config: LoraConfig::default(),
                weights: AdapterWeights::from([("layer".to_owned(), pair)]),
            }
        };
        let has = |now: &Adapter, before: Option<&Adapter>| moved(Some(now), before).unwrap();
        let start = adapter(1.0, 2.0);
        assert!(!has(&start, Some(&start)));
        assert!(has(&adapter(1.0, 2.1), Some(&start)) && has(&adapter(1.1, 2.0), Some(&start)));
        assert!(!has(&adapter(1.0, 0.0), None), "a fresh one");
        assert!(has(&adapter(1.0, 0.1), None));
    }
}
