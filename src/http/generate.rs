//! `POST /generate`: answers to a prompt, or the best of several.

use std::sync::Arc;
use std::time::Instant;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::AppState;
use super::body::{
    JudgingBody, MessageBody, OneOrMany, StopReason, UsageBody, conversation, deadline,
    finish_reasons, logit_bias, samples,
};
use super::error::ApiError;
use super::extract::JsonBody;
use super::judge::TournamentBody;
use super::sse::{self, Pieces};
use crate::engine::{SamplingParams, TokenLogprobs};
use crate::model::WeightsVersion;
use crate::service::{Finish, Generation, Output, TextEvent, TextTask, TokenText};

/// Tokens of an answer where the caller names no limit.
const DEFAULT_MAX_TOKENS: usize = 256;

/// The body. Anything else in it is refused.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GenerateBody {
    /// One message of the user; for a conversation, `messages`.
    prompt: Option<String>,
    messages: Option<Vec<MessageBody>>,
    max_tokens: Option<usize>,
    #[serde(default)]
    min_tokens: usize,
    temperature: Option<f32>,
    top_k: Option<usize>,
    top_p: Option<f32>,
    min_p: Option<f32>,
    repetition_penalty: Option<f32>,
    presence_penalty: Option<f32>,
    frequency_penalty: Option<f32>,
    /// Token ids, as strings, to biases.
    #[serde(default)]
    logit_bias: std::collections::BTreeMap<String, f32>,
    seed: Option<u64>,
    stop: Option<OneOrMany>,
    #[serde(default)]
    stop_token_ids: Vec<u32>,
    #[serde(default)]
    include_stop_str_in_output: bool,
    #[serde(default)]
    ignore_eos: bool,
    /// Answers wanted.
    n: Option<usize>,
    /// Candidates to draw: a tournament finds the best `n` of them.
    best_of: Option<usize>,
    /// How that tournament is judged.
    judge: Option<JudgingBody>,
    #[serde(default)]
    stream: bool,
    logprobs: Option<usize>,
    #[serde(default)]
    logprob_token_ids: Vec<u32>,
    #[serde(default)]
    priority: i32,
    /// Seconds the request may take.
    timeout: Option<f64>,
}

/// The answer.
#[derive(Debug, Serialize)]
struct GenerateAnswer<'a> {
    id: String,
    model: &'a str,
    version: Option<WeightsVersion>,
    outputs: Vec<OutputBody>,
    usage: UsageBody,
    #[serde(skip_serializing_if = "Option::is_none")]
    tournament: Option<TournamentBody>,
}

#[derive(Debug, Serialize)]
struct OutputBody {
    index: usize,
    text: String,
    token_ids: Vec<u32>,
    #[serde(flatten)]
    finish: FinishBody,
    #[serde(skip_serializing_if = "Option::is_none")]
    logprobs: Option<Vec<LogprobBody>>,
}

#[derive(Debug, Serialize)]
struct FinishBody {
    finish_reason: Option<&'static str>,
    /// The stop string or token that ended it, where it was not the model's own end of an answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    stop_reason: Option<StopReason>,
}

#[derive(Debug, Serialize)]
struct LogprobBody {
    token_id: u32,
    logprob: f32,
    top: Vec<TokenLogprobBody>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    chosen: Vec<TokenLogprobBody>,
}

#[derive(Debug, Serialize)]
struct TokenLogprobBody {
    token_id: u32,
    logprob: f32,
}

/// What words an answer: the caller's stop strings, and the ids that end answers anyway.
#[derive(Clone)]
struct Wording {
    stop: Vec<String>,
    chosen: Vec<u32>,
    ends: Vec<u32>,
}

impl Wording {
    fn finish(&self, finish: Option<Finish>) -> FinishBody {
        let (finish_reason, stop_reason) = finish_reasons(finish, &self.stop, &self.ends);
        FinishBody {
            finish_reason,
            stop_reason,
        }
    }

    fn logprobs(&self, tokens: &[TokenText]) -> Option<Vec<LogprobBody>> {
        tokens
            .iter()
            .map(|token| Some(self.logprob(token.id, token.logprobs.as_ref()?)))
            .collect()
    }

    fn logprob(&self, token_id: u32, logprobs: &TokenLogprobs) -> LogprobBody {
        let body = |(token_id, logprob)| TokenLogprobBody { token_id, logprob };
        let chosen = self.chosen.iter().copied().zip(logprobs.chosen.clone());
        LogprobBody {
            token_id,
            logprob: logprobs.token,
            top: logprobs.top.iter().copied().map(body).collect(),
            chosen: chosen.map(body).collect(),
        }
    }

    fn output(&self, output: Output) -> OutputBody {
        OutputBody {
            index: output.index,
            text: output.text,
            token_ids: output.tokens.iter().map(|token| token.id).collect(),
            finish: self.finish(Some(output.finish)),
            logprobs: self.logprobs(&output.tokens),
        }
    }
}

impl GenerateBody {
    fn params(&self, stop_ids: &[u32]) -> Result<SamplingParams, ApiError> {
        let mut stop_token_ids = self.stop_token_ids.clone();
        if !self.ignore_eos {
            stop_token_ids.extend_from_slice(stop_ids);
        }
        let mut params = SamplingParams::new(
            self.max_tokens.unwrap_or(DEFAULT_MAX_TOKENS),
            stop_token_ids,
        );
        fn set<T: Copy>(field: &mut T, said: Option<T>) {
            *field = said.unwrap_or(*field);
        }
        set(&mut params.temperature, self.temperature);
        set(&mut params.top_k, self.top_k);
        set(&mut params.top_p, self.top_p);
        set(&mut params.min_p, self.min_p);
        set(&mut params.repetition_penalty, self.repetition_penalty);
        set(&mut params.presence_penalty, self.presence_penalty);
        set(&mut params.frequency_penalty, self.frequency_penalty);
        params.stop.min_tokens = self.min_tokens;
        params.seed = self.seed;
        params.logprobs = self.logprobs;
        params.logprob_ids.clone_from(&self.logprob_token_ids);
        params.logit_bias = logit_bias(&self.logit_bias)?;
        Ok(params)
    }
}

pub async fn generate(
    State(state): State<AppState>,
    JsonBody(mut body): JsonBody<GenerateBody>,
) -> Result<Response, ApiError> {
    let arrival = Instant::now();
    let service = &state.service;
    let messages = conversation(body.prompt.take(), body.messages.take())?;
    let deadline = deadline(arrival, body.timeout)?;
    let (n, samples) = samples(body.n, body.best_of)?;
    if body.judge.is_some() && body.best_of.is_none() {
        return Err(ApiError::invalid("judge", "has no meaning without best_of"));
    }
    if body.stream && body.best_of.is_some() {
        return Err(ApiError::invalid(
            "stream",
            "cannot be combined with best_of: what is best is known at the end",
        ));
    }
    let params = body.params(service.stop_ids())?;
    let wording = Wording {
        stop: body.stop.take().map(Vec::from).unwrap_or_default(),
        chosen: body.logprob_token_ids.clone(),
        ends: service.stop_ids().to_vec(),
    };
    let task = TextTask {
        stop: wording.stop.clone(),
        include_stop: body.include_stop_str_in_output,
        samples,
        priority: body.priority,
        arrival,
        deadline,
        ..TextTask::new(service.encode_chat(&messages).await?, params)
    };
    let id = state.next_id("gen");
    let permit = state.permit()?;
    if body.best_of.is_some() {
        let judging = body.judge.unwrap_or_default();
        let judge = judging.task(messages, arrival, deadline, body.priority)?;
        let mut best = service.best_of(task, &judge, judging.tournament()).await?;
        let outputs = best
            .take_best(n)
            .into_iter()
            .map(|output| wording.output(output))
            .collect();
        return Ok(Json(GenerateAnswer {
            id,
            model: &state.model_name,
            version: best.version,
            outputs,
            usage: best.usage.into(),
            tournament: Some(best.tournament.into()),
        })
        .into_response());
    }
    let mut generation = service.generate(task)?;
    if body.stream {
        let model = state.model_name.clone();
        return Ok(sse::answer(permit, |pieces| {
            send(generation, wording, id, model, pieces)
        }));
    }
    let outputs = generation.outputs().await?;
    Ok(Json(GenerateAnswer {
        id,
        model: &state.model_name,
        version: generation.version(),
        outputs: outputs
            .into_iter()
            .map(|output| wording.output(output))
            .collect(),
        usage: generation.usage().into(),
        tournament: None,
    })
    .into_response())
}

/// The same answer in pieces: one event a token, a last one with the usage.
async fn send(
    mut generation: Generation,
    wording: Wording,
    id: String,
    model: Arc<str>,
    pieces: Pieces,
) -> Result<(), ApiError> {
    let piece = |version: Option<WeightsVersion>, outputs: &[OutputBody]| json!({"id": id, "model": *model, "version": version, "outputs": outputs});
    while let Some(event) = generation.next().await? {
        if let TextEvent::Delta {
            index,
            text,
            token,
            finish,
        } = event
        {
            let output = OutputBody {
                index,
                text,
                token_ids: vec![token.id],
                finish: wording.finish(finish),
                logprobs: wording.logprobs(std::slice::from_ref(&token)),
            };
            pieces.send(&piece(generation.version(), &[output])).await;
        }
    }
    let mut last = piece(generation.version(), &[]);
    last["usage"] = json!(UsageBody::from(generation.usage()));
    pieces.send(&last).await;
    Ok(())
}
