//! From prompts to an answer, whole or streamed. The code is common to all generating routes; each route formats the answer with its
//! [`Wording`].

use std::sync::{Arc, Mutex, PoisonError};

use axum::http::header;
use axum::response::{IntoResponse, Response};
use futures::future::try_join_all;
use serde::Serialize;
use utoipa::ToSchema;

use super::AppState;
use super::error::{ApiError, GRAMMAR};
use super::layers::internal;
use super::memory::{Gathered, Holding};
use super::recording::{Draft, Keeping, Kept};
use super::sampling::{Sampling, StreamOptions};
use super::sse::{self, Frame, Pieces};
use super::traffic::Identity;
use crate::service::{
    Finish, Generation, JudgeTask, Output, Service, TextEvent, TextTask, TokenText, Tournament,
    TournamentTask, Usage, offload,
};
use engine::PromptLogprobs;
use model::WeightsName;

pub use traffic_log::Prompt as Asked;

/// One prompt, and how its candidates are judged if only the best are wanted.
pub struct Prompt {
    pub tokens: Vec<u32>,
    /// Whether the answer continues the prompt's text.
    pub continues: bool,
    /// The prompt as the caller sent it.
    pub asked: Asked,
    pub judging: Option<(JudgeTask, TournamentTask)>,
}

/// A choice, or the increment of a choice by one token.
pub struct Piece<'a> {
    /// Index among all choices of the call.
    pub index: usize,
    /// Index among the samples of its prompt.
    pub sample: usize,
    pub text: String,
    pub tokens: &'a [TokenText],
    /// Log-probabilities of the prompt's tokens except the first, if they were requested.
    pub prompt_logprobs: Option<&'a [PromptLogprobs]>,
    pub finish: Option<Finish>,
    pub part: Part,
}

impl Piece<'_> {
    /// Returns whether the tokens carry log-probabilities.
    pub fn shows_logprobs(&self) -> bool {
        self.tokens.iter().any(|token| token.logprobs.is_some())
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
    pub kept: Kept,
    /// Whether this is an event of a stream.
    pub streamed: bool,
    /// Requests that are fulfilled only in part, as whole sentences; in a stream with the first event.
    pub warnings: Vec<String>,
}

/// The format of a route's answers.
pub trait Wording: Send + Sync + 'static {
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

/// Answers a call, and stores a record of it if it is to be kept.
///
/// # Errors
/// Errors that are detected before anything has been sent.
pub async fn answer<W: Wording>(
    state: &AppState,
    identity: &Identity,
    sampling: &Sampling,
    prompts: Vec<Prompt>,
    wording: W,
) -> Result<Response, ApiError> {
    let keeping = Keeping::of_call(state, identity, sampling.log, sampling.user.as_deref()).await?;
    let mut warnings = sampling.warnings.clone();
    if sampling.tools && keeping.keeps() {
        let unkept =
            "tools: The call is not recorded or trained on, because its conversation has tools.";
        warnings.push(unkept.to_owned());
    }
    let keeping = match sampling.is_kept() {
        true => keeping,
        false => keeping.unkept(),
    };
    let shows_logprobs = sampling.shows_logprobs();
    let grammar_param = sampling.grammar_param;
    // One version answers all prompts of a call.
    let turn = keeping.turn(sampling.turn);
    let weights = state.service.answering_weights(&turn);
    let tasks = prompts.into_iter().enumerate().map(|(at, prompt)| {
        let task = TextTask {
            weights: Some(weights.clone()),
            turn,
            continues: prompt.continues,
            ..keeping.prepared(sampling.task(prompt.tokens), at)
        };
        let draft = keeping.draft(&task, prompt.asked, weights.name(), sampling, at);
        (task, prompt.judging, draft)
    });
    if let Some(options) = sampling.stream {
        let (tasks, drafts): (Vec<TextTask>, Vec<Draft>) =
            tasks.map(|(task, _, draft)| (task, draft)).unzip();
        let generations = state.service.generate_all(tasks)?;
        let generations: Vec<(Generation, Draft)> = generations.into_iter().zip(drafts).collect();
        let n = sampling.n;
        let wording = Arc::new(wording);
        let closing = Arc::clone(&wording);
        let work = move |pieces| {
            let stream = Stream {
                wording,
                options,
                keeping,
                shows_logprobs,
                pieces,
                warnings: Mutex::new(warnings),
            };
            async move {
                stream.pieces.send(stream.wording.opening()).await;
                let sent = stream.send_all(generations, n).await;
                sent.map_err(|error| error.renamed(GRAMMAR, grammar_param))
            }
        };
        return Ok(sse::answer(work, move |ended| closing.closing(ended)));
    }
    let (tasks, parts): (Vec<TextTask>, Vec<_>) = tasks
        .map(|(task, judging, draft)| (task, (judging, draft)))
        .unzip();
    let drawn = state.service.generate_all(tasks)?.into_iter().zip(parts);
    let drawn = drawn.map(|(generation, (judging, draft))| {
        draw(
            &state.service,
            &identity.memory,
            generation,
            judging,
            sampling.n,
            draft,
        )
    });
    let (mut outputs, mut usage) = (Vec::new(), Usage::default());
    let mut about = About {
        warnings,
        ..About::default()
    };
    let mut drafts = Vec::new();
    let drawn = try_join_all(drawn).await;
    for drawn in drawn.map_err(|error| error.renamed(GRAMMAR, grammar_param))? {
        usage.add(drawn.usage);
        about.weights = drawn.weights;
        about.tournaments.extend(drawn.tournament);
        drafts.push(drawn.draft);
        let prompt = drawn.prompt_logprobs;
        let outputs_of = drawn.outputs.into_iter();
        outputs.extend(outputs_of.map(|output| (output, prompt.clone())));
    }
    about.usage = Some(usage);
    about.kept = keeping.commit(drafts).await?;
    let holding = identity.memory.clone();
    let worded = move || {
        // The prompt's log-probabilities are repeated with each of its answers.
        let prompts = outputs.iter().filter_map(|(_, prompt)| prompt.as_deref());
        let told: usize = prompts
            .flatten()
            .map(|token| 1 + token.logprobs.top.len())
            .sum();
        let told = told.saturating_mul(LOGPROB_BYTES);
        holding.grow(told)?;
        let body = worded(&wording, outputs, about, shows_logprobs, holding.clone());
        holding.shrink(told);
        body
    };
    let body = match usage
        .completion_tokens
        .saturating_mul(sampling.logprobs() + 1)
    {
        // Formatting a small answer here takes less time than waking another thread.
        0..=4096 => worded(),
        _ => offload(worded).await?,
    }?;
    Ok(([(header::CONTENT_TYPE, "application/json")], body).into_response())
}

/// Returns a whole answer as JSON, charging its memory to the call while it is written.
fn worded<W: Wording>(
    wording: &W,
    outputs: Vec<(Output, Option<Arc<[PromptLogprobs]>>)>,
    about: About,
    shows_logprobs: bool,
    holding: Holding,
) -> Result<Vec<u8>, ApiError> {
    let choice = |(index, (mut output, prompt)): (usize, (Output, Option<Arc<_>>))| {
        if !shows_logprobs {
            output.tokens.iter_mut().for_each(hide_logprobs);
        }
        wording.choice(Piece {
            index,
            sample: output.index,
            text: output.text,
            tokens: &output.tokens,
            prompt_logprobs: prompt.as_deref(),
            finish: Some(output.finish),
            part: Part::Whole,
        })
    };
    let choices = outputs.into_iter().enumerate().map(choice).collect();
    written(&wording.answer(choices, about), holding)
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
    let told = token.logprobs.as_ref();
    let told = told.map_or(0, |told| told.top.len() + told.chosen.len());
    holding.grow(told * LOGPROB_BYTES)
}

/// Removes log-probabilities that are only for the record.
fn hide_logprobs(token: &mut TokenText) {
    token.logprobs = None;
}

/// The results for one prompt.
struct Drawn {
    outputs: Vec<Output>,
    prompt_logprobs: Option<Arc<[PromptLogprobs]>>,
    tournament: Option<Tournament>,
    usage: Usage,
    weights: Option<WeightsName>,
    draft: Draft,
}

/// Samples all answers to a prompt, or the best `n` of them.
async fn draw(
    service: &Service,
    holding: &Holding,
    mut generation: Generation,
    judging: Option<(JudgeTask, TournamentTask)>,
    n: usize,
    mut draft: Draft,
) -> Result<Drawn, ApiError> {
    let mut refused = None;
    let go_on = |token: &TokenText| match pay(holding, token) {
        Ok(()) => true,
        Err(error) => {
            refused = Some(error);
            false
        }
    };
    if let Some((judge, how)) = judging {
        let best = service.best_of(&mut generation, &judge, how, go_on).await?;
        let Some(mut best) = best else {
            return Err(refused.unwrap_or_else(internal));
        };
        draft.outputs(&best.candidates);
        draft.tournament(&judge, best.judge_weights.as_ref(), &best.tournament);
        return Ok(Drawn {
            outputs: best.take_best(n),
            prompt_logprobs: generation.prompt_logprobs(),
            tournament: Some(best.tournament),
            usage: best.usage,
            weights: best.weights,
            draft,
        });
    }
    let Some(outputs) = generation.outputs_while(go_on).await? else {
        return Err(refused.unwrap_or_else(internal));
    };
    draft.outputs(&outputs);
    Ok(Drawn {
        outputs,
        prompt_logprobs: generation.prompt_logprobs(),
        tournament: None,
        usage: generation.usage(),
        weights: generation.weights(),
        draft,
    })
}

/// A streamed answer.
struct Stream<W> {
    wording: Arc<W>,
    options: StreamOptions,
    keeping: Keeping,
    shows_logprobs: bool,
    pieces: Pieces,
    /// Warnings that have not been sent yet.
    warnings: Mutex<Vec<String>>,
}

impl<W: Wording> Stream<W> {
    /// Returns the call's warnings at the first call, and none afterwards.
    fn first_warnings(&self) -> Vec<String> {
        let mut warnings = self.warnings.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *warnings)
    }

    /// Sends one event per token of any choice, and at the end, if requested, the total usage and the state of the records.
    async fn send_all(
        &self,
        generations: Vec<(Generation, Draft)>,
        n: usize,
    ) -> Result<(), ApiError> {
        let generations = generations.into_iter().enumerate();
        let all = generations.map(|(at, (generation, draft))| self.send(generation, draft, at * n));
        let (mut about, mut usage, mut drafts) = (About::default(), Usage::default(), Vec::new());
        for (spent, weights, draft) in try_join_all(all).await? {
            usage.add(spent);
            about.weights = weights;
            drafts.push(draft);
        }
        about.kept = self.keeping.commit(drafts).await?;
        let usage_wanted = self.options.include_usage || W::USAGE_LAST;
        if usage_wanted || self.keeping.is_reported() {
            about.usage = usage_wanted.then_some(usage);
            about.streamed = true;
            let last = self.wording.frames(Vec::new(), about);
            self.pieces.send(last).await;
        }
        Ok(())
    }

    /// Sends the choices of one prompt; `first` is the index of its first choice.
    async fn send(
        &self,
        mut generation: Generation,
        mut draft: Draft,
        first: usize,
    ) -> Result<(Usage, Option<WeightsName>, Draft), ApiError> {
        // Which samples have begun.
        let mut begun: Vec<bool> = Vec::new();
        while let Some(event) = generation.next().await? {
            let TextEvent::Delta {
                index,
                text,
                mut token,
                finish,
            } = event
            else {
                continue;
            };
            if let Some(token) = &mut token {
                draft.token(index, &text, token, finish);
                if !self.shows_logprobs {
                    hide_logprobs(token);
                }
            }
            if begun.len() <= index {
                begun.resize(index + 1, false);
            }
            let part = match std::mem::replace(&mut begun[index], true) {
                false => Part::First,
                true => Part::Later,
            };
            let prompt = generation.prompt_logprobs();
            let events = self.wording.events(Piece {
                index: first + index,
                sample: index,
                text,
                tokens: token.as_slice(),
                prompt_logprobs: prompt.as_deref(),
                finish,
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
                let frames = self.wording.frames(vec![choice], about);
                self.pieces.send(frames).await;
            }
        }
        Ok((generation.usage(), generation.weights(), draft))
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
