//! From prompts to an answer, whole or in pieces: the same for every generating route. What it looks like is the route's
//! [`Wording`].

use axum::Json;
use axum::response::{IntoResponse, Response};
use futures::future::try_join_all;
use serde::Serialize;
use utoipa::ToSchema;

use super::AppState;
use super::error::ApiError;
use super::permit::Permit;
use super::sampling::{Sampling, StreamOptions};
use super::sse::{self, Pieces};
use crate::model::WeightsVersion;
use crate::service::{
    Finish, Generation, JudgeTask, Output, Service, ServiceError, TextEvent, TextTask, TokenText,
    Tournament, TournamentTask, Usage,
};

/// One prompt, and how its candidates are judged, if only the best are wanted.
pub struct Prompt {
    pub tokens: Vec<u32>,
    pub judging: Option<(JudgeTask, TournamentTask)>,
}

/// A choice, or what one token brought of it.
pub struct Piece<'a> {
    /// Among all choices of the call.
    pub index: usize,
    /// Among the samples of its prompt.
    pub sample: usize,
    pub text: String,
    pub tokens: &'a [TokenText],
    pub finish: Option<Finish>,
    /// Characters of the choice before this piece.
    pub offset: usize,
    pub part: Part,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    Whole,
    First,
    Later,
}

/// What is known of the call beside its choices.
#[derive(Debug, Default)]
pub struct About {
    pub version: Option<WeightsVersion>,
    pub usage: Option<Usage>,
    pub tournaments: Vec<Tournament>,
    /// Whether this is an event of a stream.
    pub streamed: bool,
}

/// How a route words its answers.
pub trait Wording: Send + Sync + 'static {
    type Choice: Send;
    type Answer: Serialize + Send + Sync;

    /// Whether a stream ends with the usage, asked for or not.
    const USAGE_LAST: bool;

    fn choice(&self, piece: Piece<'_>) -> Self::Choice;

    /// The whole answer, or an event.
    fn answer(&self, choices: Vec<Self::Choice>, about: About) -> Self::Answer;
}

/// Answers a call.
///
/// # Errors
/// What makes it unservable, before anything has been sent.
pub async fn answer<W: Wording>(
    state: &AppState,
    permit: Permit,
    sampling: &Sampling,
    prompts: Vec<Prompt>,
    wording: W,
) -> Result<Response, ApiError> {
    if let Some(options) = sampling.stream {
        let generations = prompts
            .into_iter()
            .map(|prompt| state.service.generate(sampling.task(prompt.tokens)))
            .collect::<Result<Vec<Generation>, _>>()?;
        let n = sampling.n;
        return Ok(sse::answer(permit, move |pieces| {
            let stream = Stream {
                wording,
                options,
                pieces,
            };
            async move { stream.send_all(generations, n).await }
        }));
    }
    let drawn = prompts.into_iter().map(|prompt| {
        let task = sampling.task(prompt.tokens);
        draw(&state.service, task, prompt.judging, sampling.n)
    });
    let (mut choices, mut usage, mut about) = (Vec::new(), Usage::default(), About::default());
    for drawn in try_join_all(drawn).await? {
        usage.add(drawn.usage);
        about.version = drawn.version;
        about.tournaments.extend(drawn.tournament);
        for output in drawn.outputs {
            choices.push(wording.choice(Piece {
                index: choices.len(),
                sample: output.index,
                text: output.text,
                tokens: &output.tokens,
                finish: Some(output.finish),
                offset: 0,
                part: Part::Whole,
            }));
        }
    }
    about.usage = Some(usage);
    Ok(Json(wording.answer(choices, about)).into_response())
}

/// What became of one prompt.
struct Drawn {
    outputs: Vec<Output>,
    tournament: Option<Tournament>,
    usage: Usage,
    version: Option<WeightsVersion>,
}

/// All samples of a prompt, or the best `n` of them.
async fn draw(
    service: &Service,
    task: TextTask,
    judging: Option<(JudgeTask, TournamentTask)>,
    n: usize,
) -> Result<Drawn, ServiceError> {
    if let Some((judge, how)) = judging {
        let mut best = service.best_of(task, &judge, how).await?;
        return Ok(Drawn {
            outputs: best.take_best(n),
            tournament: Some(best.tournament),
            usage: best.usage,
            version: best.version,
        });
    }
    let mut generation = service.generate(task)?;
    Ok(Drawn {
        outputs: generation.outputs().await?,
        tournament: None,
        usage: generation.usage(),
        version: generation.version(),
    })
}

/// A streamed answer.
struct Stream<W> {
    wording: W,
    options: StreamOptions,
    pieces: Pieces,
}

impl<W: Wording> Stream<W> {
    /// One event a token of any choice, and the usage of all, if it is wanted.
    async fn send_all(&self, generations: Vec<Generation>, n: usize) -> Result<(), ApiError> {
        let generations = generations.into_iter().enumerate();
        let all = generations.map(|(at, generation)| self.send(generation, at * n));
        let (mut usage, mut version) = (Usage::default(), None);
        for (spent, by) in try_join_all(all).await? {
            usage.add(spent);
            version = by;
        }
        if self.options.include_usage || W::USAGE_LAST {
            let about = About {
                version,
                usage: Some(usage),
                tournaments: Vec::new(),
                streamed: true,
            };
            self.pieces
                .send(&self.wording.answer(Vec::new(), about))
                .await;
        }
        Ok(())
    }

    /// The choices of one prompt, `first` being the index of the first.
    async fn send(
        &self,
        mut generation: Generation,
        first: usize,
    ) -> Result<(Usage, Option<WeightsVersion>), ApiError> {
        // Characters of each sample so far, once it has begun.
        let mut written: Vec<Option<usize>> = Vec::new();
        while let Some(event) = generation.next().await? {
            let TextEvent::Delta {
                index,
                text,
                token,
                finish,
            } = event
            else {
                continue;
            };
            if written.len() <= index {
                written.resize(index + 1, None);
            }
            let part = match written[index] {
                None => Part::First,
                Some(_) => Part::Later,
            };
            let offset = written[index].unwrap_or(0);
            written[index] = Some(offset + text.chars().count());
            let choice = self.wording.choice(Piece {
                index: first + index,
                sample: index,
                text,
                tokens: std::slice::from_ref(&token),
                finish,
                offset,
                part,
            });
            let about = About {
                version: generation.version(),
                usage: self
                    .options
                    .continuous_usage_stats
                    .then(|| generation.usage()),
                tournaments: Vec::new(),
                streamed: true,
            };
            self.pieces
                .send(&self.wording.answer(vec![choice], about))
                .await;
        }
        Ok((generation.usage(), generation.version()))
    }
}

/// The stop string or token that ended an answer.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[serde(untagged)]
pub enum StopReason {
    String(String),
    Token(u32),
}

/// What ends the answers of a call: the caller's stop strings, and the ids that end answers anyway.
#[derive(Debug, Clone)]
pub struct Ends {
    pub stop: Vec<String>,
    pub ids: Vec<u32>,
}

impl Ends {
    /// Why an answer ended, and by what, where that was not the model's own end of an answer.
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
