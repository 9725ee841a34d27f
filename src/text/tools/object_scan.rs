//! An incremental scan for the members of a JSON object whose text comes in pieces: it reports the ranges of keys and values as soon as
//! they are certain.
//!
//! Only the brackets, quotes and commas of the object are examined; the code that reads a value must check that it is JSON.

use std::ops::Range;

/// The progress of an object's scan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Progress {
    /// The end has not been reached.
    Open,
    /// The object ends before this byte.
    Done(usize),
    /// The character at this byte is invalid there.
    Broken(usize),
}

/// A scan of one object.
#[derive(Debug, Default)]
pub(super) struct ObjectScan {
    /// Number of scanned bytes.
    at: usize,
    stage: Stage,
    /// Keys with their quotes, and values.
    members: Vec<(Range<usize>, Range<usize>)>,
    key: Range<usize>,
}

#[derive(Debug, Default, Clone, Copy)]
enum Stage {
    #[default]
    Start,
    /// Before a key; before the first one the object may end.
    Key {
        first: bool,
    },
    InKey {
        escaped: bool,
    },
    Colon,
    Value,
    InValue(Inside),
    /// After a value.
    Next,
    Ended(Progress),
}

/// The state within a value.
#[derive(Debug, Clone, Copy)]
struct Inside {
    start: usize,
    kind: Kind,
    /// Number of open brackets.
    depth: usize,
    in_string: bool,
    escaped: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Text,
    Brackets,
    /// A number or a word.
    Scalar,
}

impl ObjectScan {
    /// Scans the new part of `text`, which begins as in all calls before.
    pub fn look(&mut self, text: &str) -> Progress {
        self.feed(&text[self.at..])
    }

    /// Scans the next piece of the text. Positions in the result are bytes of the whole text.
    pub fn feed(&mut self, more: &str) -> Progress {
        let from = self.at;
        for (at, &byte) in more.as_bytes().iter().enumerate() {
            if let Stage::Ended(progress) = self.stage {
                return progress;
            }
            self.take(from + at, byte);
            self.at = from + at + 1;
        }
        match self.stage {
            Stage::Ended(progress) => progress,
            _ => Progress::Open,
        }
    }

    /// Returns the number of scanned bytes.
    pub fn at(&self) -> usize {
        self.at
    }

    /// Returns the first key, with its quotes, once it is complete.
    pub fn first_key(&self) -> Option<Range<usize>> {
        let first = self.members.first().map(|(key, _)| key);
        first.or(Some(&self.key)).filter(|key| key.end > 0).cloned()
    }

    /// Returns the complete members.
    pub fn members(&self) -> &[(Range<usize>, Range<usize>)] {
        &self.members
    }

    /// Returns the key of the value that is being scanned, and the start of the value.
    pub fn open_value(&self) -> Option<(Range<usize>, usize)> {
        match self.stage {
            Stage::InValue(inside) => Some((self.key.clone(), inside.start)),
            _ => None,
        }
    }

    fn take(&mut self, at: usize, byte: u8) {
        let broken = Stage::Ended(Progress::Broken(at));
        let space = matches!(byte, b' ' | b'\t' | b'\n' | b'\r');
        self.stage = match (self.stage, byte) {
            (Stage::Start, b'{') => Stage::Key { first: true },
            (Stage::InKey { escaped: false }, b'"') => {
                self.key.end = at + 1;
                Stage::Colon
            }
            (Stage::InKey { escaped }, byte) => Stage::InKey {
                escaped: !escaped && byte == b'\\',
            },
            (Stage::InValue(inside), byte) => return self.inside(inside, at, byte),
            (stage, _) if space && !matches!(stage, Stage::Start) => stage,
            (Stage::Key { .. }, b'"') => {
                self.key = at..0;
                Stage::InKey { escaped: false }
            }
            (Stage::Key { first: true }, b'}') | (Stage::Next, b'}') => {
                Stage::Ended(Progress::Done(at + 1))
            }
            (Stage::Colon, b':') => Stage::Value,
            (Stage::Next, b',') => Stage::Key { first: false },
            (Stage::Value, byte) => match begun(at, byte) {
                Some(inside) => Stage::InValue(inside),
                None => broken,
            },
            _ => broken,
        };
    }

    /// Takes a byte of a value, or the one after a scalar.
    fn inside(&mut self, mut inside: Inside, at: usize, byte: u8) {
        let mut ended = None;
        match (inside.in_string, byte) {
            (true, b'"') if !inside.escaped => {
                inside.in_string = false;
                ended = (inside.kind == Kind::Text).then_some(at + 1);
            }
            (true, byte) => inside.escaped = !inside.escaped && byte == b'\\',
            (false, b',' | b'}' | b' ' | b'\n' | b'\r' | b'\t') if inside.kind == Kind::Scalar => {
                self.end_value(inside.start..at);
                return self.take(at, byte);
            }
            (false, b'"') if inside.kind == Kind::Brackets => inside.in_string = true,
            (false, b'{' | b'[') => inside.depth += 1,
            (false, b'}' | b']') => {
                inside.depth = inside.depth.saturating_sub(1);
                ended = (inside.depth == 0).then_some(at + 1);
            }
            (false, _) => {}
        }
        match ended {
            Some(end) => self.end_value(inside.start..end),
            None => self.stage = Stage::InValue(inside),
        }
    }

    fn end_value(&mut self, value: Range<usize>) {
        self.members.push((self.key.clone(), value));
        self.stage = Stage::Next;
    }
}

/// Returns the state of a value that begins with this byte.
fn begun(start: usize, byte: u8) -> Option<Inside> {
    let kind = match byte {
        b'"' => Kind::Text,
        b'{' | b'[' => Kind::Brackets,
        b'-' | b'0'..=b'9' | b't' | b'f' | b'n' => Kind::Scalar,
        _ => return None,
    };
    Some(Inside {
        start,
        kind,
        depth: usize::from(kind == Kind::Brackets),
        in_string: kind == Kind::Text,
        escaped: false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the members and the progress, which are the same for any split of the text.
    fn scanned(text: &str) -> (Vec<(&str, &str)>, Progress) {
        let mut whole = ObjectScan::default();
        let progress = whole.look(text);
        for cut in (0..text.len()).filter(|&cut| text.is_char_boundary(cut)) {
            let mut halves = ObjectScan::default();
            halves.look(&text[..cut]);
            assert_eq!(halves.look(text), progress, "{text} at {cut}");
            assert_eq!(halves.members(), whole.members());
        }
        let members = whole.members().iter();
        let members = members.map(|(key, value)| (&text[key.clone()], &text[value.clone()]));
        (members.collect(), progress)
    }

    #[test]
    fn members_are_found_in_any_pieces() {
        let text =
            r#"{ "a\"b" : {"x": "}\\\"]", "é": [1, {}]} ,"n":-1.5e3,"t":true, "s": "é\"" } rest"#;
        let (members, progress) = scanned(text);
        assert_eq!(
            members,
            [
                (r#""a\"b""#, r#"{"x": "}\\\"]", "é": [1, {}]}"#),
                (r#""n""#, "-1.5e3"),
                (r#""t""#, "true"),
                (r#""s""#, r#""é\"""#),
            ]
        );
        assert_eq!(progress, Progress::Done(text.len() - 5));
        assert_eq!(scanned("{}x"), (vec![], Progress::Done(2)));
    }

    #[test]
    fn what_cannot_be_an_object_breaks_where_it_shows() {
        for (text, at) in [
            ("x", 0),
            ("{a", 1),
            (r#"{"a" 1"#, 5),
            (r#"{"a": }"#, 6),
            (r#"{"a": 1 2"#, 8),
            (r#"{"a": 1,}"#, 8),
            (r#"{,"#, 1),
        ] {
            assert_eq!(scanned(text).1, Progress::Broken(at), "{text}");
        }
        for open in ["", "{", r#"{"a"#, r#"{"a": ["#, r#"{"a": 1"#, r#"{"a": 1 "#] {
            assert_eq!(scanned(open).1, Progress::Open, "{open}");
        }
    }

    #[test]
    fn a_value_is_known_as_soon_as_it_begins() {
        let mut scan = ObjectScan::default();
        let text = r#"{"name": "f", "arguments": {"a"#;
        assert_eq!(scan.look(text), Progress::Open);
        let (key, start) = scan.open_value().unwrap();
        assert_eq!((&text[key], &text[start..]), ("\"arguments\"", "{\"a"));
        assert_eq!(&text[scan.first_key().unwrap()], "\"name\"");
    }
}
