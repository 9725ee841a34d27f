//! SFT data: responses to imitate, by imperfect demonstrators.
//!
//! A share of the demonstrations is wrong, as in real SFT data. The model learns the task together with these mistakes, so it can
//! become better than the demonstrations. A system message asks for principles or their opposites, and the response follows it. A
//! demonstrator who is asked to be careful makes no mistakes, and one who is asked to guess makes many.

use super::comparison::Source;
use super::dice::Dice;
use super::mistake::Severity;
use super::principle::Principle;
use super::style::Style;
use super::task::{Grade, Task};

/// An instruction, the requests of its system message, and the response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Demonstration {
    pub task: Task,
    pub requests: Vec<Request>,
    pub response: String,
}

/// A request for a principle or for its opposite.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    pub principle: Principle,
    pub wanted: bool,
}

impl Request {
    /// Returns the sentence of the system message.
    pub fn text(self) -> &'static str {
        if self.wanted {
            self.principle.request()
        } else {
            self.principle.opposite()
        }
    }
}

/// Returns the system message for some requests; `None` for none.
pub fn system_message(requests: &[Request]) -> Option<String> {
    (!requests.is_empty()).then(|| {
        let texts: Vec<&str> = requests.iter().map(|r| r.text()).collect();
        texts.join(" ")
    })
}

/// The error rate of demonstrators who are asked to guess.
const GUESSED_WRONG: f64 = 0.6;

/// Draws a demonstration. It has a system message at a rate of `asked`, and is wrong at a rate of `wrong` if
/// the system message does not concern correctness.
pub fn demonstration(source: &Source, asked: f64, wrong: f64, dice: &mut Dice) -> Demonstration {
    let task = source.task(dice);
    let (requests, style) = if dice.chance(asked) {
        requested(dice)
    } else {
        (Vec::new(), source.style(dice))
    };
    let correctness = requests.iter().find(|r| r.principle == Principle::Correct);
    let wrong = match correctness {
        Some(request) if request.wanted => 0.0,
        Some(_) => GUESSED_WRONG,
        None => wrong,
    };
    let response = if dice.chance(wrong) {
        loop {
            let severity = if dice.chance(0.7) {
                Severity::Subtle
            } else {
                Severity::Plain
            };
            let response = task.wrong(style, severity, dice);
            // A response that is cut off may lose a requested property.
            if follows(&requests, &task.check(&response)) {
                break response;
            }
        }
    } else {
        task.right(style, dice)
    };
    Demonstration {
        task,
        requests,
        response,
    }
}

/// Returns whether a response's style satisfies the requests. Correctness can be requested but is not guaranteed.
pub fn follows(requests: &[Request], grade: &Grade) -> bool {
    requests
        .iter()
        .filter(|r| r.principle != Principle::Correct)
        .all(|r| r.principle.satisfied(grade) == r.wanted)
}

/// Returns one or two requests that can be satisfied together, and a style that satisfies them.
fn requested(dice: &mut Dice) -> (Vec<Request>, Style) {
    loop {
        let mut requests: Vec<Request> = Vec::new();
        let count = if dice.chance(0.7) { 1 } else { 2 };
        while requests.len() < count {
            let principle = *dice.pick(&Principle::ALL);
            if requests.iter().all(|r| r.principle != principle) {
                let wanted = dice.chance(0.6);
                requests.push(Request { principle, wanted });
            }
        }
        for _ in 0..24 {
            let style = Style::draw(0.3, 0.25, 0.25, dice);
            let grade = Grade {
                correct: true,
                brief: !style.steps && !style.polite,
                steps: style.steps,
                polite: style.polite,
                format: style.format,
                words: 0,
                chars: 0,
            };
            if follows(&requests, &grade) {
                return (requests, style);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::task::Split;
    use super::*;

    #[test]
    fn responses_follow_their_system_message_and_err_as_often_as_said() {
        let mut dice = Dice::new(31, 0);
        let source = Source::world(Split::Train);
        let (mut plain, mut plain_wrong, mut guessed, mut guessed_wrong) = (0, 0, 0, 0);
        for _ in 0..6000 {
            let shown = demonstration(&source, 0.5, 0.3, &mut dice);
            let grade = shown.task.check(&shown.response);
            assert!(follows(&shown.requests, &grade), "{shown:?}");
            match shown
                .requests
                .iter()
                .find(|r| r.principle == Principle::Correct)
            {
                Some(request) if request.wanted => assert!(grade.correct, "{shown:?}"),
                Some(_) => {
                    guessed += 1;
                    guessed_wrong += usize::from(!grade.correct);
                }
                None => {
                    plain += 1;
                    plain_wrong += usize::from(!grade.correct);
                }
            }
        }
        let share = |n: usize, of: usize| n as f64 / of as f64;
        assert!((share(plain_wrong, plain) - 0.3).abs() < 0.04);
        assert!((share(guessed_wrong, guessed) - GUESSED_WRONG).abs() < 0.1);
    }
}
