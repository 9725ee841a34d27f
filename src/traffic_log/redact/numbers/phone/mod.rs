//! Telephone numbers: international ones by the ITU's calling codes, national ones by their trunk zero or, in countries without one, by
//! their grouping, and any that a word like `tel.` announces.

mod countries;
mod listed;

use std::ops::Range;

use super::check::{digits, is_day, value};
use super::groups::{continues_before, continues_behind, end_in_front, is_amount, is_said};
use crate::redact::rule::RedactionRule;
use crate::redact::scan::{Scan, is_word};
use crate::redact::words::{Hits, Sign, Word, whole};

use countries::{calling_code, is_national};
use listed::{is_listed, is_mixed};

/// The maximum distance in bytes between a number and the word before it that announces it.
const REACH: usize = 28;

/// The maximum distance in bytes between a number and the word after it that announces it.
const BEHIND: usize = 12;

/// The number of digits of a number that a word announces.
const ANNOUNCED: std::ops::RangeInclusive<usize> = 6..=15;

/// The number of digits of a number with a trunk zero.
const TRUNK: std::ops::RangeInclusive<usize> = 9..=13;

/// The maximum number of groups of digits that are read.
const GROUPS: usize = 9;

pub(super) fn words() -> impl Iterator<Item = Word> {
    whole(
        &[
            "phone",
            "phone number",
            "telephone",
            "telephone number",
            "tel",
            "tel.",
            "tel:",
            "tél",
            "tél.",
            "téléphone",
            "call",
            "call me",
            "calling",
            "text me",
            "sms",
            "ring",
            "mobile",
            "mob",
            "mob.",
            "cell",
            "cellphone",
            "cellular",
            "whatsapp",
            "signal",
            "viber",
            "telegram",
            "fax",
            "fax.",
            "contact",
            "contact number",
            "reach me",
            "hotline",
            "dial",
            "my number",
            "number is",
            "telefon",
            "telefonnummer",
            "handy",
            "handynummer",
            "mobil",
            "mobilnummer",
            "rufnummer",
            "anrufen",
            "ruf mich",
            "portable",
            "appelez",
            "numéro",
            "appeler",
            "teléfono",
            "telefono",
            "móvil",
            "movil",
            "celular",
            "llámame",
            "llamar",
            "llame",
            "cellulare",
            "telefone",
            "telemóvel",
            "ligue",
            "telefoon",
            "telefoonnummer",
            "mobiel",
            "bel",
            "komórka",
            "numer",
            "zadzwoń",
            "kom.",
            "telefón",
            "mobilní",
            "číslo",
            "puhelin",
            "puh",
            "puh.",
            "tlf",
            "tlf.",
            "tlf.nr",
            "mobiltelefon",
            "ring mig",
            "ring meg",
            "numero",
            "tfn",
            "gsm",
            "телефон",
            "тел.",
            "тел",
            "моб.",
            "звоните",
            "τηλ",
            "τηλ.",
            "τηλέφωνο",
            "κινητό",
            "電話",
            "电话",
            "手机",
            "手機",
            "携帯",
            "電話番号",
            "联系方式",
            "联系电话",
            "전화",
            "휴대폰",
            "연락처",
            "전화번호",
            "फ़ोन",
            "मोबाइल",
            "هاتف",
            "جوال",
            "טלפון",
            "نمره",
        ],
        Sign::Phone,
    )
    .chain(listed::words())
}

/// Returns whether a byte ends a number in a text: a space or a mark of punctuation.
fn is_separator_of_words(byte: u8) -> bool {
    matches!(
        byte,
        b' ' | b'\t'
            | b'\n'
            | b'\r'
            | b','
            | b'.'
            | b';'
            | b':'
            | b'?'
            | b'!'
            | b'"'
            | b'\''
            | b'('
            | b')'
            | b'['
            | b']'
    )
}

/// A number as it is written: its groups of digits, and its start including brackets and a plus.
struct Written {
    start: usize,
    plus: bool,
    bracket: bool,
    groups: Vec<Range<usize>>,
}

pub(super) fn find(scan: &mut Scan, hits: &Hits<'_>) {
    let mut from = 0;
    while let Some(run) = scan.digits_from(from) {
        from = run.end;
        if run.len() > *ANNOUNCED.end() + 2 {
            continue;
        }
        let Some(written) = written(scan, run.clone()) else {
            continue;
        };
        let last = written.groups.last().map_or(run.end, |group| group.end);
        let announced = hits.announce(written.start, REACH, |sign| sign == Sign::Phone)
            || hits.follow(
                last,
                BEHIND,
                |sign| sign == Sign::Phone,
                |word| {
                    word > last + 1
                        && end_in_front(scan, word) == Some(last)
                        && is_said(scan, last..word)
                },
            );
        if let Some(end) = number(scan, hits, &written, announced) {
            let number = scan.bytes(written.start..end);
            // A bracket that opens before the number and closes within it.
            let within = number.iter().find(|byte| matches!(byte, b'(' | b')'));
            let open = within == Some(&b')') && scan.before(written.start) == b'(';
            // A bracket that closes after the number belongs to the sentence.
            let closed_behind = within == Some(&b'(') && !number.contains(&b')');
            let start = written.start - usize::from(open) + usize::from(closed_behind);
            let value = plain(number);
            scan.found(RedactionRule::Phone, start..end, value);
            from = end.max(run.end);
        }
    }
}

/// Returns the digits of a number in canonical form: `00` counts as a plus, and a trunk zero in brackets is removed.
fn plain(number: &[u8]) -> String {
    let mut digits = String::new();
    for (at, byte) in number
        .iter()
        .enumerate()
        .filter(|(_, byte)| byte.is_ascii_digit())
    {
        let bracketed = at > 0 && number[at - 1] == b'(' && number.get(at + 1) == Some(&b')');
        if !(bracketed && *byte == b'0') {
            digits.push(char::from(*byte));
        }
    }
    match digits.strip_prefix("00") {
        Some(international) => international.to_owned(),
        None => digits,
    }
}

/// Reads the number whose first digits are `first`; none if these are part of something else.
fn written(scan: &Scan, first: Range<usize>) -> Option<Written> {
    let plus = scan.before(first.start) == b'+';
    let mut start = first.start - usize::from(plus);
    let bracket = scan.before(start) == b'(' && scan.byte(first.end) == b')';
    start -= usize::from(bracket);
    let before = scan.before(start);
    let part = match plus {
        // A plus after a digit or a letter is an addition.
        true => is_word(before) || before == b')',
        false => continues_before(scan, start) || before == b'.' || follows_group(scan, start),
    };
    if part || is_amount(scan, start) {
        return None;
    }
    let mut groups = vec![first.clone()];
    let mut end = first.end;
    while groups.len() < GROUPS {
        let gap = scan.run(end, 5, |byte| {
            matches!(
                byte,
                b' ' | b'\t' | b'(' | b')' | b'.' | b'-' | b'/' | b'_' | b'~'
            )
        });
        let length = scan.run(end + gap, 16, |byte| byte.is_ascii_digit());
        // Two sentences or two columns contain two numbers.
        let between = scan.bytes(end..end + gap);
        if !(1..5).contains(&gap)
            || length == 0
            || between.starts_with(b". ")
            || between.starts_with(b"  ")
        {
            break;
        }
        groups.push(end + gap..end + gap + length);
        end = end + gap + length;
    }
    Some(Written {
        start,
        plus,
        bracket,
        groups,
    })
}

/// Returns whether the number continues another number before it, like the groups of an account.
fn follows_group(scan: &Scan, start: usize) -> bool {
    scan.before(start) == b' ' && scan.run_before(start - 1, 3, |byte| byte.is_ascii_digit()) == 3
}

/// Returns the end of the longest telephone number among the first groups.
fn number(scan: &Scan, hits: &Hits<'_>, written: &Written, announced: bool) -> Option<usize> {
    let mut read = Vec::with_capacity(24);
    let mut ends = Vec::with_capacity(written.groups.len());
    for group in &written.groups {
        read.extend_from_slice(scan.bytes(group.clone()));
        ends.push((read.len(), group.end));
    }
    let whole = |(count, end): &(usize, usize)| {
        let used = written
            .groups
            .iter()
            .take_while(|group| group.end <= *end)
            .count();
        let groups = &written.groups[..used];
        let number = &read[..*count];
        let is_one = match (
            written.plus,
            number.starts_with(b"00") && groups[0].len() > 1,
        ) {
            (true, _) => is_international(number, bracketed_zero(scan, groups)),
            (false, true) => {
                is_international(&number[2..], bracketed_zero(scan, groups)) && !binary(number)
            }
            (false, false) => {
                has_trunk_zero(scan, written, groups, number)
                    || (is_national(scan, written.start, written.bracket, groups, number)
                        && (announced || written.bracket || !is_listed(scan, hits, groups)))
                    || (announced
                        && ANNOUNCED.contains(count)
                        && !is_mixed(groups)
                        && !is_date(scan, groups)
                        && !is_decimal(scan, groups))
            }
        };
        is_one && !continues_behind(scan, *end) && !is_quantity(scan, *end, announced)
    };
    ends.iter()
        .rev()
        .find(|end| whole(end))
        .map(|(_, end)| *end)
}

/// Returns whether a trunk zero is in brackets after the calling code: `+49 (0) 30`.
fn bracketed_zero(scan: &Scan, groups: &[Range<usize>]) -> bool {
    groups.iter().skip(1).any(|group| {
        group.len() == 1 && scan.byte(group.start) == b'0' && scan.before(group.start) == b'('
    })
}

/// Returns whether digits are a calling code and a number of its length.
fn is_international(number: &[u8], zero: bool) -> bool {
    let count = number.len() - usize::from(zero).min(number.len());
    calling_code(number).is_some_and(|(code, lengths)| {
        let significant = count.saturating_sub(code);
        lengths.contains(&significant)
    })
}

/// Returns whether a number starts with a trunk zero and an area or network code, and has groups of at least two digits: the national
/// format of most countries.
fn has_trunk_zero(scan: &Scan, written: &Written, groups: &[Range<usize>], number: &[u8]) -> bool {
    let count = number.len();
    let [first, rest @ ..] = groups else {
        return false;
    };
    if number[0] != b'0'
        || number.get(1).is_none_or(|digit| *digit == b'0')
        || binary(number)
        || is_date(scan, groups)
    {
        return false;
    }
    // A zero on its own belongs to a decimal or an ISBN; in Turkey and a few other countries it is written apart.
    if first.len() == 1 {
        let apart = matches!(scan.byte(first.end), b' ' | b')')
            && rest
                .first()
                .is_some_and(|area| area.len() == 3 || scan.byte(first.end) == b')');
        let bracketed = scan.before(first.start) == b'(' && scan.byte(first.end) == b'-';
        return (apart || bracketed) && TRUNK.contains(&count);
    }
    let short = count == 8 && first.len() < 4 && matches!(scan.byte(first.end), b'-' | b'/' | b')');
    let postcode = matches!(rest, [only] if first.len() == 5 && only.len() == 4 && scan.byte(first.end) == b'-');
    let closed = usize::from(
        rest.first()
            .is_some_and(|group| scan.byte(group.end) == b')'),
    );
    // `-0` is the extension of a switchboard.
    let switchboard = rest
        .last()
        .is_some_and(|group| group.len() == 1 && scan.before(group.start) == b'-');
    let groups_fit = rest[..rest.len() - usize::from(switchboard)]
        .iter()
        .skip(closed)
        .all(|group| (2..=9).contains(&group.len()))
        && (!rest.is_empty() || (10..=11).contains(&count) || (written.bracket && count == 9));
    let bare = rest.is_empty() && count == 9 && number[1] != b'0' && scan.byte(first.end) != b'%';
    (TRUNK.contains(&count) || short) && !postcode && (groups_fit || bare) && first.len() <= 11
}

fn binary(number: &[u8]) -> bool {
    number.iter().all(|digit| matches!(digit, b'0' | b'1'))
}

/// Returns whether groups start with a date.
fn is_date(scan: &Scan, groups: &[Range<usize>]) -> bool {
    let part = |at: usize| {
        groups.get(at).map(|group| {
            (
                group.len(),
                value(scan.bytes(group.clone()), 0..group.len()),
            )
        })
    };
    match (part(0), part(1), part(2)) {
        (Some((1 | 2, a)), Some((1 | 2, b)), Some((4, year))) => {
            (1000..2200).contains(&year) && (is_day(a, b) || is_day(b, a))
        }
        (Some((4, year)), Some((1 | 2, month)), Some((1 | 2, day))) => {
            (1000..2200).contains(&year) && is_day(month, day)
        }
        (Some((2, a)), Some((2, b)), Some((2, _))) => {
            let same = scan.byte(groups[0].end) == scan.byte(groups[1].end);
            groups.len() < 5
                && same
                && matches!(scan.byte(groups[0].end), b'.' | b'/')
                && (is_day(a, b) || is_day(b, a))
        }
        // A month and a year.
        (Some((1 | 2, month)), Some((4, year)), _) => {
            matches!(scan.byte(groups[0].end), b'/' | b'.' | b'-')
                && (1900..2100).contains(&year)
                && is_day(month, 1)
        }
        (Some((4, from)), Some((4, to)), None) => {
            (1000..2200).contains(&from) && (1000..2200).contains(&to)
        }
        _ => false,
    }
}

/// Returns whether groups start with a decimal.
fn is_decimal(scan: &Scan, groups: &[Range<usize>]) -> bool {
    let lone = groups.len() == 2 || groups[0].len() == 1;
    lone && groups.len() > 1
        && scan.byte(groups[0].end) == b'.'
        && groups[1].start == groups[0].end + 1
}

/// Returns whether the text after a number makes it a quantity.
fn is_quantity(scan: &Scan, end: usize, announced: bool) -> bool {
    let space = scan.run(end, 1, |byte| byte == b' ');
    let behind = scan.char_at(end + space);
    behind.is_some_and(|c| matches!(c, '%' | '€' | '$' | '£' | '°' | '=' | '+' | '*' | '^'))
        || (!announced && scan.byte(end) == b':')
}

/// Returns whether the differences between groups are all equal: a sequence and not a number.
fn is_sequence(scan: &Scan, groups: &[Range<usize>]) -> bool {
    let values: Vec<u64> = groups
        .iter()
        .map(|group| value(scan.bytes(group.clone()), 0..group.len()))
        .collect();
    values
        .windows(3)
        .all(|three| three[1].wrapping_sub(three[0]) == three[2].wrapping_sub(three[1]))
}

/// Returns whether a number has more than two different digits.
fn is_varied(number: &[u8]) -> bool {
    let mut seen = [false; 10];
    for digit in digits(number) {
        seen[digit as usize] = true;
    }
    seen.into_iter().filter(|seen| *seen).count() > 1
}
