//! Cards, accounts and private keys that are split over two texts: they start at the end of one and continue in the other.

use std::collections::HashSet;
use std::ops::Range;

use super::rule::RedactionRule;
use super::rules::Rules;
use super::scan::Find;
use super::secrets::private_key;

/// The length in bytes that is searched on either side of the split.
const REACH: usize = 64;

/// The minimum number of digits in both parts together.
const DIGITS: usize = 13;

/// Replaces the parts of cards, accounts and private keys that are split over the texts of each pair.
pub(super) fn close(rules: &Rules, texts: &mut [String], pairs: &[(usize, usize)]) {
    let mut open = HashSet::new();
    for (first, second) in pairs.iter().copied() {
        close_key(rules, texts, (first, second), &mut open);
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

/// Replaces the continuation, at the start of the second text, of a private key that the first text leaves open; `open` are the texts
/// that consist entirely of key material.
fn close_key(
    rules: &Rules,
    texts: &mut [String],
    (first, second): (usize, usize),
    open: &mut HashSet<usize>,
) {
    let is_open = |front: &String| open.contains(&first) || private_key::is_open(front);
    if !texts.get(first).is_some_and(is_open) {
        return;
    }
    let Some((length, goes_on)) = texts.get(second).map(|text| private_key::rest(text)) else {
        return;
    };
    if length > 0 {
        let find = Find {
            rule: RedactionRule::Secret,
            range: 0..length,
            value: texts[second][..length].to_owned(),
        };
        texts[second].replace_range(..length, &rules.surrogate(&find));
    }
    if goes_on {
        open.insert(second);
    }
}

/// Returns the number of bytes at the end of `front` and at the start of `behind` that form one number, and its surrogate.
fn cut(rules: &Rules, front: &str, behind: &str) -> Option<(usize, usize, String)> {
    let digits = |text: &str| text.chars().filter(|c| c.is_numeric()).count();
    if digits(front) + digits(behind) < DIGITS {
        return None;
    }
    let is_account =
        |rule: RedactionRule| matches!(rule, RedactionRule::Card | RedactionRule::Iban);
    // A number that is whole on one side has no other part.
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

/// Returns the searched end of a text up to its last digit; none if there is no digit in it.
fn last_number(text: &str) -> Option<Range<usize>> {
    let start = text.floor_char_boundary(text.len().saturating_sub(REACH));
    let tail = &text[start..];
    let (at, c) = tail.char_indices().rev().find(|(_, c)| c.is_numeric())?;
    Some(start..start + at + c.len_utf8())
}

/// Returns the searched start of a text from its first digit.
fn first_number(text: &str) -> Option<Range<usize>> {
    let end = text.floor_char_boundary(REACH.min(text.len()));
    let (at, _) = text[..end].char_indices().find(|(_, c)| c.is_numeric())?;
    let end = text.floor_char_boundary((at + REACH).min(text.len()));
    Some(at..end)
}
