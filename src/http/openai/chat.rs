//! `POST /v1/chat/completions`: the next message of a conversation.

use std::collections::VecDeque;
use std::time::Instant;

use axum::extract::State;
use axum::response::Response;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::tools::{
    self, CallBody, ChatMessageBody, Conversation, Reading, Told, ToolBody, ToolChoiceBody,
};
use super::usage::OpenAiUsage;
use super::wording::Call;
use crate::engine::MAX_LOGPROBS;
use crate::http::AppState;
use crate::http::answering::{self, About, Asked, Part, Piece, Prompt, StopReason, Wording};
use crate::http::conversation;
use crate::http::error::{ApiError, ErrorBody};
use crate::http::extract::Generating;
use crate::http::idempotency::IDEMPOTENCY;
use crate::http::judge::TournamentBody;
use crate::http::recording::KeptBody;
use crate::http::sampling::Wanted;
use crate::http::sse::EventBody;
use crate::http::traffic::Identity;
use crate::model::WeightsName;
use crate::preference::Message;
use crate::service::{Ending, TokenText};
use crate::text::{ToolChat, Variables};

/// The body. Anything else in it is refused.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChatBody {
    model: Option<String>,
    messages: Vec<ChatMessageBody>,
    /// What the model may call: 128 functions at most, of 128 KiB together.
    #[schema(max_items = 128)]
    tools: Option<Vec<ToolBody>>,
    /// Whether it calls them: `auto` unless said otherwise. `required` and a named function are bound by a grammar, on every model.
    tool_choice: Option<ToolChoiceBody>,
    /// Whether an answer may hold several calls: true unless said otherwise.
    parallel_tool_calls: Option<bool>,
    /// Tokens of an answer at most; by default all that the context has room for.
    #[schema(minimum = 1)]
    max_completion_tokens: Option<usize>,
    /// The old name of `max_completion_tokens`.
    #[schema(minimum = 1)]
    max_tokens: Option<usize>,
    /// With every token its log-probability.
    logprobs: Option<bool>,
    /// And those of this many most probable ones.
    #[schema(maximum = 20)]
    top_logprobs: Option<usize>,
    /// Whether the answer begins a message of the assistant: true unless said otherwise. With `false` it goes on behind the last turn.
    add_generation_prompt: Option<bool>,
    /// Whether the answer goes on in the last message, which is not closed then. Such calls are in no record.
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
                "is the old name of `max_completion_tokens`, and says something else",
            )),
            // The engine knows how much room there is.
            (new, old) => Ok(new.or(old).unwrap_or(usize::MAX)),
        }
    }

    /// How many most probable tokens are told with every token, if any are.
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
    id: String,
    object: &'static str,
    created: u64,
    model: String,
    choices: Vec<ChatChoice>,
    /// Which weights answered: `base`, or the digest of a generation.
    #[schema(value_type = Option<String>)]
    system_fingerprint: Option<WeightsName>,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<OpenAiUsage>,
    /// With `best_of`: how the best were found. Candidates are numbered as they were drawn.
    #[serde(skip_serializing_if = "Option::is_none")]
    tournament: Option<TournamentBody>,
    /// What was asked for and is done in part.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<String>,
    #[serde(flatten)]
    kept: KeptBody,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct ChatChoice {
    index: usize,
    #[serde(flatten)]
    said: Said,
    logprobs: Option<ChatLogprobs>,
    finish_reason: Option<&'static str>,
    stop_reason: Option<StopReason>,
}

/// A whole message, or what an event adds to it.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Said {
    Message(ChatMessage),
    Delta(ChatDelta),
}

#[derive(Debug, Serialize, ToSchema)]
pub struct ChatMessage {
    role: &'static str,
    /// Null where the message is nothing but calls.
    #[schema(required)]
    content: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<CallBody>,
}

/// What an event adds to a message.
#[derive(Debug, Serialize, ToSchema)]
pub struct ChatDelta {
    /// `assistant`, with the first event of a choice.
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<CallBody>,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct ChatLogprobs {
    content: Vec<ChatLogprob>,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct ChatLogprob {
    #[serde(flatten)]
    token: ChatToken,
    top_logprobs: Vec<ChatToken>,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct ChatToken {
    /// Its text; `bytes:\xe2\x82` for a part of a character.
    token: String,
    logprob: f32,
    /// The bytes that it adds to the content; null for a special token, which adds none.
    bytes: Option<Vec<u8>>,
}

struct Words {
    call: Call,
    /// Where the call offers tools.
    reading: Option<Reading>,
}

impl Words {
    fn token(&self, id: u32, first: bool, logprob: f32) -> ChatToken {
        ChatToken {
            bytes: self.call.texts.bytes(id, first),
            token: self.call.texts.name(id, first),
            logprob,
        }
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

    /// A choice, or an event of one. `called` says whether the answer has calls so far.
    fn worded(&self, piece: &Piece<'_>, told: Told, called: bool) -> ChatChoice {
        let (reason, stop_reason) = self.call.ends.reasons(piece.finish);
        let finish_reason = match &self.reading {
            Some(reading) => reading.reason(reason, called),
            None => reason,
        };
        let logprobs: Option<Vec<_>> = match (piece.part, piece.tokens) {
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
        }
    }
}

impl Wording for Words {
    type Choice = ChatChoice;
    type Answer = ChatAnswer;

    const USAGE_LAST: bool = false;

    fn choice(&self, mut piece: Piece<'_>) -> ChatChoice {
        let text = std::mem::take(&mut piece.text);
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
        let text = std::mem::take(&mut piece.text);
        let (told, called) = reading.piece(piece.index, &text, piece.finish.is_some());
        let mut told: VecDeque<Told> = told.into();
        let first = piece.part == Part::First;
        if told.is_empty() && (first || piece.finish.is_some() || piece.shows_logprobs()) {
            told.push_back(Told::default());
        }
        let mut events = Vec::with_capacity(told.len());
        // Tokens come with the first event of a piece, its end with the last.
        while let Some(next) = told.pop_front() {
            let (tokens, finish) = (piece.tokens, piece.finish);
            if !events.is_empty() {
                (piece.tokens, piece.part) = (&[], Part::Later);
            }
            if !told.is_empty() {
                piece.finish = None;
            }
            events.push(self.worded(&piece, next, called));
            (piece.tokens, piece.finish) = (tokens, finish);
        }
        events
    }

    fn answer(&self, choices: Vec<ChatChoice>, about: About) -> ChatAnswer {
        ChatAnswer {
            id: self.call.id.clone(),
            object: match about.streamed {
                true => "chat.completion.chunk",
                false => "chat.completion",
            },
            created: self.call.created,
            model: self.call.model.clone(),
            choices,
            system_fingerprint: about.weights,
            usage: about.usage.map(OpenAiUsage::from),
            tournament: about.tournaments.into_iter().next().map(Into::into),
            warnings: about.warnings,
            kept: about.kept.into(),
        }
    }
}

/// What is asked: as before, or with tools.
enum Chat {
    Plain(Vec<Message>),
    Tools(ToolChat),
}

/// The next message of a conversation, or with `best_of` the best of several.
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
    let judging = sampling.judging(&state, 1)?;
    let (tokens, messages) = match asked {
        Chat::Tools(chat) => (service.read_tool_chat(chat, variables).await, Vec::new()),
        Chat::Plain(messages) => match sampling.ending {
            None => (service.read_chat(&messages, variables).await, messages),
            Some(ending) => {
                let read = service.read_ended_chat(&messages, ending, variables);
                (read.await, messages)
            }
        },
    };
    let prompt = Prompt {
        judging: judging.map(|judging| judging.of(messages.clone())),
        tokens: tokens.map_err(|error| ApiError::from(error).renamed("prompt", "messages"))?,
        continues: sampling.ending == Some(Ending::Continued),
        // A conversation with tools is in no record.
        asked: Asked::Messages(messages),
    };
    let words = Words {
        call: state.call("chatcmpl", &sampling),
        reading: calls
            .as_ref()
            .map(|calls| Reading::new(service.tool_format(), calls, sampling.is_bound())),
    };
    let answer = answering::answer(&state, &identity, &sampling, vec![prompt], words);
    answer
        .await
        .map_err(|error| error.renamed("prompt", "messages"))
}
