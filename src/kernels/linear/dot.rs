//! bf16 weights times bf16 activations, accumulated in f32, for processors that multiply bf16.
//!
//! Activations are already rounded ([`Rows`]). An element of the product is one chain over pairs of depth, in order, for every block shape,
//! as batch invariance requires. Both engines treat subnormal numbers as zero. [`Avx512`] is `vdpbf16ps`; AMX is in [`amx`](super::amx).
//! Tests have an engine in plain Rust that emulates the instruction, so that the code around it is tested on any machine.

#![allow(clippy::needless_range_loop)] // row and column of the accumulator, as in the equation

use super::amx;
use super::rounded::Rows;
use super::widen::Block;
use crate::isa::Isa;
use crate::micro::{PANEL, max_rows, take, with_shapes_of_16_lanes};
use crate::scratch::PairLine;

/// The f32 of scratch that [`run`] needs.
pub const SCRATCH: usize = amx::RESULT;

/// Computes the block, with its rows rounded in `rows` and its weight in `lines`.
///
/// # Safety
/// `isa` multiplies bf16 and is available; `block.out` is good for the block's rows and columns and nothing else writes
/// there; `scratch` has room for [`SCRATCH`].
pub unsafe fn run(isa: Isa, block: &Block, rows: &Rows, lines: &[PairLine], scratch: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the caller's promise.
    unsafe {
        if isa.amx_bf16 {
            on_amx(block, rows, lines, scratch);
        } else {
            avx512(block, rows, lines, scratch);
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        let _ = (isa, block, rows, lines, scratch);
        unreachable!("no other processor reports bf16 arithmetic: this is a bug");
    }
}

/// Runs [`run`] on AMX tiles.
///
/// # Safety
/// Same as [`run`], with AMX for bf16.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512dq,avx512bw,avx512vl,avx2,fma")]
unsafe fn on_amx(block: &Block, rows: &Rows, lines: &[PairLine], result: &mut [f32]) {
    // SAFETY: as the caller promises, the block belongs to this call alone and the processor has tiles.
    unsafe { amx::product::<amx::Tiles>(block, rows, lines, result) }
}

/// Runs [`run`] with `vdpbf16ps`.
///
/// # Safety
/// Same as [`run`], with AVX-512 BF16.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512bf16,avx512f,avx512dq,avx512bw,avx512vl,avx2,fma")]
unsafe fn avx512(block: &Block, rows: &Rows, lines: &[PairLine], result: &mut [f32]) {
    // SAFETY: as the caller promises; the attribute above is the engine's instruction set.
    unsafe { product::<Avx512>(block, rows, lines, result) }
}

/// Sixteen f32 sums of pairs of bf16 products.
trait PairDot: Copy {
    /// # Safety
    /// The processor has the engine's instructions.
    unsafe fn zero() -> Self;
    /// Adds the products of the pair `x` with each of the sixteen pairs at `w`.
    ///
    /// # Safety
    /// The processor has the engine's instructions, and `w` is good for sixteen pairs.
    unsafe fn add(self, x: u32, w: *const u32) -> Self;
    /// # Safety
    /// The processor has the engine's instructions, and `to` is good for sixteen f32.
    unsafe fn store(self, to: *mut f32);
}

#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
struct Avx512(std::arch::x86_64::__m512);

#[cfg(target_arch = "x86_64")]
impl PairDot for Avx512 {
    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: the caller has AVX-512; nothing but a register is touched.
        unsafe { Self(std::arch::x86_64::_mm512_setzero_ps()) }
    }
    #[inline(always)]
    unsafe fn add(self, x: u32, w: *const u32) -> Self {
        use std::arch::x86_64::{
            __m512bh, __m512i, _mm512_dpbf16_ps, _mm512_loadu_si512, _mm512_set1_epi32,
        };
        // SAFETY: the caller has AVX-512 BF16 and `w` is good for sixteen pairs; the two types are the same 64 bytes.
        unsafe {
            let x = std::mem::transmute::<__m512i, __m512bh>(_mm512_set1_epi32(x as i32));
            let w = std::mem::transmute::<__m512i, __m512bh>(_mm512_loadu_si512(w.cast()));
            Self(_mm512_dpbf16_ps(self.0, x, w))
        }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller has AVX-512, and `to` is good for sixteen f32.
        unsafe { std::arch::x86_64::_mm512_storeu_ps(to, self.0) }
    }
}

/// Computes [`run`]: loops over groups of panels, and within a group over strips of rows.
///
/// # Safety
/// Same as [`run`], with the instructions of `D`; `result` has room for [`SCRATCH`].
#[inline(always)]
unsafe fn product<D: PairDot>(block: &Block, rows: &Rows, lines: &[PairLine], result: &mut [f32]) {
    let n = block.n;
    let pairs = rows.depth / 2;
    let strips = rows.rows.div_ceil(max_rows(16));
    let tallest = rows.rows.div_ceil(strips);
    let mut p = block.panels.0;
    while p < block.panels.1 {
        let together = take(16, tallest, block.panels.1 - p);
        for s in 0..strips {
            let (from, to) = (rows.rows * s / strips, rows.rows * (s + 1) / strips);
            // SAFETY: rows from..to exist, in pairs (stride and depth are even); so do the panels.
            unsafe {
                let x = rows.values.as_ptr().add(from * rows.stride).cast::<u32>();
                let w = lines[p * pairs..].as_ptr().cast::<u32>();
                let c = result.as_mut_ptr();
                let stride = rows.stride / 2;
                macro_rules! arms {
                    ($(($mr:literal, $np:literal)),* $(,)?) => {
                        match (to - from, together) {
                            $(($mr, $np) => dots::<D, $mr, $np>(pairs, x, stride, w, c),)*
                            _ => unreachable!("{} rows: this is a bug", to - from),
                        }
                    };
                }
                with_shapes_of_16_lanes!(arms);
                let width = together * PANEL;
                let columns = width.min(n - p * PANEL);
                for r in from..to {
                    let values = &result[(r - from) * width..][..columns];
                    let out = block.out.add(r * n + p * PANEL);
                    out.copy_from_nonoverlapping(values.as_ptr(), columns);
                }
            }
        }
        p += together;
    }
}

/// Computes `MR` rows times `NP` panels over the whole depth, into `c`, `[MR][NP * 16]`.
///
/// # Safety
/// `x` is good for `MR` rows of `pairs`, `stride` apart; `w` for `NP` panels of `pairs` lines; `c` for the result; and the processor
/// has the instructions of `D`.
#[inline(always)]
unsafe fn dots<D: PairDot, const MR: usize, const NP: usize>(
    pairs: usize,
    x: *const u32,
    stride: usize,
    w: *const u32,
    c: *mut f32,
) {
    // SAFETY: row, pair and panel stay below the numbers that the caller promises its pointers are good for.
    unsafe {
        let mut acc = [[D::zero(); NP]; MR];
        for l in 0..pairs {
            for r in 0..MR {
                let x = x.add(r * stride + l).read_unaligned();
                for p in 0..NP {
                    acc[r][p] = acc[r][p].add(x, w.add((p * pairs + l) * PANEL));
                }
            }
        }
        for (r, acc) in acc.iter().enumerate() {
            for (p, acc) in acc.iter().enumerate() {
                acc.store(c.add((r * NP + p) * PANEL));
            }
        }
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::linear::panels::pack_bf16;
    use crate::linear::widen::Panels;
    use crate::testing::random;
    use half::bf16;

    /// Returns the values of the low and the high half of a pair.
    pub fn halves(pair: u32) -> (f32, f32) {
        (
            f32::from_bits(pair << 16),
            f32::from_bits(pair & 0xffff_0000),
        )
    }

    /// An emulation of `vdpbf16ps`.
    #[derive(Clone, Copy)]
    struct Emulated([f32; 16]);

    impl PairDot for Emulated {
        unsafe fn zero() -> Self {
            Self([0.0; 16])
        }
        unsafe fn add(mut self, x: u32, w: *const u32) -> Self {
            let (x0, x1) = halves(x);
            for (lane, sum) in self.0.iter_mut().enumerate() {
                // SAFETY: the caller promises sixteen pairs.
                let (w0, w1) = halves(unsafe { *w.add(lane) });
                *sum = x1.mul_add(w1, *sum);
                *sum = x0.mul_add(w0, *sum);
            }
            self
        }
        unsafe fn store(self, to: *mut f32) {
            // SAFETY: the caller promises room for sixteen.
            unsafe { to.cast::<[f32; 16]>().write_unaligned(self.0) }
        }
    }

    /// Runs an engine over odd shapes and blocks, compares the results with the definition on rounded operands, and
    /// checks that rows have the same bits in every block.
    pub fn check(engine: impl Fn(&Block, &Rows, &[PairLine], &mut [f32])) {
        let values = |count: usize, seed| -> Vec<f32> {
            random(&[count], seed).to_vec1().expect("f32 on the CPU")
        };
        let rounded = |v: &[f32]| -> Vec<f64> {
            v.iter()
                .map(|x| f64::from(bf16::from_f32(*x).to_f32()))
                .collect()
        };
        for (n, k) in [(1, 1), (16, 32), (17, 33), (48, 64), (100, 70), (130, 200)] {
            let w = values(n * k, 1);
            let lines = pack_bf16(&w, n, k);
            let x = values(70 * k, 2);
            let (wide_w, wide_x) = (rounded(&w), rounded(&x));
            let mut all = vec![0f32; 70 * n];
            for rows in [70, 1, 2, 3, 5, 8, 9, 16, 17, 32, 33, 48] {
                let mut scratch = vec![f32::NAN; SCRATCH];
                let mut space = vec![u16::MAX; Rows::space(rows, k)];
                let rounded_x = Rows::round(&x[..rows * k], rows, k, &mut space);
                let mut y = vec![f32::NAN; rows * n];
                let panels = n.div_ceil(PANEL);
                for panels in [(0, panels / 2), (panels / 2, panels)] {
                    let block = Block {
                        x: &x[..rows * k],
                        rows,
                        k,
                        weight: Panels::Bf16(&lines),
                        panels,
                        n,
                        out: y.as_mut_ptr(),
                    };
                    engine(&block, &rounded_x, &lines, &mut scratch);
                }
                if rows == 70 {
                    for (at, y) in y.iter().enumerate() {
                        let (i, j) = (at / n, at % n);
                        let want: f64 = (0..k).map(|l| wide_x[i * k + l] * wide_w[j * k + l]).sum();
                        let error = (f64::from(*y) - want).abs();
                        assert!(error < 1e-5, "{n}x{k} ({i}, {j}): {y} for {want}");
                    }
                    all = y;
                } else {
                    assert_eq!(y, all[..rows * n], "{rows} rows of {n}x{k}");
                }
            }
        }
    }

    #[test]
    fn the_order_of_pairs_and_panels_is_right() {
        check(|block, rows, lines, result| {
            // SAFETY: the engine is plain Rust; the block's output is complete.
            unsafe { product::<Emulated>(block, rows, lines, result) }
        });
    }

    #[test]
    fn the_instructions_do_what_their_stand_ins_do() {
        for isa in Isa::available() {
            if isa.multiplies_bf16() {
                // SAFETY: the isa is available; the block's output is complete.
                check(|block, rows, lines, scratch| unsafe {
                    run(isa, block, rows, lines, scratch)
                });
            } else {
                eprintln!("skipped: {isa} does not multiply bf16");
            }
        }
    }
}
