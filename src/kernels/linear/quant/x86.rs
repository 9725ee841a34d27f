//! The sums of a group with AVX2, AVX-VNNI and AVX-512-VNNI.

use std::arch::x86_64::*;

use half::f16;

use super::engine::Dot;
use crate::simd::{F32x8, F32x16};

/// Eight lanes: AVX2 and F16C. Bytes are widened to 16 bits, because `vpmaddubsw` saturates.
#[derive(Clone, Copy)]
pub struct Avx2(__m256i);

/// Eight lanes: AVX-VNNI, beside AVX2 and F16C.
#[derive(Clone, Copy)]
pub struct AvxVnni(__m256i);

/// Sixteen lanes: AVX-512-VNNI.
#[derive(Clone, Copy)]
pub struct Avx512Vnni(__m512i);

/// The methods that AVX2 and AVX-VNNI have in common.
macro_rules! eight_lanes {
    () => {
        const LANES: usize = 8;
        type Bytes = __m256i;
        type Floats = F32x8;

        #[inline(always)]
        unsafe fn splat(value: i32) -> Self {
            // SAFETY: the caller has AVX2; nothing but registers is touched.
            unsafe { Self(_mm256_set1_epi32(value)) }
        }
        #[inline(always)]
        unsafe fn load(from: *const u8) -> __m256i {
            // SAFETY: the caller has AVX2, and `from` is good for 32 bytes.
            unsafe { _mm256_loadu_si256(from.cast()) }
        }
        #[inline(always)]
        unsafe fn halves(bytes: __m256i) -> (__m256i, __m256i) {
            // SAFETY: the caller has AVX2; nothing but registers is touched.
            unsafe {
                let low = _mm256_set1_epi8(15);
                let high = _mm256_srli_epi16::<4>(bytes);
                (_mm256_and_si256(bytes, low), _mm256_and_si256(high, low))
            }
        }
        #[inline(always)]
        unsafe fn floats(self) -> F32x8 {
            // SAFETY: the caller has AVX2; nothing but registers is touched.
            unsafe { F32x8::from_i32(self.0) }
        }
        #[inline(always)]
        unsafe fn load_f16(from: *const f16) -> F32x8 {
            // SAFETY: the caller has AVX2 and F16C, and `from` is good for eight f16.
            unsafe { F32x8::from_f16(_mm_loadu_si128(from.cast())) }
        }
    };
}

impl Dot for Avx2 {
    eight_lanes!();

    #[inline(always)]
    unsafe fn add(self, w: __m256i, x: u32) -> Self {
        // SAFETY: the caller has AVX2; nothing but registers is touched.
        unsafe {
            // The even and the odd bytes, as 16 bits: w without sign, x with it.
            let x = _mm256_set1_epi32(x as i32);
            let even = _mm256_madd_epi16(
                _mm256_and_si256(w, _mm256_set1_epi16(0xff)),
                _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(x)),
            );
            let odd = _mm256_madd_epi16(_mm256_srli_epi16::<8>(w), _mm256_srai_epi16::<8>(x));
            Self(_mm256_add_epi32(self.0, _mm256_add_epi32(even, odd)))
        }
    }
}

impl Dot for AvxVnni {
    eight_lanes!();

    #[inline(always)]
    unsafe fn add(self, w: __m256i, x: u32) -> Self {
        // SAFETY: the caller has AVX-VNNI; nothing but registers is touched.
        unsafe {
            Self(_mm256_dpbusd_avx_epi32(
                self.0,
                w,
                _mm256_set1_epi32(x as i32),
            ))
        }
    }
}

impl Dot for Avx512Vnni {
    const LANES: usize = 16;
    type Bytes = __m512i;
    type Floats = F32x16;

    #[inline(always)]
    unsafe fn splat(value: i32) -> Self {
        // SAFETY: the caller has AVX-512; nothing but registers is touched.
        unsafe { Self(_mm512_set1_epi32(value)) }
    }
    #[inline(always)]
    unsafe fn load(from: *const u8) -> __m512i {
        // SAFETY: the caller has AVX-512, and `from` is good for 64 bytes.
        unsafe { _mm512_loadu_si512(from.cast()) }
    }
    #[inline(always)]
    unsafe fn halves(bytes: __m512i) -> (__m512i, __m512i) {
        // SAFETY: the caller has AVX-512 BW; nothing but registers is touched.
        unsafe {
            let low = _mm512_set1_epi8(15);
            let high = _mm512_srli_epi16::<4>(bytes);
            (_mm512_and_si512(bytes, low), _mm512_and_si512(high, low))
        }
    }
    #[inline(always)]
    unsafe fn add(self, w: __m512i, x: u32) -> Self {
        // SAFETY: the caller has AVX-512-VNNI; nothing but registers is touched.
        unsafe { Self(_mm512_dpbusd_epi32(self.0, w, _mm512_set1_epi32(x as i32))) }
    }
    #[inline(always)]
    unsafe fn floats(self) -> F32x16 {
        // SAFETY: the caller has AVX-512; nothing but registers is touched.
        unsafe { F32x16::from_i32(self.0) }
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const f16) -> F32x16 {
        // SAFETY: the caller has AVX-512, and `from` is good for sixteen f16.
        unsafe { F32x16::from_f16(_mm256_loadu_si256(from.cast())) }
    }
}
