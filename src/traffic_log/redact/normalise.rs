//! Normalisation of spellings: characters that look alike become one, with a map back to the places in the original text.
//!
//! Full-width and other compatible forms become ASCII (Unicode's NFKC), digits of all scripts `0` to `9`, dashes `-`, spaces a space;
//! invisible characters and combining marks are removed. All other characters are unchanged. A text with escapes is read a second time,
//! with the escapes replaced by their characters.

use unicode_normalization::char::decompose_compatible;

use super::{digits, escapes};

/// A normalised text, as the rules read it.
#[derive(Debug)]
pub(super) struct Plain {
    /// UTF-8.
    pub bytes: Vec<u8>,
    /// The origins of the parts of the text, in order; empty if it equals the original.
    spans: Vec<Span>,
    /// The length of the original in bytes.
    original: usize,
}

/// A part of a normalised text: a run of copied bytes, or the replacement of one character.
#[derive(Debug)]
struct Span {
    plain: usize,
    original: usize,
    copied: bool,
}

impl Plain {
    /// Normalises a text, with escapes unchanged.
    pub fn new(text: &str) -> Self {
        if text.is_ascii() {
            return Self {
                bytes: text.as_bytes().to_vec(),
                spans: Vec::new(),
                original: text.len(),
            };
        }
        Self::read(text, |_| None)
    }

    /// Normalises a text with its [escapes] replaced by their characters; none if it has no escapes.
    pub fn unescaped(text: &str) -> Option<Self> {
        let bytes = text.as_bytes();
        let escape = |at: usize| match escapes::may_begin(bytes[at]) {
            true => escapes::read(&bytes[at..]),
            false => None,
        };
        let has_one = (0..bytes.len()).any(|at| escape(at).is_some());
        has_one.then(|| Self::read(text, escape))
    }

    /// Normalises a text; `escape` returns the character of an escape at a place, and the escape's length.
    fn read(text: &str, escape: impl Fn(usize) -> Option<(char, usize)>) -> Self {
        let original = text.len();
        let mut plain = Self {
            bytes: Vec::with_capacity(original),
            spans: Vec::new(),
            original,
        };
        let mut copying = false;
        let mut at = 0;
        while let Some(c) = text[at..].chars().next() {
            let (c, length, escaped) = match escape(at) {
                Some((c, length)) => (c, length, true),
                None => (c, c.len_utf8(), false),
            };
            let span = |copied| Span {
                plain: plain.bytes.len(),
                original: at,
                copied,
            };
            match spelling(c) {
                Spelling::Itself if escaped => {
                    plain.spans.push(span(false));
                    copying = false;
                    let mut utf_8 = [0; 4];
                    let spelled = c.encode_utf8(&mut utf_8);
                    plain.bytes.extend_from_slice(spelled.as_bytes());
                }
                Spelling::Itself => {
                    if !copying {
                        plain.spans.push(span(true));
                    }
                    copying = true;
                    plain
                        .bytes
                        .extend_from_slice(&text.as_bytes()[at..at + length]);
                }
                Spelling::Nothing => copying = false,
                Spelling::Ascii(spelled, length) => {
                    plain.spans.push(span(false));
                    copying = false;
                    plain.bytes.extend_from_slice(&spelled[..length]);
                }
            }
            at += length;
        }
        plain
    }

    /// Returns whether a place in the original is inside a replaced character, such as an escape.
    pub fn is_inside(&self, original: usize) -> bool {
        let after = self.spans.partition_point(|span| span.original < original);
        let Some(span) = after.checked_sub(1).and_then(|at| self.spans.get(at)) else {
            return false;
        };
        let next = self.spans.get(after);
        !span.copied && next.map_or(self.original, |next| next.original) > original
    }

    /// Returns the place in the original of the byte at `at`.
    pub fn begin(&self, at: usize) -> usize {
        match self.span(at) {
            None if self.spans.is_empty() => at,
            None => self.original,
            Some((_, span)) if span.copied => span.original + at - span.plain,
            Some((_, span)) => span.original,
        }
    }

    /// Returns the end in the original of a part that ends at `end`.
    pub fn end(&self, end: usize) -> usize {
        match self.span(end.saturating_sub(1)) {
            None if self.spans.is_empty() => end,
            None => self.original,
            Some((_, span)) if span.copied => span.original + end - span.plain,
            Some((place, _)) => self
                .spans
                .get(place + 1)
                .map_or(self.original, |next| next.original),
        }
    }

    fn span(&self, at: usize) -> Option<(usize, &Span)> {
        let after = self.spans.partition_point(|span| span.plain <= at);
        let place = after.checked_sub(1)?;
        Some((place, &self.spans[place]))
    }
}

enum Spelling {
    Itself,
    Nothing,
    /// The given number of these bytes.
    Ascii([u8; 4], usize),
}

fn spelling(c: char) -> Spelling {
    if c.is_ascii() {
        return Spelling::Itself;
    }
    let ascii = |byte: u8| Spelling::Ascii([byte, 0, 0, 0], 1);
    match c {
        // Soft hyphen, joiners, directions, tags, variation selectors, combining marks, keycaps.
        '\u{ad}'
        | '\u{300}'..='\u{36f}'
        | '\u{61c}'
        | '\u{180e}'
        | '\u{200b}'..='\u{200f}'
        | '\u{202a}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}'
        | '\u{20e3}'
        | '\u{fe00}'..='\u{fe0f}'
        | '\u{feff}'
        | '\u{e0000}'..='\u{e01ef}' => return Spelling::Nothing,
        '\u{2010}'..='\u{2015}'
        | '\u{2043}'
        | '\u{2212}'
        | '\u{30fc}'
        | '\u{ff70}'
        | '\u{fe58}' => {
            return ascii(b'-');
        }
        '\u{85}' | '\u{2028}' | '\u{2029}' => return ascii(b'\n'),
        '\u{3002}' | '\u{ff61}' | '\u{b7}' | '\u{2022}' | '\u{30fb}' => return ascii(b'.'),
        '\u{2018}'..='\u{201b}' => return ascii(b'\''),
        '\u{201c}'..='\u{201f}' => return ascii(b'"'),
        '\u{2044}' | '\u{2215}' => return ascii(b'/'),
        _ if c.is_whitespace() => return ascii(b' '),
        _ => {}
    }
    if let Some(digit) = digits::value(c) {
        return ascii(b'0' + digit);
    }
    let (mut spelled, mut length, mut is_ascii) = ([0; 4], 0, true);
    decompose_compatible(c, |part| match u8::try_from(part) {
        Ok(byte) if byte.is_ascii() && length < spelled.len() => {
            spelled[length] = byte;
            length += 1;
        }
        _ => is_ascii = false,
    });
    match is_ascii {
        true => Spelling::Ascii(spelled, length),
        false => Spelling::Itself,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_looks_alike_is_spelled_alike() {
        for (text, expected) in [
            ("plain", "plain"),
            ("４１１１　ＡＢ", "4111 AB"),
            ("٤١\u{a0}१२", "41 12"),
            ("1\u{2011}2\u{2013}3\u{2212}4", "1-2-3-4"),
            ("4\u{200b}1\u{ad}1", "411"),
            ("ann＠example。org", "ann@example.org"),
            ("䷀ ΑΒ münchen", "䷀ ΑΒ münchen"),
            ("𝟒𝟏 ①", "41 1"),
            // Sinhala, Shan, Vai, Tai Tham, Osmanya.
            ("\u{de7}\u{1092}\u{a623}\u{1a84}\u{104a5}", "12345"),
        ] {
            let plain = Plain::new(text);
            assert_eq!(String::from_utf8_lossy(&plain.bytes), expected);
        }
    }

    #[test]
    fn escapes_lead_back_to_the_original() {
        assert!(Plain::unescaped("no escape, 100% sure & [a]").is_none());
        let text = r"é\u0040b.\u0661%20x&nbsp;y";
        let plain = Plain::unescaped(text).unwrap();
        assert_eq!(String::from_utf8_lossy(&plain.bytes), "é@b.1 x y");
        for (part, expected) in [
            ("@b.", r"\u0040b."),
            ("1 ", r"\u0661%20"),
            ("x ", "x&nbsp;"),
        ] {
            let bytes = String::from_utf8(plain.bytes.clone()).unwrap();
            let at = bytes.find(part).unwrap();
            let range = plain.begin(at)..plain.end(at + part.len());
            assert_eq!(&text[range], expected);
        }
        let inside: Vec<bool> = (0..10).map(|at| plain.is_inside(at)).collect();
        assert_eq!(inside[..3], [false, false, false]);
        assert_eq!(inside[3..8], [true; 5]);
        assert!(!inside[8]);
    }

    #[test]
    fn every_place_leads_back_to_the_original() {
        let text = "é \u{200b}４１\u{200b}1x ㏒ü";
        let plain = Plain::new(text);
        let bytes = String::from_utf8(plain.bytes.clone()).unwrap();
        for (part, expected) in [
            ("411", "４１\u{200b}1"),
            ("log", "㏒"),
            ("ü", "ü"),
            ("é", "é"),
        ] {
            let at = bytes.find(part).unwrap();
            let range = plain.begin(at)..plain.end(at + part.len());
            assert_eq!(&text[range], expected);
        }
        assert_eq!(plain.end(bytes.len()), text.len());
        // A part of a replaced character maps to the whole character.
        let at = bytes.find("og").unwrap();
        assert_eq!(&text[plain.begin(at)..plain.end(at + 1)], "㏒");
    }
}
