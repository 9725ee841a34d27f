//! The bytes that each token adds to a text, as written by the decoder of `tokenizer.json`.
//!
//! For most decoders, the [`Detokenizer`](super::Detokenizer)'s output for a stream of tokens is the concatenated bytes of the tokens;
//! but the first may lose the space that SentencePiece puts before every text.

use super::Tokenizer;
use super::decoder_steps::{Joint, Step, Strip, decode_one, fallback_byte};
use super::detokenizer::Plan;

/// A converter of tokens to bytes, for tokenizers whose tokens are decoded independently.
pub(super) struct Speller {
    tokenizer: Tokenizer,
    steps: Vec<Step>,
    joint: Joint,
    strips: Vec<Strip>,
}

/// The bytes that a token adds to a text.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Spelling {
    /// After other tokens.
    pub later: Vec<u8>,
    /// At the start of a text.
    pub first: Vec<u8>,
}

enum Piece {
    Text(String),
    Byte(u8),
}

impl Speller {
    /// Creates a speller; returns `None` if a token's text depends on its neighbours (a suffix that marks the ends of words, CTC).
    pub fn new(tokenizer: &Tokenizer) -> Option<Self> {
        let Plan::Steps {
            steps,
            joint,
            strips,
        } = Plan::of(tokenizer.decoder())
        else {
            return None;
        };
        let alone = |(at, step): (usize, &Step)| match step {
            Step::Each { .. } => true,
            // A later step would need whole runs of bytes, not one.
            Step::ByteFallback { .. } => at + 1 == steps.len(),
            Step::Last { .. } => false,
        };
        // More than one character at the start could reach into the second token.
        let stripped: usize = strips.iter().map(|strip| strip.left).sum();
        (steps.iter().enumerate().all(alone) && stripped <= 1).then_some(Self {
            tokenizer: tokenizer.clone(),
            steps,
            joint,
            strips,
        })
    }

    /// Returns a token's bytes; `None` for ids without a text: control tokens, the unknown token, ids without a token.
    pub fn spell(&self, id: u32) -> Option<Spelling> {
        if self.tokenizer.is_control(id) || self.tokenizer.is_unknown(id) {
            return None;
        }
        let token = self.tokenizer.written_token(id, true)?;
        Some(Spelling {
            later: self.bytes(token.clone(), false)?,
            first: self.bytes(token, true)?,
        })
    }

    /// Returns the bytes that a token adds, given in the vocabulary's spelling.
    pub fn bytes(&self, token: String, first: bool) -> Option<Vec<u8>> {
        let mut piece = Piece::Text(token);
        for step in &self.steps {
            piece = match (piece, step) {
                (Piece::Text(text), Step::Each { decoder, .. }) => {
                    Piece::Text(decode_one(decoder, text, first).ok()?)
                }
                (Piece::Text(text), Step::ByteFallback { .. }) => match fallback_byte(&text) {
                    Some(byte) => Piece::Byte(byte),
                    None => Piece::Text(text),
                },
                (piece, _) => piece,
            };
        }
        let mut bytes = match piece {
            Piece::Text(text) => self.joint.bytes(&text, first),
            Piece::Byte(byte) => vec![byte],
        };
        let leading = |strip: &&Strip| {
            let mut content = [0; 4];
            bytes.starts_with(strip.content.encode_utf8(&mut content).as_bytes())
        };
        if first && let Some(strip) = self.strips.iter().find(|s| s.left > 0).filter(leading) {
            bytes.drain(..strip.content.len_utf8());
        }
        Some(bytes)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::small_tokenizers::{
        byte_fallback, byte_level, llama_decoder, sentencepiece, unigram, with_decoder,
    };
    use std::path::Path;
    use test_support::{data, shared_data};

    const TEXTS: [&str; 6] = [
        "",
        "a",
        "ab a",
        "hello\n  Hé 🙂 日本語",
        "{\"a\": [1]}",
        "</s>",
    ];

    fn written(speller: &Speller, ids: &[u32]) -> Vec<u8> {
        let spelled = ids.iter().map(|&id| speller.spell(id).unwrap());
        let bytes = spelled.enumerate().flat_map(|(at, spelling)| match at {
            0 => spelling.first,
            _ => spelling.later,
        });
        bytes.collect()
    }

    /// Checks that the bytes of an encoding's tokens are the text's.
    fn assert_spells(tokenizer: &Tokenizer, texts: &[&str]) {
        let speller = Speller::new(tokenizer).unwrap();
        for text in texts {
            let ids = tokenizer.encode_text(text).unwrap();
            let bytes = written(&speller, &ids);
            assert_eq!(String::from_utf8_lossy(&bytes), *text, "{ids:?}");
            assert_eq!(tokenizer.decode(&ids, true).unwrap(), *text);
        }
    }

    #[test]
    fn encodings_of_all_kinds_spell_their_texts() {
        assert_spells(&byte_level(), &TEXTS);
        assert_spells(&byte_level(), &["  ab"]);
        assert_spells(&byte_fallback(), &TEXTS);
        assert_spells(&byte_fallback(), &["  ab"]);
        assert_spells(&sentencepiece("first", llama_decoder()), &TEXTS);
        let metaspace = json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": false});
        assert_spells(&sentencepiece("always", metaspace), &["a", "ab a", "ab  a"]);
        assert_spells(&unigram(), &["a", "ab cd", "</s>", "<|im_end|>"]);
        let minimind = data("tokenizers/minimind/tokenizer.json");
        assert_spells_more(&minimind, &TEXTS);
    }

    fn assert_spells_more(file: &Path, texts: &[&str]) {
        let tokenizer = Tokenizer::from_file(file).unwrap();
        assert_spells(&tokenizer, texts);
        assert_spells(&tokenizer, &["  ab", "\t\r\n\0", "    if x:\n        y"]);
    }

    #[test]
    #[cfg_attr(not(has_data), ignore = "needs ../shared/data")]
    fn larger_vocabularies_spell_what_they_encode() {
        for name in ["gpt2", "gpt-neox-20b"] {
            let file = shared_data("tokenizers").join(name).join("tokenizer.json");
            assert_spells_more(&file, &TEXTS);
        }
    }

    #[test]
    fn control_and_unknown_tokens_spell_nothing() {
        for tokenizer in [byte_level(), byte_fallback(), unigram()] {
            let speller = Speller::new(&tokenizer).unwrap();
            for name in ["<|im_end|>", "<think>"] {
                let id = tokenizer.token_to_id(name).unwrap();
                assert_eq!(speller.spell(id), None, "{name}");
            }
            assert_eq!(speller.spell(tokenizer.vocab_size() as u32), None);
        }
        let unknown = unigram().token_to_id("<unk>").unwrap();
        assert_eq!(Speller::new(&unigram()).unwrap().spell(unknown), None);
    }

    #[test]
    fn decoders_that_look_around_are_refused() {
        for decoder in [
            r#"{"type":"BPEDecoder","suffix":"</w>"}"#,
            r#"{"type":"CTC","pad_token":"a","word_delimiter_token":"▁","cleanup":true}"#,
            r#"{"type":"Sequence","decoders":[{"type":"ByteFallback"},{"type":"Fuse"},
                {"type":"Strip","content":"▁","start":2,"stop":0}]}"#,
        ] {
            assert!(Speller::new(&with_decoder(decoder)).is_none(), "{decoder}");
        }
        let spaced = with_decoder("null");
        let speller = Speller::new(&spaced).unwrap();
        let ids = ["ab", "a"].map(|token| spaced.token_to_id(token).unwrap());
        assert_eq!(written(&speller, &ids), b"ab a");
    }
}
