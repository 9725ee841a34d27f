//! Values that their names mark as secret: `password: hunter2`, `API_KEY="..."`, `<secret>...</secret>`, `PIN 1234`.

use std::ops::Range;

use super::address::is_placeholder;
use super::names::{KEYS, PASSWORDS, PINS, SHORT_PASSWORDS, WEAK_KEYS};
use crate::redact::numbers::groups::{end_in_front, is_said};
use crate::redact::rule::RedactionRule;
use crate::redact::scan::{Scan, is_word};
use crate::redact::words::{Hits, Named, Sign, Word, anywhere, whole};

/// The maximum length of a value in bytes.
const LONGEST: usize = 512;

/// The minimum length of a generated key in bytes.
const KEY: usize = 8;

/// The minimum length in bytes of a generated key that consists of letters only.
const LONG: usize = 20;

pub(super) fn words() -> impl Iterator<Item = Word> {
    anywhere(PASSWORDS, Sign::Named(Named::Password))
        .chain(whole(SHORT_PASSWORDS, Sign::Named(Named::Password)))
        .chain(anywhere(KEYS, Sign::Named(Named::Key)))
        .chain(whole(WEAK_KEYS, Sign::Named(Named::WeakKey)))
        .chain(whole(PINS, Sign::Named(Named::Pin)))
}

pub(super) fn find(scan: &mut Scan, hits: &Hits<'_>) {
    let named = |sign| match sign {
        Sign::Named(named) => Some(named),
        _ => None,
    };
    let mut taken = 0;
    for (range, named) in hits.all(named) {
        if range.end <= taken {
            continue;
        }
        let start = range.start;
        let found = match named {
            Named::Pin => pin(scan, range.end),
            _ => value(scan, range, named),
        };
        let found =
            found.or_else(|| in_front(scan, start, named).filter(|found| found.start >= taken));
        if let Some(found) = found {
            taken = found.end;
            scan.found_as_is(RedactionRule::Secret, found);
        }
    }
}

/// Returns the value before a name that starts at `name`: `hunter2 is my password`.
fn in_front(scan: &Scan, name: usize, named: Named) -> Option<Range<usize>> {
    let end = end_in_front(scan, name)?;
    if !is_said(scan, end..name) {
        return None;
    }
    let length = scan.run_before(end, 64, |byte| {
        byte > b' ' && !matches!(byte, b'"' | b'\'' | b'`' | b'(' | b'<' | b':')
    });
    let value = scan.bytes(end - length..end);
    let made = made(value);
    let fits = match named {
        Named::Pin => (4..=8).contains(&length) && value.iter().all(u8::is_ascii_digit),
        Named::Password => made.digits && made.letters && length > 5 && !is_algorithm(value),
        Named::Key | Named::WeakKey => made.digits && made.letters && length >= 2 * KEY,
    };
    fits.then_some(end - length..end)
}

/// The link between a name and its value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Joint {
    /// `=` without spaces.
    Tight,
    /// `=` with spaces, and similar operators.
    Assigned,
    Colon,
    /// `is`
    Is,
    /// Only a space or a dash.
    Beside,
    /// A space after an option: `--password hunter2`.
    Option,
    /// `>`
    Element,
    /// A line end: `password:` and the value below it.
    Line,
}

/// Words between a name and its value.
const VERBS: [&str; 8] = [
    "is ", "is:", "ist ", "ist:", "was ", "est ", "es ", "lautet ",
];

/// Verbs and particles of languages that are written without spaces.
const PARTICLES: [&str; 11] = [
    "は", "が", "を", "是", "为", "為", "는", "은", "가", "이", "의",
];

/// Returns the start of an attribute's value whose name is the value of another attribute: `key="password" value="..."`.
fn attribute(scan: &Scan, name: usize) -> Option<usize> {
    let gap = scan.run(name, 8, |byte| {
        matches!(byte, b'"' | b'\'' | b' ' | b',' | b'\t' | b'\\')
    });
    let word = ["value", "val", "content"]
        .into_iter()
        .find(|word| scan.is(name + gap, word))?;
    let mark = name + gap + word.len();
    let mark = mark + scan.run(mark, 4, |byte| matches!(byte, b'"' | b'\'' | b' ' | b'\\'));
    let begins = gap > 0 && matches!(scan.byte(mark), b'=' | b':');
    begins.then(|| mark + 1 + scan.run(mark + 1, 4, |byte| byte == b' '))
}

/// Returns the link between a name and the text after it, and the start of that text.
fn joint(scan: &Scan, name: Range<usize>) -> Option<(Joint, usize)> {
    let at = name.end;
    if scan.is(at, "'s ") {
        return Some((Joint::Is, at + 3));
    }
    if let Some(value) = attribute(scan, at) {
        return Some((Joint::Assigned, value));
    }
    if let Some(particle) = PARTICLES.iter().find(|particle| scan.is(at, particle)) {
        let end = at + particle.len();
        let gap = scan.run(end, 4, |byte| matches!(byte, b' ' | b':' | b'='));
        return Some((Joint::Is, end + gap));
    }
    let is_space = |byte: u8| matches!(byte, b' ' | b'\t');
    let closing = scan.run(at, 3, |byte| {
        matches!(byte, b'"' | b'\'' | b'`' | b']' | b')' | b'\\' | b'*')
    });
    let spaces = scan.run(at + closing, 8, is_space);
    let mark = at + closing + spaces;
    let behind = |length: usize| mark + length + scan.run(mark + length, 8, is_space);
    let (first, second) = (scan.byte(mark), scan.byte(mark + 1));
    match (first, second) {
        (b'=', b'=' | b'>') | (b':', b'=') => Some((Joint::Assigned, behind(2))),
        (b'=', _) => {
            let end = behind(1);
            let tight = spaces == 0 && end == mark + 1;
            Some((if tight { Joint::Tight } else { Joint::Assigned }, end))
        }
        (b':', b':') => None,
        (b':', _) if matches!(scan.byte(behind(1)), b'\n' | b'\r') => {
            let line = scan.run(behind(1), 2, |byte| matches!(byte, b'\n' | b'\r'));
            let start = behind(1) + line;
            Some((Joint::Line, start + scan.run(start, 16, is_space)))
        }
        (b':', _) => Some((
            Joint::Colon,
            behind(1) + scan.run(behind(1), 2, |byte| byte == b'*'),
        )),
        (b'>', _) if closing == 0 && spaces == 0 => Some((Joint::Element, mark + 1)),
        _ if spaces > 0 && closing == 0 && is_option(scan, name.start) => {
            Some((Joint::Option, mark))
        }
        _ if spaces > 0 => {
            let verb = VERBS.iter().find(|verb| scan.is(mark, verb));
            match verb {
                Some(verb) => {
                    let end = behind(verb.len());
                    Some((Joint::Is, end + scan.run(end, 2, |byte| byte == b':')))
                }
                None if closing == 0 && first == b'-' && second == b' ' => {
                    Some((Joint::Beside, behind(1)))
                }
                None => (closing == 0).then_some((Joint::Beside, mark)),
            }
        }
        _ => None,
    }
}

/// Returns whether the word around `at` is an option: `--db-password`.
fn is_option(scan: &Scan, at: usize) -> bool {
    let length = scan.run_before(at, 32, |byte| is_word(byte) || byte == b'-');
    scan.bytes(at - length..at).starts_with(b"--")
}

/// Returns the value of a name.
fn value(scan: &Scan, name: Range<usize>, named: Named) -> Option<Range<usize>> {
    let upper = scan.before(name.end).is_ascii_uppercase();
    let foreign = scan.before(name.end) >= 0x80;
    let (joint, at) = joint(scan, name)?;
    let escaped = usize::from(scan.byte(at) == b'\\');
    let prefix = scan.run(at, 1, |byte| matches!(byte, b'b' | b'f' | b'r' | b'@'));
    let prefix = if matches!(scan.byte(at + prefix), b'"' | b'\'') {
        prefix
    } else {
        0
    };
    let quote = scan.byte(at + escaped + prefix);
    if matches!(quote, b'"' | b'\'' | b'`') && joint != Joint::Element {
        let start = at + escaped + prefix + 1;
        let length = scan.run(start, LONGEST, |byte| {
            byte != quote && !matches!(byte, 0 | b'\n' | b'\r')
        });
        if scan.byte(start + length) == quote {
            let range = start..start + length - escaped.min(length);
            let read = scan.bytes(range.clone());
            let beside = joint == Joint::Beside && !(named == Named::Password && made(read).digits);
            return (!beside && is_quoted_secret(read, named)).then_some(range);
        }
    }
    // `PWD={...}` of ODBC.
    if joint == Joint::Tight && named == Named::Password && scan.byte(at) == b'{' {
        let length = scan.run(at + 1, LONGEST / 4, |byte| byte > b' ' && byte != b'}');
        let made = made(scan.bytes(at + 1..at + 1 + length));
        let is_one = scan.byte(at + 1) != b'{' && scan.byte(at + 1 + length) == b'}';
        if is_one && length > 2 && (made.digits || made.marks) {
            return Some(at + 1..at + 1 + length);
        }
    }
    // After a name in another script, a value in Latin letters ends with the last of them.
    let latin = foreign && scan.byte(at).is_ascii_graphic();
    let stops = |byte: u8| {
        (latin && byte >= 0x80)
            || match joint {
                Joint::Tight => {
                    matches!(byte, b'&' | b';' | b',' | b'<' | b'"' | b'\'' | b'`' | b'|')
                }
                Joint::Element => byte == b'<',
                _ => matches!(byte, b'"' | b'\'' | b'`' | b'<'),
            }
    };
    let length = scan.run(at, LONGEST, |byte| byte > b' ' && !stops(byte));
    let read = scan.bytes(at..at + length);
    let trailing = read.iter().rev().take_while(|byte| {
        matches!(
            byte,
            b'.' | b',' | b';' | b':' | b'!' | b'?' | b')' | b'}' | b']' | b'\\'
        )
    });
    let value = &read[..length - trailing.count()];
    let range = at..at + value.len();
    let ends_there = {
        let behind = range.end
            + scan.run(range.end, 8, |byte| {
                matches!(byte, b'.' | b',' | b';' | b'!' | b' ' | b'\t')
            });
        !scan.char_at(behind).is_some_and(char::is_alphanumeric)
    };
    let alone = || matches!(scan.byte(range.end), 0 | b'\n' | b'\r');
    let fits = is_bare_secret(value, named, joint, upper, ends_there)
        && (joint != Joint::Line || (alone() && !value.contains(&b':')));
    fits.then_some(range)
}

/// The kinds of characters in a value.
struct Made {
    digits: bool,
    letters: bool,
    marks: bool,
    mixed: bool,
}

fn made(value: &[u8]) -> Made {
    let rest = value.get(1..).unwrap_or_default();
    let any = |is: fn(&u8) -> bool| value.iter().any(is);
    Made {
        digits: any(u8::is_ascii_digit),
        letters: any(u8::is_ascii_alphabetic),
        marks: any(|byte| byte.is_ascii_punctuation() && !matches!(byte, b'_' | b'-' | b'.')),
        mixed: any(u8::is_ascii_uppercase)
            && rest.iter().any(u8::is_ascii_lowercase)
            && !rest.iter().all(u8::is_ascii_lowercase),
    }
}

/// Words in the place of a value that are not values: types, and words about the value.
const NO_VALUES: &[&str] = &[
    "string",
    "str",
    "text",
    "bytes",
    "number",
    "int",
    "integer",
    "bool",
    "boolean",
    "any",
    "object",
    "none",
    "null",
    "nil",
    "true",
    "false",
    "undefined",
    "optional",
    "required",
    "varchar",
    "char",
    "password",
    "passwd",
    "secret",
    "token",
    "the",
    "a",
    "an",
    "your",
    "my",
    "not",
    "must",
    "should",
    "needs",
    "required.",
    "incorrect",
    "invalid",
    "wrong",
    "correct",
    "valid",
    "empty",
    "missing",
    "hidden",
    "redacted",
    "changeme",
    "example",
    "value",
    "field",
    "input",
    "const",
    "let",
    "var",
    "new",
    "self",
    "this",
    "env",
    "yes",
    "same-origin",
    "include",
    "omit",
    "no",
    "your_password",
    "your-password",
    "yourpassword",
    "your_api_key",
    "your-api-key",
    "your_token",
    "your_secret",
    "api_key",
];

fn is_no_value(value: &[u8]) -> bool {
    is_placeholder(value)
        || NO_VALUES
            .iter()
            .any(|word| value.eq_ignore_ascii_case(word.as_bytes()))
        || value.to_ascii_lowercase().starts_with(b"your_")
        || value.to_ascii_lowercase().starts_with(b"your-")
}

fn is_quoted_secret(value: &[u8], named: Named) -> bool {
    let made = match value.len() {
        0..3 => return false,
        _ => made(value),
    };
    if is_no_value(value) {
        return false;
    }
    let prose = value.contains(&b' ') && !made.digits;
    match named {
        Named::Password => {
            !prose || value.len() > 15 && value.iter().filter(|byte| **byte == b' ').count() == 3
        }
        Named::Key => value.len() >= KEY && !value.contains(&b' '),
        Named::WeakKey | Named::Pin => {
            value.len() >= 2 * KEY
                && !value.contains(&b' ')
                && ((made.digits && made.letters) || value.len() >= 2 * LONG)
        }
    }
}

/// Returns whether a value is a program's expression: `get_password(`, `os.environ[`.
fn is_call(value: &[u8]) -> bool {
    let name = value
        .iter()
        .position(|byte| !is_word(*byte) && !matches!(byte, b'.' | b':'));
    name.is_some_and(|name| name > 0 && matches!(value[name], b'(' | b'[' | b'{'))
}

/// Returns whether a value is the name of an algorithm, which occurs beside passwords in prose.
fn is_algorithm(value: &[u8]) -> bool {
    let lower = value.to_ascii_lowercase();
    [&b"sha"[..], b"md5", b"base64", b"utf", b"pbkdf", b"aes"]
        .iter()
        .any(|name| lower.starts_with(name))
}

fn is_bare_secret(value: &[u8], named: Named, joint: Joint, upper: bool, ends_there: bool) -> bool {
    if value.len() < 3 || is_no_value(value) || is_call(value) {
        return false;
    }
    let made = made(value);
    // `self.password`, `settings.API_KEY`: identifiers in code.
    let is_path = !made.digits && value.contains(&b'.') && !made.marks;
    let random = made.digits || made.marks || made.mixed;
    match named {
        Named::Password if is_path || value.starts_with(b"//") => false,
        Named::Password => match joint {
            Joint::Tight | Joint::Option | Joint::Element => true,
            Joint::Colon => random || ends_there,
            Joint::Assigned => random && !(made.mixed && !made.digits && !made.marks),
            Joint::Is => made.digits || made.marks,
            Joint::Line => made.digits && made.letters,
            Joint::Beside => {
                made.digits
                    && made.letters
                    && value.len() > 5
                    && !is_algorithm(value)
                    && !value.contains(&b'=')
                    && !value.contains(&b':')
            }
        },
        Named::Key => {
            let strong =
                (made.digits && (made.letters || value.len() >= KEY)) || value.len() >= LONG;
            let called = value
                .iter()
                .all(|byte| byte.is_ascii_lowercase() || matches!(byte, b'_' | b'.'));
            // `API_KEY=abcdef`, as in environment variables.
            let variable = joint == Joint::Tight && upper && value.len() > 5 && !is_path;
            let beside = value.len() >= 2 * KEY
                && made.digits
                && made.letters
                && value
                    .iter()
                    .all(|byte| is_word(*byte) || matches!(byte, b'-' | b'+' | b'='));
            variable
                || (joint == Joint::Beside && beside)
                || (value.len() >= KEY
                    && strong
                    && !is_path
                    && joint != Joint::Beside
                    && (!called || joint == Joint::Tight))
        }
        Named::WeakKey | Named::Pin if joint == Joint::Beside => false,
        Named::WeakKey | Named::Pin => {
            value.len() >= 2 * KEY && made.digits && made.letters && !value.contains(&b'/')
        }
    }
}

/// Returns the three to eight digits after a word like `PIN`.
fn pin(scan: &Scan, at: usize) -> Option<Range<usize>> {
    let mut from = at + scan.run(at, 2, |byte| matches!(byte, b'"' | b'\'' | b'`'));
    from += scan.run(from, 4, |byte| {
        matches!(byte, b' ' | b':' | b'=' | b'#' | b'.')
    });
    for word in ["is ", "ist ", "number ", "code ", "no. "] {
        if scan.is(from, word) {
            from += word.len();
        }
    }
    from += scan.run(from, 4, |byte| {
        matches!(byte, b' ' | b':' | b'=' | b'"' | b'\'' | b'`')
    });
    let digits = scan.run(from, 9, |byte| byte.is_ascii_digit());
    let apart = from > at
        && !is_word(scan.byte(from + digits))
        && !(scan.byte(from + digits) == b'.' && scan.byte(from + digits + 1).is_ascii_digit());
    ((3..=8).contains(&digits) && apart).then_some(from..from + digits)
}
