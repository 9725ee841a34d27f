//! Government-issued numbers of persons: identity, tax, social insurance and health.
//!
//! A form of a number has a shape, and a check for the conditions that a shape cannot express. If both together are weak (nine digits in
//! a row with one check digit), the number counts only beside a word that announces it.

mod americas;
mod announced;
mod asia;
mod dates;
mod europe_east;
mod europe_north;
mod europe_west;
mod loose;
mod pacific_africa;

use super::groups::{
    continues_before, continues_behind, end_in_front, is_amount, is_separator, is_term,
};
use crate::redact::rule::RedactionRule;
use crate::redact::scan::{Scan, compact};
use crate::redact::words::{Hits, Sign, Word, whole};

/// A kind of identifying number of one country.
#[derive(Debug)]
pub(super) struct Form {
    /// The ISO 3166 code; `name` is the number's name. Both are those in the document.
    #[cfg_attr(not(test), expect(dead_code, reason = "a test compares the document"))]
    pub country: &'static str,
    #[cfg_attr(not(test), expect(dead_code, reason = "a test compares the document"))]
    pub name: &'static str,
    /// Shapes that count anywhere. `9` is a digit, `A` a letter, `*` either, `-` a separator, `~` an optional separator, `!` a dash, a
    /// plus or a letter instead of one; all other characters are literal.
    pub shapes: &'static [&'static str],
    /// Shapes that count only beside a word.
    pub announced: &'static [&'static str],
    pub words: &'static [&'static str],
    /// Checks letters (in capitals) and digits that match a shape.
    pub check: fn(&[u8]) -> bool,
}

/// Returns all forms, in the order of their indices in [`Sign::Form`].
fn all() -> impl Iterator<Item = &'static Form> {
    [
        americas::FORMS,
        europe_west::FORMS,
        europe_north::FORMS,
        europe_east::FORMS,
        asia::FORMS,
        pacific_africa::FORMS,
    ]
    .into_iter()
    .flatten()
}

/// Returns country and name of all forms.
#[cfg(test)]
pub(in crate::redact) fn names() -> impl Iterator<Item = (&'static str, &'static str)> {
    all().map(|form| (form.country, form.name))
}

/// The maximum distance in bytes between a number and the word before it that announces it.
const REACH: usize = 40;

/// The maximum distance in bytes between a number and the word after it that announces it.
const BEHIND: usize = 16;

/// The maximum number of digits or letters at the start of a shape.
const FIRST: usize = 18;

/// A shape of a form.
#[derive(Debug, Clone, Copy)]
struct Shape {
    form: usize,
    shape: &'static [u8],
    check: fn(&[u8]) -> bool,
    announced: bool,
}

/// The forms, indexed by their first characters.
#[derive(Debug)]
pub(in crate::redact) struct Forms {
    /// By the number of digits at the start.
    digits: Vec<Vec<Shape>>,
    /// By the number of letters at the start.
    letters: Vec<Vec<Shape>>,
}

impl Forms {
    pub fn new() -> Self {
        let mut forms = Self {
            digits: vec![Vec::new(); FIRST + 1],
            letters: vec![Vec::new(); FIRST + 1],
        };
        for (place, form) in all().enumerate() {
            let open = form.shapes.iter().map(|shape| (shape, false));
            let announced = form.announced.iter().map(|shape| (shape, true));
            for (shape, announced) in open.chain(announced) {
                let shape = Shape {
                    form: place,
                    shape: shape.as_bytes(),
                    check: form.check,
                    announced,
                };
                forms.add(shape);
            }
        }
        forms
    }

    fn add(&mut self, shape: Shape) {
        let is = |class: u8, byte: u8| byte == class || byte == b'~' || byte == b'*';
        let Some(&first) = shape.shape.first() else {
            return;
        };
        let by_first = if first == b'9' {
            &mut self.digits
        } else {
            &mut self.letters
        };
        // If a separator is optional, or a letter may be a digit, the run at the start has several lengths.
        let least = shape
            .shape
            .iter()
            .take_while(|byte| **byte == first)
            .count();
        let most = shape
            .shape
            .iter()
            .take_while(|byte| is(first, **byte))
            .filter(|byte| **byte != b'~')
            .count();
        for shapes in &mut by_first[least..=most.min(FIRST)] {
            shapes.push(shape);
        }
    }
}

pub(super) fn words() -> impl Iterator<Item = Word> {
    all()
        .enumerate()
        .flat_map(|(place, form)| whole(form.words, Sign::Form(place)))
        .chain(announced::words())
}

/// Finds the numbers of all forms, and those that only a word identifies.
pub(super) fn find(scan: &mut Scan, hits: &Hits<'_>, forms: &Forms) {
    let mut at = 0;
    while at < scan.len() {
        at += scan.run(at, usize::MAX, |byte| !byte.is_ascii_alphanumeric());
        let digits = scan.run(at, usize::MAX, |byte| byte.is_ascii_digit());
        let letters = match digits {
            0 => scan.run(at, usize::MAX, |byte| byte.is_ascii_alphabetic()),
            _ => 0,
        };
        let shapes = match digits {
            0 => forms.letters.get(letters),
            _ => forms.digits.get(digits),
        };
        let begins = (digits > 0 || may_follow(scan, at, letters))
            && !continues_before(scan, at)
            && scan.before(at) != b'+'
            && !is_amount(scan, at);
        let found = shapes.filter(|_| begins).and_then(|shapes| {
            shapes
                .iter()
                .filter_map(|shape| shape.find(scan, hits, at))
                .max()
        });
        if let Some(end) = found {
            let value = compact(scan.bytes(at..end));
            scan.found(RedactionRule::Id, at..end, value);
        }
        at += (digits + letters).max(1);
        // The rest of a longer word cannot start a number.
        at += scan.run(at, usize::MAX, |byte| byte.is_ascii_alphanumeric());
    }
    loose::find(scan, hits);
    announced::find(scan, hits);
}

/// Returns whether the text after a number's first letters can continue it: digits, or the second three letters of the Italian code.
fn may_follow(scan: &Scan, at: usize, letters: usize) -> bool {
    let end = at + letters;
    match scan.byte(end) {
        byte if byte.is_ascii_digit() => true,
        byte if is_separator(byte) => {
            let next = scan.byte(end + 1);
            next.is_ascii_digit() || (letters == 3 && next.is_ascii_alphabetic())
        }
        _ => false,
    }
}

impl Shape {
    /// Returns the end of the number that starts at `at`; none if it does not match this shape.
    fn find(&self, scan: &Scan, hits: &Hits<'_>, at: usize) -> Option<usize> {
        let mut end = at;
        let mut read = [0; 24];
        let mut length = 0;
        for class in self.shape {
            let byte = scan.byte(end);
            let fits = match class {
                b'9' => byte.is_ascii_digit(),
                b'A' => byte.is_ascii_alphabetic(),
                b'*' => byte.is_ascii_alphanumeric(),
                b'!' => matches!(byte, b'-' | b'+' | b'A'..=b'F' | b'U'..=b'Y'),
                b'-' | b'~' => {
                    // Only a single separator: with spaces around it, a dash is a minus.
                    let gap = scan.run(end, 1, |byte| is_separator(byte) && byte != b'_');
                    if gap == 0 && *class == b'-' {
                        return None;
                    }
                    end += gap;
                    continue;
                }
                other => byte == *other,
            };
            if !fits {
                return None;
            }
            if byte.is_ascii_alphanumeric() && length < read.len() {
                read[length] = byte.to_ascii_uppercase();
                length += 1;
            }
            end += 1;
        }
        let read = &read[..length];
        if continues_behind(scan, end)
            || self.is_in_row(scan, at, end)
            || is_term(scan, end)
            || !(self.check)(read)
        {
            return None;
        }
        let wanted = |sign| sign == Sign::Form(self.form) || sign == Sign::AnyId;
        let is_announced = || {
            hits.announce(at, REACH, wanted)
                || hits.follow(end, BEHIND, wanted, |word| {
                    end_in_front(scan, word) == Some(end)
                })
        };
        (!self.announced || is_announced()).then_some(end)
    }
}

impl Shape {
    /// Returns whether equal groups of digits continue before or after the number, which is then a part of a longer one.
    fn is_in_row(&self, scan: &Scan, at: usize, end: usize) -> bool {
        let is_digit = |byte: &&u8| **byte == b'9';
        let first = self.shape.iter().take_while(is_digit).count();
        let last = self.shape.iter().rev().take_while(is_digit).count();
        if !self.shape.contains(&b'-') || first < 3 || last < 3 {
            return false;
        }
        let digit = |byte: u8| byte.is_ascii_digit();
        let behind = scan.byte(end) == b' ' && scan.run(end + 1, last + 1, digit) == last;
        let before = scan.before(at) == b' ' && scan.run_before(at - 1, first + 1, digit) == first;
        behind || before
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_has_a_shape_and_those_that_are_announced_a_word() {
        for form in all() {
            let name = format!("{} {}", form.country, form.name);
            assert!(
                !form.shapes.is_empty() || !form.announced.is_empty(),
                "{name}"
            );
            assert!(
                form.announced.is_empty() || !form.words.is_empty(),
                "{name}"
            );
        }
    }
}
