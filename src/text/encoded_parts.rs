//! Encoding of prompts from parts that several prompts have in common, with the result of encoding each prompt as a whole.
//!
//! The prompts of a tournament show the same answers again and again, between the same pieces of a frame. A prompt is cut into parts at
//! *seams*; a part that lies within one slot, or within the frame between two slots, is encoded once and looked up afterwards. Only the
//! few words around the ends of a slot are encoded with every prompt.
//!
//! A seam is the place between a printable ASCII character and a space, both of them untrusted text. The encoding of a text is that of
//! the bytes before a seam, followed by that of the bytes after it, because no step of [`Tokenizer::encode_rendered`] looks across it:
//!
//! 1. **Added tokens.** A control token matches only in trusted bytes, so none contains the seam's. `lstrip` and `rstrip` extend a match
//!    over white space only: from the left they end before the character at the seam, and from the right they end at the seam, which is
//!    also the beginning of the part. `single_word` reads one character beside the match, which is untrusted text of the same part unless
//!    the match begins with the space. Other added tokens (plain words, white space) match anywhere; a tokenizer is excluded if one of
//!    them contains a seam, is a single word, or strips white space to its right (`AddedTokens::keep_seams`).
//! 2. **Normaliser.** None, or NFC. A space composes with no character before it, so NFC of the whole is NFC of both parts.
//! 3. **Pre-tokenizer.** Only those of [`separates`]: each of them ends a piece at a seam, whatever is around it, because its pattern
//!    matches a space only at the beginning of a piece or after white space. The pieces after the seam depend on the text after it alone:
//!    none of the patterns looks back, and prefix spaces are added only before a text that does not begin with one. The pieces before the
//!    seam depend on the text before it alone: the only look-ahead, `\s+(?!\S)`, reads one character after a run of white space, and the
//!    text before the seam ends with a character that is none.
//! 4. **Model.** It encodes each piece alone. A BPE model with dropout is random, and excluded.
//!
//! Other tokenizers have no seams, and their prompts are encoded as a whole. Among these are SentencePiece models converted without a
//! pre-tokenizer (Llama 2, Mistral 7B): their merges may cross any character.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::Value;
use tokenizers::{ModelWrapper, PreTokenizerWrapper};

use super::rendered::{Encoded, Rendered};
use super::split_patterns::{LLAMA3, QWEN2};
use super::trust::Trust;
use super::{OwnTrust, TextError, Tokenizer};

/// The minimum length of a part in bytes that is looked up: shorter ones are encoded faster together with their neighbours.
const LEAST: usize = 48;

/// The maximum number of bytes of all stored parts. Parts beyond it are encoded every time.
const MOST: usize = 1 << 20;

/// The patterns of a `Split` pre-tokenizer that [`separates`] accepts: those of Llama 3, Qwen 2 and 3, Mistral Nemo, and the default
/// model.
pub(super) const PATTERNS: [&str; 4] = [
    LLAMA3,
    QWEN2,
    concat!(
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|",
        r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
    r" ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]|\s",
];

/// Encodings of parts that several prompts have in common. All prompts must be encoded by one tokenizer.
#[derive(Debug, Default)]
pub struct EncodedParts {
    stored: Mutex<Stored>,
    encoded_bytes: AtomicU64,
}

#[derive(Debug, Default)]
struct Stored {
    parts: HashMap<Rendered, Arc<Encoded>>,
    bytes: usize,
}

impl EncodedParts {
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns the number of bytes of text that were encoded so far, and not looked up.
    pub fn encoded_bytes(&self) -> u64 {
        self.encoded_bytes.load(Ordering::Relaxed)
    }

    #[cfg(test)]
    pub(super) fn stored_bytes(&self) -> usize {
        self.stored
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .bytes
    }

    fn get(&self, part: &Rendered) -> Option<Arc<Encoded>> {
        // A panic elsewhere cannot leave the map half-written: each change is one insertion.
        let stored = self.stored.lock().unwrap_or_else(PoisonError::into_inner);
        stored.parts.get(part).map(Arc::clone)
    }

    fn insert(&self, part: Rendered, encoded: &Arc<Encoded>) {
        let mut stored = self.stored.lock().unwrap_or_else(PoisonError::into_inner);
        if stored.bytes + part.text.len() <= MOST {
            stored.bytes += part.text.len();
            stored.parts.insert(part, Arc::clone(encoded));
        }
    }
}

impl Tokenizer {
    /// Encodes a prompt as [`Self::encode_rendered`] does, with parts of it from `parts`, to which new ones are added. `slots` are the
    /// bytes of the texts that other prompts may show as well, in any order.
    ///
    /// # Errors
    /// As [`Self::encode_rendered`].
    pub fn encode_with_parts(
        &self,
        rendered: &Rendered,
        slots: &[Range<usize>],
        parts: &EncodedParts,
    ) -> Result<Encoded, TextError> {
        self.encode_cut(rendered, slots, parts, LEAST)
    }

    /// Encodes a prompt, cut into parts of at least `least` bytes.
    pub(super) fn encode_cut(
        &self,
        rendered: &Rendered,
        slots: &[Range<usize>],
        parts: &EncodedParts,
        least: usize,
    ) -> Result<Encoded, TextError> {
        let untrusted = rendered.untrusted_ranges()?;
        let own = rendered.own_ranges()?;
        let cuts = match self.keeps_seams() {
            true => cuts(&rendered.text, &untrusted, slots, least),
            false => Vec::new(),
        };
        let encode = |text: &str, encode: &dyn Fn() -> Result<Encoded, TextError>| {
            let bytes = text.len() as u64;
            parts.encoded_bytes.fetch_add(bytes, Ordering::Relaxed);
            encode()
        };
        if cuts.len() < 2 {
            return encode(&rendered.text, &|| self.encode_rendered(rendered));
        }
        let mut whole = Encoded::default();
        for Cut { bytes, shared } in cuts {
            let part = Rendered {
                text: rendered.text[bytes.clone()].to_owned(),
                untrusted: within(&untrusted, &bytes),
                own: within(&own, &bytes),
                own_trust: rendered.own_trust,
            };
            // Not `encode_rendered`, which treats a part without untrusted bytes as one whose every token is trusted.
            let encode = || {
                let trust = Trust::Outside {
                    untrusted: &part.untrusted,
                    own: match part.own_trust {
                        OwnTrust::All => &[],
                        OwnTrust::Markers | OwnTrust::Nothing => &part.own,
                    },
                    markers: part.own_trust == OwnTrust::Markers,
                };
                encode(&part.text, &|| {
                    self.encode_trusting(&part.text, trust, None)
                })
            };
            let encoded = match shared {
                false => Arc::new(encode()?),
                true => match parts.get(&part) {
                    Some(known) => known,
                    None => {
                        let encoded = Arc::new(encode()?);
                        parts.insert(part, &encoded);
                        encoded
                    }
                },
            };
            let offsets = encoded.offsets.iter();
            whole.ids.extend_from_slice(&encoded.ids);
            whole
                .offsets
                .extend(offsets.map(|at| at.start + bytes.start..at.end + bytes.start));
        }
        Ok(whole)
    }
}

/// A part of a prompt.
#[derive(Debug, PartialEq, Eq)]
struct Cut {
    bytes: Range<usize>,
    /// Whether other prompts may have the part.
    shared: bool,
}

/// Cuts a text at the first and the last seam of each slot and of the frame before, between and after the slots.
fn cuts(text: &str, untrusted: &[Range<usize>], slots: &[Range<usize>], least: usize) -> Vec<Cut> {
    let mut ends: Vec<usize> = slots
        .iter()
        .flat_map(|slot| [slot.start, slot.end])
        .collect();
    ends.retain(|&end| 0 < end && end < text.len());
    ends.sort_unstable();
    ends.push(text.len());
    let (mut cuts, mut from, mut begin) = (Vec::new(), 0, 0);
    for end in ends {
        let first = match begin {
            0 => Some(0),
            _ => (begin..end).find(|&at| is_seam(text, untrusted, at)),
        };
        let last = match end == text.len() {
            true => Some(end),
            false => (begin..end).rev().find(|&at| is_seam(text, untrusted, at)),
        };
        if let (Some(first), Some(last)) = (first, last)
            && last >= first + least.max(1)
        {
            if from < first {
                cuts.push(Cut {
                    bytes: from..first,
                    shared: false,
                });
            }
            cuts.push(Cut {
                bytes: first..last,
                shared: true,
            });
            from = last;
        }
        begin = end;
    }
    if from < text.len() {
        cuts.push(Cut {
            bytes: from..text.len(),
            shared: false,
        });
    }
    cuts
}

/// Returns whether there is a seam before the byte `at`.
fn is_seam(text: &str, untrusted: &[Range<usize>], at: usize) -> bool {
    let bytes = text.as_bytes();
    let Some(before) = at.checked_sub(1) else {
        return false;
    };
    bytes[at] == b' '
        && bytes[before].is_ascii_graphic()
        && untrusted
            .get(untrusted.partition_point(|range| range.end <= before))
            .is_some_and(|range| range.start <= before && at < range.end)
}

/// Returns the parts of `ranges` within `bytes`, counted from the beginning of `bytes`.
fn within(ranges: &[Range<usize>], bytes: &Range<usize>) -> Vec<Range<usize>> {
    let inside = ranges.iter().map(|range| {
        let shift = |at: usize| at.clamp(bytes.start, bytes.end) - bytes.start;
        shift(range.start)..shift(range.end)
    });
    inside.filter(|range| !range.is_empty()).collect()
}

/// Returns whether the encoding of a text is that of its parts between seams, see the documentation of the module. Added tokens are
/// checked by `AddedTokens::keep_seams`.
pub(super) fn keeps_seams(hf: &tokenizers::Tokenizer) -> bool {
    let normalizer = hf.get_normalizer().map(serde_json::to_value);
    let normalizer_keeps = match normalizer {
        None => true,
        Some(normalizer) => normalizer.is_ok_and(|normalizer| normalizer["type"] == "NFC"),
    };
    let model_keeps = match hf.get_model() {
        ModelWrapper::BPE(bpe) => bpe.dropout.is_none(),
        _ => true,
    };
    normalizer_keeps && model_keeps && hf.get_pre_tokenizer().is_some_and(separates)
}

/// Returns whether a pre-tokenizer ends a piece at every seam, and makes the pieces on each side from the text of that side alone.
fn separates(pre_tokenizer: &PreTokenizerWrapper) -> bool {
    let Ok(json) = serde_json::to_value(pre_tokenizer) else {
        return false;
    };
    let sequence = json["pretokenizers"].as_array();
    let steps = sequence.map_or(std::slice::from_ref(&json), Vec::as_slice);
    let mut separated = false;
    for step in steps {
        match effect(step) {
            Some(Effect::Separates) => separated = true,
            // Once pieces end at seams, a step reads each piece alone.
            Some(Effect::Rewrites) if separated => {}
            Some(Effect::SplitsDigits) => {}
            _ => return false,
        }
    }
    separated
}

/// The effect of one step of a pre-tokenizer on a seam.
enum Effect {
    /// A piece ends at the seam.
    Separates,
    /// Pieces end around digits. Whether one ends at a seam depends on the two characters there.
    SplitsDigits,
    /// Spaces become other characters, and no piece ends.
    Rewrites,
}

/// Returns the effect of a step; none if it is unknown.
fn effect(step: &Value) -> Option<Effect> {
    match step["type"].as_str()? {
        "ByteLevel" if step["use_regex"] == true => Some(Effect::Separates),
        "ByteLevel" => Some(Effect::Rewrites),
        "Metaspace" if step["split"] == true => Some(Effect::Separates),
        "Digits" => Some(Effect::SplitsDigits),
        "Split" => {
            let pattern = step["pattern"]["Regex"].as_str()?;
            let known = PATTERNS.contains(&pattern)
                && step["behavior"] == "Isolated"
                && step["invert"] == false;
            known.then_some(Effect::Separates)
        }
        _ => None,
    }
}
