//! The wording of instructions: several templates for every kind.
//!
//! Every word here becomes one token (`vocabulary` collects them); the contents of slots are spelled out.
//! Templates have no one-letter words, which would share a token with a letter from a slot.

use super::content::{Content, Kind};
use super::dice::Dice;

/// Returns the templates of a kind; `mirrored` selects the other direction of kinds that have two.
pub fn templates(kind: Kind, mirrored: bool) -> &'static [&'static str] {
    match (kind, mirrored) {
        (Kind::Add, _) => &[
            "Add {a} and {b}.",
            "What is {a} plus {b}?",
            "What is {a}+{b}?",
            "Find the sum of {a} and {b}.",
        ],
        (Kind::Subtract, _) => &[
            "Subtract {b} from {a}.",
            "What is {a} minus {b}?",
            "What is {a}-{b}?",
            "Take {b} away from {a}.",
        ],
        (Kind::Pair, _) => &[
            "Name two numbers from {list} that add up to {target}.",
            "Which two of {list} add up to {target}?",
            "Pick two numbers from {list} with the sum {target}.",
        ],
        (Kind::Multiple, _) => &[
            "Name one number between {low} and {high} that is divisible by {of}.",
            "Find one multiple of {of} between {low} and {high}.",
            "Which number from {low} to {high} is divisible by {of}?",
        ],
        (Kind::Sort, false) => &[
            "Sort {list} from low to high.",
            "Put {list} in rising order.",
            "Order {list}, smallest first.",
        ],
        (Kind::Sort, true) => &[
            "Sort {list} from high to low.",
            "Put {list} in falling order.",
            "Order {list}, largest first.",
        ],
        (Kind::Largest, false) => &[
            "Which is the largest of {list}?",
            "Name the largest number in {list}.",
            "Find the maximum of {list}.",
        ],
        (Kind::Largest, true) => &[
            "Which is the smallest of {list}?",
            "Name the smallest number in {list}.",
            "Find the minimum of {list}.",
        ],
        (Kind::Reverse, _) => &[
            "Reverse the word {word}.",
            "Write {word} backwards.",
            "What is {word} in reverse?",
        ],
        (Kind::Count, _) => &[
            "How many {letter} are in {word}?",
            "Count the letter {letter} in {word}.",
            "How often does {letter} appear in {word}?",
        ],
        (Kind::Alphabet, _) => &[
            "Put the letters of {word} in alphabetical order.",
            "Sort the letters of {word}.",
            "Write the letters of {word} in alphabetical order.",
        ],
        (Kind::Pick, _) => &[
            "Pick one word with {letter} and {other} from {words}.",
            "Which of {words} has {letter} and {other}?",
            "Name one word from {words} that has {letter} and {other}.",
        ],
        (Kind::Ends, false) => &[
            "Give the first {count} letters of {word}.",
            "What are the first {count} letters of {word}?",
            "With which {count} letters does {word} start?",
        ],
        (Kind::Ends, true) => &[
            "Give the last {count} letters of {word}.",
            "What are the last {count} letters of {word}?",
            "With which {count} letters does {word} end?",
        ],
        (Kind::Spell, _) => &[
            "Spell {word} with hyphens.",
            "Write {word} with hyphens between the letters.",
            "Spell out {word} with hyphens.",
        ],
    }
}

/// Renders an instruction's content in one of its kind's templates.
pub fn phrase(content: &Content, dice: &mut Dice) -> String {
    let (kind, mirrored) = (content.kind(), content.mirrored());
    let template = *dice.pick(templates(kind, mirrored));
    let fill = |slot: &str| -> String {
        match (content, slot) {
            (Content::Add { a, .. } | Content::Subtract { a, .. }, "a") => a.to_string(),
            (Content::Add { b, .. } | Content::Subtract { b, .. }, "b") => b.to_string(),
            (
                Content::Pair { list, .. }
                | Content::Sort { list, .. }
                | Content::Largest { list, .. },
                "list",
            ) => list
                .iter()
                .map(u32::to_string)
                .collect::<Vec<_>>()
                .join(" "),
            (Content::Pair { target, .. }, "target") => target.to_string(),
            (Content::Multiple { low, .. }, "low") => low.to_string(),
            (Content::Multiple { high, .. }, "high") => high.to_string(),
            (Content::Multiple { of, .. }, "of") => of.to_string(),
            (
                Content::Reverse { word }
                | Content::Count { word, .. }
                | Content::Alphabet { word }
                | Content::Ends { word, .. }
                | Content::Spell { word },
                "word",
            ) => word.clone(),
            (Content::Count { letter, .. }, "letter") => letter.to_string(),
            (Content::Pick { letters, .. }, "letter") => letters[0].to_string(),
            (Content::Pick { letters, .. }, "other") => letters[1].to_string(),
            (Content::Pick { words, .. }, "words") => words.join(" "),
            (Content::Ends { count, .. }, "count") => count.to_string(),
            _ => unreachable!("{kind:?} has no slot {slot}: this is a bug"),
        }
    };
    let mut text = String::new();
    for piece in pieces(template) {
        match piece {
            Piece::Text(words) => text.push_str(words),
            Piece::Slot(name) => text.push_str(&fill(name)),
        }
    }
    text
}

/// A segment of a template.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Piece<'a> {
    Text(&'a str),
    Slot(&'a str),
}

/// Splits a template at its `{slots}`.
pub fn pieces(template: &str) -> Vec<Piece<'_>> {
    let mut out = Vec::new();
    let mut rest = template;
    while let Some((text, tail)) = rest.split_once('{') {
        if !text.is_empty() {
            out.push(Piece::Text(text));
        }
        let (name, tail) = tail
            .split_once('}')
            .expect("a slot without an end: this is a bug");
        out.push(Piece::Slot(name));
        rest = tail;
    }
    if !rest.is_empty() {
        out.push(Piece::Text(rest));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_template_of_every_kind_can_be_filled() {
        let mut dice = Dice::new(3, 0);
        for kind in Kind::ALL {
            for _ in 0..60 {
                let level = dice.between(1, 4);
                let content = Content::sample(kind, level, &mut dice);
                let prompt = phrase(&content, &mut dice);
                assert!(!prompt.contains(['{', '}']), "{prompt}");
                assert!(prompt.ends_with(['.', '?']), "{prompt}");
            }
        }
    }

    #[test]
    fn templates_have_no_one_letter_words() {
        for kind in Kind::ALL {
            for template in [false, true].iter().flat_map(|&m| templates(kind, m)) {
                for piece in pieces(template) {
                    if let Piece::Text(text) = piece {
                        for word in text.split(|c: char| !c.is_alphabetic()) {
                            assert_ne!(word.len(), 1, "{template}");
                        }
                    }
                }
            }
        }
    }
}
