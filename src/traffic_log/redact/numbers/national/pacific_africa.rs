//! Numbers of persons in Australia, New Zealand and Africa.

use super::Form;
use crate::redact::numbers::check::{is_day, luhn, value, weighted};

pub(super) const FORMS: &[Form] = &[
    Form {
        country: "AU",
        name: "TFN",
        shapes: &["999-999-999"],
        announced: &["999999999", "99999999"],
        words: &["tfn", "tax file number"],
        check: |id| id.len() == 8 || weighted(id, &[1, 4, 3, 7, 5, 8, 6, 9, 10]).is_multiple_of(11),
    },
    Form {
        country: "AU",
        name: "Medicare card",
        shapes: &["9999-99999-9", "9999-99999-9-9"],
        announced: &["9999999999", "99999999999"],
        words: &["medicare", "medicare number", "medicare card"],
        check: |id| {
            matches!(id[0], b'2'..=b'6')
                && weighted(id, &[1, 3, 7, 9, 1, 3, 7, 9]) % 10 == u32::from(id[8] - b'0')
        },
    },
    Form {
        country: "AU",
        name: "ABN",
        shapes: &["99-999-999-999"],
        announced: &["99999999999"],
        words: &["abn", "australian business number"],
        check: |id| {
            id[0] != b'0'
                && (weighted(id, &[10, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19]) + 89 - 10)
                    .is_multiple_of(89)
        },
    },
    Form {
        country: "NZ",
        name: "IRD number",
        shapes: &[],
        announced: &["99-999-999", "999-999-999", "99999999", "999999999"],
        words: &["ird", "ird number", "inland revenue"],
        check: |_| true,
    },
    Form {
        country: "NZ",
        name: "NHI number",
        shapes: &[],
        announced: &["AAA9999", "AAA99AA"],
        words: &["nhi", "nhi number"],
        check: |_| true,
    },
    Form {
        country: "ZA",
        name: "identity number",
        shapes: &["999999~9999~999", "999999-9999-99-9"],
        announced: &[],
        words: &[],
        check: |id| {
            is_day(value(id, 2..4), value(id, 4..6)) && matches!(id[10], b'0'..=b'2') && luhn(id)
        },
    },
    Form {
        country: "EG",
        name: "national ID",
        shapes: &[],
        announced: &["99999999999999"],
        words: &["الرقم القومي", "egyptian id", "egypt national id"],
        check: |id| matches!(id[0], b'2' | b'3') && is_day(value(id, 3..5), value(id, 5..7)),
    },
    Form {
        country: "NG",
        name: "NIN, BVN",
        shapes: &[],
        announced: &["99999999999", "9999-999-9999"],
        words: &["nin", "bvn", "bank verification number"],
        check: |_| true,
    },
    Form {
        country: "KE",
        name: "national ID",
        shapes: &[],
        announced: &["99999999", "9999999", "A999999999A"],
        words: &["kenyan id", "huduma", "kra pin", "kra"],
        check: |_| true,
    },
];
