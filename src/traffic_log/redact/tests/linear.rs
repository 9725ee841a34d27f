//! The work of a search, counted in bytes that the rules read, grows linearly with the text.

use super::rules;

/// Texts that could make rules read the same bytes again and again.
const UNITS: &[&str] = &[
    "-----BEGIN PRIVATE KEY-----sk-aaaaaaaaaaaaaaaaaaaa ",
    "-----BEGIN PRIVATE KEY-----",
    "-----BEGIN PRIVATE KEY-----\nMIIEvQIBADANBgkqhkiG9w0BAQEFAASC\n",
    "-----BEGIN ",
    "-----END PRIVATE KEY-----",
    "PuTTY-User-Key-File-2: a\n",
    "sk-",
    "sk-aaaaaaaaaaaaaaaaaaaa",
    "a-sk-a",
    "SK0",
    "AC",
    "eyJ",
    "eyJaaaaaaaaaaaa.",
    "-eyJaaaaaaaaa",
    "1",
    "4",
    "0",
    "12",
    "4111 1111 ",
    "4111 1111 1111 1112 ",
    "1 ",
    "0 ",
    "1-",
    "1.",
    "0/",
    "01 23 45 67 89 ",
    "+49 ",
    "+",
    "(0",
    "@",
    "a@",
    "a@b.",
    "a.b@c.d",
    "\"@",
    "\" @",
    "a",
    "é",
    "DE89 ",
    "DE89",
    "DE8937040044053201300",
    "GB82WEST1234569876543",
    "de 8 9 ",
    "AB12",
    "AAAAAA",
    "A1",
    ":",
    "::",
    "a:",
    "1:",
    "12:",
    "12-",
    "abcd.",
    "a1:b2:c3:d4:e5:f6:",
    "1.2.3.",
    "255.255.",
    "://",
    "://a:b",
    "://a@",
    "http://user:pass",
    "Cookie: a",
    "Cookie:",
    "cookie=",
    "Authorization: Bearer a",
    "Authorization:",
    "bearer ",
    "bearer a1b2c3",
    "password",
    "password:",
    "password=\"",
    "password='\"",
    "password is ",
    "token ",
    "secret: 'a\" ",
    "--password ",
    "pin ",
    "tel ",
    "tel 1 ",
    "passport ",
    "passport a1 ",
    "DOB: ",
    "DOB: 1.1.",
    "ssn 123-45-",
    "account number ",
    "account number 1 ",
    "hooks.slack.com/services/",
    "hooks.slack.com/services/a ",
    ":AA",
    "12345678:AA",
    "Q~",
    "[SECRET-",
    "[",
    "[EMAIL-aaaaaaaaaaaa",
    " at a",
    " dot ",
    "a at b dot ",
    "{\"a\":\"",
    "[[[(((",
    "\\\"",
    "\\",
    "\\u",
    "\\u0040",
    "\\\\u0031",
    "%",
    "%25",
    "%31",
    "%20",
    "&",
    "&amp;",
    "&#",
    "&#49;",
    "[at]",
    "[.]1",
    "mysql -p",
    "mysql ",
    "curl -u a:b ",
    "sshpass -p '",
    "@tcp(",
    "a:b@tcp(",
    "jdbc:oracle:thin:",
    "jdbc:oracle:thin:a/",
    "wifi:",
    "wifi:;P:",
    "<d>",
    "<d>a1",
    "\"d\":\"a1",
    "---- BEGIN ",
    "MIIEvQIBADANBgkqhkiG9w0BAQEFAASC\n-----END PRIVATE KEY-----",
    "ewo",
    "eyJaaaaaaaaaaaa\n",
    "eyJaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\n",
    "MT",
    "MTaaaaaaaaaaaaaaaaaaaaaa.",
    "a.atlasv1.",
    "pat",
    "is my ssn ",
    "1 ssn ",
    "1 2 3 4 5 6 7 8 9 ssn ",
    "my passport ",
    "1 feb 1980 born ",
    "born ",
    "born feb 1 ",
    "account 1 ",
    "12345678 account number ",
    "mac 00",
    "00 1b ",
    "ip-1-2-",
    "a at b.c ",
    "a @ b . c ",
    "://a:b/",
    "password:\n",
    "\"password\" value=\"",
    "パスワードは",
    "psk={",
    "\u{200b}",
    "４",
    "１\u{200b}",
    "㏒",
    "\0",
];

/// The maximum number of bytes that all rules together read per byte of a text.
const READS: u64 = 400;

#[test]
fn the_work_is_linear_whatever_the_text_is() {
    let rules = rules();
    let reads = |unit: &str, length: usize| {
        let text = unit.repeat(length.div_ceil(unit.len()));
        rules.search(&text).reads()
    };
    for unit in UNITS {
        let (short, long) = (reads(unit, 16 << 10), reads(unit, 64 << 10));
        // Four times for the length, and a tenth for rounding.
        assert!(
            long * 10 <= short * 44,
            "{unit:?}: {short} bytes read, then {long}"
        );
        assert!(long <= READS * (64 << 10), "{unit:?}: {long} bytes read");
    }
}

#[test]
fn two_units_after_each_other_are_linear_too() {
    let rules = rules();
    for apart in [1, 7, 31] {
        for (at, first) in UNITS.iter().enumerate() {
            let second = UNITS[(at + apart) % UNITS.len()];
            let half = |unit: &str| unit.repeat(4096_usize.div_ceil(unit.len()));
            for text in [
                half(first) + &half(second),
                half(&format!("{first}{second}")),
            ] {
                let reads = rules.search(&text).reads();
                assert!(
                    reads <= READS * text.len() as u64,
                    "{first:?} {second:?}: {reads}"
                );
            }
        }
    }
}
