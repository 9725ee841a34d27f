//! The operands of a tile of paged attention: keys and values gathered from the blocks of the cache into panels.

use super::paged_cpu::Problem;
use super::paged_tile::{CHUNK, Tile};
use crate::micro::PANEL;
use crate::simd::{Simd, Stored};

/// The scratch buffers of a tile's operands.
pub struct Workspace<'a> {
    /// The queries, scaled and packed in strips.
    pub q: &'a mut [f32],
    /// The scores, `[rows][CHUNK]`.
    pub scores: &'a mut [f32],
    /// Filled by [`gather`].
    pub k_panels: &'a mut [f32],
    pub v_panels: &'a mut [f32],
    /// A row of zeros.
    zeros: &'a [f32],
}

impl<'a> Workspace<'a> {
    pub fn new(work: &'a mut [f32], rows: usize, d: usize, width: usize) -> Self {
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
pub unsafe fn gather<S: Simd, T: Stored>(
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
