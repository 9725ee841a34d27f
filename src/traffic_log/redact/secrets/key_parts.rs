//! Numbers of private keys in XML and JSON: `<D>...</D>` of an `RSAKeyValue`, `"d": "..."` of a JSON web key.

use crate::redact::rule::RedactionRule;
use crate::redact::scan::Scan;
use crate::redact::words::{Hits, Sign, Word, anywhere};

/// The maximum length of a number in bytes.
const LONGEST: usize = 4096;

/// The minimum length in bytes.
const SHORTEST: usize = 12;

pub(super) fn words() -> impl Iterator<Item = Word> {
    anywhere(
        &[
            "<d>",
            "<p>",
            "<q>",
            "<dp>",
            "<dq>",
            "<inverseq>",
            "\"d\"",
            "\"p\"",
            "\"q\"",
            "\"dp\"",
            "\"dq\"",
            "\"qi\"",
            "\"k\"",
            "'d'",
            "'p'",
            "'q'",
            "'dp'",
            "'dq'",
            "'qi'",
            "'k'",
        ],
        Sign::KeyPart,
    )
}

pub(super) fn find(scan: &mut Scan, hits: &Hits<'_>) {
    let mut taken = 0;
    for (range, ()) in hits.all(|sign| (sign == Sign::KeyPart).then_some(())) {
        if range.end < taken {
            continue;
        }
        let element = scan.before(range.end) == b'>';
        let gap = scan.run(range.end, 8, |byte| match element {
            true => matches!(byte, b' ' | b'\n' | b'\r' | b'\t'),
            false => matches!(byte, b' ' | b':' | b'\n' | b'\r' | b'\t' | b'"' | b'\''),
        });
        let start = range.end + gap;
        let length = scan.run(start, LONGEST, |byte| {
            byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/' | b'=' | b'-' | b'_')
        });
        let read = scan.bytes(start..start + length);
        let has = |is: fn(&u8) -> bool| read.iter().any(is);
        let random =
            has(u8::is_ascii_digit) && has(u8::is_ascii_lowercase) && (element || length >= 20);
        let closed = match element {
            true => matches!(scan.byte(start + length), b'<' | b'\n' | b'\r'),
            false => gap > 1 && matches!(scan.byte(start + length), b'"' | b'\''),
        };
        if length >= SHORTEST && random && closed {
            taken = start + length;
            scan.found_as_is(RedactionRule::Secret, start..taken);
        }
    }
}
