//! Differences between countries: calling codes with the lengths of their numbers, and the grouping of national numbers in countries
//! without a trunk zero.

use std::ops::{Range, RangeInclusive};

use super::{is_sequence, is_varied};
use crate::redact::scan::Scan;

/// Calling codes with lengths of their own (libphonenumber), in digits without the code. A trunk zero that is wrongly written after the
/// code makes a number one longer.
const LENGTHS: &[(&str, RangeInclusive<usize>)] = &[
    ("1", 10..=10),
    ("20", 8..=11),
    ("27", 9..=10),
    ("30", 10..=11),
    ("31", 9..=10),
    ("32", 8..=10),
    ("33", 9..=10),
    ("34", 9..=9),
    ("36", 8..=10),
    ("39", 6..=12),
    ("40", 9..=10),
    ("41", 9..=10),
    ("43", 5..=13),
    ("44", 9..=11),
    ("45", 8..=8),
    ("46", 7..=11),
    ("47", 8..=8),
    ("48", 9..=10),
    ("49", 5..=13),
    ("51", 8..=9),
    ("52", 10..=11),
    ("54", 10..=12),
    ("55", 10..=12),
    ("56", 9..=9),
    ("57", 8..=10),
    ("60", 8..=11),
    ("61", 9..=10),
    ("62", 8..=13),
    ("63", 8..=11),
    ("64", 8..=11),
    ("65", 8..=8),
    ("66", 8..=10),
    ("7", 10..=10),
    ("81", 9..=11),
    ("82", 8..=11),
    ("84", 9..=11),
    ("86", 9..=12),
    ("90", 10..=11),
    ("91", 10..=11),
    ("92", 9..=11),
    ("351", 9..=9),
    ("352", 5..=11),
    ("353", 7..=10),
    ("354", 7..=9),
    ("356", 8..=8),
    ("357", 8..=8),
    ("358", 6..=11),
    ("359", 7..=10),
    ("370", 8..=9),
    ("371", 8..=8),
    ("372", 7..=8),
    ("380", 9..=10),
    ("385", 8..=10),
    ("386", 8..=9),
    ("420", 9..=9),
    ("421", 9..=10),
    ("852", 8..=8),
    ("886", 8..=10),
    ("966", 8..=10),
    ("971", 8..=10),
    ("972", 8..=10),
];

/// Calling codes of two digits; all others have three, except 1 and 7.
const OF_TWO: &[u64] = &[
    20, 27, 30, 31, 32, 33, 34, 36, 39, 40, 41, 43, 44, 45, 46, 47, 48, 49, 51, 52, 53, 54, 55, 56,
    57, 58, 60, 61, 62, 63, 64, 65, 66, 81, 82, 84, 86, 90, 91, 92, 93, 94, 95, 98,
];

/// Returns the length of the calling code at the start of a number, and the permitted lengths of the rest.
pub(super) fn calling_code(number: &[u8]) -> Option<(usize, RangeInclusive<usize>)> {
    let first = |length: usize| std::str::from_utf8(number.get(..length)?).ok();
    let code = match (first(1)?, first(2)?) {
        ("1" | "7", _) => first(1)?,
        (_, two) if two.parse().is_ok_and(|two| OF_TWO.contains(&two)) => two,
        ("0", _) => return None,
        _ => first(3)?,
    };
    let known = LENGTHS.iter().find(|(known, _)| *known == code);
    Some((
        code.len(),
        known.map_or(4..=12, |(_, lengths)| lengths.clone()),
    ))
}

/// A national format without a trunk zero.
struct National {
    /// Lengths of the groups.
    groups: &'static [usize],
    /// The condition on the first digits.
    first: First,
    /// The permitted separators.
    between: &'static [u8],
    /// Whether the first group is in brackets.
    bracket: bool,
}

type First = fn(&[u8]) -> bool;

impl National {
    const fn new(groups: &'static [usize], first: First, between: &'static [u8]) -> Self {
        Self {
            groups,
            first,
            between,
            bracket: false,
        }
    }

    const fn in_brackets(groups: &'static [usize], first: First, between: &'static [u8]) -> Self {
        Self {
            bracket: true,
            ..Self::new(groups, first, between)
        }
    }
}

const SPACES: &[u8] = b" \t";
const DASHES: &[u8] = b" \t-";
const ANY: &[u8] = b" \t-.";

/// North American area codes and exchanges start with 2 to 9.
fn north_american(number: &[u8]) -> bool {
    number[0] > b'1' && number.get(3).is_none_or(|digit| *digit > b'1')
}

const NATIONAL: &[National] = &[
    // North America
    National::new(&[3, 3, 4], |n| n[0] > b'1', ANY),
    National::new(&[3, 7], |n| north_american(n) || n[0] == b'9', DASHES),
    National::in_brackets(&[3, 7], |_| true, DASHES),
    National::in_brackets(&[3, 3, 4], |_| true, b" \t-.()/"),
    National::new(
        &[1, 3, 3, 4],
        |n| n[0] == b'1' && north_american(&n[1..]),
        b" \t-.()",
    ),
    // Spain, Czechia, Slovakia, Poland, Portugal, Luxembourg, Bulgaria
    National::new(&[3, 2, 2, 2], |n| matches!(n[0], b'5'..=b'9'), ANY),
    National::new(&[2, 3, 2, 2], |n| matches!(n[0], b'1'..=b'9'), DASHES),
    National::new(&[3, 3, 3], |n| matches!(n[0], b'2' | b'4'..=b'9'), DASHES),
    National::new(&[2, 3, 4], |n| matches!(n[0], b'2' | b'8' | b'9'), DASHES),
    National::in_brackets(&[2, 3, 2, 2], |_| true, DASHES),
    // Italy and Colombia
    National::new(&[3, 6], |n| n[0] == b'3', ANY),
    National::new(&[3, 7], |n| n[0] == b'3', b" \t-./"),
    National::new(&[3, 3, 4], |n| n[0] == b'3', ANY),
    National::new(&[3, 2, 2, 3], |n| n[0] == b'3', ANY),
    // Norway and Denmark
    National::new(&[2, 2, 2, 2], |n| matches!(n[0], b'2'..=b'9'), SPACES),
    National::new(&[3, 2, 3], |n| matches!(n[0], b'4' | b'9' | b'8'), SPACES),
    // Greece
    National::new(
        &[3, 3, 4],
        |n| n.starts_with(b"21") || n.starts_with(b"69"),
        DASHES,
    ),
    National::new(
        &[3, 7],
        |n| n.starts_with(b"21") || n.starts_with(b"69"),
        DASHES,
    ),
    National::new(&[4, 6], |n| n[0] == b'2' && n[1] != b'0', DASHES),
    National::new(
        &[10],
        |n| n.starts_with(b"69") || n.starts_with(b"210"),
        b"",
    ),
    // Mexico, Brazil, Chile, Argentina
    National::new(&[2, 4, 4], |n| n[0] != b'0', DASHES),
    National::in_brackets(&[2, 4, 4], |_| true, DASHES),
    National::in_brackets(&[2, 8], |n| n[0] != b'0', SPACES),
    National::in_brackets(&[2, 9], |n| n[0] != b'0' && n[2] == b'9', DASHES),
    National::new(&[2, 5, 4], |n| n[2] == b'9', DASHES),
    National::in_brackets(&[2, 5, 4], |_| true, DASHES),
    National::new(&[2, 1, 4, 4], |n| n[2] == b'9', DASHES),
    National::in_brackets(&[2, 1, 4, 4], |n| n[2] == b'9', DASHES),
    National::new(&[1, 4, 4], |n| n[0] == b'9', DASHES),
    National::in_brackets(&[1, 4, 4], |_| true, DASHES),
    // India
    National::new(&[5, 5], |n| matches!(n[0], b'6'..=b'9'), DASHES),
    National::new(&[4, 3, 3], |n| matches!(n[0], b'6'..=b'9'), DASHES),
    // China
    National::new(&[11], chinese, b""),
    National::new(&[3, 4, 4], |n| chinese(n) || n[0] == b'4', DASHES),
    National::new(&[3, 3, 3, 2], chinese, DASHES),
    // Russia and Kazakhstan
    National::new(
        &[1, 3, 3, 2, 2],
        |n| matches!(n[0], b'7' | b'8'),
        b" \t-().",
    ),
    National::new(&[1, 3, 3, 4], |n| n[0] == b'8', b" \t-()"),
    National::new(&[1, 3, 7], |n| n[0] == b'8', b" \t-()"),
    National::new(&[11], |n| n.starts_with(b"89") || n.starts_with(b"79"), b""),
    // Hong Kong, Singapore, Estonia: groups of four, which a bracket or a dash distinguishes from years
    National::new(&[3, 3, 2, 2], |n| matches!(n[0], b'3'..=b'9'), ANY),
];

fn chinese(number: &[u8]) -> bool {
    number[0] == b'1' && matches!(number[1], b'3'..=b'9')
}

/// Returns whether the groups of a number have the format of a country without a trunk zero.
pub(super) fn is_national(
    scan: &Scan,
    start: usize,
    bracket: bool,
    groups: &[Range<usize>],
    number: &[u8],
) -> bool {
    // A bracket around the whole number belongs to the sentence.
    let bracket = bracket && groups.len() > 1;
    let fits = |national: &National| {
        national.bracket == bracket
            && national
                .groups
                .iter()
                .copied()
                .eq(groups.iter().map(ExactSizeIterator::len))
            && (national.first)(number)
            && groups.windows(2).all(|pair| {
                let between = scan.bytes(pair[0].end..pair[1].start);
                let closed = bracket && pair[0] == groups[0];
                let single = between.len() == 1
                    || closed
                    || between.iter().any(|byte| matches!(byte, b'(' | b')'));
                single
                    && between
                        .iter()
                        .all(|byte| national.between.contains(byte) || (closed && *byte == b')'))
            })
    };
    // Lists consist of groups of two and five digits, too.
    let listed = groups.len() > 1 && is_sequence(scan, groups);
    let in_row = scan.before(start) == b','
        || (scan.before(start) == b' ' && scan.before(start - 1) == b',') && groups.len() < 3;
    NATIONAL.iter().any(fits) && !(listed && groups.len() > 2) && is_varied(number) && !in_row
}
