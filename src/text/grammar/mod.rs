//! Grammars: restrict the next tokens so that a text matches a JSON schema, a regular expression, a grammar or a choice.
//!
//! A [`GrammarEnv`] holds the bytes of a model's tokens; it compiles a [`GrammarSpec`] to a [`Grammar`], and every growing text has a
//! [`GrammarMatcher`] of its own. The parsing is llguidance's. Grammars are defined over bytes: the model may split a text into tokens in
//! any way.

mod bounds;
mod brief;
#[cfg(test)]
mod call_tests;
mod calls;
mod env;
mod matcher;
mod schema;
mod spec;
#[cfg(test)]
mod tests;
mod words;

use std::fmt::Display;

use llguidance::api::StopReason;

pub use calls::{CallGrammar, Otherwise};
pub use env::{Grammar, GrammarEnv};
pub use matcher::{GrammarMatcher, TokenMask};
pub use spec::GrammarSpec;

/// An error of compiling or following a grammar.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GrammarError {
    #[error("this model's tokens do not stand for bytes of their own, which grammars need")]
    UnsupportedTokenizer,
    #[error("has {bytes} bytes; at most {most} are compiled")]
    TooLong { bytes: usize, most: usize },
    #[error("is nested more than {0} levels deep")]
    TooDeep(usize),
    #[error(
        "{place} holds {number}, and grammars keep whole numbers up to 2^53 only: write it as a string, or as a pattern"
    )]
    InexactNumber { number: String, place: String },
    #[error("has {count} {what}; at most {most} are compiled")]
    TooMuch {
        what: &'static str,
        count: usize,
        most: usize,
    },
    #[error("names no choice")]
    NoChoice,
    #[error("names {choices} choices; at most {most} are compiled")]
    TooManyChoices { choices: usize, most: usize },
    #[error("{0}")]
    Invalid(String),
    #[error("permits nothing but the empty text")]
    OnlyEmpty,
    #[error("no token of this model continues the text as the grammar asks")]
    DeadEnd,
    #[error("token {0} does not continue the text as the grammar asks")]
    NotAllowed(u32),
    #[error("following the grammar failed: {0}")]
    Failed(String),
}

impl GrammarError {
    /// Converts an error that llguidance found in a grammar.
    fn invalid(error: impl Display) -> Self {
        Self::Invalid(reason(error))
    }

    /// Converts the reason why llguidance could not continue.
    fn failed(error: impl Display) -> Self {
        let reason = reason(error);
        match reason == StopReason::NoExtensionBias.to_string() {
            true => Self::DeadEnd,
            false => Self::Failed(reason),
        }
    }
}

/// Returns llguidance's message without its details for llguidance's own developers.
fn reason(error: impl Display) -> String {
    let text = error.to_string();
    let end = ["\n<state>", "\n<non-verbose/>", "\n<backtrace>"]
        .iter()
        .filter_map(|mark| text.find(mark))
        .min();
    text[..end.unwrap_or(text.len())].trim().to_owned()
}
