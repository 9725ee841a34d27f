//! Numbers of persons in central, eastern and southern Europe, and Turkey.

use super::Form;
use crate::redact::numbers::check::{digits, is_day, luhn, mod_11_10, value, weighted};

pub(super) const FORMS: &[Form] = &[
    Form {
        country: "PL",
        name: "PESEL",
        shapes: &["99999999999", "999999-99999"],
        announced: &[],
        words: &[],
        check: |id| {
            let sum = weighted(id, &[1, 3, 7, 9, 1, 3, 7, 9, 1, 3, 1]);
            is_day(value(id, 2..4) % 20, value(id, 4..6)) && sum.is_multiple_of(10)
        },
    },
    Form {
        country: "PL",
        name: "NIP",
        shapes: &["999-999-99-99", "999-99-99-999"],
        announced: &["9999999999"],
        words: &["nip"],
        check: |id| weighted(id, &[6, 5, 7, 2, 3, 4, 5, 6, 7]) % 11 == u32::from(id[9] - b'0'),
    },
    Form {
        country: "PL",
        name: "dowód osobisty",
        shapes: &["AAA999999"],
        announced: &["AAA-999999"],
        words: &["dowód", "dowod", "dowód osobisty", "dowodu", "numer dowodu"],
        check: pl_card,
    },
    Form {
        country: "CZ, SK",
        name: "rodné číslo",
        shapes: &["999999-9999", "999999-999"],
        announced: &["9999999999", "999999999"],
        words: &["rodné číslo", "rodne cislo", "rč", "r.č.", "rodného čísla"],
        check: cz_birth,
    },
    Form {
        country: "HU",
        name: "személyi azonosító",
        shapes: &["9-999999-9999"],
        announced: &["99999999999"],
        words: &["személyi szám", "személyi azonosító"],
        check: |id| is_day(value(id, 3..5), value(id, 5..7)),
    },
    Form {
        country: "HU",
        name: "TAJ-szám, adóazonosító",
        shapes: &[],
        announced: &["999-999-999", "999999999", "9999999999"],
        words: &[
            "taj",
            "taj-szám",
            "taj szám",
            "adóazonosító",
            "adóazonosító jel",
        ],
        check: |_| true,
    },
    Form {
        country: "RO",
        name: "CNP",
        shapes: &[
            "9999999999999",
            "9-999999-999999",
            "9-999999-99999-9",
            "9-999999-99-9999",
        ],
        announced: &[],
        words: &["cnp"],
        check: |id| {
            let rest = weighted(id, &[2, 7, 9, 1, 4, 6, 3, 5, 8, 2, 7, 9]) % 11;
            let check = if rest == 10 { 1 } else { rest };
            id[0] != b'0'
                && is_day(value(id, 3..5), value(id, 5..7))
                && check == u32::from(id[12] - b'0')
        },
    },
    Form {
        country: "BG",
        name: "EGN",
        shapes: &[],
        announced: &["9999999999"],
        words: &["егн", "egn"],
        check: |id| {
            let sum = weighted(id, &[2, 4, 8, 5, 10, 9, 7, 3, 6]);
            is_day(value(id, 2..4) % 20, value(id, 4..6))
                && sum % 11 % 10 == u32::from(id[9] - b'0')
        },
    },
    Form {
        country: "GR",
        name: "AMKA",
        shapes: &["99999999999"],
        announced: &[],
        words: &[],
        check: |id| is_day(value(id, 2..4), value(id, 0..2)) && luhn(id),
    },
    Form {
        country: "GR",
        name: "AFM",
        shapes: &[],
        announced: &["999999999"],
        words: &["αφμ", "afm", "α.φ.μ."],
        check: |id| {
            weighted(id, &[256, 128, 64, 32, 16, 8, 4, 2]) % 11 % 10 == u32::from(id[8] - b'0')
        },
    },
    Form {
        country: "HR",
        name: "OIB",
        shapes: &[],
        announced: &["99999999999"],
        words: &["oib", "osobni identifikacijski broj"],
        check: mod_11_10,
    },
    Form {
        country: "BA, ME, MK, RS, SI",
        name: "JMBG, EMŠO",
        shapes: &["9999999999999"],
        announced: &[],
        words: &[],
        check: |id| {
            let rest = 11 - weighted(id, &[7, 6, 5, 4, 3, 2, 7, 6, 5, 4, 3, 2]) % 11;
            let check = if rest > 9 { 0 } else { rest };
            let year = value(id, 4..7);
            is_day(value(id, 2..4), value(id, 0..2))
                && !(100..=850).contains(&year)
                && check == u32::from(id[12] - b'0')
        },
    },
    Form {
        country: "EE, LT",
        name: "isikukood, asmens kodas",
        shapes: &["99999999999"],
        announced: &[],
        words: &[],
        check: ee_person,
    },
    Form {
        country: "LV",
        name: "personas kods",
        shapes: &["999999-99999"],
        announced: &["99999999999"],
        words: &["personas kods", "pk"],
        check: |id| {
            value(id, 0..2) == 32
                || (is_day(value(id, 2..4), value(id, 0..2)) && matches!(id[6], b'0'..=b'2'))
        },
    },
    Form {
        country: "RU",
        name: "SNILS",
        shapes: &["999-999-999-99", "99999999999"],
        announced: &[],
        words: &["снилс", "snils"],
        check: |id| {
            // Smaller numbers have no check digits.
            value(id, 0..9) > 1_001_998
                && u64::from(weighted(id, &[9, 8, 7, 6, 5, 4, 3, 2, 1]) % 101 % 100)
                    == value(id, 9..11)
        },
    },
    Form {
        country: "RU",
        name: "INN",
        shapes: &["999999999999"],
        announced: &["9999999999"],
        words: &["инн", "inn"],
        check: |id| {
            let check = |weights: &[u32], at: usize| {
                weighted(id, weights) % 11 % 10 == u32::from(id[at] - b'0')
            };
            id.len() == 10
                || (check(&[7, 2, 4, 10, 3, 5, 9, 4, 6, 8], 10)
                    && check(&[3, 7, 2, 4, 10, 3, 5, 9, 4, 6, 8], 11))
        },
    },
    Form {
        country: "UA",
        name: "РНОКПП",
        shapes: &[],
        announced: &["9999999999"],
        words: &["рнокпп", "іпн", "rnokpp", "ipn", "ідентифікаційний код"],
        check: |id| {
            let sum = weighted(id, &[10, 5, 7, 9, 4, 6, 10, 5, 7]);
            // The first weight is -1, which is 10 modulo 11.
            sum % 11 % 10 == u32::from(id[9] - b'0')
        },
    },
    Form {
        country: "TR",
        name: "TC kimlik numarası",
        shapes: &["99999999999", "999-999-999-99"],
        announced: &[],
        words: &[],
        check: tr_identity,
    },
];

/// Checks a Polish card. Letters have values from ten; the first digit is the check digit.
fn pl_card(id: &[u8]) -> bool {
    let values = id.iter().filter_map(|byte| char::from(*byte).to_digit(36));
    let sum: u32 = values
        .zip([7, 3, 1, 0, 7, 3, 1, 7, 3])
        .map(|(value, weight)| value * weight)
        .sum();
    sum % 10 == u32::from(id[3] - b'0')
}

/// Checks the Czech number. The month is increased by fifty for women, and by twenty on days with many births. Numbers of nine digits,
/// issued until 1953, have no check digit.
fn cz_birth(id: &[u8]) -> bool {
    let (month, number) = (value(id, 2..4) % 50 % 20, value(id, 0..10));
    let divisible =
        number.is_multiple_of(11) || (value(id, 0..9) % 11 == 10 && id.last() == Some(&b'0'));
    is_day(month, value(id, 4..6)) && (id.len() == 9 || divisible)
}

/// Checks Estonia's number. If the first weights give ten, the second are used; if these give ten too, the check digit is zero.
fn ee_person(id: &[u8]) -> bool {
    let rest = |weights: [u32; 10]| weighted(id, &weights) % 11;
    let check = match rest([1, 2, 3, 4, 5, 6, 7, 8, 9, 1]) {
        10 => rest([3, 4, 5, 6, 7, 8, 9, 1, 2, 3]) % 10,
        rest => rest,
    };
    matches!(id[0], b'1'..=b'8')
        && is_day(value(id, 3..5), value(id, 5..7))
        && check == u32::from(id[10] - b'0')
}

fn tr_identity(id: &[u8]) -> bool {
    let all: Vec<u32> = digits(id).collect();
    let odd: u32 = all[..9].iter().step_by(2).sum();
    let even: u32 = all[1..8].iter().step_by(2).sum();
    // 9 * even is -even modulo ten.
    all[0] != 0
        && (7 * odd + 9 * even) % 10 == all[9]
        && all[..10].iter().sum::<u32>() % 10 == all[10]
}
