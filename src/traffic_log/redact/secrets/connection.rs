//! Credentials in database addresses that are not URLs, and in the codes of wireless networks.

use std::ops::Range;

use super::address::is_placeholder;
use crate::redact::rule::RedactionRule;
use crate::redact::scan::Scan;
use crate::redact::words::{Connection, Hits, Sign, Word, anywhere};

/// The maximum length of credentials in bytes.
const LONGEST: usize = 128;

pub(super) fn words() -> impl Iterator<Item = Word> {
    anywhere(
        &[
            "@tcp(",
            "@tcp4(",
            "@tcp6(",
            "@unix(",
            "@udp(",
            "@cloudsql(",
            "@(",
        ],
        Sign::Connection(Connection::Front),
    )
    .chain(anywhere(
        &[
            "jdbc:oracle:thin:",
            "jdbc:oracle:oci:",
            "jdbc:oracle:oci8:",
            "sqlplus ",
            "sqlplus -s ",
            "sqlplus -l ",
            "sqlldr ",
            "expdp ",
            "impdp ",
            "rman target ",
        ],
        Sign::Connection(Connection::Behind),
    ))
    .chain(anywhere(&["wifi:"], Sign::Wifi))
}

pub(super) fn find(scan: &mut Scan, hits: &Hits<'_>) {
    let wanted = |sign| matches!(sign, Sign::Connection(_) | Sign::Wifi).then_some(sign);
    let mut taken = 0;
    for (range, sign) in hits.all(wanted) {
        if range.start < taken {
            continue;
        }
        let found = match sign {
            Sign::Connection(Connection::Front) => in_front(scan, range.start),
            Sign::Connection(Connection::Behind) => behind(scan, range.end),
            _ => wireless(scan, range.end),
        };
        if let Some(found) = found {
            taken = found.end;
            scan.found_as_is(RedactionRule::Secret, found);
        }
    }
}

fn inside(byte: u8) -> bool {
    byte > b' ' && !matches!(byte, b'"' | b'\'' | b'`' | b'<' | b'>')
}

/// Returns `user:password` before the sign at `end`.
fn in_front(scan: &Scan, end: usize) -> Option<Range<usize>> {
    let length = scan.run_before(end, LONGEST, |byte| inside(byte) && byte != b'=');
    let both = scan.bytes(end - length..end);
    let name = both.iter().position(|byte| *byte == b':')?;
    let secret = &both[name + 1..];
    (secret.len() > 1 && !secret.starts_with(b"//") && !is_placeholder(secret))
        .then_some(end - length..end)
}

/// Returns `user/password` at `at`, before an `@`.
fn behind(scan: &Scan, at: usize) -> Option<Range<usize>> {
    let length = scan.run(at, LONGEST, |byte| inside(byte) && byte != b'@');
    let both = scan.bytes(at..at + length);
    let name = both.iter().position(|byte| *byte == b'/')?;
    let secret = &both[name + 1..];
    (name > 0 && secret.len() > 1 && scan.byte(at + length) == b'@' && !is_placeholder(secret))
        .then_some(at..at + length)
}

/// Returns the value of `P:` in the code of a wireless network, in which special characters are escaped by backslashes.
fn wireless(scan: &Scan, at: usize) -> Option<Range<usize>> {
    let line = scan.bytes(at..at + 2 * LONGEST);
    let place = match line.starts_with(b"P:") {
        true => 0,
        false => 1 + line.windows(3).position(|three| three == b";P:")?,
    };
    let start = at + place + 2;
    let mut escaped = false;
    let length = line[place + 2..]
        .iter()
        .take_while(|byte| {
            let goes_on = escaped || !matches!(byte, b';' | b'\n' | b'"');
            escaped = !escaped && **byte == b'\\';
            goes_on
        })
        .count();
    (length > 2).then_some(start..start + length)
}
