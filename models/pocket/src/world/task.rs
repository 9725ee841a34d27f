//! An instruction with its checker.

use serde::{Deserialize, Serialize};

use super::content::{Content, Kind};
use super::dice::Dice;
use super::mistake::{Severity, wrong_answer};
use super::phrase::phrase;
use super::solve;
use super::style::{self, Style};

/// One instruction whose responses a program can check.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Task {
    pub content: Content,
    /// The instruction as a user writes it.
    pub prompt: String,
}

/// The properties of a response, checked by the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grade {
    /// The final answer is right.
    pub correct: bool,
    /// The response has only an answer: no steps, no courtesies.
    pub brief: bool,
    /// Steps come before the answer.
    pub steps: bool,
    /// The response has a greeting or a farewell.
    pub polite: bool,
    /// The answer is in square brackets.
    pub format: bool,
    pub words: usize,
    pub chars: usize,
}

/// The side of the content split from which a task is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Split {
    Train,
    HeldOut,
}

/// Relative frequency of each level, easiest first, in the world's own distribution.
pub const LEVEL_WEIGHTS: [f64; 4] = [2.0, 3.0, 3.0, 2.0];

impl Task {
    /// Draws a task from the world's own distribution.
    pub fn sample(split: Split, dice: &mut Dice) -> Self {
        Self::sample_from(split, &Kind::ALL, &LEVEL_WEIGHTS, dice)
    }

    /// Draws a task of the given kinds and levels (1 to 4, in proportion to the weights).
    pub fn sample_from(split: Split, kinds: &[Kind], levels: &[f64; 4], dice: &mut Dice) -> Self {
        let weights: Vec<f64> = kinds.iter().map(|kind| kind.weight()).collect();
        let kind = kinds[dice.weighted(&weights)];
        let level = 1 + dice.weighted(levels) as u32;
        loop {
            let content = Content::sample(kind, level, dice);
            if content.held_out() == (split == Split::HeldOut) {
                let prompt = phrase(&content, dice);
                return Self { content, prompt };
            }
        }
    }

    pub fn kind(&self) -> Kind {
        self.content.kind()
    }

    /// Grades any text as a response.
    pub fn check(&self, response: &str) -> Grade {
        let parsed = style::parse(response);
        let Style {
            steps,
            polite,
            format,
        } = parsed.style;
        Grade {
            correct: solve::is_right(&self.content, parsed.answer),
            brief: !steps && !polite,
            steps,
            polite,
            format,
            words: response.split_whitespace().count(),
            chars: response.chars().count(),
        }
    }

    /// Returns a right response in a style.
    pub fn right(&self, style: Style, dice: &mut Dice) -> String {
        let answer = solve::answer(&self.content, dice);
        style::render(&self.content, &answer, style, dice)
    }

    /// Returns a plausibly wrong response in a style; with steps, the mistake is in the steps or only after them.
    pub fn wrong(&self, style: Style, severity: Severity, dice: &mut Dice) -> String {
        loop {
            let text = self.wrong_draft(style, severity, dice);
            if !text.is_empty() && !self.check(&text).correct {
                return text;
            }
        }
    }

    fn wrong_draft(&self, style: Style, severity: Severity, dice: &mut Dice) -> String {
        if dice.chance(0.04) {
            // The response is cut off, as by a token limit.
            let whole = self.right(style, dice);
            let cut = 1 + dice.below(whole.len());
            return whole[..cut.min(whole.len())].trim_end().to_string();
        }
        let wrong = wrong_answer(&self.content, severity, dice);
        if style.steps && dice.chance(0.3) {
            let right = solve::answer(&self.content, dice);
            let steps = super::working::working(&self.content, &right);
            let bare = solve::join(self.kind(), &wrong);
            let bare = if style.format {
                format!("[{bare}]")
            } else {
                bare
            };
            let body = format!("{steps}{}{bare}", style::THEREFORE);
            return if style.polite {
                style::courteous(&body, dice)
            } else {
                body
            };
        }
        style::render(&self.content, &wrong, style, dice)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn right_and_wrong_responses_are_graded_so_in_every_style() {
        let mut dice = Dice::new(11, 0);
        for kind in Kind::ALL {
            for _ in 0..200 {
                let task = Task::sample_from(Split::Train, &[kind], &LEVEL_WEIGHTS, &mut dice);
                let style = Style::draw(0.5, 0.5, 0.5, &mut dice);
                let right = task.check(&task.right(style, &mut dice));
                assert!(right.correct, "{task:?}");
                assert_eq!(
                    (right.steps, right.polite, right.format),
                    (style.steps, style.polite, style.format)
                );
                assert_eq!(right.brief, !style.steps && !style.polite);
                let wrong = task.wrong(style, Severity::Subtle, &mut dice);
                assert!(!task.check(&wrong).correct, "{task:?} {wrong}");
            }
        }
    }

    #[test]
    fn the_two_sides_share_no_content() {
        let mut dice = Dice::new(12, 0);
        let train: std::collections::HashSet<String> = (0..5000)
            .map(|_| Task::sample(Split::Train, &mut dice).content.canonical())
            .collect();
        let shared = (0..1000)
            .map(|_| Task::sample(Split::HeldOut, &mut dice).content.canonical())
            .filter(|content| train.contains(content))
            .count();
        assert_eq!(shared, 0);
    }

    #[test]
    fn garbage_is_wrong_and_harmless() {
        let mut dice = Dice::new(13, 0);
        for _ in 0..100 {
            let task = Task::sample(Split::Train, &mut dice);
            for text in [
                "",
                " ",
                "[]",
                ", so ",
                "Sure!",
                "\u{fffd}\n\n",
                "<|end|>",
                "so so so",
            ] {
                assert!(!task.check(text).correct, "{task:?} {text:?}");
            }
        }
    }
}
