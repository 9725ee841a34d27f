//! The inner loops of every product on the CPU: a few rows of A times one panel of B, accumulators in registers.
//!
//! Each element of the result is one chain of multiply-adds in ascending `k`, for every block shape. How many rows or
//! panels are taken together therefore never changes a bit of the result: batch invariance rests on this.

use super::simd::Simd;

/// Columns of a panel: one cache line of f32.
pub const PANEL: usize = 16;

/// Where the operands of one step lie.
#[derive(Clone, Copy)]
pub struct Operands {
    /// Element (row r, depth l) of A is at `r * RS + l * KS`.
    pub a: *const f32,
    /// Row `l` of panel `p` of B is at `p * panel_stride + l * row_stride`.
    pub b: *const f32,
    pub row_stride: usize,
    pub panel_stride: usize,
    /// Row `r` of C is at `r * c_stride`, its columns side by side.
    pub c: *mut f32,
    pub c_stride: usize,
}

/// `C = A·B`, or `C += A·B` when `accumulate`, for `MR` rows and `NV` vectors of columns, over `depth`.
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
            let mut row = [S::splat(0.0); NV];
            for (v, lane) in row.iter_mut().enumerate() {
                let column = v * S::LANES;
                *lane = S::load(b.add(column / PANEL * o.panel_stride + column % PANEL));
            }
            for (r, acc) in acc.iter_mut().enumerate() {
                let x = S::splat(*a.add(r * RS));
                for (acc, w) in acc.iter_mut().zip(row) {
                    *acc = x.mul_add(w, *acc);
                }
            }
            a = a.add(KS);
            b = b.add(o.row_stride);
        }
        write(&acc, o, accumulate);
    }
}

/// [`micro`] on a panel of bf16 pairs (see [`load_bf16_pairs`](Simd::load_bf16_pairs)), widened on the way in: a row of
/// B is two steps of depth, and `row_stride` and `panel_stride` count pairs. A is packed (`RS` 1, `KS` `MR`).
///
/// # Safety
/// As for [`micro`], `o.b` being pairs of bf16.
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
            let mut first = [S::splat(0.0); NV];
            let mut second = [S::splat(0.0); NV];
            for v in 0..NV {
                let column = v * S::LANES;
                (first[v], second[v]) =
                    S::load_bf16_pairs(b.add(column / PANEL * o.panel_stride + column % PANEL));
            }
            for (step, row) in [first, second].into_iter().enumerate() {
                for (r, acc) in acc.iter_mut().enumerate() {
                    let x = S::splat(*a.add(step * MR + r));
                    for (acc, w) in acc.iter_mut().zip(row) {
                        *acc = x.mul_add(w, *acc);
                    }
                }
            }
            a = a.add(2 * MR);
            b = b.add(o.row_stride);
        }
        write(&acc, o, accumulate);
    }
}

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
