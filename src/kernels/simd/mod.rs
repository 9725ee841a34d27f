//! Vectors of f32 behind one trait, so that a kernel is written once and compiled for every width.
//!
//! The generic kernel is `#[inline(always)]` and is called from a function with the matching `#[target_feature]`; then
//! the methods below become single instructions. [`Portable`] is plain arrays: for other processors, and, with
//! sixteen lanes, a substitute with which a machine without AVX-512 can test the logic of the AVX-512 path.

#![allow(clippy::missing_safety_doc)] // one rule for all, stated at the trait

use half::bf16;

/// A storage type of numbers that are computed in f32: f32 itself, or bf16, which is widened when loaded.
pub trait Stored: Copy + Into<f32> + Send + Sync {
    /// Loads `LANES` numbers; exact.
    ///
    /// # Safety
    /// Same as [`Simd`].
    unsafe fn load<S: Simd>(from: *const Self) -> S;
}

impl Stored for f32 {
    #[inline(always)]
    unsafe fn load<S: Simd>(from: *const Self) -> S {
        // SAFETY: the caller's promise.
        unsafe { S::load(from) }
    }
}

impl Stored for bf16 {
    #[inline(always)]
    unsafe fn load<S: Simd>(from: *const Self) -> S {
        // SAFETY: the caller's promise.
        unsafe { S::load_bf16(from) }
    }
}

/// A vector of `LANES` f32.
///
/// # Safety
/// Every method requires the instruction set of the implementing type; pointers must be valid for `LANES` elements
/// (no alignment is required).
pub trait Simd: Copy {
    const LANES: usize;

    unsafe fn splat(value: f32) -> Self;
    unsafe fn load(from: *const f32) -> Self;
    unsafe fn store(self, to: *mut f32);
    unsafe fn add(self, other: Self) -> Self;
    unsafe fn sub(self, other: Self) -> Self;
    unsafe fn mul(self, other: Self) -> Self;
    unsafe fn max(self, other: Self) -> Self;
    /// Returns `self * factor + addend`, rounded once if the processor can.
    unsafe fn mul_add(self, factor: Self, addend: Self) -> Self;
    /// Returns the sum of the lanes, in an order fixed by the type.
    unsafe fn reduce_sum(self) -> f32;
    unsafe fn reduce_max(self) -> f32;
    /// Returns the nearest whole numbers; |self| must be below 2^22.
    unsafe fn round(self) -> Self;
    /// Returns `self * 2^power`, by adding to the exponent: `power` holds whole numbers and the result must be normal.
    unsafe fn scale(self, power: Self) -> Self;
    /// Returns each lane where `probe >= bound`, and 0 elsewhere.
    unsafe fn zero_below(self, probe: Self, bound: Self) -> Self;
    /// Loads `LANES` numbers of bf16; exact.
    unsafe fn load_bf16(from: *const bf16) -> Self;
    /// Loads `LANES` pairs of bf16, as (the first of each pair, the second of each pair). Both are exact.
    unsafe fn load_bf16_pairs(from: *const u32) -> (Self, Self);
    /// Transposes eight rows of eight: element `c` of `rows[r]` goes to `to + c * stride + r`.
    unsafe fn transpose_8x8<T: Stored>(rows: [*const T; 8], to: *mut f32, stride: usize);
}

/// Returns `e^x`, within 2 ulp of f32 for `x` in [-87.3, 88.3]; below that 0 (so `-inf` gives exactly 0), and exactly 1
/// at 0.
///
/// `2^n · e^r` with `n = round(x / ln 2)` and |r| ≤ ln 2 / 2, ln 2 split in two so that `r` keeps its bits, and the
/// degree-6 minimax polynomial of Cephes' `expf`.
///
/// Loops of plain Rust use [`super::cpu::exp`], whose documentation explains why there are two.
///
/// # Safety
/// Same as [`Simd`].
#[inline(always)]
pub unsafe fn exp<S: Simd>(x: S) -> S {
    // SAFETY: arithmetic on values; the caller promises the instruction set.
    unsafe {
        let floor = S::splat(-87.336_54);
        let clamped = x.max(floor);
        let n = clamped.mul(S::splat(std::f32::consts::LOG2_E)).round();
        let r = n.mul_add(S::splat(-0.693_359_4), clamped);
        let r = n.mul_add(S::splat(2.121_944_4e-4), r);
        let mut p = S::splat(1.987_569_1e-4);
        for c in [
            1.398_2e-3,
            8.333_452e-3,
            4.166_579_6e-2,
            1.666_666_6e-1,
            5e-1,
        ] {
            p = p.mul_add(r, S::splat(c));
        }
        let e = p.mul_add(r.mul(r), r).add(S::splat(1.0));
        e.scale(n).zero_below(x, floor)
    }
}

/// `N` lanes as an array.
#[derive(Clone, Copy)]
pub struct Portable<const N: usize>([f32; N]);

impl<const N: usize> Portable<N> {
    #[inline(always)]
    fn zip(self, other: Self, f: impl Fn(f32, f32) -> f32) -> Self {
        let mut out = self.0;
        for (o, b) in out.iter_mut().zip(other.0) {
            *o = f(*o, b);
        }
        Self(out)
    }
}

impl<const N: usize> Simd for Portable<N> {
    const LANES: usize = N;

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        Self([value; N])
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller promises N elements.
        Self(unsafe { from.cast::<[f32; N]>().read_unaligned() })
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller promises N elements.
        unsafe { to.cast::<[f32; N]>().write_unaligned(self.0) }
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        self.zip(other, |a, b| a + b)
    }
    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        self.zip(other, |a, b| a - b)
    }
    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        self.zip(other, |a, b| a * b)
    }
    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        self.zip(other, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    unsafe fn mul_add(self, factor: Self, addend: Self) -> Self {
        // Not `f32::mul_add`: without the instruction that is a call into libm.
        self.zip(factor, |a, b| a * b).zip(addend, |a, b| a + b)
    }
    #[inline(always)]
    unsafe fn reduce_sum(self) -> f32 {
        self.0.iter().sum()
    }
    #[inline(always)]
    unsafe fn reduce_max(self) -> f32 {
        self.0.iter().copied().fold(f32::NEG_INFINITY, f32::max)
    }
    #[inline(always)]
    unsafe fn round(self) -> Self {
        // Adding 1.5 * 2^23 pushes the fraction off the mantissa, rounding half to even like the vector instruction.
        const MAGIC: f32 = 12_582_912.0;
        Self(self.0.map(|a| (a + MAGIC) - MAGIC))
    }
    #[inline(always)]
    unsafe fn scale(self, power: Self) -> Self {
        self.zip(power, |a, p| {
            f32::from_bits(a.to_bits().wrapping_add(((p as i32) << 23) as u32))
        })
    }
    #[inline(always)]
    unsafe fn zero_below(self, probe: Self, bound: Self) -> Self {
        let mut out = self.0;
        for (o, (p, b)) in out.iter_mut().zip(probe.0.into_iter().zip(bound.0)) {
            *o = if p >= b { *o } else { 0.0 };
        }
        Self(out)
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const bf16) -> Self {
        // SAFETY: the caller promises N elements.
        let values = unsafe { from.cast::<[bf16; N]>().read_unaligned() };
        Self(values.map(bf16::to_f32))
    }
    #[inline(always)]
    unsafe fn load_bf16_pairs(from: *const u32) -> (Self, Self) {
        // SAFETY: the caller promises N elements.
        let pairs = unsafe { from.cast::<[u32; N]>().read_unaligned() };
        (
            Self(pairs.map(|p| f32::from_bits(p << 16))),
            Self(pairs.map(|p| f32::from_bits(p & 0xffff_0000))),
        )
    }
    #[inline(always)]
    unsafe fn transpose_8x8<T: Stored>(rows: [*const T; 8], to: *mut f32, stride: usize) {
        for (r, row) in rows.into_iter().enumerate() {
            for c in 0..8 {
                // SAFETY: the caller promises eight rows and columns.
                unsafe { *to.add(c * stride + r) = (*row.add(c)).into() };
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
pub use x86::{F32x8, F32x16};

#[cfg(target_arch = "x86_64")]
mod x86;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::{Isa, Vector};

    unsafe fn map<S: Simd>(values: &mut [f32], f: impl Fn(S) -> S) {
        for chunk in values.chunks_exact_mut(S::LANES) {
            // SAFETY: the chunk has LANES elements; the caller promises the instruction set.
            unsafe { f(S::load(chunk.as_ptr())).store(chunk.as_mut_ptr()) };
        }
    }

    fn exp_all(isa: Isa, values: &mut [f32]) {
        // SAFETY: `isa` was detected on this machine.
        unsafe {
            match isa.vector {
                Vector::Portable => map::<Portable<8>>(values, |x| exp(x)),
                Vector::Emulated512 => map::<Portable<16>>(values, |x| exp(x)),
                #[cfg(target_arch = "x86_64")]
                Vector::Avx2 => map::<F32x8>(values, |x| exp(x)),
                #[cfg(target_arch = "x86_64")]
                Vector::Avx512 => map::<F32x16>(values, |x| exp(x)),
                #[cfg(not(target_arch = "x86_64"))]
                _ => unreachable!("x86 only"),
            }
        }
    }

    #[test]
    fn exp_is_accurate_and_exact_where_it_must_be() {
        for isa in Isa::available() {
            let inputs: Vec<f32> = (0..160_000)
                .map(|i| -87.3 + 175.0 * i as f32 / 160_000.0)
                .collect();
            let mut got = inputs.clone();
            exp_all(isa, &mut got);
            for (x, y) in inputs.iter().zip(&got) {
                let want = f64::from(*x).exp();
                let error = (f64::from(*y) - want).abs() / want;
                assert!(error < 2e-7, "{isa}: exp({x}) = {y}, off by {error:e}");
            }
            let mut edges = [0.0_f32; 16];
            edges[1] = f32::NEG_INFINITY;
            edges[2] = -100.0;
            edges[3] = -1e30;
            edges[4] = -0.0;
            exp_all(isa, &mut edges);
            assert_eq!(edges[..5], [1.0, 0.0, 0.0, 0.0, 1.0], "{isa}");
        }
    }

    unsafe fn check_ops<S: Simd>() {
        let a: Vec<f32> = (0..16).map(|i| i as f32 - 7.3).collect();
        let b: Vec<f32> = (0..16).map(|i| 3.0 - i as f32 * 0.4).collect();
        // SAFETY: sixteen elements are enough for every width; the caller promises the instruction set.
        unsafe {
            let (x, y) = (S::load(a.as_ptr()), S::load(b.as_ptr()));
            let lanes = |v: S| {
                let mut out = vec![0.0; S::LANES];
                v.store(out.as_mut_ptr());
                out
            };
            let each = |f: &dyn Fn(f32, f32) -> f32| -> Vec<f32> {
                (0..S::LANES).map(|i| f(a[i], b[i])).collect()
            };
            assert_eq!(lanes(x.add(y)), each(&|a, b| a + b));
            assert_eq!(lanes(x.sub(y)), each(&|a, b| a - b));
            assert_eq!(lanes(x.mul(y)), each(&|a, b| a * b));
            assert_eq!(lanes(x.max(y)), each(&f32::max));
            assert_eq!(lanes(x.round()), each(&|a, _| a.round_ties_even()));
            assert_eq!(
                lanes(x.scale(S::splat(-3.0))),
                each(&|a, _| a / 8.0),
                "scale"
            );
            assert_eq!(
                lanes(x.zero_below(y, S::splat(0.5))),
                each(&|a, b| if b >= 0.5 { a } else { 0.0 })
            );
            let sum: f32 = a[..S::LANES].iter().sum();
            assert!((x.reduce_sum() - sum).abs() < 1e-4);
            assert_eq!(x.reduce_max(), a[S::LANES - 1]);
            let pairs: Vec<u32> = (0..16_u32).map(|i| 0x3f80_4000 + i * 0x0001_0001).collect();
            let (first, second) = S::load_bf16_pairs(pairs.as_ptr());
            assert_eq!(lanes(first)[3].to_bits(), 0x4003_0000);
            assert_eq!(lanes(second)[3].to_bits(), 0x3f83_0000);
            // Zeros of both signs, a subnormal, infinity, and numbers with bits in all places.
            let odd = [0.0, -0.0, 1e-40, f32::INFINITY, -1.007_812_5, 3.3e38];
            let narrow: Vec<bf16> = odd
                .iter()
                .cycle()
                .take(16)
                .map(|x| bf16::from_f32(*x))
                .collect();
            let wide: Vec<u32> = lanes(S::load_bf16(narrow.as_ptr()))
                .iter()
                .map(|x| x.to_bits())
                .collect();
            let want: Vec<u32> = narrow.iter().map(|x| x.to_f32().to_bits()).collect();
            assert_eq!(wide, want[..S::LANES]);
            // All of these numbers are exact in bf16 too.
            let square: Vec<f32> = (0..80).map(|i| i as f32).collect();
            check_transpose::<S, f32>(&square);
            let square: Vec<bf16> = square.into_iter().map(bf16::from_f32).collect();
            check_transpose::<S, bf16>(&square);
        }
    }

    unsafe fn check_transpose<S: Simd, T: Stored>(square: &[T]) {
        let mut turned = [0.0; 100];
        // SAFETY: eight rows of ten; the caller promises the instruction set.
        unsafe {
            let rows = std::array::from_fn(|r| square.as_ptr().add(10 * r));
            S::transpose_8x8(rows, turned.as_mut_ptr(), 12);
        }
        for r in 0..8 {
            for c in 0..8 {
                assert_eq!(turned[c * 12 + r], square[10 * r + c].into(), "({r}, {c})");
            }
        }
    }

    #[test]
    fn every_width_agrees_with_scalar_arithmetic() {
        // SAFETY: no instruction beyond the baseline, and detected ones.
        unsafe {
            check_ops::<Portable<8>>();
            check_ops::<Portable<16>>();
            #[cfg(target_arch = "x86_64")]
            {
                if Isa::detect().vector >= Vector::Avx2 {
                    check_ops::<F32x8>();
                }
                if Isa::detect().vector >= Vector::Avx512 {
                    check_ops::<F32x16>();
                }
            }
        }
    }
}
