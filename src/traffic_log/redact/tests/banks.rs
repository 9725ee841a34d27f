//! Cards and bank accounts.

use super::{RedactionRule, replaced_everywhere, replaced_exactly, rules, wide};

/// Published test numbers, of every network.
const CARDS: &[(&str, &str)] = &[
    ("Visa", "4111111111111111"),
    ("Visa", "4012888888881881"),
    ("Visa of 13", "4222222222222"),
    ("Mastercard", "5500000000000004"),
    ("Mastercard of the second range", "2223003122003222"),
    ("Maestro", "6759649826438453"),
    ("American Express", "378282246310005"),
    ("American Express", "371449635398431"),
    ("Discover", "6011111111111117"),
    ("Diners Club", "30569309025904"),
    ("Diners Club", "38520000023237"),
    ("JCB", "3530111333300000"),
    ("UnionPay", "6200000000000005"),
    ("UnionPay of 19", "6205500000000000004"),
    ("Mir", "2200000000000004"),
    ("RuPay", "6521111111111110"),
    ("Troy", "9792030394440796"),
    ("Elo", "6362970000457013"),
    ("Hipercard", "6062826786276634"),
];

#[test]
fn cards_of_every_network_are_found_in_every_grouping() {
    let separators = [
        " ", "-", ".", "/", "\u{a0}", "\u{2009}", "\u{202f}", "  ", " - ", "\u{2013}", "\u{200b}",
        "_", ":", ",", "|", "+", " | ", ", ", "\n", "\r\n", ") (", "*", ";", "'", "~",
    ];
    let mut forms = Vec::new();
    for (_, card) in CARDS {
        forms.extend(separators.map(|separator| in_fours(card, separator)));
        forms.extend([(*card).to_owned(), wide(card)]);
        if card.len() == 15 {
            forms.push(format!("{} {} {}", &card[..4], &card[4..10], &card[10..]));
        }
    }
    let around = [
        ("", ""),
        ("card ", " please"),
        ("card:", "."),
        ("(", ")"),
        ("It is ", ", thanks"),
        ("number=", ";"),
        ("カード", "です"),
    ];
    replaced_everywhere(&[RedactionRule::Card], forms, &around);
}

/// Returns a number in groups of four.
fn in_fours(number: &str, separator: &str) -> String {
    let groups = (0..number.len()).step_by(4);
    let groups: Vec<&str> = groups
        .map(|at| &number[at..(at + 4).min(number.len())])
        .collect();
    groups.join(separator)
}

#[test]
fn cards_are_found_beside_other_numbers() {
    for text in [
        // A card with a date of expiry, or a number before it.
        "4111 1111 1111 1111 12/30",
        "5500 0000 0000 0004 09/27",
        "order 17 4111-1111-1111-1111",
        "4012888888881881 05/28",
        "378282246310005 1227",
        // Further numbers beside a card.
        "4111 1111 1111 1111 123",
        "4111 1111 1111 1111, 12/30, 123",
        "4111111111111111 1230 123",
        "4111111111111111|12|30|123",
        "4111111111111111:12/2030:123",
        "1 x 4111 1111 1111 1111",
        "2024-05-01 4111 1111 1111 1111",
        "order 12345 4111 1111 1111 1111 12 30",
        "no. 12 - 4111.1111.1111.1111 - 01/29 - 999",
        "5500 0000 0000 0004 0927 123",
        "3782 822463 10005 1227 1234",
        "30569309025904 12/26 123",
        "invoice 9 5500000000000004 paid 20",
        "4111,1111,1111,1111",
        "4111 1111\n1111 1111",
        "4 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1",
        "41 11 11 11 11 11 11 11",
        "card4111111111111111",
        "4111/1111/1111/1111/12/30",
        "(4111) (1111) (1111) (1111)",
        "[4111][1111][1111][1111]",
        "x4111111111111111y",
        "pan4111111111111111exp",
        "\"4111\",\"1111\",\"1111\",\"1111\"",
    ] {
        let redacted = rules().apply(text).unwrap_or_else(|| panic!("{text}"));
        assert!(redacted.contains("[CARD-"), "{text}: {redacted}");
        let digits: String = redacted.chars().filter(char::is_ascii_digit).collect();
        for part in ["1111", "0004", "8881", "63100", "0005", "6930"] {
            assert!(!digits.contains(part), "{text}: {redacted}");
        }
    }
}

#[test]
fn a_date_behind_a_card_does_not_change_its_surrogate() {
    let surrogate = |text: &str| {
        let redacted = rules().apply(text).unwrap();
        redacted[redacted.find('[').unwrap()..=redacted.find(']').unwrap()].to_owned()
    };
    let alone = surrogate("4111111111111111");
    for year in 20..60 {
        assert_eq!(
            surrogate(&format!("4111 1111 1111 1111 12/{year}")),
            alone,
            "{year}"
        );
        assert_eq!(
            surrogate(&format!("4111111111111111 12{year}")),
            alone,
            "{year}"
        );
    }
}

/// The registry's example of every country (SWIFT, IBAN registry).
const ACCOUNTS: &[&str] = &[
    "AD1200012030200359100100",
    "AE070331234567890123456",
    "AL47212110090000000235698741",
    "AT611904300234573201",
    "AZ21NABZ00000000137010001944",
    "BA391290079401028494",
    "BE68539007547034",
    "BG80BNBG96611020345678",
    "BH67BMAG00001299123456",
    "BR1800360305000010009795493C1",
    "BY13NBRB3600900000002Z00AB00",
    "CH9300762011623852957",
    "CR05015202001026284066",
    "CY17002001280000001200527600",
    "CZ6508000000192000145399",
    "DE89370400440532013000",
    "DK5000400440116243",
    "DO28BAGR00000001212453611324",
    "EE382200221020145685",
    "EG380019000500000000263180002",
    "ES9121000418450200051332",
    "FI2112345600000785",
    "FO6264600001631634",
    "FR1420041010050500013M02606",
    "GB29NWBK60161331926819",
    "GE29NB0000000101904917",
    "GI75NWBK000000007099453",
    "GL8964710001000206",
    "GR1601101250000000012300695",
    "GT82TRAJ01020000001210029690",
    "HR1210010051863000160",
    "HU42117730161111101800000000",
    "IE29AIBK93115212345678",
    "IL620108000000099999999",
    "IQ98NBIQ850123456789012",
    "IS140159260076545510730339",
    "IT60X0542811101000000123456",
    "JO94CBJO0010000000000131000302",
    "KW81CBKU0000000000001234560101",
    "KZ86125KZT5004100100",
    "LB62099900000001001901229114",
    "LC55HEMM000100010012001200023015",
    "LI21088100002324013AA",
    "LT121000011101001000",
    "LU280019400644750000",
    "LV80BANK0000435195001",
    "LY83002048000020100120361",
    "MC5811222000010123456789030",
    "MD24AG000225100013104168",
    "ME25505000012345678951",
    "MK07250120000058984",
    "MR1300020001010000123456753",
    "MT84MALT011000012345MTLCAST001S",
    "MU17BOMM0101101030300200000MUR",
    "NL91ABNA0417164300",
    "NO9386011117947",
    "PK36SCBL0000001123456702",
    "PL61109010140000071219812874",
    "PS92PALS000000000400123456702",
    "PT50000201231234567890154",
    "QA58DOHB00001234567890ABCDEFG",
    "RO49AAAA1B31007593840000",
    "RS35260005601001611379",
    "SA0380000000608010167519",
    "SC18SSCB11010000000000001497USD",
    "SE4550000000058398257466",
    "SI56263300012039086",
    "SK3112000000198742637541",
    "SM86U0322509800000000270100",
    "ST23000100010051845310146",
    "SV62CENR00000000000000700025",
    "TL380080012345678910157",
    "TN5910006035183598478831",
    "TR330006100519786457841326",
    "UA213223130000026007233566001",
    "VA59001123000012345678",
    "VG96VPVG0000012345678901",
    "XK051212012345678906",
];

#[test]
fn accounts_of_every_country_are_found_in_every_spelling() {
    let separators = [
        "", " ", "-", ".", "\u{a0}", "\u{2009}", " - ", "/", "\u{200b}", ":", ",", "|", "\n", "+",
        " | ", ") (", "_",
    ];
    let mut forms = Vec::new();
    for account in ACCOUNTS {
        forms.extend(separators.map(|separator| in_fours(account, separator)));
        forms.extend([
            account.to_lowercase(),
            in_fours(account, " ").to_lowercase(),
            account
                .chars()
                .map(|c| format!("{c} "))
                .collect::<String>()
                .trim()
                .to_owned(),
        ]);
    }
    let around = [
        ("", ""),
        ("pay to ", " NOW PLEASE"),
        ("iban:", "."),
        ("(", ")"),
        ("IBAN", ""),
        ("口座", "へ"),
    ];
    replaced_everywhere(&[RedactionRule::Iban], forms, &around);
}

#[test]
fn account_numbers_are_found_behind_a_word() {
    replaced_exactly(
        &[RedactionRule::Iban],
        [
            ("account number: ", "123456789", ""),
            ("Account No. ", "12-345-678", " please"),
            ("sort code ", "12-34-56", ""),
            ("routing number ", "021000021", ""),
            ("Kontonummer ", "0532013000", ""),
            ("CLABE: ", "032180000118359719", ""),
            ("acct #", "000123456789", ""),
            ("BSB ", "062-000", ""),
            ("BLZ ", "37040044", ""),
            ("account: ", "31926819", ""),
            ("Konto ", "532013000", " bei uns"),
            ("routing ", "021000021", ""),
            ("", "60-16-13", " is the sort code"),
            ("", "31926819", " (account number)"),
        ],
    );
}

#[test]
fn every_account_number_of_a_line_is_found() {
    for text in [
        "Kontonummer 532013000 BLZ 37040044",
        "BLZ: 370 400 44, Kontonummer: 532013000",
        "sort code 60-16-13 account 31926819",
        "sort code: 60-16-13, account number: 31926819",
        "routing 021000021 account 1234567890123",
        "Routing number 021000021; acct no 1234567890123",
        "BSB 062-000 Acc 12345678",
        "BSB: 062000 / Account no. 12345678",
    ] {
        let redacted = rules().apply(text).unwrap_or_default();
        let digit = redacted.contains(|c: char| c.is_ascii_digit());
        assert!(!digit && redacted.matches('[').count() == 2, "{redacted}");
    }
}
