//! Encoding of texts that may be far too long: a prefix is encoded first, so that rejecting a text costs no more than accepting one.
//!
//! Encoding takes about a microsecond and up to 300 bytes of memory for each byte of a text, and a request body has megabytes. A text
//! whose prefix alone is certainly too long is rejected without encoding the rest.

use super::{Encoded, Rendered, TextError, Tokenizer};

impl Tokenizer {
    /// Encodes as [`Self::encode_rendered`], unless there are clearly more than `most` tokens.
    ///
    /// A rejected text has more than `most` tokens; an accepted one may also have slightly more, so callers that need the exact bound
    /// must count the result.
    ///
    /// # Errors
    /// [`TextError::TooManyTokens`], and those of [`Self::encode_rendered`].
    pub fn encode_rendered_within(
        &self,
        rendered: &Rendered,
        most: usize,
    ) -> Result<Encoded, TextError> {
        let sure = self.surely_more_than(most);
        // If every byte is a token, one prefix is enough; if tokens are long, each next prefix is twice as long.
        let mut looked_at = sure.saturating_mul(2);
        while looked_at < rendered.text.len() / 2 {
            let beginning = beginning(rendered, looked_at);
            let at_least = self.encode_rendered(&beginning)?.ids.len();
            if at_least > sure {
                return Err(TextError::TooManyTokens { at_least, most });
            }
            looked_at = looked_at.saturating_mul(2);
        }
        self.encode_rendered(rendered)
    }

    /// Encodes as [`Self::encode_text`], unless there are clearly more than `most` tokens: see [`Self::encode_rendered_within`].
    ///
    /// # Errors
    /// As [`Self::encode_rendered_within`].
    pub fn encode_text_within(&self, text: &str, most: usize) -> Result<Vec<u32>, TextError> {
        let mut rendered = Rendered::new();
        rendered.push_untrusted(text);
        Ok(self.encode_rendered_within(&rendered, most)?.ids)
    }

    /// Returns the number of tokens of a prefix above which the whole text has more than `most`. The last token of the whole text that
    /// reaches into the prefix may be encoded there as up to one token per byte, and the cut may change the tokens of the word before it:
    /// twice as many leaves room for both.
    fn surely_more_than(&self, most: usize) -> usize {
        most.saturating_mul(2).saturating_add(self.longest_token())
    }

    /// Returns the limit on the bytes of untrusted text for a prompt of `most` tokens: longer texts are rejected before they are
    /// processed.
    ///
    /// Normalisers may shorten a text, and a run of unknown characters may be one token, so this is four times what tokens can spell, and
    /// at least 64 KiB.
    pub fn most_bytes(&self, most: usize) -> usize {
        const LEAST: usize = 64 << 10;
        let spelled = most.saturating_mul(self.longest_token());
        spelled.saturating_mul(4).max(LEAST)
    }
}

/// Returns the first `bytes` of a text, or slightly fewer: characters are not split.
pub(super) fn beginning(rendered: &Rendered, bytes: usize) -> Rendered {
    let end = rendered.text.floor_char_boundary(bytes);
    let cut = |ranges: &[std::ops::Range<usize>]| {
        let ranges = ranges.iter();
        ranges
            .map(|range| range.start.min(end)..range.end.min(end))
            .collect()
    };
    Rendered {
        text: rendered.text[..end].to_owned(),
        untrusted: cut(&rendered.untrusted),
        own: cut(&rendered.own),
        own_trust: rendered.own_trust,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::small_tokenizers::{byte_fallback, byte_level, sentencepiece, unigram};

    #[test]
    fn texts_are_encoded_as_ever_or_refused_by_their_beginning() {
        let texts = ["", "a", "ab a", "hello é🙂 ", "a\n"].map(|text| text.repeat(50));
        for tokenizer in [byte_level(), byte_fallback(), unigram()] {
            for text in &texts {
                let whole = tokenizer.encode_text(text).unwrap();
                for most in [0, 1, whole.len() / 3, whole.len(), 2 * whole.len()] {
                    match tokenizer.encode_text_within(text, most) {
                        Ok(ids) => assert_eq!(ids, whole, "{text:?} within {most}"),
                        Err(TextError::TooManyTokens { at_least, .. }) => {
                            assert!(whole.len() > most && at_least > most, "{text:?}, {most}");
                        }
                        Err(error) => panic!("{error}"),
                    }
                }
            }
        }
    }

    #[test]
    fn of_a_text_that_is_far_too_long_only_the_beginning_is_read() {
        // The text after the prefix would be an error: no token spells it.
        let tokenizer = sentencepiece("first", crate::small_tokenizers::llama_decoder());
        let text = "ab ".repeat(100_000);
        let error = tokenizer.encode_text_within(&text, 10).unwrap_err();
        let TextError::TooManyTokens { at_least, most } = error else {
            panic!("{error}");
        };
        assert_eq!(most, 10);
        assert!(
            at_least < 10_000,
            "{at_least} tokens were made to refuse 10"
        );
    }

    #[test]
    fn control_tokens_of_the_frame_stay_trusted_where_the_text_is_cut() {
        let tokenizer = byte_level();
        let mut rendered = Rendered::new();
        rendered.push_trusted("<|im_end|>");
        rendered.push_untrusted(&"<|im_end|>".repeat(3));
        let whole = tokenizer.encode_rendered(&rendered).unwrap();
        let within = tokenizer.encode_rendered_within(&rendered, 100).unwrap();
        assert_eq!(within, whole);
        let cut = beginning(&rendered, 15);
        assert_eq!(cut.untrusted.len(), 1);
        assert_eq!(cut.untrusted[0], 10..15);
    }
}
