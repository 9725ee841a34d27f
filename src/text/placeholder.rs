//! Placeholders: they reveal the origin of every rendered character although a template is an arbitrary program.
//!
//! A template is rendered over contents in which every character is replaced by a private-use character that stands for it. Whatever the
//! template concatenates, cuts, trims or repeats, a placeholder in its output came from a message, and replacing placeholders by their
//! characters gives the text. Lengths in characters do not change. White space, quotes, backslashes and control characters stand for
//! themselves, so that trimming and `tojson` work.

use std::collections::HashMap;
use std::ops::Range;

use super::TextError;
use super::rendered::merge;

/// The private-use planes: texts hardly ever use their characters, and if one does, they are replaced like all others.
const PLANES: [Range<u32>; 2] = [0xF_0000..0xF_FFFE, 0x10_0000..0x10_FFFE];

/// The origin of a content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// A caller or a user.
    Outside,
    /// The model, if its turns are distinguished.
    Own,
}

/// Characters and their placeholders; each origin has its own alphabet.
pub(super) struct Placeholders {
    outside: Alphabet,
    own: Alphabet,
    meant: HashMap<char, (char, Origin)>,
}

struct Alphabet {
    ascii: [Option<char>; 128],
    others: HashMap<char, char>,
}

impl Alphabet {
    fn new() -> Self {
        Self {
            ascii: [None; 128],
            others: HashMap::new(),
        }
    }

    fn of(&self, c: char) -> Option<char> {
        match self.ascii.get(c as usize) {
            Some(placeholder) => *placeholder,
            None => self.others.get(&c).copied(),
        }
    }

    fn set(&mut self, c: char, placeholder: char) {
        match self.ascii.get_mut(c as usize) {
            Some(slot) => *slot = Some(placeholder),
            None => {
                self.others.insert(c, placeholder);
            }
        }
    }
}

/// Returns whether a character stands for itself. None of these can be a control token alone, and templates trim, split and escape at
/// them.
fn stands_for_itself(c: char) -> bool {
    c.is_whitespace() || c.is_control() || c == '"' || c == '\\'
}

impl Placeholders {
    /// Creates placeholders for all characters of `contents`, none of which occurs in `frame`.
    ///
    /// # Errors
    /// If there are more than about 131,000 different characters.
    pub(super) fn for_contents<'a>(
        contents: impl IntoIterator<Item = (&'a str, Origin)>,
        frame: impl Fn(char) -> bool,
    ) -> Result<Self, TextError> {
        let mut free = PLANES
            .into_iter()
            .flatten()
            .filter_map(char::from_u32)
            .filter(|&c| !frame(c));
        let mut placeholders = Self {
            outside: Alphabet::new(),
            own: Alphabet::new(),
            meant: HashMap::new(),
        };
        for (content, origin) in contents {
            for c in content.chars() {
                if stands_for_itself(c) || placeholders.alphabet(origin).of(c).is_some() {
                    continue;
                }
                let placeholder = free
                    .next()
                    .ok_or(TextError::TooManyCharacters(placeholders.meant.len()))?;
                match origin {
                    Origin::Outside => placeholders.outside.set(c, placeholder),
                    Origin::Own => placeholders.own.set(c, placeholder),
                }
                placeholders.meant.insert(placeholder, (c, origin));
            }
        }
        Ok(placeholders)
    }

    /// Returns whether there is no placeholder.
    pub(super) fn is_empty(&self) -> bool {
        self.meant.is_empty()
    }

    fn alphabet(&self, origin: Origin) -> &Alphabet {
        match origin {
            Origin::Outside => &self.outside,
            Origin::Own => &self.own,
        }
    }

    /// Returns a content with its characters replaced, except in occurrences of the `readable` strings.
    pub(super) fn replace<'r>(
        &self,
        content: &str,
        origin: Origin,
        readable: impl IntoIterator<Item = &'r str>,
    ) -> String {
        let kept: Vec<Range<usize>> = readable
            .into_iter()
            .flat_map(|literal| occurrences(content, literal))
            .collect();
        let mut kept = merge(kept).into_iter().peekable();
        let mut out = String::with_capacity(content.len() * 4);
        for (at, c) in content.char_indices() {
            while kept.peek().is_some_and(|range| range.end <= at) {
                kept.next();
            }
            let keep = kept.peek().is_some_and(|range| range.start <= at);
            let placeholder = if keep {
                None
            } else {
                self.alphabet(origin).of(c)
            };
            out.push(placeholder.unwrap_or(c));
        }
        out
    }

    /// Returns the text of a rendering, with placeholders replaced by their characters.
    pub(super) fn restore(&self, marked: &str) -> String {
        marked
            .chars()
            .map(|c| self.meant.get(&c).map_or(c, |&(meant, _)| meant))
            .collect()
    }

    /// Returns the ranges of one origin's contents in [`Placeholders::restore`]d text: placeholders, self-standing characters between two
    /// of them, and adjacent quotes and the like. White space at the ends is excluded: it may belong to the frame.
    pub(super) fn ranges(&self, marked: &str, origin: Origin) -> Vec<Range<usize>> {
        let mut ranges: Vec<Range<usize>> = Vec::new();
        let mut at = 0;
        let mut frame_spoke = true; // since the last placeholder
        let mut lead = None; // where quotes began, since the last text of the frame
        for c in marked.chars() {
            let stands_for = self.meant.get(&c).copied();
            let start = at;
            at += stands_for.map_or(c, |(meant, _)| meant).len_utf8();
            let meant = stands_for.filter(|&(_, by)| by == origin);
            match (meant, ranges.last_mut()) {
                (Some(_), Some(last)) if !frame_spoke => last.end = at,
                (Some(_), _) => ranges.push(lead.unwrap_or(start)..at),
                (None, _) if !stands_for_itself(c) => {
                    (frame_spoke, lead) = (true, None);
                    continue;
                }
                (None, _) if c.is_whitespace() => continue,
                (None, Some(last)) if !frame_spoke => last.end = at,
                (None, _) => lead = lead.or(Some(start)),
            }
            if meant.is_some() {
                (frame_spoke, lead) = (false, None);
            }
        }
        ranges
    }
}

/// Returns every occurrence of `literal`, including overlapping ones.
pub(super) fn occurrences(text: &str, literal: &str) -> Vec<Range<usize>> {
    let mut found = Vec::new();
    let mut from = 0;
    while let Some(at) = text[from..].find(literal).filter(|_| !literal.is_empty()) {
        let start = from + at;
        found.push(start..start + literal.len());
        from = start + literal.chars().next().map_or(1, char::len_utf8);
    }
    found
}

/// Returns whether a template could distinguish a content with placeholders from the content by this literal.
pub(super) fn is_telling(literal: &str) -> bool {
    !literal.chars().all(stands_for_itself)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_replaced_comes_back_and_is_located() {
        let contents = ["  hé \"x\"\n", "</think>b\u{F0000}"];
        let outside = contents.map(|content| (content, Origin::Outside));
        let placeholders = Placeholders::for_contents(outside, |c| c == '\u{F0001}').unwrap();
        let marked: Vec<String> = contents
            .iter()
            .map(|c| placeholders.replace(c, Origin::Outside, []))
            .collect();
        assert!(
            !marked
                .concat()
                .contains(['h', 'é', 'x', '<', 'b', '\u{F0001}'])
        );
        assert_eq!(
            marked[0].chars().count(),
            contents[0].chars().count(),
            "lengths stay"
        );
        let rendered = format!("<u>{}<a>{}<e>", marked[0].trim(), marked[1]);
        let text = placeholders.restore(&rendered);
        assert_eq!(text, "<u>hé \"x\"<a></think>b\u{F0000}<e>");
        let ranges = placeholders.ranges(&rendered, Origin::Outside);
        assert!(placeholders.ranges(&rendered, Origin::Own).is_empty());
        let parts: Vec<&str> = ranges.into_iter().map(|range| &text[range]).collect();
        assert_eq!(parts, ["hé \"x\"", "</think>b\u{F0000}"]);
    }

    #[test]
    fn readable_literals_stay() {
        let content = ("a<b><b>c", Origin::Own);
        let placeholders = Placeholders::for_contents([content], |_| false).unwrap();
        let marked = placeholders.replace("a<b><b>c", Origin::Own, ["<b>", "><"]);
        assert!(marked.contains("<b><b>") && !marked.contains('a') && !marked.contains('c'));
        assert_eq!(placeholders.restore(&marked), "a<b><b>c");
        assert_eq!(occurrences("aaa", "aa"), [0..2, 1..3]);
        assert!(occurrences("aaa", "").is_empty());
        assert_eq!(occurrences("éé", "é"), [0..2, 2..4]);
    }
}
