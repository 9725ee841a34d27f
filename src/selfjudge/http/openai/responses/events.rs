//! The typed events of a streamed response, and the progress of its stream.

use serde::Serialize;

use super::answer::{OutputLogprob, OutputMessage, OutputText, ResponseAnswer};
use super::format::Content;
use crate::http::sse::Frame;

/// The progress of a stream.
#[derive(Debug, Default)]
pub struct Progress {
    /// Number of sent events.
    sent: u64,
    /// Whether the message has begun.
    pub begun: bool,
    /// The content of all pieces so far.
    pub content: Content,
}

impl Progress {
    /// Returns the next event with its name.
    pub fn frame(&mut self, name: &'static str, event: Event<'_>) -> Frame {
        let numbered = Numbered {
            kind: name,
            sequence_number: self.sent,
            event,
        };
        self.sent += 1;
        Frame::of(&numbered).named(name)
    }

    /// Adds the content of a piece.
    pub fn take(&mut self, piece: Content) {
        self.content.text.push_str(&piece.text);
        self.content.logprobs.extend(piece.logprobs);
        self.content.finish = piece.finish.or(self.content.finish);
    }
}

/// An event with the fields that all events have.
#[derive(Debug, Serialize)]
struct Numbered<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    sequence_number: u64,
    #[serde(flatten)]
    event: Event<'a>,
}

/// The fields of events besides names and numbers. The message is the only item, and has one part.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub enum Event<'a> {
    Whole {
        response: &'a ResponseAnswer,
    },
    Item {
        output_index: usize,
        item: &'a OutputMessage,
    },
    Part {
        item_id: &'a str,
        output_index: usize,
        content_index: usize,
        part: &'a OutputText,
    },
    Delta {
        item_id: &'a str,
        output_index: usize,
        content_index: usize,
        delta: &'a str,
        logprobs: &'a [OutputLogprob],
    },
    Done {
        item_id: &'a str,
        output_index: usize,
        content_index: usize,
        text: &'a str,
        logprobs: &'a [OutputLogprob],
    },
    Failure {
        code: &'a str,
        message: &'a str,
        param: Option<&'a str>,
    },
}

impl<'a> Event<'a> {
    pub fn item(item: &'a OutputMessage) -> Self {
        Self::Item {
            output_index: 0,
            item,
        }
    }

    pub fn part(item_id: &'a str, part: &'a OutputText) -> Self {
        Self::Part {
            item_id,
            output_index: 0,
            content_index: 0,
            part,
        }
    }

    pub fn delta(item_id: &'a str, delta: &'a str, logprobs: &'a [OutputLogprob]) -> Self {
        Self::Delta {
            item_id,
            output_index: 0,
            content_index: 0,
            delta,
            logprobs,
        }
    }

    pub fn done(item_id: &'a str, text: &'a str, logprobs: &'a [OutputLogprob]) -> Self {
        Self::Done {
            item_id,
            output_index: 0,
            content_index: 0,
            text,
            logprobs,
        }
    }
}
