//! Credentials in URLs, `https://user:password@host`, and in command-line options for user and password.

use crate::redact::rule::RedactionRule;
use crate::redact::scan::Scan;
use crate::redact::words::{Hits, Sign, Word, anywhere};

/// The maximum length of credentials in bytes.
const LONGEST: usize = 512;

/// The minimum length of a user name that counts as a secret without a password.
const TOKEN: usize = 16;

pub(super) fn words() -> impl Iterator<Item = Word> {
    anywhere(&["://"], Sign::Address).chain(anywhere(
        &[
            " -u ",
            " --user ",
            " -u=",
            " --user=",
            " --proxy-user ",
            " -u \"",
            " -u '",
        ],
        Sign::UserOption,
    ))
}

pub(super) fn find(scan: &mut Scan, hits: &Hits<'_>) {
    let mut taken = 0;
    for (range, ()) in hits.all(|sign| (sign == Sign::Address).then_some(())) {
        if range.end < taken {
            continue;
        }
        let inside = |byte: u8| {
            byte > b' '
                && !matches!(
                    byte,
                    b'/' | b'?' | b'#' | b'"' | b'\'' | b'<' | b'>' | b'`' | b'\\' | b'@'
                )
        };
        let mut length = scan.run(range.end, LONGEST, inside);
        // A password may contain the sign `@` itself: the last one ends it.
        loop {
            let next = length + 1;
            let more = scan.run(range.end + next, LONGEST.saturating_sub(next), inside);
            match scan.byte(range.end + length) == b'@'
                && scan.byte(range.end + next + more) == b'@'
            {
                true => length = next + more,
                false => break,
            }
        }
        if scan.byte(range.end + length) != b'@' {
            length = with_slashes(scan, range.end, length).unwrap_or(length);
        }
        taken = range.end + length;
        if scan.byte(taken) != b'@' {
            continue;
        }
        let both = scan.bytes(range.end..taken);
        let name = both.iter().position(|byte| *byte == b':');
        let is_secret = match name {
            Some(name) => name + 1 < length && !is_placeholder(&both[name + 1..]),
            None => length >= TOKEN,
        };
        if is_secret {
            scan.found_as_is(RedactionRule::Secret, range.end..taken);
        }
    }
    taken = 0;
    for (range, ()) in hits.all(|sign| (sign == Sign::UserOption).then_some(())) {
        if range.end < taken {
            continue;
        }
        let length = scan.run(range.end, LONGEST, |byte| {
            byte > b' ' && !matches!(byte, b'"' | b'\'' | b'`')
        });
        let both = scan.bytes(range.end..range.end + length);
        let Some(name) = both.iter().position(|byte| *byte == b':') else {
            continue;
        };
        // In `-u 1000:1000` the numbers are ids of a user and a group.
        let secret = &both[name + 1..];
        let numbers = both
            .iter()
            .all(|byte| byte.is_ascii_digit() || *byte == b':');
        if secret.len() > 2 && !numbers && !is_placeholder(secret) {
            taken = range.end + length;
            scan.found_as_is(RedactionRule::Secret, range.end..taken);
        }
    }
}

/// Returns the length of credentials at `at` whose password contains a slash or another character that ends a host; `length` is the
/// length before that character. A port before a path is not a password.
fn with_slashes(scan: &Scan, at: usize, length: usize) -> Option<usize> {
    let host = scan.bytes(at..at + length);
    let port = host.iter().position(|byte| *byte == b':')? + 1;
    let is_port = host[port..].iter().all(u8::is_ascii_digit);
    if is_port || host.starts_with(b"[") {
        return None;
    }
    let all = scan.run(at, LONGEST, |byte| {
        byte > b' ' && !matches!(byte, b'"' | b'\'' | b'<' | b'>' | b'`' | b'@')
    });
    let named = scan.byte(at + all + 1).is_ascii_alphanumeric();
    (all > length && scan.byte(at + all) == b'@' && named).then_some(all)
}

/// Returns whether a value is a placeholder for the reader to fill in.
pub(super) fn is_placeholder(value: &[u8]) -> bool {
    let opens = [
        &b"<"[..],
        b"${",
        b"$(",
        b"{{",
        b"{",
        b"[",
        b"%(",
        b"%s",
        b"...",
    ];
    let same = |byte: u8| value.iter().all(|other| *other == byte);
    opens.iter().any(|open| value.starts_with(open))
        || [b'*', b'x', b'X', b'.', b'_', b'-'].into_iter().any(same)
}
