//! Plausibly wrong answers: the mistakes of a small model's samples, from subtle to blatant.

use super::content::Content;
use super::dice::Dice;
use super::solve;

/// The distance of a wrong answer from a right one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// One symbol or one step of the algorithm is wrong.
    Subtle,
    /// Two mistakes, or the answer to a similar question.
    Plain,
    /// The answer to an unrelated instruction, or several mistakes at once.
    Blatant,
}

/// Returns a wrong answer's items. Draws that happen to be right are repeated.
pub fn wrong_answer(content: &Content, severity: Severity, dice: &mut Dice) -> Vec<String> {
    let kind = content.kind();
    loop {
        let right = solve::answer(content, dice);
        let wrong = match severity {
            Severity::Subtle if dice.chance(0.35) => near_miss(content, &right, dice),
            Severity::Subtle => slip(content, right, dice),
            Severity::Plain if dice.chance(0.5) => misread(content, &right, dice),
            Severity::Plain => {
                let once = slip(content, right, dice);
                slip(content, once, dice)
            }
            Severity::Blatant if dice.chance(0.7) => {
                let level = dice.between(1, 4);
                solve::answer(&Content::sample(kind, level, dice), dice)
            }
            Severity::Blatant => (0..4).fold(right, |answer, _| slip(content, answer, dice)),
        };
        let joined = solve::join(kind, &wrong);
        if !joined.is_empty() && !solve::is_right(content, &joined) {
            return wrong;
        }
    }
}

/// Returns the typical mistake of the kind: off by one, a lost carry, the runner-up, one match too many.
fn near_miss(content: &Content, right: &[String], dice: &mut Dice) -> Vec<String> {
    let shifted = |by: &[i64], dice: &mut Dice| {
        let n: i64 = right.concat().parse().unwrap_or(0);
        vec![(n + dice.pick(by)).max(0).to_string()]
    };
    match content {
        Content::Add { .. } | Content::Subtract { .. } => {
            shifted(&[1, -1, 10, -10, 2, -2, 100, -100], dice)
        }
        Content::Multiple { of, .. } => {
            let of = i64::from(*of);
            shifted(&[1, -1, 2, -2, of, -of], dice)
        }
        Content::Count { .. } => shifted(&[1, -1], dice),
        Content::Largest { list, smallest } => {
            let mut list = list.clone();
            list.sort_unstable();
            if !smallest {
                list.reverse();
            }
            vec![list[1].to_string()]
        }
        Content::Pair { list, .. } => {
            // One number is right; the other is another number of the list or off by one.
            let mut pair = right.to_vec();
            let side = dice.below(2);
            pair[side] = if dice.chance(0.6) {
                dice.pick(list).to_string()
            } else {
                bump(&pair[side], dice)
            };
            pair
        }
        Content::Sort { .. } | Content::Alphabet { .. } | Content::Reverse { .. } => {
            let mut items = right.to_vec();
            swap_neighbours(&mut items, dice);
            items
        }
        Content::Pick { words, letters } => {
            // A word with only one of the letters is a plausible mistake.
            let near: Vec<&String> = words
                .iter()
                .filter(|word| letters.iter().filter(|&&c| word.contains(c)).count() == 1)
                .collect();
            let pool: Vec<&String> = if near.is_empty() {
                words.iter().collect()
            } else {
                near
            };
            vec![dice.pick(&pool).to_string()]
        }
        Content::Ends { word, count, last } => {
            let other = Content::Ends {
                word: word.clone(),
                count: if dice.chance(0.5) && *count > 1 {
                    count - 1
                } else {
                    (count + 1).min(word.len())
                },
                last: *last,
            };
            solve::answer(&other, dice)
        }
        Content::Spell { .. } => slip(content, right.to_vec(), dice),
    }
}

/// Returns the answer to a similar question.
fn misread(content: &Content, right: &[String], dice: &mut Dice) -> Vec<String> {
    match content {
        Content::Add { a, b } if dice.chance(0.4) => vec![a.abs_diff(*b).to_string()],
        Content::Subtract { a, b } if dice.chance(0.4) => vec![(a + b).to_string()],
        Content::Add { a, b } => vec![(a + tweaked(*b, dice)).to_string()],
        Content::Subtract { a, b } => vec![a.abs_diff(tweaked(*b, dice)).to_string()],
        Content::Pair { list, .. } => {
            let mut list = list.clone();
            dice.shuffle(&mut list);
            list[..2].iter().map(u32::to_string).collect()
        }
        Content::Multiple { low, high, .. } => vec![dice.between(*low, *high).to_string()],
        Content::Sort { list, descending } => {
            if dice.chance(0.4) {
                list.iter().map(u32::to_string).collect()
            } else {
                solve::answer(
                    &Content::Sort {
                        list: list.clone(),
                        descending: !descending,
                    },
                    dice,
                )
            }
        }
        Content::Largest { list, .. } => vec![dice.pick(list).to_string()],
        Content::Reverse { word } | Content::Alphabet { word } => {
            let mut letters: Vec<String> = word.chars().map(String::from).collect();
            if dice.chance(0.5) {
                dice.shuffle(&mut letters);
            } else if dice.chance(0.5) {
                letters.sort_unstable();
                letters.reverse();
            }
            letters
        }
        Content::Count { word, .. } => {
            vec![dice.between(0, word.len() as u32).to_string()]
        }
        Content::Pick { words, .. } => vec![dice.pick(words).clone()],
        Content::Ends { word, count, last } => solve::answer(
            &Content::Ends {
                word: word.clone(),
                count: *count,
                last: !last,
            },
            dice,
        ),
        Content::Spell { .. } => {
            let mut letters = right.to_vec();
            dice.shuffle(&mut letters);
            letters
        }
    }
}

/// Makes one symbol wrong: replaced, swapped, removed, doubled or inserted.
fn slip(content: &Content, mut items: Vec<String>, dice: &mut Dice) -> Vec<String> {
    if items.is_empty() {
        return items;
    }
    let at = dice.below(items.len());
    let single = items.len() == 1;
    match dice.weighted(&[5.0, 2.0, 1.5, 1.0, 0.5]) {
        1 if !single => swap_neighbours(&mut items, dice),
        2 if !single => {
            items.remove(at);
        }
        3 if !single => items.insert(at, items[at].clone()),
        4 if !single => items.insert(at, other_item(content, &items[at], dice)),
        _ => items[at] = other_item(content, &items[at], dice),
    }
    items
}

/// Returns another item of the same type as `item`, preferably from the instruction itself.
fn other_item(content: &Content, item: &str, dice: &mut Dice) -> String {
    match content {
        Content::Pair { list, .. } | Content::Sort { list, .. } | Content::Largest { list, .. }
            if dice.chance(0.5) =>
        {
            dice.pick(list).to_string()
        }
        Content::Pick { words, .. } => {
            if dice.chance(0.5) {
                return dice.pick(words).clone();
            }
            let mut letters: Vec<String> = item.chars().map(String::from).collect();
            let at = dice.below(letters.len());
            letters[at] = any_letter(dice);
            letters.concat()
        }
        Content::Reverse { word }
        | Content::Alphabet { word }
        | Content::Ends { word, .. }
        | Content::Spell { word } => {
            if dice.chance(0.5) {
                char::from(word.as_bytes()[dice.below(word.len())]).to_string()
            } else {
                any_letter(dice)
            }
        }
        _ => bump(item, dice),
    }
}

fn any_letter(dice: &mut Dice) -> String {
    char::from(b'a' + dice.below(26) as u8).to_string()
}

/// Returns the number with one digit changed, by one or to any other digit; never with a leading zero.
fn bump(number: &str, dice: &mut Dice) -> String {
    let mut digits: Vec<u8> = number.bytes().collect();
    if digits.len() > 1 && dice.chance(0.12) {
        let at = dice.below(digits.len() - 1);
        digits.swap(at, at + 1);
    } else {
        let at = dice.below(digits.len());
        let digit = digits[at].saturating_sub(b'0').min(9);
        let new = if dice.chance(0.5) {
            (digit + if dice.chance(0.5) { 1 } else { 9 }) % 10
        } else {
            dice.below(10) as u8
        };
        digits[at] = b'0' + new;
    }
    let text = String::from_utf8_lossy(&digits);
    match text.trim_start_matches('0') {
        "" => "0".to_string(),
        trimmed => trimmed.to_string(),
    }
}

fn tweaked(number: u32, dice: &mut Dice) -> u32 {
    bump(&number.to_string(), dice).parse().unwrap_or(number)
}

fn swap_neighbours(items: &mut [String], dice: &mut Dice) {
    if items.len() > 1 {
        let at = dice.below(items.len() - 1);
        items.swap(at, at + 1);
    }
}

#[cfg(test)]
mod tests {
    use super::super::content::Kind;
    use super::*;

    #[test]
    fn wrong_answers_are_wrong_and_varied() {
        let mut dice = Dice::new(8, 0);
        for kind in Kind::ALL {
            for severity in [Severity::Subtle, Severity::Plain, Severity::Blatant] {
                let mut seen = std::collections::HashSet::new();
                for n in 0..300 {
                    let content = Content::sample(kind, 1 + n % 4, &mut dice);
                    let wrong = wrong_answer(&content, severity, &mut dice);
                    let text = solve::join(kind, &wrong);
                    assert!(!solve::is_right(&content, &text), "{content:?}: {text}");
                    seen.insert(text);
                }
                assert!(seen.len() > if kind == Kind::Count { 4 } else { 40 });
            }
        }
    }
}
