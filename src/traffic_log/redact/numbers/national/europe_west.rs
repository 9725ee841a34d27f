//! Numbers of persons in western Europe.

use super::Form;
use crate::redact::numbers::check::{digits, is_day, luhn, mod_11_10, value, verhoeff, weighted};

pub(super) const FORMS: &[Form] = &[
    Form {
        country: "GB",
        name: "NINO",
        shapes: &["AA~99~99~99~A"],
        announced: &[],
        words: &[],
        check: gb_nino,
    },
    Form {
        country: "GB",
        name: "NHS number",
        shapes: &["999-999-9999"],
        announced: &["9999999999"],
        words: &["nhs", "nhs number", "nhs no", "chi number"],
        check: |id| {
            11 - weighted(id, &[10, 9, 8, 7, 6, 5, 4, 3, 2]) % 11
                == [11, 1, 2, 3, 4, 5, 6, 7, 8, 9][usize::from(id[9] - b'0')]
        },
    },
    Form {
        country: "GB",
        name: "UTR",
        shapes: &[],
        announced: &["9999999999", "99999-99999", "999-999-9999"],
        words: &["utr", "unique taxpayer reference"],
        check: |_| true,
    },
    Form {
        country: "GB",
        name: "driving licence",
        shapes: &[
            "AAAAA~999999~A**AA",
            "AAAA9~999999~A**AA",
            "AAA99~999999~A**AA",
        ],
        announced: &[],
        words: &[],
        check: |id| is_day(value(id, 6..8) % 50, value(id, 8..10)),
    },
    Form {
        country: "IE",
        name: "PPS number",
        shapes: &["9999999~A", "9999999~AA"],
        announced: &[],
        words: &[],
        check: ie_pps,
    },
    Form {
        country: "DE",
        name: "Steuer-ID",
        shapes: &["99999999999", "99-999-999-999"],
        announced: &[],
        words: &[],
        check: de_tax,
    },
    Form {
        country: "DE",
        name: "Steuernummer",
        shapes: &[],
        announced: &[
            "99-999-99999",
            "999-999-99999",
            "999-9999-9999",
            "99-999-9-9999",
        ],
        words: &[
            "steuernummer",
            "steuer-nr",
            "steuer-nr.",
            "st.-nr.",
            "stnr",
            "st-nr",
        ],
        check: |_| true,
    },
    Form {
        country: "DE",
        name: "Sozialversicherungsnummer",
        shapes: &["99~999999~A~999"],
        announced: &[],
        words: &[],
        check: de_pension,
    },
    Form {
        country: "DE",
        name: "Krankenversichertennummer",
        shapes: &[],
        announced: &["A999999999"],
        words: &[
            "versichertennummer",
            "krankenversichertennummer",
            "kvnr",
            "krankenkasse",
            "versicherten-nr",
            "versichertennr",
        ],
        check: |_| true,
    },
    Form {
        country: "DE",
        name: "Personalausweis, Reisepass",
        shapes: &["A*********"],
        announced: &["A********"],
        words: &[
            "personalausweis",
            "ausweis",
            "ausweisnummer",
            "personalausweisnummer",
            "reisepass",
            "reisepassnummer",
            "passnummer",
            "ausweis-nr",
        ],
        check: de_document,
    },
    Form {
        country: "FR",
        name: "NIR",
        shapes: &["9~99~99~9*~999~999~99"],
        announced: &[],
        words: &[],
        check: fr_nir,
    },
    Form {
        country: "FR",
        name: "NIR without its key, numéro fiscal",
        shapes: &[],
        announced: &["9~99~99~9*~999~999", "99-99-999-999-999", "9999999999999"],
        words: &[
            "sécurité sociale",
            "securite sociale",
            "nir",
            "numéro de sécu",
            "n° de sécu",
            "numéro fiscal",
            "spi",
            "insee",
        ],
        check: |_| true,
    },
    Form {
        country: "IT",
        name: "codice fiscale",
        shapes: &["AAA~AAA~**A**~A***A"],
        announced: &[],
        words: &[],
        check: it_fiscal,
    },
    Form {
        country: "IT",
        name: "partita IVA",
        shapes: &["AA~99999999999"],
        announced: &["99999999999"],
        words: &["partita iva", "p.iva", "p. iva"],
        check: |id| (id.len() == 11 || id.starts_with(b"IT")) && luhn(id),
    },
    Form {
        country: "ES",
        name: "DNI, NIE",
        shapes: &["99999999~A", "99-999-999~A", "A~9999999~A", "A~9-999-999~A"],
        announced: &[],
        words: &["dni", "nie", "nif"],
        check: es_dni,
    },
    Form {
        country: "ES",
        name: "CIF",
        shapes: &[],
        announced: &["A~9999999~*", "A-99-999-999"],
        words: &["cif", "c.i.f.", "nif", "n.i.f."],
        check: es_cif,
    },
    Form {
        country: "ES",
        name: "número de la Seguridad Social",
        shapes: &["99-99999999-99", "99-9999999999"],
        announced: &["999999999999"],
        words: &["seguridad social", "nuss", "naf"],
        check: |id| value(id, 0..10) % 97 == value(id, 10..12),
    },
    Form {
        country: "PT",
        name: "NIF",
        shapes: &[],
        announced: &["999999999", "999-999-999"],
        words: &[
            "nif",
            "contribuinte",
            "número de contribuinte",
            "niss",
            "número fiscal",
        ],
        check: |id| {
            let rest = 11 - weighted(id, &[9, 8, 7, 6, 5, 4, 3, 2]) % 11;
            (if rest > 9 { 0 } else { rest }) == u32::from(id[8] - b'0')
        },
    },
    Form {
        country: "PT",
        name: "cartão de cidadão",
        shapes: &["99999999-9-AA9", "99999999-9AA9", "999999999AA9"],
        announced: &[],
        words: &[],
        check: pt_card,
    },
    Form {
        country: "NL",
        name: "BSN",
        shapes: &["9999-99-999"],
        announced: &["999999999", "999-999-999", "99999999"],
        words: &[
            "bsn",
            "burgerservicenummer",
            "sofinummer",
            "sofi-nummer",
            "sofi",
        ],
        check: |id| {
            let weights = &[9, 8, 7, 6, 5, 4, 3, 2][9 - id.len()..];
            weighted(&id[..id.len() - 1], weights) % 11 == u32::from(id[id.len() - 1] - b'0')
        },
    },
    Form {
        country: "BE",
        name: "rijksregisternummer",
        shapes: &["99-99-99-999-99", "999999-999-99", "99999999999"],
        announced: &[],
        words: &[],
        check: be_register,
    },
    Form {
        country: "LU",
        name: "matricule",
        shapes: &["9999999999999", "99999999-99999", "9999-99-99-99999"],
        announced: &[],
        words: &[],
        check: |id| {
            let second = [&id[..11], &id[12..13]].concat();
            is_day(value(id, 4..6), value(id, 6..8)) && luhn(&id[..12]) && verhoeff(&second)
        },
    },
    Form {
        country: "CH",
        name: "AHV-Nummer",
        shapes: &["999-9999-9999-99", "9999999999999"],
        announced: &[],
        words: &[],
        check: |id| {
            id.starts_with(b"756")
                && (10 - weighted(id, &[1, 3, 1, 3, 1, 3, 1, 3, 1, 3, 1, 3]) % 10) % 10
                    == u32::from(id[12] - b'0')
        },
    },
    Form {
        country: "AT",
        name: "Sozialversicherungsnummer",
        shapes: &["9999-999999", "9999-99-99-99"],
        announced: &["9999999999"],
        words: &[
            "sozialversicherungsnummer",
            "svnr",
            "sv-nummer",
            "sv-nr",
            "versicherungsnummer",
            "svnr.",
        ],
        check: |id| {
            let sum = weighted(id, &[3, 7, 9, 0, 5, 8, 4, 2, 1, 6]);
            is_day(value(id, 6..8), value(id, 4..6)) && sum % 11 == u32::from(id[3] - b'0')
        },
    },
];

fn gb_nino(id: &[u8]) -> bool {
    let prefixes = [b"BG", b"GB", b"NK", b"KN", b"TN", b"NT", b"ZZ"];
    let prefix = &id[..2];
    // `QQ` is never issued; forms and examples use it.
    let example = prefix == b"QQ" && (b'A'..=b'D').contains(&id[8]);
    example
        || !prefix.iter().any(|byte| b"DFIQUV".contains(byte))
            && id[1] != b'O'
            && !prefixes.iter().any(|known| prefix == known.as_slice())
            && (b'A'..=b'D').contains(&id[8])
}

fn ie_pps(id: &[u8]) -> bool {
    let second = id.get(8).map_or(0, |byte| {
        if *byte == b'W' {
            0
        } else {
            u32::from(byte - b'A') + 1
        }
    });
    let sum = weighted(&id[..7], &[8, 7, 6, 5, 4, 3, 2]) + 9 * second;
    let check = match sum % 23 {
        0 => b'W',
        rest => b'A' + u8::try_from(rest).unwrap_or(0) - 1,
    };
    id[7] == check
}

/// Checks Germany's tax number: exactly one of the first ten digits occurs twice or three times, all others at most once.
fn de_tax(id: &[u8]) -> bool {
    let mut counts = [0; 10];
    for digit in digits(&id[..10]) {
        counts[digit as usize] += 1;
    }
    let repeated: Vec<i32> = counts.into_iter().filter(|count| *count > 1).collect();
    id[0] != b'0' && matches!(repeated.as_slice(), [2 | 3]) && mod_11_10(id)
}

/// Checks Germany's pension number: each digit is multiplied by its weight, and the digits of the products are added; the letter counts
/// as two digits.
fn de_pension(id: &[u8]) -> bool {
    let letter = u32::from(id[8] - b'A') + 1;
    let values: Vec<u32> = digits(&id[..8])
        .chain([letter / 10, letter % 10])
        .chain(digits(&id[9..11]))
        .collect();
    let weights = [2, 1, 2, 5, 7, 1, 2, 1, 2, 1, 2, 1];
    let sum: u32 = values
        .iter()
        .zip(weights)
        .map(|(value, weight)| value * weight)
        .map(|product| product / 10 + product % 10)
        .sum();
    is_day(value(id, 4..6), value(id, 2..4) % 50) && sum % 10 == u32::from(id[11] - b'0')
}

/// Checks a German document's number. Serial numbers have no vowels and no letters that look like digits; the tenth character is the
/// check digit.
fn de_document(id: &[u8]) -> bool {
    let values = id
        .iter()
        .map(|byte| char::from(*byte).to_digit(36).unwrap_or(0));
    let sum: u32 = values
        .clone()
        .zip([7, 3, 1].into_iter().cycle())
        .take(9)
        .map(|(value, weight)| value * weight)
        .sum();
    let known = |byte: &u8| byte.is_ascii_digit() || b"CFGHJKLMNPRTVWXYZ".contains(byte);
    let count = digits(id).count();
    b"CFGHJKLMNPRTVWXYZ".contains(&id[0])
        && id.iter().all(known)
        && count > 4
        && id
            .get(9)
            .is_none_or(|check| u32::from(*check) == u32::from(b'0') + sum % 10)
}

fn fr_nir(id: &[u8]) -> bool {
    let (department, corsica) = match &id[5..7] {
        b"2A" => (19, true),
        b"2B" => (18, true),
        _ => (value(id, 5..7), false),
    };
    let plain = corsica || id[6].is_ascii_digit();
    let number = value(id, 0..5) * 100_000_000 + department * 1_000_000 + value(id, 7..13);
    plain && matches!(id[0], b'1'..=b'8') && 97 - number % 97 == value(id, 13..15)
}

/// Checks Italy's tax code. Letters replace digits if two persons would have the same code, so the shape permits either.
fn it_fiscal(id: &[u8]) -> bool {
    const ODD: [u32; 26] = [
        1, 0, 5, 7, 9, 13, 15, 17, 19, 21, 2, 4, 18, 20, 11, 3, 6, 8, 12, 14, 16, 10, 22, 25, 24,
        23,
    ];
    let place = |byte: u8| {
        usize::from(if byte.is_ascii_digit() {
            byte - b'0'
        } else {
            byte - b'A'
        })
    };
    let sum: u32 = id[..15]
        .iter()
        .enumerate()
        .map(|(at, byte)| {
            if at % 2 == 0 {
                ODD[place(*byte)]
            } else {
                place(*byte) as u32
            }
        })
        .sum();
    let digit_like = |at: usize| id[at].is_ascii_digit() || b"LMNPQRSTUV".contains(&id[at]);
    [6, 7, 9, 10, 12, 13, 14].into_iter().all(digit_like)
        && b"ABCDEHLMPRST".contains(&id[8])
        && u32::from(id[15] - b'A') == sum % 26
}

fn es_dni(id: &[u8]) -> bool {
    let first = match id[0] {
        // Children, Spaniards abroad and foreigners without a number have seven digits.
        b'X' | b'K' | b'L' | b'M' => b'0',
        b'Y' => b'1',
        b'Z' => b'2',
        digit if digit.is_ascii_digit() => digit,
        _ => return false,
    };
    let mut number = id[..8].to_vec();
    number[0] = first;
    b"TRWAGMYFPDXBNJZSQVHLCKE"[(value(&number, 0..8) % 23) as usize] == id[8]
}

/// Checks Spain's CIF: Luhn's check digit over the seven digits, or its letter.
fn es_cif(id: &[u8]) -> bool {
    let check = (0..10).find(|check| luhn(&[&id[1..8], &[b'0' + check]].concat()));
    let fits = |check: u8| id[8] == b'0' + check || id[8] == b"JABCDEFGHI"[usize::from(check)];
    b"ABCDEFGHJNPQRSUVW".contains(&id[0]) && check.is_some_and(fits)
}

/// Checks a Portuguese card by Luhn's algorithm, with letters as values from ten.
fn pt_card(id: &[u8]) -> bool {
    let sum: u32 = id
        .iter()
        .rev()
        .filter_map(|byte| char::from(*byte).to_digit(36))
        .enumerate()
        .map(|(at, value)| match (at % 2, value * 2) {
            (0, _) => value,
            (_, double) if double > 9 => double - 9,
            (_, double) => double,
        })
        .sum();
    sum.is_multiple_of(10)
}

/// Checks Belgium's number. For births in this century, a two precedes the number in the check.
fn be_register(id: &[u8]) -> bool {
    let (number, check) = (value(id, 0..9), value(id, 9..11));
    let born = value(id, 2..4) % 20 <= 12 && value(id, 4..6) <= 31;
    born && (97 - number % 97 == check || 97 - (number + 2_000_000_000) % 97 == check)
}
