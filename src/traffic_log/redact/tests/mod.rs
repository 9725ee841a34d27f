//! Tables of values that are found, and of texts that stay unchanged.

mod banks;
mod documents;
mod left;
mod linear;
mod messages;
mod national;
mod network;
mod passwords;
mod phones;
mod private_keys;
mod public;
mod secrets;
mod spellings;

use super::rule::RedactionRule;
use super::rules::Rules;

fn rules() -> Rules {
    Rules::new(&RedactionRule::ALL, "salt".to_owned()).unwrap()
}

/// Checks that each text has a surrogate of one of the kinds in place of the value, and is otherwise unchanged. Rows have the text
/// before, the value, and the text after.
fn replaced_exactly<Text: AsRef<str>>(
    kinds: &[RedactionRule],
    rows: impl IntoIterator<Item = (&'static str, Text, &'static str)>,
) {
    let rules = rules();
    let mut failed = Vec::new();
    for (front, value, behind) in rows {
        let text = format!("{front}{}{behind}", value.as_ref());
        let redacted = rules.apply(&text).unwrap_or_else(|| text.clone());
        let mut tags = kinds
            .iter()
            .map(|kind| format!("[{}-", kind.name().to_uppercase()));
        let middle = redacted
            .strip_prefix(front)
            .and_then(|rest| rest.strip_suffix(behind));
        let is_one = middle.is_some_and(|middle| {
            tags.any(|tag| middle.starts_with(&tag))
                && middle.ends_with(']')
                && middle.matches('[').count() == 1
        });
        if !is_one {
            failed.push(format!("{text}\n  {redacted}"));
        }
    }
    assert!(
        failed.is_empty(),
        "{} rows:\n{}",
        failed.len(),
        failed.join("\n")
    );
}

/// Checks [`replaced_exactly`] for every value between all given texts.
fn replaced_everywhere<Text: AsRef<str>>(
    kinds: &[RedactionRule],
    values: impl IntoIterator<Item = Text>,
    around: &[(&'static str, &'static str)],
) {
    let values: Vec<Text> = values.into_iter().collect();
    let rows = values.iter().flat_map(|value| {
        let value = value.as_ref();
        around
            .iter()
            .map(move |(front, behind)| (*front, value, *behind))
    });
    replaced_exactly(kinds, rows);
}

/// Returns a text with full-width digits.
fn wide(text: &str) -> String {
    text.chars()
        .map(|c| match c {
            '0'..='9' => char::from_u32(u32::from(c) - u32::from('0') + 0xff10).unwrap_or(c),
            other => other,
        })
        .collect()
}

#[test]
fn equal_values_stay_equal_within_a_log_however_they_are_written() {
    let apply = |salt: &str, text: &str| {
        let rules = Rules::new(&RedactionRule::ALL, salt.to_owned()).unwrap();
        rules.apply(text).unwrap_or_else(|| panic!("{text}"))
    };
    for same in [
        &["a@b.org", "A@B.ORG", "ａ＠ｂ．org", "a@b\u{200b}.org"][..],
        &[
            "4111 1111 1111 1111",
            "4111111111111111",
            "4111-1111-1111-1111",
            "4111.1111.1111.1111",
            "４１１１１１１１１１１１１１１１",
        ],
        &[
            "DE89 3704 0044 0532 0130 00",
            "DE89370400440532013000",
            "de89-3704-0044-0532-0130-00",
        ],
        &[
            "+49 30 1234567",
            "+49 (0)30 1234567",
            "0049 30 1234567",
            "+49-30-123-4567",
        ],
        &["00:1B:44:11:3A:B7", "00-1b-44-11-3a-b7", "001b.4411.3ab7"],
        &["123.456.789-09", "123 456 789 09", "12345678909"],
    ] {
        for other in same {
            assert_eq!(apply("s", same[0]), apply("s", other), "{other}");
            assert_ne!(apply("s", other), apply("t", other), "{other}");
        }
    }
    assert_ne!(apply("s", "a@b.org"), apply("s", "c@b.org"));
}

#[test]
fn surrogates_are_left_alone() {
    let rules = rules();
    let text = "a@b.org 192.168.17.4 415-555-0132 password: hunter22 4111 1111 1111 1111 fe80::1 00:1B:44:11:3A:B7 \
        Authorization: Bearer abcdef0123456789abcd DE89 3704 0044 0532 0130 00 078-05-1120";
    let once = rules.apply(text).unwrap();
    assert_eq!(once.matches('[').count(), 10, "{once}");
    assert_eq!(rules.apply(&once), None, "{once}");
    // Surrogates do not hide values beside them.
    let again = format!("{once} c@d.org");
    assert!(!rules.apply(&again).unwrap().contains("c@d.org"));
}

#[test]
fn a_rule_that_is_not_chosen_is_not_applied() {
    let text = "ann@example.org 192.168.17.4 00:1B:44:11:3A:B7 4111 1111 1111 1111 DE89 3704 0044 0532 0130 00 +49 30 1234567 \
        078-05-1120 password: hunter22";
    for rule in RedactionRule::ALL {
        let only = Rules::new(&[rule], String::new()).unwrap();
        let redacted = only.apply(text).unwrap();
        let tag = format!("[{}-", rule.name().to_uppercase());
        assert!(redacted.contains(&tag), "{rule}: {redacted}");
        assert!(rule == RedactionRule::Email || redacted.contains("ann@example.org"));
    }
    assert_eq!(Rules::new(&[], String::new()).unwrap().apply(text), None);
}
