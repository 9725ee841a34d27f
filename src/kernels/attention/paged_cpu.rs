//! Attention over the paged cache on the CPU: division of the work into tiles, and their distribution over threads. The computation
//! within a tile is in [`paged_tile`](super::paged_tile).
//!
//! A tile is some query tokens of a sequence with all query heads of one KV head, so one pass over K and V serves the whole group. A chunk
//! of keys is gathered from its blocks into panels of f32 (K transposed), so only the gather depends on block size, block order, odd head
//! sizes and the cache's dtype. Contexts are cut into splits of 512 keys, each with its own running maximum and sum; the splits are then
//! folded together in order.
//!
//! # Batch invariance
//! Chunks and splits are at fixed positions of the sequence, masked keys have weight exactly 0, and every sum runs in order of
//! position. The result for a query token therefore has the same bits whatever else is in the batch, however the prompt
//! was cut into prefill chunks, wherever its blocks are, and on any number of threads.

use super::paged_softmax::Partial;
use super::paged_tile::Tile;
use super::{AttentionMetadata, AttentionParams};
use crate::device::team;
use crate::isa::Isa;
use crate::micro::PANEL;
use crate::scratch::{SharedOut, with_scratch};
use crate::simd::Stored;

/// The approximate number of query rows (tokens times heads of a group) of a tile: enough to make the gather of a chunk cheap.
const TILE_ROWS: usize = 48;

/// The number of multiply-adds below which waking another thread costs more than it saves.
const SERIAL_BELOW: usize = 1 << 19;

/// The operands of a call, with a cache of `T`.
pub struct Problem<'a, T> {
    /// The queries, `[tokens, heads, head_dim]`.
    pub q: &'a [f32],
    /// The keys, `[num_blocks, kv_heads, block_size, head_dim]`, and the values in the same shape.
    pub k: &'a [T],
    pub v: &'a [T],
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub metadata: &'a AttentionMetadata,
    pub params: AttentionParams,
    pub isa: Isa,
}

impl<T: Stored> Problem<'_, T> {
    /// Returns the number of query heads that share a KV head.
    pub(super) fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// Returns head_dim rounded up to whole panels.
    pub(super) fn width(&self) -> usize {
        self.head_dim.next_multiple_of(PANEL)
    }

    fn tiles(&self) -> Vec<Tile<'_>> {
        let step = (TILE_ROWS / self.group()).max(1);
        let batch = self.metadata;
        let mut tiles = Vec::new();
        for (s, w) in batch.cu_seqlens_q().windows(2).enumerate() {
            let (start, q_len) = (w[0] as usize, (w[1] - w[0]) as usize);
            let before = batch.seq_lens()[s] as usize - q_len;
            // The tiles with the most keys come first, so that the last to finish are short ones.
            for from in (0..q_len).step_by(step).rev() {
                for kv_head in 0..self.kv_heads {
                    tiles.push(Tile {
                        table: &batch.block_tables()[s],
                        kv_head,
                        row: start + from,
                        position: before + from,
                        tokens: step.min(q_len - from),
                    });
                }
            }
        }
        tiles
    }

    /// Computes the attention of every query token into `out`, `[tokens, heads, head_dim]`.
    ///
    /// The caller must have checked that slices and metadata match.
    pub fn run(&self, out: &mut [f32]) {
        let tiles = self.tiles();
        let threads = team::threads();
        // SAFETY: each tile writes only its own tokens and heads.
        let out = unsafe { SharedOut::new(out) };
        let whole = |tile: &Tile| {
            let rows = tile.tokens * self.group();
            let size = Partial::len(rows, self.width());
            with_scratch(2 * size + self.workspace(rows), |scratch| {
                let (state, rest) = scratch.split_at_mut(size);
                let (part, work) = rest.split_at_mut(size);
                let mut state = Partial::new(state, rows);
                state.reset();
                for split in tile.splits(&self.params) {
                    let mut part = Partial::new(&mut *part, rows);
                    self.split(tile, split, &mut part, work);
                    state.fold(part.m, part.l, part.o);
                }
                self.finish(tile, &state, out);
            });
        };
        let work: usize = tiles
            .iter()
            .map(|t| t.tokens * self.group() * (t.position + t.tokens) * self.head_dim * 2)
            .sum();
        if threads == 1 || work < SERIAL_BELOW {
            tiles.iter().for_each(whole);
        } else if tiles.len() >= 2 * threads {
            team::run(tiles.len(), |at| whole(&tiles[at]));
        } else {
            self.run_split(&tiles, out);
        }
    }

    /// Computes few tiles with long contexts: the splits of a tile run separately and are then folded.
    fn run_split(&self, tiles: &[Tile], out: SharedOut) {
        let jobs: Vec<(&Tile, usize)> = tiles
            .iter()
            .flat_map(|tile| tile.splits(&self.params).map(move |split| (tile, split)))
            .collect();
        let most_rows = tiles.iter().map(|t| t.tokens).max().unwrap_or(0) * self.group();
        let size = Partial::len(most_rows, self.width());
        let mut partials = vec![0f32; jobs.len() * size];
        let parts = jobs.iter().zip(partials.chunks_mut(size));
        team::each(parts, |((tile, split), memory)| {
            let rows = tile.tokens * self.group();
            let memory = &mut memory[..Partial::len(rows, self.width())];
            with_scratch(self.workspace(rows), |work| {
                self.split(tile, *split, &mut Partial::new(memory, rows), work);
            });
        });
        let mut partials = partials.chunks_exact_mut(size);
        for tile in tiles {
            let rows = tile.tokens * self.group();
            let mut state = vec![0f32; Partial::len(rows, self.width())];
            let mut state = Partial::new(&mut state, rows);
            state.reset();
            for memory in partials.by_ref().take(tile.splits(&self.params).len()) {
                let part = Partial::new(&mut memory[..Partial::len(rows, self.width())], rows);
                state.fold(part.m, part.l, part.o);
            }
            self.finish(tile, &state, out);
        }
    }

    /// Normalises a tile's rows and writes them to the result.
    fn finish(&self, tile: &Tile, state: &Partial, out: SharedOut) {
        let (group, d) = (self.group(), self.head_dim);
        for (r, (o, l)) in state
            .o
            .chunks_exact(self.width())
            .zip(&*state.l)
            .enumerate()
        {
            let head = tile.kv_head * group + r % group;
            let at = ((tile.row + r / group) * self.heads + head) * d;
            // SAFETY: the row of this token and head, which only this tile writes.
            let out = unsafe { std::slice::from_raw_parts_mut(out.get().add(at), d) };
            for (out, o) in out.iter_mut().zip(o) {
                *out = o / l;
            }
        }
    }
}
