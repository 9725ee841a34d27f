//! Dates of birth, in digits or with names of months.

use std::ops::Range;

use crate::redact::numbers::check::{is_day, value};
use crate::redact::numbers::groups::end_in_front;
use crate::redact::scan::{Scan, is_word};

/// The maximum number of short words between a word for a birth and the date.
const WORDS: usize = 4;

/// The maximum length of a date before its word, in bytes.
const LONGEST: usize = 28;

/// The names of months; three or more of their first letters are enough.
const MONTHS: &[&str] = &[
    // English, German, Dutch, Danish, Norwegian, Swedish
    "january",
    "february",
    "march",
    "april",
    "may",
    "june",
    "july",
    "august",
    "september",
    "sept",
    "october",
    "november",
    "december",
    "januar",
    "jänner",
    "februar",
    "märz",
    "maerz",
    "mai",
    "juni",
    "juli",
    "oktober",
    "dezember",
    "januari",
    "februari",
    "maart",
    "mei",
    "augustus",
    "marts",
    "maj",
    "augusti",
    "desember",
    "mars",
    // French, Spanish, Portuguese, Italian
    "janvier",
    "février",
    "fevrier",
    "avril",
    "juin",
    "juillet",
    "août",
    "aout",
    "septembre",
    "octobre",
    "novembre",
    "décembre",
    "enero",
    "febrero",
    "marzo",
    "abril",
    "mayo",
    "junio",
    "julio",
    "agosto",
    "septiembre",
    "setiembre",
    "octubre",
    "noviembre",
    "diciembre",
    "janeiro",
    "fevereiro",
    "março",
    "marco",
    "maio",
    "junho",
    "julho",
    "setembro",
    "outubro",
    "novembro",
    "dezembro",
    "gennaio",
    "febbraio",
    "aprile",
    "maggio",
    "giugno",
    "luglio",
    "settembre",
    "ottobre",
    "dicembre",
    // Polish, Czech, Finnish, Turkish, Russian
    "stycznia",
    "lutego",
    "marca",
    "kwietnia",
    "maja",
    "czerwca",
    "lipca",
    "sierpnia",
    "września",
    "października",
    "listopada",
    "grudnia",
    "ledna",
    "února",
    "března",
    "dubna",
    "května",
    "června",
    "července",
    "srpna",
    "října",
    "prosince",
    "tammikuuta",
    "helmikuuta",
    "maaliskuuta",
    "huhtikuuta",
    "toukokuuta",
    "kesäkuuta",
    "heinäkuuta",
    "elokuuta",
    "syyskuuta",
    "lokakuuta",
    "marraskuuta",
    "joulukuuta",
    "ocak",
    "şubat",
    "mart",
    "nisan",
    "mayıs",
    "haziran",
    "temmuz",
    "ağustos",
    "eylül",
    "ekim",
    "kasım",
    "aralık",
    "января",
    "февраля",
    "марта",
    "апреля",
    "мая",
    "июня",
    "июля",
    "августа",
    "сентября",
    "октября",
    "ноября",
    "декабря",
];

/// Suffixes of the numbers of a date.
const SUFFIXES: &[&str] = &[
    "st", "nd", "rd", "th", "er", "º", "ª", "o", "e", "年", "月", "日", "년", "월", "일",
];
const FILLERS: &[&str] = &["of ", "de ", "del ", "the ", "den ", "dnia ", "d'"];

/// Returns the date after a word for a birth that ends at `at`.
pub(super) fn behind(scan: &Scan, at: usize) -> Option<Range<usize>> {
    let mut from = at;
    for _ in 0..=WORDS {
        from += scan.run(from, 6, |byte| {
            matches!(
                byte,
                b' ' | b':'
                    | b'('
                    | b')'
                    | b'='
                    | b'"'
                    | b'\''
                    | b'.'
                    | b'-'
                    | b'*'
                    | b','
                    | b'>'
                    | b'\t'
            )
        });
        if let Some(end) = date(scan, from) {
            return Some(from..end);
        }
        let word = letters(scan, from);
        if word == 0 || word > 12 {
            return None;
        }
        from += word;
    }
    None
}

/// Returns the date before a word for a birth that starts at `word`.
pub(super) fn in_front(scan: &Scan, word: usize) -> Option<Range<usize>> {
    let end = end_in_front(scan, word)?;
    let least = end.saturating_sub(LONGEST);
    (least..end)
        .filter(|start| !is_word(scan.before(*start)) && is_word(scan.byte(*start)))
        .find(|start| date(scan, *start) == Some(end))
        .map(|start| start..end)
}

/// Returns the length in bytes of the letters at `at`, limited to about twenty.
fn letters(scan: &Scan, at: usize) -> usize {
    let mut length = 0;
    while length < 20 {
        match scan.char_at(at + length).filter(|c| c.is_alphabetic()) {
            Some(c) => length += c.len_utf8(),
            None => break,
        }
    }
    length
}

/// Returns the length of the month's name at `at`, in full or abbreviated.
fn month(scan: &Scan, at: usize) -> Option<usize> {
    let length = letters(scan, at);
    let word = String::from_utf8_lossy(scan.bytes(at..at + length)).to_lowercase();
    let is_one = word.chars().count() > 2 && MONTHS.iter().any(|name| name.starts_with(&word));
    is_one.then_some(length)
}

/// Returns the end of the date that starts at `at`: a day, a month and a year in any order, or a month's name and one of the others.
fn date(scan: &Scan, mut at: usize) -> Option<usize> {
    let mut end = at;
    let mut numbers: Vec<(u64, usize)> = Vec::with_capacity(3);
    let mut named = false;
    for _ in 0..9 {
        let length = scan.run(at, 5, |byte| byte.is_ascii_digit());
        if length > 0 {
            numbers.push((value(scan.bytes(at..at + length), 0..length), length));
            at += length;
            end = at;
            let suffix = SUFFIXES.iter().find(|suffix| {
                let behind = at + suffix.len();
                let apart = !suffix.is_ascii() || !scan.byte(behind).is_ascii_alphabetic();
                scan.is(at, suffix) && apart
            });
            if let Some(suffix) = suffix {
                at += suffix.len();
                end = at;
            }
        } else if let Some(length) = month(scan, at).filter(|_| !named) {
            named = true;
            at += length;
            end = at;
        } else if let Some(filler) = FILLERS
            .iter()
            .find(|filler| end > 0 && scan.is(at, filler))
            .filter(|_| named || !numbers.is_empty())
        {
            at += filler.len();
            continue;
        } else {
            break;
        }
        if numbers.len() + usize::from(named) == 3 {
            break;
        }
        let gap = scan.run(at, 3, |byte| {
            matches!(
                byte,
                b' ' | b'.' | b',' | b'/' | b'-' | b'\'' | b'\t' | b'_'
            )
        });
        at += gap;
    }
    let day = |(number, length): (u64, usize)| length < 3 && (1..32).contains(&number);
    let year = |(number, length): (u64, usize)| match length {
        4 => (1850..2100).contains(&number),
        2 => true,
        _ => false,
    };
    let holds = match (named, numbers.as_slice()) {
        (true, [one]) => day(*one) || (one.1 == 4 && year(*one)),
        (true, [a, b]) => (day(*a) && year(*b)) || (year(*a) && day(*b)),
        (false, [(_, 4), (month, _), (day, 1 | 2)]) => is_day(*month, *day),
        (false, [(a, 1 | 2), (b, _), (_, 2 | 4)]) => is_day(*b, *a) || is_day(*a, *b),
        _ => false,
    };
    let behind = scan.byte(end);
    let goes_on = is_word(behind)
        || (matches!(behind, b'.' | b',' | b'-' | b'/') && scan.byte(end + 1).is_ascii_digit());
    (holds && !goes_on).then_some(end)
}
