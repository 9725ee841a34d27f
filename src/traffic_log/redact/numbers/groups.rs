//! Groups of digits with separators, the way numbers are written for people.

use std::ops::Range;

use crate::redact::scan::Scan;

/// The maximum number of digits of a number (a bank account has 30).
pub(in crate::redact) const MOST: usize = 32;

/// The maximum length of a separator in bytes: ` - `.
const SEPARATOR: usize = 3;

/// Returns whether a byte may separate the groups of any number.
pub(super) fn is_separator(byte: u8) -> bool {
    matches!(byte, b' ' | b'-' | b'.' | b'/' | b'\t' | b'_')
}

/// Returns whether a byte may separate the groups of a number that is confirmed by its check digits or by a word: it may also be a mark
/// of lists, tables and code, or a line end.
pub(super) fn is_any_separator(byte: u8) -> bool {
    is_separator(byte)
        || matches!(
            byte,
            b',' | b':'
                | b';'
                | b'|'
                | b'+'
                | b'*'
                | b'\''
                | b'"'
                | b'('
                | b')'
                | b'['
                | b']'
                | b'~'
                | b'#'
                | b'\n'
                | b'\r'
        )
}

/// Returns the length of the separator at `at`, of any kind; zero if no further group follows it.
pub(super) fn separator(scan: &Scan, at: usize, is_next: impl Fn(u8) -> bool) -> usize {
    let length = scan.run(at, SEPARATOR, is_any_separator);
    match is_next(scan.byte(at + length)) {
        true => length,
        false => 0,
    }
}

/// Returns the groups of the number whose first group is `first`, up to [`MOST`] digits in total; `joins` accepts the bytes between
/// groups.
pub(in crate::redact) fn row(
    scan: &Scan,
    first: Range<usize>,
    joins: impl Fn(u8) -> bool,
) -> Vec<Range<usize>> {
    let mut digits = first.len();
    let mut last = first.end;
    let mut groups = vec![first];
    while digits < MOST {
        let gap = scan.run(last, SEPARATOR + 1, &joins);
        let start = last + gap;
        let length = scan.run(start, MOST + 1, |byte| byte.is_ascii_digit());
        if gap == 0 || gap > SEPARATOR || length == 0 || digits + length > MOST {
            break;
        }
        last = start + length;
        digits += length;
        groups.push(start..last);
    }
    groups
}

/// Short words that link a number to the word after it: `536904399 is my SSN`.
const LINKS: &[&str] = &[
    "is", "was", "my", "our", "your", "his", "her", "the", "a", "as", "for", "ist", "meine",
    "mein", "die", "der", "das", "est", "mon", "ma", "le", "la", "es", "mi", "el", "il", "mio",
    "e", "o", "minha", "meu", "to", "moje", "is", "mijn", "number", "no",
];

/// The maximum length of [`LINKS`] in bytes.
const LINK: usize = 6;

/// Returns the end of a number that is announced by the word after it, at `word`: only short words and marks are between them.
pub(in crate::redact) fn end_in_front(scan: &Scan, word: usize) -> Option<usize> {
    let mut at = word;
    for _ in 0..4 {
        at -= scan.run_before(at, 3, |byte| {
            matches!(
                byte,
                b' ' | b'(' | b'[' | b',' | b':' | b'=' | b'-' | b'"' | b'\'' | b'<' | b'/'
            )
        });
        let length = scan.run_before(at, LINK + 1, |byte| byte.is_ascii_alphabetic());
        let is_link = length > 0
            && !scan.before(at - length).is_ascii_digit()
            && LINKS
                .iter()
                .any(|link| link.len() == length && scan.is(at - length, link));
        if !is_link {
            break;
        }
        at -= length;
    }
    (at < word && scan.before(at).is_ascii_alphanumeric()).then_some(at)
}

/// Returns whether the text between a value and the word after it shows that the word names the value: a verb or a bracket.
pub(in crate::redact) fn is_said(scan: &Scan, between: Range<usize>) -> bool {
    let between = scan.bytes(between).to_ascii_lowercase();
    [&b" is "[..], b" ist ", b" est ", b" es ", b" was ", b"("]
        .iter()
        .any(|verb| between.windows(verb.len()).any(|part| part == *verb))
}

/// Returns whether the text before `at` makes the number there a part of something else: of a word, a decimal, a range, a path.
pub(super) fn continues_before(scan: &Scan, at: usize) -> bool {
    let before = scan.before(at);
    let second = if at > 1 { scan.before(at - 1) } else { 0 };
    match before {
        b'-' | b'/' => second.is_ascii_alphanumeric(),
        b'.' | b',' | b'+' | b':' => second.is_ascii_digit(),
        _ => before.is_ascii_alphanumeric() || before == b'_',
    }
}

/// Returns whether the text at `end` makes the number before it a part of something else.
pub(super) fn continues_behind(scan: &Scan, end: usize) -> bool {
    let behind = scan.byte(end);
    let mark = matches!(behind, b'.' | b',' | b'-' | b'/');
    let word = behind.is_ascii_alphanumeric() || behind == b'_';
    word || (mark && scan.byte(end + 1).is_ascii_digit())
}

/// Returns whether the text before `start` makes the number there an amount or a term: a currency, a power.
pub(super) fn is_amount(scan: &Scan, start: usize) -> bool {
    let back = scan.run_before(start, 1, |byte| byte == b' ');
    scan.char_before(start - back)
        .is_some_and(|c| matches!(c, '$' | '€' | '£' | '¥' | '₹' | '₩' | '₽' | '^'))
        && back + 1 < start.max(1)
}

/// Returns whether the text after a number makes it a term: an equals sign, an operator.
pub(super) fn is_term(scan: &Scan, end: usize) -> bool {
    let space = scan.run(end, 1, |byte| byte == b' ');
    matches!(scan.byte(end + space), b'=' | b'+' | b'*' | b'^' | b'%')
}
