//! Packing: completions that share a prompt follow one copy of it.
//!
//! The layout of a pair is `x, y+, y-`. `y-` continues `x` ([`AttentionBackend::Branched`]): it does not attend to `y+`, and its
//! positions also start right after `x`. A pair of prompt length `P` and completion lengths `C` costs `P + 2C` tokens instead of `2P +
//! 2C`, with the same result.
//!
//! [`AttentionBackend::Branched`]: kernels::nn::AttentionBackend::Branched

use std::ops::Range;

use model::PackedBatch;

/// A prompt and its completions: token ids, as they were sampled.
#[derive(Debug, Clone, Copy)]
pub(super) struct Group<'a, const N: usize> {
    pub prompt: &'a [u32],
    pub completions: [&'a [u32]; N],
}

impl<const N: usize> Group<'_, N> {
    /// Returns the number of computed tokens; the prompt counts once.
    fn len(&self) -> usize {
        self.prompt.len() + self.completions.iter().map(|c| c.len()).sum::<usize>()
    }
}

/// Groups that go through the model in one pass.
#[derive(Debug, Clone, Default)]
pub(super) struct CompletionBatch {
    pub tokens: PackedBatch,
    /// The rows that each sequence continues.
    pub prefixes: Vec<Range<u32>>,
    /// The row before each completion token.
    pub rows: Vec<u32>,
    /// The completion token after each of `rows`.
    pub targets: Vec<u32>,
    /// The range of each completion in `rows`, in the order of the completions.
    pub completions: Vec<Range<usize>>,
}

impl CompletionBatch {
    /// Appends a group, whose prompt and completions must not be empty.
    fn push<const N: usize>(&mut self, group: &Group<'_, N>) {
        let start = self.len() as u32;
        let end_of_prompt = start + group.prompt.len() as u32;
        // The prompt's rows serve all completions, so they are rotated alike.
        let longest = group.completions.iter().map(|c| c.len()).max();
        let (prompt, most) = (
            group.prompt.len(),
            group.prompt.len() + longest.unwrap_or(0),
        );
        for (n, completion) in group.completions.iter().enumerate() {
            let first = if n == 0 {
                let whole = [group.prompt, completion].concat();
                self.tokens.push_beside(&whole, whole.len(), prompt, most);
                self.prefixes.push(0..0);
                end_of_prompt
            } else {
                let first = self.len() as u32;
                let seq_len = prompt + completion.len();
                self.tokens.push_beside(completion, seq_len, prompt, most);
                self.prefixes.push(start..end_of_prompt);
                first
            };
            // The prompt's last token predicts the first of every completion.
            let begin = self.rows.len();
            self.rows.push(end_of_prompt - 1);
            self.rows.extend(first..first + completion.len() as u32 - 1);
            self.targets.extend_from_slice(completion);
            self.completions.push(begin..self.rows.len());
        }
    }

    /// Returns the size in tokens.
    pub fn len(&self) -> usize {
        self.tokens.ids().len()
    }
}

/// Packs groups, in order, into batches of at most `max_tokens`; a longer group gets a batch of its own.
pub(super) fn pack<'a, const N: usize>(
    groups: impl IntoIterator<Item = Group<'a, N>>,
    max_tokens: usize,
) -> Vec<CompletionBatch> {
    let mut batches: Vec<CompletionBatch> = Vec::new();
    for group in groups {
        match batches.last_mut() {
            Some(last) if last.len() + group.len() <= max_tokens => last.push(&group),
            _ => {
                let mut batch = CompletionBatch::default();
                batch.push(&group);
                batches.push(batch);
            }
        }
    }
    batches
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn completions_lie_behind_one_prompt() {
        let groups = [
            Group {
                prompt: &[1, 2, 3],
                completions: [&[4, 5], &[6]],
            },
            Group {
                prompt: &[7],
                completions: [&[8], &[9, 10, 11]],
            },
        ];
        let batches = pack(groups, 100);
        assert_eq!(batches.len(), 1);
        let batch = &batches[0];
        assert_eq!(batch.tokens.ids(), [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]);
        assert_eq!(batch.tokens.cu_seqlens(), [0, 5, 6, 8, 11]);
        // Positions continue from the prompt's end.
        assert_eq!(batch.tokens.seq_lens(), [5, 4, 2, 4]);
        assert_eq!(batch.prefixes, [0..0, 0..3, 0..0, 6..7]);
        assert_eq!(batch.rows, [2, 3, 2, 6, 6, 8, 9]);
        assert_eq!(batch.targets, [4, 5, 6, 8, 9, 10, 11]);
        assert_eq!(batch.completions, [0..2, 2..3, 3..4, 4..7]);
    }

    #[test]
    fn a_batch_is_full_before_it_overflows() {
        let group = Group {
            prompt: &[1, 2][..],
            completions: [&[3][..], &[4]],
        };
        let sizes = |max| -> Vec<usize> {
            let batches = pack([group; 3], max);
            batches.iter().map(CompletionBatch::len).collect()
        };
        assert_eq!(sizes(8), [8, 4]);
        assert_eq!(sizes(7), [4, 4, 4]);
        assert_eq!(sizes(1), [4, 4, 4]);
        assert_eq!(sizes(12), [12]);
    }
}
