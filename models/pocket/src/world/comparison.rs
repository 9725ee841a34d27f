//! Judge data: two responses to one instruction, and the better one under the named principles.
//!
//! The program decides every preference. Style has no signal in correctness pairs, and correctness has none in style pairs. So
//! the judge must read the named principle.

use super::content::Kind;
use super::dice::Dice;
use super::mistake::Severity;
use super::principle::{HELD_OUT_COMBINATIONS, Principle, TRAINED_PAIRS, satisfied};
use super::style::Style;
use super::task::{Split, Task};

/// A task with a better and a worse response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Comparison {
    pub task: Task,
    pub principles: Vec<Principle>,
    pub chosen: String,
    pub rejected: String,
}

/// The distribution of tasks and mistakes in comparisons.
#[derive(Debug, Clone)]
pub struct Source<'a> {
    pub split: Split,
    pub kinds: &'a [Kind],
    /// Weights of the four levels.
    pub levels: [f64; 4],
    /// Weights of subtle, plain and blatant mistakes.
    pub severities: [f64; 3],
    /// Frequency of steps, courtesies and brackets, relative to the world's own mixture.
    pub styled: f64,
}

impl Source<'_> {
    /// Returns the world's own distribution, with which the curriculum ends and on which everything is measured.
    pub fn world(split: Split) -> Source<'static> {
        Source {
            split,
            kinds: &Kind::ALL,
            levels: super::task::LEVEL_WEIGHTS,
            severities: [0.6, 0.25, 0.15],
            styled: 1.0,
        }
    }

    pub fn task(&self, dice: &mut Dice) -> Task {
        Task::sample_from(self.split, self.kinds, &self.levels, dice)
    }

    pub fn severity(&self, dice: &mut Dice) -> Severity {
        [Severity::Subtle, Severity::Plain, Severity::Blatant][dice.weighted(&self.severities)]
    }

    /// Draws a style from the default mixture, reduced as the curriculum requires.
    pub fn style(&self, dice: &mut Dice) -> Style {
        if dice.chance(self.styled) {
            Style::default_mixture(dice)
        } else {
            Style::default()
        }
    }
}

/// Returns a right against a plausibly wrong response.
pub fn correctness(source: &Source, dice: &mut Dice) -> Comparison {
    let task = source.task(dice);
    let style = source.style(dice);
    let other = if dice.chance(0.5) {
        style
    } else {
        source.style(dice)
    };
    let chosen = task.right(style, dice);
    let rejected = task.wrong(other, source.severity(dice), dice);
    Comparison {
        task,
        principles: vec![Principle::Correct],
        chosen,
        rejected,
    }
}

/// Returns a comparison under one style principle, independent of correctness.
pub fn single(principle: Principle, source: &Source, dice: &mut Dice) -> Comparison {
    under(&[principle], source, dice)
}

/// Returns a comparison under a combination that the judge is trained on.
pub fn trained_combination(source: &Source, dice: &mut Dice) -> Comparison {
    let principles = *dice.pick(&TRAINED_PAIRS);
    under(&principles, source, dice)
}

/// Returns a comparison under a combination that the judge is not trained on.
pub fn held_out_combination(source: &Source, dice: &mut Dice) -> Comparison {
    let principles = *dice.pick(&HELD_OUT_COMBINATIONS);
    under(principles, source, dice)
}

/// Returns two responses of which one satisfies strictly more of the principles; ties are drawn again.
///
/// The principles are named in random order.
pub fn under(principles: &[Principle], source: &Source, dice: &mut Dice) -> Comparison {
    let mut named = principles.to_vec();
    dice.shuffle(&mut named);
    let task = source.task(dice);
    let response = |dice: &mut Dice| {
        let style = Style::draw(0.4, 0.35, 0.4, dice);
        if dice.chance(0.6) {
            task.right(style, dice)
        } else {
            task.wrong(style, source.severity(dice), dice)
        }
    };
    loop {
        let (one, two) = (response(dice), response(dice));
        let score = |text: &str| satisfied(principles, &task.check(text));
        let (chosen, rejected) = match score(&one).cmp(&score(&two)) {
            std::cmp::Ordering::Greater => (one, two),
            std::cmp::Ordering::Less => (two, one),
            std::cmp::Ordering::Equal => continue,
        };
        return Comparison {
            task,
            principles: named,
            chosen,
            rejected,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_prefers_the_chosen_response() {
        let mut dice = Dice::new(21, 0);
        let source = Source::world(Split::Train);
        for n in 0..3000 {
            let pair = match n % 4 {
                0 => correctness(&source, &mut dice),
                1 => single(Principle::ALL[1 + n / 4 % 4], &source, &mut dice),
                2 => trained_combination(&source, &mut dice),
                _ => held_out_combination(&source, &mut dice),
            };
            let score = |text: &str| satisfied(&pair.principles, &pair.task.check(text));
            assert!(score(&pair.chosen) > score(&pair.rejected), "{pair:?}");
        }
    }

    #[test]
    fn style_says_nothing_about_correctness_nor_length() {
        let mut dice = Dice::new(22, 0);
        let source = Source::world(Split::Train);
        let (mut steps, mut longer, mut differ) = ([0.0; 2], 0.0, 0.0);
        let n = 6000;
        for _ in 0..n {
            let pair = correctness(&source, &mut dice);
            let (right, wrong) = (
                pair.task.check(&pair.chosen),
                pair.task.check(&pair.rejected),
            );
            steps[0] += f64::from(u8::from(right.steps));
            steps[1] += f64::from(u8::from(wrong.steps));
            if right.chars != wrong.chars {
                differ += 1.0;
                longer += f64::from(u8::from(right.chars > wrong.chars));
            }
        }
        // Answers that are cut off lose their steps occasionally.
        assert!(
            (steps[0] - steps[1]).abs() / f64::from(n) < 0.03,
            "{steps:?}"
        );
        assert!(
            (longer / differ - 0.5_f64).abs() < 0.1,
            "{longer} of {differ}"
        );
    }
}
