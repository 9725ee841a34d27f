//! Cards and accounts that are split over two messages.

use super::rules;
use crate::redact::seam;

fn closed(front: &str, behind: &str) -> [String; 2] {
    let mut texts = [front.to_owned(), behind.to_owned()];
    seam::close(&rules(), &mut texts, &[(0, 1)]);
    texts
}

#[test]
fn a_number_that_is_cut_over_two_messages_is_replaced_in_both() {
    for (front, behind) in [
        ("my card is 4111 1111", "1111 1111"),
        ("my card is 4111 1111 ", "1111 1111 12/30"),
        ("My card: 4111-1111-1111", "and the rest is 1111, thanks"),
        ("4111 1111 1111", "1111"),
        ("４１１１ １１１１", "１１１１ １１１１"),
        ("pay DE89 3704 0044", "0532 0130 00 please"),
        ("amex 3782 822463", "10005"),
    ] {
        let [first, second] = closed(front, behind);
        assert!(
            first.contains("[CARD-") || first.contains("[IBAN-"),
            "{front}: {first}"
        );
        let surrogate = &first[first.find('[').unwrap()..=first.find(']').unwrap()];
        assert!(second.contains(surrogate), "{behind}: {second}");
        for digits in ["1111", "0044", "0532", "10005", "822463"] {
            assert!(
                !first.contains(digits) && !second.contains(digits),
                "{first} {second}"
            );
        }
    }
}

#[test]
fn a_private_key_that_is_cut_over_messages_is_replaced_in_all() {
    let line = "MIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcwggSjAgEAAoIBAQC7VJTUt9Us8cKj";
    let begin = "-----BEGIN RSA PRIVATE KEY-----";
    let end = "-----END RSA PRIVATE KEY-----";
    for texts in [
        vec![
            format!("my key:\n{begin}\n{line}\n{line}"),
            format!("{line}\n{line}\n{end}\nok?"),
        ],
        vec![
            format!("{begin}\n{line}\n"),
            format!("{line}\nMzEfYyji\n\nThat was it."),
        ],
        vec![
            format!("{begin}\n{line}"),
            format!("{line}\n{line}"),
            format!("{line}\nabcd=\n{end}"),
        ],
        vec![begin.to_owned(), line.to_owned(), end.to_owned()],
    ] {
        let seams: Vec<(usize, usize)> = (1..texts.len()).map(|at| (at - 1, at)).collect();
        let redacted = rules().apply_all(&texts, &seams);
        for text in &redacted {
            assert!(
                !text.contains("MII") && !text.contains("Mz"),
                "{redacted:?}"
            );
        }
        for kept in ["\nok?", "That was it."] {
            let last = texts.last().is_some_and(|text| text.ends_with(kept));
            let still = redacted.last().is_some_and(|text| text.ends_with(kept));
            assert_eq!(last, still, "{redacted:?}");
        }
    }
    // Prose after a key is not part of it.
    let texts = [format!("{begin}\n{line}"), "That was it.".to_owned()];
    assert_eq!(rules().apply_all(&texts, &[(0, 1)])[1], "That was it.");
}

#[test]
fn what_is_whole_or_no_number_is_not_joined() {
    for (front, behind) in [
        ("my card is 4111 1111 1111 1111", "12 apples"),
        ("my card is 4111 1111", "1111 1112"),
        ("What is 45 + 17?", "It is 62."),
        ("no number", "4111 1111 1111 1111"),
        ("", ""),
    ] {
        assert_eq!(closed(front, behind), [front, behind]);
    }
}
