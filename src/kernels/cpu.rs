//! Common parts of the CPU ops: instruction-set dispatch for auto-vectorised loops, row chunks, and `exp`.

/// The number of rows per task. Fixed, so that reductions over rows are grouped the same way on any thread count.
pub const ROW_CHUNK: usize = 64;

/// Compiles a function body for AVX-512, AVX2 and the baseline and selects one at run time.
///
/// The body is plain Rust written so that the compiler vectorises it; only the instruction set differs.
macro_rules! multiversioned {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block) => {
        $(#[$meta])*
        #[allow(clippy::too_many_arguments)]
        $vis fn $name($($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            #[allow(clippy::too_many_arguments)]
            fn body($($arg: $ty),*) $(-> $ret)? $body
            #[cfg(target_arch = "x86_64")]
            {
                /// # Safety
                /// The processor has these instructions.
                #[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,avx2,fma")]
                #[allow(clippy::too_many_arguments)]
                fn avx512($($arg: $ty),*) $(-> $ret)? { body($($arg),*) }
                /// # Safety
                /// The processor has these instructions.
                #[target_feature(enable = "avx2,fma")]
                #[allow(clippy::too_many_arguments)]
                fn avx2($($arg: $ty),*) $(-> $ret)? { body($($arg),*) }
                use $crate::{isa::Isa, isa::Vector};
                match Isa::detect().vector {
                    // SAFETY: it was detected on this processor.
                    Vector::Avx512 => unsafe { avx512($($arg),*) },
                    // SAFETY: it was detected on this processor.
                    Vector::Avx2 => unsafe { avx2($($arg),*) },
                    _ => body($($arg),*),
                }
            }
            #[cfg(not(target_arch = "x86_64"))]
            {
                body($($arg),*)
            }
        }
    };
}
pub(crate) use multiversioned;

/// Returns `e^x` to about 2 ulp for x in [-87, 88], clamped outside: branch-free, so loops over it vectorise.
///
/// Cody-Waite reduction x = n ln 2 + r, |r| <= ln 2 / 2, then a degree-6 polynomial and an exponent shift.
///
/// [`super::simd::exp`] exists as well for this reason: this function takes a number in plain Rust, for loops that the
/// compiler vectorises ([`multiversioned`]), and is never 0; the other takes a register, for kernels written over
/// [`super::simd::Simd`], where masked scores of `-inf` must give exactly 0. Through the trait's plain type this
/// function would lose its fused multiply-adds; as plain Rust the other would leave its registers.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    const LN2_HI: f32 = 0.693_359_4;
    const LN2_LO: f32 = -2.121_944_4e-4;
    const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23: adding it rounds to the nearest integer
    let x = x.clamp(-87.0, 88.0);
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = n.mul_add(-LN2_LO, n.mul_add(-LN2_HI, x));
    let p = 1.388_888_9e-3_f32;
    let p = p.mul_add(r, 8.333_334e-3);
    let p = p.mul_add(r, 4.166_666_6e-2);
    let p = p.mul_add(r, 1.666_666_7e-1);
    let p = p.mul_add(r, 0.5);
    let p = p.mul_add(r, 1.0);
    let p = p.mul_add(r, 1.0);
    // n is in the low bits of the shifted number. `n as i32` is equal but saturates, and so would prevent vectorisation.
    let exponent = shifted.to_bits().wrapping_sub(ROUND.to_bits()) as i32 + 127;
    p * f32::from_bits((exponent << 23) as u32)
}

/// Returns `tanh x` to about 2 ulp: branch-free, so loops over it vectorise.
///
/// Below 1 it is the seventh convergent of Lambert's continued fraction `x / (1 + x^2 / (3 + x^2 / (5 + ...)))`, whose error is less than
/// a rounding there; above it is `1 - 2 / (e^2x + 1)`, which loses no digits where `tanh` is near 1.
#[inline(always)]
pub fn tanh(x: f32) -> f32 {
    let square = x * x;
    let above = square.mul_add(square.mul_add(square + 378.0, 17_325.0), 135_135.0);
    let below = square.mul_add(
        square.mul_add(square.mul_add(28.0, 3_150.0), 62_370.0),
        135_135.0,
    );
    let near = x * above / below;
    let far = (1.0 - 2.0 / (exp(2.0 * x.abs()) + 1.0)).copysign(x);
    if x.abs() < 1.0 { near } else { far }
}

/// The number of separate lanes of a reduction: enough to fill two AVX-512 registers and hide the latency of an add.
pub const LANES: usize = 32;

/// Returns the dot product in a fixed order of additions, whatever the instruction set.
#[inline(always)]
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut acc = [0f32; LANES];
    let (a_chunks, b_chunks) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let tail: f32 = a_chunks
        .remainder()
        .iter()
        .zip(b_chunks.remainder())
        .map(|(x, y)| x * y)
        .sum();
    for (x, y) in a_chunks.zip(b_chunks) {
        for lane in 0..LANES {
            acc[lane] = x[lane].mul_add(y[lane], acc[lane]);
        }
    }
    acc.iter().sum::<f32>() + tail
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_close_to_the_library_one() {
        for i in -8700..8800 {
            let x = i as f32 / 100.0;
            let (got, want) = (exp(x), x.exp());
            assert!(
                (got - want).abs() <= want * 4e-7,
                "exp({x}) = {got}, want {want}"
            );
        }
        assert_eq!(exp(0.0), 1.0);
        assert!(exp(-1e30) < 1e-37);
    }

    #[test]
    fn tanh_is_close_to_the_library_one() {
        for i in -20_000..20_000 {
            let x = i as f32 / 1000.0;
            let (got, want) = (tanh(x), f64::from(x).tanh());
            let difference = (f64::from(got) - want).abs();
            assert!(
                difference <= want.abs() * 3e-7,
                "tanh({x}) = {got}, want {want}"
            );
        }
        for large in [1e3, 1e20, f32::MAX, f32::INFINITY] {
            assert_eq!((tanh(large), tanh(-large)), (1.0, -1.0));
        }
        assert_eq!(tanh(0.0), 0.0);
        assert_eq!(tanh(1e-20), 1e-20);
    }

    #[test]
    fn dot_is_a_dot_product() {
        for n in [0, 1, 31, 32, 33, 100] {
            let a: Vec<f32> = (0..n).map(|i| i as f32).collect();
            let want: f32 = a.iter().map(|x| x * x).sum();
            assert_eq!(dot(&a, &a), want, "length {n}");
        }
    }
}
