//! Check digits: algorithms that several kinds of numbers share.

/// Returns the values of the digits of a number, without other characters.
pub(super) fn digits(number: &[u8]) -> impl DoubleEndedIterator<Item = u32> + Clone {
    number
        .iter()
        .filter(|byte| byte.is_ascii_digit())
        .map(|byte| u32::from(byte - b'0'))
}

/// Returns the value of a range of a number that has only digits there; zero otherwise.
pub(super) fn value(number: &[u8], range: std::ops::Range<usize>) -> u64 {
    let part = number.get(range).unwrap_or_default();
    digits(part).fold(0, |value, digit| value * 10 + u64::from(digit))
}

/// Returns the sum of the digits, each multiplied by its weight; digits without a weight do not count.
pub(super) fn weighted(number: &[u8], weights: &[u32]) -> u32 {
    digits(number)
        .zip(weights)
        .map(|(digit, weight)| digit * weight)
        .sum()
}

/// Checks ISO/IEC 7812 (Luhn): every second digit from the right is doubled, digits are summed, and the sum is divisible by ten.
pub(super) fn luhn(number: &[u8]) -> bool {
    let sum: u32 = digits(number)
        .rev()
        .enumerate()
        .map(|(at, digit)| match (at % 2, digit) {
            (0, digit) => digit,
            (_, digit) if digit > 4 => 2 * digit - 9,
            (_, digit) => 2 * digit,
        })
        .sum();
    sum.is_multiple_of(10)
}

/// Returns the remainder of ISO 7064, MOD 97-10, over digits and letters as 10 to 35; a valid number has 1.
pub(super) fn mod_97<'a>(number: impl Iterator<Item = &'a u8>) -> Option<u32> {
    number.into_iter().try_fold(0, |value, byte| {
        let digit = char::from(*byte).to_digit(36)?;
        let shift = if digit < 10 { 10 } else { 100 };
        Some((value * shift + digit) % 97)
    })
}

/// Checks ISO 7064, MOD 11,10.
pub(super) fn mod_11_10(number: &[u8]) -> bool {
    let mut product = 10;
    let mut all = digits(number);
    let Some(check) = all.next_back() else {
        return false;
    };
    for digit in all {
        let sum = match (digit + product) % 10 {
            0 => 10,
            sum => sum,
        };
        product = sum * 2 % 11;
    }
    (11 - product) % 10 == check
}

/// Checks Verhoeff's algorithm, in the dihedral group of order ten.
pub(super) fn verhoeff(number: &[u8]) -> bool {
    const PERMUTATION: [u32; 10] = [1, 5, 7, 6, 2, 8, 3, 0, 9, 4];
    let product = |a: u32, b: u32| match (a < 5, b < 5) {
        (true, true) => (a + b) % 5,
        (true, false) => 5 + (a + b) % 5,
        (false, true) => 5 + (a - b) % 5,
        (false, false) => (5 + a - b) % 5,
    };
    let sum = digits(number)
        .rev()
        .enumerate()
        .fold(0, |sum, (place, digit)| {
            let moved = (0..place % 8).fold(digit, |digit, _| PERMUTATION[digit as usize]);
            product(sum, moved)
        });
    sum == 0
}

/// Returns whether the day exists in some year.
pub(super) fn is_day(month: u64, day: u64) -> bool {
    let days = match month {
        2 => 29,
        4 | 6 | 9 | 11 => 30,
        1..=12 => 31,
        _ => 0,
    };
    (1..=days).contains(&day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_algorithms_pass_their_published_examples_and_fail_changed_ones() {
        type Check = fn(&[u8]) -> bool;
        let checks: [(Check, &[u8]); 4] = [
            (luhn, b"79927398713"),
            (verhoeff, b"2363"),
            (mod_11_10, b"94577403194"),
            (
                |number| mod_97(number.iter()) == Some(1),
                b"3214282912345698765432161182",
            ),
        ];
        for (check, number) in checks {
            let name = String::from_utf8_lossy(number);
            assert!(check(number), "{name}");
            let mut changed = number.to_vec();
            changed[1] = b'0' + (changed[1] - b'0' + 1) % 10;
            assert!(!check(&changed), "{name}");
        }
    }
}
