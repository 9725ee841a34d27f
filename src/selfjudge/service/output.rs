//! The answers of a generation: whole samples, and their increments by one token.

use engine::TokenLogprobs;
use text::TokenPlace;

/// The reason why a sample ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    /// The model generated this end token.
    EndToken(u32),
    /// The text contains the stop string with this index.
    StopString(usize),
    /// The grammar permits no further token; the last token is part of the text.
    Complete,
    Length,
}

/// A token and the requested data about it.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenText {
    pub id: u32,
    pub logprobs: Option<TokenLogprobs>,
    /// The token's position in the text of the answer; set if log-probabilities were requested.
    pub place: TokenPlace,
}

/// One complete sample, or its increment by one token. The concatenated increments of a sample are the complete one.
#[derive(Debug, Clone, PartialEq)]
pub struct Output {
    /// The index of the sample.
    pub index: usize,
    /// The text, in an increment the new text that the token completed.
    pub text: String,
    /// The tokens; none if the task is silent.
    pub tokens: Vec<TokenText>,
    /// The reason why the sample ended; none in an increment before the last one.
    pub finish: Option<Finish>,
}

impl Output {
    /// Returns an output without tokens.
    pub fn empty(index: usize) -> Self {
        Self {
            index,
            text: String::new(),
            tokens: Vec::new(),
            finish: None,
        }
    }

    /// Adds an increment.
    pub(super) fn add(&mut self, more: Self) {
        self.text.push_str(&more.text);
        self.tokens.extend(more.tokens);
        self.finish = more.finish.or(self.finish);
    }
}
