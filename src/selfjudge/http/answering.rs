//! From prompts to an answer, whole or streamed. The code is common to all generating routes; each route formats the answer with its
//! [`AnswerFormat`].

use std::sync::{Arc, Mutex, PoisonError};

use axum::http::header;
use axum::response::{IntoResponse, Response};
use futures::future::try_join_all;
use serde::Serialize;
use utoipa::ToSchema;

use super::AppState;
use super::error::{ApiError, GRAMMAR};
use super::identity::Identity;
use super::memory::{Gathered, Holding};
use super::sampling::{Sampling, StreamOptions};
use super::sse::{self, Frame, Pieces};
use crate::call::{Usage, offload};
use crate::judging::Tournament;
use crate::service::{
    CallRecords, Finish, Output, PromptTask, RecordedCall, RecordedGeneration, StreamEnd, TokenText,
};
use engine::PromptLogprobs;
use model::WeightsName;

/// A choice, or the increment of a choice by one token.
pub struct Piece<'a> {
    /// Index among all choices of the call.
    pub index: usize,
    /// The sample or its increment, with its index among the samples of its prompt.
    pub output: Output,
    /// Log-probabilities of the prompt's tokens except the first, if they were requested.
    pub prompt_logprobs: Option<&'a [PromptLogprobs]>,
    pub part: Part,
}

impl Piece<'_> {
    /// Returns whether the tokens carry log-probabilities.
    pub fn shows_logprobs(&self) -> bool {
        let mut tokens = self.output.tokens.iter();
        tokens.any(|token| token.logprobs.is_some())
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    Whole,
    First,
    Later,
}

/// Data about the call besides its choices.
#[derive(Debug, Default)]
pub struct About {
    pub weights: Option<WeightsName>,
    pub usage: Option<Usage>,
    pub tournaments: Vec<Tournament>,
    /// The call's records, once the whole call is answered.
    pub records: CallRecords,
    /// Whether this is an event of a stream.
    pub streamed: bool,
    /// Requests that are fulfilled only in part, as whole sentences; in a stream with the first event.
    pub warnings: Vec<String>,
}

/// The format of a route's answers.
pub trait AnswerFormat: Send + Sync + 'static {
    type Choice: Send;
    type Answer: Serialize + Send + Sync;

    /// Whether a stream always ends with the usage, even if it was not requested.
    const USAGE_LAST: bool;

    fn choice(&self, piece: Piece<'_>) -> Self::Choice;

    /// Returns the events for a piece of a stream; empty if the piece has nothing to show yet.
    fn events(&self, piece: Piece<'_>) -> Vec<Self::Choice> {
        vec![self.choice(piece)]
    }

    /// Returns the whole answer, or one event.
    fn answer(&self, choices: Vec<Self::Choice>, about: About) -> Self::Answer;

    /// Returns the events sent before anything of the answer is available.
    fn opening(&self) -> Vec<Frame> {
        Vec::new()
    }

    /// Returns the events for choices; without choices, the events for the data at the end of the stream.
    fn frames(&self, choices: Vec<Self::Choice>, about: About) -> Vec<Frame> {
        vec![Frame::of(&self.answer(choices, about))]
    }

    /// Returns the last events of a stream, depending on how the answer ended.
    fn closing(&self, ended: Result<(), ApiError>) -> Vec<Frame> {
        vec![match ended {
            Ok(()) => Frame::done(),
            Err(error) => Frame::of(&error.into_body()),
        }]
    }
}

/// Answers a call.
///
/// # Errors
/// Errors that are detected before anything has been sent.
pub async fn answer<W: AnswerFormat>(
    state: &AppState,
    identity: &Identity,
    sampling: &Sampling,
    prompts: Vec<PromptTask>,
    format: W,
) -> Result<Response, ApiError> {
    let origin = identity.origin(sampling.user.clone());
    let running = state
        .recorded
        .generate(origin, sampling.log, sampling.call(prompts))
        .await?;
    let mut warnings = sampling.warnings.clone();
    warnings.extend(running.warning().map(str::to_owned));
    match sampling.stream {
        Some(options) => Ok(stream(running, sampling, options, warnings, format)),
        None => whole(running, identity, sampling, warnings, format).await,
    }
}

/// Streams an answer.
fn stream<W: AnswerFormat>(
    running: RecordedCall,
    sampling: &Sampling,
    options: StreamOptions,
    warnings: Vec<String>,
    format: W,
) -> Response {
    let (generations, end) = running.into_stream();
    let (n, grammar_param) = (sampling.n, sampling.grammar_param);
    let format = Arc::new(format);
    let closing = Arc::clone(&format);
    let work = move |pieces| {
        let stream = Stream {
            format,
            options,
            end,
            pieces,
            warnings: Mutex::new(warnings),
        };
        async move {
            stream.pieces.send(stream.format.opening()).await;
            let sent = stream.send_all(generations, n).await;
            sent.map_err(|error| error.renamed(GRAMMAR, grammar_param))
        }
    };
    sse::answer(work, move |ended| closing.closing(ended))
}

/// Returns an answer as a whole.
async fn whole<W: AnswerFormat>(
    running: RecordedCall,
    identity: &Identity,
    sampling: &Sampling,
    warnings: Vec<String>,
    format: W,
) -> Result<Response, ApiError> {
    let holding = identity.memory.clone();
    let answered = running.answers(|token| pay(&holding, token)).await;
    let answered = answered.map_err(|error| error.renamed(GRAMMAR, sampling.grammar_param))?;
    let (mut outputs, mut usage) = (Vec::new(), Usage::default());
    let mut about = About {
        warnings,
        records: answered.records,
        ..About::default()
    };
    for answer in answered.result {
        usage.add(answer.usage);
        about.weights = answer.weights;
        about.tournaments.extend(answer.tournament);
        let prompt = answer.prompt_logprobs;
        let outputs_of = answer.outputs.into_iter();
        outputs.extend(outputs_of.map(|output| (output, prompt.clone())));
    }
    about.usage = Some(usage);
    let write = move || {
        // The prompt's log-probabilities are repeated with each of its answers.
        let prompts = outputs.iter().filter_map(|(_, prompt)| prompt.as_deref());
        let scores = prompts.flatten().map(|token| 1 + token.logprobs.top.len());
        let bytes = scores.sum::<usize>().saturating_mul(LOGPROB_BYTES);
        holding.grow(bytes)?;
        let body = formatted(&format, outputs, about, holding.clone());
        holding.shrink(bytes);
        body
    };
    let body = match usage
        .completion_tokens
        .saturating_mul(sampling.logprobs() + 1)
    {
        // Formatting a small answer here takes less time than waking another thread.
        0..=4096 => write(),
        _ => offload(write).await?,
    }?;
    Ok(([(header::CONTENT_TYPE, "application/json")], body).into_response())
}

/// Returns a whole answer as JSON, charging its memory to the call while it is written.
fn formatted<W: AnswerFormat>(
    format: &W,
    outputs: Vec<(Output, Option<Arc<[PromptLogprobs]>>)>,
    about: About,
    holding: Holding,
) -> Result<Vec<u8>, ApiError> {
    let choice = |(index, (output, prompt)): (usize, (Output, Option<Arc<_>>))| {
        format.choice(Piece {
            index,
            output,
            prompt_logprobs: prompt.as_deref(),
            part: Part::Whole,
        })
    };
    let choices = outputs.into_iter().enumerate().map(choice).collect();
    written(&format.answer(choices, about), holding)
}

/// Writes an answer as JSON. The memory is charged to the call as it grows, before the whole answer is in memory.
///
/// # Errors
/// Errors as [`Holding::grow`].
pub fn written(answer: &impl Serialize, holding: Holding) -> Result<Vec<u8>, ApiError> {
    let mut body = Gathered::begin(holding, 0)?;
    let whole = serde_json::to_writer(&mut body, answer);
    let body = body.into_bytes()?;
    whole.expect("answers have string keys and finite numbers; this is a bug");
    Ok(body)
}

/// Bytes charged for a log-probability in an answer until it is sent: the value, and its text.
const LOGPROB_BYTES: usize = 64;

/// Charges the log-probabilities of a token to the call. The tokens themselves are small in comparison.
fn pay(holding: &Holding, token: &TokenText) -> Result<(), ApiError> {
    let logprobs = token.logprobs.as_ref();
    let count = logprobs.map_or(0, |logprobs| logprobs.top.len() + logprobs.chosen.len());
    holding.grow(count * LOGPROB_BYTES)
}

/// A streamed answer.
struct Stream<W> {
    format: Arc<W>,
    options: StreamOptions,
    end: StreamEnd,
    pieces: Pieces,
    /// Warnings that have not been sent yet.
    warnings: Mutex<Vec<String>>,
}

impl<W: AnswerFormat> Stream<W> {
    /// Returns the call's warnings at the first call, and none afterwards.
    fn first_warnings(&self) -> Vec<String> {
        let mut warnings = self.warnings.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *warnings)
    }

    /// Sends one event per token of any choice, and at the end, if requested, the total usage and the state of the records.
    async fn send_all(
        &self,
        generations: Vec<RecordedGeneration>,
        n: usize,
    ) -> Result<(), ApiError> {
        let generations = generations.into_iter().enumerate();
        let all = generations.map(|(at, generation)| self.send(generation, at * n));
        let ended = try_join_all(all).await?;
        let (mut about, mut usage) = (About::default(), Usage::default());
        for generation in &ended {
            usage.add(generation.usage());
            about.weights = generation.weights();
        }
        about.records = self.end.commit(ended).await?;
        let usage_wanted = self.options.include_usage || W::USAGE_LAST;
        if usage_wanted || self.end.is_requested() {
            about.usage = usage_wanted.then_some(usage);
            about.streamed = true;
            let last = self.format.frames(Vec::new(), about);
            self.pieces.send(last).await;
        }
        Ok(())
    }

    /// Sends the choices of one prompt; `first` is the index of its first choice. Returns the ended generation.
    async fn send(
        &self,
        mut generation: RecordedGeneration,
        first: usize,
    ) -> Result<RecordedGeneration, ApiError> {
        // Which samples have begun.
        let mut begun: Vec<bool> = Vec::new();
        while let Some(output) = generation.next().await? {
            let index = output.index;
            if begun.len() <= index {
                begun.resize(index + 1, false);
            }
            let part = match std::mem::replace(&mut begun[index], true) {
                false => Part::First,
                true => Part::Later,
            };
            let prompt = generation.prompt_logprobs();
            let events = self.format.events(Piece {
                index: first + index,
                output,
                prompt_logprobs: prompt.as_deref(),
                part,
            });
            for choice in events {
                let about = About {
                    weights: generation.weights(),
                    usage: self
                        .options
                        .continuous_usage_stats
                        .then(|| generation.usage()),
                    streamed: true,
                    warnings: self.first_warnings(),
                    ..About::default()
                };
                let frames = self.format.frames(vec![choice], about);
                self.pieces.send(frames).await;
            }
        }
        Ok(generation)
    }
}

/// The stop string or token that ended an answer.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[serde(untagged)]
pub enum StopReason {
    String(String),
    Token(u32),
}

/// The ends of a call's answers: the caller's stop strings, and the ids that end answers by default.
#[derive(Debug, Clone)]
pub struct Ends {
    pub stop: Arc<[String]>,
    pub ids: Box<[u32]>,
}

impl Ends {
    /// Returns the finish reason, and the stop string or token unless the model itself ended the answer.
    pub fn reasons(&self, finish: Option<Finish>) -> (Option<&'static str>, Option<StopReason>) {
        match finish {
            None => (None, None),
            Some(Finish::Length) => (Some("length"), None),
            Some(Finish::Complete) => (Some("stop"), None),
            Some(Finish::EndToken(id)) if self.ids.contains(&id) => (Some("stop"), None),
            Some(Finish::EndToken(id)) => (Some("stop"), Some(StopReason::Token(id))),
            Some(Finish::StopString(at)) => (
                Some("stop"),
                Some(StopReason::String(self.stop[at].clone())),
            ),
        }
    }
}
