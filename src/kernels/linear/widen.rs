//! Packed weights times f32 activations in f32 arithmetic: f32 panels, and bf16 panels widened on the way.
//!
//! Depth is summed in blocks of [`DEPTH_BLOCK`] whose sums are added in order, and within a block in order: the same
//! for every number of rows, every width of vector register and every split of the work. bf16 panels give the bits that
//! f32 panels with the same (rounded) weights give.

use super::panels::padded;
use crate::kernels::isa::{Isa, Vector};
use crate::kernels::micro::{Operands, PANEL, micro, micro_bf16};
use crate::kernels::scratch::{Line, PairLine};
use crate::kernels::simd::{Portable, Simd};

/// Depth of a block: 16 KiB of an f32 panel, half of a first-level cache.
pub const DEPTH_BLOCK: usize = 256;

/// Panels that bf16 is widened for at a time, at most: the largest [`group`] of several strips.
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
    /// The panels `panels.0..panels.1` of all.
    pub weight: Panels<'a>,
    pub panels: (usize, usize),
    /// Columns of the whole product.
    pub n: usize,
    /// Row 0, column 0 of the rows' part of the product; its row stride is `n`.
    pub out: *mut f32,
}

/// f32 of scratch that [`run`] needs.
pub fn scratch_len(rows: usize, k: usize) -> usize {
    rows * padded(k) + rows * PANEL + WIDE_PANELS * DEPTH_BLOCK * PANEL
}

/// Computes the block.
///
/// # Safety
/// `isa` is available; `out` is good for the block's rows and columns and nothing else writes there.
pub unsafe fn run(isa: Isa, block: &Block, scratch: &mut [f32]) {
    // SAFETY: the caller's promise.
    unsafe {
        match isa.vector {
            #[cfg(target_arch = "x86_64")]
            Vector::Avx2 => avx2(block, scratch),
            #[cfg(target_arch = "x86_64")]
            Vector::Avx512 => avx512(block, scratch),
            _ => generic::<Portable<8>>(block, scratch),
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn avx2(block: &Block, scratch: &mut [f32]) {
    // SAFETY: the caller's promise.
    unsafe { generic::<crate::kernels::simd::F32x8>(block, scratch) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512dq,avx512bw,avx512vl,avx2,fma")]
unsafe fn avx512(block: &Block, scratch: &mut [f32]) {
    // SAFETY: the caller's promise.
    unsafe { generic::<crate::kernels::simd::F32x16>(block, scratch) }
}

/// Most rows a micro-kernel takes: accumulators for a panel fit the registers.
const fn max_rows(lanes: usize) -> usize {
    if lanes == 16 { 8 } else { 6 }
}

/// Panels taken together, so that few rows still keep enough independent chains to hide the latency of an add.
const fn group(lanes: usize, rows: usize) -> usize {
    match (lanes, rows) {
        (16, 1) => 8,
        (16, 2..=4) => 4,
        (16, _) => 2,
        (_, 1) => 4,
        (_, 2 | 3) => 2,
        _ => 1,
    }
}

#[inline(always)]
unsafe fn generic<S: Simd>(block: &Block, scratch: &mut [f32]) {
    let Block { rows, k, n, .. } = *block;
    // bf16 panels are padded to whole tiles of depth, so their x is too.
    let depth = match block.weight {
        Panels::F32(_) => k,
        Panels::Bf16(_) => padded(k),
    };
    let (packed, rest) = scratch.split_at_mut(rows * depth);
    let (tail, wide) = rest.split_at_mut(rows * PANEL);
    let strips = rows.div_ceil(max_rows(S::LANES));
    pack_rows(block.x, rows, k, depth, strips, packed);

    // Widening in registers is repeated for every strip; from two strips on it pays to do it once, aside.
    let in_registers = strips == 1;
    let most = group(S::LANES, rows.div_ceil(strips));
    let whole = n / PANEL;
    let mut p = block.panels.0;
    while p < block.panels.1 {
        let together = if p + most <= block.panels.1.min(whole) {
            most
        } else {
            1
        };
        // The last panel may be narrower than a panel: it is computed aside.
        let aside = p >= whole;
        let (c, c_stride) = if aside {
            (tail.as_mut_ptr(), PANEL)
        } else {
            // SAFETY: column p * PANEL is within n.
            (unsafe { block.out.add(p * PANEL) }, n)
        };
        for l in (0..depth).step_by(DEPTH_BLOCK) {
            let step = DEPTH_BLOCK.min(depth - l);
            let (b, panel_stride, pairs) = match block.weight {
                Panels::F32(lines) => (
                    lines[p * depth + l..].as_ptr().cast::<f32>(),
                    depth * PANEL,
                    false,
                ),
                Panels::Bf16(lines) if in_registers => (
                    lines[(p * depth + l) / 2..].as_ptr().cast::<f32>(),
                    depth / 2 * PANEL,
                    true,
                ),
                Panels::Bf16(lines) => {
                    for i in 0..together {
                        let from = ((p + i) * depth + l) / 2;
                        let to = &mut wide[i * DEPTH_BLOCK * PANEL..];
                        // SAFETY: `to` has room for DEPTH_BLOCK lines; the caller promises S.
                        unsafe { widen::<S>(&lines[from..from + step / 2], to) };
                    }
                    (wide.as_ptr(), DEPTH_BLOCK * PANEL, false)
                }
            };
            for s in 0..strips {
                let (from, to) = (rows * s / strips, rows * (s + 1) / strips);
                let mr = to - from;
                // SAFETY: strip s is packed at `from * depth`, `mr` values for each step of depth.
                unsafe {
                    let o = Operands {
                        a: packed.as_ptr().add(from * depth + l * mr),
                        b,
                        row_stride: PANEL,
                        panel_stride,
                        c: c.add(from * c_stride),
                        c_stride,
                    };
                    strip::<S>(mr, together, pairs, step, o, l > 0);
                }
            }
        }
        if aside {
            for (r, row) in tail.chunks_exact(PANEL).enumerate() {
                for (j, value) in row[..n - p * PANEL].iter().enumerate() {
                    // SAFETY: columns p * PANEL.. up to n of the block's rows.
                    unsafe { *block.out.add(r * n + p * PANEL + j) = *value };
                }
            }
        }
        p += together;
    }
}

/// One strip against one group of panels.
#[inline(always)]
unsafe fn strip<S: Simd>(
    rows: usize,
    together: usize,
    pairs: bool,
    depth: usize,
    o: Operands,
    accumulate: bool,
) {
    // One arm for each (rows, vectors): NV counts vectors, so a panel is 2 of 8 lanes or 1 of 16.
    macro_rules! arms {
        ($(($mr:literal, $panels:literal, $nv:literal)),* $(,)?) => {
            match (rows, together) {
                $(($mr, $panels) => if pairs {
                    micro_bf16::<S, $mr, $nv>(depth, o, accumulate)
                } else {
                    micro::<S, $mr, $nv, 1, $mr>(depth, o, accumulate)
                },)*
                _ => unreachable!("{rows} rows and {together} panels: this is a bug"),
            }
        };
    }
    // SAFETY: the caller's promise.
    unsafe {
        if S::LANES == 16 {
            arms!(
                (1, 8, 8),
                (2, 4, 4),
                (3, 4, 4),
                (4, 4, 4),
                (1, 4, 4),
                (1, 2, 2),
                (2, 2, 2),
                (3, 2, 2),
                (4, 2, 2),
                (5, 2, 2),
                (6, 2, 2),
                (7, 2, 2),
                (8, 2, 2),
                (1, 1, 1),
                (2, 1, 1),
                (3, 1, 1),
                (4, 1, 1),
                (5, 1, 1),
                (6, 1, 1),
                (7, 1, 1),
                (8, 1, 1),
            );
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

/// Rows of x to strips: strip `s` holds rows `rows * s / strips..rows * (s + 1) / strips`, depth outermost.
#[inline(always)]
fn pack_rows(x: &[f32], rows: usize, k: usize, depth: usize, strips: usize, packed: &mut [f32]) {
    for s in 0..strips {
        let (from, to) = (rows * s / strips, rows * (s + 1) / strips);
        let mr = to - from;
        let strip = &mut packed[from * depth..to * depth];
        if mr == 1 {
            strip[..k].copy_from_slice(&x[from * k..to * k]);
        } else {
            for (r, row) in x[from * k..to * k].chunks_exact(k.max(1)).enumerate() {
                for (group, value) in strip.chunks_exact_mut(mr).zip(row) {
                    group[r] = *value;
                }
            }
        }
        strip[mr * k..].fill(0.0);
    }
}

/// One panel's lines of bf16 pairs to lines of f32.
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
