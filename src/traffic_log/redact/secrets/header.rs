//! HTTP headers that contain credentials: `Authorization`, `Cookie` and similar ones.

use crate::redact::rule::RedactionRule;
use crate::redact::scan::Scan;
use crate::redact::words::{Hits, Sign, Word, anywhere, whole};

/// The maximum length of a value in bytes.
const LONGEST: usize = 8192;

/// The length in bytes that is read of a value before it is recognised.
const LOOKED_AT: usize = 768;

/// The minimum length of a bearer token without a header's name.
const TOKEN: usize = 16;

/// Schemes after which any word is a credential.
const SCHEMES: [&str; 6] = ["bearer ", "basic ", "token ", "bot ", "apikey ", "api-key "];

pub(super) fn words() -> impl Iterator<Item = Word> {
    anywhere(
        &["authorization", "cookie", "x-amz-security-token"],
        Sign::Header,
    )
    .chain(whole(&["bearer", "basic"], Sign::Scheme))
}

pub(super) fn find(scan: &mut Scan, hits: &Hits<'_>) {
    let mut taken = 0;
    for (range, ()) in hits.all(|sign| (sign == Sign::Header).then_some(())) {
        if range.end < taken {
            continue;
        }
        if let Some(value) = value(scan, range.end) {
            taken = value.end;
            scan.found_as_is(RedactionRule::Secret, value);
        }
    }
    scan.hide();
    let mut taken = 0;
    for (range, ()) in hits.all(|sign| (sign == Sign::Scheme).then_some(())) {
        let at = range.end + scan.run(range.end, 4, |byte| byte == b' ');
        if at < taken || at == range.end {
            continue;
        }
        let length = scan.run(at, LONGEST, is_token);
        let token = scan.bytes(at..at + length);
        let upper = token.iter().any(u8::is_ascii_uppercase);
        let digit = token.iter().any(u8::is_ascii_digit);
        if length >= TOKEN && (digit || (upper && token.ends_with(b"="))) {
            taken = at + length;
            scan.found_as_is(RedactionRule::Secret, at..taken);
        }
    }
}

fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~' | b'+' | b'/' | b'=')
}

/// Returns the value, without the scheme, of a header whose name ends at `at`.
fn value(scan: &Scan, at: usize) -> Option<std::ops::Range<usize>> {
    let quote = |byte: u8| matches!(byte, b'"' | b'\'' | b'`' | b'\\' | b']');
    let mut at = at + scan.run(at, 3, quote);
    at += scan.run(at, 4, |byte| byte == b' ');
    if !matches!(scan.byte(at), b':' | b'=') {
        return None;
    }
    at += 1 + scan.run(at + 1, 2, |byte| matches!(byte, b'=' | b'>'));
    at += scan.run(at, 8, |byte| byte == b' ');
    at += scan.run(at, 3, |byte| quote(byte) || byte == b'f');
    let scheme = scan.run(at, 24, |byte| byte.is_ascii_alphanumeric() || byte == b'-');
    let scheme = if scan.byte(at + scheme) == b' ' {
        scheme + 1
    } else {
        0
    };
    let start = at + scheme;
    let inside = |byte: u8| !matches!(byte, 0 | b'\n' | b'\r' | b'"' | b'\'' | b'`' | b'\\' | b'<');
    let length = scan.run(start, LOOKED_AT, inside);
    let value = scan.bytes(start..start + length);
    let all = |length: usize| match length < LOOKED_AT {
        true => start..start + length,
        false => {
            start..start + length + scan.run(start + length, LONGEST, |b| inside(b) && b != b' ')
        }
    };
    // A value is one word, or words with equals signs, unlike prose about cookies.
    let words = value
        .split(|byte| *byte == b' ')
        .filter(|word| !word.is_empty());
    let all_assign = words
        .clone()
        .all(|word| word.contains(&b'=') || word.ends_with(b";") || word.ends_with(b","));
    let first = words.clone().next()?.len();
    let random = |word: &[u8]| {
        word.len() >= 6
            && word
                .iter()
                .any(|b| b.is_ascii_digit() || b.is_ascii_uppercase() || *b == b'=')
    };
    let begins_with_one = scheme > 0 && random(&value[..first]);
    if super::address::is_placeholder(value) || value.contains(&b'(') {
        return None;
    }
    let named = scheme > 0 && SCHEMES.iter().any(|scheme| scan.is(at, scheme));
    let lone = words.count() == 1 && (random(value) || (named && length > 5));
    if lone || (all_assign && value.contains(&b'=')) {
        return Some(all(length));
    }
    let cookie = value[..first].contains(&b'=') && value.contains(&b';');
    if cookie {
        // Up to the last attribute.
        let end = value.iter().rposition(|byte| *byte == b'=').unwrap_or(0);
        let rest = value[end..]
            .iter()
            .take_while(|byte| !matches!(byte, b' ' | b';'))
            .count();
        return Some(all(end + rest));
    }
    begins_with_one.then(|| all(first))
}
