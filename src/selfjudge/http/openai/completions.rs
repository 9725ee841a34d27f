//! `POST /v1/completions`: raw continuation of one or several prompts.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Instant;

use axum::extract::State;
use axum::response::Response;
use futures::stream::{self, StreamExt, TryStreamExt};
use serde::de::{self, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use utoipa::ToSchema;

use super::prompt_logprobs::{PromptLogprob, ToldPrompt, told};
use super::usage::OpenAiUsage;
use super::wording::Call;
use crate::http::AppState;
use crate::http::answering::{self, About, Part, Piece, StopReason, Wording};
use crate::http::conversation::conversation;
use crate::http::error::{ApiError, ErrorBody};
use crate::http::extract::Generating;
use crate::http::idempotency::IDEMPOTENCY;
use crate::http::identity::Identity;
use crate::http::judge::TournamentBody;
use crate::http::kept::KeptBody;
use crate::http::one_or_many::{Given, one_or_many};
use crate::http::sampling::Wanted;
use crate::http::sse::EventBody;
use crate::judging::JudgeTask;
use crate::service::{PromptTask, RawPrompt, ReadPrompt, TextTask};
use engine::TokenLogprobs;
use model::WeightsName;
use text::{TokenPlace, TokenPlaces, TokenTexts};
use traffic_log::Prompt;

/// Default maximum of tokens per answer (OpenAI's default).
const DEFAULT_MAX_TOKENS: usize = 16;

/// Maximum number of prompts per call.
const MAX_PROMPTS: usize = 1024;

/// One or several prompts, at most 1024, as text or tokens.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
pub enum PromptBody {
    Text(String),
    Texts(Vec<String>),
    Tokens(Vec<u32>),
    TokenLists(Vec<Vec<u32>>),
}

/// An element of a list of prompts, or of one prompt.
enum PromptElement {
    Text(String),
    Token(u32),
    Tokens(Vec<u32>),
}

impl<'de> Deserialize<'de> for PromptElement {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ReadElement)
    }
}

struct ReadElement;

impl<'de> Visitor<'de> for ReadElement {
    type Value = PromptElement;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string, a token id or a list of token ids")
    }

    fn visit_str<E>(self, text: &str) -> Result<PromptElement, E> {
        Ok(PromptElement::Text(text.to_owned()))
    }

    fn visit_u64<E: de::Error>(self, id: u64) -> Result<PromptElement, E> {
        let id = u32::try_from(id).map_err(|_| E::custom(format!("{id} is not a token id")))?;
        Ok(PromptElement::Token(id))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<PromptElement, A::Error> {
        let mut ids = Vec::new();
        while let Some(id) = seq.next_element()? {
            ids.push(id);
        }
        Ok(PromptElement::Tokens(ids))
    }
}

impl<'de> Deserialize<'de> for PromptBody {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let expected = "a string, a list of strings, a list of token ids, or a list of such lists";
        let elements = match one_or_many(deserializer, expected)? {
            Given::Text(text) => return Ok(Self::Text(text)),
            Given::List(elements) => elements,
        };
        let (mut texts, mut tokens, mut lists) = (Vec::new(), Vec::new(), Vec::new());
        for element in elements {
            match element {
                PromptElement::Text(text) => texts.push(text),
                PromptElement::Token(token) => tokens.push(token),
                PromptElement::Tokens(list) => lists.push(list),
            }
        }
        match (texts.is_empty(), tokens.is_empty(), lists.is_empty()) {
            (_, true, true) => Ok(Self::Texts(texts)),
            (true, false, true) => Ok(Self::Tokens(tokens)),
            (true, true, false) => Ok(Self::TokenLists(lists)),
            _ => Err(de::Error::custom(
                "a list must hold only strings, only token ids or only lists of token ids",
            )),
        }
    }
}

/// The body. Unknown fields are refused.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CompletionBody {
    /// The name of the served model; optional.
    model: Option<String>,
    /// One or several prompts to continue.
    prompt: PromptBody,
    /// Maximum tokens per answer; by default 16. With 0 there is no answer, only the requested data about the prompt.
    max_tokens: Option<usize>,
    /// Return each token's log-probability and those of this many most probable tokens.
    #[schema(maximum = 20)]
    logprobs: Option<usize>,
    /// Whether choices begin with the prompt, and `logprobs` with its tokens. The first token has no log-probability.
    echo: Option<bool>,
    /// Return the log-probabilities of the prompt's tokens and of this many most probable ones with every choice, as in vLLM.
    #[schema(maximum = 20)]
    prompt_logprobs: Option<usize>,
    /// Whether the tokenizer's post-processor adds its tokens, such as BOS, to a text; by default true.
    add_special_tokens: Option<bool>,
}

type CompletionRequest = Generating<CompletionBody>;

/// The answer, or an event of a streamed one.
#[derive(Debug, Serialize, ToSchema)]
pub struct CompletionAnswer {
    /// The id of the call.
    id: String,
    /// Always `text_completion`.
    object: &'static str,
    /// Time of the call in seconds since 1970.
    created: u64,
    /// The name of the model.
    model: String,
    /// The continuations: `n` of each prompt, or in a stream one token's increment of one.
    choices: Vec<CompletionChoice>,
    /// The weights that answered: `base`, or the digest of a generation.
    #[schema(value_type = Option<String>)]
    system_fingerprint: Option<WeightsName>,
    /// The tokens of the call, including judging; in a stream in the last event, with `include_usage`.
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<OpenAiUsage>,
    /// The tournament of each prompt, with `best_of`. Candidates are numbered in the order of sampling.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tournaments: Vec<TournamentBody>,
    /// Requests that are fulfilled only in part.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<String>,
    #[serde(flatten)]
    kept: KeptBody,
}

/// One continuation, or its increment by a token.
#[derive(Debug, Serialize, ToSchema)]
pub struct CompletionChoice {
    /// The continuation's number, from 0: the `n` of the first prompt come first.
    index: usize,
    /// The text, with `echo` after its prompt.
    text: String,
    /// The log-probabilities of the tokens, with `logprobs`; otherwise null.
    logprobs: Option<CompletionLogprobs>,
    /// `stop` or `length`; in a stream null before the end.
    finish_reason: Option<&'static str>,
    /// The stop string or token that ended the text; null if the model itself ended it.
    stop_reason: Option<StopReason>,
    /// In a stream in the first event: one entry per token of the prompt, by token id; null for the first.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<Option<BTreeMap<String, PromptLogprob>>>>)]
    prompt_logprobs: Option<ToldPrompt>,
}

/// Log-probabilities in OpenAI's legacy format: parallel lists. Tokens are named by their texts; a part of a character by
/// `bytes:\xe2\x82`, and a token with the same text as a more probable one by `token_id:7`.
#[derive(Debug, Default, Serialize, ToSchema)]
pub struct CompletionLogprobs {
    /// The names of the tokens.
    tokens: Vec<String>,
    /// The natural logarithms of the tokens' probabilities; null for the first token of a prompt.
    token_logprobs: Vec<Option<f32>>,
    /// The most probable tokens at each position, and the token itself; null if none were requested.
    top_logprobs: Option<Vec<Option<BTreeMap<String, f32>>>>,
    /// Characters of the choice's text before each token.
    text_offset: Vec<usize>,
}

/// A prompt that is echoed, or whose log-probabilities are returned.
struct ShownPrompt {
    text: String,
    tokens: Vec<u32>,
}

/// Formats the answers of a call.
struct Words {
    call: Call,
    /// Number of choices per prompt.
    n: usize,
    prompts: Vec<ShownPrompt>,
    echo: bool,
    /// Number of most probable tokens returned with each token, if any.
    logprobs: Option<usize>,
    /// The same for `prompt_logprobs`.
    prompt_logprobs: Option<usize>,
}

impl CompletionLogprobs {
    fn new(top: Option<usize>) -> Self {
        Self {
            top_logprobs: top.filter(|&top| top > 0).map(|_| Vec::new()),
            ..Self::default()
        }
    }

    /// Adds a token, with the first `top` of `logprobs`.
    fn push(
        &mut self,
        id: u32,
        place: TokenPlace,
        logprobs: Option<&TokenLogprobs>,
        top: usize,
        texts: &TokenTexts,
    ) {
        let name = texts.name(id, place.first);
        self.text_offset.push(place.offset);
        self.token_logprobs.push(logprobs.map(|l| l.token));
        if let Some(list) = &mut self.top_logprobs {
            list.push(logprobs.map(|logprobs| {
                let mut named = BTreeMap::from([(name.clone(), logprobs.token)]);
                for &(other, logprob) in logprobs.top.iter().take(top) {
                    if other == id {
                        continue;
                    }
                    let other_name = texts.name(other, place.first);
                    let other_name = match named.contains_key(&other_name) {
                        true => TokenTexts::id_name(other),
                        false => other_name,
                    };
                    named.insert(other_name, logprob);
                }
                named
            }));
        }
        self.tokens.push(name);
    }
}

impl Words {
    fn prompt(&self, index: usize) -> Option<&ShownPrompt> {
        self.prompts.get(index / self.n)
    }

    /// Returns the lists of a piece, beginning with those of the prompt if the piece does.
    fn logprobs(&self, piece: &Piece<'_>) -> Option<CompletionLogprobs> {
        let top = self.logprobs?;
        let mut list = CompletionLogprobs::new(Some(top));
        let texts = &self.call.texts;
        let mut before = 0;
        if let Some(prompt) = self.prompt(piece.index).filter(|_| self.echo) {
            let mut places = TokenPlaces::default();
            let scores = piece.prompt_logprobs.unwrap_or_default();
            let scores = std::iter::once(None).chain(scores.iter().map(Some));
            for (&id, score) in prompt.tokens.iter().zip(scores) {
                let place = places.next(id, texts);
                if piece.part != Part::Later {
                    let logprobs = score.map(|score| &score.logprobs);
                    list.push(id, place, logprobs, top, texts);
                }
            }
            before = prompt.text.chars().count();
        }
        for token in &piece.output.tokens {
            let place = TokenPlace {
                offset: before + token.place.offset,
                ..token.place
            };
            list.push(token.id, place, token.logprobs.as_ref(), top, texts);
        }
        Some(list)
    }

    /// Returns the separate field with the prompt's log-probabilities.
    fn prompt_logprobs(&self, piece: &Piece<'_>) -> Option<ToldPrompt> {
        let top = self.prompt_logprobs.filter(|_| piece.part != Part::Later)?;
        let prompt = self.prompt(piece.index)?;
        let scores = piece.prompt_logprobs.unwrap_or_default();
        Some(told(&prompt.tokens, scores, top, &self.call.texts))
    }
}

impl Wording for Words {
    type Choice = CompletionChoice;
    type Answer = CompletionAnswer;

    const USAGE_LAST: bool = false;

    fn choice(&self, piece: Piece<'_>) -> CompletionChoice {
        let (finish_reason, stop_reason) = self.call.ends.reasons(piece.output.finish);
        let (logprobs, prompt_logprobs) = (self.logprobs(&piece), self.prompt_logprobs(&piece));
        let echoed = self.echo && piece.part != Part::Later;
        let prompt = self.prompt(piece.index).filter(|_| echoed);
        CompletionChoice {
            index: piece.index,
            text: match prompt {
                Some(prompt) => format!("{}{}", prompt.text, piece.output.text),
                None => piece.output.text,
            },
            logprobs,
            finish_reason,
            stop_reason,
            prompt_logprobs,
        }
    }

    fn answer(&self, choices: Vec<CompletionChoice>, about: About) -> CompletionAnswer {
        CompletionAnswer {
            id: self.call.id.clone(),
            object: "text_completion",
            created: self.call.created,
            model: self.call.model.clone(),
            choices,
            system_fingerprint: about.weights,
            usage: about.usage.map(OpenAiUsage::from),
            tournaments: about.tournaments.into_iter().map(Into::into).collect(),
            warnings: about.warnings,
            kept: about.records.into(),
        }
    }
}

impl PromptBody {
    /// Returns the number of prompts.
    fn check(&self) -> Result<usize, ApiError> {
        let count = match self {
            Self::Text(_) | Self::Tokens(_) => 1,
            Self::Texts(texts) => texts.len(),
            Self::TokenLists(lists) => lists.len(),
        };
        match count {
            0 => Err(ApiError::invalid("prompt", "must not be empty")),
            1..=MAX_PROMPTS => Ok(count),
            _ => Err(ApiError::invalid(
                "prompt",
                format!("must be at most {MAX_PROMPTS} prompts, not {count}"),
            )),
        }
    }
}

impl From<PromptBody> for Vec<RawPrompt> {
    fn from(prompt: PromptBody) -> Self {
        match prompt {
            PromptBody::Text(text) => vec![RawPrompt::Text(text)],
            PromptBody::Texts(texts) => texts.into_iter().map(RawPrompt::Text).collect(),
            PromptBody::Tokens(tokens) => vec![RawPrompt::Tokens(tokens)],
            PromptBody::TokenLists(lists) => lists.into_iter().map(RawPrompt::Tokens).collect(),
        }
    }
}

/// Number of a call's prompts that are encoded concurrently, so that other calls' prompts come in between.
const READ_AT_ONCE: usize = 2;

/// Continues one or several prompts without a chat template.
///
/// `echo`, `prompt_logprobs` and `max_tokens: 0` return the data about prompts that lm-eval needs. With `best_of` the candidates are
/// judged as answers to the prompt's text.
#[utoipa::path(
    post,
    path = "/v1/completions",
    tag = "OpenAI",
    request_body(content = CompletionRequest, examples(
        ("1. a text" = (value = json!({"model": "pocket", "prompt": "5+7=12, 4+1+1=", "max_tokens": 8, "temperature": 0}))),
        ("2. the best two of four, twice" = (value = json!({
            "prompt": ["5+7=12, 4+1+1=", "12-5=7, 9-2="], "best_of": 4, "n": 2, "max_tokens": 4
        }))),
        ("3. streamed, by token ids" = (value = json!({
            "prompt": [50, 32, 43], "stream": true, "stream_options": {"include_usage": true}, "logprobs": 1
        })))
    )),
    params(("Idempotency-Key" = Option<String>, Header, description = IDEMPOTENCY)),
    responses(
        (
            status = 200,
            description = "The answer; with `stream`, server-sent events that hold one of the same shape each, and `[DONE]` after the last",
            content((CompletionAnswer = "application/json"), (EventBody = "text/event-stream"))
        ),
        (status = "4XX", body = ErrorBody),
        (status = "5XX", body = ErrorBody)
    )
)]
pub async fn completions(
    State(state): State<AppState>,
    identity: Identity,
    body: Generating<CompletionBody>,
) -> Result<Response, ApiError> {
    let arrival = Instant::now();
    let Generating {
        own,
        shared: sampling,
    } = body;
    let service = &state.service;
    state.check_model(own.model.as_deref())?;
    let count = own.prompt.check()?;
    let echo = own.echo.unwrap_or(false);
    // The log-probabilities of the prompt that either parameter needs.
    let echoed = own.logprobs.filter(|_| echo);
    let prompt_logprobs = own.prompt_logprobs.max(echoed);
    let prompt_param = match own.prompt_logprobs {
        Some(_) => "prompt_logprobs",
        None => "logprobs",
    };
    let wanted = Wanted {
        prompts: count,
        max_tokens: own.max_tokens.unwrap_or(DEFAULT_MAX_TOKENS).max(1),
        logprobs: own.logprobs,
        logprob_ids: Vec::new(),
        prompt_logprobs,
        silent: own.max_tokens == Some(0),
        ..Wanted::default()
    };
    let limited = own.max_tokens.is_some();
    let sampling = sampling
        .check(arrival, identity.tenant, wanted, &state)
        .await?
        .limited(limited);
    let judged = sampling.judging(&state, count)?;
    let add_special = own.add_special_tokens.unwrap_or(true);
    let read = stream::iter(Vec::from(own.prompt))
        .map(|prompt| service.read_prompt(prompt, add_special))
        .buffered(READ_AT_ONCE)
        .try_collect::<Vec<ReadPrompt>>()
        .await
        .map_err(|error| ApiError::from(error).renamed("messages", "prompt"))?;
    let mut prompts = Vec::with_capacity(count);
    let mut shown = Vec::new();
    if let Some(top) = prompt_logprobs {
        let tokens = read.iter().map(|prompt| prompt.tokens.len()).sum();
        state.limits.check_prompts(tokens, top + 1, prompt_param)?;
    }
    for ReadPrompt {
        tokens,
        text,
        spoken,
    } in read
    {
        let spoken_text = match echo {
            true => spoken.clone(),
            false => String::new(),
        };
        let judging = match &judged {
            Some((task, how)) => {
                let context = conversation(Some(spoken), None)?;
                let task = task.clone();
                Some((JudgeTask { context, ..task }, *how))
            }
            None => None,
        };
        if echo || own.prompt_logprobs.is_some() {
            shown.push(ShownPrompt {
                text: spoken_text,
                tokens: tokens.clone(),
            });
        }
        prompts.push(PromptTask {
            text: TextTask {
                continues: true,
                ..sampling.task(tokens)
            },
            asked: Prompt::Text(text),
            judging,
        });
    }
    let words = Words {
        call: state.call("cmpl", &sampling),
        n: sampling.n,
        prompts: shown,
        echo,
        logprobs: own.logprobs,
        prompt_logprobs: own.prompt_logprobs,
    };
    answering::answer(&state, &identity, &sampling, prompts, words).await
}
