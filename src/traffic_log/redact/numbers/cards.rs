//! Payment cards, with any grouping of their digits and any text beside them.

use std::ops::Range;

use super::check::{luhn, value};
use super::groups::{is_any_separator, is_separator, is_term, row};
use crate::redact::rule::RedactionRule;
use crate::redact::scan::{Scan, compact};
use crate::redact::words::{Sign, Word, whole};

/// The number of digits of a card.
const DIGITS: std::ops::RangeInclusive<usize> = 13..=19;

pub(super) fn words() -> impl Iterator<Item = Word> {
    whole(
        &[
            "card",
            "card number",
            "visa",
            "mastercard",
            "amex",
            "credit card",
            "debit card",
            "kreditkarte",
            "tarjeta",
            "carte",
        ],
        Sign::Card,
    )
}

/// Finds every card among the groups of each row of digits. Overlapping cards become one, because it is unknown which of them is meant.
pub(super) fn find(scan: &mut Scan) {
    let mut from = 0;
    while let Some(run) = scan.digits_from(from) {
        from = run.end;
        if run.len() > *DIGITS.end()
            || scan.before(run.start).is_ascii_alphabetic() && is_code(scan, run.start)
        {
            continue;
        }
        let groups = row(scan, run, is_any_separator);
        if let Some((found, value)) = longest(scan, &groups) {
            scan.found(RedactionRule::Card, found, value);
        }
    }
}

/// Returns whether digits after a letter are part of a code with further runs of letters and digits, like a hash or a UUID.
fn is_code(scan: &Scan, start: usize) -> bool {
    let letters = scan.run_before(start, 24, |byte| byte.is_ascii_alphabetic());
    let before = scan.before(start - letters);
    before.is_ascii_digit() || before == b'_'
}

/// Returns whether a card may end at `end`: an ungrouped number may have letters directly after it, if no digits follow these.
fn ends_at(scan: &Scan, end: usize, whole: bool) -> bool {
    let letters = scan.run(end, 24, |byte| byte.is_ascii_alphabetic());
    let behind = scan.byte(end + letters);
    letters == 0 || (whole && !behind.is_ascii_digit() && behind != b'_')
}

/// Returns the longest card that starts with the first of `groups`, and its digits.
fn longest(scan: &Scan, groups: &[Range<usize>]) -> Option<(Range<usize>, String)> {
    let start = groups.first()?.start;
    let mut number = Vec::with_capacity(*DIGITS.end());
    let mut best: Option<(usize, Vec<u8>)> = None;
    let mut named: Option<Vec<u8>> = None;
    for (last, group) in groups.iter().enumerate() {
        number.extend_from_slice(scan.bytes(group.clone()));
        if number.len() > *DIGITS.end() {
            break;
        }
        let apart = DIGITS.contains(&number.len()) && ends_at(scan, group.end, last == 0);
        if apart
            && !is_listed(scan, groups, last)
            && is_grouped(&groups[..=last])
            && joined(scan, &groups[..=last])
            && network(&number)
            && luhn(&number)
        {
            // A longer number may be valid only by chance, because of a date after the card.
            if number.len() == 16 || named.is_none() {
                named = Some(number.clone());
            }
            best = Some((group.end, number.clone()));
        }
    }
    let (end, _) = best?;
    Some((start..end, compact(&named?)))
}

/// Returns whether groups are those of a card and not separate numbers: all but the last have three digits or more, or all have the same
/// size.
fn is_grouped(groups: &[Range<usize>]) -> bool {
    let [first, .., last] = groups else {
        return true;
    };
    let inner = &groups[..groups.len() - 1];
    let long = inner.iter().all(|group| group.len() > 2);
    let even = inner.iter().all(|group| group.len() == first.len()) && last.len() <= first.len();
    long || even
}

/// Returns whether groups of one or two digits continue before the first `last + 1` of them, or after.
fn is_listed(scan: &Scan, groups: &[Range<usize>], last: usize) -> bool {
    let first = &groups[0];
    let is_same = |group: &Range<usize>| group.len() == first.len();
    let before = scan.before(first.start) == b' '
        && first.start > 1
        && scan.before(first.start - 1).is_ascii_digit();
    first.len() < 3 && last > 0 && (before || groups.get(last + 1).is_some_and(is_same))
}

/// Returns whether the separators may be those of one card. Separators of lists and code are accepted only between groups as printed on
/// cards.
fn joined(scan: &Scan, groups: &[Range<usize>]) -> bool {
    let lengths: Vec<usize> = groups.iter().map(ExactSizeIterator::len).collect();
    let printed = match lengths.as_slice() {
        [4, 6, 4 | 5] => true,
        [first @ .., last] => first.iter().all(|length| *length == 4) && *last <= 4,
        [] => false,
    };
    let (mut close, mut sum) = (true, false);
    for pair in groups.windows(2) {
        let between = scan.bytes(pair[0].end..pair[1].start);
        close &= between.iter().all(|byte| is_separator(*byte));
        sum |= between.iter().any(|byte| matches!(byte, b'+' | b'*'));
    }
    let end = groups.last().map_or(0, |last| last.end);
    close || (printed && !(sum && is_term(scan, end)))
}

/// Returns whether a card's network has numbers with this beginning and length.
fn network(number: &[u8]) -> bool {
    let (two, three, four) = (
        value(number, 0..2),
        value(number, 0..3),
        value(number, 0..4),
    );
    match number.len() {
        // UATP; American Express; former JCB
        15 => {
            number[0] == b'1'
                || matches!(two, 34 | 37)
                || matches!(four, 1800 | 2131)
                || maestro(two)
        }
        14 => matches!(two, 36 | 38 | 39) || matches!(three, 300..=305 | 309),
        13 => number[0] == b'4',
        16 => {
            number[0] == b'4'
                || matches!(
                    two,
                    51..=55 | 30 | 35 | 36 | 38 | 39 | 62 | 64 | 65 | 60 | 81 | 82
                )
                || matches!(four, 2014 | 2149 | 2200..=2205 | 2221..=2720 | 9792 | 1946 | 8600 | 9860)
                || maestro(two)
        }
        _ => {
            number[0] == b'4' && number.len() == 19
                || matches!(two, 30 | 35 | 36 | 38 | 39 | 81)
                || maestro(two)
        }
    }
}

/// Maestro, Discover and `UnionPay`: 12 to 19 digits.
fn maestro(two: u64) -> bool {
    matches!(two, 50 | 56..=69)
}
