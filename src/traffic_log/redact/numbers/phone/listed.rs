//! Rows of small numbers, which are lists and not telephone numbers: `Sort 12 7 33 81 5 90`.

use std::ops::Range;

use super::is_separator_of_words;
use crate::redact::scan::Scan;
use crate::redact::words::{Hits, Sign, Word, whole};

/// The maximum distance in bytes between a row and the word before it that announces a list.
const REACH: usize = 28;

/// The maximum distance in bytes between a row and the word after it.
const BEHIND: usize = 16;

/// The maximum digits of a number in a row.
const SMALL: usize = 3;

/// Returns the words beside which a row of small numbers is a list.
pub(super) fn words() -> impl Iterator<Item = Word> {
    whole(
        &[
            "add",
            "add up",
            "array",
            "ascending",
            "average",
            "descending",
            "divide",
            "falling order",
            "from high",
            "from low",
            "integers",
            "largest",
            "list",
            "lists",
            "maximum",
            "mean",
            "median",
            "minimum",
            "multiply",
            "numbers",
            "order",
            "product",
            "rising order",
            "sequence",
            "series",
            "smallest",
            "sort",
            "sorted",
            "subtract",
            "sum",
        ],
        Sign::List,
    )
}

/// Returns whether groups are a part of a row of small numbers: one more stands before or behind them, or a word beside them says that
/// they are a list.
pub(super) fn is_listed(scan: &Scan, hits: &Hits<'_>, groups: &[Range<usize>]) -> bool {
    let (Some(first), Some(last)) = (groups.first(), groups.last()) else {
        return false;
    };
    if groups.len() < 3 || groups.iter().any(|group| group.len() > SMALL) {
        return false;
    }
    let spaced = groups
        .windows(2)
        .all(|pair| scan.bytes(pair[0].end..pair[1].start) == b" ");
    if !spaced {
        return false;
    }
    let wanted = |sign| sign == Sign::List;
    is_small_before(scan, first.start)
        || is_small_behind(scan, last.end)
        || hits.announce(first.start, REACH, wanted)
        || hits.follow(last.end, BEHIND, wanted, |_| true)
}

/// Returns whether a number of few digits and a space stand before `at`.
fn is_small_before(scan: &Scan, at: usize) -> bool {
    if scan.before(at) != b' ' {
        return false;
    }
    let digits = scan.run_before(at - 1, SMALL + 1, |byte| byte.is_ascii_digit());
    let before = scan.before(at - 1 - digits);
    (1..=SMALL).contains(&digits) && (before == 0 || is_separator_of_words(before))
}

/// Returns whether a space and a number of few digits stand at `at`.
fn is_small_behind(scan: &Scan, at: usize) -> bool {
    if scan.byte(at) != b' ' {
        return false;
    }
    let digits = scan.run(at + 1, SMALL + 1, |byte| byte.is_ascii_digit());
    let behind = scan.byte(at + 1 + digits);
    (1..=SMALL).contains(&digits) && (behind == 0 || is_separator_of_words(behind))
}

/// Returns whether groups mix single digits with longer numbers, as lists do. A single digit at the beginning may be a country's or an
/// area's; a number that is told digit by digit has no longer groups.
pub(super) fn is_mixed(groups: &[Range<usize>]) -> bool {
    let single = |group: &Range<usize>| group.len() == 1;
    groups.len() > 3 && groups.iter().skip(1).any(single) && !groups.iter().all(single)
}
