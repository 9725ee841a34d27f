//! Right answers, and the check of answers.
//!
//! An answer is a list of items (letters, numbers, digits' numbers or words), joined in the format of its kind.

use super::content::{Content, Kind};
use super::dice::Dice;

/// Returns a right answer, drawn at random if there are several.
pub fn answer(content: &Content, dice: &mut Dice) -> Vec<String> {
    match content {
        Content::Add { a, b } => vec![(a + b).to_string()],
        Content::Subtract { a, b } => vec![(a - b).to_string()],
        Content::Pair { list, target } => {
            let mut pairs = Vec::new();
            for (i, a) in list.iter().enumerate() {
                for b in &list[i + 1..] {
                    if a + b == *target {
                        pairs.push([a, b]);
                    }
                }
            }
            dice.pick(&pairs).iter().map(|n| n.to_string()).collect()
        }
        Content::Multiple { low, high, of } => {
            let fitting: Vec<u32> = (low + 1..*high).filter(|n| n % of == 0).collect();
            vec![dice.pick(&fitting).to_string()]
        }
        Content::Sort { list, descending } => {
            let mut list = list.clone();
            list.sort_unstable();
            if *descending {
                list.reverse();
            }
            list.iter().map(u32::to_string).collect()
        }
        Content::Largest { list, smallest } => {
            let extreme = if *smallest {
                list.iter().min()
            } else {
                list.iter().max()
            };
            extreme.iter().map(|n| n.to_string()).collect()
        }
        Content::Reverse { word } => word.chars().rev().map(String::from).collect(),
        Content::Count { word, letter } => {
            vec![word.chars().filter(|c| c == letter).count().to_string()]
        }
        Content::Alphabet { word } => {
            let mut letters: Vec<char> = word.chars().collect();
            letters.sort_unstable();
            letters.iter().map(char::to_string).collect()
        }
        Content::Pick { words, letters } => {
            let fitting: Vec<&String> = words
                .iter()
                .filter(|word| letters.iter().all(|&c| word.contains(c)))
                .collect();
            vec![dice.pick(&fitting).to_string()]
        }
        Content::Ends { word, count, last } => {
            let letters: Vec<char> = word.chars().collect();
            let range = if *last {
                letters.len() - count..letters.len()
            } else {
                0..*count
            };
            letters[range].iter().map(char::to_string).collect()
        }
        Content::Spell { word } => word.chars().map(String::from).collect(),
    }
}

/// Joins an answer's items in the format of its kind.
pub fn join(kind: Kind, items: &[String]) -> String {
    items.join(match kind {
        Kind::Pair => " and ",
        Kind::Sort => " ",
        Kind::Spell => "-",
        _ => "",
    })
}

/// Returns whether `answer`, without any style, is right for the instruction. Accepts any text.
pub fn is_right(content: &Content, answer: &str) -> bool {
    match content {
        Content::Pair { list, target } => {
            let Some(numbers) = numbers(&answer.replace(" and ", " ")) else {
                return false;
            };
            matches!(numbers[..], [a, b]
                if a != b && list.contains(&a) && list.contains(&b) && a + b == *target)
        }
        Content::Multiple { low, high, of } => numbers(answer)
            .is_some_and(|n| matches!(n[..], [n] if low < &n && &n < high && n % of == 0)),
        Content::Sort { .. } => {
            numbers(answer).is_some_and(|n| n == numbers(&unique(content)).unwrap_or_default())
        }
        Content::Pick { words, letters } => {
            words.iter().any(|word| word == answer) && letters.iter().all(|&c| answer.contains(c))
        }
        _ => answer == unique(content),
    }
}

/// Returns the answer of a content that has only one.
fn unique(content: &Content) -> String {
    // A unique answer leaves the draw one choice, so any random stream gives it.
    join(content.kind(), &answer(content, &mut Dice::new(0, 0)))
}

/// Parses numbers separated by single spaces or commas; `None` if the text contains anything else.
fn numbers(text: &str) -> Option<Vec<u32>> {
    text.replace(", ", " ")
        .split(' ')
        .map(|item| {
            let plain = item.bytes().all(|b| b.is_ascii_digit()) && !item.starts_with('0');
            plain.then(|| item.parse().ok()).flatten()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_drawn_answer_is_right() {
        let mut dice = Dice::new(2, 0);
        for kind in Kind::ALL {
            for n in 0..400 {
                let content = Content::sample(kind, 1 + n % 4, &mut dice);
                let text = join(kind, &answer(&content, &mut dice));
                assert!(is_right(&content, &text), "{content:?}: {text}");
            }
        }
    }

    #[test]
    fn answers_that_are_not_unique_are_all_taken() {
        let pair = Content::Pair {
            list: vec![3, 8, 5, 6],
            target: 11,
        };
        for right in ["3 and 8", "8 and 3", "5 and 6", "6, 5", "8 3"] {
            assert!(is_right(&pair, right), "{right}");
        }
        for wrong in [
            "3 and 6",
            "4 and 7",
            "3",
            "3 and 8 and 5",
            "",
            "11",
            "3 and  8",
            "-3 14",
        ] {
            assert!(!is_right(&pair, wrong), "{wrong}");
        }
        let multiple = Content::Multiple {
            low: 40,
            high: 60,
            of: 7,
        };
        assert!(is_right(&multiple, "42") && is_right(&multiple, "56"));
        assert!(!is_right(&multiple, "63") && !is_right(&multiple, "41"));
        let pick = Content::Pick {
            words: vec!["kettle".into(), "tea".into(), "moon".into()],
            letters: ['e', 't'],
        };
        assert!(is_right(&pick, "tea") && is_right(&pick, "kettle"));
        assert!(!is_right(&pick, "moon") && !is_right(&pick, "te"));
    }

    #[test]
    fn huge_numbers_and_odd_text_are_wrong_and_harmless() {
        let sort = Content::Sort {
            list: vec![2, 1],
            descending: false,
        };
        for text in ["99999999999999999999", "1  2", "\u{0}", "1 2 ", "１ ２"] {
            assert!(!is_right(&sort, text), "{text}");
        }
        assert!(is_right(&sort, "1 2"));
        let pair = Content::Pair {
            list: vec![1, 2],
            target: 3,
        };
        assert!(!is_right(&pair, "4294967295 and 4"));
    }
}
