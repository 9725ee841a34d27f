//! The content of an instruction, independent of its wording: the kinds, the random draw, and the held-out split.

use serde::{Deserialize, Serialize};

use super::dice::Dice;
use super::solve;
use super::vocabulary::is_instruction_word;
use super::words;

/// The kinds of instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    Add,
    Subtract,
    Pair,
    Multiple,
    Sort,
    Largest,
    Reverse,
    Count,
    Alphabet,
    Pick,
    Ends,
    Spell,
}

impl Kind {
    pub const ALL: [Kind; 12] = [
        Kind::Add,
        Kind::Subtract,
        Kind::Pair,
        Kind::Multiple,
        Kind::Sort,
        Kind::Largest,
        Kind::Reverse,
        Kind::Count,
        Kind::Alphabet,
        Kind::Pick,
        Kind::Ends,
        Kind::Spell,
    ];

    /// Returns the relative frequency of the kind.
    pub fn weight(self) -> f64 {
        match self {
            Kind::Add | Kind::Subtract | Kind::Pair | Kind::Sort | Kind::Reverse | Kind::Count => {
                10.0
            }
            Kind::Alphabet => 8.0,
            Kind::Multiple | Kind::Largest | Kind::Pick => 7.0,
            Kind::Ends => 6.0,
            Kind::Spell => 5.0,
        }
    }

    /// Returns the kind's name in files and reports.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Add => "add",
            Kind::Subtract => "subtract",
            Kind::Pair => "pair",
            Kind::Multiple => "multiple",
            Kind::Sort => "sort",
            Kind::Largest => "largest",
            Kind::Reverse => "reverse",
            Kind::Count => "count",
            Kind::Alphabet => "alphabet",
            Kind::Pick => "pick",
            Kind::Ends => "ends",
            Kind::Spell => "spell",
        }
    }
}

/// The content of an instruction.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Content {
    Add {
        a: u32,
        b: u32,
    },
    /// `a - b`, never negative.
    Subtract {
        a: u32,
        b: u32,
    },
    /// The two numbers of the list that add up to the target.
    Pair {
        list: Vec<u32>,
        target: u32,
    },
    /// A number strictly between the bounds divisible by `of`; the bounds themselves are not.
    Multiple {
        low: u32,
        high: u32,
        of: u32,
    },
    Sort {
        list: Vec<u32>,
        descending: bool,
    },
    Largest {
        list: Vec<u32>,
        smallest: bool,
    },
    Reverse {
        word: String,
    },
    Count {
        word: String,
        letter: char,
    },
    Alphabet {
        word: String,
    },
    /// A word of the list that has both letters.
    Pick {
        words: Vec<String>,
        letters: [char; 2],
    },
    Ends {
        word: String,
        count: usize,
        last: bool,
    },
    Spell {
        word: String,
    },
}

/// The inverse of the share of contents that are excluded from all training records.
const HELD_OUT_ONE_IN: u64 = 12;

impl Content {
    pub fn kind(&self) -> Kind {
        match self {
            Content::Add { .. } => Kind::Add,
            Content::Subtract { .. } => Kind::Subtract,
            Content::Pair { .. } => Kind::Pair,
            Content::Multiple { .. } => Kind::Multiple,
            Content::Sort { .. } => Kind::Sort,
            Content::Largest { .. } => Kind::Largest,
            Content::Reverse { .. } => Kind::Reverse,
            Content::Count { .. } => Kind::Count,
            Content::Alphabet { .. } => Kind::Alphabet,
            Content::Pick { .. } => Kind::Pick,
            Content::Ends { .. } => Kind::Ends,
            Content::Spell { .. } => Kind::Spell,
        }
    }

    /// Returns whether the content asks for the other direction of its kind (descending, smallest, last).
    pub fn mirrored(&self) -> bool {
        match self {
            Content::Sort { descending, .. } => *descending,
            Content::Largest { smallest, .. } => *smallest,
            Content::Ends { last, .. } => *last,
            _ => false,
        }
    }

    /// Draws a content. `level` 1 is the easiest, 4 the hardest.
    pub fn sample(kind: Kind, level: u32, dice: &mut Dice) -> Self {
        loop {
            let content = Self::draw(kind, level, dice);
            // An answer that is also a word of the instructions would be one token, and not be spelled in letters.
            let answer = solve::answer(&content, dice);
            if !answer.iter().any(|item| is_instruction_word(item))
                && !is_instruction_word(&solve::join(kind, &answer))
            {
                return content;
            }
        }
    }

    fn draw(kind: Kind, level: u32, dice: &mut Dice) -> Self {
        let level = level.clamp(1, 4);
        match kind {
            Kind::Add => {
                let (a, b) = operands(level, dice);
                if dice.chance(0.5) {
                    Content::Add { a, b }
                } else {
                    Content::Add { a: b, b: a }
                }
            }
            Kind::Subtract => {
                let (a, b) = operands(level, dice);
                Content::Subtract {
                    a: a.max(b),
                    b: a.min(b),
                }
            }
            Kind::Pair => {
                let largest = [9, 9, 12, 20][level as usize - 1];
                let list = distinct(2 + level as usize, 1, largest, dice);
                let first = dice.below(list.len());
                let second = (first + 1 + dice.below(list.len() - 1)) % list.len();
                let target = list[first] + list[second];
                Content::Pair { list, target }
            }
            Kind::Multiple => {
                let (of, top) = match level {
                    1 => (dice.between(2, 5), 20),
                    2 => (dice.between(3, 6), 40),
                    3 => (dice.between(3, 9), 60),
                    _ => (dice.between(4, 9), 80),
                };
                loop {
                    let low = dice.between(1, top);
                    let high = low + of + dice.between(0, of + 4);
                    if !low.is_multiple_of(of) && !high.is_multiple_of(of) {
                        return Content::Multiple { low, high, of };
                    }
                }
            }
            Kind::Sort => {
                let len = 2 + level as usize;
                let list = match level {
                    1 => distinct(len, 1, 9, dice),
                    2 => distinct(len, 1, 50, dice),
                    _ => distinct(len, 1, 99, dice),
                };
                Content::Sort {
                    list,
                    descending: dice.chance(0.4),
                }
            }
            Kind::Largest => {
                let len = 2 + level as usize;
                let list = match level {
                    1 => distinct(len, 1, 9, dice),
                    2 | 3 => distinct(len, 10, 99, dice),
                    _ => {
                        let base = 100 * dice.between(1, 9);
                        distinct(len, base, base + 99, dice)
                    }
                };
                Content::Largest {
                    list,
                    smallest: dice.chance(0.5),
                }
            }
            Kind::Reverse => Content::Reverse {
                word: words::word(letters(level, dice), dice),
            },
            Kind::Count => {
                let len = (letters(level, dice) + 1).min(8);
                let word = if dice.chance(0.6) {
                    words::repetitive_word(len, dice)
                } else {
                    words::word(len, dice)
                };
                let letter = if dice.chance(0.85) {
                    char::from(word.as_bytes()[dice.below(len)])
                } else {
                    char::from(b'a' + dice.below(26) as u8)
                };
                Content::Count { word, letter }
            }
            Kind::Alphabet => Content::Alphabet {
                word: words::word(letters(level, dice), dice),
            },
            Kind::Pick => {
                let mut list: Vec<String> = Vec::new();
                while list.len() < [2, 2, 3, 4][level as usize - 1] {
                    let len = 3 + dice.below(if level == 1 { 1 } else { 3 });
                    let word = words::word(len, dice);
                    if !list.contains(&word) {
                        list.push(word);
                    }
                }
                loop {
                    let word = dice.pick(&list).as_bytes();
                    let first = *dice.pick(word);
                    let second = *dice.pick(word);
                    if first != second {
                        return Content::Pick {
                            words: list.clone(),
                            letters: [char::from(first), char::from(second)],
                        };
                    }
                    // With words of one repeated letter only, the search would never end.
                    if list.iter().all(|w| w.bytes().all(|b| b == w.as_bytes()[0])) {
                        list[0] = "tea".to_string();
                    }
                }
            }
            Kind::Ends => {
                let len = letters(level, dice) + 1;
                Content::Ends {
                    word: words::word(len, dice),
                    count: 2 + dice.below((len - 2).min(level as usize).min(3)),
                    last: dice.chance(0.5),
                }
            }
            Kind::Spell => Content::Spell {
                word: words::word(letters(level, dice).min(7), dice),
            },
        }
    }

    /// Returns a canonical form, which is the same for different wordings and orders of the same operands.
    pub fn canonical(&self) -> String {
        let listed = |list: &[u32]| {
            let mut list = list.to_vec();
            list.sort_unstable();
            format!("{list:?}")
        };
        let kind = self.kind().name();
        match self {
            Content::Add { a, b } => format!("{kind} {} {}", a.min(b), a.max(b)),
            Content::Subtract { a, b } => format!("{kind} {a} {b}"),
            Content::Pair { list, target } => format!("{kind} {} {target}", listed(list)),
            Content::Multiple { low, high, of } => format!("{kind} {low} {high} {of}"),
            Content::Sort { list, .. } | Content::Largest { list, .. } => {
                format!("{kind} {}", listed(list))
            }
            Content::Reverse { word }
            | Content::Count { word, .. }
            | Content::Alphabet { word }
            | Content::Ends { word, .. }
            | Content::Spell { word } => format!("{kind} {word}"),
            Content::Pick { words, letters } => {
                let mut words = words.clone();
                words.sort();
                let mut letters = *letters;
                letters.sort_unstable();
                format!("{kind} {words:?} {letters:?}")
            }
        }
    }

    /// Returns whether the content belongs to the held-out side. Only a hash of the canonical form decides, so a
    /// content can never be on both sides, whatever the seed.
    pub fn held_out(&self) -> bool {
        stable_hash(&self.canonical()).is_multiple_of(HELD_OUT_ONE_IN)
    }
}

/// Returns FNV-1a with a final mix: the same number on every platform and in every release of the standard library.
pub fn stable_hash(text: &str) -> u64 {
    let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}

fn letters(level: u32, dice: &mut Dice) -> usize {
    match level {
        1 => 3,
        2 => 4,
        3 => 5,
        _ => 6 + dice.below(2),
    }
}

fn operands(level: u32, dice: &mut Dice) -> (u32, u32) {
    match level {
        1 => (dice.between(2, 19), dice.between(1, 9)),
        2 => (dice.between(10, 99), dice.between(2, 19)),
        3 => (dice.between(11, 99), dice.between(11, 99)),
        _ => (dice.between(101, 299), dice.between(11, 99)),
    }
}

fn distinct(len: usize, low: u32, high: u32, dice: &mut Dice) -> Vec<u32> {
    let mut list = Vec::with_capacity(len);
    while list.len() < len {
        let number = dice.between(low, high);
        if !list.contains(&number) {
            list.push(number);
        }
    }
    list
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn about_one_content_in_twelve_is_held_out_in_every_kind() {
        let mut dice = Dice::new(5, 0);
        for kind in Kind::ALL {
            let held = (0..2400)
                .filter(|_| Content::sample(kind, 3, &mut dice).held_out())
                .count();
            assert!((60..400).contains(&held), "{kind:?}: {held} of 2400");
        }
    }

    #[test]
    fn order_of_operands_makes_no_new_content() {
        let one = Content::Add { a: 3, b: 8 };
        let two = Content::Add { a: 8, b: 3 };
        assert_eq!(one.canonical(), two.canonical());
        let up = Content::Sort {
            list: vec![3, 1, 2],
            descending: false,
        };
        let down = Content::Sort {
            list: vec![1, 2, 3],
            descending: true,
        };
        assert_eq!(up.held_out(), down.held_out());
    }

    #[test]
    fn the_split_is_pinned() {
        // Another hash would move contents of a trained model's corpus to the held-out side.
        assert_eq!(stable_hash("add 3 8"), 5_967_740_919_563_757_587);
    }
}
