//! Packed weights times f32 activations in f32 arithmetic: f32 panels, and bf16 panels that are widened when read.
//!
//! Depth is summed in blocks of [`DEPTH_BLOCK`] whose sums are added in order, and within a block in order: the same
//! for every number of rows, every vector width and every division of the work. bf16 panels give the same bits as
//! f32 panels with the same (rounded) weights.

use super::panels::padded;
use crate::isa::{Isa, Vector};
use crate::micro::{Layout, Operands, PANEL, max_rows, pack_rows, strip, take};
use crate::scratch::{Line, PairLine};
use crate::simd::{Portable, Simd};

/// The depth of a block: 16 KiB of an f32 panel, half of a first-level cache.
pub const DEPTH_BLOCK: usize = 256;

/// The maximum number of bf16 panels that are widened at a time: the result of [`take`] for several strips.
const WIDE_PANELS: usize = 2;

/// The panels of a weight.
#[derive(Clone, Copy)]
pub enum Panels<'a> {
    F32(&'a [Line]),
    Bf16(&'a [PairLine]),
}

/// A block of the product: some rows of x, some panels of the weight.
pub struct Block<'a> {
    /// The rows, `[rows, k]`.
    pub x: &'a [f32],
    pub rows: usize,
    pub k: usize,
    /// The panels are `panels.0..panels.1` of this weight.
    pub weight: Panels<'a>,
    pub panels: (usize, usize),
    /// The number of columns of the whole product.
    pub n: usize,
    /// The address of row 0, column 0 of the rows' part of the product; its row stride is `n`.
    pub out: *mut f32,
}

/// Returns the f32 of scratch that [`run`] needs.
pub fn scratch_len(rows: usize, k: usize) -> usize {
    rows * padded(k) + rows * PANEL + WIDE_PANELS * DEPTH_BLOCK * PANEL
}

/// Computes the block.
///
/// # Safety
/// `isa` is available; `out` is valid for the block's rows and columns, and no other thread writes there.
pub unsafe fn run(isa: Isa, block: &Block, scratch: &mut [f32]) {
    // SAFETY: the caller's promise.
    unsafe {
        match isa.vector {
            #[cfg(target_arch = "x86_64")]
            Vector::Avx2 => avx2(block, scratch),
            #[cfg(target_arch = "x86_64")]
            Vector::Avx512 => avx512(block, scratch),
            #[cfg(test)]
            Vector::Emulated512 => product::<Portable<16>>(block, scratch),
            _ => product::<Portable<8>>(block, scratch),
        }
    }
}

/// Runs [`run`] with eight lanes.
///
/// # Safety
/// Same as [`run`], with AVX2 and FMA.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn avx2(block: &Block, scratch: &mut [f32]) {
    // SAFETY: as the caller promises; the attribute above is the instruction set of the type.
    unsafe { product::<crate::simd::F32x8>(block, scratch) }
}

/// Runs [`run`] with sixteen lanes.
///
/// # Safety
/// Same as [`run`], with AVX-512.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512dq,avx512bw,avx512vl,avx2,fma")]
unsafe fn avx512(block: &Block, scratch: &mut [f32]) {
    // SAFETY: as the caller promises; the attribute above is the instruction set of the type.
    unsafe { product::<crate::simd::F32x16>(block, scratch) }
}

/// Computes [`run`]: packs the rows into strips, then loops over groups of panels, blocks of depth, and strips.
///
/// # Safety
/// `block.out` is valid for the block's rows and columns, no other thread writes there, and the processor has `S`.
#[inline(always)]
unsafe fn product<S: Simd>(block: &Block, scratch: &mut [f32]) {
    let Block { rows, k, n, .. } = *block;
    // bf16 panels are padded to whole tiles of depth, so their x is too.
    let depth = match block.weight {
        Panels::F32(_) => k,
        Panels::Bf16(_) => padded(k),
    };
    let (packed, rest) = scratch.split_at_mut(rows * depth);
    let (tail, wide) = rest.split_at_mut(rows * PANEL);
    let strips = rows.div_ceil(max_rows(S::LANES));
    pack_rows(
        |r| &block.x[r * k..(r + 1) * k],
        rows,
        depth,
        strips,
        packed,
    );
    let tallest = rows.div_ceil(strips);
    let whole = n / PANEL;
    let mut p = block.panels.0;
    while p < block.panels.1 {
        let left = block.panels.1.min(whole).saturating_sub(p).max(1);
        let together = take(S::LANES, tallest, left);
        // The last panel may have fewer columns: it is computed in a separate buffer.
        let aside = p >= whole;
        let (c, c_stride) = if aside {
            (tail.as_mut_ptr(), PANEL)
        } else {
            // SAFETY: column p * PANEL is within n.
            (unsafe { block.out.add(p * PANEL) }, n)
        };
        if depth == 0 {
            // The sum is empty, and the scratch contains old values.
            tail.fill(0.0);
        }
        for l in (0..depth).step_by(DEPTH_BLOCK) {
            let step = DEPTH_BLOCK.min(depth - l);
            // SAFETY: the panels and the depth exist; the caller promises S. Strip s is packed at `from * depth`, with `mr`
            // values for each step of depth.
            unsafe {
                let (b, panel_stride, layout) =
                    operand::<S>(block.weight, (p, together), depth, (l, step), strips, wide);
                for s in 0..strips {
                    let (from, to) = (rows * s / strips, rows * (s + 1) / strips);
                    let mr = to - from;
                    let o = Operands {
                        a: packed.as_ptr().add(from * depth + l * mr),
                        b,
                        row_stride: PANEL,
                        panel_stride,
                        c: c.add(from * c_stride),
                        c_stride,
                    };
                    strip::<S>(layout, mr, together, step, o, l > 0);
                }
            }
        }
        if aside {
            // SAFETY: the caller's promise.
            unsafe { write_last(block, p, tail) };
        }
        p += together;
    }
}

/// Returns the address of `together` panels from `p` on, for `step` of depth from `l` on, with their distance and layout. bf16 panels are
/// first widened into `wide` if several strips use them: widening in registers would be repeated for every strip.
///
/// # Safety
/// The panels and the depth exist, `wide` has room for them, and the processor has `S`.
#[inline(always)]
unsafe fn operand<S: Simd>(
    weight: Panels,
    (p, together): (usize, usize),
    depth: usize,
    (l, step): (usize, usize),
    strips: usize,
    wide: &mut [f32],
) -> (*const f32, usize, Layout) {
    match weight {
        Panels::F32(lines) => (
            lines[p * depth + l..].as_ptr().cast::<f32>(),
            depth * PANEL,
            Layout::Packed,
        ),
        Panels::Bf16(lines) if strips == 1 => (
            lines[(p * depth + l) / 2..].as_ptr().cast::<f32>(),
            depth / 2 * PANEL,
            Layout::PackedBf16,
        ),
        Panels::Bf16(lines) => {
            for i in 0..together {
                let from = ((p + i) * depth + l) / 2;
                let to = &mut wide[i * DEPTH_BLOCK * PANEL..];
                // SAFETY: `to` has room for DEPTH_BLOCK lines; the caller promises S.
                unsafe { widen::<S>(&lines[from..from + step / 2], to) };
            }
            (wide.as_ptr(), DEPTH_BLOCK * PANEL, Layout::Packed)
        }
    }
}

/// Copies the separately computed last panel, `[rows][PANEL]`, to the columns that exist.
///
/// # Safety
/// The block's output is valid for its rows and all columns from panel `p` on.
#[inline(always)]
unsafe fn write_last(block: &Block, p: usize, tail: &[f32]) {
    let (n, first) = (block.n, p * PANEL);
    for (r, row) in tail.chunks_exact(PANEL).enumerate() {
        for (j, value) in row[..n - first].iter().enumerate() {
            // SAFETY: the caller's promise.
            unsafe { *block.out.add(r * n + first + j) = *value };
        }
    }
}

/// Widens one panel's lines of bf16 pairs to lines of f32.
///
/// # Safety
/// `wide` has room for two lines of f32 for each line of pairs, and the processor has `S`.
#[inline(always)]
unsafe fn widen<S: Simd>(pairs: &[PairLine], wide: &mut [f32]) {
    let to = wide.as_mut_ptr();
    for (l, line) in pairs.iter().enumerate() {
        for v in (0..PANEL).step_by(S::LANES) {
            // SAFETY: two lines of f32 for each line of pairs; the caller promises room and S.
            unsafe {
                let (first, second) = S::load_bf16_pairs(line.0.as_ptr().add(v));
                first.store(to.add(2 * l * PANEL + v));
                second.store(to.add((2 * l + 1) * PANEL + v));
            }
        }
    }
}
