//! Escaped values, which every rule must find, and digits of all scripts.

use super::{RedactionRule, replaced_exactly, rules};

/// Escapes of a character that is not a letter.
const SPELLINGS: [fn(char) -> String; 14] = [
    |c| format!("\\u{:04x}", u32::from(c)),
    |c| format!("\\u{:04X}", u32::from(c)),
    |c| format!("\\u{{{:x}}}", u32::from(c)),
    |c| format!("\\\\u{:04x}", u32::from(c)),
    |c| format!("\\x{:02x}", u32::from(c)),
    |c| format!("\\U{:08x}", u32::from(c)),
    |c| format!("\\{:03o}", u32::from(c)),
    |c| format!("%{:02X}", u32::from(c)),
    |c| format!("%{:02x}", u32::from(c)),
    |c| format!("%25{:02X}", u32::from(c)),
    |c| format!("&#{};", u32::from(c)),
    |c| format!("&#x{:x};", u32::from(c)),
    |c| format!("&amp;#{};", u32::from(c)),
    |c| format!("&#0{};", u32::from(c)),
];

/// The kind, the text before, and the value.
const VALUES: &[(RedactionRule, &str, &str)] = &[
    (RedactionRule::Card, "card ", "4539 1488 0343 6467"),
    (RedactionRule::Card, "card ", "4539-1488-0343-6467"),
    (RedactionRule::Iban, "pay ", "DE89 3704 0044 0532 0130 00"),
    (RedactionRule::Email, "to ", "ann@example.org"),
    (RedactionRule::Phone, "call ", "+49 30 12345678"),
    (RedactionRule::Id, "SSN ", "536-90-4399"),
    (RedactionRule::Ip, "from ", "203.0.113.9"),
    (RedactionRule::Mac, "of ", "00:1b:44:11:3a:b7"),
];

fn spelled(value: &str, with: fn(char) -> String) -> String {
    let spell = |c: char| match c.is_ascii_alphanumeric() {
        true => c.to_string(),
        false => with(c),
    };
    value.chars().map(spell).collect()
}

#[test]
fn every_rule_reads_every_escape() {
    for (rule, front, value) in VALUES {
        for with in SPELLINGS {
            let text = spelled(value, with);
            replaced_exactly(
                &[*rule],
                [
                    (*front, text.as_str(), ""),
                    (*front, text.as_str(), ", please"),
                ],
            );
            // The whole value.
            let all: String = value.chars().map(with).collect();
            let redacted = rules().apply(&all).unwrap_or_default();
            assert!(redacted.starts_with('['), "{all}: {redacted}");
        }
    }
}

#[test]
fn signs_that_are_spelled_are_read() {
    replaced_exactly(
        &[RedactionRule::Card, RedactionRule::Iban],
        [
            ("", "4539\\u00201488\\u00200343\\u00206467", ""),
            ("", "4539\\n1488\\n0343\\n6467", ""),
            ("", "4539\\t1488\\t0343\\t6467", ""),
            ("", "4539&nbsp;1488&nbsp;0343&nbsp;6467", ""),
            ("", "4539&thinsp;1488&ndash;0343&#160;6467", ""),
            ("", "4539%201488%200343%206467", ""),
            ("", "4539%C2%A01488%c2%a00343%C2%A06467", ""),
            ("", "DE893704\\u002000440532013000", ""),
            (
                "",
                "DE89&nbsp;3704&nbsp;0044&nbsp;0532&nbsp;0130&nbsp;00",
                "",
            ),
            (
                "{\"iban\":\"",
                "DE89\\u00a03704\\u00a00044\\u00a00532\\u00a00130\\u00a000",
                "\"}",
            ),
        ],
    );
    replaced_exactly(
        &[RedactionRule::Email],
        [
            ("{\"to\":\"", "ann\\u0040example.org", "\"}"),
            ("", "ann\\x40example\\x2eorg", ""),
            ("", "ann&commat;example&period;org", ""),
            ("x\\n", "ann@example.org", "\\nnext"),
            ("x\\tmail: ", "ann\\@example\\.org", ""),
            ("", "ann[@]example[.]org", ""),
            ("", "ann(@)example(.)org", ""),
            ("mail ", "ann{at}example{dot}org", ""),
        ],
    );
    replaced_exactly(
        &[RedactionRule::Phone],
        [
            ("", "\\u002b493012345678", ""),
            ("", "%2B493012345678", ""),
            ("tel=", "%2B49%2030%2012345678", "&x=y"),
        ],
    );
    replaced_exactly(
        &[RedactionRule::Secret],
        [
            ("password%3D", "S3cretXY9", ""),
            ("a=b%26password%3D", "S3cretXY9", "%26c%3Dd"),
            ("{\\\"password\\\":\\\"", "S3cretXY9", "\\\"}"),
            ("{\\u0022password\\u0022:\\u0022", "S3cretXY9", "\\u0022}"),
            ("&quot;password&quot;: &quot;", "S3cretXY9", "&quot;"),
            ("&lt;password&gt;", "S3cretXY9", "&lt;/password&gt;"),
        ],
    );
}

#[test]
fn a_password_in_an_escaped_address_is_taken_with_its_host() {
    let redacted = rules()
        .apply(r"https:\/\/ann:S3cretXY9@db.example\/x")
        .unwrap();
    assert!(!redacted.contains("S3cret"), "{redacted}");
    assert!(!redacted.contains("ann"), "{redacted}");
}

#[test]
fn digits_of_every_script_are_read() {
    // Arabic, Devanagari, Sinhala, Shan, Vai, Tai Tham, Osmanya, Adlam, Chakma, full-width, mathematical.
    for zero in [
        0x660, 0x966, 0xde6, 0x1090, 0xa620, 0x1a80, 0x104a0, 0x1e950, 0x11136, 0xff10, 0x1d7ce,
    ] {
        let digits = |text: &str| -> String {
            let spell = |c: char| match c.to_digit(10) {
                Some(digit) => char::from_u32(zero + digit).unwrap(),
                None => c,
            };
            text.chars().map(spell).collect()
        };
        replaced_exactly(
            &[RedactionRule::Card],
            [
                ("", digits("4539 1488 0343 6467"), ""),
                ("card ", digits("4539148803436467"), " ok"),
            ],
        );
        replaced_exactly(&[RedactionRule::Id], [("SSN ", digits("536-90-4399"), ".")]);
    }
}

#[test]
fn escapes_of_nothing_personal_stay() {
    for text in [
        "100%20off, a\\nb\\tc, C:\\new\\users\\ann",
        "&copy; 2024 &amp; more, x &lt; y",
        "\\frac{1}{2} \\times 3 \\u00e9t\\u00e9",
        "x[at] = y(dot), [.]*, (.)",
        "%d %s %5.2f %%",
        "\\d{3}-\\d{2}-\\d{4} and \\1\\2",
        "\\u0022version\\u0022: \\u00221.2.3\\u0022",
        "https://example.org/a%20b?c=%7B%22d%22%3A1%7D",
    ] {
        assert_eq!(rules().apply(text), None, "{text}");
    }
}
