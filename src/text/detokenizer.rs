//! The incremental detokenizer: ids go in one at a time, text comes out as soon as it is certain.
//!
//! What [`Detokenizer::push`] returns and what [`Detokenizer::finish`] adds is, put together, exactly
//! [`Tokenizer::decode`] of all the ids. Decoding a growing window again and again (as streaming wrappers
//! do) is neither exact on broken byte sequences nor linear in time; here the decoder of `tokenizer.json` is taken apart
//! into steps that each keep only what may still change:
//!
//! - byte-level: the bytes of an unfinished character,
//! - byte fallback (`<0xE2>`): the run of byte tokens, because one bad byte spoils its whole run,
//! - the SentencePiece space at the very start: whether text has begun.

use tokenizers::DecoderWrapper;

use super::decoder_steps::{Joint, Step, Strip};
use super::{TextError, Tokenizer};

/// Turns a stream of ids into text; see the module.
pub struct Detokenizer {
    tokenizer: Tokenizer,
    skip_special: bool,
    plan: Plan,
}

pub(super) enum Plan {
    Steps {
        steps: Vec<Step>,
        joint: Joint,
        strips: Vec<Strip>,
    },
    /// A decoder that cannot be taken apart (CTC, a replacement after the tokens were joined): all at the end.
    AtTheEnd(Vec<u32>),
}

impl Detokenizer {
    pub fn new(tokenizer: &Tokenizer, skip_special: bool) -> Self {
        Self {
            plan: Plan::of(tokenizer.decoder()),
            tokenizer: tokenizer.clone(),
            skip_special,
        }
    }

    /// Takes the next id; returns the text that can no longer change, often one token, sometimes nothing.
    pub fn push(&mut self, id: u32) -> Result<String, TextError> {
        let mut text = String::new();
        match &mut self.plan {
            Plan::AtTheEnd(ids) => ids.push(id),
            Plan::Steps {
                steps,
                joint,
                strips,
            } => {
                if let Some(token) = self.tokenizer.written_token(id, self.skip_special) {
                    feed(steps, joint, token, &mut text)?;
                    strips.iter_mut().for_each(|strip| strip.apply(&mut text));
                }
            }
        }
        Ok(text)
    }

    /// Ends the stream: returns what was held back, an unfinished character as U+FFFD, and starts anew.
    pub fn finish(&mut self) -> Result<String, TextError> {
        let fresh = Plan::of(self.tokenizer.decoder());
        match std::mem::replace(&mut self.plan, fresh) {
            Plan::AtTheEnd(ids) => self.tokenizer.decode(&ids, self.skip_special),
            Plan::Steps {
                mut steps,
                mut joint,
                mut strips,
            } => {
                let mut text = String::new();
                for at in 0..steps.len() {
                    let (step, rest) = steps[at..].split_first_mut().expect(
                        "a slice that starts before the end is not empty; this is a bug otherwise",
                    );
                    for token in step.finish()? {
                        feed(rest, &mut joint, token, &mut text)?;
                    }
                }
                joint.finish(&mut text);
                strips.iter_mut().for_each(|strip| strip.apply(&mut text));
                Ok(text)
            }
        }
    }
}

/// Sends a token through the steps and joins what comes out.
fn feed(
    steps: &mut [Step],
    joint: &mut Joint,
    token: String,
    text: &mut String,
) -> Result<(), TextError> {
    match steps.split_first_mut() {
        None => joint.push(&token, text),
        Some((step, rest)) => {
            for token in step.push(token)? {
                feed(rest, joint, token, text)?;
            }
        }
    }
    Ok(())
}

impl Plan {
    pub fn of(decoder: Option<&DecoderWrapper>) -> Self {
        let Some(decoder) = decoder else {
            return Plan::Steps {
                steps: vec![],
                joint: Joint::Spaced { begun: false },
                strips: vec![],
            };
        };
        Self::take_apart(decoder).unwrap_or(Plan::AtTheEnd(vec![]))
    }

    fn take_apart(decoder: &DecoderWrapper) -> Option<Self> {
        let mut steps = Vec::new();
        let mut joint = Joint::Plain;
        let mut strips = Vec::new();
        let mut joined = false;
        for decoder in flatten(decoder) {
            match decoder {
                DecoderWrapper::Fuse(_) => joined = true,
                DecoderWrapper::Strip(strip) if joined && strip.stop == 0 => strips.push(Strip {
                    content: strip.content,
                    left: strip.start,
                }),
                _ if joined => return None,
                DecoderWrapper::ByteLevel(_) => {
                    joint = Joint::Bytes(vec![]);
                    joined = true;
                }
                DecoderWrapper::ByteFallback(_) => steps.push(Step::ByteFallback { run: vec![] }),
                DecoderWrapper::BPE(_) => steps.push(Step::Last {
                    decoder: decoder.clone(),
                    held: None,
                }),
                DecoderWrapper::Replace(_)
                | DecoderWrapper::Strip(_)
                | DecoderWrapper::Metaspace(_)
                | DecoderWrapper::WordPiece(_) => steps.push(Step::Each {
                    decoder: decoder.clone(),
                    begun: false,
                }),
                DecoderWrapper::CTC(_) | DecoderWrapper::Sequence(_) => return None,
            }
        }
        Some(Plan::Steps {
            steps,
            joint,
            strips,
        })
    }
}

fn flatten(decoder: &DecoderWrapper) -> Vec<&DecoderWrapper> {
    match decoder {
        DecoderWrapper::Sequence(sequence) => {
            sequence.get_decoders().iter().flat_map(flatten).collect()
        }
        single => vec![single],
    }
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;
    use crate::text::small_tokenizers::{byte_fallback, byte_level, with_decoder};

    fn streamed(tokenizer: &Tokenizer, ids: &[u32], skip: bool) -> String {
        let mut detokenizer = tokenizer.detokenizer(skip);
        let mut text: String = ids
            .iter()
            .map(|&id| detokenizer.push(id).unwrap())
            .collect();
        text.push_str(&detokenizer.finish().unwrap());
        text
    }

    /// Random ids, most of them nonsense with broken UTF-8, some beyond the vocabulary.
    fn assert_streams_like_decode(tokenizer: &Tokenizer, rounds: usize) {
        let mut rng = ChaCha8Rng::seed_from_u64(7);
        let vocab = tokenizer.vocab_size() as u32;
        for round in 0..rounds {
            let len = rng.random_range(0..24);
            let ids: Vec<u32> = (0..len).map(|_| rng.random_range(0..vocab + 3)).collect();
            for skip in [false, true] {
                assert_eq!(
                    streamed(tokenizer, &ids, skip),
                    tokenizer.decode(&ids, skip).unwrap(),
                    "round {round}: {ids:?}, skip_special {skip}"
                );
            }
        }
    }

    #[test]
    fn any_ids_stream_to_what_they_decode_to() {
        assert_streams_like_decode(&byte_level(), 500);
        assert_streams_like_decode(&byte_fallback(), 500);
    }

    #[test]
    fn so_they_do_with_every_other_decoder() {
        let decoders = [
            r#"null"#,
            r###"{"type":"WordPiece","prefix":"##","cleanup":true}"###,
            r#"{"type":"BPEDecoder","suffix":"</w>"}"#,
            r#"{"type":"Metaspace","replacement":"▁","prepend_scheme":"first","split":true}"#,
            r#"{"type":"Metaspace","replacement":"▁","prepend_scheme":"never","split":true}"#,
            r#"{"type":"CTC","pad_token":"a","word_delimiter_token":"▁","cleanup":true}"#,
            r#"{"type":"Sequence","decoders":[{"type":"Strip","content":"▁","start":1,"stop":0},
                {"type":"ByteFallback"},{"type":"BPEDecoder","suffix":"b"},{"type":"Fuse"}]}"#,
            r#"{"type":"Sequence","decoders":[{"type":"Fuse"},
                {"type":"Replace","pattern":{"Regex":"a+"},"content":"x"}]}"#,
            r#"{"type":"Sequence","decoders":[{"type":"ByteFallback"},{"type":"Fuse"},
                {"type":"Strip","content":"▁","start":2,"stop":0},{"type":"Strip","content":"a","start":1,"stop":0}]}"#,
        ];
        for decoder in decoders {
            assert_streams_like_decode(&with_decoder(decoder), 150);
        }
    }

    #[test]
    fn half_a_character_is_never_emitted() {
        let tokenizer = byte_level();
        let ids = tokenizer.encode_text("é🙂").unwrap();
        let mut detokenizer = tokenizer.detokenizer(false);
        let parts: Vec<String> = ids
            .iter()
            .map(|&id| detokenizer.push(id).unwrap())
            .collect();
        assert_eq!(parts, ["", "é", "", "", "", "🙂"]);
        // broken off in the middle, and then usable again
        detokenizer.push(ids[2]).unwrap();
        assert_eq!(detokenizer.finish().unwrap(), "\u{FFFD}");
        assert_eq!(detokenizer.push(ids[0]).unwrap(), "");
        assert_eq!(detokenizer.push(ids[1]).unwrap(), "é");
    }

    #[test]
    fn the_space_sentencepiece_puts_in_front_goes_again() {
        let tokenizer = byte_fallback();
        let ids = tokenizer.encode_text("ab a").unwrap();
        let mut detokenizer = tokenizer.detokenizer(false);
        let parts: Vec<String> = ids
            .iter()
            .map(|&id| detokenizer.push(id).unwrap())
            .collect();
        assert_eq!(parts.concat(), "ab a");
        assert_eq!(detokenizer.finish().unwrap(), "");
    }
}
