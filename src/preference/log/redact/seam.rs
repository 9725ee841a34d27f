//! Cards and accounts that are cut over two texts: they end one and begin the other.

use std::ops::Range;

use super::rule::RedactionRule;
use super::rules::Rules;

/// How much of a text is looked at on either side of the cut, in bytes.
const REACH: usize = 64;

/// Digits that the two parts have together, at least.
const DIGITS: usize = 13;

/// Replaces the parts of cards and accounts that are cut over the texts of each pair.
pub(super) fn close(rules: &Rules, texts: &mut [String], pairs: &[(usize, usize)]) {
    for (first, second) in pairs.iter().copied() {
        let (Some(front), Some(behind)) = (texts.get(first), texts.get(second)) else {
            continue;
        };
        let (Some(front_part), Some(behind_part)) = (last_number(front), first_number(behind))
        else {
            continue;
        };
        let (end, begin) = (front_part.end, behind_part.start);
        if let Some((front_part, behind_part, surrogate)) =
            cut(rules, &front[front_part], &behind[behind_part])
        {
            texts[first].replace_range(end - front_part..end, &surrogate);
            texts[second].replace_range(begin..begin + behind_part, &surrogate);
        }
    }
}

/// Returns how many bytes at the end of `front` and at the start of `behind` are one number, and what stands for it.
fn cut(rules: &Rules, front: &str, behind: &str) -> Option<(usize, usize, String)> {
    let digits = |text: &str| text.chars().filter(|c| c.is_numeric()).count();
    if digits(front) + digits(behind) < DIGITS {
        return None;
    }
    let is_account =
        |rule: RedactionRule| matches!(rule, RedactionRule::Card | RedactionRule::Iban);
    // What is whole on one side needs no other.
    let whole = |text: &str| {
        rules
            .places(text)
            .iter()
            .any(|(_, find)| is_account(find.rule))
    };
    if whole(front) || whole(behind) {
        return None;
    }
    let joined = format!("{front} {behind}");
    let places = rules.places(&joined);
    let (range, find) = places.iter().find(|(range, find)| {
        is_account(find.rule) && range.start < front.len() && range.end > front.len() + 1
    })?;
    Some((
        front.len() - range.start,
        range.end - front.len() - 1,
        rules.surrogate(find),
    ))
}

/// Returns the end of a text up to its last digit, as far as it is looked at; none where that digit is too far from the end.
fn last_number(text: &str) -> Option<Range<usize>> {
    let start = text.floor_char_boundary(text.len().saturating_sub(REACH));
    let tail = &text[start..];
    let (at, c) = tail.char_indices().rev().find(|(_, c)| c.is_numeric())?;
    Some(start..start + at + c.len_utf8())
}

/// Returns the start of a text from its first digit on, as far as it is looked at.
fn first_number(text: &str) -> Option<Range<usize>> {
    let end = text.floor_char_boundary(REACH.min(text.len()));
    let (at, _) = text[..end].char_indices().find(|(_, c)| c.is_numeric())?;
    let end = text.floor_char_boundary((at + REACH).min(text.len()));
    Some(at..end)
}
