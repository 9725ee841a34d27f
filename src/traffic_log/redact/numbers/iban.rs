//! International bank account numbers (ISO 13616), and account numbers that a word announces.

use std::ops::Range;

use super::check::mod_97;
use super::groups::{end_in_front, is_separator, row, separator};
use crate::redact::rule::RedactionRule;
use crate::redact::scan::{Scan, compact};
use crate::redact::words::{Hits, Sign, Word, whole};

/// Countries, and the structure of their accounts after the check digits: counts of digits (`n`), letters (`a`) or either (`c`). The list
/// has the registry's countries, and others that use the format.
const COUNTRIES: &[(&[u8; 2], &str)] = &[
    (b"AD", "n8c12"),
    (b"AE", "n19"),
    (b"AL", "n8c16"),
    (b"AO", "n21"),
    (b"AT", "n16"),
    (b"AZ", "a4c20"),
    (b"BA", "n16"),
    (b"BE", "n12"),
    (b"BF", "c2n22"),
    (b"BG", "a4n6c8"),
    (b"BH", "a4c14"),
    (b"BI", "n23"),
    (b"BJ", "c2n22"),
    (b"BR", "n23a1c1"),
    (b"BY", "c4n4c16"),
    (b"CF", "n23"),
    (b"CG", "n23"),
    (b"CH", "n5c12"),
    (b"CI", "a2n22"),
    (b"CM", "n23"),
    (b"CR", "n18"),
    (b"CV", "n21"),
    (b"CY", "n8c16"),
    (b"CZ", "n20"),
    (b"DE", "n18"),
    (b"DJ", "n23"),
    (b"DK", "n14"),
    (b"DO", "c4n20"),
    (b"DZ", "n22"),
    (b"EE", "n16"),
    (b"EG", "n25"),
    (b"ES", "n20"),
    (b"FI", "n14"),
    (b"FK", "a2n12"),
    (b"FO", "n14"),
    (b"FR", "n10c11n2"),
    (b"GA", "n23"),
    (b"GB", "a4n14"),
    (b"GE", "a2n16"),
    (b"GI", "a4c15"),
    (b"GL", "n14"),
    (b"GQ", "n23"),
    (b"GR", "n7c16"),
    (b"GT", "c24"),
    (b"GW", "c2n19"),
    (b"HN", "a4n20"),
    (b"HR", "n17"),
    (b"HU", "n24"),
    (b"IE", "a4n14"),
    (b"IL", "n19"),
    (b"IQ", "a4n15"),
    (b"IR", "n22"),
    (b"IS", "n22"),
    (b"IT", "a1n10c12"),
    (b"JO", "a4n4c18"),
    (b"KM", "n23"),
    (b"KW", "a4c22"),
    (b"KZ", "n3c13"),
    (b"LB", "n4c20"),
    (b"LC", "a4c24"),
    (b"LI", "n5c12"),
    (b"LT", "n16"),
    (b"LU", "n3c13"),
    (b"LV", "a4c13"),
    (b"LY", "n21"),
    (b"MA", "n24"),
    (b"MC", "n10c11n2"),
    (b"MD", "c20"),
    (b"ME", "n18"),
    (b"MG", "n23"),
    (b"MK", "n3c10n2"),
    (b"ML", "c2n22"),
    (b"MN", "n16"),
    (b"MR", "n23"),
    (b"MT", "a4n5c18"),
    (b"MU", "a4n19a3"),
    (b"MZ", "n21"),
    (b"NE", "a2n22"),
    (b"NI", "a4n20"),
    (b"NL", "a4n10"),
    (b"NO", "n11"),
    (b"OM", "n3c16"),
    (b"PK", "a4c16"),
    (b"PL", "n24"),
    (b"PS", "a4c21"),
    (b"PT", "n21"),
    (b"QA", "a4c21"),
    (b"RO", "a4c16"),
    (b"RS", "n18"),
    (b"RU", "n14c15"),
    (b"SA", "n2c18"),
    (b"SC", "a4n20a3"),
    (b"SD", "n14"),
    (b"SE", "n20"),
    (b"SI", "n15"),
    (b"SK", "n20"),
    (b"SM", "a1n10c12"),
    (b"SN", "a2n22"),
    (b"SO", "n19"),
    (b"ST", "n21"),
    (b"SV", "a4n20"),
    (b"TD", "n23"),
    (b"TG", "a2n22"),
    (b"TL", "n19"),
    (b"TN", "n20"),
    (b"TR", "n6c16"),
    (b"UA", "n6c19"),
    (b"VA", "n18"),
    (b"VG", "a4n16"),
    (b"XK", "n16"),
    (b"YE", "a4n4c18"),
];

/// The maximum distance in bytes between an account number and the word before it that announces it.
const REACH: usize = 16;

pub(super) fn words() -> impl Iterator<Item = Word> {
    whole(
        &[
            "account number",
            "account no",
            "account no.",
            "account #",
            "acct",
            "acct.",
            "acct no",
            "bank account",
            "routing number",
            "routing no",
            "aba number",
            "sort code",
            "kontonummer",
            "konto-nr.",
            "konto nr",
            "kontonr",
            "numéro de compte",
            "número de cuenta",
            "numero di conto",
            "rekeningnummer",
            "numer konta",
            "número da conta",
            "clabe",
            "bsb",
            "transit number",
            "a/c no",
            "a/c",
            "口座番号",
            "银行账号",
            "계좌번호",
            "blz",
            "bankleitzahl",
            "account nr",
            "account id",
            "acct number",
            "kontonr.",
            "konto-nummer",
            "conta corrente",
            "cuenta bancaria",
            "code guichet",
            "code banque",
            "institution number",
            "ifsc",
            "bank code",
            "branch code",
        ],
        Sign::Account,
    )
    .chain(whole(
        &[
            "account",
            "acc",
            "acc.",
            "acc no",
            "a/c number",
            "konto",
            "compte",
            "cuenta",
            "conto",
            "conta",
            "rekening",
            "konto nr.",
            "routing",
            "rtn",
            "aba",
            "transit",
            "счёт",
            "счет",
            "口座",
        ],
        Sign::PlainAccount,
    ))
}

pub(super) fn find(scan: &mut Scan, hits: &Hits<'_>) {
    let mut at = 0;
    while at < scan.len() {
        at += scan.run(at, usize::MAX, |byte| !byte.is_ascii_alphabetic());
        match international(scan, at) {
            Some(found) => {
                at = found.end;
                let value = compact(scan.bytes(found.clone()));
                scan.found(RedactionRule::Iban, found, value);
            }
            None => at += 1,
        }
    }
    let mut from = 0;
    let named = |sign| match sign {
        Sign::Account => Some(REACH),
        Sign::PlainAccount => Some(0),
        _ => None,
    };
    for (range, reach) in hits.all(named) {
        if range.end < from {
            continue;
        }
        let in_front = in_front(scan, range.start).filter(|found| found.start >= from && reach > 0);
        let behind = announced(scan, range.end, reach);
        for found in [in_front, behind].into_iter().flatten() {
            from = found.end;
            let value = compact(scan.bytes(found.clone()));
            scan.found(RedactionRule::Iban, found, value);
        }
    }
}

/// Returns the account number that starts at `at`, with any separators between its characters.
fn international(scan: &Scan, at: usize) -> Option<Range<usize>> {
    let second = at + 1 + separator(scan, at + 1, |byte| byte.is_ascii_alphabetic());
    let country = [
        scan.byte(at).to_ascii_uppercase(),
        scan.byte(second).to_ascii_uppercase(),
    ];
    if !country[1].is_ascii_uppercase() {
        return None;
    }
    let gap = separator(scan, second + 1, |byte| byte.is_ascii_digit());
    if !scan.byte(second + 1 + gap).is_ascii_digit() {
        return None;
    }
    let place = COUNTRIES
        .binary_search_by(|(known, _)| known.as_slice().cmp(&country))
        .ok()?;
    let mut number = Number {
        scan,
        read: country.to_vec(),
        end: second + 1,
    };
    number.take(b'n', 2)?;
    let structure = COUNTRIES[place].1.as_bytes();
    let mut parts = structure;
    while let [class, rest @ ..] = parts {
        let length = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
        let count = rest[..length]
            .iter()
            .fold(0, |count, digit| count * 10 + usize::from(digit - b'0'));
        number.take(*class, count)?;
        parts = &rest[length..];
    }
    let (front, rest) = number.read.split_at(4);
    if mod_97(rest.iter().chain(front)) != Some(1) {
        return None;
    }
    let end = number.end;
    let behind = scan.byte(end);
    let inside = scan.before(at).is_ascii_alphanumeric() && behind.is_ascii_alphanumeric();
    let part = behind.is_ascii_digit() || (inside && structure.contains(&b'c'));
    (!part).then_some(at..end)
}

/// An account number under construction.
struct Number<'a> {
    scan: &'a Scan,
    read: Vec<u8>,
    end: usize,
}

impl Number<'_> {
    /// Reads `count` characters of a class, each after an optional separator.
    fn take(&mut self, class: u8, count: usize) -> Option<()> {
        let fits = |byte: u8| match class {
            b'n' => byte.is_ascii_digit(),
            b'a' => byte.is_ascii_alphabetic(),
            _ => byte.is_ascii_alphanumeric(),
        };
        for _ in 0..count {
            let at = self.end + separator(self.scan, self.end, fits);
            let byte = self.scan.byte(at);
            if !fits(byte) {
                return None;
            }
            self.read.push(byte.to_ascii_uppercase());
            self.end = at + 1;
        }
        Some(())
    }
}

/// Words between a word for an account and its number.
const BETWEEN: [&str; 9] = ["number", "no.", "no", "nr.", "nr", "num", "is", "ist", "id"];

/// Returns the 6 to 20 digits after a word for an account that ends at `at`: at most `reach` bytes away, or with only marks and short
/// words between.
fn announced(scan: &Scan, at: usize, reach: usize) -> Option<Range<usize>> {
    let mark = |byte: u8| {
        matches!(
            byte,
            b' ' | b':' | b'=' | b'#' | b'.' | b'(' | b'"' | b'\'' | b'-' | b'\t'
        )
    };
    let mut start = at + scan.run(at, 6, mark);
    for word in BETWEEN {
        if start > at && scan.is(start, word) {
            start += word.len() + scan.run(start + word.len(), 6, mark);
        }
    }
    if !scan.byte(start).is_ascii_digit() {
        start = at
            + scan.run(at, reach, |byte| {
                !byte.is_ascii_digit() && !matches!(byte, 0 | b'\n')
            });
    }
    let length = scan.run(start, 21, |byte| byte.is_ascii_digit());
    if length == 0 || start == at && scan.before(at).is_ascii_digit() {
        return None;
    }
    let groups = row(scan, start..start + length, is_separator);
    let end = groups.last()?.end;
    let digits: usize = groups.iter().map(ExactSizeIterator::len).sum();
    ((6..=20).contains(&digits) && !scan.byte(end).is_ascii_alphanumeric()).then_some(start..end)
}

/// Returns the 6 to 20 digits before a word for an account that starts at `word`.
fn in_front(scan: &Scan, word: usize) -> Option<Range<usize>> {
    let end = end_in_front(scan, word)?;
    let length = scan.run_before(end, 28, |byte| {
        byte.is_ascii_digit() || matches!(byte, b'-' | b' ')
    });
    let trimmed = scan.run(end - length, length, |byte| !byte.is_ascii_digit());
    let start = end - length + trimmed;
    let digits = scan.bytes(start..end);
    let digits = digits.iter().filter(|byte| byte.is_ascii_digit()).count();
    let whole = length < 28 && !scan.before(start).is_ascii_alphanumeric();
    ((6..=20).contains(&digits) && whole).then_some(start..end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_countries_are_in_order() {
        assert!(COUNTRIES.is_sorted_by(|a, b| a.0 < b.0));
    }
}
