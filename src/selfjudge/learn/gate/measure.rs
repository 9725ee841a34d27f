//! Measurements of a candidate against the live policy on held-out prompts.

use candle_core::{DType, Tensor};

use super::length::Duel;
use crate::learn::LearnError;
use crate::learn::config::{JudgingConfig, RolloutConfig};
use crate::learn::pairs::PinnedJudge;
use crate::learn::rollout::{Answer, Prompt, roll_out};
use crate::service::Service;
use model::{WeightsLease, adapter::AdapterWeights};
use train::{
    TrainError,
    base::{Adapter, FrozenBase},
};

/// Samples `samples` answers of `weights` to every prompt with the settings of the updates; the answers to one prompt are adjacent.
///
/// # Errors
/// Errors from the service.
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

/// Compares the candidate's answers with a rival's, equally many per prompt, by the pinned judge. A verdict with too little probability
/// on its labels counts as a tie.
///
/// # Errors
/// Errors from the service.
pub async fn head_to_head(
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

/// Returns the share of answers that were cut off by the token limit.
pub fn cut_off(answers: &[Answer]) -> f64 {
    let cut = answers.iter().filter(|answer| !answer.complete).count();
    cut as f64 / answers.len().max(1) as f64
}

/// Returns the mean absolute difference, per token, between the server's log-probabilities and the trainer's for the same tokens.
/// None for no tokens.
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

/// Returns the mean over answers of `log policy - log other`, in nats per answer; none for no answers.
///
/// For answers sampled by the policy at temperature 1 from its whole vocabulary this is an unbiased estimate of the KL divergence. With
/// a nucleus (`rollout.top_p` below 1) or another temperature it is the mean log-ratio over answers sampled that way: it leaves out the
/// difference in the tail and is no bound on the divergence.
pub fn divergence(policy: &[Vec<f32>], other: &[Vec<f32>]) -> Option<f64> {
    mean(&log_ratios(policy, other))
}

/// Returns `log policy - log other` of each answer, in nats.
pub fn log_ratios(policy: &[Vec<f32>], other: &[Vec<f32>]) -> Vec<f64> {
    let sum = |logprobs: &Vec<f32>| logprobs.iter().map(|&x| f64::from(x)).sum::<f64>();
    let answers = policy.iter().zip(other);
    answers
        .map(|(policy, other)| sum(policy) - sum(other))
        .collect()
}

/// Returns the mean; none for no values.
pub fn mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

/// Returns the number of values of an adapter that are not finite.
///
/// # Errors
/// Errors from the tensor library.
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

/// Returns whether an adapter's factors differ from its start; without a start, whether it changes the base at all.
///
/// # Errors
/// Errors from the tensor library.
pub fn moved(trained: Option<&Adapter>, start: Option<&Adapter>) -> Result<bool, LearnError> {
    let Some(trained) = trained else {
        return Ok(start.is_some());
    };
    for (path, pair) in &trained.weights {
        let before = start.and_then(|start| start.weights.get(path));
        let factors = match before {
            Some(before) => vec![(&pair.a, Some(&before.a)), (&pair.b, Some(&before.b))],
            // In a fresh adapter A is random and B is 0; nothing changes as long as B is 0.
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

/// Returns the largest relative change of a layer against generation 0, `|scale B A - scale0 B0 A0| / |W|` in Frobenius norms; without
/// an adapter at the start the second product is zero. The products are never formed: the squared norm of `B A` is
/// `sum((BᵀB) * (A Aᵀ))`, two matrices of the rank's size, and a difference of products is a product of concatenated factors.
///
/// # Errors
/// Errors from the tensor library; a layer that the base does not have.
pub fn largest_change(
    base: &FrozenBase,
    adapter: &Adapter,
    first: Option<&Adapter>,
) -> Result<f64, LearnError> {
    let mut largest = 0.0_f64;
    for (path, pair) in &adapter.weights {
        let before = first.and_then(|first| Some((first, first.weights.get(path)?)));
        let change = (|| {
            let (mut a, mut b) = (pair.a.clone(), (&pair.b * adapter.config.scale(path))?);
            if let Some((first, before)) = before {
                let less = (&before.b * -first.config.scale(path))?;
                (a, b) = (
                    Tensor::cat(&[&a, &before.a], 0)?,
                    Tensor::cat(&[&b, &less], 1)?,
                );
            }
            // In f64, because the difference of the two products is small compared with both.
            let (a, b) = (a.to_dtype(DType::F64)?, b.to_dtype(DType::F64)?);
            let outer = b.t()?.matmul(&b)?;
            let inner = a.matmul(&a.t()?)?;
            (outer * inner)?.sum_all()?.to_scalar::<f64>()
        })();
        let change = change.map_err(TrainError::from)?.max(0.0).sqrt();
        largest = largest.max(change / base.norm(path)?);
    }
    Ok(largest)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::learn::pairs::tests::answer;
    use model::ModelConfig;
    use model::adapter::{LoraConfig, LoraPair, testing};
    use train::base::Start;

    #[test]
    fn parity_is_by_the_token_and_divergence_by_the_answer() {
        let answers = [answer(&[1, 2]), answer(&[3])];
        // The server's values are -0.5 each.
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

    #[test]
    fn the_largest_change_is_measured_against_the_adapter_at_the_start() {
        let json = serde_json::json!({
            "architectures": ["LlamaForCausalLM"], "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
            "intermediate_size": 24, "vocab_size": 20, "max_position_embeddings": 32,
        });
        let spec = ModelConfig::from_json(&json.to_string()).unwrap().spec;
        let base = FrozenBase::new(spec.clone(), Start::Random { seed: 1 }, &Device::Cpu).unwrap();
        let drawn = |seed| {
            let (config, weights) = testing::random(&spec, 3, &["q_proj", "up_proj"], seed);
            Adapter { config, weights }
        };
        let (one, two) = (drawn(1), drawn(2));
        // The reference value, from the products themselves.
        let product = |adapter: &Adapter, path: &str| {
            let pair = &adapter.weights[path];
            (pair.b.matmul(&pair.a).unwrap() * adapter.config.scale(path)).unwrap()
        };
        let plain = |first: Option<&Adapter>| {
            let of = |path: &String| {
                let mut change = product(&one, path);
                if let Some(first) = first {
                    change = (change - product(first, path)).unwrap();
                }
                let norm = change.sqr().unwrap().sum_all().unwrap();
                f64::from(norm.to_scalar::<f32>().unwrap()).sqrt() / base.norm(path).unwrap()
            };
            one.weights.keys().map(of).fold(0.0, f64::max)
        };
        for first in [None, Some(&two), Some(&one)] {
            let (got, wanted) = (largest_change(&base, &one, first).unwrap(), plain(first));
            assert!((got - wanted).abs() < 1e-5, "{got} for {wanted}");
        }
        assert!(largest_change(&base, &one, None).unwrap() > 0.01);
    }
}
