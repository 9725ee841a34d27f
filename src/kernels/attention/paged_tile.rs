//! One tile of paged attention: the softmax of its queries over one split of their keys, computed online (Milakov and
//! Gimelshein 2018; Dao et al. 2022), with every product in the packed micro-kernels.

use super::AttentionParams;
use super::paged_cpu::Problem;
use crate::isa::Vector;
use crate::micro::{self, Layout, Operands, PANEL, max_rows, pack_rows, strip, take};
use crate::simd::{Portable, Simd, Stored, exp};

/// The number of keys per chunk: their K and V panels and the scores of a tile fit the first cache levels.
const CHUNK: usize = micro::ROW;

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

/// The softmax of some rows before normalisation: `o / l` is the result, `m` the largest score so far.
pub struct Partial<'a> {
    pub m: &'a mut [f32],
    pub l: &'a mut [f32],
    /// The weighted sum of values, `[rows, padded head_dim]`.
    pub o: &'a mut [f32],
}

impl<'a> Partial<'a> {
    pub fn len(rows: usize, width: usize) -> usize {
        rows * (width + 2)
    }

    pub fn new(memory: &'a mut [f32], rows: usize) -> Self {
        let (m, rest) = memory.split_at_mut(rows);
        let (l, o) = rest.split_at_mut(rows);
        Self { m, l, o }
    }

    pub fn reset(&mut self) {
        self.m.fill(f32::NEG_INFINITY);
        self.l.fill(0.0);
        self.o.fill(0.0);
    }

    /// Adds the partial softmax of later keys.
    pub fn fold(&mut self, m: &[f32], l: &[f32], o: &[f32]) {
        let width = o.len() / m.len();
        for (r, (o, part)) in self
            .o
            .chunks_exact_mut(width)
            .zip(o.chunks_exact(width))
            .enumerate()
        {
            if l[r] == 0.0 {
                continue;
            }
            if self.l[r] == 0.0 {
                (self.m[r], self.l[r]) = (m[r], l[r]);
                o.copy_from_slice(part);
                continue;
            }
            let largest = self.m[r].max(m[r]);
            let (mine, theirs) = ((self.m[r] - largest).exp(), (m[r] - largest).exp());
            self.m[r] = largest;
            self.l[r] = self.l[r] * mine + l[r] * theirs;
            for (o, part) in o.iter_mut().zip(part) {
                *o = *o * mine + part * theirs;
            }
        }
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

/// The scratch buffers of a tile's operands.
struct Workspace<'a> {
    /// The queries, scaled and packed in strips.
    q: &'a mut [f32],
    /// The scores, `[rows][CHUNK]`.
    scores: &'a mut [f32],
    /// Filled by [`gather`].
    k_panels: &'a mut [f32],
    v_panels: &'a mut [f32],
    /// A row of zeros.
    zeros: &'a [f32],
}

impl<'a> Workspace<'a> {
    fn new(work: &'a mut [f32], rows: usize, d: usize, width: usize) -> Self {
        let (q, rest) = work.split_at_mut(rows * d);
        let (scores, rest) = rest.split_at_mut(rows * CHUNK);
        let (k_panels, rest) = rest.split_at_mut(CHUNK * d);
        let (v_panels, zeros) = rest.split_at_mut(CHUNK * width);
        let zeros = &mut zeros[..width];
        zeros.fill(0.0);
        Self {
            q,
            scores,
            k_panels,
            v_panels,
            zeros,
        }
    }
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

/// Finds the positions in the cache of the keys from `key` on.
#[inline(always)]
fn locate<T: Stored>(p: &Problem<T>, tile: &Tile, key: usize, at: &mut [usize]) {
    let block_size = p.metadata.block_size();
    let (mut block, mut offset) = (key / block_size, key % block_size);
    let mut filled = 0;
    while filled < at.len() {
        let run = (block_size - offset).min(at.len() - filled);
        let head = tile.table[block] as usize * p.kv_heads + tile.kv_head;
        let first = (head * block_size + offset) * p.head_dim;
        for (i, at) in at[filled..filled + run].iter_mut().enumerate() {
            *at = first + i * p.head_dim;
        }
        filled += run;
        (block, offset) = (block + 1, 0);
    }
}

/// Prefetches a row into the second-level cache.
#[inline(always)]
fn prefetch<T>(row: &[T]) {
    #[cfg(target_arch = "x86_64")]
    for line in row.chunks(64 / size_of::<T>()) {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        // SAFETY: a prefetch is only a hint, and its address is within a slice.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(line.as_ptr().cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = row;
}

/// Gathers keys `key..key + count` of a tile's sequence: K into panels of 16 keys, `[head_dim][16]` each; V into panels
/// of 16 dimensions, `[CHUNK][16]` each; both in f32. The missing part of a panel becomes zeros. The next `ahead` keys
/// are prefetched.
///
/// # Safety
/// `room` was made for rows of the problem's head dimension, `count` is [`CHUNK`] at most, and the processor has `S`.
#[inline(always)]
unsafe fn gather<S: Simd, T: Stored>(
    p: &Problem<T>,
    tile: &Tile,
    key: usize,
    (count, ahead): (usize, usize),
    room: &mut Workspace,
) {
    let (d, width) = (p.head_dim, p.width());
    let Workspace {
        k_panels,
        v_panels,
        zeros,
        ..
    } = room;
    let padded = count.next_multiple_of(PANEL);
    let mut at = [0; CHUNK];
    locate(p, tile, key, &mut at[..count]);
    // The next chunk is loaded from memory while this one is computed.
    let mut next = [0; CHUNK];
    let ahead = ahead.min(CHUNK);
    locate(p, tile, key + CHUNK, &mut next[..ahead]);
    let next = &next[..ahead];
    for j in (0..padded).step_by(8) {
        // No `T` is wider than f32, and a zero f32 read as any `T` is zero.
        let mut rows = [zeros.as_ptr().cast::<T>(); 8];
        for (i, row) in rows.iter_mut().enumerate() {
            if j + i < count {
                *row = p.k[at[j + i]..at[j + i] + d].as_ptr();
            }
            if let Some(&at) = next.get(j + i) {
                prefetch(&p.k[at..at + d]);
            }
        }
        let to = k_panels[j / PANEL * d * PANEL + j % PANEL..].as_mut_ptr();
        let whole = d / 8 * 8;
        // SAFETY: rows of d values, to eight columns of a panel of d lines.
        unsafe {
            for c in (0..whole).step_by(8) {
                let mut corner = rows;
                for row in &mut corner {
                    *row = row.add(c);
                }
                S::transpose_8x8(corner, to.add(c * PANEL), PANEL);
            }
            for c in whole..d {
                for (i, row) in rows.iter().enumerate() {
                    *to.add(c * PANEL + i) = (*row.add(c)).into();
                }
            }
        }
    }
    for (j, at) in at[..count].iter().enumerate() {
        let row = &p.v[*at..at + d];
        if let Some(&at) = next.get(j) {
            prefetch(&p.v[at..at + d]);
        }
        let whole = d / PANEL;
        // SAFETY: line j of each panel, and sixteen values of the row for each whole one.
        unsafe {
            for panel in 0..whole {
                let to = v_panels.as_mut_ptr().add((panel * CHUNK + j) * PANEL);
                for v in (0..PANEL).step_by(S::LANES) {
                    T::load::<S>(row.as_ptr().add(panel * PANEL + v)).store(to.add(v));
                }
            }
        }
        if whole * PANEL < width {
            let to = &mut v_panels[(whole * CHUNK + j) * PANEL..][..PANEL];
            to.fill(0.0);
            for (to, value) in to.iter_mut().zip(&row[whole * PANEL..]) {
                *to = (*value).into();
            }
        }
    }
}

/// Turns a row of scores into weights and rescales the row's maximum, sum and output to the new maximum. Scores outside
/// `seen` get weight 0.
///
/// # Safety
/// `scores` and `o` have whole panels of [`PANEL`] each, and the processor has `S`.
#[inline(always)]
unsafe fn softmax_row<S: Simd>(
    scores: &mut [f32],
    seen: (usize, usize),
    m: &mut f32,
    l: &mut f32,
    o: &mut [f32],
) {
    if seen.0 >= seen.1 {
        return scores.fill(0.0);
    }
    scores[..seen.0].fill(f32::NEG_INFINITY);
    scores[seen.1..].fill(f32::NEG_INFINITY);
    // SAFETY: scores and o are whole panels, so whole vectors; the caller promises S.
    unsafe {
        let mut largest = S::splat(f32::NEG_INFINITY);
        for i in (0..scores.len()).step_by(S::LANES) {
            largest = largest.max(S::load(scores.as_ptr().add(i)));
        }
        let largest = m.max(largest.reduce_max());
        let mut sum = S::splat(0.0);
        for i in (0..scores.len()).step_by(S::LANES) {
            let at = scores.as_mut_ptr().add(i);
            let weight = exp(S::load(at).sub(S::splat(largest)));
            weight.store(at);
            sum = sum.add(weight);
        }
        if *m == largest {
            *l += sum.reduce_sum();
            return;
        }
        let mut lanes = [0f32; PANEL];
        exp(S::splat(*m - largest)).store(lanes.as_mut_ptr());
        let correction = lanes[0];
        *m = largest;
        *l = *l * correction + sum.reduce_sum();
        for i in (0..o.len()).step_by(S::LANES) {
            let at = o.as_mut_ptr().add(i);
            S::load(at).mul(S::splat(correction)).store(at);
        }
    }
}
