//! Calls in answers: what of a message's text is content, and what are calls.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use serde::Serialize;
use utoipa::ToSchema;

use crate::http::calls::{Calls, Choice};
use crate::text::{CallReader, Read, ToolFormat};

/// A call of a message, or what an event adds to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct CallBody {
    /// Its number in the message; in a stream only.
    #[serde(skip_serializing_if = "Option::is_none")]
    index: Option<usize>,
    /// For the `tool_call_id` of its result; in a stream only with the first event of the call.
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    /// `function`; in a stream only with the first event of the call.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    kind: Option<&'static str>,
    /// The function and its arguments.
    function: CallFunctionBody,
}

/// The function of a call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct CallFunctionBody {
    /// The name of the function; in a stream only with the first event of the call.
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    /// A JSON object as the model wrote it, or what an event adds to it.
    arguments: String,
}

impl CallBody {
    fn begun(index: Option<usize>, name: String) -> Self {
        Self {
            index,
            id: Some(call_id()),
            kind: Some("function"),
            function: CallFunctionBody {
                name: Some(name),
                arguments: String::new(),
            },
        }
    }

    fn more(index: usize, arguments: String) -> Self {
        Self {
            index: Some(index),
            id: None,
            kind: None,
            function: CallFunctionBody {
                name: None,
                arguments,
            },
        }
    }
}

/// A whole message, or what an event adds to one.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// None where there is no text.
    pub content: Option<String>,
    pub calls: Vec<CallBody>,
}

impl Told {
    /// A message without calls.
    pub fn text(text: String) -> Self {
        Self {
            content: Some(text),
            calls: Vec::new(),
        }
    }
}

/// Reads calls out of the answers of one request with tools.
pub struct Reading {
    format: ToolFormat,
    names: Arc<[String]>,
    most: usize,
    bound: bool,
    /// Whether an answer is nothing but calls.
    only: bool,
    /// Whether calls are the reason for which an answer ends, as far as the caller is told.
    ends: bool,
    /// One for each choice of a stream that has begun.
    streams: Mutex<HashMap<usize, CallReader>>,
}

impl Reading {
    /// `bound`: whether a grammar binds the calls.
    pub fn new(format: ToolFormat, calls: &Calls, bound: bool) -> Self {
        Self {
            format,
            names: calls.tools.iter().map(|tool| tool.name.clone()).collect(),
            most: calls.most(),
            bound,
            only: calls.only(),
            ends: !matches!(calls.choice, Choice::Named(_)),
            streams: Mutex::default(),
        }
    }

    /// Reads a whole answer.
    pub fn whole(&self, text: &str) -> Told {
        let mut reader = self.reader();
        let mut read = reader.feed(text);
        read.extend(reader.finish());
        let mut told = Told::default();
        for read in read {
            match read {
                Read::Text(_) if self.only => {}
                Read::Text(text) => told.content.get_or_insert_default().push_str(&text),
                Read::Call { name, .. } => told.calls.push(CallBody::begun(None, name)),
                Read::Arguments { text, .. } => {
                    if let Some(call) = told.calls.last_mut() {
                        call.function.arguments.push_str(&text);
                    }
                }
            }
        }
        if told.calls.is_empty() && !self.only {
            told.content.get_or_insert_default();
        }
        told
    }

    /// Reads a piece of a streamed answer, `last` being its end. Returns what is to be told, an event each, and whether the answer has
    /// calls.
    pub fn piece(&self, choice: usize, text: &str, last: bool) -> (Vec<Told>, bool) {
        let mut streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        let reader = streams.entry(choice).or_insert_with(|| self.reader());
        let mut read = reader.feed(text);
        if last {
            read.extend(reader.finish());
        }
        let called = reader.calls() > 0;
        if last {
            streams.remove(&choice);
        }
        let told = read.into_iter().filter_map(|read| match read {
            Read::Text(_) if self.only => None,
            Read::Text(text) => Some(Told::text(text)),
            Read::Call { index, name } => Some(Told {
                content: None,
                calls: vec![CallBody::begun(Some(index), name)],
            }),
            Read::Arguments { index, text } => Some(Told {
                content: None,
                calls: vec![CallBody::more(index, text)],
            }),
        });
        (told.collect(), called)
    }

    /// Returns why an answer ended, where it has calls: `tool_calls` instead of `stop`, but for a named choice, as OpenAI's API has it.
    pub fn reason(&self, reason: Option<&'static str>, called: bool) -> Option<&'static str> {
        match reason {
            Some("stop") if called && self.ends => Some("tool_calls"),
            reason => reason,
        }
    }

    fn reader(&self) -> CallReader {
        CallReader::new(self.format, Arc::clone(&self.names), self.most).bound(self.bound)
    }
}

/// A name for a call. It is random, so that no two calls of a conversation have the same.
fn call_id() -> String {
    format!("call_{:024x}", rand::random::<u128>() >> 32)
}
