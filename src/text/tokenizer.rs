//! The tokenizer: a Hugging Face `tokenizer.json`, with text from outside kept apart from control tokens.

use std::collections::HashSet;
use std::ops::Range;
use std::panic::catch_unwind;
use std::path::Path;
use std::sync::Arc;

use tokenizers::normalizer::Range as In;
use tokenizers::{
    Decoder, DecoderWrapper, Model, NormalizedString, Normalizer, OffsetType, PreTokenizedString,
    PreTokenizer, Token,
};

use super::added_tokens::{AddedTokens, Stretch, is_control, is_marker};
use super::rendered::{Encoded, Rendered};
use super::trust::Trust;
use super::{Detokenizer, OwnTrust, TextError, tokenizer_bounds};
use crate::files;

/// A tokenizer. Cheap to clone, and one instance serves any number of threads.
///
/// Truncation and padding of `tokenizer.json` are not applied, and its post-processor only by [`Tokenizer::add_special_tokens`]: what
/// is encoded is the text, and BOS or EOS appear where a template writes them.
#[derive(Clone)]
pub struct Tokenizer(Arc<Inner>);

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer")
            .field("vocab_size", &self.vocab_size())
            .finish_non_exhaustive()
    }
}

struct Inner {
    hf: tokenizers::Tokenizer,
    /// Added tokens matched against the raw text.
    raw: AddedTokens,
    /// Added tokens matched against the normalised text.
    normalized: AddedTokens,
    control_ids: HashSet<u32>,
    /// Control tokens that mark reasoning and tool calls inside an answer.
    marker_ids: HashSet<u32>,
    /// Control tokens that are in the model's own vocabulary too: a Unigram model spells `</s>` with the one
    /// piece `</s>`, and so does a BPE model with `ignore_merges`. The unknown token is not among them, since
    /// untrusted text may well be unknown.
    spelled_by_model: HashSet<u32>,
    unknown_id: Option<u32>,
    /// Bytes of the longest token.
    longest_token: usize,
}

impl Tokenizer {
    /// Reads a `tokenizer.json`.
    pub fn from_file(path: &Path) -> Result<Self, TextError> {
        let bytes = files::read(path, files::TOKENIZER).map_err(|source| TextError::Read {
            path: path.to_owned(),
            source,
        })?;
        Self::parse(&bytes, &path.display().to_string())
    }

    /// Reads the bytes of a `tokenizer.json`.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, TextError> {
        Self::parse(bytes, "the given JSON")
    }

    fn parse(bytes: &[u8], origin: &str) -> Result<Self, TextError> {
        let bad = |reason: String| TextError::BadTokenizer {
            origin: origin.to_owned(),
            reason,
        };
        // tokenizers unwraps now and then where a file has another shape than it expects.
        let hf = catch_unwind(|| tokenizers::Tokenizer::from_bytes(bytes))
            .map_err(|_| bad("it is not shaped like a tokenizer".to_owned()))?
            .map_err(|e| bad(e.to_string()))?;
        if hf.get_decoder().is_some_and(strips_ends) {
            // tokenizers underflows on a token that is shorter than what is to be stripped
            return Err(bad(
                "a Strip decoder with `stop` above 0 is not supported".to_owned()
            ));
        }
        let longest_token = tokenizer_bounds::check(&hf).map_err(bad)?;
        let added = hf.get_added_tokens_decoder();
        let (raw, normalized) = AddedTokens::both(
            added.iter().map(|(&id, token)| (id, token)),
            hf.get_normalizer(),
        )
        .map_err(|e| bad(e.to_string()))?;
        let control_ids: HashSet<u32> = added
            .iter()
            .filter(|(_, token)| is_control(token))
            .map(|(&id, _)| id)
            .collect();
        let marker_ids = added
            .iter()
            .filter(|(_, token)| is_control(token) && is_marker(&token.content))
            .map(|(&id, _)| id)
            .collect();
        let model = hf.get_model();
        let unknown_id = unknown_id(model);
        let spelled_by_model = control_ids
            .iter()
            .copied()
            .filter(|&id| model.id_to_token(id).is_some() && Some(id) != unknown_id)
            .collect();
        Ok(Self(Arc::new(Inner {
            raw,
            normalized,
            control_ids,
            marker_ids,
            spelled_by_model,
            unknown_id,
            longest_token,
            hf,
        })))
    }

    /// Encodes UNTRUSTED text: whatever it says, no special or other control token comes out, and none is added.
    /// (The unknown token does, for characters that the vocabulary lacks; never for its name.)
    pub fn encode_text(&self, text: &str) -> Result<Vec<u32>, TextError> {
        self.ids(text, Trust::Nothing)
    }

    /// Encodes TRUSTED text: control tokens written in it are recognised, none is added. Exactly what
    /// `tokenizers` does with `add_special_tokens = false`.
    pub fn encode_template(&self, text: &str) -> Result<Vec<u32>, TextError> {
        self.ids(text, Trust::All)
    }

    /// Encodes a prompt in one piece, so that tokens may straddle the seams between frame and contents just as
    /// when the whole string is encoded, but recognises control tokens only in its trusted bytes.
    ///
    /// # Errors
    /// Untrusted ranges that do not fit the text.
    pub fn encode_rendered(&self, rendered: &Rendered) -> Result<Encoded, TextError> {
        self.encode_parted(rendered, None)
    }

    /// Encodes what follows `seam` (a byte of the text) as the model writes it behind the tokens of what precedes: no token straddles
    /// the seam. Offsets are those in the whole text.
    ///
    /// # Errors
    /// As [`Self::encode_rendered`].
    pub fn encode_behind(&self, rendered: &Rendered, seam: usize) -> Result<Encoded, TextError> {
        let whole = self.encode_parted(rendered, Some(seam))?;
        let behind = whole.ids.into_iter().zip(whole.offsets);
        let (ids, offsets) = behind.filter(|(_, at)| at.start >= seam).unzip();
        Ok(Encoded { ids, offsets })
    }

    fn encode_parted(
        &self,
        rendered: &Rendered,
        seam: Option<usize>,
    ) -> Result<Encoded, TextError> {
        let untrusted = rendered.untrusted_ranges()?;
        let own = match rendered.own_trust {
            OwnTrust::All => Vec::new(),
            OwnTrust::Markers | OwnTrust::Nothing => rendered.own_ranges()?,
        };
        let trust = if untrusted.is_empty() && own.is_empty() {
            Trust::All
        } else {
            Trust::Outside {
                untrusted: &untrusted,
                own: &own,
                markers: rendered.own_trust == OwnTrust::Markers,
            }
        };
        let len = rendered.text.len();
        let encoding = self
            .tokenized(&rendered.text, trust, seam)?
            .into_encoding(None, 0, OffsetType::Byte)
            .map_err(|e| TextError::Encode(e.to_string()))?;
        Ok(Encoded {
            ids: encoding.get_ids().to_vec(),
            offsets: encoding
                .get_offsets()
                .iter()
                .map(|&(start, end)| start.min(len)..end.min(len))
                .collect(),
        })
    }

    /// Decodes ids; ids outside the vocabulary are passed over.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String, TextError> {
        let tokens: Vec<String> = ids
            .iter()
            .filter_map(|&id| self.written_token(id, skip_special))
            .collect();
        match self.0.hf.get_decoder() {
            _ if tokens.is_empty() => Ok(String::new()),
            Some(decoder) => decoder
                .decode(tokens)
                .map_err(|e| TextError::Decode(e.to_string())),
            None => Ok(tokens.join(" ")),
        }
    }

    /// A decoder that is fed one id at a time.
    pub fn detokenizer(&self, skip_special: bool) -> Detokenizer {
        Detokenizer::new(self, skip_special)
    }

    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.0.hf.token_to_id(token)
    }

    pub fn id_to_token(&self, id: u32) -> Option<String> {
        self.0.hf.id_to_token(id)
    }

    /// Number of tokens, added ones included.
    pub fn vocab_size(&self) -> usize {
        self.0.hf.get_vocab_size(true)
    }

    /// Bytes of the longest token, as the vocabulary writes it: no token stands for more bytes of a normalised text, but for the
    /// unknown token.
    pub fn longest_token(&self) -> usize {
        self.0.longest_token
    }

    /// Whether an id steers the model and can therefore not come from untrusted text.
    pub fn is_control(&self, id: u32) -> bool {
        self.0.control_ids.contains(&id)
    }

    /// Whether an id marks reasoning or a tool call inside an answer.
    pub fn is_marker(&self, id: u32) -> bool {
        self.0.marker_ids.contains(&id)
    }

    /// Whether a caller's text could spell a control token, or an end of one that something else completes.
    pub fn may_spell_control(&self, text: &str) -> bool {
        let added = self.0.hf.get_added_tokens_decoder();
        let control = added.values().filter(|token| is_control(token));
        let mut tokens = control.map(|token| token.content.as_str());
        tokens.any(|token| {
            let mut ends = token.chars().take(1).chain(token.chars().last());
            text.contains(token) || ends.any(|c| !c.is_alphanumeric() && text.contains(c))
        })
    }

    /// Whether an id is the one for what the vocabulary lacks.
    pub(super) fn is_unknown(&self, id: u32) -> bool {
        self.0.unknown_id == Some(id)
    }

    /// The token as the decoder is to see it, unless it is unknown or a special one to be skipped.
    pub(super) fn written_token(&self, id: u32, skip_special: bool) -> Option<String> {
        let added = self.0.hf.get_added_vocabulary();
        added
            .simple_id_to_token(id)
            .or_else(|| self.0.hf.get_model().id_to_token(id))
            .filter(|token| !skip_special || !added.is_special_token(token))
    }

    /// Whether these ids say anything, special tokens left out.
    pub fn says_something(&self, ids: &[u32]) -> bool {
        let mut ids = ids.iter().rev();
        ids.any(|&id| self.written_token(id, true).is_some())
    }

    pub(super) fn decoder(&self) -> Option<&DecoderWrapper> {
        self.0.hf.get_decoder()
    }

    pub(super) fn hugging_face(&self) -> &tokenizers::Tokenizer {
        &self.0.hf
    }

    fn ids(&self, text: &str, trust: Trust) -> Result<Vec<u32>, TextError> {
        let encoding = self
            .tokenized(text, trust, None)?
            .into_encoding(None, 0, OffsetType::None)
            .map_err(|e| TextError::Encode(e.to_string()))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// `tokenizers`' own pipeline over the whole string at once: a prefix space that belongs to the start of
    /// the text (Metaspace "first") or to each stretch between added tokens (the Prepend normaliser) comes out
    /// where it would without us.
    ///
    /// `seam`: a byte of the text that no token but an added one straddles.
    fn tokenized(
        &self,
        text: &str,
        trust: Trust,
        seam: Option<usize>,
    ) -> Result<PreTokenizedString, TextError> {
        let inner = &*self.0;
        let normalizer = inner.hf.get_normalizer();
        let run = || -> tokenizers::Result<PreTokenizedString> {
            let mut pieces = PreTokenizedString::from(text);
            if text.is_empty() {
                pieces.split(|_, _| Ok(Vec::<NormalizedString>::new()))?;
                return Ok(pieces);
            }
            if inner.raw.can_match(trust.some()) {
                pieces.split(|_, piece| {
                    let cuts = inner
                        .raw
                        .split(piece.get(), |range, marker| trust.covers(&range, marker));
                    cut(&piece, cuts)
                })?;
            }
            pieces.split(|_, mut piece| {
                if let Some(normalizer) = normalizer {
                    normalizer.normalize(&mut piece)?;
                }
                if !inner.normalized.can_match(trust.some()) {
                    return Ok(vec![(piece, None)]);
                }
                let trusted = |range, marker| match trust {
                    Trust::Outside { .. } => {
                        original(&piece, range).is_some_and(|range| trust.covers(&range, marker))
                    }
                    Trust::All | Trust::Nothing => trust.some(),
                };
                cut(&piece, inner.normalized.split(piece.get(), trusted))
            })?;
            if let Some(pre_tokenizer) = inner.hf.get_pre_tokenizer() {
                pre_tokenizer.pre_tokenize(&mut pieces)?;
            }
            if let Some(seam) = seam {
                pieces.split(|_, piece| Ok(cut_at(piece, seam)))?;
            }
            pieces.tokenize(|piece| inner.tokenize_piece(piece, trust))?;
            Ok(pieces)
        };
        run().map_err(|error| match error.downcast::<TextError>() {
            Ok(ours) => *ours,
            Err(theirs) => TextError::Encode(theirs.to_string()),
        })
    }
}

impl Inner {
    /// The model on one pre-token, except that control tokens it would spell untrusted bytes with are spelled
    /// in smaller pieces.
    fn tokenize_piece(
        &self,
        piece: &NormalizedString,
        trust: Trust,
    ) -> tokenizers::Result<Vec<Token>> {
        let tokens = self.hf.get_model().tokenize(piece.get())?;
        let forbidden = |token: &Token| {
            self.spelled_by_model.contains(&token.id)
                && match trust {
                    Trust::All => false,
                    Trust::Nothing => true,
                    Trust::Outside { .. } => !original(piece, token.offsets.0..token.offsets.1)
                        .is_some_and(|range| {
                            trust.covers(&range, self.marker_ids.contains(&token.id))
                        }),
                }
        };
        if self.spelled_by_model.is_empty() || !tokens.iter().any(forbidden) {
            return Ok(tokens);
        }
        let mut spelled = Vec::with_capacity(tokens.len() + 4);
        for token in tokens {
            if forbidden(&token) {
                self.spell_out(piece.get(), token.offsets, &mut spelled)?;
            } else {
                spelled.push(token);
            }
        }
        Ok(spelled)
    }

    /// Tokenizes the first character and the rest separately, until no piece is a control token.
    fn spell_out(
        &self,
        piece: &str,
        (start, end): (usize, usize),
        out: &mut Vec<Token>,
    ) -> tokenizers::Result<()> {
        let text = &piece[start..end];
        let first = text.chars().next().map_or(0, char::len_utf8);
        if first == text.len() {
            let id = self
                .unknown_id
                .ok_or_else(|| TextError::UnspeakableCharacter(text.to_owned()))?;
            out.push(Token::new(id, text.to_owned(), (start, end)));
            return Ok(());
        }
        for (from, to) in [(start, start + first), (start + first, end)] {
            for mut token in self.hf.get_model().tokenize(&piece[from..to])? {
                token.offsets = (token.offsets.0 + from, token.offsets.1 + from);
                if self.spelled_by_model.contains(&token.id) {
                    self.spell_out(piece, token.offsets, out)?;
                } else {
                    out.push(token);
                }
            }
        }
        Ok(())
    }
}

/// Cuts a piece at the added tokens found in it.
fn cut(
    piece: &NormalizedString,
    stretches: Vec<Stretch>,
) -> tokenizers::Result<Vec<(NormalizedString, Option<Vec<Token>>)>> {
    stretches
        .into_iter()
        .map(|(id, range)| {
            let slice = piece
                .slice(In::Normalized(range))
                .ok_or("an added token ends inside a character")?;
            let token = id.map(|id| {
                let text = slice.get().to_owned();
                let end = text.len();
                vec![Token::new(id, text, (0, end))]
            });
            Ok((slice, token))
        })
        .collect()
}

/// Cuts a piece at a byte of the text that is being encoded, if it lies inside.
fn cut_at(piece: NormalizedString, seam: usize) -> Vec<NormalizedString> {
    let (from, to) = piece.offsets_original();
    if seam <= from || to <= seam {
        return vec![piece];
    }
    let parts = [
        piece.slice(In::Original(0..seam - from)),
        piece.slice(In::Original(seam - from..to - from)),
    ];
    match parts {
        [Some(before), Some(behind)] => vec![before, behind],
        _ => vec![piece],
    }
}

/// Where bytes of a normalised piece lie in the text that is being encoded.
fn original(piece: &NormalizedString, range: Range<usize>) -> Option<Range<usize>> {
    let shift = piece.offsets_original().0;
    let range = piece.convert_offsets(In::Normalized(range))?;
    Some(range.start + shift..range.end + shift)
}

/// The id the model gives to what it does not know, found by asking for a character that no vocabulary has.
fn unknown_id(model: &impl Model) -> Option<u32> {
    const NONCHARACTER: &str = "\u{10FFFF}";
    match model.tokenize(NONCHARACTER).ok()?.as_slice() {
        [token] if model.token_to_id(NONCHARACTER).is_none() => Some(token.id),
        _ => None,
    }
}

fn strips_ends(decoder: &DecoderWrapper) -> bool {
    match decoder {
        DecoderWrapper::Strip(strip) => strip.stop > 0,
        DecoderWrapper::Sequence(sequence) => sequence.get_decoders().iter().any(strips_ends),
        _ => false,
    }
}
