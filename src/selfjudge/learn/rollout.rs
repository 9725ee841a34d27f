//! Rollouts: fresh answers of the current policy to logged prompts, with token ids kept as they were sampled.

use futures::stream::{self, StreamExt, TryStreamExt};

use super::LearnError;
use super::config::RolloutConfig;
use crate::call::Turn;
use crate::service::{Finish, Service, TextTask};
use engine::SamplingParams;
use model::WeightsLease;
use text::Message;

/// Number of prompts in the engine at once: enough to fill its batches with the capacity that serving leaves free.
pub const WINDOW: usize = 32;

/// A prompt to be answered.
#[derive(Debug, Clone, PartialEq)]
pub struct Prompt {
    /// The conversation as it was logged, for the judge.
    pub messages: Vec<Message>,
    /// Token ids of the prompt for the policy.
    pub ids: Vec<u32>,
    /// Sampling seed; the answer is a function of it and of the weights.
    pub seed: u64,
}

/// An answer of the policy.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    pub text: String,
    /// Token ids as sampled, including the end token if the policy emitted one.
    pub ids: Vec<u32>,
    /// Log-probability of each token, over the whole vocabulary at temperature 1.
    pub logprobs: Vec<f32>,
    /// Whether the policy ended the answer, rather than the token limit.
    pub complete: bool,
    pub seed: u64,
    /// Name of the weights that wrote it.
    pub weights: String,
}

impl Answer {
    /// Returns the empty answer to a prompt that leaves no room for one. It is incomplete, so no pair is made of it.
    fn no_room(seed: u64, weights: &WeightsLease) -> Self {
        Self {
            text: String::new(),
            ids: Vec::new(),
            logprobs: Vec::new(),
            complete: false,
            seed,
            weights: weights.name().to_string(),
        }
    }

    /// Returns the mean log-probability; see [`mean_logprob`].
    pub fn mean_logprob(&self) -> f32 {
        mean_logprob(&self.logprobs)
    }
}

/// Returns the mean log-probability of an answer's tokens in nats; 0 for an empty answer.
pub fn mean_logprob(logprobs: &[f32]) -> f32 {
    logprobs.iter().sum::<f32>() / logprobs.len().max(1) as f32
}

/// Samples `config.samples` answers to each prompt, in the prompts' order. The answers to a prompt that fills the context are empty: the
/// principle that is put before a logged prompt may make it that long.
///
/// # Errors
/// Errors from the service.
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
    if prompt.ids.len() >= service.engine().capacity().max_context {
        return Ok(vec![Answer::no_room(prompt.seed, weights); config.samples]);
    }
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
        complete: output.finish.is_some_and(|finish| finish != Finish::Length),
        seed: prompt.seed,
        weights: weights.name().to_string(),
    });
    Ok(answers.collect())
}
