//! The format of a chat's answers, whole and streamed.

use std::collections::VecDeque;

use super::answer::{
    ChatAnswer, ChatChoice, ChatDelta, ChatLogprob, ChatLogprobs, ChatMessage, ChatToken,
    MessageOrDelta,
};
use crate::http::answering::{About, AnswerFormat, Part, Piece};
use crate::http::openai::call::Call;
use crate::http::openai::prompt_logprobs::{PromptEntries, prompt_entries};
use crate::http::openai::tools::{ParsedMessage, Reading};
use crate::http::openai::usage::OpenAiUsage;
use crate::service::TokenText;

/// The format of a chat's answers.
pub struct Format {
    pub call: Call,
    /// Parses tool calls, if the call offers tools.
    pub reading: Option<Reading>,
    /// The prompt's tokens and the number of most probable ones returned with each, if they were requested.
    pub prompt: Option<(Vec<u32>, usize)>,
}

impl Format {
    fn token(&self, id: u32, first: bool, logprob: f32) -> ChatToken {
        ChatToken {
            bytes: self.call.texts.bytes(id, first),
            token: self.call.texts.name(id, first),
            logprob,
        }
    }

    /// Returns the prompt's log-probabilities with the first piece of the first choice.
    fn prompt(&self, piece: &Piece<'_>) -> Option<PromptEntries> {
        let first = piece.index == 0 && piece.part != Part::Later;
        let (tokens, top) = self.prompt.as_ref().filter(|_| first)?;
        let scores = piece.prompt_logprobs.unwrap_or_default();
        Some(prompt_entries(tokens, scores, *top, &self.call.texts))
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
    fn formatted(&self, piece: &Piece<'_>, parsed: ParsedMessage, called: bool) -> ChatChoice {
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
            message: match piece.part {
                Part::Whole => MessageOrDelta::Message(ChatMessage {
                    role: "assistant",
                    content: parsed.content,
                    tool_calls: parsed.calls,
                }),
                Part::First | Part::Later => MessageOrDelta::Delta(ChatDelta {
                    role: (piece.part == Part::First).then_some("assistant"),
                    content: parsed.content,
                    tool_calls: parsed.calls,
                }),
            },
            logprobs: logprobs.map(|content| ChatLogprobs { content }),
            finish_reason,
            stop_reason,
            prompt: self.prompt(piece),
        }
    }
}

impl AnswerFormat for Format {
    type Choice = ChatChoice;
    type Answer = ChatAnswer;

    const USAGE_LAST: bool = false;

    fn choice(&self, mut piece: Piece<'_>) -> ChatChoice {
        let text = std::mem::take(&mut piece.output.text);
        let (parsed, called) = match (&self.reading, piece.part) {
            (Some(reading), Part::Whole) => {
                let parsed = reading.whole(&text);
                let called = !parsed.calls.is_empty();
                (parsed, called)
            }
            _ => (ParsedMessage::text(text), false),
        };
        self.formatted(&piece, parsed, called)
    }

    fn events(&self, mut piece: Piece<'_>) -> Vec<ChatChoice> {
        let Some(reading) = &self.reading else {
            return vec![self.choice(piece)];
        };
        let text = std::mem::take(&mut piece.output.text);
        let (increments, called) = reading.piece(piece.index, &text, piece.output.finish.is_some());
        let mut increments: VecDeque<ParsedMessage> = increments.into();
        let first = piece.part == Part::First;
        let ended = piece.output.finish.is_some();
        if increments.is_empty() && (first || ended || piece.shows_logprobs()) {
            increments.push_back(ParsedMessage::default());
        }
        let mut events = Vec::with_capacity(increments.len());
        // The first event of a piece has its tokens, the last one its finish reason.
        let finish = piece.output.finish.take();
        while let Some(next) = increments.pop_front() {
            piece.output.finish = finish.filter(|_| increments.is_empty());
            events.push(self.formatted(&piece, next, called));
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
            tournament: about.tournaments.into_iter().next(),
            warnings: about.warnings,
            kept: about.records.into(),
        }
    }
}
