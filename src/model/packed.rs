//! The tokens of a forward pass: sequences end to end, without a batch axis and without padding.

/// The input of a forward pass.
#[derive(Debug, Clone, Copy)]
pub struct Packed<'a> {
    pub ids: &'a [u32],
    /// Sequence `s` is `ids[cu_seqlens[s]..cu_seqlens[s + 1]]`.
    pub cu_seqlens: &'a [u32],
    /// The length of each sequence, including its tokens in the cache; the tokens given here are its last ones.
    pub seq_lens: &'a [u32],
    /// The length of each sequence's prompt, wherever its tokens are computed: dynamic rotary scaling depends on it.
    pub prompt_lens: &'a [u32],
    /// The most tokens that each sequence's call can have with its answer: LongRoPE depends on it.
    pub most_lens: &'a [u32],
}

/// A builder of [`Packed`], one sequence after the other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackedBatch {
    ids: Vec<u32>,
    cu_seqlens: Vec<u32>,
    seq_lens: Vec<u32>,
    prompt_lens: Vec<u32>,
    most_lens: Vec<u32>,
}

impl Default for PackedBatch {
    fn default() -> Self {
        Self {
            ids: Vec::new(),
            cu_seqlens: vec![0],
            seq_lens: Vec::new(),
            prompt_lens: Vec::new(),
            most_lens: Vec::new(),
        }
    }
}

impl PackedBatch {
    /// Appends the last tokens of a sequence that is `seq_len` tokens long and starts with a prompt of `prompt_len` tokens; the tokens
    /// before them are in the cache.
    pub fn push(&mut self, ids: &[u32], seq_len: usize, prompt_len: usize) {
        self.push_beside(ids, seq_len, prompt_len, seq_len);
    }

    /// Works as [`Self::push`] for a sequence whose tokens are computed beside those of a longer one, of `most` tokens.
    pub fn push_beside(&mut self, ids: &[u32], seq_len: usize, prompt_len: usize, most: usize) {
        self.ids.extend_from_slice(ids);
        self.cu_seqlens.push(self.ids.len() as u32);
        self.seq_lens.push(seq_len as u32);
        self.prompt_lens.push(prompt_len as u32);
        self.most_lens.push(most as u32);
    }

    /// Appends a whole sequence that is a prompt and has no cached tokens.
    pub fn push_whole(&mut self, ids: &[u32]) {
        self.push(ids, ids.len(), ids.len());
    }

    /// Appends a whole sequence without cached tokens: a prompt of `prompt_len` tokens and an answer.
    pub fn push_answered(&mut self, ids: &[u32], prompt_len: usize) {
        self.push(ids, ids.len(), prompt_len);
    }

    /// Returns the tokens of all sequences.
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    pub fn cu_seqlens(&self) -> &[u32] {
        &self.cu_seqlens
    }

    pub fn seq_lens(&self) -> &[u32] {
        &self.seq_lens
    }

    /// Returns the row of each sequence's last token. No sequence may be empty.
    pub fn last_rows(&self) -> Vec<u32> {
        self.cu_seqlens[1..].iter().map(|end| end - 1).collect()
    }

    pub fn as_packed(&self) -> Packed<'_> {
        Packed {
            ids: &self.ids,
            cu_seqlens: &self.cu_seqlens,
            seq_lens: &self.seq_lens,
            prompt_lens: &self.prompt_lens,
            most_lens: &self.most_lens,
        }
    }
}

impl<'a> FromIterator<&'a [u32]> for PackedBatch {
    /// Collects whole sequences, in order.
    fn from_iter<I: IntoIterator<Item = &'a [u32]>>(sequences: I) -> Self {
        let mut batch = Self::default();
        for ids in sequences {
            batch.push_whole(ids);
        }
        batch
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequences_lie_end_to_end_and_may_have_begun_earlier() {
        let mut batch: PackedBatch = [[1, 2, 3].as_slice(), &[4]].into_iter().collect();
        batch.push(&[7, 8], 5, 3);
        let packed = batch.as_packed();
        assert_eq!(packed.ids, [1, 2, 3, 4, 7, 8]);
        assert_eq!(packed.cu_seqlens, [0, 3, 4, 6]);
        assert_eq!(packed.seq_lens, [3, 1, 5]);
        assert_eq!(packed.prompt_lens, [3, 1, 3]);
        assert_eq!(packed.most_lens, [3, 1, 5]);
        assert_eq!(batch.last_rows(), [2, 3, 5]);
        assert!(PackedBatch::default().last_rows().is_empty());
    }
}
