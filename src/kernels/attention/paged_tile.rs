//! One tile of paged attention: the softmax of its queries over one split of their keys, computed online (Milakov and
//! Gimelshein 2018; Dao et al. 2022), with every product in the packed micro-kernels.

use super::AttentionParams;
use super::paged_cpu::Problem;
use super::paged_gather::{Workspace, gather};
use super::paged_softmax::{Partial, softmax_row};
use crate::isa::Vector;
use crate::micro::{self, Layout, Operands, PANEL, max_rows, pack_rows, strip, take};
use crate::simd::{Portable, Simd, Stored};
use crate::soft_cap::cap;

/// The number of keys per chunk: their K and V panels and the scores of a tile fit the first cache levels.
pub const CHUNK: usize = micro::ROW;

/// The number of keys between two folds; whole chunks.
const SPLIT: usize = 512;

/// Query tokens of one sequence, for one KV head.
pub struct Tile<'a> {
    pub table: &'a [u32],
    pub kv_head: usize,
    /// The first token's row in q; `position` is its position in the sequence.
    pub row: usize,
    pub position: usize,
    pub tokens: usize,
}

impl Tile<'_> {
    /// Returns the range of splits to which its tokens attend.
    pub fn splits(&self, params: &AttentionParams) -> std::ops::Range<usize> {
        let first = params.first_visible(self.position) / SPLIT;
        first..(self.position + self.tokens - 1) / SPLIT + 1
    }
}

impl<T: Stored> Problem<'_, T> {
    /// Returns the f32 of scratch that [`Problem::split`] needs.
    pub(super) fn workspace(&self, rows: usize) -> usize {
        rows * (self.head_dim + CHUNK) + CHUNK * (self.head_dim + self.width()) + self.width()
    }

    /// Computes the partial softmax of a tile over the keys of one split.
    pub(super) fn split(&self, tile: &Tile, split: usize, part: &mut Partial, work: &mut [f32]) {
        // SAFETY: the isa was detected on this machine.
        unsafe {
            match self.isa.vector {
                #[cfg(target_arch = "x86_64")]
                Vector::Avx2 => avx2(self, tile, split, part, work),
                #[cfg(target_arch = "x86_64")]
                Vector::Avx512 => avx512(self, tile, split, part, work),
                #[cfg(test)]
                Vector::Emulated512 => {
                    attend_split::<Portable<16>, T>(self, tile, split, part, work)
                }
                _ => attend_split::<Portable<8>, T>(self, tile, split, part, work),
            }
        }
    }
}

/// Runs [`attend_split`] with eight lanes.
///
/// # Safety
/// Same as [`attend_split`], with AVX2 and FMA.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn avx2<T: Stored>(
    p: &Problem<T>,
    tile: &Tile,
    split: usize,
    part: &mut Partial,
    work: &mut [f32],
) {
    // SAFETY: as the caller promises; the attribute above is the instruction set of the type.
    unsafe { attend_split::<crate::simd::F32x8, T>(p, tile, split, part, work) }
}

/// Runs [`attend_split`] with sixteen lanes.
///
/// # Safety
/// Same as [`attend_split`], with AVX-512.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512dq,avx512bw,avx512vl,avx2,fma")]
unsafe fn avx512<T: Stored>(
    p: &Problem<T>,
    tile: &Tile,
    split: usize,
    part: &mut Partial,
    work: &mut [f32],
) {
    // SAFETY: as the caller promises; the attribute above is the instruction set of the type.
    unsafe { attend_split::<crate::simd::F32x16, T>(p, tile, split, part, work) }
}

/// Runs [`Problem::split`]: computes for each chunk the scores, their softmax, and the weighted sum of values.
///
/// # Safety
/// The processor has `S`. (The lookup of the tile's blocks and the slices of its operands are checked.)
#[inline(always)]
unsafe fn attend_split<S: Simd, T: Stored>(
    p: &Problem<T>,
    tile: &Tile,
    split: usize,
    part: &mut Partial,
    work: &mut [f32],
) {
    let (d, width) = (p.head_dim, p.width());
    let rows = tile.tokens * p.group();
    let strips = rows.div_ceil(max_rows(S::LANES));
    let mut room = Workspace::new(work, rows, d, width);
    pack_queries(p, tile, strips, room.q);
    part.reset();
    let first = p.params.first_visible(tile.position) / CHUNK * CHUNK;
    let end = (tile.position + tile.tokens).min((split + 1) * SPLIT);
    for key in (first.max(split * SPLIT)..end).step_by(CHUNK) {
        let count = CHUNK.min(end - key);
        let blocks = Blocks {
            rows,
            strips,
            panels: count.div_ceil(PANEL),
        };
        // SAFETY: the blocks of keys up to the tile's last position are in the table and in the cache; the caller promises S.
        unsafe {
            gather::<S, T>(p, tile, key, (count, end - key - count), &mut room);
            score::<S>(&mut room, blocks, d);
            for r in 0..rows {
                let position = tile.position + r / p.group();
                let seen = (
                    p.params.first_visible(position).saturating_sub(key),
                    (position + 1).saturating_sub(key).min(count),
                );
                let scores = &mut room.scores[r * CHUNK..r * CHUNK + blocks.panels * PANEL];
                if let Some(bound) = p.params.soft_cap {
                    cap(scores, bound);
                }
                let o = &mut part.o[r * width..(r + 1) * width];
                // `scores` and `o` are whole panels.
                softmax_row::<S>(scores, seen, &mut part.m[r], &mut part.l[r], o);
            }
            add_values::<S>(&room, blocks, count, width, part.o);
        }
    }
}

/// Scales the tile's queries and packs them into strips.
#[inline(always)]
fn pack_queries<T: Stored>(p: &Problem<T>, tile: &Tile, strips: usize, q: &mut [f32]) {
    let (d, heads_per) = (p.head_dim, p.group());
    pack_rows(
        |r| {
            let head = tile.kv_head * heads_per + r % heads_per;
            let at = ((tile.row + r / heads_per) * p.heads + head) * d;
            &p.q[at..at + d]
        },
        tile.tokens * heads_per,
        d,
        strips,
        q,
    );
    for x in q.iter_mut() {
        *x *= p.params.scale;
    }
}

/// Computes the scores of the queries with a chunk's keys.
///
/// # Safety
/// The panels of `blocks` are filled, and the processor has `S`.
#[inline(always)]
unsafe fn score<S: Simd>(room: &mut Workspace, blocks: Blocks, d: usize) {
    let keys = Operands {
        a: room.q.as_ptr(),
        b: room.k_panels.as_ptr(),
        row_stride: PANEL,
        panel_stride: d * PANEL,
        c: room.scores.as_mut_ptr(),
        c_stride: CHUNK,
    };
    // SAFETY: scores has `rows` rows of CHUNK.
    unsafe { product::<S>(Layout::Packed, blocks, d, keys, d, false) };
}

/// Adds a chunk's values, weighted by its scores, to `o`, `[rows][width]`.
///
/// # Safety
/// Same as [`score`].
#[inline(always)]
unsafe fn add_values<S: Simd>(
    room: &Workspace,
    blocks: Blocks,
    count: usize,
    width: usize,
    o: &mut [f32],
) {
    let values = Operands {
        a: room.scores.as_ptr(),
        b: room.v_panels.as_ptr(),
        row_stride: PANEL,
        panel_stride: CHUNK * PANEL,
        c: o.as_mut_ptr(),
        c_stride: width,
    };
    let blocks = Blocks {
        panels: width / PANEL,
        ..blocks
    };
    // SAFETY: o has `rows` rows of width.
    unsafe { product::<S>(Layout::Rows, blocks, count, values, CHUNK, true) };
}

#[derive(Clone, Copy)]
struct Blocks {
    rows: usize,
    strips: usize,
    panels: usize,
}

/// Multiplies all strips with all panels; `a_row` is the length of a row of A in its layout.
///
/// # Safety
/// The operands cover `blocks.rows` rows of A and of C and `blocks.panels` panels of B to `depth`, and the processor has `S`.
#[inline(always)]
unsafe fn product<S: Simd>(
    layout: Layout,
    blocks: Blocks,
    depth: usize,
    o: Operands,
    a_row: usize,
    accumulate: bool,
) {
    let tallest = blocks.rows.div_ceil(blocks.strips);
    let mut panel = 0;
    while panel < blocks.panels {
        let together = take(S::LANES, tallest, blocks.panels - panel);
        for s in 0..blocks.strips {
            let (from, to) = (
                blocks.rows * s / blocks.strips,
                blocks.rows * (s + 1) / blocks.strips,
            );
            // SAFETY: rows `from..to` and panels from `panel` on are among those that the caller promises, and so is S.
            unsafe {
                let o = Operands {
                    a: o.a.add(from * a_row),
                    b: o.b.add(panel * o.panel_stride),
                    c: o.c.add(from * o.c_stride + panel * PANEL),
                    ..o
                };
                strip::<S>(layout, to - from, together, depth, o, accumulate);
            }
        }
        panel += together;
    }
}
