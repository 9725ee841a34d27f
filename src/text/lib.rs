//! Conversion between text and token ids: the tokenizer, chat templates, incremental detokenizing, stop strings, grammars.
//!
//! One rule applies everywhere: text from outside can never become a control token. All text to encode is either trusted (written by a
//! template) or untrusted, and [`Rendered`] records this for each byte.

mod added_tokens;
mod byte_level;
mod chat_setup;
mod chat_template;
mod chat_values;
mod decoder_steps;
mod detokenizer;
mod encode_within;
mod encoded_parts;
mod gguf;
mod grammar;
mod jinja;
mod jinja_fuel;
mod message;
mod placeholder;
mod post_processor;
mod python;
mod python_json;
mod rendered;
mod special_tokens;
mod split_patterns;
mod stop;
mod strftime;
mod template_source;
mod token_bytes;
mod token_texts;
mod tokenizer;
mod tokenizer_bounds;
mod tools;
mod trust;
mod turn_end;

#[cfg(test)]
mod chat_template_tests;
#[cfg(test)]
mod encoded_parts_tests;
#[cfg(test)]
mod golden_tests;
#[cfg(test)]
mod jinja_golden_tests;
#[cfg(test)]
mod own_turn_tests;
#[cfg(test)]
mod small_tokenizers;
#[cfg(test)]
mod tokenizer_tests;

pub use chat_setup::{ChatSetup, check_variables};
pub use chat_template::{ChatTemplate, RenderOptions, Variables};
pub use detokenizer::Detokenizer;
pub use encoded_parts::EncodedParts;
pub use gguf::GgufVocabulary;
pub use grammar::{
    CallGrammar, Grammar, GrammarEnv, GrammarError, GrammarMatcher, GrammarSpec, Otherwise,
    TokenMask,
};
pub use message::{Message, Role};
pub use rendered::{Encoded, OwnTrust, Rendered};
pub use special_tokens::SpecialTokens;
pub use stop::{MAX_STOP_BYTES, MAX_STOP_STRINGS, StopOutput, StopStrings};
pub use token_texts::{TokenPlace, TokenPlaces, TokenTexts};
pub use tokenizer::Tokenizer;
pub use tools::{CallReader, Marks, Read, Tool, ToolCall, ToolChat, ToolFormat, ToolTurn};
pub use turn_end::{end_ids, turn_end};

use std::path::PathBuf;

/// An error of reading tokenizers or templates, encoding, rendering or decoding.
#[derive(Debug, thiserror::Error)]
pub enum TextError {
    #[error("cannot read {}: {source}", path.display())]
    Read {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("{} is not valid JSON: {source}", path.display())]
    Json {
        path: PathBuf,
        source: serde_json::Error,
    },
    #[error("{origin} is not a usable tokenizer: {reason}")]
    BadTokenizer { origin: String, reason: String },
    #[error("cannot encode: {0}")]
    Encode(String),
    /// Detected from a prefix of the text: there may be many more.
    #[error("the text has at least {at_least} tokens, but the context has room for only {most}")]
    TooManyTokens { at_least: usize, most: usize },
    /// Detected before any of the text was read.
    #[error("the text has {bytes} bytes; the limit is {most}")]
    TooManyBytes { bytes: usize, most: usize },
    /// A one-character control token that is also the model's only way to spell that character.
    #[error(
        "untrusted text contains {0:?}, which this tokenizer can only write as a control token"
    )]
    UnspeakableCharacter(String),
    #[error("cannot decode: {0}")]
    Decode(String),
    #[error("untrusted range {start}..{end} lies outside the text of {len} bytes")]
    BadRange {
        start: usize,
        end: usize,
        len: usize,
    },
    #[error(
        "{} has no chat template (neither chat_template.jinja nor `chat_template` in tokenizer_config.json): use prompts of text or \
         tokens, or pass a template with `--chat-template FILE`",
        .0.display()
    )]
    NoChatTemplate(PathBuf),
    #[error(
        "{} has the chat templates {names:?}, but none with the name \"default\"",
        path.display()
    )]
    NoDefaultTemplate { path: PathBuf, names: Vec<String> },
    #[error("{}: {what}", path.display())]
    BadConfig { path: PathBuf, what: String },
    #[error("the chat template does not parse: {0}")]
    TemplateSyntax(String),
    #[error(
        "the chat template does not support tools, so the tool format {0} cannot be used; only \"json\" works without template support"
    )]
    NoToolsInTemplate(&'static str),
    #[error("the chat template rejected the conversation: {0}")]
    Render(String),
    #[error("the conversation has too many different characters (at most {0})")]
    TooManyCharacters(usize),
    /// Stop strings that are too many, too long or empty.
    #[error("{0}")]
    StopStrings(String),
}
