//! Cards and accounts that are cut over two messages.

use super::rules;
use crate::preference::log::redact::seam;

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
