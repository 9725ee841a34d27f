//! Numbers of persons in Asia.

use super::Form;
use crate::redact::numbers::check::{digits, is_day, luhn, value, verhoeff, weighted};

pub(super) const FORMS: &[Form] = &[
    Form {
        country: "IN",
        name: "Aadhaar",
        shapes: &["9999-9999-9999"],
        announced: &["999999999999"],
        words: &["aadhaar", "aadhar", "adhaar", "uidai", "आधार"],
        check: |id| id[0] > b'1' && verhoeff(id),
    },
    Form {
        country: "IN",
        name: "PAN",
        shapes: &["AAAAA9999A"],
        announced: &[],
        words: &[],
        check: |id| b"PCHFATBLJG".contains(&id[3]),
    },
    Form {
        country: "IN",
        name: "GSTIN",
        shapes: &["99AAAAA9999A*A*"],
        announced: &[],
        words: &[],
        check: |id| (1..=38).contains(&value(id, 0..2)) && id[13] == b'Z',
    },
    Form {
        country: "IN",
        name: "voter's card",
        shapes: &[],
        announced: &["AAA9999999"],
        words: &["epic", "voter id", "voter"],
        check: |_| true,
    },
    Form {
        country: "CN",
        name: "resident identity number",
        shapes: &["999999~99999999~999*"],
        announced: &[],
        words: &[],
        check: cn_resident,
    },
    Form {
        country: "TW",
        name: "national identification number",
        shapes: &["A~999999999"],
        announced: &[],
        words: &[],
        check: tw_identity,
    },
    Form {
        country: "HK",
        name: "identity card",
        shapes: &["A999999(*)", "AA999999(*)", "A9999999"],
        announced: &["A999999A"],
        words: &["hkid", "hong kong id", "hong kong identity card", "身份證"],
        check: hk_identity,
    },
    Form {
        country: "KR",
        name: "resident registration number",
        shapes: &["9999999999999"],
        announced: &[],
        words: &[],
        check: kr_resident,
    },
    Form {
        country: "KR",
        name: "resident registration number",
        shapes: &["999999-9999999"],
        announced: &["9999999999999"],
        words: &[
            "주민등록번호",
            "주민번호",
            "rrn",
            "resident registration number",
            "外國人登錄番號",
            "외국인등록번호",
        ],
        check: |id| is_day(value(id, 2..4), value(id, 4..6)),
    },
    Form {
        country: "JP",
        name: "My Number",
        shapes: &["9999-9999-9999"],
        announced: &["999999999999"],
        words: &["my number", "mynumber", "マイナンバー", "個人番号"],
        check: jp_number,
    },
    Form {
        country: "SG",
        name: "NRIC, FIN",
        shapes: &["A~9999999~A"],
        announced: &[],
        words: &[],
        check: sg_identity,
    },
    Form {
        country: "TH",
        name: "identity number",
        shapes: &["9999999999999"],
        announced: &[],
        words: &[],
        check: th_identity,
    },
    Form {
        country: "TH",
        name: "identity number",
        shapes: &["9-9999-99999-99-9"],
        announced: &["9999999999999"],
        words: &["เลขประจำตัวประชาชน", "thai id", "บัตรประชาชน"],
        check: |id| {
            (11 - weighted(id, &[13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2]) % 11) % 10
                == u32::from(id[12] - b'0')
        },
    },
    Form {
        country: "MY",
        name: "MyKad",
        shapes: &["999999-99-9999"],
        announced: &["999999999999"],
        words: &[
            "mykad",
            "nric",
            "kad pengenalan",
            "no. kp",
            "ic no",
            "ic number",
        ],
        check: |id| is_day(value(id, 2..4), value(id, 4..6)),
    },
    Form {
        country: "ID",
        name: "NIK",
        shapes: &[],
        announced: &[
            "9999999999999999",
            "999999-999999-9999",
            "99-9999-999999-9999",
            "9999-9999-9999-9999",
        ],
        words: &["nik", "ktp", "nomor induk kependudukan"],
        check: |id| is_day(value(id, 8..10), value(id, 6..8) % 40),
    },
    Form {
        country: "PH",
        name: "SSS, TIN",
        shapes: &[],
        announced: &[
            "99-9999999-9",
            "999-999-999",
            "999-999-999-999",
            "9999-9999999-9",
        ],
        words: &["sss", "sss number", "umid", "philsys", "tin"],
        check: |_| true,
    },
    Form {
        country: "VN",
        name: "CCCD",
        shapes: &[],
        announced: &["999999999999", "999999999"],
        words: &["cccd", "cmnd", "căn cước", "chứng minh nhân dân"],
        check: |_| true,
    },
    Form {
        country: "PK",
        name: "CNIC",
        shapes: &["99999-9999999-9"],
        announced: &["9999999999999"],
        words: &["cnic", "nadra"],
        check: |id| id[0] != b'0',
    },
    Form {
        country: "LK",
        name: "NIC",
        shapes: &["999999999A"],
        announced: &["999999999999"],
        words: &["nic"],
        check: |id| {
            id.len() == 12
                || (matches!(id[9], b'V' | b'X') && matches!(value(id, 2..5), 1..=366 | 501..=866))
        },
    },
    Form {
        country: "IL",
        name: "mispar zehut",
        shapes: &[],
        announced: &["999999999", "99999999-9", "9-9999999-9"],
        words: &[
            "תעודת זהות",
            "ת.ז.",
            "teudat zehut",
            "mispar zehut",
            "israeli id",
        ],
        check: luhn,
    },
    Form {
        country: "AE",
        name: "Emirates ID",
        shapes: &["999-9999-9999999-9", "999999999999999"],
        announced: &[],
        words: &[],
        check: |id| id.starts_with(b"784") && (1900..2040).contains(&value(id, 3..7)),
    },
    Form {
        country: "SA",
        name: "national ID, Iqama",
        shapes: &[],
        announced: &["9999999999"],
        words: &["iqama", "saudi id", "الهوية الوطنية", "رقم الهوية", "إقامة"],
        check: |id| matches!(id[0], b'1' | b'2'),
    },
    Form {
        country: "IR",
        name: "code melli",
        shapes: &["999-999999-9"],
        announced: &["9999999999"],
        words: &["کد ملی", "code melli", "national code"],
        check: |id| match weighted(id, &[10, 9, 8, 7, 6, 5, 4, 3, 2]) % 11 {
            rest @ 0..=1 => rest == u32::from(id[9] - b'0'),
            rest => 11 - rest == u32::from(id[9] - b'0'),
        },
    },
    Form {
        country: "KZ",
        name: "IIN",
        shapes: &[],
        announced: &["999999999999"],
        words: &["жсн", "иин", "iin"],
        check: |id| is_day(value(id, 2..4), value(id, 4..6)),
    },
];

/// Checks Thailand's number. It must have a valid province, and be neither a recent time in milliseconds nor an article number (EAN),
/// which has a check digit of its own.
fn th_identity(id: &[u8]) -> bool {
    let time = (1_400_000_000_000..2_100_000_000_000).contains(&value(id, 0..13));
    let article = weighted(id, &[1, 3, 1, 3, 1, 3, 1, 3, 1, 3, 1, 3, 1]).is_multiple_of(10);
    let check = (11 - weighted(id, &[13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2]) % 11) % 10;
    (10..97).contains(&value(id, 1..3))
        && id[0] < b'9'
        && !time
        && !article
        && check == u32::from(id[12] - b'0')
}

/// Checks Korea's number by the check digit of numbers issued before October 2020; that of foreigners is two higher.
fn kr_resident(id: &[u8]) -> bool {
    let sum = weighted(id, &[2, 3, 4, 5, 6, 7, 8, 9, 2, 3, 4, 5]) % 11;
    let foreign = matches!(id[6], b'5'..=b'8');
    let check = (11 - sum + if foreign { 2 } else { 0 }) % 10;
    is_day(value(id, 2..4), value(id, 4..6)) && check == u32::from(id[12] - b'0')
}

/// Checks China's number by ISO 7064, MOD 11-2; ten is written `X`.
fn cn_resident(id: &[u8]) -> bool {
    let sum = weighted(id, &[7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2]);
    let born = matches!(value(id, 6..8), 18..=20) && is_day(value(id, 10..12), value(id, 12..14));
    id[0] != b'0' && born && b"10X98765432"[(sum % 11) as usize] == id[17]
}

/// Checks Taiwan's number, in which the letter counts as two digits that encode a place.
fn tw_identity(id: &[u8]) -> bool {
    const PLACES: &[u8; 26] = b"ABCDEFGHJKLMNPQRSTUVXYWZIO";
    let Some(place) = PLACES.iter().position(|letter| *letter == id[0]) else {
        return false;
    };
    let place = place as u32 + 10;
    let sum = place / 10 + place % 10 * 9 + weighted(&id[1..], &[8, 7, 6, 5, 4, 3, 2, 1, 1]);
    matches!(id[1], b'1' | b'2' | b'8' | b'9') && sum.is_multiple_of(10)
}

/// Checks Hong Kong's number. A single letter counts as preceded by a blank with the value 36; ten is written `A`.
fn hk_identity(id: &[u8]) -> bool {
    let mut values: Vec<u32> = id
        .iter()
        .filter_map(|byte| char::from(*byte).to_digit(36))
        .collect();
    if values.len() == 8 {
        values.insert(0, 36);
    }
    let sum: u32 = values
        .iter()
        .zip([9, 8, 7, 6, 5, 4, 3, 2, 1])
        .map(|(value, weight)| value * weight)
        .sum();
    values.len() == 9 && sum.is_multiple_of(11) && matches!(id[id.len() - 1], b'0'..=b'9' | b'A')
}

fn jp_number(id: &[u8]) -> bool {
    let rest = weighted(id, &[6, 5, 4, 3, 2, 7, 6, 5, 4, 3, 2]) % 11;
    let check = if rest < 2 { 0 } else { 11 - rest };
    check == u32::from(id[11] - b'0')
}

fn sg_identity(id: &[u8]) -> bool {
    let sum = weighted(&id[1..8], &[2, 7, 6, 5, 4, 3, 2]);
    let (more, letters) = match id[0] {
        b'S' => (0, b"JZIHGFEDCBA"),
        b'T' => (4, b"JZIHGFEDCBA"),
        b'F' => (0, b"XWUTRQPNMLK"),
        b'G' => (4, b"XWUTRQPNMLK"),
        b'M' => (3, b"XWUTRQPNJLK"),
        _ => return false,
    };
    letters[((sum + more) % 11) as usize] == id[8] && digits(id).any(|digit| digit > 0)
}
