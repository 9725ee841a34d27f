//! Eight lanes with AVX2, sixteen with AVX-512.

use super::{Simd, Stored};
use half::bf16;
use std::arch::x86_64::*;

/// Eight lanes: AVX2 and FMA.
#[derive(Clone, Copy)]
pub struct F32x8(__m256);

/// Sixteen lanes: AVX-512 F and DQ.
#[derive(Clone, Copy)]
pub struct F32x16(__m512);

impl F32x8 {
    /// Converts integers.
    ///
    /// # Safety
    /// Requires AVX2.
    #[inline(always)]
    pub unsafe fn from_i32(values: __m256i) -> Self {
        // SAFETY: the caller has AVX2; nothing but registers is touched.
        unsafe { Self(_mm256_cvtepi32_ps(values)) }
    }

    /// Widens eight f16; exact.
    ///
    /// # Safety
    /// Requires AVX2 and F16C.
    #[inline(always)]
    pub unsafe fn from_f16(values: __m128i) -> Self {
        // SAFETY: the caller has F16C; nothing but registers is touched.
        unsafe { Self(_mm256_cvtph_ps(values)) }
    }
}

impl F32x16 {
    /// Converts integers.
    ///
    /// # Safety
    /// Requires AVX-512.
    #[inline(always)]
    pub unsafe fn from_i32(values: __m512i) -> Self {
        // SAFETY: the caller has AVX-512; nothing but registers is touched.
        unsafe { Self(_mm512_cvtepi32_ps(values)) }
    }

    /// Widens sixteen f16; exact.
    ///
    /// # Safety
    /// Requires AVX-512.
    #[inline(always)]
    pub unsafe fn from_f16(values: __m256i) -> Self {
        // SAFETY: the caller has AVX-512; nothing but registers is touched.
        unsafe { Self(_mm512_cvtph_ps(values)) }
    }
}

const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;

impl Simd for F32x8 {
    const LANES: usize = 8;

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        // SAFETY: the caller has AVX2 and FMA; nothing but registers is touched.
        unsafe { Self(_mm256_set1_ps(value)) }
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller has AVX2 and FMA, and `from` is good for eight f32, aligned or not.
        unsafe { Self(_mm256_loadu_ps(from)) }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller has AVX2 and FMA, and `to` is good for eight f32, aligned or not.
        unsafe { _mm256_storeu_ps(to, self.0) }
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        // SAFETY: the caller has AVX2 and FMA; nothing but registers is touched.
        unsafe { Self(_mm256_add_ps(self.0, other.0)) }
    }
    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        // SAFETY: the caller has AVX2 and FMA; nothing but registers is touched.
        unsafe { Self(_mm256_sub_ps(self.0, other.0)) }
    }
    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        // SAFETY: the caller has AVX2 and FMA; nothing but registers is touched.
        unsafe { Self(_mm256_mul_ps(self.0, other.0)) }
    }
    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        // SAFETY: the caller has AVX2 and FMA; nothing but registers is touched.
        unsafe { Self(_mm256_max_ps(self.0, other.0)) }
    }
    #[inline(always)]
    unsafe fn mul_add(self, factor: Self, addend: Self) -> Self {
        // SAFETY: the caller has AVX2 and FMA; nothing but registers is touched.
        unsafe { Self(_mm256_fmadd_ps(self.0, factor.0, addend.0)) }
    }
    #[inline(always)]
    unsafe fn reduce_sum(self) -> f32 {
        // SAFETY: the caller has AVX2 and FMA; nothing but registers is touched.
        unsafe {
            let half = _mm_add_ps(
                _mm256_castps256_ps128(self.0),
                _mm256_extractf128_ps::<1>(self.0),
            );
            let quarter = _mm_add_ps(half, _mm_movehl_ps(half, half));
            let last = _mm_add_ss(quarter, _mm_shuffle_ps::<1>(quarter, quarter));
            _mm_cvtss_f32(last)
        }
    }
    #[inline(always)]
    unsafe fn reduce_max(self) -> f32 {
        // SAFETY: the caller has AVX2 and FMA; nothing but registers is touched.
        unsafe {
            let half = _mm_max_ps(
                _mm256_castps256_ps128(self.0),
                _mm256_extractf128_ps::<1>(self.0),
            );
            let quarter = _mm_max_ps(half, _mm_movehl_ps(half, half));
            let last = _mm_max_ss(quarter, _mm_shuffle_ps::<1>(quarter, quarter));
            _mm_cvtss_f32(last)
        }
    }
    #[inline(always)]
    unsafe fn round(self) -> Self {
        // SAFETY: the caller has AVX2 and FMA; nothing but registers is touched.
        unsafe { Self(_mm256_round_ps::<NEAREST>(self.0)) }
    }
    #[inline(always)]
    unsafe fn scale(self, power: Self) -> Self {
        // SAFETY: the caller has AVX2 and FMA; nothing but registers is touched.
        unsafe {
            let bits = _mm256_slli_epi32::<23>(_mm256_cvtps_epi32(power.0));
            Self(_mm256_castsi256_ps(_mm256_add_epi32(
                _mm256_castps_si256(self.0),
                bits,
            )))
        }
    }
    #[inline(always)]
    unsafe fn zero_below(self, probe: Self, bound: Self) -> Self {
        // SAFETY: the caller has AVX2 and FMA; nothing but registers is touched.
        unsafe {
            let keep = _mm256_cmp_ps::<_CMP_GE_OQ>(probe.0, bound.0);
            Self(_mm256_and_ps(self.0, keep))
        }
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const bf16) -> Self {
        // SAFETY: the caller has AVX2 and FMA, and `from` is good for eight bf16, aligned or not.
        unsafe {
            let bits = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
            Self(_mm256_castsi256_ps(_mm256_slli_epi32::<16>(bits)))
        }
    }
    #[inline(always)]
    unsafe fn load_bf16_pairs(from: *const u32) -> (Self, Self) {
        // SAFETY: the caller has AVX2 and FMA, and `from` is good for eight pairs, aligned or not.
        unsafe {
            let pairs = _mm256_loadu_si256(from.cast());
            (
                Self(_mm256_castsi256_ps(_mm256_slli_epi32::<16>(pairs))),
                Self(_mm256_castsi256_ps(_mm256_and_si256(
                    pairs,
                    _mm256_set1_epi32(0xffff_0000_u32 as i32),
                ))),
            )
        }
    }
    #[inline(always)]
    unsafe fn transpose_8x8<T: Stored>(rows: [*const T; 8], to: *mut f32, stride: usize) {
        // SAFETY: the caller has AVX2 and FMA, and the rows and `to` are as the trait requires.
        unsafe { transpose_8x8(rows, to, stride) }
    }
}

impl Simd for F32x16 {
    const LANES: usize = 16;

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        // SAFETY: the caller has AVX-512 F and DQ; nothing but registers is touched.
        unsafe { Self(_mm512_set1_ps(value)) }
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller has AVX-512 F and DQ, and `from` is good for sixteen f32, aligned or not.
        unsafe { Self(_mm512_loadu_ps(from)) }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller has AVX-512 F and DQ, and `to` is good for sixteen f32, aligned or not.
        unsafe { _mm512_storeu_ps(to, self.0) }
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        // SAFETY: the caller has AVX-512 F and DQ; nothing but registers is touched.
        unsafe { Self(_mm512_add_ps(self.0, other.0)) }
    }
    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        // SAFETY: the caller has AVX-512 F and DQ; nothing but registers is touched.
        unsafe { Self(_mm512_sub_ps(self.0, other.0)) }
    }
    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        // SAFETY: the caller has AVX-512 F and DQ; nothing but registers is touched.
        unsafe { Self(_mm512_mul_ps(self.0, other.0)) }
    }
    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        // SAFETY: the caller has AVX-512 F and DQ; nothing but registers is touched.
        unsafe { Self(_mm512_max_ps(self.0, other.0)) }
    }
    #[inline(always)]
    unsafe fn mul_add(self, factor: Self, addend: Self) -> Self {
        // SAFETY: the caller has AVX-512 F and DQ; nothing but registers is touched.
        unsafe { Self(_mm512_fmadd_ps(self.0, factor.0, addend.0)) }
    }
    #[inline(always)]
    unsafe fn reduce_sum(self) -> f32 {
        // SAFETY: the caller has AVX-512 F and DQ; nothing but registers is touched.
        unsafe { _mm512_reduce_add_ps(self.0) }
    }
    #[inline(always)]
    unsafe fn reduce_max(self) -> f32 {
        // SAFETY: the caller has AVX-512 F and DQ; nothing but registers is touched.
        unsafe { _mm512_reduce_max_ps(self.0) }
    }
    #[inline(always)]
    unsafe fn round(self) -> Self {
        // SAFETY: the caller has AVX-512 F and DQ; nothing but registers is touched.
        unsafe { Self(_mm512_roundscale_ps::<NEAREST>(self.0)) }
    }
    #[inline(always)]
    unsafe fn scale(self, power: Self) -> Self {
        // SAFETY: the caller has AVX-512 F and DQ; nothing but registers is touched.
        unsafe {
            let bits = _mm512_slli_epi32::<23>(_mm512_cvtps_epi32(power.0));
            Self(_mm512_castsi512_ps(_mm512_add_epi32(
                _mm512_castps_si512(self.0),
                bits,
            )))
        }
    }
    #[inline(always)]
    unsafe fn zero_below(self, probe: Self, bound: Self) -> Self {
        // SAFETY: the caller has AVX-512 F and DQ; nothing but registers is touched.
        unsafe {
            let keep = _mm512_cmp_ps_mask::<_CMP_GE_OQ>(probe.0, bound.0);
            Self(_mm512_maskz_mov_ps(keep, self.0))
        }
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const bf16) -> Self {
        // SAFETY: the caller has AVX-512 F and DQ, and `from` is good for sixteen bf16, aligned or not.
        unsafe {
            let bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
            Self(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(bits)))
        }
    }
    #[inline(always)]
    unsafe fn load_bf16_pairs(from: *const u32) -> (Self, Self) {
        // SAFETY: the caller has AVX-512 F and DQ, and `from` is good for sixteen pairs, aligned or not.
        unsafe {
            let pairs = _mm512_loadu_si512(from.cast());
            (
                Self(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(pairs))),
                Self(_mm512_castsi512_ps(_mm512_and_si512(
                    pairs,
                    _mm512_set1_epi32(0xffff_0000_u32 as i32),
                ))),
            )
        }
    }
    #[inline(always)]
    unsafe fn transpose_8x8<T: Stored>(rows: [*const T; 8], to: *mut f32, stride: usize) {
        // SAFETY: the caller has AVX-512 F and DQ, and the rows and `to` are as the trait requires.
        unsafe { transpose_8x8(rows, to, stride) }
    }
}

/// Computes [`Simd::transpose_8x8`] with eight lanes; wider processors have these instructions too.
///
/// # Safety
/// Requires AVX2, rows valid for eight elements each, and a `to` valid for eight elements at each of `c * stride`, c below 8.
#[inline(always)]
unsafe fn transpose_8x8<T: Stored>(rows: [*const T; 8], to: *mut f32, stride: usize) {
    // No closures: they would not have the caller's instruction set.
    // SAFETY: the caller has AVX2; each row is good for eight elements, and `to` for eight columns of eight, `stride` apart.
    unsafe {
        let zero = _mm256_setzero_ps();
        let (mut r, mut a) = ([zero; 8], [zero; 8]);
        for i in 0..8 {
            r[i] = T::load::<F32x8>(rows[i]).0;
        }
        // Interleaves pairs of rows, then pairs of pairs, then the two halves of the register.
        for i in 0..4 {
            a[2 * i] = _mm256_unpacklo_ps(r[2 * i], r[2 * i + 1]);
            a[2 * i + 1] = _mm256_unpackhi_ps(r[2 * i], r[2 * i + 1]);
        }
        for c in 0..4 {
            let (low, high) = if c % 2 == 0 {
                (
                    _mm256_shuffle_ps::<0x44>(a[c / 2], a[c / 2 + 2]),
                    _mm256_shuffle_ps::<0x44>(a[c / 2 + 4], a[c / 2 + 6]),
                )
            } else {
                (
                    _mm256_shuffle_ps::<0xee>(a[c / 2], a[c / 2 + 2]),
                    _mm256_shuffle_ps::<0xee>(a[c / 2 + 4], a[c / 2 + 6]),
                )
            };
            _mm256_storeu_ps(
                to.add(c * stride),
                _mm256_permute2f128_ps::<0x20>(low, high),
            );
            _mm256_storeu_ps(
                to.add((c + 4) * stride),
                _mm256_permute2f128_ps::<0x31>(low, high),
            );
        }
    }
}
