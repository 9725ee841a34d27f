//! The answers of `POST /v1/completions`.

use std::collections::BTreeMap;

use serde::Serialize;
use utoipa::ToSchema;

use crate::http::answering::StopReason;
use crate::http::kept::KeptBody;
use crate::http::openai::prompt_logprobs::{PromptEntries, PromptLogprob};
use crate::http::openai::usage::OpenAiUsage;
use crate::judging::Tournament;
use engine::TokenLogprobs;
use model::WeightsName;
use text::{TokenPlace, TokenTexts};

/// The answer, or an event of a streamed one.
#[derive(Debug, Serialize, ToSchema)]
pub struct CompletionAnswer {
    /// The id of the call.
    pub id: String,
    /// Always `text_completion`.
    pub object: &'static str,
    /// Time of the call in seconds since 1970.
    pub created: u64,
    /// The name of the model.
    pub model: String,
    /// The continuations: `n` of each prompt, or in a stream one token's increment of one.
    pub choices: Vec<CompletionChoice>,
    /// The weights that answered: `base`, or the digest of a generation.
    #[schema(value_type = Option<String>)]
    pub system_fingerprint: Option<WeightsName>,
    /// The tokens of the call, including judging; in a stream in the last event, with `include_usage`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<OpenAiUsage>,
    /// The tournament of each prompt, with `best_of`. Candidates are numbered in the order of sampling.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tournaments: Vec<Tournament>,
    /// Requests that are fulfilled only in part.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    #[serde(flatten)]
    pub kept: KeptBody,
}

/// One continuation, or its increment by a token.
#[derive(Debug, Serialize, ToSchema)]
pub struct CompletionChoice {
    /// The continuation's number, from 0: the `n` of the first prompt come first.
    pub index: usize,
    /// The text, with `echo` after its prompt.
    pub text: String,
    /// The log-probabilities of the tokens, with `logprobs`; otherwise null.
    pub logprobs: Option<CompletionLogprobs>,
    /// `stop` or `length`; in a stream null before the end.
    pub finish_reason: Option<&'static str>,
    /// The stop string or token that ended the text; null if the model itself ended it.
    pub stop_reason: Option<StopReason>,
    /// In a stream in the first event: one entry per token of the prompt, by token id; null for the first.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<Option<BTreeMap<String, PromptLogprob>>>>)]
    pub prompt_logprobs: Option<PromptEntries>,
}

/// Log-probabilities in OpenAI's legacy format: parallel lists. Tokens are named by their texts; a part of a character by
/// `bytes:\xe2\x82`, and a token with the same text as a more probable one by `token_id:7`.
#[derive(Debug, Default, Serialize, ToSchema)]
pub struct CompletionLogprobs {
    /// The names of the tokens.
    pub tokens: Vec<String>,
    /// The natural logarithms of the tokens' probabilities; null for the first token of a prompt.
    pub token_logprobs: Vec<Option<f32>>,
    /// The most probable tokens at each position, and the token itself; null if none were requested.
    pub top_logprobs: Option<Vec<Option<BTreeMap<String, f32>>>>,
    /// Characters of the choice's text before each token.
    pub text_offset: Vec<usize>,
}

impl CompletionLogprobs {
    pub fn new(top: Option<usize>) -> Self {
        Self {
            top_logprobs: top.filter(|&top| top > 0).map(|_| Vec::new()),
            ..Self::default()
        }
    }

    /// Adds a token, with the first `top` of `logprobs`.
    pub fn push(
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
