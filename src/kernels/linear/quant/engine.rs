//! The sums of a group, for each engine.

use half::f16;

use crate::simd::{Portable, Simd};

/// `LANES` sums of products of unsigned and signed bytes, one for each output.
///
/// # Safety
/// Every method requires the engine's instructions, and pointers that are good for what it reads.
pub trait Dot: Copy {
    const LANES: usize;
    /// Four unsigned bytes for each lane.
    type Bytes: Copy;
    /// As many f32.
    type Floats: Simd;

    /// # Safety
    /// Same as [`Dot`].
    unsafe fn splat(value: i32) -> Self;
    /// Loads four bytes for each lane.
    ///
    /// # Safety
    /// Same as [`Dot`].
    unsafe fn load(from: *const u8) -> Self::Bytes;
    /// Returns the low and the high half of each byte.
    ///
    /// # Safety
    /// Same as [`Dot`].
    unsafe fn halves(bytes: Self::Bytes) -> (Self::Bytes, Self::Bytes);
    /// Adds the products of each lane's four bytes with the four signed bytes in `x`; exact.
    ///
    /// # Safety
    /// Same as [`Dot`].
    unsafe fn add(self, w: Self::Bytes, x: u32) -> Self;
    /// # Safety
    /// Same as [`Dot`].
    unsafe fn floats(self) -> Self::Floats;
    /// Loads a f16 for each lane; exact.
    ///
    /// # Safety
    /// Same as [`Dot`].
    unsafe fn load_f16(from: *const f16) -> Self::Floats;
}

/// The plain version, in the baseline instructions that the compiler chooses.
#[derive(Clone, Copy)]
pub struct Plain([i32; 8]);

impl Dot for Plain {
    const LANES: usize = 8;
    type Bytes = [u8; 32];
    type Floats = Portable<8>;

    #[inline(always)]
    unsafe fn splat(value: i32) -> Self {
        Self([value; 8])
    }
    #[inline(always)]
    unsafe fn load(from: *const u8) -> [u8; 32] {
        // SAFETY: the caller promises 32 bytes.
        unsafe { from.cast::<[u8; 32]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn halves(bytes: [u8; 32]) -> ([u8; 32], [u8; 32]) {
        (bytes.map(|b| b & 15), bytes.map(|b| b >> 4))
    }
    #[inline(always)]
    unsafe fn add(mut self, w: [u8; 32], x: u32) -> Self {
        let x = x.to_le_bytes().map(|x| i32::from(x as i8));
        for (sum, w) in self.0.iter_mut().zip(w.as_chunks::<4>().0) {
            for (w, x) in w.iter().zip(x) {
                *sum += i32::from(*w) * x;
            }
        }
        self
    }
    #[inline(always)]
    unsafe fn floats(self) -> Portable<8> {
        let values = self.0.map(|sum| sum as f32);
        // SAFETY: the array has eight f32.
        unsafe { Portable::load(values.as_ptr()) }
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const f16) -> Portable<8> {
        // SAFETY: the caller promises eight f16; the array has eight f32.
        unsafe {
            let values = from.cast::<[f16; 8]>().read_unaligned().map(f16::to_f32);
            Portable::load(values.as_ptr())
        }
    }
}
