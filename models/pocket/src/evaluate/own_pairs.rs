//! Judge data from the policy's own samples: pairs with exactly one right answer, labelled by the pocket world's checker.
//!
//! The mistakes in a judge's own samples differ from the programmatic mistakes of its training, and a tournament selects samples
//! that it misjudges. The instructions are training instructions.

use std::collections::HashSet;

use super::own_samples::draw;
use crate::world::task::LEVEL_WEIGHTS;
use crate::world::{Dice, Kind, Principle, Split, Task};
use judge::{Comparison, PreferencePair};
use selfjudge::eval::{EvalError, Subject};
use text::{Message, Role};

/// The size and kind of the data.
#[derive(Debug, Clone, PartialEq)]
pub struct OwnPairsOptions {
    pub seed: u64,
    pub instructions: usize,
    /// The kinds of instructions.
    pub kinds: Vec<Kind>,
    /// Samples per instruction; adjacent samples are paired.
    pub samples: usize,
    /// The share that is kept of the pairs that the judge already gets right. Pairs that it gets wrong are all kept.
    pub easy: f64,
}

/// Number of instructions per batch.
const CHUNK: usize = 256;

/// Draws the pairs and passes them to `write`, in an order determined by the options. Returns their number.
///
/// # Errors
/// Returns errors of the subject and of `write`.
pub fn own_pairs<S: Subject>(
    subject: &mut S,
    options: &OwnPairsOptions,
    mut write: impl FnMut(&PreferencePair) -> Result<(), EvalError>,
) -> Result<usize, EvalError> {
    let mut count = 0;
    for start in (0..options.instructions).step_by(CHUNK) {
        let end = options.instructions.min(start + CHUNK);
        let tasks: Vec<Task> = (start..end)
            .map(|i| {
                let dice = &mut Dice::new(options.seed, i as u64);
                Task::sample_from(Split::Train, &options.kinds, &LEVEL_WEIGHTS, dice)
            })
            .collect();
        let seed = options.seed.wrapping_add(start as u64);
        let drawn = draw(subject, &tasks, options.samples, 1.0, seed)?;
        let mut pairs = Vec::new();
        for (at, texts) in drawn.texts.iter().enumerate() {
            let mut seen = HashSet::new();
            let neighbours = texts.chunks_exact(2).zip(drawn.right[at].chunks_exact(2));
            for (texts, right) in neighbours {
                let (chosen, rejected) = match right {
                    [true, false] => (&texts[0], &texts[1]),
                    [false, true] => (&texts[1], &texts[0]),
                    _ => continue,
                };
                if seen.insert((chosen, rejected)) {
                    pairs.push(pair(start + at, &tasks[at], chosen, rejected));
                }
            }
        }
        let dice = &mut Dice::new(!options.seed, start as u64);
        let known = judged_right(subject, &pairs)?;
        for (pair, known) in pairs.iter().zip(known) {
            if !known || dice.chance(options.easy) {
                write(pair)?;
                count += 1;
            }
        }
    }
    Ok(count)
}

fn pair(instruction: usize, task: &Task, chosen: &str, rejected: &str) -> PreferencePair {
    PreferencePair {
        id: Some(format!("own-{instruction}-{}", task.kind().name())),
        messages: vec![Message::new(Role::User, task.prompt.clone())],
        chosen: chosen.to_owned(),
        rejected: rejected.to_owned(),
        principles: vec![Principle::Correct.name().to_owned()],
        rationale: None,
        sft: false,
        judge: true,
        plain: false,
        margin: None,
        source: None,
    }
}

/// Returns whether the subject prefers the chosen answer of each pair.
fn judged_right<S: Subject>(
    subject: &mut S,
    pairs: &[PreferencePair],
) -> Result<Vec<bool>, EvalError> {
    let comparisons: Vec<Comparison> = pairs
        .iter()
        .map(|pair| Comparison {
            context: pair.messages.clone(),
            a: pair.chosen.clone(),
            b: pair.rejected.clone(),
            principles: Vec::new(),
        })
        .collect();
    let verdicts = subject.compare(&comparisons)?;
    Ok(verdicts.iter().map(|v| v.winner == Some(0)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use judge::{OnDisagreement, Orders, PairVerdict};
    use selfjudge::eval::Contest;

    /// A subject that answers with the prompt's last word, alternately unchanged and reversed: right for some reversal instructions.
    struct Parrot;

    impl Subject for Parrot {
        fn answer(
            &mut self,
            conversations: &[Vec<Message>],
            _: f32,
            _: u64,
        ) -> Result<Vec<String>, EvalError> {
            Ok(conversations
                .iter()
                .enumerate()
                .map(|(i, messages)| {
                    let prompt = messages[0].content.trim_end_matches(['.', '?']);
                    let word = prompt.rsplit(' ').next().unwrap_or_default();
                    match i % 2 {
                        0 => word.chars().rev().collect(),
                        _ => word.to_owned(),
                    }
                })
                .collect())
        }

        /// Prefers the first candidate always.
        fn compare(&mut self, comparisons: &[Comparison]) -> Result<Vec<PairVerdict>, EvalError> {
            let reads = [[-0.1, -3.0], [-3.0, -0.1]];
            let first =
                PairVerdict::join(&[], Orders::Both, OnDisagreement::Average, &reads, false);
            Ok(vec![first; comparisons.len()])
        }

        fn winners(&mut self, _: &[Contest]) -> Result<Vec<usize>, EvalError> {
            unreachable!("no tournament is held")
        }
    }

    fn pairs(easy: f64) -> Vec<PreferencePair> {
        let options = OwnPairsOptions {
            seed: 4,
            instructions: 600,
            kinds: Kind::ALL.to_vec(),
            samples: 4,
            easy,
        };
        let mut pairs = Vec::new();
        let count = own_pairs(&mut Parrot, &options, |pair| {
            pairs.push(pair.clone());
            Ok(())
        })
        .unwrap();
        assert_eq!(count, pairs.len());
        pairs
    }

    #[test]
    fn pairs_have_one_right_answer_and_come_once() {
        let all = pairs(1.0);
        assert!(all.len() > 5, "{}", all.len());
        for pair in &all {
            assert!(pair.judge && !pair.sft);
            assert_ne!(pair.chosen, pair.rejected);
        }
        // The same two samples twice make one pair.
        let prompts: HashSet<_> = all.iter().map(|p| &p.messages[0].content).collect();
        assert_eq!(prompts.len(), all.len());
    }

    #[test]
    fn what_the_judge_knows_can_be_left_out() {
        assert!(pairs(0.0).is_empty());
        assert!(pairs(0.5).len() < pairs(1.0).len());
    }
}
