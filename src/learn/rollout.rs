//! Fresh answers: the logged prompt, the policy as it is now, token ids kept as they were sampled.

use futures::stream::{self, StreamExt, TryStreamExt};

use super::LearnError;
use super::config::RolloutConfig;
use crate::engine::SamplingParams;
use crate::model::WeightsLease;
use crate::preference::Message;
use crate::service::{Finish, Service, TextTask, Turn};

/// Prompts that are with the engine at once: enough to fill its batches with what serving leaves free.
pub const WINDOW: usize = 32;

/// What is answered.
#[derive(Debug, Clone, PartialEq)]
pub struct Prompt {
    /// As it was logged, for the judge.
    pub messages: Vec<Message>,
    /// As the policy sees it.
    pub ids: Vec<u32>,
    /// Draws are a function of this and of the weights.
    pub seed: u64,
}

/// One answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    pub text: String,
    /// As sampled; the last one ends the answer, where the policy ended it.
    pub ids: Vec<u32>,
    /// Of each token, over the whole vocabulary at temperature 1.
    pub logprobs: Vec<f32>,
    /// Whether the policy ended it, rather than the limit of tokens.
    pub complete: bool,
    pub seed: u64,
    /// Who wrote it.
    pub weights: String,
}

impl Answer {
    /// See [`mean_logprob`].
    pub fn mean_logprob(&self) -> f32 {
        mean_logprob(&self.logprobs)
    }
}

/// Mean log-probability of an answer's tokens, nats; 0 of an empty answer.
pub fn mean_logprob(logprobs: &[f32]) -> f32 {
    logprobs.iter().sum::<f32>() / logprobs.len().max(1) as f32
}

/// `config.samples` answers to each prompt, in the prompts' order.
///
/// # Errors
/// The service's.
pub async fn roll_out(
    service: &Service,
    weights: &WeightsLease,
    config: &RolloutConfig,
    prompts: &[Prompt],
) -> Result<Vec<Vec<Answer>>, LearnError> {
    stream::iter(prompts)
        .map(|prompt| answers(service, weights, config, prompt))
        .buffered(WINDOW)
        .try_collect()
        .await
}

async fn answers(
    service: &Service,
    weights: &WeightsLease,
    config: &RolloutConfig,
    prompt: &Prompt,
) -> Result<Vec<Answer>, LearnError> {
    let mut params = SamplingParams::new(config.max_tokens, service.stop_ids().to_vec());
    params.temperature = config.temperature;
    params.top_p = config.top_p;
    params.seed = Some(prompt.seed);
    params.logprobs = Some(0);
    let mut generation = service.generate_in_turn(TextTask {
        samples: config.samples,
        weights: Some(weights.clone()),
        turn: Turn::background(),
        ..TextTask::new(prompt.ids.clone(), params)
    })?;
    let outputs = generation.outputs().await?;
    let answers = outputs.into_iter().map(|output| Answer {
        text: output.text,
        ids: output.tokens.iter().map(|token| token.id).collect(),
        logprobs: output
            .tokens
            .iter()
            .filter_map(|token| Some(token.logprobs.as_ref()?.token))
            .collect(),
        complete: !matches!(output.finish, Finish::Length),
        seed: prompt.seed,
        weights: weights.name().to_string(),
    });
    Ok(answers.collect())
}
