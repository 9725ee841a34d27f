//! A text under search, with the values found in it.
//!
//! The rules read single bytes and short ranges only through [`Scan`]'s methods, each as often as its own limits allow, so that the work
//! is linear in the length of any text. Tests count the bytes that are read.

use std::ops::Range;

use super::normalise::Plain;
use super::rule::RedactionRule;

/// A value that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Find {
    pub rule: RedactionRule,
    /// A range of bytes in the normalised text.
    pub range: Range<usize>,
    /// The value in a canonical form, the same for all its spellings.
    pub value: String,
}

/// A text under search. Values that were found are hidden from later rules, which read zeros in their place.
#[derive(Debug)]
pub(super) struct Scan {
    plain: Plain,
    /// Already hidden, in no particular order.
    found: Vec<Find>,
    /// Not yet hidden.
    fresh: Vec<Find>,
    #[cfg(test)]
    reads: std::cell::Cell<u64>,
}

impl Scan {
    pub fn new(plain: Plain) -> Self {
        Self {
            plain,
            found: Vec::new(),
            fresh: Vec::new(),
            #[cfg(test)]
            reads: std::cell::Cell::new(0),
        }
    }

    /// Returns whether a place in the original is inside an escape.
    pub fn is_inside(&self, original: usize) -> bool {
        self.plain.is_inside(original)
    }

    /// Returns the whole normalised text, for a search that reads each byte once.
    pub fn all(&self) -> &[u8] {
        self.count(self.len());
        &self.plain.bytes
    }

    pub fn len(&self) -> usize {
        self.plain.bytes.len()
    }

    /// Returns the byte at `at`, or zero if there is none.
    #[inline]
    pub fn byte(&self, at: usize) -> u8 {
        self.count(1);
        self.plain.bytes.get(at).copied().unwrap_or(0)
    }

    /// Returns the byte before `at`, or zero if there is none.
    #[inline]
    pub fn before(&self, at: usize) -> u8 {
        at.checked_sub(1).map_or(0, |at| self.byte(at))
    }

    /// Returns the bytes of a range, cut at the end of the text.
    pub fn bytes(&self, range: Range<usize>) -> &[u8] {
        let end = range.end.min(self.len());
        let start = range.start.min(end);
        self.count(end - start);
        &self.plain.bytes[start..end]
    }

    /// Returns whether `word` is at `at`, regardless of case.
    pub fn is(&self, at: usize, word: &str) -> bool {
        self.bytes(at..at + word.len())
            .eq_ignore_ascii_case(word.as_bytes())
    }

    /// Returns the number of consecutive `wanted` bytes from `at`, at most `most`.
    pub fn run(&self, at: usize, most: usize, wanted: impl Fn(u8) -> bool) -> usize {
        (0..most)
            .take_while(|i| wanted(self.byte(at + i)) && at + i < self.len())
            .count()
    }

    /// Returns the number of consecutive `wanted` bytes before `at`, at most `most`.
    pub fn run_before(&self, at: usize, most: usize, wanted: impl Fn(u8) -> bool) -> usize {
        (0..most.min(at))
            .take_while(|i| wanted(self.byte(at - 1 - i)))
            .count()
    }

    /// Returns the character at `at`; none at the end, and inside a character.
    pub fn char_at(&self, at: usize) -> Option<char> {
        let bytes = self.bytes(at..at + 4);
        let text = match std::str::from_utf8(bytes) {
            Ok(text) => text,
            Err(error) => std::str::from_utf8(&bytes[..error.valid_up_to()]).ok()?,
        };
        text.chars().next().filter(|c| *c != '\0')
    }

    /// Returns the character before `at`; none at the start.
    pub fn char_before(&self, at: usize) -> Option<char> {
        let longest = at.min(4);
        (1..=longest).find_map(|back| {
            let c = self.char_at(at - back)?;
            (c.len_utf8() == back).then_some(c)
        })
    }

    /// Returns the next run of digits that starts at `from` or later.
    pub fn digits_from(&self, from: usize) -> Option<Range<usize>> {
        let rest = self.plain.bytes.get(from..)?;
        let skipped = rest.iter().position(u8::is_ascii_digit);
        self.count(skipped.map_or(rest.len(), |skipped| skipped + 1));
        let start = from + skipped?;
        let length = self.run(start, usize::MAX, |byte| byte.is_ascii_digit());
        Some(start..start + length)
    }

    /// Adds a found value. It stays visible until [`Self::hide`].
    pub fn found(&mut self, rule: RedactionRule, range: Range<usize>, value: String) {
        if !range.is_empty() {
            self.fresh.push(Find { rule, range, value });
        }
    }

    /// Adds a found value in its spelling in the text.
    pub fn found_as_is(&mut self, rule: RedactionRule, range: Range<usize>) {
        let value = String::from_utf8_lossy(self.bytes(range.clone())).into_owned();
        self.found(rule, range, value);
    }

    /// Hides a range from all rules without replacing it.
    pub fn skip(&mut self, range: Range<usize>) {
        self.plain.bytes[range].fill(0);
    }

    /// Hides the found values from later rules. Overlapping values become one, with the rule of the longest.
    pub fn hide(&mut self) {
        let mut fresh = std::mem::take(&mut self.fresh);
        fresh.sort_by_key(|find| {
            (
                find.range.start,
                std::cmp::Reverse(find.range.end),
                find.rule,
            )
        });
        let mut united: Vec<(Find, usize)> = Vec::with_capacity(fresh.len());
        for find in fresh {
            let length = find.range.len();
            match united.last_mut() {
                Some((last, longest)) if find.range.start < last.range.end => {
                    let range = last.range.start..last.range.end.max(find.range.end);
                    if length > *longest {
                        *longest = length;
                        *last = find;
                    }
                    last.range = range;
                }
                _ => united.push((find, length)),
            }
        }
        for (find, _) in united {
            self.skip(find.range.clone());
            self.found.push(find);
        }
    }

    /// Returns the values that were found and hidden, with their places in the original.
    pub fn places(&self) -> Vec<(Range<usize>, Find)> {
        let plain = &self.plain;
        let place = |find: &Find| plain.begin(find.range.start)..plain.end(find.range.end);
        self.found
            .iter()
            .map(|find| (place(find), find.clone()))
            .collect()
    }

    #[inline]
    #[cfg_attr(not(test), expect(clippy::unused_self, reason = "tests count"))]
    fn count(&self, bytes: usize) {
        #[cfg(test)]
        self.reads.set(self.reads.get() + bytes as u64);
        #[cfg(not(test))]
        let _ = bytes;
    }

    /// Returns the number of bytes that were read.
    #[cfg(test)]
    pub fn reads(&self) -> u64 {
        self.reads.get()
    }
}

/// Returns whether a byte is part of a word: an ASCII letter, digit or underscore.
pub(super) fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

/// Returns the letters and digits of a value in capitals: the canonical form of a number.
pub(super) fn compact(bytes: &[u8]) -> String {
    bytes
        .iter()
        .filter(|byte| byte.is_ascii_alphanumeric())
        .map(|byte| char::from(byte.to_ascii_uppercase()))
        .collect()
}
