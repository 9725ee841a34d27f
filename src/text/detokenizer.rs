//! The incremental detokenizer: it takes ids one at a time and returns text as soon as the text is final.
//!
//! The results of all [`Detokenizer::push`] calls and of [`Detokenizer::finish`], concatenated, are exactly [`Tokenizer::decode`] of all
//! the ids. Repeatedly decoding a growing window (as streaming wrappers do) is neither exact on broken byte sequences nor linear in time;
//! here the decoder of `tokenizer.json` is split into steps that each keep only the part that may still change:
//!
//! - byte-level: the bytes of an incomplete character,
//! - byte fallback (`<0xE2>`): the run of byte tokens, because one invalid byte invalidates its whole run,
//! - the SentencePiece space at the very start: whether text has begun.

use std::sync::Arc;

use tokenizers::DecoderWrapper;

use super::decoder_steps::{Joint, Step, Strip, fallback_byte};
use super::{TextError, Tokenizer};

/// A converter of a stream of ids into text; see the module documentation.
pub struct Detokenizer {
    tokenizer: Tokenizer,
    skip_special: bool,
    /// Special tokens that are written even with `skip_special`.
    shown: Arc<[u32]>,
    plan: Plan,
    /// Text of the tokens before the stream that the decoder has not output yet, and that must not be part of the stream's text.
    before: String,
}

/// Number of the prompt's last tokens that determine how its continuation is written: more than a character has bytes.
const CONTEXT: usize = 64;

pub(super) enum Plan {
    Steps {
        steps: Vec<Step>,
        joint: Joint,
        strips: Vec<Strip>,
    },
    /// A decoder that cannot be split (CTC, a replacement after the tokens were joined): everything is decoded at the end.
    AtTheEnd(Vec<u32>),
}

impl Detokenizer {
    pub fn new(tokenizer: &Tokenizer, skip_special: bool) -> Self {
        Self {
            plan: Plan::of(tokenizer.decoder()),
            tokenizer: tokenizer.clone(),
            skip_special,
            shown: Arc::default(),
            before: String::new(),
        }
    }

    /// Returns this detokenizer, which also writes the given special tokens. A decoder that cannot be split omits them anyway.
    #[must_use]
    pub fn showing(self, shown: Arc<[u32]>) -> Self {
        Self { shown, ..self }
    }

    /// Creates a detokenizer for the continuation of `prompt`: its text is what decoding both together adds to the prompt's own text. The
    /// first token keeps the space that it would lose at the start of a text, and a character begun in the prompt is completed.
    ///
    /// # Errors
    /// Those of the decoder.
    pub fn after(
        tokenizer: &Tokenizer,
        skip_special: bool,
        prompt: &[u32],
    ) -> Result<Self, TextError> {
        let mut recent = &prompt[prompt.len().saturating_sub(CONTEXT)..];
        if recent.len() < prompt.len() {
            // Not from the middle of a character: an invalid byte invalidates its whole run.
            let within = |id: &&u32| {
                let token = tokenizer.written_token(**id, skip_special);
                let byte = token.and_then(|token| fallback_byte(&token));
                byte.is_some_and(|byte| byte & 0xC0 == 0x80)
            };
            recent = &recent[recent.iter().take_while(within).count()..];
        }
        let mut detokenizer = Self::new(tokenizer, skip_special);
        let mut out = String::new();
        for &id in recent {
            out.push_str(&detokenizer.push(id)?);
        }
        let whole = tokenizer.decode(recent, skip_special)?;
        detokenizer.before = whole.strip_prefix(&*out).unwrap_or_default().to_owned();
        Ok(detokenizer)
    }

    /// Takes the next id; returns the text that can no longer change, often of one token, sometimes empty.
    pub fn push(&mut self, id: u32) -> Result<String, TextError> {
        let mut text = String::new();
        match &mut self.plan {
            Plan::AtTheEnd(ids) => ids.push(id),
            Plan::Steps {
                steps,
                joint,
                strips,
            } => {
                let skip = self.skip_special && !self.shown.contains(&id);
                if let Some(token) = self.tokenizer.written_token(id, skip) {
                    feed(steps, joint, token, &mut text)?;
                    strips.iter_mut().for_each(|strip| strip.apply(&mut text));
                }
            }
        }
        self.drop_before(&mut text);
        Ok(text)
    }

    /// Removes from a text the part that belongs to the tokens before the stream.
    fn drop_before(&mut self, text: &mut String) {
        if self.before.is_empty() || text.is_empty() {
            return;
        }
        if let Some(rest) = text.strip_prefix(&*self.before) {
            *text = rest.to_owned();
            self.before.clear();
        } else if let Some(rest) = self.before.strip_prefix(&**text) {
            self.before = rest.to_owned();
            text.clear();
        } else {
            // The stream has changed that part: it completed a character.
            self.before.clear();
        }
    }

    /// Ends the stream: returns the text held back, with an incomplete character as U+FFFD, and resets.
    pub fn finish(&mut self) -> Result<String, TextError> {
        let fresh = Plan::of(self.tokenizer.decoder());
        let mut text = match std::mem::replace(&mut self.plan, fresh) {
            Plan::AtTheEnd(ids) => self.tokenizer.decode(&ids, self.skip_special)?,
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
                text
            }
        };
        self.drop_before(&mut text);
        self.before.clear();
        Ok(text)
    }
}

/// Passes a token through the steps and joins the results.
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
    use crate::small_tokenizers::{byte_fallback, byte_level, with_decoder};

    fn streamed(tokenizer: &Tokenizer, ids: &[u32], skip: bool) -> String {
        let mut detokenizer = tokenizer.detokenizer(skip);
        let mut text: String = ids
            .iter()
            .map(|&id| detokenizer.push(id).unwrap())
            .collect();
        text.push_str(&detokenizer.finish().unwrap());
        text
    }

    /// Checks random ids, most of which give broken UTF-8, and some of which are beyond the vocabulary.
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

    /// The text of a continuation is what decoding both together adds to the prompt's text, if the prompt ends with a complete character.
    #[test]
    fn a_continuation_is_what_it_adds_to_its_prompt() {
        let decoders = [
            r#"null"#,
            r###"{"type":"WordPiece","prefix":"##","cleanup":false}"###,
            r#"{"type":"BPEDecoder","suffix":"</w>"}"#,
            r#"{"type":"BPEDecoder","suffix":"b"}"#,
            r#"{"type":"Metaspace","replacement":"▁","prepend_scheme":"first","split":true}"#,
            r#"{"type":"Sequence","decoders":[{"type":"ByteFallback"},{"type":"Fuse"},
                {"type":"Strip","content":"▁","start":2,"stop":0},{"type":"Strip","content":"a","start":1,"stop":0}]}"#,
            r#"{"type":"Sequence","decoders":[{"type":"Fuse"},
                {"type":"Replace","pattern":{"Regex":"x+"},"content":"y"}]}"#,
        ];
        let mut tokenizers = vec![byte_level(), byte_fallback()];
        tokenizers.extend(decoders.map(with_decoder));
        let mut rng = ChaCha8Rng::seed_from_u64(8);
        for (which, tokenizer) in tokenizers.iter().enumerate() {
            let pool = tokenizer
                .encode_text("ab a b ab aa s / < > xx ab é a ba")
                .unwrap();
            let mut compared = 0;
            for _ in 0..300 {
                let mut ids = |most: usize| -> Vec<u32> {
                    let len = rng.random_range(1..most);
                    (0..len)
                        .map(|_| pool[rng.random_range(0..pool.len())])
                        .collect()
                };
                let (prompt, answer) = (ids(80), ids(12));
                let before = tokenizer.decode(&prompt, true).unwrap();
                let both = [&prompt[..], &answer].concat();
                let both = tokenizer.decode(&both, true).unwrap();
                let mut detokenizer = Detokenizer::after(tokenizer, true, &prompt).unwrap();
                let mut text = String::new();
                for &id in &answer {
                    text.push_str(&detokenizer.push(id).unwrap());
                }
                text.push_str(&detokenizer.finish().unwrap());
                if let Some(added) = both
                    .strip_prefix(&*before)
                    .filter(|_| !before.ends_with('\u{FFFD}'))
                {
                    assert_eq!(text, added, "{which}: {prompt:?}, {answer:?}");
                    compared += 1;
                }
            }
            assert!(compared > 50, "{which}: {compared}");
        }
    }

    #[test]
    fn the_first_word_behind_a_prompt_keeps_its_space() {
        let tokenizer = byte_fallback();
        let id = |token: &str| tokenizer.token_to_id(token).unwrap();
        let after = |prompt: &[u32], answer: &[u32]| {
            let mut detokenizer = Detokenizer::after(&tokenizer, true, prompt).unwrap();
            let pushed: Vec<String> = answer
                .iter()
                .map(|&id| detokenizer.push(id).unwrap())
                .collect();
            pushed.concat() + &detokenizer.finish().unwrap()
        };
        let (start, word) = (id("<s>"), id("▁ab"));
        assert_eq!(after(&[start, word], &[word, word]), " ab ab");
        assert_eq!(after(&[word], &[id("a"), word]), "a ab");
        // No text has come yet: the space is the one at the start.
        assert_eq!(after(&[id("<|im_start|>")], &[word]), "ab");
        assert_eq!(after(&[], &[word]), "ab");
        // A character begun in the prompt.
        let euro = ["<0xE2>", "<0x82>", "<0xAC>"].map(id);
        assert_eq!(
            after(&[&[word], &euro[..2]].concat(), &[euro[2], word]),
            "€ ab"
        );
        assert_eq!(after(&[&[word], &euro[..]].concat(), &[word]), " ab");
        let long: Vec<u32> = euro.iter().copied().cycle().take(3 * 40).collect();
        assert_eq!(after(&long, &euro), "€");
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
        // Ended in the middle of a character, and then usable again.
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
