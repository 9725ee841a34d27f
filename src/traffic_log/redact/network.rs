//! Network addresses: hardware (MAC) addresses, IPv4 and IPv6.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::ops::Range;

use super::rule::RedactionRule;
use super::scan::{Scan, compact, is_word};
use super::words::{Hits, Sign, Word, whole};

/// The maximum length of an IPv6 address that contains an IPv4 address, in bytes.
const LONGEST: usize = 45;

/// The maximum length of an interface name after `%`, in bytes.
const ZONE: usize = 16;

/// The maximum distance in bytes between a hardware address and the word before it that announces it.
const REACH: usize = 16;

pub(super) fn words() -> impl Iterator<Item = Word> {
    whole(
        &[
            "version",
            "versions",
            "ver.",
            "section",
            "sections",
            "chapter",
            "release",
            "§",
            "sec.",
            "clause",
            "paragraph",
            "rev.",
            "build",
            "firmware",
        ],
        Sign::Version,
    )
    .chain(whole(
        &[
            "mac",
            "mac address",
            "mac addr",
            "hwaddr",
            "ether",
            "bssid",
            "hardware address",
            "physical address",
            "mac-adresse",
            "adresse mac",
            "dirección mac",
            "lladdr",
            "macaddr",
            "macaddress",
            "device address",
            "bluetooth",
        ],
        Sign::Hardware,
    ))
}

/// Finds the addresses of the wanted rules.
pub(super) fn find(scan: &mut Scan, hits: &Hits<'_>, wanted: impl Fn(RedactionRule) -> bool) {
    if wanted(RedactionRule::Mac) {
        hardware(scan, hits);
        scan.hide();
    }
    if wanted(RedactionRule::Ip) {
        version_6(scan);
        scan.hide();
        version_4(scan, hits);
        scan.hide();
    }
}

/// Finds hardware addresses: six or eight pairs of hexadecimal digits, three groups of four with dots, and other forms after a word that
/// announces them.
fn hardware(scan: &mut Scan, hits: &Hits<'_>) {
    let mut at = 0;
    while at < scan.len() {
        let length = scan.run(at, 13, |byte| byte.is_ascii_hexdigit());
        let announced = || hits.announce(at, REACH, |sign| sign == Sign::Hardware);
        let lettered = |end: usize| scan.bytes(at..end).iter().any(u8::is_ascii_alphabetic);
        let boundary = length > 0 && !is_word(scan.before(at));
        let found = match (boundary, length, scan.byte(at + length)) {
            (true, 2, mark @ (b':' | b'-')) => {
                groups(scan, at, 2, mark).filter(|(count, _)| matches!(count, 6 | 8))
            }
            (true, 4, b'.') => groups(scan, at, 4, b'.')
                .filter(|(count, end)| *count == 3 && (lettered(*end) || announced())),
            (true, 4, mark @ (b':' | b'-' | b' ')) => {
                groups(scan, at, 4, mark).filter(|(count, _)| *count == 3 && announced())
            }
            // A part of a longer row of bytes is not an address.
            (true, 2, mark @ (b' ' | b'.' | b'_')) => {
                groups(scan, at, 2, mark).filter(|(count, end)| {
                    let row = scan.before(at) == mark
                        && scan.run_before(at - 1, 3, |byte| byte.is_ascii_hexdigit()) == 2;
                    (*count == 6 && !row && lettered(*end))
                        || (matches!(count, 6 | 8) && announced())
                })
            }
            (true, 12, _) => Some((1, at + 12)).filter(|_| announced()),
            (true, 6, mark @ (b'-' | b':')) => {
                groups(scan, at, 6, mark).filter(|(count, _)| *count == 2 && announced())
            }
            _ => None,
        };
        // Parts of longer rows, like fingerprints and dumps, are not addresses.
        let found = found.filter(|(_, end)| {
            !matches!(scan.before(at), b':' | b'-' | b'.') && !is_word(scan.byte(*end))
        });
        at = match found {
            Some((_, end)) => {
                let value = compact(scan.bytes(at..end)).to_lowercase();
                scan.found(RedactionRule::Mac, at..end, value);
                end
            }
            None => {
                at + length.max(1)
                    + usize::from(length == 0)
                        * scan.run(at + 1, usize::MAX, |byte| !byte.is_ascii_hexdigit())
            }
        };
    }
}

/// Returns the number of groups of `digits` hexadecimal digits at `at` that are separated by `mark`, and their end.
fn groups(scan: &Scan, at: usize, digits: usize, mark: u8) -> Option<(usize, usize)> {
    let mut end = at;
    for count in 1..=9 {
        if scan.run(end, digits, |byte| byte.is_ascii_hexdigit()) < digits {
            return None;
        }
        end += digits;
        if scan.byte(end) != mark || !scan.byte(end + 1).is_ascii_hexdigit() {
            return Some((count, end));
        }
        end += 1;
    }
    None
}

fn version_6(scan: &mut Scan) {
    let is_part = |byte: u8| byte.is_ascii_hexdigit() || matches!(byte, b':' | b'.');
    let mut at = 0;
    while at < scan.len() {
        let skipped = scan.run(at, usize::MAX, |byte| !is_part(byte));
        at += skipped;
        let length = scan.run(at, usize::MAX, is_part);
        let found = address_6(scan, at, length).filter(|_| length > 2 && !is_word(scan.before(at)));
        if let Some(found) = found {
            let value = String::from_utf8_lossy(scan.bytes(found.clone())).to_lowercase();
            scan.found(RedactionRule::Ip, found, value);
        }
        at += length.max(1);
    }
}

/// Returns the address in the row of hexadecimal digits, colons and dots that starts at `at`. Colons and dots around the address belong
/// to the sentence.
fn address_6(scan: &Scan, at: usize, length: usize) -> Option<Range<usize>> {
    let row = scan.bytes(at..at + length.min(LONGEST + 3));
    let front = match row {
        [b':', b':', ..] => 0,
        _ => row
            .iter()
            .take_while(|byte| matches!(byte, b':' | b'.'))
            .count(),
    };
    let text = std::str::from_utf8(&row[front..]).ok()?;
    let text = match length > LONGEST + 3 {
        true => return None,
        false if text.ends_with("::") => text,
        false => text.trim_end_matches([':', '.']),
    };
    let address: Ipv6Addr = text.parse().ok()?;
    let end = at + front + text.len();
    if is_word(scan.byte(end)) || address.is_loopback() || address.is_unspecified() {
        return None;
    }
    // `a::b` parses as an address, but in code it is a path.
    let first = text.split(':').next().unwrap_or_default();
    let scoped = first.len() == 4 && matches!(first.as_bytes()[0] | 0x20, b'2' | b'3' | b'f')
        || first.eq_ignore_ascii_case("64");
    let colons = text.matches(':').count();
    let plain = text
        .bytes()
        .all(|byte| byte.is_ascii_digit() || byte == b':')
        && text.split(':').all(|group| group.len() < 3);
    if !text.contains(|c: char| c.is_ascii_digit()) || plain || (colons < 3 && !scoped) {
        return None;
    }
    let zone = match scan.byte(end) {
        b'%' => {
            1 + scan.run(end + 1, ZONE, |byte| {
                is_word(byte) || matches!(byte, b'-' | b'.')
            })
        }
        _ => 0,
    };
    let zone = zone - scan.run_before(end + zone, zone, |byte| byte == b'.');
    Some(at + front..end + zone)
}

fn version_4(scan: &mut Scan, hits: &Hits<'_>) {
    let mut from = 0;
    while let Some(run) = scan.digits_from(from) {
        from = run.end;
        let mark = scan.byte(run.end);
        let hosted = matches!(mark, b'-' | b'_') && is_host(scan, run.start);
        if run.len() > 3 || !(mark == b'.' || hosted) {
            continue;
        }
        let row = scan.run(run.start, 20, |byte| byte.is_ascii_digit() || byte == mark);
        let text = scan.bytes(run.start..run.start + row);
        let text = std::str::from_utf8(text)
            .unwrap_or_default()
            .trim_end_matches(['.', '-', '_']);
        let Some(address) = address_4(text) else {
            continue;
        };
        let text = text.to_owned();
        let end = run.start + text.len();
        let before = scan.before(run.start);
        let part = (is_word(before) && !hosted)
            || (matches!(before, b'.' | b',') && scan.before(run.start - 1).is_ascii_digit())
            || is_word(scan.byte(end));
        from = end;
        let local = address.is_loopback() || address.is_unspecified() || address.octets()[0] == 255;
        // `Chrome/120.0.0.0`, `version 1.2.3.4`
        let version = (before == b'/'
            && scan.before(run.start - 1).is_ascii_alphabetic()
            && address.octets()[2..] == [0, 0])
            || hits.announce(run.start, 3, |sign| sign == Sign::Version);
        if !part && !local && !version {
            scan.found(RedactionRule::Ip, run.start..end, address.to_string());
        }
    }
}

/// Returns whether the digits at `at` follow a word that is common in host names: `ip-203-0-113-9.ec2.internal`.
fn is_host(scan: &Scan, at: usize) -> bool {
    const HOSTS: [&str; 12] = [
        "ip", "host", "ec2", "static", "dsl", "pool", "cpe", "client", "dynamic", "vps", "dhcp",
        "node",
    ];
    let back = usize::from(matches!(scan.before(at), b'-' | b'_' | b'.'));
    let length = scan.run_before(at - back, 8, |byte| byte.is_ascii_alphanumeric());
    let start = at - back - length;
    HOSTS
        .iter()
        .any(|host| host.len() == length && scan.is(start, host))
}

/// Parses four numbers of one byte each with the same sign between them. Each may be padded with zeros to three digits.
fn address_4(text: &str) -> Option<Ipv4Addr> {
    let mut bytes = [0; 4];
    let mut parts = text.split(['.', '-', '_']);
    for byte in &mut bytes {
        let part = parts.next()?;
        let padded = part.len() > 1 && part.starts_with('0');
        if part.is_empty() || part.len() > 3 || (padded && part.len() < 3) {
            return None;
        }
        *byte = part.parse().ok()?;
    }
    parts.next().is_none().then(|| Ipv4Addr::from(bytes))
}
