//! `POST /v1/chat/completions`: the next message of a conversation.

use std::collections::VecDeque;
use std::time::Instant;

use axum::extract::State;
use axum::response::Response;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::prompt_logprobs::{PromptLogprob, ToldPrompt, told};
use super::tools::{
    self, CallBody, ChatMessageBody, Conversation, Reading, Told, ToolBody, ToolChoiceBody,
};
use super::usage::OpenAiUsage;
use super::wording::Call;
use crate::http::AppState;
use crate::http::answering::{self, About, Part, Piece, StopReason, Wording};
use crate::http::conversation;
use crate::http::error::{ApiError, ErrorBody};
use crate::http::extract::Generating;
use crate::http::idempotency::IDEMPOTENCY;
use crate::http::identity::Identity;
use crate::http::judge::TournamentBody;
use crate::http::kept::KeptBody;
use crate::http::reading;
use crate::http::sampling::Wanted;
use crate::http::sse::EventBody;
use crate::service::{PromptTask, TokenText};
use engine::MAX_LOGPROBS;
use model::WeightsName;
use text::{Message, ToolChat, Variables};
use traffic_log::Prompt;

/// The body. Unknown fields are refused.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChatBody {
    /// The name of the served model; optional.
    model: Option<String>,
    /// The conversation, the oldest message first.
    messages: Vec<ChatMessageBody>,
    /// The functions that the model may call: at most 128, of 128 KiB together.
    #[schema(max_items = 128)]
    tools: Option<Vec<ToolBody>>,
    /// Whether the model calls tools; by default `auto`. `required` and a named function are enforced by a grammar, with every model.
    tool_choice: Option<ToolChoiceBody>,
    /// Whether an answer may contain several tool calls; by default true.
    parallel_tool_calls: Option<bool>,
    /// Maximum tokens per answer; by default as many as fit into the context.
    #[schema(minimum = 1)]
    max_completion_tokens: Option<usize>,
    /// The old name of `max_completion_tokens`.
    #[schema(minimum = 1)]
    max_tokens: Option<usize>,
    /// Return each token's log-probability.
    logprobs: Option<bool>,
    /// Return also those of this many most probable tokens.
    #[schema(maximum = 20)]
    top_logprobs: Option<usize>,
    /// Return the log-probabilities of the prompt's tokens and of this many most probable ones, as in vLLM. The prompt is the
    /// messages as rendered by the chat template.
    #[schema(maximum = 20)]
    prompt_logprobs: Option<usize>,
    /// Whether the answer begins a message of the assistant; by default true. With `false` it continues after the last turn.
    add_generation_prompt: Option<bool>,
    /// Whether the answer continues the last message, which is then not closed. Such calls are not recorded.
    continue_final_message: Option<bool>,
    /// Variables of the chat template, such as `enable_thinking`.
    #[schema(value_type = Option<Object>)]
    chat_template_kwargs: Option<Variables>,
}

type ChatRequest = Generating<ChatBody>;

impl ChatBody {
    fn max_tokens(&self) -> Result<usize, ApiError> {
        match (self.max_completion_tokens, self.max_tokens) {
            (Some(new), Some(old)) if new != old => Err(ApiError::invalid(
                "max_tokens",
                "is the old name of `max_completion_tokens` and contradicts it",
            )),
            // The engine bounds this by the room in the context.
            (new, old) => Ok(new.or(old).unwrap_or(usize::MAX)),
        }
    }

    /// Returns how many most probable tokens are returned with every token; none if log-probabilities were not requested.
    fn top_logprobs(&self) -> Result<Option<usize>, ApiError> {
        let top = self.top_logprobs.unwrap_or(0);
        if top > MAX_LOGPROBS {
            let message = format!("must be at most {MAX_LOGPROBS}");
            return Err(ApiError::invalid("top_logprobs", message));
        }
        match self.logprobs.unwrap_or(false) {
            true => Ok(Some(top)),
            false if top > 0 => Err(ApiError::invalid(
                "top_logprobs",
                "has no meaning without `\"logprobs\": true`",
            )),
            false => Ok(None),
        }
    }
}

/// The answer, or an event of a streamed one.
#[derive(Debug, Serialize, ToSchema)]
pub struct ChatAnswer {
    /// The id of the call.
    id: String,
    /// `chat.completion`, in a stream `chat.completion.chunk`.
    object: &'static str,
    /// Time of the call in seconds since 1970.
    created: u64,
    /// The name of the model.
    model: String,
    /// The answers: `n` of them, or in a stream one token's increment of one.
    choices: Vec<ChatChoice>,
    /// The weights that answered: `base`, or the digest of a generation.
    #[schema(value_type = Option<String>)]
    system_fingerprint: Option<WeightsName>,
    /// The tokens of the call, including judging; in a stream in the last event, with `include_usage`.
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<OpenAiUsage>,
    /// With `prompt_logprobs`, in a stream in the first event: one entry per token of the prompt, by token id; null for the first.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<Option<BTreeMap<String, PromptLogprob>>>>)]
    prompt_logprobs: Option<ToldPrompt>,
    /// The tournament, with `best_of`. Candidates are numbered in the order of sampling.
    #[serde(skip_serializing_if = "Option::is_none")]
    tournament: Option<TournamentBody>,
    /// Requests that are fulfilled only in part.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<String>,
    #[serde(flatten)]
    kept: KeptBody,
}

/// One answer, or its increment by a token.
#[derive(Debug, Serialize, ToSchema)]
pub struct ChatChoice {
    /// The answer's number, from 0.
    index: usize,
    #[serde(flatten)]
    said: Said,
    /// The log-probabilities of the answer's tokens, with `logprobs`; otherwise null.
    logprobs: Option<ChatLogprobs>,
    /// `stop` or `length`; in a stream null before the end.
    finish_reason: Option<&'static str>,
    /// The stop string or token that ended the answer; null if the model itself ended it.
    stop_reason: Option<StopReason>,
    /// The prompt's log-probabilities, with the first choice; they are serialized beside the choices.
    #[serde(skip)]
    prompt: Option<ToldPrompt>,
}

/// A whole message, or its increment by an event.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Said {
    /// The whole message.
    Message(ChatMessage),
    /// In a stream: the increment of the message.
    Delta(ChatDelta),
}

/// The message of the answer.
#[derive(Debug, Serialize, ToSchema)]
pub struct ChatMessage {
    /// Always `assistant`.
    role: &'static str,
    /// The text of the message; null if the message has only tool calls.
    #[schema(required)]
    content: Option<String>,
    /// The tool calls of the message.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<CallBody>,
}

/// The increment of a message by an event.
#[derive(Debug, Serialize, ToSchema)]
pub struct ChatDelta {
    /// `assistant`, with the first event of a choice.
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    /// The text that the event adds.
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<String>,
    /// The tool calls that the event begins or continues.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<CallBody>,
}

/// The log-probabilities of an answer.
#[derive(Debug, Serialize, ToSchema)]
pub struct ChatLogprobs {
    /// One entry for each token.
    content: Vec<ChatLogprob>,
}

/// The log-probability of a token, and of the most probable alternatives.
#[derive(Debug, Serialize, ToSchema)]
pub struct ChatLogprob {
    #[serde(flatten)]
    token: ChatToken,
    /// The most probable tokens, `top_logprobs` of them.
    top_logprobs: Vec<ChatToken>,
}

/// A token and its log-probability.
#[derive(Debug, Serialize, ToSchema)]
pub struct ChatToken {
    /// Its text; `bytes:\xe2\x82` for a part of a character.
    token: String,
    /// The natural logarithm of the token's probability, before temperature and truncation.
    logprob: f32,
    /// The bytes that it adds to the content; null for a special token, which adds none.
    bytes: Option<Vec<u8>>,
}

struct Words {
    call: Call,
    /// Parses tool calls, if the call offers tools.
    reading: Option<Reading>,
    /// The prompt's tokens and the number of most probable ones returned with each, if they were requested.
    prompt: Option<(Vec<u32>, usize)>,
}

impl Words {
    fn token(&self, id: u32, first: bool, logprob: f32) -> ChatToken {
        ChatToken {
            bytes: self.call.texts.bytes(id, first),
            token: self.call.texts.name(id, first),
            logprob,
        }
    }

    /// Returns the prompt's log-probabilities with the first piece of the first choice.
    fn prompt(&self, piece: &Piece<'_>) -> Option<ToldPrompt> {
        let first = piece.index == 0 && piece.part != Part::Later;
        let (tokens, top) = self.prompt.as_ref().filter(|_| first)?;
        let scores = piece.prompt_logprobs.unwrap_or_default();
        Some(told(tokens, scores, *top, &self.call.texts))
    }

    fn logprob(&self, token: &TokenText) -> Option<ChatLogprob> {
        let logprobs = token.logprobs.as_ref()?;
        let first = token.place.first;
        let top = logprobs.top.iter();
        let top = top.map(|&(id, p)| self.token(id, first, p));
        Some(ChatLogprob {
            token: self.token(token.id, first, logprobs.token),
            top_logprobs: top.collect(),
        })
    }

    /// Returns a choice, or an event of one. `called` is true if the answer has tool calls so far.
    fn worded(&self, piece: &Piece<'_>, told: Told, called: bool) -> ChatChoice {
        let (reason, stop_reason) = self.call.ends.reasons(piece.output.finish);
        let finish_reason = match &self.reading {
            Some(reading) => reading.reason(reason, called),
            None => reason,
        };
        let logprobs: Option<Vec<_>> = match (piece.part, piece.output.tokens.as_slice()) {
            (Part::Later, []) => None,
            (_, tokens) => tokens.iter().map(|token| self.logprob(token)).collect(),
        };
        ChatChoice {
            index: piece.index,
            said: match piece.part {
                Part::Whole => Said::Message(ChatMessage {
                    role: "assistant",
                    content: told.content,
                    tool_calls: told.calls,
                }),
                Part::First | Part::Later => Said::Delta(ChatDelta {
                    role: (piece.part == Part::First).then_some("assistant"),
                    content: told.content,
                    tool_calls: told.calls,
                }),
            },
            logprobs: logprobs.map(|content| ChatLogprobs { content }),
            finish_reason,
            stop_reason,
            prompt: self.prompt(piece),
        }
    }
}

impl Wording for Words {
    type Choice = ChatChoice;
    type Answer = ChatAnswer;

    const USAGE_LAST: bool = false;

    fn choice(&self, mut piece: Piece<'_>) -> ChatChoice {
        let text = std::mem::take(&mut piece.output.text);
        let (told, called) = match (&self.reading, piece.part) {
            (Some(reading), Part::Whole) => {
                let told = reading.whole(&text);
                let called = !told.calls.is_empty();
                (told, called)
            }
            _ => (Told::text(text), false),
        };
        self.worded(&piece, told, called)
    }

    fn events(&self, mut piece: Piece<'_>) -> Vec<ChatChoice> {
        let Some(reading) = &self.reading else {
            return vec![self.choice(piece)];
        };
        let text = std::mem::take(&mut piece.output.text);
        let (told, called) = reading.piece(piece.index, &text, piece.output.finish.is_some());
        let mut told: VecDeque<Told> = told.into();
        let first = piece.part == Part::First;
        let ended = piece.output.finish.is_some();
        if told.is_empty() && (first || ended || piece.shows_logprobs()) {
            told.push_back(Told::default());
        }
        let mut events = Vec::with_capacity(told.len());
        // The first event of a piece has its tokens, the last one its finish reason.
        let finish = piece.output.finish.take();
        while let Some(next) = told.pop_front() {
            piece.output.finish = finish.filter(|_| told.is_empty());
            events.push(self.worded(&piece, next, called));
            piece.output.tokens.clear();
            piece.part = Part::Later;
        }
        events
    }

    fn answer(&self, mut choices: Vec<ChatChoice>, about: About) -> ChatAnswer {
        ChatAnswer {
            id: self.call.id.clone(),
            object: match about.streamed {
                true => "chat.completion.chunk",
                false => "chat.completion",
            },
            created: self.call.created,
            model: self.call.model.clone(),
            prompt_logprobs: choices.first_mut().and_then(|choice| choice.prompt.take()),
            choices,
            system_fingerprint: about.weights,
            usage: about.usage.map(OpenAiUsage::from),
            tournament: about.tournaments.into_iter().next().map(Into::into),
            warnings: about.warnings,
            kept: about.records.into(),
        }
    }
}

/// The prompt, with or without tools.
enum Chat {
    Plain(Vec<Message>),
    Tools(ToolChat),
}

/// Answers with the next message of a conversation, and with `best_of` chooses the best of several.
///
/// The format is OpenAI's, and clients of OpenAI's and vLLM's servers work unchanged: fields without effect are accepted, and unsupported
/// ones are refused by name.
#[utoipa::path(
    post,
    path = "/v1/chat/completions",
    tag = "OpenAI",
    request_body(content = ChatRequest, examples(
        ("1. a message" = (value = json!({
            "model": "pocket", "messages": [{"role": "user", "content": "What is 45 plus 17?"}], "seed": 1
        }))),
        ("2. the best of four" = (value = json!({
            "messages": [{"role": "user", "content": "What is 45 plus 17?"}], "best_of": 4, "seed": 5
        }))),
        ("3. a tool" = (value = json!({
            "messages": [{"role": "user", "content": "Weather in Bonn?"}],
            "tools": [{"type": "function", "function": {
                "name": "weather", "parameters": {
                    "type": "object", "properties": {"city": {"enum": ["Bonn", "Paris"]}}, "required": ["city"]
                }
            }}],
            "tool_choice": "required", "seed": 1
        }))),
        ("4. streamed" = (value = json!({
            "messages": [{"role": "user", "content": [{"type": "text", "text": "Write planet backwards."}]}],
            "stream": true, "logprobs": true, "top_logprobs": 2, "stream_options": {"include_usage": true}
        })))
    )),
    params(("Idempotency-Key" = Option<String>, Header, description = IDEMPOTENCY)),
    responses(
        (
            status = 200,
            description = "The answer; with `stream`, server-sent events that hold one of the same shape each, and `[DONE]` after the last",
            content((ChatAnswer = "application/json"), (EventBody = "text/event-stream"))
        ),
        (status = "4XX", body = ErrorBody),
        (status = "5XX", body = ErrorBody)
    )
)]
pub async fn chat(
    State(state): State<AppState>,
    identity: Identity,
    body: Generating<ChatBody>,
) -> Result<Response, ApiError> {
    let arrival = Instant::now();
    let Generating {
        own,
        shared: sampling,
    } = body;
    let service = &state.service;
    state.check_model(own.model.as_deref())?;
    let ending = conversation::ending(own.add_generation_prompt, own.continue_final_message)?;
    let limited = own.max_completion_tokens.or(own.max_tokens).is_some();
    let (max_tokens, logprobs) = (own.max_tokens()?, own.top_logprobs()?);
    let calls = tools::calls(own.tools, own.tool_choice, own.parallel_tool_calls)?;
    let asked = match (tools::conversation(own.messages)?, &calls) {
        (Conversation::Plain(messages), None) => Chat::Plain(messages),
        (conversation, _) => Chat::Tools(conversation.with_tools(calls.as_ref())),
    };
    if matches!(asked, Chat::Tools(_)) && ending.is_some() {
        let param = match own.continue_final_message {
            Some(true) => "continue_final_message",
            _ => "add_generation_prompt",
        };
        return Err(ApiError::invalid(param, "cannot be combined with tools"));
    }
    let wanted = Wanted {
        prompts: 1,
        max_tokens,
        logprobs,
        prompt_logprobs: own.prompt_logprobs,
        calls: calls.as_ref(),
        tools: matches!(asked, Chat::Tools(_)),
        ..Wanted::default()
    };
    let sampling = sampling
        .check(arrival, identity.tenant, wanted, &state)
        .await?
        .limited(limited)
        .ending(ending)?;
    let variables = own.chat_template_kwargs.unwrap_or_default();
    let read = match asked {
        Chat::Tools(chat) => {
            let judging = sampling.judging(&state, 1)?;
            let tokens = service.read_tool_chat(chat, variables).await;
            tokens.map_err(ApiError::from).map(|tokens| PromptTask {
                text: sampling.task(tokens),
                // A conversation with tools is not recorded.
                asked: Prompt::Messages(Vec::new()),
                judging,
            })
        }
        Chat::Plain(messages) => {
            let chat = reading::Chat {
                messages,
                variables,
            };
            chat.read(&state, &sampling).await
        }
    };
    let prompt = read.map_err(|error| error.renamed("prompt", "messages"))?;
    if let Some(top) = own.prompt_logprobs {
        let tokens = prompt.text.prompt.len();
        state
            .limits
            .check_prompts(tokens, top.saturating_add(1), "prompt_logprobs")?;
    }
    let words = Words {
        call: state.call("chatcmpl", &sampling),
        prompt: own
            .prompt_logprobs
            .map(|top| (prompt.text.prompt.clone(), top)),
        reading: calls
            .as_ref()
            .map(|calls| Reading::new(service.tool_format(), calls, sampling.is_bound())),
    };
    let answer = answering::answer(&state, &identity, &sampling, vec![prompt], words);
    answer
        .await
        .map_err(|error| error.renamed("prompt", "messages"))
}
