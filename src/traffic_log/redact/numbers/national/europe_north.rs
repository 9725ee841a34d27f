//! Numbers of persons in northern Europe.

use super::Form;
use crate::redact::numbers::check::{is_day, luhn, value, weighted};

pub(super) const FORMS: &[Form] = &[
    Form {
        country: "SE",
        name: "personnummer",
        shapes: &[
            "999999!9999",
            "999999-9999",
            "99999999!9999",
            "999999999999",
        ],
        announced: &["9999999999"],
        words: &["personnummer", "pnr", "samordningsnummer", "personnr"],
        check: se_person,
    },
    Form {
        country: "NO",
        name: "fødselsnummer",
        shapes: &["99999999999", "999999-99999"],
        announced: &[],
        words: &[],
        check: no_birth,
    },
    Form {
        country: "DK, IS",
        name: "CPR, kennitala",
        shapes: &["999999-9999"],
        announced: &["9999999999"],
        words: &[
            "cpr",
            "cpr-nummer",
            "cpr-nr",
            "cprnr",
            "personnummer",
            "kennitala",
        ],
        check: |id| is_day(value(id, 2..4), value(id, 0..2)),
    },
    Form {
        country: "FI",
        name: "henkilötunnus",
        shapes: &["999999!999*"],
        announced: &[],
        words: &[],
        check: fi_person,
    },
];

/// Checks Sweden's number by its last ten digits, however the century is written. In coordination numbers the day is increased by sixty.
fn se_person(id: &[u8]) -> bool {
    let plain: Vec<u8> = id.iter().copied().filter(u8::is_ascii_digit).collect();
    let century = plain.len() == 10 || matches!(value(&plain, 0..2), 18..=20);
    let ten = &plain[plain.len().saturating_sub(10)..];
    plain.len() == id.len()
        && century
        && is_day(value(ten, 2..4), value(ten, 4..6) % 60)
        && luhn(ten)
}

/// Checks Norway's number. In other numbers than those of birth the day is increased by forty, in test numbers the month by forty or
/// eighty.
fn no_birth(id: &[u8]) -> bool {
    let sum = |weights: &[u32]| weighted(id, weights) % 11;
    is_day(value(id, 2..4) % 40, value(id, 0..2) % 40)
        && sum(&[3, 7, 6, 1, 8, 9, 4, 5, 2, 1]) == 0
        && sum(&[5, 4, 3, 2, 7, 6, 5, 4, 3, 2, 1]) == 0
}

fn fi_person(id: &[u8]) -> bool {
    let (serial, check) = (&id[id.len() - 4..id.len() - 1], id[id.len() - 1]);
    let number = value(id, 0..6) * 1000 + value(serial, 0..3);
    is_day(value(id, 2..4), value(id, 0..2))
        && b"0123456789ABCDEFHJKLMNPRSTUVWXY"[(number % 31) as usize] == check
}
