//! The prompts of `POST /v1/completions`: one or several, as text or tokens.

use std::fmt;

use serde::de::{self, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use utoipa::ToSchema;

use crate::http::error::ApiError;
use crate::http::one_or_many::{Given, one_or_many};
use crate::service::RawPrompt;

/// Maximum number of prompts per call.
const MAX_PROMPTS: usize = 1024;

/// One or several prompts, at most 1024, as text or tokens.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
pub enum PromptBody {
    Text(String),
    Texts(Vec<String>),
    Tokens(Vec<u32>),
    TokenLists(Vec<Vec<u32>>),
}

/// An element of a list of prompts, or of one prompt.
enum PromptElement {
    Text(String),
    Token(u32),
    Tokens(Vec<u32>),
}

impl<'de> Deserialize<'de> for PromptElement {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ReadElement)
    }
}

struct ReadElement;

impl<'de> Visitor<'de> for ReadElement {
    type Value = PromptElement;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string, a token id or a list of token ids")
    }

    fn visit_str<E>(self, text: &str) -> Result<PromptElement, E> {
        Ok(PromptElement::Text(text.to_owned()))
    }

    fn visit_u64<E: de::Error>(self, id: u64) -> Result<PromptElement, E> {
        let id = u32::try_from(id).map_err(|_| E::custom(format!("{id} is not a token id")))?;
        Ok(PromptElement::Token(id))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<PromptElement, A::Error> {
        let mut ids = Vec::new();
        while let Some(id) = seq.next_element()? {
            ids.push(id);
        }
        Ok(PromptElement::Tokens(ids))
    }
}

impl<'de> Deserialize<'de> for PromptBody {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let expected = "a string, a list of strings, a list of token ids, or a list of such lists";
        let elements = match one_or_many(deserializer, expected)? {
            Given::Text(text) => return Ok(Self::Text(text)),
            Given::List(elements) => elements,
        };
        let (mut texts, mut tokens, mut lists) = (Vec::new(), Vec::new(), Vec::new());
        for element in elements {
            match element {
                PromptElement::Text(text) => texts.push(text),
                PromptElement::Token(token) => tokens.push(token),
                PromptElement::Tokens(list) => lists.push(list),
            }
        }
        match (texts.is_empty(), tokens.is_empty(), lists.is_empty()) {
            (_, true, true) => Ok(Self::Texts(texts)),
            (true, false, true) => Ok(Self::Tokens(tokens)),
            (true, true, false) => Ok(Self::TokenLists(lists)),
            _ => Err(de::Error::custom(
                "a list must hold only strings, only token ids or only lists of token ids",
            )),
        }
    }
}

impl PromptBody {
    /// Returns the number of prompts.
    pub fn check(&self) -> Result<usize, ApiError> {
        let count = match self {
            Self::Text(_) | Self::Tokens(_) => 1,
            Self::Texts(texts) => texts.len(),
            Self::TokenLists(lists) => lists.len(),
        };
        match count {
            0 => Err(ApiError::invalid("prompt", "must not be empty")),
            1..=MAX_PROMPTS => Ok(count),
            _ => Err(ApiError::invalid(
                "prompt",
                format!("must be at most {MAX_PROMPTS} prompts, not {count}"),
            )),
        }
    }
}

impl From<PromptBody> for Vec<RawPrompt> {
    fn from(prompt: PromptBody) -> Self {
        match prompt {
            PromptBody::Text(text) => vec![RawPrompt::Text(text)],
            PromptBody::Texts(texts) => texts.into_iter().map(RawPrompt::Text).collect(),
            PromptBody::Tokens(tokens) => vec![RawPrompt::Tokens(tokens)],
            PromptBody::TokenLists(lists) => lists.into_iter().map(RawPrompt::Tokens).collect(),
        }
    }
}
