//! Numbers of documents and dates of birth, which only a word beside them identifies.

use std::ops::Range;

use super::dates;
use crate::redact::numbers::groups::end_in_front;
use crate::redact::rule::RedactionRule;
use crate::redact::scan::{Scan, compact, is_word};
use crate::redact::words::{Hits, Sign, Word, whole};

/// The maximum distance in bytes between a word and the number after it.
const REACH: usize = 24;

/// The number of characters of a document's number.
const LENGTH: std::ops::RangeInclusive<usize> = 5..=16;

pub(super) fn words() -> impl Iterator<Item = Word> {
    whole(
        &[
            "passport",
            "passport no",
            "passport number",
            "passeport",
            "pasaporte",
            "passaporto",
            "passaporte",
            "paspoort",
            "paszport",
            "reisepass",
            "паспорт",
            "护照",
            "護照",
            "パスポート",
            "여권",
            "driver's license",
            "drivers license",
            "driver license",
            "driving licence",
            "driver's licence",
            "license number",
            "licence number",
            "führerschein",
            "führerscheinnummer",
            "permis de conduire",
            "carnet de conducir",
            "patente di guida",
            "rijbewijs",
            "national id",
            "national id number",
            "identity card",
            "identity number",
            "id card",
            "id number",
            "personal id",
            "carte d'identité",
            "carta d'identità",
            "documento de identidade",
            "residence permit",
            "green card",
            "alien number",
            "visa number",
            "medical record number",
            "mrn",
            "patient id",
            "patient number",
            "member id",
            "policy number",
            "insurance number",
            "health card",
            "ohip",
            "在留カード",
            "運転免許",
        ],
        Sign::Document,
    )
    .chain(whole(
        &[
            "tax id",
            "tax identification number",
            "tax number",
            "tax no",
            "tin",
            "tax payer number",
            "national insurance",
            "national insurance number",
            "social security",
            "social security number",
            "national id",
            "national id number",
            "identity number",
            "id number",
            "personal id",
            "personal number",
            "identification number",
            "personal identification number",
            "numéro d'identité",
            "número de identificación",
            "身份证",
            "身份证号",
            "identification",
            "vat",
            "vat id",
            "ust-id",
        ],
        Sign::AnyId,
    ))
    .chain(whole(
        &[
            "dob",
            "d.o.b.",
            "date of birth",
            "birth date",
            "birthdate",
            "birthday",
            "geburtsdatum",
            "geb.",
            "geboren am",
            "geboren",
            "geb",
            "born",
            "born on",
            "b.",
            "birth",
            "naissance",
            "nacimiento",
            "nascita",
            "nascimento",
            "nació el",
            "nascido em",
            "nascida em",
            "geboren op",
            "urodzony",
            "urodzona",
            "ur.",
            "född",
            "født",
            "родился",
            "родилась",
            "生于",
            "生まれ",
            "出生于",
            "date de naissance",
            "né le",
            "née le",
            "fecha de nacimiento",
            "nacido el",
            "nacida el",
            "data di nascita",
            "nato il",
            "nata il",
            "data de nascimento",
            "geboortedatum",
            "data urodzenia",
            "födelsedatum",
            "fødselsdato",
            "syntymäaika",
            "дата рождения",
            "出生日期",
            "生年月日",
            "생년월일",
        ],
        Sign::Birth,
    ))
}

pub(super) fn find(scan: &mut Scan, hits: &Hits<'_>) {
    let wanted = |sign| matches!(sign, Sign::Document | Sign::Birth).then_some(sign);
    let mut taken = 0;
    for (range, sign) in hits.all(wanted) {
        if range.end < taken {
            continue;
        }
        let found = match sign {
            Sign::Birth => [
                dates::behind(scan, range.end),
                dates::in_front(scan, range.start),
            ],
            _ => [
                document(scan, range.end),
                document_in_front(scan, range.start),
            ],
        };
        for found in found.into_iter().flatten() {
            taken = found.end;
            let value = compact(scan.bytes(found.clone()));
            scan.found(RedactionRule::Id, found, value);
        }
    }
}

/// Returns the first word after `at` that has as many digits as documents' numbers have.
fn document(scan: &Scan, at: usize) -> Option<Range<usize>> {
    let mut from = at;
    while from < at + REACH {
        from += scan.run(from, REACH, |byte| {
            !byte.is_ascii_alphanumeric() && !matches!(byte, 0 | b'\n')
        });
        let length = scan.run(from, LENGTH.end() + 1, |byte| byte.is_ascii_alphanumeric());
        if length == 0 {
            return None;
        }
        let mut end = from + length;
        let mut digits = scan
            .bytes(from..end)
            .iter()
            .filter(|byte| byte.is_ascii_digit())
            .count();
        // The groups of one number.
        while digits > 0 && matches!(scan.byte(end), b' ' | b'-') && end - from < *LENGTH.end() {
            let more = scan.run(end + 1, LENGTH.end() + 1, |byte| byte.is_ascii_digit());
            if more < 2 {
                break;
            }
            digits += more;
            end += 1 + more;
        }
        let code = digits > 1
            && (8..=10).contains(&(end - from))
            && !scan.bytes(from..end).iter().any(u8::is_ascii_lowercase);
        if (digits > 4 || code) && LENGTH.contains(&(end - from)) && !is_word(scan.byte(end)) {
            return Some(from..end);
        }
        from = end;
    }
    None
}

/// Returns the document's number before a word that starts at `word`.
fn document_in_front(scan: &Scan, word: usize) -> Option<Range<usize>> {
    let end = end_in_front(scan, word)?;
    let length = scan.run_before(end, LENGTH.end() + 1, |byte| byte.is_ascii_alphanumeric());
    let digits = scan.bytes(end - length..end);
    let digits = digits.iter().filter(|byte| byte.is_ascii_digit()).count();
    (LENGTH.contains(&length) && digits > 4 && length > 6).then_some(end - length..end)
}
