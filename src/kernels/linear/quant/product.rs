//! Quantised rows times quantised panels.

#![allow(clippy::needless_range_loop)] // row and vector of the accumulator, as in the equation

use half::f16;

use super::engine::{Dot, Plain};
use super::grid::{Bits, GROUP};
use super::panels::{ByteLine, Panels};
use super::rows::Rows;
use crate::isa::{Isa, Vector};
use crate::micro::PANEL;
use crate::simd::Simd;

/// The maximum number of rows that are computed together.
const MOST_ROWS: usize = 4;

/// The f32 of scratch that [`run`] needs: some rows of some panels.
pub const SCRATCH: usize = MOST_ROWS * 4 * PANEL;

/// A block of the product: some rows of x, some panels of the weight.
pub struct Block<'a> {
    pub rows: Rows<'a>,
    pub weight: &'a Panels,
    /// The panels are `panels.0..panels.1` of this weight.
    pub panels: (usize, usize),
    /// The number of columns of the whole product.
    pub n: usize,
    /// The address of row 0, column 0 of the rows' part of the product; its row stride is `n`.
    pub out: *mut f32,
}

/// Computes the block.
///
/// # Safety
/// `isa` is available; `block.out` is valid for the block's rows and columns, and no other thread writes there; `scratch` has room for
/// [`SCRATCH`].
pub unsafe fn run(isa: Isa, block: &Block, scratch: &mut [f32]) {
    // SAFETY: the caller's promise.
    unsafe {
        #[cfg(target_arch = "x86_64")]
        match isa.vector {
            Vector::Avx512 if isa.avx512_vnni => return avx512_vnni(block, scratch),
            Vector::Avx2 | Vector::Avx512 if isa.avx_vnni => return avx_vnni(block, scratch),
            Vector::Avx2 | Vector::Avx512 => return avx2(block, scratch),
            _ => {}
        }
        let _ = isa;
        product::<Plain>(block, scratch);
    }
}

/// Runs [`run`] with `vpdpbusd` of sixteen lanes.
///
/// # Safety
/// Same as [`run`], with AVX-512-VNNI.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512vnni,avx512f,avx512dq,avx512bw,avx512vl,avx2,fma,f16c")]
unsafe fn avx512_vnni(block: &Block, scratch: &mut [f32]) {
    // SAFETY: as the caller promises; the attribute above is the engine's instruction set.
    unsafe { product::<super::x86::Avx512Vnni>(block, scratch) }
}

/// Runs [`run`] with `vpdpbusd` of eight lanes.
///
/// # Safety
/// Same as [`run`], with AVX-VNNI.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avxvnni,avx2,fma,f16c")]
unsafe fn avx_vnni(block: &Block, scratch: &mut [f32]) {
    // SAFETY: as the caller promises; the attribute above is the engine's instruction set.
    unsafe { product::<super::x86::AvxVnni>(block, scratch) }
}

/// Runs [`run`] with AVX2.
///
/// # Safety
/// Same as [`run`], with AVX2 and F16C.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn avx2(block: &Block, scratch: &mut [f32]) {
    // SAFETY: as the caller promises; the attribute above is the engine's instruction set.
    unsafe { product::<super::x86::Avx2>(block, scratch) }
}

/// Computes [`run`] for the weight's grid.
///
/// # Safety
/// Same as [`run`], with the instructions of `D`.
#[inline(always)]
unsafe fn product<D: Dot>(block: &Block, scratch: &mut [f32]) {
    let grid = block.weight.grid;
    // SAFETY: the caller's promise; the constants are the grid's.
    unsafe {
        match (grid.bits, grid.offsets) {
            (Bits::Four, false) => of_grid::<D, true, false>(block, scratch),
            (Bits::Four, true) => of_grid::<D, true, true>(block, scratch),
            (Bits::Eight, false) => of_grid::<D, false, false>(block, scratch),
            (Bits::Eight, true) => of_grid::<D, false, true>(block, scratch),
        }
    }
}

/// Returns the number of panels that are computed together, of `left`: as many as keep the processor busy and fit its registers.
const fn take(lanes: usize, rows: usize, left: usize) -> usize {
    let most = match (lanes, rows) {
        (16, 1) => 4,
        (16, _) | (_, 1) => 2,
        _ => 1,
    };
    match (most, left) {
        (4, 4..) => 4,
        (2 | 4, 2..) => 2,
        _ => 1,
    }
}

/// Computes [`run`]: loops over groups of panels, and within one over strips of rows.
///
/// # Safety
/// Same as [`product`]; the weight's grid has four bits if `FOUR`, and offsets if `OFFSETS`.
#[inline(always)]
unsafe fn of_grid<D: Dot, const FOUR: bool, const OFFSETS: bool>(
    block: &Block,
    scratch: &mut [f32],
) {
    let rows = block.rows.rows;
    let strips = rows.div_ceil(MOST_ROWS);
    let (mut first, last) = block.panels;
    while first < last {
        let together = take(D::LANES, rows.div_ceil(strips.max(1)), last - first);
        // Panels that are computed together are far apart, so that each is read on from where the one before it ended: a processor
        // fetches several long runs of memory sooner than many short ones.
        let apart = (last - first) / together;
        for p in first..first + apart {
            let weight = Operand::of(block.weight, p, apart);
            for s in 0..strips {
                let (from, to) = (rows * s / strips, rows * (s + 1) / strips);
                let x = block.rows.part(from, to);
                let c = scratch.as_mut_ptr();
                // One arm for each (rows, panels, vectors): a panel is 2 vectors of 8 lanes or 1 of 16.
                macro_rules! arms {
                    ($(($mr:literal, $np:literal, $nv:literal)),* $(,)?) => {
                        match (to - from, together) {
                            $(($mr, $np) => sums::<D, FOUR, OFFSETS, $mr, $nv>(x, weight, c),)*
                            (rows, panels) => unreachable!("{rows} rows and {panels} panels: this is a bug"),
                        }
                    };
                }
                // SAFETY: the rows and the panels exist; scratch has room for each shape; the caller promises the rest.
                unsafe {
                    if D::LANES == 16 {
                        arms!(
                            (1, 4, 4),
                            (1, 2, 2),
                            (2, 2, 2),
                            (3, 2, 2),
                            (4, 2, 2),
                            (1, 1, 1),
                            (2, 1, 1),
                            (3, 1, 1),
                            (4, 1, 1),
                        );
                    } else {
                        arms!((1, 2, 4), (1, 1, 2), (2, 1, 2), (3, 1, 2), (4, 1, 2));
                    }
                    for at in 0..(to - from) * together {
                        let (r, column) = (at / together, (p + at % together * apart) * PANEL);
                        let out = block.out.add((from + r) * block.n + column);
                        out.copy_from_nonoverlapping(
                            c.add(at * PANEL),
                            PANEL.min(block.n - column),
                        );
                    }
                }
            }
        }
        first += apart * together;
    }
}

/// The addresses of the first group of a panel, and of those that are computed together with it.
#[derive(Clone, Copy)]
struct Operand {
    lines: *const ByteLine,
    scales: *const [f16; PANEL],
    offsets: *const [f16; PANEL],
    /// The number of groups from one of the panels to the next.
    stride: usize,
    zero: i32,
}

impl Operand {
    /// Returns panel `panel` and every `apart`th after it.
    fn of(weight: &Panels, panel: usize, apart: usize) -> Self {
        let unit = panel * weight.groups;
        Self {
            lines: weight.lines[unit * weight.grid.bits.lines()..].as_ptr(),
            scales: weight.scales[unit..].as_ptr(),
            offsets: weight.offsets.get(unit..).unwrap_or_default().as_ptr(),
            stride: apart * weight.groups,
            zero: weight.grid.zero(),
        }
    }
}

/// Computes `MR` rows times `NV` vectors of outputs over all groups, into `c`, `[MR][NV * LANES]`.
///
/// # Safety
/// `x` has `MR` rows and the weight, from `w` on, panels for `NV` vectors, with offsets if `OFFSETS`; `c` is good for the result; and the
/// processor has the instructions of `D`.
#[inline(always)]
unsafe fn sums<D: Dot, const FOUR: bool, const OFFSETS: bool, const MR: usize, const NV: usize>(
    x: Rows,
    w: Operand,
    c: *mut f32,
) {
    const WORDS: usize = GROUP / 4;
    let groups = x.groups;
    let lines = if FOUR { WORDS / 2 } else { WORDS };
    // SAFETY: row, panel and group stay below the numbers that the caller promises.
    unsafe {
        let row: [*const u32; MR] =
            std::array::from_fn(|r| x.words.as_ptr().add(r * Rows::stride(groups)));
        let mut total = [[D::Floats::splat(0.0); NV]; MR];
        for g in 0..groups {
            let mut group = [[D::splat(0); NV]; MR];
            if !OFFSETS {
                for r in 0..MR {
                    let sum = *row[r].add(groups * (WORDS + 1) + g) as i32;
                    group[r] = [D::splat(-w.zero * sum); NV];
                }
            }
            for line in 0..lines {
                for v in 0..NV {
                    let (panel, column) = (v * D::LANES / PANEL, v * D::LANES % PANEL);
                    let at = w.lines.add((panel * w.stride + g) * lines + line);
                    let bytes = D::load(at.cast::<u8>().add(4 * column));
                    if FOUR {
                        let (low, high) = D::halves(bytes);
                        for r in 0..MR {
                            let x = row[r].add(g * WORDS + 2 * line);
                            group[r][v] = group[r][v].add(low, *x).add(high, *x.add(1));
                        }
                    } else {
                        for r in 0..MR {
                            group[r][v] = group[r][v].add(bytes, *row[r].add(g * WORDS + line));
                        }
                    }
                }
            }
            for v in 0..NV {
                let (panel, column) = (v * D::LANES / PANEL, v * D::LANES % PANEL);
                let unit = panel * w.stride + g;
                let scales = D::load_f16(w.scales.add(unit).cast::<f16>().add(column));
                for r in 0..MR {
                    let of_x = f32::from_bits(*row[r].add(groups * WORDS + g));
                    let term = D::Floats::splat(of_x).mul(scales).mul(group[r][v].floats());
                    total[r][v] = total[r][v].add(term);
                    if OFFSETS {
                        let sum = *row[r].add(groups * (WORDS + 1) + g) as i32 as f32;
                        let offsets = D::load_f16(w.offsets.add(unit).cast::<f16>().add(column));
                        let term = D::Floats::splat(of_x * sum).mul(offsets);
                        total[r][v] = total[r][v].add(term);
                    }
                }
            }
        }
        for (r, total) in total.iter().enumerate() {
            for (v, total) in total.iter().enumerate() {
                total.store(c.add((r * NV + v) * D::LANES));
            }
        }
    }
}
