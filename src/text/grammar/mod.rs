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
    #[error("this model's tokens do not each represent fixed bytes, which grammars require")]
    UnsupportedTokenizer,
    #[error("has {bytes} bytes; the limit is {most}")]
    TooLong { bytes: usize, most: usize },
    #[error("is nested more than {0} levels deep")]
    TooDeep(usize),
    #[error(
        "{place} contains {number}, but grammars support whole numbers only up to 2^53: use a string or a pattern"
    )]
    InexactNumber { number: String, place: String },
    #[error("has {count} {what}; the limit is {most}")]
    TooMuch {
        what: &'static str,
        count: usize,
        most: usize,
    },
    #[error("must have at least one choice")]
    NoChoice,
    #[error("has {choices} choices; the limit is {most}")]
    TooManyChoices { choices: usize, most: usize },
    #[error("{0}")]
    Invalid(String),
    #[error("must match more than the empty text")]
    OnlyEmpty,
    #[error("no token of this model can continue the text within the grammar")]
    DeadEnd,
    #[error("the grammar does not allow token {0} here")]
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
