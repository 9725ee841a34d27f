//! The inner loops of every product on the CPU: a few rows of A times one panel of B, with accumulators in registers.
//!
//! Each element of the result is one chain of multiply-adds in ascending `k`, for every block shape. The number of rows
//! or panels computed together therefore never changes a bit of the result: batch invariance depends on this.

#![allow(clippy::needless_range_loop)] // row and column of the accumulator, as in the equation

use super::simd::Simd;

/// The number of columns of a panel: one cache line of f32.
pub const PANEL: usize = 16;

/// The addresses of the operands of one step.
#[derive(Clone, Copy)]
pub struct Operands {
    /// Element (row r, depth l) of A is at `r * RS + l * KS`.
    pub a: *const f32,
    /// Row `l` of panel `p` of B is at `p * panel_stride + l * row_stride`.
    pub b: *const f32,
    pub row_stride: usize,
    pub panel_stride: usize,
    /// Row `r` of C is at `r * c_stride`, with contiguous columns.
    pub c: *mut f32,
    pub c_stride: usize,
}

/// Computes `C = A·B`, or `C += A·B` if `accumulate`, for `MR` rows and `NV` vectors of columns, over `depth`.
///
/// # Safety
/// The operands cover the shapes above, and the processor has `S`.
#[inline(always)]
pub unsafe fn micro<S: Simd, const MR: usize, const NV: usize, const RS: usize, const KS: usize>(
    depth: usize,
    o: Operands,
    accumulate: bool,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut acc = [[S::splat(0.0); NV]; MR];
        let (mut a, mut b) = (o.a, o.b);
        for _ in 0..depth {
            // The shorter side stays in registers, the longer one is streamed.
            if MR < NV {
                let mut x = [S::splat(0.0); MR];
                for (r, x) in x.iter_mut().enumerate() {
                    *x = S::splat(*a.add(r * RS));
                }
                for v in 0..NV {
                    let column = v * S::LANES;
                    let w = S::load(b.add(column / PANEL * o.panel_stride + column % PANEL));
                    for r in 0..MR {
                        acc[r][v] = x[r].mul_add(w, acc[r][v]);
                    }
                }
            } else {
                let mut w = [S::splat(0.0); NV];
                for (v, w) in w.iter_mut().enumerate() {
                    let column = v * S::LANES;
                    *w = S::load(b.add(column / PANEL * o.panel_stride + column % PANEL));
                }
                for r in 0..MR {
                    let x = S::splat(*a.add(r * RS));
                    for v in 0..NV {
                        acc[r][v] = x.mul_add(w[v], acc[r][v]);
                    }
                }
            }
            a = a.add(KS);
            b = b.add(o.row_stride);
        }
        write(&acc, o, accumulate);
    }
}

/// Works as [`micro`] on a panel of bf16 pairs (see [`load_bf16_pairs`](Simd::load_bf16_pairs)), widened when loaded: a
/// row of B is two steps of depth, and `row_stride` and `panel_stride` count pairs. A is packed (`RS` 1, `KS` `MR`).
///
/// # Safety
/// Same as [`micro`], with `o.b` pointing to pairs of bf16.
#[inline(always)]
pub unsafe fn micro_bf16<S: Simd, const MR: usize, const NV: usize>(
    depth: usize,
    o: Operands,
    accumulate: bool,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut acc = [[S::splat(0.0); NV]; MR];
        let (mut a, mut b) = (o.a, o.b.cast::<u32>());
        for _ in 0..depth / 2 {
            for v in 0..NV {
                let column = v * S::LANES;
                let (first, second) =
                    S::load_bf16_pairs(b.add(column / PANEL * o.panel_stride + column % PANEL));
                for r in 0..MR {
                    acc[r][v] = S::splat(*a.add(r)).mul_add(first, acc[r][v]);
                    acc[r][v] = S::splat(*a.add(MR + r)).mul_add(second, acc[r][v]);
                }
            }
            a = a.add(2 * MR);
            b = b.add(o.row_stride);
        }
        write(&acc, o, accumulate);
    }
}

/// Stores the accumulators in `o.c`, or adds them to its values.
///
/// # Safety
/// `o.c` is valid for `MR` rows of `NV` vectors, `c_stride` apart, and the processor has `S`.
#[inline(always)]
unsafe fn write<S: Simd, const MR: usize, const NV: usize>(
    acc: &[[S; NV]; MR],
    o: Operands,
    accumulate: bool,
) {
    // SAFETY: the caller's promise.
    unsafe {
        for (r, acc) in acc.iter().enumerate() {
            for (v, acc) in acc.iter().enumerate() {
                let at = o.c.add(r * o.c_stride + v * S::LANES);
                if accumulate {
                    S::load(at).add(*acc).store(at);
                } else {
                    acc.store(at);
                }
            }
        }
    }
}

/// Returns the maximum number of rows of a micro-kernel, so that the accumulators for a panel fit the registers.
pub const fn max_rows(lanes: usize) -> usize {
    if lanes == 16 { 8 } else { 6 }
}

/// Returns the number of panels computed together, so that few rows still have enough independent chains to hide the latency of an add.
pub const fn group(lanes: usize, rows: usize) -> usize {
    match (lanes, rows) {
        (16, 1) => 8,
        (16, 2..=4) => 4,
        (16, _) => 2,
        (_, 1) => 4,
        (_, 2 | 3) => 2,
        _ => 1,
    }
}

/// Returns the number of panels to compute together for a strip of `rows` when `left` panels remain.
pub const fn take(lanes: usize, rows: usize, left: usize) -> usize {
    let mut together = group(lanes, rows);
    while together > left {
        together /= 2;
    }
    together
}

/// Calls `$arms!` with every (rows, panels) that [`take`] allows for sixteen lanes: one arm each, for both kinds of products.
macro_rules! with_shapes_of_16_lanes {
    ($arms:ident) => {
        $arms!(
            (1, 8),
            (2, 4),
            (3, 4),
            (4, 4),
            (1, 4),
            (1, 2),
            (2, 2),
            (3, 2),
            (4, 2),
            (5, 2),
            (6, 2),
            (7, 2),
            (8, 2),
            (1, 1),
            (2, 1),
            (3, 1),
            (4, 1),
            (5, 1),
            (6, 1),
            (7, 1),
            (8, 1),
        )
    };
}
pub(crate) use with_shapes_of_16_lanes;

/// The layout of a strip's operands.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// A packed by [`pack_rows`], B in f32 panels.
    Packed,
    /// A packed by [`pack_rows`], B in panels of bf16 pairs.
    PackedBf16,
    /// A row-major with rows [`ROW`] apart, B in f32 panels.
    Rows,
}

/// The distance between rows of A in [`Layout::Rows`].
pub const ROW: usize = 32;

/// Computes one strip of rows times one group of panels: `rows` is at most [`max_rows`], `together` comes from [`take`]
/// for the tallest strip.
///
/// # Safety
/// Same as [`micro`].
#[inline(always)]
pub unsafe fn strip<S: Simd>(
    layout: Layout,
    rows: usize,
    together: usize,
    depth: usize,
    o: Operands,
    accumulate: bool,
) {
    // One arm for each (rows, panels, vectors): a panel is 2 vectors of 8 lanes or 1 of 16.
    macro_rules! arms {
        ($(($mr:literal, $panels:literal)),* $(,)?) => {
            arms!($(($mr, $panels, $panels)),*)
        };
        ($(($mr:literal, $panels:literal, $nv:literal)),* $(,)?) => {
            match (rows, together) {
                $(($mr, $panels) => match layout {
                    Layout::Packed => micro::<S, $mr, $nv, 1, $mr>(depth, o, accumulate),
                    Layout::PackedBf16 => micro_bf16::<S, $mr, $nv>(depth, o, accumulate),
                    Layout::Rows => micro::<S, $mr, $nv, ROW, 1>(depth, o, accumulate),
                },)*
                _ => unreachable!("{rows} rows and {together} panels: this is a bug"),
            }
        };
    }
    // SAFETY: the caller's promise.
    unsafe {
        if S::LANES == 16 {
            with_shapes_of_16_lanes!(arms);
        } else {
            arms!(
                (1, 4, 8),
                (2, 2, 4),
                (3, 2, 4),
                (1, 2, 4),
                (1, 1, 2),
                (2, 1, 2),
                (3, 1, 2),
                (4, 1, 2),
                (5, 1, 2),
                (6, 1, 2),
            );
        }
    }
}

/// Packs rows of A into strips: strip `s` holds rows `rows * s / strips..rows * (s + 1) / strips`, depth outermost.
/// `row` returns a row, which is padded with zeros to `depth`.
#[inline(always)]
pub fn pack_rows<'a>(
    row: impl Fn(usize) -> &'a [f32],
    rows: usize,
    depth: usize,
    strips: usize,
    packed: &mut [f32],
) {
    for s in 0..strips {
        let (from, to) = (rows * s / strips, rows * (s + 1) / strips);
        let mr = to - from;
        let strip = &mut packed[from * depth..to * depth];
        for r in 0..mr {
            let row = row(from + r);
            if mr == 1 {
                strip[..row.len()].copy_from_slice(row);
            } else {
                for (group, value) in strip.chunks_exact_mut(mr).zip(row) {
                    group[r] = *value;
                }
            }
            for l in row.len()..depth {
                strip[l * mr + r] = 0.0;
            }
        }
    }
}
