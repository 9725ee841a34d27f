//! Numbers of persons in the Americas.

use super::Form;
use crate::redact::numbers::check::{digits, is_day, luhn, value, weighted};

pub(super) const FORMS: &[Form] = &[
    Form {
        country: "US",
        name: "SSN, ITIN",
        shapes: &["999-99-9999"],
        announced: &["999999999"],
        words: &[
            "ssn",
            "ssn#",
            "social security",
            "social security number",
            "social security no",
            "itin",
            "taxpayer",
            "social",
        ],
        check: us_ssn,
    },
    Form {
        country: "US",
        name: "EIN",
        shapes: &[],
        announced: &["99-9999999"],
        words: &["ein", "employer identification number", "fein"],
        check: |_| true,
    },
    Form {
        country: "US",
        name: "Medicare beneficiary identifier",
        shapes: &["9A*9~A*9~AA99"],
        announced: &[],
        words: &[],
        check: |id| id[0] != b'0' && !id.iter().any(|byte| b"SLOIBZ".contains(byte)),
    },
    Form {
        country: "CA",
        name: "SIN",
        shapes: &["999-999-999"],
        announced: &["999999999"],
        words: &[
            "sin",
            "social insurance number",
            "social insurance",
            "numéro d'assurance sociale",
            "nas",
            "s.i.n.",
        ],
        check: luhn,
    },
    Form {
        country: "MX",
        name: "CURP",
        shapes: &["AAAA999999AAAAAA*9"],
        announced: &[],
        words: &[],
        check: mx_curp,
    },
    Form {
        country: "MX",
        name: "RFC",
        shapes: &["AAAA~999999~***"],
        announced: &[],
        words: &[],
        check: |id| {
            is_day(value(id, 6..8), value(id, 8..10)) && id[10..].iter().any(u8::is_ascii_digit)
        },
    },
    Form {
        country: "MX",
        name: "NSS",
        shapes: &[],
        announced: &["99-99-99-9999-9", "99999999999"],
        words: &["nss", "imss", "seguro social", "número de seguridad social"],
        check: luhn,
    },
    Form {
        country: "BR",
        name: "CPF",
        shapes: &["999-999-999-99", "99999999999"],
        announced: &["999999999-99"],
        words: &["cpf"],
        check: br_cpf,
    },
    Form {
        country: "BR",
        name: "CNPJ",
        // Since 2026 letters may replace digits, except in the check digits.
        shapes: &[
            "99-999-999-9999-99",
            "99999999999999",
            "99-***-***-****-99",
            "A*-***-***-****-99",
        ],
        announced: &["************99"],
        words: &["cnpj"],
        check: br_cnpj,
    },
    Form {
        country: "BR",
        name: "RG, CNH, PIS",
        shapes: &[],
        announced: &["99-999-999-*", "999999999", "99999999999", "999-99999-99-9"],
        words: &[
            "rg",
            "registro geral",
            "cnh",
            "pis",
            "pasep",
            "identidade",
            "carteira de identidade",
            "título de eleitor",
        ],
        check: |_| true,
    },
    Form {
        country: "AR",
        name: "CUIT, CUIL",
        shapes: &["99-99999999-9"],
        announced: &["99999999999"],
        words: &["cuit", "cuil"],
        check: ar_cuit,
    },
    Form {
        country: "AR, PE",
        name: "DNI",
        shapes: &[],
        announced: &["99-999-999", "99999999", "9-999-999"],
        words: &[
            "dni",
            "d.n.i.",
            "documento",
            "documento de identidad",
            "documento nacional",
        ],
        check: |_| true,
    },
    Form {
        country: "CL",
        name: "RUT",
        shapes: &["99-999-999-*", "9-999-999-*", "99999999-*"],
        announced: &["9999999-*", "999999999", "99999999A"],
        words: &["rut", "run", "r.u.t."],
        check: cl_rut,
    },
    Form {
        country: "CO",
        name: "cédula",
        shapes: &[],
        announced: &[
            "9-999-999-999",
            "9999999999",
            "99-999-999",
            "99999999",
            "999-999-9999",
        ],
        words: &[
            "cédula",
            "cedula",
            "cédula de ciudadanía",
            "c.c.",
            "cédula de identidad",
        ],
        check: |_| true,
    },
    Form {
        country: "EC",
        name: "cédula",
        shapes: &["999999999-9"],
        announced: &["9999999999"],
        words: &["cédula", "cedula"],
        check: |id| (1..=24).contains(&value(id, 0..2)) && id[2] < b'6' && luhn_of_ten(id),
    },
];

fn us_ssn(id: &[u8]) -> bool {
    let (area, group, serial) = (value(id, 0..3), value(id, 3..5), value(id, 5..9));
    let taxpayer = area >= 900 && matches!(group, 50..=65 | 70..=88 | 90..=92 | 94..=99);
    serial > 0 && group > 0 && (taxpayer || !matches!(area, 0 | 666 | 900..))
}

/// Checks the check digit of Mexico's population register, over an alphabet that includes `Ñ`.
fn mx_curp(id: &[u8]) -> bool {
    let values = id.iter().map(|byte| match byte {
        b'0'..=b'9' => u32::from(byte - b'0'),
        b'A'..=b'N' => u32::from(byte - b'A') + 10,
        _ => u32::from(byte.saturating_sub(b'A')) + 11,
    });
    let sum: u32 = values
        .zip((2..=18).rev())
        .map(|(value, weight)| value * weight)
        .sum();
    let sexes = matches!(id[10], b'H' | b'M' | b'X');
    sexes
        && is_day(value(id, 6..8), value(id, 8..10))
        && (10 - sum % 10) % 10 == u32::from(id[17] - b'0')
}

/// Checks the two check digits of Brazil's CPF: the weights increase to the left, and the sum is taken modulo 11.
fn br_cpf(id: &[u8]) -> bool {
    let check = |length: usize| {
        let weights: Vec<u32> = (2..=u32::try_from(length).unwrap_or(0) + 1).rev().collect();
        weighted(&id[..length], &weights) * 10 % 11 % 10 == u32::from(id[length] - b'0')
    };
    id.iter().any(|digit| *digit != id[0]) && check(9) && check(10)
}

/// Checks Brazil's CNPJ, in which a letter has the value of its ASCII code minus that of zero.
fn br_cnpj(id: &[u8]) -> bool {
    const WEIGHTS: [u32; 13] = [6, 5, 4, 3, 2, 9, 8, 7, 6, 5, 4, 3, 2];
    let check = |length: usize| {
        let values = id[..length].iter().map(|byte| u32::from(byte - b'0'));
        let weights = &WEIGHTS[WEIGHTS.len() - length..];
        let sum: u32 = values
            .zip(weights)
            .map(|(value, weight)| value * weight)
            .sum();
        let rest = if sum % 11 < 2 { 0 } else { 11 - sum % 11 };
        rest + u32::from(b'0') == u32::from(id[length])
    };
    id.iter().any(|digit| *digit != id[0]) && check(12) && check(13)
}

fn ar_cuit(id: &[u8]) -> bool {
    let rest = 11 - weighted(id, &[5, 4, 3, 2, 7, 6, 5, 4, 3, 2]) % 11;
    let check = match rest {
        11 => 0,
        10 => 9,
        rest => rest,
    };
    matches!(value(id, 0..2), 20 | 23..=27 | 30 | 33 | 34) && check == u32::from(id[10] - b'0')
}

/// Checks Chile's RUT: weights 2 to 7 from the right, repeated, modulo 11; ten is written `K`.
fn cl_rut(id: &[u8]) -> bool {
    let Some((check, number)) = id.split_last() else {
        return false;
    };
    let sum: u32 = digits(number)
        .rev()
        .zip((2..=7).cycle())
        .map(|(digit, weight)| digit * weight)
        .sum();
    let expected = match 11 - sum % 11 {
        11 => b'0',
        10 => b'K',
        rest => b'0' + u8::try_from(rest).unwrap_or(0),
    };
    *check == expected
}

fn luhn_of_ten(id: &[u8]) -> bool {
    id.len() == 10 && luhn(id)
}
