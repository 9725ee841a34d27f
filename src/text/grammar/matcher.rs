//! The state of one growing text within its grammar.

use std::sync::Arc;

use llguidance::Matcher;
use llguidance::toktrie::SimpleVob;

use super::GrammarError;
use super::env::Vocabulary;

/// The tokens that may come next, and whether the text may end.
#[derive(Debug, Clone)]
pub struct TokenMask {
    /// One bit per token, the lowest first.
    words: Vec<u32>,
    may_end: bool,
}

/// A matcher that follows one text, token by token.
pub struct GrammarMatcher {
    vocabulary: Arc<Vocabulary>,
    matcher: Matcher,
    allowed: TokenMask,
    begun: bool,
}

impl TokenMask {
    /// Creates a mask from `tokens` in llguidance's numbering.
    pub(super) fn new(tokens: &SimpleVob, vocabulary: &Vocabulary) -> Self {
        let size = vocabulary.size;
        let mut words = tokens.as_slice()[..size.div_ceil(32)].to_vec();
        if let Some(last) = words.last_mut().filter(|_| !size.is_multiple_of(32)) {
            *last &= (1 << (size % 32)) - 1;
        }
        Self {
            words,
            may_end: tokens.is_allowed(size as u32),
        }
    }

    /// Creates a mask for the first token of a text.
    pub(super) fn at_the_start(tokens: &SimpleVob, vocabulary: &Vocabulary) -> Self {
        let mut mask = Self::new(tokens, vocabulary);
        let any_later = mask.has_tokens();
        for (id, first) in vocabulary.first.iter().enumerate() {
            let bit = 1 << (id % 32);
            match first.map_or(any_later, |first| tokens.is_allowed(first)) {
                true => mask.words[id / 32] |= bit,
                false => mask.words[id / 32] &= !bit,
            }
        }
        mask
    }

    pub fn allows(&self, id: u32) -> bool {
        let word = self.words.get(id as usize / 32).copied().unwrap_or(0);
        word >> (id % 32) & 1 == 1
    }

    /// Returns whether any token is allowed.
    pub fn has_tokens(&self) -> bool {
        self.words.iter().any(|&word| word != 0)
    }

    /// Returns whether the text so far is complete.
    pub fn may_end(&self) -> bool {
        self.may_end
    }

    /// Sets the logit of every disallowed token to −∞.
    pub fn apply(&self, logits: &mut [f32]) {
        for (logits, &word) in logits.chunks_mut(32).zip(&self.words) {
            match word {
                0 => logits.fill(f32::NEG_INFINITY),
                u32::MAX => {}
                word => {
                    for (bit, logit) in logits.iter_mut().enumerate() {
                        if word >> bit & 1 == 0 {
                            *logit = f32::NEG_INFINITY;
                        }
                    }
                }
            }
        }
    }
}

impl GrammarMatcher {
    /// Creates a matcher. `begun`: whether the text continues another one.
    pub(super) fn new(
        vocabulary: Arc<Vocabulary>,
        matcher: Matcher,
        allowed: TokenMask,
        begun: bool,
    ) -> Self {
        Self {
            vocabulary,
            matcher,
            allowed,
            begun,
        }
    }

    /// Returns the tokens allowed next.
    pub fn allowed(&self) -> &TokenMask {
        &self.allowed
    }

    /// Returns whether the text is complete and no token is allowed.
    pub fn is_complete(&self) -> bool {
        self.allowed.may_end() && !self.allowed.has_tokens()
    }

    /// Takes the next token of the text.
    ///
    /// # Errors
    /// If the token was not allowed, the grammar takes too much work to follow, or no token continues it. The text can then not be
    /// continued.
    pub fn accept(&mut self, token: u32) -> Result<(), GrammarError> {
        if !self.allowed.allows(token) {
            return Err(GrammarError::NotAllowed(token));
        }
        let added = match self.begun {
            true => Some(token),
            false => self.vocabulary.first[token as usize],
        };
        self.begun = true;
        if let Some(added) = added {
            let consumed = self.matcher.consume_token(added);
            consumed.map_err(GrammarError::failed)?;
        }
        let tokens = self
            .matcher
            .compute_mask_or_eos()
            .map_err(GrammarError::failed)?;
        self.allowed = TokenMask::new(&tokens, &self.vocabulary);
        match self.allowed.may_end() || self.allowed.has_tokens() {
            true => Ok(()),
            false => Err(GrammarError::DeadEnd),
        }
    }
}

impl std::fmt::Debug for GrammarMatcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GrammarMatcher").finish_non_exhaustive()
    }
}
