//! The formatting of a response, as a whole or as a stream.

use std::sync::{Mutex, PoisonError};

use super::answer::{
    Echo, IncompleteDetails, OutputLogprob, OutputMessage, OutputText, OutputToken, ResponseAnswer,
    ResponseError, ResponseStatus,
};
use super::events::{Event, Progress};
use super::input::ItemStatus;
use crate::http::answering::{About, AnswerFormat, Piece};
use crate::http::error::ApiError;
use crate::http::kept::KeptBody;
use crate::http::openai::call::{Call, created};
use crate::http::openai::usage::ItemUsage;
use crate::http::sse::Frame;
use crate::service::{Finish, TokenText};

/// The content of a piece, or of the whole answer.
#[derive(Debug, Default)]
pub struct Content {
    pub text: String,
    pub logprobs: Vec<OutputLogprob>,
    pub finish: Option<Finish>,
}

impl Content {
    /// Returns the status of a message that ends with this content.
    pub fn status(&self) -> ItemStatus {
        match self.finish {
            Some(Finish::Length) => ItemStatus::Incomplete,
            _ => ItemStatus::Completed,
        }
    }

    /// Returns the part of the message that contains the text.
    pub fn into_part(self) -> OutputText {
        OutputText {
            kind: "output_text",
            text: self.text,
            annotations: [],
            logprobs: self.logprobs,
        }
    }
}

/// Formats the answers of a call.
pub struct Format {
    call: Call,
    message: String,
    echo: Echo,
    warnings: Vec<String>,
    progress: Mutex<Progress>,
}

impl Format {
    pub fn new(call: Call, echo: Echo, warnings: Vec<String>) -> Self {
        // OpenAI's ids have an underscore.
        let id = call.id.replacen('-', "_", 1);
        Self {
            message: format!("msg_{:032x}", rand::random::<u128>()),
            call: Call { id, ..call },
            echo,
            warnings,
            progress: Mutex::default(),
        }
    }

    fn token(&self, id: u32, first: bool, logprob: f32) -> OutputToken {
        OutputToken {
            token: self.call.texts.name(id, first),
            logprob,
            bytes: self.call.texts.bytes(id, first).unwrap_or_default(),
        }
    }

    fn logprob(&self, token: &TokenText) -> Option<OutputLogprob> {
        let logprobs = token.logprobs.as_ref()?;
        let first = token.place.first;
        let top = logprobs.top.iter();
        let top = top.map(|&(id, p)| self.token(id, first, p));
        Some(OutputLogprob {
            token: self.token(token.id, first, logprobs.token),
            top_logprobs: top.take(self.echo.top_logprobs).collect(),
        })
    }

    /// Returns the message with these parts.
    fn item(&self, status: ItemStatus, content: Vec<OutputText>) -> OutputMessage {
        OutputMessage {
            id: self.message.clone(),
            kind: "message",
            status,
            role: "assistant",
            content,
        }
    }

    /// Returns the response before any of its content is available.
    fn unfinished(&self, status: ResponseStatus, error: Option<ResponseError>) -> ResponseAnswer {
        ResponseAnswer {
            id: self.call.id.clone(),
            object: "response",
            created_at: self.call.created,
            completed_at: None,
            status,
            error,
            incomplete_details: None,
            output: Vec::new(),
            usage: None,
            model: self.call.model.clone(),
            system_fingerprint: None,
            tournament: None,
            warnings: self.warnings.clone(),
            kept: KeptBody::default(),
            echo: self.echo.clone(),
        }
    }

    /// Returns the response with the whole answer.
    fn whole(&self, content: Content, about: About) -> ResponseAnswer {
        let item_status = content.status();
        let incomplete = item_status == ItemStatus::Incomplete;
        let status = match incomplete {
            true => ResponseStatus::Incomplete,
            false => ResponseStatus::Completed,
        };
        ResponseAnswer {
            completed_at: Some(created()),
            incomplete_details: incomplete.then_some(IncompleteDetails {
                reason: "max_output_tokens",
            }),
            output: vec![self.item(item_status, vec![content.into_part()])],
            usage: about.usage.map(ItemUsage::from),
            system_fingerprint: about.weights,
            tournament: about.tournaments.into_iter().next(),
            kept: about.records.into(),
            ..self.unfinished(status, None)
        }
    }

    /// Runs `work` with the stream's progress, which is consistent after every change.
    fn progressed<T>(&self, work: impl FnOnce(&mut Progress) -> T) -> T {
        let mut progress = self.progress.lock().unwrap_or_else(PoisonError::into_inner);
        work(&mut progress)
    }
}

impl AnswerFormat for Format {
    type Choice = Content;
    type Answer = ResponseAnswer;

    const USAGE_LAST: bool = true;

    fn choice(&self, piece: Piece<'_>) -> Content {
        let output = piece.output;
        let logprobs = output.tokens.iter().filter_map(|token| self.logprob(token));
        Content {
            text: output.text,
            logprobs: logprobs.collect(),
            finish: output.finish,
        }
    }

    fn answer(&self, choices: Vec<Content>, about: About) -> ResponseAnswer {
        let content = choices.into_iter().next().unwrap_or_default();
        self.whole(content, about)
    }

    fn opening(&self) -> Vec<Frame> {
        self.progressed(|progress| {
            let response = self.unfinished(ResponseStatus::InProgress, None);
            ["response.created", "response.in_progress"]
                .map(|name| {
                    progress.frame(
                        name,
                        Event::Whole {
                            response: &response,
                        },
                    )
                })
                .into()
        })
    }

    fn frames(&self, choices: Vec<Content>, about: About) -> Vec<Frame> {
        self.progressed(|progress| {
            let mut frames = Vec::new();
            if !std::mem::replace(&mut progress.begun, true) {
                let item = self.item(ItemStatus::InProgress, Vec::new());
                frames.push(progress.frame("response.output_item.added", Event::item(&item)));
                let part = Content::default().into_part();
                let event = Event::part(&self.message, &part);
                frames.push(progress.frame("response.content_part.added", event));
            }
            if choices.is_empty() {
                let content = std::mem::take(&mut progress.content);
                self.finish(progress, content, about, &mut frames);
            }
            for piece in choices {
                if !piece.text.is_empty() || !piece.logprobs.is_empty() {
                    let event = Event::delta(&self.message, &piece.text, &piece.logprobs);
                    frames.push(progress.frame("response.output_text.delta", event));
                }
                progress.take(piece);
            }
            frames
        })
    }

    fn closing(&self, ended: Result<(), ApiError>) -> Vec<Frame> {
        let Err(error) = ended else {
            // The last event has been sent.
            return Vec::new();
        };
        let error = error.into_body().error;
        self.progressed(|progress| {
            let failed = ResponseError::from(&error);
            let response = self.unfinished(ResponseStatus::Failed, Some(failed));
            let event = Event::Failure {
                code: error.code,
                message: &error.message,
                param: error.param.as_deref(),
            };
            vec![
                progress.frame("error", event),
                progress.frame(
                    "response.failed",
                    Event::Whole {
                        response: &response,
                    },
                ),
            ]
        })
    }
}

impl Format {
    /// Adds the final events of an answer.
    fn finish(
        &self,
        progress: &mut Progress,
        content: Content,
        about: About,
        frames: &mut Vec<Frame>,
    ) {
        let event = Event::done(&self.message, &content.text, &content.logprobs);
        frames.push(progress.frame("response.output_text.done", event));
        let response = self.whole(content, about);
        for item in &response.output {
            for part in &item.content {
                let event = Event::part(&self.message, part);
                frames.push(progress.frame("response.content_part.done", event));
            }
            frames.push(progress.frame("response.output_item.done", Event::item(item)));
        }
        let name = match response.status {
            ResponseStatus::Incomplete => "response.incomplete",
            _ => "response.completed",
        };
        frames.push(progress.frame(
            name,
            Event::Whole {
                response: &response,
            },
        ));
    }
}
