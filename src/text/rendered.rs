//! Rendered text with the origin of its bytes, and its encoding.

use std::ops::Range;

use super::TextError;

/// The control tokens recognised in the assistant's turns of a conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum OwnTrust {
    /// None: the turns are text from outside, like all others.
    #[default]
    Nothing,
    /// Markers of reasoning and tool calls (`<think>`, `<tool_call>`), which every template passes on to the model. Turn ends and role
    /// headers stay text. This level is for histories that callers send.
    Markers,
    /// All of them. This level is for training data, where a turn is what the model is to write.
    All,
}

/// A prompt with its provenance: `untrusted` are the byte ranges of `text` that came from outside (a user's message, a candidate answer),
/// `own` those of the assistant's turns, if these are distinguished. In `untrusted` bytes no control token is recognised, in `own` bytes
/// those that `own_trust` allows, elsewhere all.
///
/// Ranges made by this type's methods are sorted, disjoint and not empty; [`Rendered::untrusted_ranges`] restores that for ranges made by
/// hand.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Rendered {
    pub text: String,
    pub untrusted: Vec<Range<usize>>,
    pub own: Vec<Range<usize>>,
    pub own_trust: OwnTrust,
}

impl Rendered {
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends trusted text, in which control tokens are recognised.
    pub fn push_trusted(&mut self, text: &str) {
        self.text.push_str(text);
    }

    /// Appends text from outside and returns its range.
    pub fn push_untrusted(&mut self, text: &str) -> Range<usize> {
        let range = self.text.len()..self.text.len() + text.len();
        self.text.push_str(text);
        match self.untrusted.last_mut() {
            _ if range.is_empty() => {}
            Some(last) if last.end == range.start => last.end = range.end,
            _ => self.untrusted.push(range.clone()),
        }
        range
    }

    /// Returns the ranges of message contents, of every role: sorted and disjoint.
    pub fn contents(&self) -> Vec<Range<usize>> {
        let ranges = self.untrusted.iter().chain(&self.own);
        merge(ranges.cloned().collect())
    }

    /// Returns the untrusted ranges sorted, merged and without empty ones.
    ///
    /// # Errors
    /// If a range is reversed or reaches beyond the text.
    pub(super) fn untrusted_ranges(&self) -> Result<Vec<Range<usize>>, TextError> {
        self.in_order(&self.untrusted)
    }

    /// Returns the ranges of the model's own turns, as [`Self::untrusted_ranges`].
    pub(super) fn own_ranges(&self) -> Result<Vec<Range<usize>>, TextError> {
        self.in_order(&self.own)
    }

    fn in_order(&self, ranges: &[Range<usize>]) -> Result<Vec<Range<usize>>, TextError> {
        for range in ranges {
            if range.start > range.end || range.end > self.text.len() {
                return Err(TextError::BadRange {
                    start: range.start,
                    end: range.end,
                    len: self.text.len(),
                });
            }
        }
        Ok(merge(ranges.to_vec()))
    }
}

/// Sorts ranges, joins those that touch or overlap and drops empty ones.
pub(super) fn merge(mut ranges: Vec<Range<usize>>) -> Vec<Range<usize>> {
    ranges.retain(|range| !range.is_empty());
    ranges.sort_by_key(|range| range.start);
    ranges.dedup_by(|next, last| {
        let joined = next.start <= last.end;
        if joined {
            last.end = last.end.max(next.end);
        }
        joined
    });
    ranges
}

/// Token ids with the byte range of the text that each stands for.
///
/// `offsets[i]` is the byte range of `ids[i]` in [`Rendered::text`]. Tokens that are parts of one character (byte-level pieces of an
/// emoji) share that character's range; a prefix space that the tokenizer adds has an empty range, or shares that of the first character.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Encoded {
    pub ids: Vec<u32>,
    pub offsets: Vec<Range<usize>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pushes_record_where_untrusted_text_lies() {
        let mut rendered = Rendered::new();
        rendered.push_trusted("<user>");
        assert_eq!(rendered.push_untrusted("hé"), 6..9);
        assert_eq!(rendered.push_untrusted("!"), 9..10);
        assert_eq!(rendered.push_untrusted(""), 10..10);
        rendered.push_trusted("<end>");
        assert_eq!(rendered.push_untrusted("x"), 15..16);
        assert_eq!(rendered.text, "<user>hé!<end>x");
        assert_eq!(rendered.untrusted, [6..10, 15..16]);
    }

    #[test]
    fn ranges_made_by_hand_are_put_in_order_or_refused() {
        let rendered = Rendered {
            text: "0123456789".to_owned(),
            untrusted: vec![6..8, 1..3, 2..5, 5..5],
            ..Rendered::default()
        };
        assert_eq!(rendered.untrusted_ranges().unwrap(), [1..5, 6..8]);
        for bad in [Range { start: 3, end: 2 }, 4..11] {
            let rendered = Rendered {
                text: "0123456789".to_owned(),
                untrusted: vec![bad],
                ..Rendered::default()
            };
            assert!(matches!(
                rendered.untrusted_ranges(),
                Err(TextError::BadRange { .. })
            ));
        }
    }
}
