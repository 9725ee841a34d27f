//! The sequences of a packed batch and the positions of their keys and values in the cache: vLLM's attention metadata.

/// The reason for which a batch was rejected.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum MetadataError {
    #[error("{sequences} sequences, but {seq_lens} lengths and {block_tables} block tables")]
    Counts {
        sequences: usize,
        seq_lens: usize,
        block_tables: usize,
    },
    #[error("cu_seqlens_q must start at 0, not at {0:?}")]
    Start(Option<u32>),
    #[error("sequence {0} has no query token")]
    Empty(usize),
    #[error("sequence {index} has {q_len} query tokens, but a context of only {seq_len}")]
    Short {
        index: usize,
        q_len: u32,
        seq_len: u32,
    },
    #[error(
        "sequence {index} has {blocks} blocks of {block_size} tokens, which do not hold its context of {seq_len}"
    )]
    Table {
        index: usize,
        blocks: usize,
        block_size: usize,
        seq_len: u32,
    },
    #[error("sequence {index} uses block {block}, but the cache has {num_blocks}")]
    Block {
        index: usize,
        block: u32,
        num_blocks: usize,
    },
    #[error("two new tokens share slot {0}")]
    Slot(u32),
    #[error("block_size must be at least 1")]
    BlockSize,
}

/// A packed batch over a paged cache, checked once on construction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttentionMetadata {
    cu_seqlens_q: Vec<u32>,
    seq_lens: Vec<u32>,
    block_tables: Vec<Vec<u32>>,
    slot_mapping: Vec<u32>,
    block_size: usize,
    num_blocks: usize,
}

impl AttentionMetadata {
    /// Creates the batch of sequences whose query tokens are `cu_seqlens_q[i]..cu_seqlens_q[i + 1]`: the last of the
    /// `seq_lens[i]` tokens of their context, which is stored in the blocks `block_tables[i]` (more than needed are
    /// allowed) of a cache of `num_blocks` blocks of `block_size` tokens.
    ///
    /// # Errors
    /// Errors if these contradict one another, a sequence has no query token, or two query tokens would be stored in one slot.
    pub fn new(
        cu_seqlens_q: Vec<u32>,
        seq_lens: Vec<u32>,
        block_tables: Vec<Vec<u32>>,
        block_size: usize,
        num_blocks: usize,
    ) -> Result<Self, MetadataError> {
        if block_size == 0 {
            return Err(MetadataError::BlockSize);
        }
        if cu_seqlens_q.first() != Some(&0) {
            return Err(MetadataError::Start(cu_seqlens_q.first().copied()));
        }
        let sequences = cu_seqlens_q.len() - 1;
        if seq_lens.len() != sequences || block_tables.len() != sequences {
            return Err(MetadataError::Counts {
                sequences,
                seq_lens: seq_lens.len(),
                block_tables: block_tables.len(),
            });
        }
        let mut slot_mapping = Vec::new();
        for (index, w) in cu_seqlens_q.windows(2).enumerate() {
            let (seq_len, table) = (seq_lens[index], &block_tables[index]);
            if w[1] <= w[0] {
                return Err(MetadataError::Empty(index));
            }
            let q_len = w[1] - w[0];
            if q_len > seq_len {
                return Err(MetadataError::Short {
                    index,
                    q_len,
                    seq_len,
                });
            }
            if table.len() < (seq_len as usize).div_ceil(block_size) {
                return Err(MetadataError::Table {
                    index,
                    blocks: table.len(),
                    block_size,
                    seq_len,
                });
            }
            if let Some(&block) = table.iter().find(|&&block| block as usize >= num_blocks) {
                return Err(MetadataError::Block {
                    index,
                    block,
                    num_blocks,
                });
            }
            slot_mapping.extend((seq_len - q_len..seq_len).map(|position| {
                let position = position as usize;
                let block = table[position / block_size] as usize;
                (block * block_size + position % block_size) as u32
            }));
        }
        let mut sorted = slot_mapping.clone();
        sorted.sort_unstable();
        if let Some(w) = sorted.windows(2).find(|w| w[0] == w[1]) {
            return Err(MetadataError::Slot(w[0]));
        }
        Ok(Self {
            cu_seqlens_q,
            seq_lens,
            block_tables,
            slot_mapping,
            block_size,
            num_blocks,
        })
    }

    pub fn sequences(&self) -> usize {
        self.seq_lens.len()
    }

    /// Returns the number of query tokens of all sequences.
    pub fn tokens(&self) -> usize {
        self.slot_mapping.len()
    }

    /// Returns the sequence boundaries: sequence `i` is query rows `cu_seqlens_q[i]..cu_seqlens_q[i + 1]`.
    pub fn cu_seqlens_q(&self) -> &[u32] {
        &self.cu_seqlens_q
    }

    /// Returns the number of tokens in the context of each sequence, the query tokens included.
    pub fn seq_lens(&self) -> &[u32] {
        &self.seq_lens
    }

    /// Returns the blocks of each sequence, in the order of its tokens.
    pub fn block_tables(&self) -> &[Vec<u32>] {
        &self.block_tables
    }

    /// Returns the slot of each query token.
    pub fn slot_mapping(&self) -> &[u32] {
        &self.slot_mapping
    }

    pub fn block_size(&self) -> usize {
        self.block_size
    }

    pub fn num_blocks(&self) -> usize {
        self.num_blocks
    }

    /// Returns the position of each query token in its sequence, for rotary embeddings.
    pub fn positions(&self) -> Vec<u32> {
        self.cu_seqlens_q
            .windows(2)
            .zip(&self.seq_lens)
            .flat_map(|(w, &seq_len)| seq_len - (w[1] - w[0])..seq_len)
            .collect()
    }

    /// Returns the row of each sequence's last query token, whose logits are needed.
    pub fn last_tokens(&self) -> Vec<u32> {
        self.cu_seqlens_q[1..].iter().map(|end| end - 1).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn new(
        cu: &[u32],
        lens: &[u32],
        tables: &[&[u32]],
    ) -> Result<AttentionMetadata, MetadataError> {
        let tables = tables.iter().map(|t| t.to_vec()).collect();
        AttentionMetadata::new(cu.to_vec(), lens.to_vec(), tables, 4, 8)
    }

    #[test]
    fn slots_and_positions_follow_from_the_tables() {
        let batch = new(&[0, 3, 4], &[6, 9], &[&[5, 2], &[1, 7, 0]]).unwrap();
        // Positions 3, 4, 5 of the first sequence and 8 of the second.
        assert_eq!(batch.positions(), [3, 4, 5, 8]);
        assert_eq!(batch.slot_mapping(), [5 * 4 + 3, 2 * 4, 2 * 4 + 1, 0]);
        assert_eq!(batch.last_tokens(), [2, 3]);
        assert_eq!((batch.sequences(), batch.tokens()), (2, 4));
    }

    #[test]
    fn shared_blocks_may_be_read_but_not_written_twice() {
        // A shared prefix block 5; each sequence writes its own block.
        assert!(new(&[0, 1, 2], &[5, 5], &[&[5, 1], &[5, 2]]).is_ok());
        let clash = new(&[0, 1, 2], &[5, 5], &[&[5, 1], &[5, 1]]);
        assert_eq!(clash, Err(MetadataError::Slot(4)));
    }

    #[test]
    fn contradictions_are_refused() {
        use MetadataError::*;
        assert_eq!(new(&[], &[], &[]), Err(Start(None)));
        assert_eq!(new(&[1, 2], &[1], &[&[0]]), Err(Start(Some(1))));
        assert!(matches!(new(&[0, 1], &[], &[]), Err(Counts { .. })));
        assert_eq!(new(&[0, 0], &[1], &[&[0]]), Err(Empty(0)));
        assert_eq!(new(&[0, 2, 1], &[2, 1], &[&[0], &[1]]), Err(Empty(1)));
        assert!(matches!(new(&[0, 2], &[1], &[&[0]]), Err(Short { .. })));
        assert!(matches!(new(&[0, 1], &[5], &[&[0]]), Err(Table { .. })));
        assert!(matches!(new(&[0, 1], &[1], &[&[8]]), Err(Block { .. })));
        assert!(AttentionMetadata::new(vec![0], vec![], vec![], 0, 1).is_err());
        // A batch without sequences is valid and empty.
        assert_eq!(new(&[0], &[], &[]).unwrap().tokens(), 0);
    }
}
