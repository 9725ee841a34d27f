//! Private keys in the armour of PEM, OpenSSH and PGP, complete or cut off.

use std::ops::Range;

use crate::redact::rule::RedactionRule;
use crate::redact::scan::Scan;
use crate::redact::words::{Hits, Sign, Word, anywhere};

/// The maximum length of the label between `-----BEGIN` and its dashes, in bytes.
const LABEL: usize = 48;

/// The minimum length of base64 that counts as key material and not as a word.
const MATERIAL: usize = 20;

pub(super) fn words() -> impl Iterator<Item = Word> {
    anywhere(
        &["-----begin", "---- begin", "putty-user-key-file"],
        Sign::Begin,
    )
    .chain(anywhere(&["-----end", "---- end"], Sign::End))
}

/// Finds each `BEGIN` of a private key and the text up to the next `END` before another `BEGIN`, or up to the end of the key material if
/// there is none.
pub(super) fn find(scan: &mut Scan, hits: &Hits<'_>) {
    let of = |wanted: Sign| {
        hits.all(move |sign| (sign == wanted).then_some(()))
            .map(|(range, ())| range)
            .collect::<Vec<Range<usize>>>()
    };
    let (begins, ends) = (of(Sign::Begin), of(Sign::End));
    let mut taken = 0;
    for (place, begin) in begins.iter().enumerate() {
        let Some(armour) = armour(scan, begin.end).filter(|_| begin.start >= taken) else {
            continue;
        };
        let next = begins.get(place + 1).map_or(scan.len(), |next| next.start);
        let end = ends.partition_point(|end| end.start < armour);
        let end = match ends.get(end).filter(|end| end.start < next) {
            // Including its dashes.
            Some(end) => end.end + self::armour(scan, end.end).map_or(0, |to| to - end.end),
            None => material(scan, armour, next),
        };
        scan.found_as_is(RedactionRule::Secret, begin.start..end);
        taken = end;
    }
    scan.hide();
    // Keys whose `BEGIN` is missing, because it is in another message.
    let mut taken = 0;
    for end in &ends {
        let Some(armour) = armour(scan, end.end).filter(|_| scan.byte(end.start) != 0) else {
            continue;
        };
        let start = material_in_front(scan, end.start, taken);
        if start < end.start {
            scan.found_as_is(RedactionRule::Secret, start..armour);
        }
        taken = armour;
    }
}

/// Returns the start of the key material that ends at `end`, not before `least`.
fn material_in_front(scan: &Scan, end: usize, least: usize) -> usize {
    let mut start = end;
    let mut at = end;
    loop {
        let blank = scan.run_before(at, at - least, |byte| byte.is_ascii_whitespace());
        let word = scan.run_before(at - blank, at - blank - least, is_material);
        // The last line is shorter than the others; a checksum may follow it.
        let short = end - at < 8 && word > 3 && blank > 0;
        if word < MATERIAL && !short || (blank == 0 && at < end) {
            return start;
        }
        at -= blank + word;
        start = at;
    }
}

fn is_material(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/' | b'=')
}

/// Returns whether a text ends within a private key that may continue in the next message: in the key material after a `BEGIN`, or in the
/// armour's line.
pub(in crate::redact) fn is_open(text: &str) -> bool {
    let lower = text.to_ascii_lowercase();
    let Some(begin) = lower.rfind("-- begin").or(lower.rfind("--begin")) else {
        return false;
    };
    let rest = &lower[begin..];
    if !rest.contains("private key") || rest.contains("--end") || rest.contains("-- end") {
        return false;
    }
    // All lines after the armour's must be key material or headers.
    let lines = rest.lines().skip(1);
    lines
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .all(is_line)
}

/// Returns whether a line is key material or a header before it.
fn is_line(line: &str) -> bool {
    line.bytes().all(is_material)
        || line
            .split_once(": ")
            .is_some_and(|(name, _)| !name.contains(' '))
}

/// Returns the number of bytes at the start of a text that continue a private key, and whether the key continues beyond the text.
pub(in crate::redact) fn rest(text: &str) -> (usize, bool) {
    let mut end = 0;
    let mut at = 0;
    for line in text.split_inclusive('\n') {
        let trimmed = line.trim();
        at += line.len();
        let lower = trimmed.to_ascii_lowercase();
        if lower.starts_with("-----end") || lower.starts_with("---- end") {
            return (at - (line.len() - line.trim_end().len()), false);
        }
        let material = trimmed.len() >= MATERIAL && trimmed.bytes().all(is_material);
        let last = end > 0 && trimmed.len() > 3 && trimmed.bytes().all(is_material);
        if !trimmed.is_empty() && !material && !last {
            return (end, false);
        }
        if !trimmed.is_empty() {
            end = at - (line.len() - line.trim_end().len());
        }
    }
    (end, end > 0)
}

/// Returns the end of the line that names a private key; `at` is after its first word.
fn armour(scan: &Scan, at: usize) -> Option<usize> {
    let label = scan.bytes(at..at + LABEL);
    if label.first() == Some(&b'-') {
        // PuTTY's format: its other lines are headers and key material.
        return Some(at);
    }
    let label = &label[..label.windows(4).position(|four| four == b"----")?];
    let is_private = label
        .to_ascii_uppercase()
        .windows(11)
        .any(|word| word == b"PRIVATE KEY");
    let dashes = scan.run(at + label.len(), 5, |byte| byte == b'-');
    is_private.then_some(at + label.len() + dashes)
}

/// Returns the end of the key material between `at` and `until`: lines of base64 and the headers before them.
fn material(scan: &Scan, mut at: usize, until: usize) -> usize {
    let mut end = at;
    let mut after_long = false;
    loop {
        at += blank(scan, at);
        if at >= until {
            return end.min(until);
        }
        let word = scan.run(at, until - at, |byte| {
            byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/' | b'=')
        });
        let behind = scan.byte(at + word);
        let ends_there = behind == 0
            || behind.is_ascii_whitespace()
            || matches!(behind, b'\\' | b'"' | b'\'' | b'`');
        let odd = || {
            scan.bytes(at..at + word)
                .iter()
                .any(|b| !b.is_ascii_alphabetic())
        };
        // The last line is shorter than the others.
        let last = after_long && (odd() || matches!(behind, 0 | b'\n' | b'\r' | b'\\' | b'"'));
        if word >= MATERIAL || (word > 0 && ends_there && (last || (word > 7 && odd()))) {
            after_long = word >= MATERIAL;
            at += word;
            end = at;
            continue;
        }
        match header(scan, at) {
            Some(behind) => (at, end, after_long) = (behind, behind, false),
            None => return end.min(until),
        }
    }
}

/// Returns the number of bytes of white space at `at`, as characters or as escapes like `\n`.
fn blank(scan: &Scan, at: usize) -> usize {
    let mut length = 0;
    loop {
        match (scan.byte(at + length), scan.byte(at + length + 1)) {
            (b' ' | b'\n' | b'\r' | b'\t', _) => length += 1,
            (b'\\', b'n' | b'r' | b't') => length += 2,
            _ => return length,
        }
    }
}

/// Returns the end of an armour's header at `at`: `DEK-Info: AES-128-CBC,...`.
fn header(scan: &Scan, at: usize) -> Option<usize> {
    let name = scan.run(at, 24, |byte| byte.is_ascii_alphanumeric() || byte == b'-');
    let known = [
        "Proc-Type",
        "DEK-Info",
        "Version",
        "Comment",
        "Hash",
        "Charset",
        "Encryption",
        "Public-Lines",
        "Private-Lines",
        "Private-MAC",
        "MessageID",
        "Key-Derivation",
        "Argon2-Memory",
        "Argon2-Passes",
        "Argon2-Parallelism",
        "Argon2-Salt",
    ];
    let is_known = known
        .iter()
        .any(|known| known.len() == name && scan.is(at, known));
    let named = is_known && scan.byte(at + name) == b':';
    if !named && !puttys_version(scan, at) {
        return None;
    }
    Some(at + scan.run(at, 256, |byte| !matches!(byte, 0 | b'\n' | b'\r' | b'\\')))
}

/// Returns whether `-2: ssh-ed25519` is at `at`, after the first word of a PuTTY key.
fn puttys_version(scan: &Scan, at: usize) -> bool {
    scan.byte(at) == b'-' && scan.byte(at + 1).is_ascii_digit() && scan.byte(at + 2) == b':'
}
