//! The default model's vocabulary: every byte, and every word in the world's own texts.
//!
//! The words are collected from the templates, not listed: words of instructions, styles, system messages and the
//! judge's prompt are one token each; the contents of slots are spelled letter by letter.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use super::content::Kind;
use super::phrase::{Piece, pieces, templates};
use super::principle::{JUDGE_FRAME, JUDGE_LABELS, JUDGE_LEAD_IN, PRINCIPLE_JOIN, Principle};
use super::style::{FAREWELLS, GREETINGS, THEREFORE};

/// The special tokens with a meaning, in the order of their ids (after the words).
pub const SPECIAL_TOKENS: [&str; 5] = [
    "<|pad|>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|end|>",
];

/// Splits text like the tokenizer's pre-tokenizer: ` ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]|\s`.
///
/// A digit is always separate, a word includes the space before it, a line break is separate.
pub fn pre_tokens(text: &str) -> Vec<&str> {
    let mut out = Vec::new();
    let mut start = 0;
    while start < text.len() {
        let mut chars = text[start..].char_indices();
        let mut next = chars.next();
        if let (Some((_, ' ')), Some((at, second))) = (next, text[start..].char_indices().nth(1))
            && !second.is_whitespace()
        {
            next = Some((at, second));
            chars.next();
        }
        let (at, first) = next.expect("start lies before the end: this is a bug");
        let mut end = start + at + first.len_utf8();
        if first.is_alphabetic() {
            for (offset, c) in chars {
                if !c.is_alphabetic() {
                    break;
                }
                end = start + offset + c.len_utf8();
            }
        }
        out.push(&text[start..end]);
        start = end;
    }
    out
}

/// Returns every pre-token of the world's own texts that becomes a token: words of at least two letters, digits and
/// punctuation with the space before them, the labels. Sorted.
pub fn words() -> &'static BTreeSet<String> {
    static WORDS: LazyLock<BTreeSet<String>> = LazyLock::new(collect);
    &WORDS
}

/// Returns whether a lower-case word occurs in the world's own texts, in any case.
pub fn is_instruction_word(word: &str) -> bool {
    static LOWER: LazyLock<BTreeSet<String>> = LazyLock::new(|| {
        words()
            .iter()
            .map(|word| word.trim().to_lowercase())
            .filter(|word| word.len() > 1)
            .collect()
    });
    LOWER.contains(word)
}

fn collect() -> BTreeSet<String> {
    let mut texts: Vec<String> = Vec::new();
    for kind in Kind::ALL {
        for template in [false, true].iter().flat_map(|&m| templates(kind, m)) {
            texts.extend(fixed(template));
        }
    }
    texts.extend(fixed(JUDGE_FRAME));
    texts.extend([JUDGE_LEAD_IN, PRINCIPLE_JOIN, THEREFORE].map(String::from));
    // These texts have a bracket after a space, as after the steps or a greeting, and the words of the steps.
    texts.extend([format!("{THEREFORE}["), " has  and ".to_string()]);
    texts.extend(GREETINGS.map(String::from));
    texts.extend(FAREWELLS.map(|farewell| format!(". {farewell}")));
    for principle in Principle::ALL {
        texts.push(format!(" {}", principle.name()));
        for sentence in [principle.request(), principle.opposite()] {
            texts.push(sentence.to_string());
            texts.push(format!(" {sentence}"));
        }
    }
    let mut words: BTreeSet<String> = texts
        .iter()
        .flat_map(|text| pre_tokens(text))
        .filter(|piece| piece.trim().len() > 1 || (piece.len() > 1 && !has_letter(piece)))
        .map(String::from)
        .collect();
    words.extend(JUDGE_LABELS.map(String::from));
    words.extend((0..10).map(|digit| format!(" {digit}")));
    words
}

fn has_letter(piece: &str) -> bool {
    piece.chars().any(char::is_alphabetic)
}

fn fixed(template: &str) -> Vec<String> {
    pieces(template)
        .into_iter()
        .filter_map(|piece| match piece {
            Piece::Text(text) => Some(text.to_string()),
            Piece::Slot(_) => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::words::real_words;
    use super::*;

    #[test]
    fn text_is_cut_into_words_digits_and_marks() {
        assert_eq!(
            pre_tokens("Add 34 and 28.\nA  b [é1"),
            [
                "Add", " 3", "4", " and", " 2", "8", ".", "\n", "A", " ", " b", " [", "é", "1"
            ]
        );
        assert_eq!(pre_tokens(" "), [" "]);
        assert!(pre_tokens("").is_empty());
    }

    #[test]
    fn no_content_word_is_in_the_vocabulary() {
        for word in real_words() {
            for form in [word.to_string(), format!(" {word}")] {
                assert!(!words().contains(&form), "{form}");
            }
        }
        for letter in 'a'..='z' {
            assert!(!words().contains(&format!(" {letter}")), "{letter}");
        }
    }

    #[test]
    fn the_vocabulary_stays_small() {
        let n = words().len();
        assert!((100..=370).contains(&n), "{n} words");
        assert!(words().contains(" A") && words().contains("Answer") && words().contains(" 7"));
    }
}
