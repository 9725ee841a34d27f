//! `POST /v1/completions`: raw continuation of one prompt or several.

use std::collections::BTreeMap;
use std::time::Instant;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use futures::future::try_join_all;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::created;
use super::usage::OpenAiUsage;
use crate::engine::SamplingParams;
use crate::http::AppState;
use crate::http::body::{
    JudgingBody, OneOrMany, StopReason, conversation, finish_reasons, logit_bias, samples,
};
use crate::http::error::ApiError;
use crate::http::extract::JsonBody;
use crate::http::sse::{self, Pieces};
use crate::service::{
    Finish, Generation, Output, Service, ServiceError, TextEvent, TextTask, TokenText, Usage,
};

/// Tokens of an answer where the caller names no limit (OpenAI's default).
const DEFAULT_MAX_TOKENS: usize = 16;

/// The most log-probabilities of other tokens.
const MAX_LOGPROBS: usize = 20;

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum PromptBody {
    Text(String),
    Texts(Vec<String>),
    Tokens(Vec<u32>),
    TokenLists(Vec<Vec<u32>>),
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct StreamOptions {
    include_usage: bool,
}

/// The body. Anything else in it is refused.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CompletionBody {
    model: Option<String>,
    prompt: PromptBody,
    max_tokens: Option<usize>,
    #[serde(default)]
    min_tokens: usize,
    temperature: Option<f32>,
    top_p: Option<f32>,
    top_k: Option<usize>,
    min_p: Option<f32>,
    repetition_penalty: Option<f32>,
    presence_penalty: Option<f32>,
    frequency_penalty: Option<f32>,
    #[serde(default)]
    logit_bias: BTreeMap<String, f32>,
    seed: Option<u64>,
    stop: Option<OneOrMany>,
    #[serde(default)]
    stop_token_ids: Vec<u32>,
    #[serde(default)]
    ignore_eos: bool,
    n: Option<usize>,
    /// Candidates of each prompt: a tournament finds the best `n`.
    best_of: Option<usize>,
    #[serde(default)]
    stream: bool,
    stream_options: Option<StreamOptions>,
    logprobs: Option<usize>,
    #[serde(default)]
    priority: i32,
    /// Who the end user is; of no consequence here.
    #[serde(default, rename = "user")]
    _user: Option<String>,
}

#[derive(Debug, Serialize)]
struct Choice {
    index: usize,
    text: String,
    logprobs: Option<Logprobs>,
    finish_reason: Option<&'static str>,
    stop_reason: Option<StopReason>,
}

/// OpenAI's legacy shape: parallel lists.
#[derive(Debug, Default, Serialize)]
struct Logprobs {
    tokens: Vec<String>,
    token_logprobs: Vec<f32>,
    top_logprobs: Vec<BTreeMap<String, f32>>,
    text_offset: Vec<usize>,
}

/// What every piece of an answer says of the call.
struct Call {
    service: Service,
    id: String,
    created: u64,
    model: String,
    stop: Vec<String>,
    /// Ids that end answers anyway.
    ends: Vec<u32>,
}

impl Call {
    fn answer(&self, choices: &[Choice], usage: Option<Usage>) -> Value {
        let mut answer = json!({
            "id": self.id,
            "object": "text_completion",
            "created": self.created,
            "model": self.model,
            "choices": choices,
        });
        if let Some(usage) = usage {
            answer["usage"] = json!(OpenAiUsage::from(usage));
        }
        answer
    }

    /// `offset`: characters of the choice's text before these tokens.
    fn choice(
        &self,
        index: usize,
        text: String,
        tokens: &[TokenText],
        finish: Option<Finish>,
        offset: usize,
    ) -> Choice {
        let (finish_reason, stop_reason) = finish_reasons(finish, &self.stop, &self.ends);
        Choice {
            index,
            text,
            logprobs: self.logprobs(tokens, offset),
            finish_reason,
            stop_reason,
        }
    }

    fn logprobs(&self, tokens: &[TokenText], mut offset: usize) -> Option<Logprobs> {
        // A token by itself can be half a character; it is then shown as a replacement character, as by others.
        let word = |id: u32| {
            let decoded = self.service.tokenizer().decode(&[id], false);
            decoded.unwrap_or_default()
        };
        let mut list = Logprobs::default();
        for token in tokens {
            let logprobs = token.logprobs.as_ref()?;
            let text = word(token.id);
            list.text_offset.push(offset);
            offset += text.chars().count();
            list.tokens.push(text);
            list.token_logprobs.push(logprobs.token);
            let top = logprobs.top.iter().map(|&(id, p)| (word(id), p));
            list.top_logprobs.push(top.collect());
        }
        Some(list)
    }

    fn whole(&self, index: usize, output: Output) -> Choice {
        self.choice(index, output.text, &output.tokens, Some(output.finish), 0)
    }
}

impl CompletionBody {
    fn params(&self, stop_ids: &[u32]) -> Result<SamplingParams, ApiError> {
        let mut stop_token_ids = self.stop_token_ids.clone();
        if !self.ignore_eos {
            stop_token_ids.extend_from_slice(stop_ids);
        }
        let max_tokens = self.max_tokens.unwrap_or(DEFAULT_MAX_TOKENS);
        let mut params = SamplingParams::new(max_tokens, stop_token_ids);
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
        if self.logprobs.is_some_and(|n| n > MAX_LOGPROBS) {
            return Err(ApiError::invalid(
                "logprobs",
                format!("must be at most {MAX_LOGPROBS}"),
            ));
        }
        params.logit_bias = logit_bias(&self.logit_bias)?;
        Ok(params)
    }

    async fn prompts(&mut self, service: &Service) -> Result<Vec<Vec<u32>>, ApiError> {
        let prompt = std::mem::replace(&mut self.prompt, PromptBody::Tokens(Vec::new()));
        let prompts = match prompt {
            PromptBody::Text(text) => vec![service.encode_text(text).await?],
            PromptBody::Texts(texts) => {
                let encoded = texts.into_iter().map(|text| service.encode_text(text));
                try_join_all(encoded).await?
            }
            PromptBody::Tokens(tokens) => vec![tokens],
            PromptBody::TokenLists(lists) => lists,
        };
        match prompts.is_empty() {
            true => Err(ApiError::invalid("prompt", "must not be empty")),
            false => Ok(prompts),
        }
    }
}

pub async fn completions(
    State(state): State<AppState>,
    JsonBody(mut body): JsonBody<CompletionBody>,
) -> Result<Response, ApiError> {
    let arrival = Instant::now();
    let service = &state.service;
    state.check_model(body.model.as_deref())?;
    let (n, samples) = samples(body.n, body.best_of)?;
    if body.stream && samples > n {
        return Err(ApiError::invalid(
            "stream",
            "cannot be combined with best_of: what is best is known at the end",
        ));
    }
    if body.stream_options.is_some() && !body.stream {
        return Err(ApiError::invalid(
            "stream_options",
            "has no meaning without stream",
        ));
    }
    let params = body.params(service.stop_ids())?;
    let call = Call {
        service: service.clone(),
        id: state.next_id("cmpl"),
        created: created(),
        model: state.model_name.to_string(),
        stop: body.stop.take().map(Vec::from).unwrap_or_default(),
        ends: service.stop_ids().to_vec(),
    };
    let prompts = body.prompts(service).await?;
    let tasks = prompts.into_iter().map(|prompt| TextTask {
        stop: call.stop.clone(),
        samples,
        priority: body.priority,
        arrival,
        ..TextTask::new(prompt, params.clone())
    });
    let permit = state.permit()?;
    if samples > n {
        let mut choices = Vec::new();
        let mut usage = Usage::default();
        for task in tasks {
            let (best, spent) = best_of(service, task, n, arrival).await?;
            for output in best {
                choices.push(call.whole(choices.len(), output));
            }
            usage.add(spent);
        }
        return Ok(Json(call.answer(&choices, Some(usage))).into_response());
    }
    let generations = tasks
        .map(|task| service.generate(task))
        .collect::<Result<Vec<Generation>, ServiceError>>()?;
    if body.stream {
        let include_usage = body.stream_options.is_some_and(|o| o.include_usage);
        return Ok(sse::answer(permit, |pieces| {
            send_all(call, generations, n, include_usage, pieces)
        }));
    }
    let mut choices = Vec::new();
    let mut usage = Usage::default();
    for mut generation in generations {
        for output in generation.outputs().await? {
            choices.push(call.whole(choices.len(), output));
        }
        usage.add(generation.usage());
    }
    Ok(Json(call.answer(&choices, Some(usage))).into_response())
}

/// The best `n` of a prompt's candidates, judged as answers to the prompt's text.
async fn best_of(
    service: &Service,
    task: TextTask,
    n: usize,
    arrival: Instant,
) -> Result<(Vec<Output>, Usage), ApiError> {
    let text = service.tokenizer().decode(&task.prompt, true);
    let context = conversation(Some(text.map_err(ServiceError::from)?), None)?;
    let judging = JudgingBody::default();
    let judge = judging.task(context, arrival, None, task.priority)?;
    let mut best = service.best_of(task, &judge, judging.tournament()).await?;
    Ok((best.take_best(n), best.usage))
}

/// One piece a token of any choice, and the usage if asked for.
async fn send_all(
    call: Call,
    generations: Vec<Generation>,
    n: usize,
    include_usage: bool,
    pieces: Pieces,
) -> Result<(), ApiError> {
    let generations = generations.into_iter().enumerate();
    let all = generations.map(|(at, generation)| send(&call, generation, at * n, &pieces));
    let mut usage = Usage::default();
    for spent in try_join_all(all).await? {
        usage.add(spent);
    }
    if include_usage {
        pieces.send(&call.answer(&[], Some(usage))).await;
    }
    Ok(())
}

/// Sends the choices of one prompt, `first` being the index of its first sample.
async fn send(
    call: &Call,
    mut generation: Generation,
    first: usize,
    pieces: &Pieces,
) -> Result<Usage, ApiError> {
    // Characters of each choice so far.
    let mut written: Vec<usize> = Vec::new();
    while let Some(event) = generation.next().await? {
        if let TextEvent::Delta {
            index,
            text,
            token,
            finish,
        } = event
        {
            if written.len() <= index {
                written.resize(index + 1, 0);
            }
            let offset = written[index];
            written[index] += text.chars().count();
            let tokens = std::slice::from_ref(&token);
            let choice = call.choice(first + index, text, tokens, finish, offset);
            pieces.send(&call.answer(&[choice], None)).await;
        }
    }
    Ok(generation.usage())
}
