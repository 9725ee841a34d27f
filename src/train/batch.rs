//! Packing: examples concatenated into micro-batches, with the rows that carry loss.

use super::mixture::{ExampleKind, TrainExample};
use model::PackedBatch;

/// The kind of a supervised token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TargetKind {
    /// A token of an answer that is imitated.
    Answer,
    /// The label token of a judgement.
    Label,
    /// A token that accompanies a judgement: of a rationale, or of a candidate in the judge prompt.
    Auxiliary,
}

/// Examples that go through the model in one pass. Attention never crosses from one example to the next, so packing does not change
/// results.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct MicroBatch {
    pub tokens: PackedBatch,
    /// Rows whose *next* token is supervised, ascending.
    pub rows: Vec<u32>,
    /// The supervised token after each of `rows`.
    pub targets: Vec<u32>,
    /// The loss weight of each target.
    pub weights: Vec<f32>,
    /// The kind of each target.
    pub kinds: Vec<TargetKind>,
}

impl MicroBatch {
    fn push(&mut self, example: &TrainExample) {
        let start = self.len();
        // The prompt ends where the first supervised token begins.
        let supervised = example.weights.iter().skip(1).position(|&w| w > 0.0);
        let prompt_len = supervised.map_or(example.ids.len(), |before| before + 1);
        self.tokens.push_answered(&example.ids, prompt_len);
        for (i, &weight) in example.weights.iter().enumerate().skip(1) {
            if weight > 0.0 {
                self.rows.push((start + i - 1) as u32);
                self.targets.push(example.ids[i]);
                self.weights.push(weight);
                self.kinds.push(match (example.kind, example.label) {
                    (ExampleKind::Sft, _) => TargetKind::Answer,
                    (ExampleKind::Judge, Some(label)) if label == i => TargetKind::Label,
                    (ExampleKind::Judge, _) => TargetKind::Auxiliary,
                });
            }
        }
    }

    /// Returns the size in tokens.
    pub fn len(&self) -> usize {
        self.tokens.ids().len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Packs examples, in order, into micro-batches of at most `max_tokens`; a longer example gets a micro-batch of its own.
pub fn pack<'a>(
    examples: impl IntoIterator<Item = &'a TrainExample>,
    max_tokens: usize,
) -> Vec<MicroBatch> {
    let mut batches: Vec<MicroBatch> = Vec::new();
    for example in examples {
        if example.ids.is_empty() {
            continue;
        }
        match batches.last_mut() {
            Some(last) if last.len() + example.ids.len() <= max_tokens => last.push(example),
            _ => {
                let mut batch = MicroBatch::default();
                batch.push(example);
                batches.push(batch);
            }
        }
    }
    batches
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example(ids: &[u32], supervised: &[usize]) -> TrainExample {
        TrainExample {
            ids: ids.to_vec(),
            weights: (0..ids.len())
                .map(|i| f32::from(supervised.contains(&i)))
                .collect(),
            kind: ExampleKind::Sft,
            label: None,
        }
    }

    #[test]
    fn rows_point_at_the_token_before_a_target_within_its_own_example() {
        let examples = [example(&[5, 6, 7], &[2]), example(&[8, 9], &[1])];
        let batches = pack(&examples, 5);
        assert_eq!(batches.len(), 1);
        assert_eq!(batches[0].tokens.ids(), [5, 6, 7, 8, 9]);
        assert_eq!(batches[0].tokens.cu_seqlens(), [0, 3, 5]);
        assert_eq!(batches[0].rows, [1, 3]);
        assert_eq!(batches[0].targets, [7, 9]);
        assert_eq!(batches[0].tokens.seq_lens(), [3, 2]);
    }

    #[test]
    fn a_full_batch_starts_another_and_a_long_example_stands_alone() {
        let examples = [
            example(&[1, 2], &[1]),
            example(&[3; 9], &[1]),
            example(&[4, 5], &[1]),
            example(&[], &[]),
            example(&[6, 7], &[1]),
        ];
        let sizes: Vec<usize> = pack(&examples, 4).iter().map(MicroBatch::len).collect();
        assert_eq!(sizes, [2, 9, 4]);
    }

    #[test]
    fn a_label_is_told_from_what_is_read_along() {
        let judged = TrainExample {
            kind: ExampleKind::Judge,
            label: Some(3),
            ..example(&[1, 2, 3, 4], &[1, 3])
        };
        let kinds = &pack(&[judged], 8)[0].kinds;
        assert_eq!(kinds, &[TargetKind::Auxiliary, TargetKind::Label]);
    }

    #[test]
    fn the_first_token_is_never_a_target() {
        assert!(pack(&[example(&[1, 2], &[0])], 8)[0].rows.is_empty());
    }
}
