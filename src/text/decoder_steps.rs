//! The decoders of `tokenizer.json` as streaming steps, each of which keeps only the part that may still change.

use tokenizers::{Decoder, DecoderWrapper};

use super::TextError;
use super::byte_level::byte_of;

/// A step from one token to tokens.
pub enum Step {
    /// Each token is decoded alone, but the first may be treated differently.
    Each {
        decoder: DecoderWrapper,
        begun: bool,
    },
    /// The last token is treated differently (`</w>`): one token is held back.
    Last {
        decoder: DecoderWrapper,
        held: Option<String>,
    },
    ByteFallback {
        run: Vec<u8>,
    },
}

/// The way in which tokens are joined to one text.
pub enum Joint {
    Plain,
    /// Without a decoder: tokens with spaces between them.
    Spaced {
        begun: bool,
    },
    /// Byte-level: tokens are bytes; holds the bytes of an incomplete character.
    Bytes(Vec<u8>),
}

/// A step that removes up to `left` characters `content` from the start of the text.
pub struct Strip {
    pub content: char,
    pub left: usize,
}

/// Decodes one token with a decoder that maps tokens one to one, as the first or as a later token.
pub fn decode_one(
    decoder: &DecoderWrapper,
    token: String,
    first: bool,
) -> Result<String, TextError> {
    let chain = if first {
        vec![token]
    } else {
        vec![String::new(), token]
    };
    let mut chain = decoder
        .decode_chain(chain)
        .map_err(|e| TextError::Decode(e.to_string()))?;
    Ok(chain.pop().unwrap_or_default())
}

impl Step {
    pub fn push(&mut self, token: String) -> Result<Vec<String>, TextError> {
        match self {
            Step::Each { decoder, begun } => {
                let first = !std::mem::replace(begun, true);
                Ok(vec![decode_one(decoder, token, first)?])
            }
            Step::Last { decoder, held } => {
                let Some(token) = held.replace(token) else {
                    return Ok(vec![]);
                };
                let mut chain = decoder
                    .decode_chain(vec![token, String::new()])
                    .map_err(|e| TextError::Decode(e.to_string()))?;
                chain.truncate(1);
                Ok(chain)
            }
            Step::ByteFallback { run } => {
                if let Some(byte) = fallback_byte(&token) {
                    run.push(byte);
                    return Ok(vec![]);
                }
                let mut tokens = end_run(run);
                tokens.push(token);
                Ok(tokens)
            }
        }
    }

    pub fn finish(&mut self) -> Result<Vec<String>, TextError> {
        match self {
            Step::Each { .. } => Ok(vec![]),
            Step::Last { decoder, held } => match held.take() {
                Some(token) => Ok(vec![decode_one(decoder, token, true)?]),
                None => Ok(vec![]),
            },
            Step::ByteFallback { run } => Ok(end_run(run)),
        }
    }
}

/// Returns the byte of a token like `<0xE2>`.
pub fn fallback_byte(token: &str) -> Option<u8> {
    let hex = token.strip_prefix("<0x")?.strip_suffix('>')?;
    (hex.len() == 2).then(|| u8::from_str_radix(hex, 16).ok())?
}

/// Ends a run of byte tokens: returns its text, or one U+FFFD for each byte if the run is invalid.
fn end_run(run: &mut Vec<u8>) -> Vec<String> {
    let bytes = std::mem::take(run);
    match String::from_utf8(bytes) {
        Ok(text) if text.is_empty() => vec![],
        Ok(text) => vec![text],
        Err(bad) => vec!["\u{FFFD}".to_owned(); bad.as_bytes().len()],
    }
}

impl Joint {
    pub fn push(&mut self, token: &str, text: &mut String) {
        match self {
            Joint::Plain => text.push_str(token),
            Joint::Spaced { begun } => {
                if std::mem::replace(begun, true) {
                    text.push(' ');
                }
                text.push_str(token);
            }
            Joint::Bytes(pending) => {
                pending.extend(bytes_of(token));
                let done = push_lossy(pending, text);
                pending.drain(..done);
            }
        }
    }

    /// Returns the bytes that one token adds, as the first or as a later one.
    pub fn bytes(&self, token: &str, first: bool) -> Vec<u8> {
        match self {
            Joint::Spaced { .. } if !first => format!(" {token}").into_bytes(),
            Joint::Plain | Joint::Spaced { .. } => token.as_bytes().to_vec(),
            Joint::Bytes(_) => bytes_of(token),
        }
    }

    pub fn finish(self, text: &mut String) {
        if let Joint::Bytes(pending) = self {
            text.push_str(&String::from_utf8_lossy(&pending));
        }
    }
}

/// Returns the bytes of a token of a byte-level vocabulary; an added token with characters outside the byte alphabet stands for itself.
fn bytes_of(token: &str) -> Vec<u8> {
    let bytes: Option<Vec<u8>> = token.chars().map(byte_of).collect();
    bytes.unwrap_or_else(|| token.as_bytes().to_vec())
}

/// Appends the complete characters of `bytes`, with invalid sequences as U+FFFD like [`String::from_utf8_lossy`]; returns the number of
/// bytes consumed. The rest, at most three bytes, is the beginning of a character.
fn push_lossy(bytes: &[u8], text: &mut String) -> usize {
    let mut done = 0;
    loop {
        match std::str::from_utf8(&bytes[done..]) {
            Ok(valid) => {
                text.push_str(valid);
                return bytes.len();
            }
            Err(error) => {
                let valid = &bytes[done..done + error.valid_up_to()];
                text.push_str(&String::from_utf8_lossy(valid));
                done += valid.len();
                let Some(wrong) = error.error_len() else {
                    return done;
                };
                text.push('\u{FFFD}');
                done += wrong;
            }
        }
    }
}

impl Strip {
    pub fn apply(&mut self, text: &mut String) {
        while self.left > 0 && !text.is_empty() {
            if text.starts_with(self.content) {
                text.drain(..self.content.len_utf8());
                self.left -= 1;
            } else {
                self.left = 0;
            }
        }
    }
}
