//! Numbers with their own word before or after them: any separators may be between any two of their characters.

use std::ops::Range;

use super::{Form, REACH, all};
use crate::redact::numbers::groups::{end_in_front, is_any_separator};
use crate::redact::rule::RedactionRule;
use crate::redact::scan::{Scan, compact};
use crate::redact::words::{Hits, Sign};

/// The maximum length of a separator in bytes: ` - `.
const SEPARATOR: usize = 3;

/// The maximum number of words that are read after the announcing word.
const WORDS: usize = 5;

/// The maximum length in bytes, with separators, of a number before its word.
const LONGEST: usize = 32;

pub(super) fn find(scan: &mut Scan, hits: &Hits<'_>) {
    let forms: Vec<&Form> = all().collect();
    let own = |sign| match sign {
        Sign::Form(place) => Some(place),
        _ => None,
    };
    for (range, place) in hits.all(own) {
        let form = forms[place];
        let found = [
            behind(scan, form, range.end),
            in_front(scan, form, range.start),
        ];
        for found in found.into_iter().flatten() {
            let value = compact(scan.bytes(found.clone()));
            scan.found(RedactionRule::Id, found, value);
        }
    }
}

/// Returns the first number of a form after `at`.
fn behind(scan: &Scan, form: &Form, at: usize) -> Option<Range<usize>> {
    let mut from = at;
    for _ in 0..WORDS {
        from += scan.run(from, REACH, |byte| {
            !byte.is_ascii_alphanumeric() && !matches!(byte, 0 | b'\n')
        });
        if from > at + REACH {
            return None;
        }
        if let Some(end) = number(scan, form, from) {
            return Some(from..end);
        }
        let word = scan.run(from, REACH, |byte| byte.is_ascii_alphanumeric());
        if word == 0 {
            return None;
        }
        from += word;
    }
    None
}

/// Returns the longest number of a form that ends before the word at `word`.
fn in_front(scan: &Scan, form: &Form, word: usize) -> Option<Range<usize>> {
    let end = end_in_front(scan, word)?;
    let length = scan.run_before(end, LONGEST, |byte| {
        byte.is_ascii_alphanumeric() || is_any_separator(byte)
    });
    (end - length..end)
        .filter(|start| {
            let begins = scan.byte(*start).is_ascii_alphanumeric();
            begins && !scan.before(*start).is_ascii_alphanumeric()
        })
        .find(|start| number(scan, form, *start) == Some(end))
        .map(|start| start..end)
}

/// Returns the end of the longest number of a form that starts at `at`.
fn number(scan: &Scan, form: &Form, at: usize) -> Option<usize> {
    let shapes = form.shapes.iter().chain(form.announced);
    shapes
        .filter_map(|shape| shaped(scan, form, shape, at))
        .max()
}

fn shaped(scan: &Scan, form: &Form, shape: &str, at: usize) -> Option<usize> {
    let mut end = at;
    let mut read = Vec::with_capacity(24);
    for class in shape.bytes() {
        let fits = |byte: u8| match class {
            b'9' => byte.is_ascii_digit(),
            b'A' => byte.is_ascii_alphabetic(),
            b'*' => byte.is_ascii_alphanumeric(),
            b'!' => matches!(byte, b'A'..=b'F' | b'U'..=b'Y'),
            other => byte.eq_ignore_ascii_case(&other),
        };
        if matches!(class, b'-' | b'~' | b'(' | b')') {
            continue;
        }
        let gap = match end {
            first if first == at => 0,
            _ => scan.run(end, SEPARATOR, is_any_separator),
        };
        let byte = scan.byte(end + gap);
        match fits(byte) {
            true => {
                read.push(byte.to_ascii_uppercase());
                end += gap + 1;
            }
            // A dash or a plus: both are separators.
            false if class == b'!' => {}
            false => return None,
        }
    }
    let apart = !scan.byte(end).is_ascii_alphanumeric();
    (apart && (form.check)(&read)).then_some(end)
}
