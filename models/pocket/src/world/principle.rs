//! The principles: their names for the judge, the sentences that request them from the policy, and their checks.

use serde::{Deserialize, Serialize};

use super::task::Grade;

/// A principle of judging responses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Principle {
    Correct,
    Brief,
    Explained,
    Polite,
    Formatted,
}

impl Principle {
    pub const ALL: [Principle; 5] = [
        Principle::Correct,
        Principle::Brief,
        Principle::Explained,
        Principle::Polite,
        Principle::Formatted,
    ];

    /// Returns the word for the principle in a judge's question and in data files.
    pub fn name(self) -> &'static str {
        self.texts().0
    }

    /// Returns the system message that requests the principle.
    pub fn request(self) -> &'static str {
        self.texts().1
    }

    /// Returns the system message that requests the opposite, for contrasts of on-policy pairs.
    pub fn opposite(self) -> &'static str {
        self.texts().2
    }

    /// Returns the principle's texts: name, request, opposite.
    fn texts(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Principle::Correct => ("correct", "Check your work carefully.", "Just guess."),
            Principle::Brief => ("brief", "Be brief.", "Be chatty."),
            Principle::Explained => ("explained", "Explain your steps.", "Skip the steps."),
            Principle::Polite => ("polite", "Be polite.", "Be blunt."),
            Principle::Formatted => ("formatted", "Use the exact format.", "Ignore the format."),
        }
    }

    /// Returns whether a graded response satisfies the principle.
    pub fn satisfied(self, grade: &Grade) -> bool {
        match self {
            Principle::Correct => grade.correct,
            Principle::Brief => grade.brief,
            Principle::Explained => grade.steps,
            Principle::Polite => grade.polite,
            Principle::Formatted => grade.format,
        }
    }

    /// Returns the principle with this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|p| p.name() == name)
    }
}

/// Returns how many of the principles a response satisfies.
pub fn satisfied(principles: &[Principle], grade: &Grade) -> usize {
    principles.iter().filter(|p| p.satisfied(grade)).count()
}

/// Pairs of principles that the judge is trained on.
pub const TRAINED_PAIRS: [[Principle; 2]; 6] = [
    [Principle::Correct, Principle::Brief],
    [Principle::Correct, Principle::Explained],
    [Principle::Correct, Principle::Formatted],
    [Principle::Explained, Principle::Polite],
    [Principle::Polite, Principle::Formatted],
    [Principle::Brief, Principle::Formatted],
];

/// Combinations that no training record names: two pairs, and every triple without a contradiction.
pub const HELD_OUT_COMBINATIONS: [&[Principle]; 8] = [
    &[Principle::Correct, Principle::Polite],
    &[Principle::Explained, Principle::Formatted],
    &[Principle::Brief, Principle::Polite],
    &[Principle::Correct, Principle::Brief, Principle::Formatted],
    &[Principle::Correct, Principle::Explained, Principle::Polite],
    &[
        Principle::Correct,
        Principle::Explained,
        Principle::Formatted,
    ],
    &[Principle::Correct, Principle::Polite, Principle::Formatted],
    &[
        Principle::Explained,
        Principle::Polite,
        Principle::Formatted,
    ],
];

/// The judge's question, as in `models/pocket/judge_template.toml`.
///
/// Candidates are on separate lines, three tokens after the instruction (newline, letter, newline), like an
/// answer in a conversation (end, role, newline), so that a skill learned in one place transfers to the other.
pub const JUDGE_FRAME: &str =
    "Which answer is {principles}?\n{context}\nA\n{response_a}\nB\n{response_b}";
/// The beginning of the judge's answer.
pub const JUDGE_LEAD_IN: &str = "Answer";
/// The labels of the judge's answer.
pub const JUDGE_LABELS: [&str; 2] = [" A", " B"];
/// The separator between the names of several principles.
pub const PRINCIPLE_JOIN: &str = " and ";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_held_out_combination_is_trained_on() {
        for held in HELD_OUT_COMBINATIONS {
            let trained = TRAINED_PAIRS
                .iter()
                .any(|pair| pair.len() == held.len() && pair.iter().all(|p| held.contains(p)));
            assert!(!trained, "{held:?}");
        }
    }

    #[test]
    fn every_principle_is_in_a_trained_pair_and_names_read_back() {
        for principle in Principle::ALL {
            assert!(TRAINED_PAIRS.iter().flatten().any(|p| *p == principle));
            assert_eq!(Principle::from_name(principle.name()), Some(principle));
        }
    }
}
