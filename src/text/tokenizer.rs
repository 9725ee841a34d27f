//! The tokenizer: a Hugging Face `tokenizer.json`, with untrusted text kept separate from control tokens.

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
use super::{Detokenizer, OwnTrust, TextError, encoded_parts, tokenizer_bounds};

/// A tokenizer. Cheap to clone, and one instance serves any number of threads.
///
/// Truncation and padding of `tokenizer.json` are not applied, and its post-processor only by [`Tokenizer::add_special_tokens`]: only the
/// text is encoded, and BOS or EOS appear where a template writes them.
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
    /// Control tokens that are in the model's own vocabulary too: a Unigram model encodes `</s>` as the single piece `</s>`, and so does
    /// a BPE model with `ignore_merges`. The unknown token is not among them, since untrusted text may well be unknown.
    spelled_by_model: HashSet<u32>,
    unknown_id: Option<u32>,
    /// Length of the longest token, in bytes.
    longest_token: usize,
    /// Whether a text can be encoded in parts, see [`super::encoded_parts`].
    keeps_seams: bool,
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

    /// Reads a `tokenizer.json` from bytes.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, TextError> {
        Self::parse(bytes, "the given JSON")
    }

    fn parse(bytes: &[u8], origin: &str) -> Result<Self, TextError> {
        let bad = |reason: String| TextError::BadTokenizer {
            origin: origin.to_owned(),
            reason,
        };
        // `tokenizers` panics in some cases if a file has an unexpected structure.
        let hf = catch_unwind(|| tokenizers::Tokenizer::from_bytes(bytes))
            .map_err(|_| bad("it does not have the structure of a tokenizer".to_owned()))?
            .map_err(|e| bad(e.to_string()))?;
        if hf.get_decoder().is_some_and(strips_ends) {
            // `tokenizers` underflows on a token that is shorter than the part to strip.
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
        let keeps_seams =
            encoded_parts::keeps_seams(&hf) && raw.keep_seams() && normalized.keep_seams();
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
            keeps_seams,
            hf,
        })))
    }

    /// Encodes UNTRUSTED text: whatever its contents, no special or other control token results, and none is added. (The unknown token
    /// may, for characters that the vocabulary lacks; never for its name.)
    pub fn encode_text(&self, text: &str) -> Result<Vec<u32>, TextError> {
        self.ids(text, Trust::Nothing)
    }

    /// Encodes TRUSTED text: control tokens written in it are recognised, none is added. The result is exactly that of `tokenizers` with
    /// `add_special_tokens = false`.
    pub fn encode_template(&self, text: &str) -> Result<Vec<u32>, TextError> {
        self.ids(text, Trust::All)
    }

    /// Encodes a prompt as a whole, so that tokens may straddle the seams between frame and contents just as in an encoding of the whole
    /// string, but recognises control tokens only in its trusted bytes.
    ///
    /// # Errors
    /// If the untrusted ranges do not fit the text.
    pub fn encode_rendered(&self, rendered: &Rendered) -> Result<Encoded, TextError> {
        self.encode_parted(rendered, None)
    }

    /// Encodes the text after `seam` (a byte of the text) as the model writes it after the tokens of the text before: no token straddles
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
        self.encode_trusting(&rendered.text, trust, seam)
    }

    /// Encodes a text; only an added token may straddle `seam`.
    pub(super) fn encode_trusting(
        &self,
        text: &str,
        trust: Trust,
        seam: Option<usize>,
    ) -> Result<Encoded, TextError> {
        let len = text.len();
        let encoding = self
            .tokenized(text, trust, seam)?
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

    /// Decodes ids; ids outside the vocabulary are skipped.
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

    /// Returns a decoder that takes one id at a time.
    pub fn detokenizer(&self, skip_special: bool) -> Detokenizer {
        Detokenizer::new(self, skip_special)
    }

    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.0.hf.token_to_id(token)
    }

    pub fn id_to_token(&self, id: u32) -> Option<String> {
        self.0.hf.id_to_token(id)
    }

    /// Returns the number of tokens, including added ones.
    pub fn vocab_size(&self) -> usize {
        self.0.hf.get_vocab_size(true)
    }

    /// Returns the length in bytes of the longest token, in the vocabulary's spelling: no token stands for more bytes of a normalised
    /// text, except for the unknown token.
    pub fn longest_token(&self) -> usize {
        self.0.longest_token
    }

    /// Returns whether a text can be encoded in parts, see [`super::encoded_parts`].
    pub(super) fn keeps_seams(&self) -> bool {
        self.0.keeps_seams
    }

    /// Returns whether an id is a control token, which can therefore not come from untrusted text.
    pub fn is_control(&self, id: u32) -> bool {
        self.0.control_ids.contains(&id)
    }

    /// Returns whether an id marks reasoning or a tool call inside an answer.
    pub fn is_marker(&self, id: u32) -> bool {
        self.0.marker_ids.contains(&id)
    }

    /// Returns whether a caller's text could spell a control token, or an end of one that other text completes.
    pub fn may_spell_control(&self, text: &str) -> bool {
        let added = self.0.hf.get_added_tokens_decoder();
        let control = added.values().filter(|token| is_control(token));
        let mut tokens = control.map(|token| token.content.as_str());
        tokens.any(|token| {
            let mut ends = token.chars().take(1).chain(token.chars().last());
            text.contains(token) || ends.any(|c| !c.is_alphanumeric() && text.contains(c))
        })
    }

    /// Returns whether an id is the unknown token.
    pub(super) fn is_unknown(&self, id: u32) -> bool {
        self.0.unknown_id == Some(id)
    }

    /// Returns the token in the form that the decoder takes, unless the id is unknown or a special token to be skipped.
    pub(super) fn written_token(&self, id: u32, skip_special: bool) -> Option<String> {
        let added = self.0.hf.get_added_vocabulary();
        added
            .simple_id_to_token(id)
            .or_else(|| self.0.hf.get_model().id_to_token(id))
            .filter(|token| !skip_special || !added.is_special_token(token))
    }

    /// Returns whether these ids have any text, special tokens excluded.
    pub fn has_text(&self, ids: &[u32]) -> bool {
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

    /// Runs `tokenizers`' own pipeline over the whole string at once: a prefix space that belongs to the start of the text (Metaspace
    /// "first") or to each span between added tokens (the Prepend normaliser) appears exactly where `tokenizers` puts it.
    ///
    /// `seam`: a byte of the text that only an added token may straddle.
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
    /// Runs the model on one pre-token, but splits control tokens that it would produce for untrusted bytes into smaller pieces.
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

/// Splits a piece at the added tokens found in it.
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

/// Splits a piece at a byte of the encoded text, if it is inside.
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

/// Returns the range in the encoded text of a range of a normalised piece.
fn original(piece: &NormalizedString, range: Range<usize>) -> Option<Range<usize>> {
    let shift = piece.offsets_original().0;
    let range = piece.convert_offsets(In::Normalized(range))?;
    Some(range.start + shift..range.end + shift)
}

/// Returns the id that the model gives to unknown characters, found by tokenizing a character that no vocabulary has.
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
