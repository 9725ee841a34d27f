//! The default model's anchor set: fixed comparisons on which learning must not lose accuracy.
//!
//! The instructions are training instructions, so that those of evaluations stay unseen. Each pair has its own random stream, so a
//! set is a function of its seed.

use std::collections::HashSet;
use std::io::Write;

use super::comparison::{self, Comparison, Source};
use super::corpus::judgement;
use super::dice::Dice;
use super::principle::Principle;
use super::task::Split;
use judge::PreferencePair;

/// The number of pairs of a right and a plausibly wrong answer. They measure the policy's probabilities and the judge's
/// preferences.
const CORRECT: usize = 128;
/// The number of pairs under each other principle, independent of correctness. They are only judged: a policy need not be brief
/// unasked.
const EACH_PRINCIPLE: usize = 12;
/// The number of pairs under two principles that the judge was trained on together. They are only judged.
const COMBINED: usize = 16;

/// The first random stream of anchors. Streams of corpora are far below; streams of held-out sets begin at 2^40.
const STREAM: u64 = 3 << 38;

/// Returns the set: 192 pairs on distinct instructions.
pub fn anchors(seed: u64) -> Vec<PreferencePair> {
    let source = Source::world(Split::Train);
    let singles = Principle::ALL[1..]
        .iter()
        .flat_map(|&principle| std::iter::repeat_n(Lane::Single(principle), EACH_PRINCIPLE));
    let lanes = std::iter::repeat_n(Lane::Correct, CORRECT)
        .chain(singles)
        .chain(std::iter::repeat_n(Lane::Combined, COMBINED));
    let mut asked = HashSet::new();
    (0_u64..)
        .zip(lanes)
        .map(|(place, lane)| {
            let dice = &mut Dice::new(seed, STREAM + place);
            let pair = loop {
                let pair = lane.draw(&source, dice);
                if asked.insert(pair.task.prompt.clone()) {
                    break pair;
                }
            };
            judgement(&format!("{place}-anchor"), pair, lane == Lane::Correct)
        })
        .collect()
}

/// Writes the set as JSON lines.
///
/// # Errors
/// Returns errors of `out`.
pub fn write(out: &mut impl Write, seed: u64) -> std::io::Result<()> {
    for pair in anchors(seed) {
        serde_json::to_writer(&mut *out, &pair)?;
        out.write_all(b"\n")?;
    }
    Ok(())
}

#[derive(Clone, Copy, PartialEq)]
enum Lane {
    Correct,
    Single(Principle),
    Combined,
}

impl Lane {
    fn draw(self, source: &Source<'_>, dice: &mut Dice) -> Comparison {
        match self {
            Self::Correct => comparison::correctness(source, dice),
            Self::Single(principle) => comparison::single(principle, source, dice),
            Self::Combined => comparison::trained_combination(source, dice),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::Kind;
    use crate::world::corpus::held_out_tasks;
    use crate::world::task::LEVEL_WEIGHTS;

    #[test]
    fn the_committed_set_is_what_the_command_makes() {
        let mut made = Vec::new();
        write(&mut made, 1).unwrap();
        let committed = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/anchors.jsonl"));
        assert!(
            committed.as_bytes() == made,
            "pocket anchors --out models/pocket/anchors.jsonl"
        );
        assert!(made.len() < 60_000, "{}", made.len());
    }

    #[test]
    fn anchors_are_of_the_training_side_each_on_an_instruction_of_its_own() {
        let pairs = anchors(1);
        let prompts: HashSet<&str> = pairs
            .iter()
            .map(|p| p.messages[0].content.as_str())
            .collect();
        assert_eq!((pairs.len(), prompts.len()), (192, 192));
        for task in held_out_tasks(1, 4000, &Kind::ALL, &LEVEL_WEIGHTS) {
            assert!(!prompts.contains(task.prompt.as_str()), "{}", task.prompt);
        }
        let vouched = pairs.iter().filter(|pair| pair.sft);
        assert_eq!(vouched.count(), CORRECT);
        assert!(
            pairs
                .iter()
                .all(|pair| pair.judge && pair.chosen != pair.rejected)
        );
        assert_ne!(pairs, anchors(2));
    }
}
