//! Numbers that identify persons to banks, states and telephone companies.

pub(super) mod cards;
mod check;
pub(super) mod groups;
pub(super) mod iban;
pub(super) mod national;
pub(super) mod phone;

use super::rule::RedactionRule;
use super::scan::Scan;
use super::words::{Hits, Word};

/// Returns the words that announce numbers.
pub(super) fn words() -> impl Iterator<Item = Word> {
    iban::words()
        .chain(cards::words())
        .chain(national::words())
        .chain(phone::words())
}

/// Finds the numbers of the wanted rules. None of them hides a part of another: overlapping numbers are redacted as one.
pub(super) fn find(
    scan: &mut Scan,
    hits: &Hits<'_>,
    forms: &national::Forms,
    wanted: impl Fn(RedactionRule) -> bool,
) {
    if wanted(RedactionRule::Iban) {
        iban::find(scan, hits);
    }
    if wanted(RedactionRule::Card) {
        cards::find(scan);
    }
    if wanted(RedactionRule::Id) {
        national::find(scan, hits, forms);
    }
    if wanted(RedactionRule::Phone) {
        phone::find(scan, hits);
    }
    scan.hide();
}
