//! The texts of single tokens, and their positions in a text: for callers that request tokens.

use super::Tokenizer;
use super::token_bytes::Speller;

/// The texts of a model's tokens.
pub struct TokenTexts {
    tokenizer: Tokenizer,
    /// None if a token's text depends on its neighbours.
    speller: Option<Speller>,
}

/// The position of a token in a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TokenPlace {
    /// Characters of the text before the token. The tokens of one character have the same offset.
    pub offset: usize,
    /// Whether the token is the first of the text.
    pub first: bool,
}

/// A tracker of the positions of a text's tokens, in order.
#[derive(Debug, Clone, Default)]
pub struct TokenPlaces {
    begun: bool,
    chars: usize,
    /// The bytes of an incomplete character.
    pending: Vec<u8>,
}

impl TokenTexts {
    pub fn new(tokenizer: &Tokenizer) -> Self {
        Self {
            speller: Speller::new(tokenizer),
            tokenizer: tokenizer.clone(),
        }
    }

    /// Returns the bytes that a token adds to a text; `None` for one that is not part of it: a special token, or an id without a token.
    pub fn bytes(&self, id: u32, first: bool) -> Option<Vec<u8>> {
        let token = self.tokenizer.written_token(id, true)?;
        let spelled = self
            .speller
            .as_ref()
            .and_then(|speller| speller.bytes(token, first));
        let alone = || self.tokenizer.decode(&[id], true).unwrap_or_default();
        Some(spelled.unwrap_or_else(|| alone().into_bytes()))
    }

    /// Returns a token's name: its text, `bytes:\xe2\x82` for a part of a character, the vocabulary's name of a special token, or
    /// `token_id:7` for an id without a token.
    pub fn name(&self, id: u32, first: bool) -> String {
        let Some(bytes) = self.bytes(id, first) else {
            let name = self.tokenizer.id_to_token(id);
            return name.unwrap_or_else(|| Self::id_name(id));
        };
        match String::from_utf8(bytes) {
            Ok(text) => text,
            Err(part) => {
                let digits = part.as_bytes().iter().map(|byte| format!("\\x{byte:02x}"));
                format!("bytes:{}", digits.collect::<String>())
            }
        }
    }

    /// Returns a name that is unique to the token.
    pub fn id_name(id: u32) -> String {
        format!("token_id:{id}")
    }
}

impl TokenPlaces {
    /// Returns a tracker for a text that continues another one.
    pub fn continuing() -> Self {
        Self {
            begun: true,
            ..Self::default()
        }
    }

    /// Returns the position of the next token.
    pub fn next(&mut self, id: u32, texts: &TokenTexts) -> TokenPlace {
        let place = TokenPlace {
            offset: self.chars,
            first: !self.begun,
        };
        if let Some(bytes) = texts.bytes(id, place.first) {
            self.begun = true;
            self.pending.extend(bytes);
            let (chars, whole) = whole_chars(&self.pending);
            self.chars += chars;
            self.pending.drain(..whole);
        }
        place
    }

    /// Returns the number of characters so far; an incomplete one counts.
    pub fn chars(&self) -> usize {
        self.chars + usize::from(!self.pending.is_empty())
    }
}

/// Returns the number of complete characters at the start of `bytes`, with invalid bytes as U+FFFD, and the number of bytes that they
/// take.
fn whole_chars(bytes: &[u8]) -> (usize, usize) {
    let (mut chars, mut whole) = (0, 0);
    loop {
        match std::str::from_utf8(&bytes[whole..]) {
            Ok(text) => return (chars + text.chars().count(), bytes.len()),
            Err(error) => {
                let valid = error.valid_up_to();
                let text = String::from_utf8_lossy(&bytes[whole..whole + valid]);
                chars += text.chars().count();
                whole += valid;
                match error.error_len() {
                    Some(wrong) => {
                        chars += 1;
                        whole += wrong;
                    }
                    None => return (chars, whole),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::small_tokenizers::{byte_fallback, byte_level, with_decoder};

    #[test]
    fn bytes_of_an_answer_are_its_text_and_places_are_characters() {
        for tokenizer in [byte_level(), byte_fallback()] {
            let texts = TokenTexts::new(&tokenizer);
            for text in ["ab é🙂 ab", " a", "é"] {
                let ids = tokenizer.encode_text(text).unwrap();
                let decoded = tokenizer.decode(&ids, true).unwrap();
                let mut places = TokenPlaces::default();
                let mut bytes = Vec::new();
                for (at, &id) in ids.iter().enumerate() {
                    let place = places.next(id, &texts);
                    let before = String::from_utf8_lossy(&bytes);
                    let whole = before.trim_end_matches('\u{FFFD}').chars().count();
                    assert_eq!(place.offset, whole, "{text}");
                    assert_eq!(place.first, at == 0);
                    bytes.extend(texts.bytes(id, place.first).unwrap());
                }
                assert_eq!(String::from_utf8(bytes).unwrap(), decoded);
                assert_eq!(places.chars(), decoded.chars().count());
            }
        }
    }

    #[test]
    fn tokens_have_names_of_their_own() {
        let tokenizer = byte_fallback();
        let texts = TokenTexts::new(&tokenizer);
        let half = tokenizer.token_to_id("<0xE2>").unwrap();
        assert_eq!(texts.name(half, false), "bytes:\\xe2");
        let space = tokenizer.token_to_id("▁").unwrap();
        assert_eq!(texts.name(space, false), " ");
        assert_eq!(texts.name(space, true), "");
        let end = tokenizer.token_to_id("<|im_end|>").unwrap();
        assert_eq!(texts.bytes(end, false), None);
        assert_eq!(texts.name(end, false), "<|im_end|>");
        assert_eq!(texts.name(1 << 30, false), "token_id:1073741824");
        // If a decoder depends on neighbours, the token is decoded alone.
        let suffixed = with_decoder(r#"{"type":"BPEDecoder","suffix":"b"}"#);
        let texts = TokenTexts::new(&suffixed);
        let id = suffixed.token_to_id("ab").unwrap();
        assert_eq!(texts.name(id, false), "a");
    }
}
