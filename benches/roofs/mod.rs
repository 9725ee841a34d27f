//! The limits of this machine, measured in the same run as the benchmark.

use std::fmt;
use std::hint::black_box;
use std::time::Instant;

use kernels::isa::Isa;
use rayon::prelude::*;

/// The limits of all threads together.
pub struct Roofs {
    /// The rate of f32 multiply-adds in registers, in GFLOP/s.
    pub gflops: f64,
    /// The rate of reads from memory, in GB/s.
    pub gbytes: f64,
}

impl Roofs {
    pub fn measure() -> Self {
        let threads = rayon::current_num_threads();
        Self {
            gflops: multiply_adds(threads),
            gbytes: bandwidth(threads),
        }
    }
}

impl fmt::Display for Roofs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} on {} threads: {:.1} GFLOP/s of multiply-adds, {:.1} GB/s of reads",
            Isa::detect(),
            rayon::current_num_threads(),
            self.gflops,
            self.gbytes
        )
    }
}

/// Returns the best time of a call, in seconds.
pub fn best(mut f: impl FnMut()) -> f64 {
    f();
    let (start, mut best, mut rounds) = (Instant::now(), f64::MAX, 0);
    while rounds < 3 || start.elapsed().as_secs_f64() < 0.25 {
        let round = Instant::now();
        f();
        best = best.min(round.elapsed().as_secs_f64());
        rounds += 1;
    }
    best
}

/// Returns the rate of independent multiply-adds in registers on all threads at once, in GFLOP/s.
fn multiply_adds(threads: usize) -> f64 {
    const ROUNDS: usize = 300_000;
    let flops = (threads * ROUNDS) as f64 * chains::FLOPS;
    flops
        / best(|| {
            (0..threads).into_par_iter().with_max_len(1).for_each(|_| {
                black_box(chains::run(ROUNDS));
            });
        })
        / 1e9
}

/// Twelve chains of vector multiply-adds, which are enough for two units with a latency of four cycles.
mod chains {
    use kernels::isa::{Isa, Vector};

    pub const CHAINS: usize = 12;
    pub const LANES: usize = 16;
    /// The operations of one round: each chain has one register of sixteen lanes, or two of eight.
    pub const FLOPS: f64 = (2 * CHAINS * LANES) as f64;

    #[inline(always)]
    fn body(rounds: usize, fused: bool) -> f32 {
        let (a, b) = (
            std::hint::black_box(0.999f32),
            std::hint::black_box(1e-3f32),
        );
        let mut sum = 0.0;
        // Sixteen lanes of six chains fill the registers of AVX2, so two passes make the twelve chains.
        for _ in 0..2 {
            let mut acc = [[0f32; LANES]; CHAINS / 2];
            for _ in 0..rounds {
                for chain in &mut acc {
                    for x in chain {
                        *x = if fused { x.mul_add(a, b) } else { *x * a + b };
                    }
                }
            }
            sum += acc.iter().flatten().sum::<f32>();
        }
        sum
    }

    /// # Safety
    /// The processor must have the instructions of AVX-512.
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f,avx512vl,fma")]
    fn avx512(rounds: usize) -> f32 {
        use std::arch::x86_64::{_mm512_fmadd_ps, _mm512_reduce_add_ps, _mm512_set1_ps};
        let a = _mm512_set1_ps(std::hint::black_box(0.999));
        let b = _mm512_set1_ps(std::hint::black_box(1e-3));
        let mut acc = [b; CHAINS];
        for _ in 0..rounds {
            for x in &mut acc {
                *x = _mm512_fmadd_ps(*x, a, b);
            }
        }
        acc.into_iter().map(|x| _mm512_reduce_add_ps(x)).sum()
    }

    /// # Safety
    /// The processor must have the instructions of AVX2 and FMA.
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma")]
    fn avx2(rounds: usize) -> f32 {
        use std::arch::x86_64::{_mm256_castps256_ps128, _mm256_fmadd_ps, _mm256_set1_ps};
        let a = _mm256_set1_ps(std::hint::black_box(0.999));
        let b = _mm256_set1_ps(std::hint::black_box(1e-3));
        let mut acc = [b; CHAINS];
        for _ in 0..2 * rounds {
            for x in &mut acc {
                *x = _mm256_fmadd_ps(*x, a, b);
            }
        }
        acc.into_iter()
            .map(|x| std::arch::x86_64::_mm_cvtss_f32(_mm256_castps256_ps128(x)))
            .sum()
    }

    pub fn run(rounds: usize) -> f32 {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the instruction set was detected.
        unsafe {
            match Isa::detect().vector {
                Vector::Avx512 => return avx512(rounds),
                Vector::Avx2 => return avx2(rounds),
                Vector::Portable => {}
            }
        }
        body(rounds, cfg!(target_arch = "aarch64"))
    }
}

/// Returns the rate at which all threads read a buffer larger than any cache, in GB/s.
fn bandwidth(threads: usize) -> f64 {
    let buffer = vec![1u64; (512 << 20) / 8];
    let bytes = size_of_val(buffer.as_slice()) as f64;
    let chunk = buffer.len().div_ceil(4 * threads);
    bytes
        / best(|| {
            let sum: u64 = buffer
                .par_chunks(chunk)
                .map(|part| {
                    part.chunks(16).fold([0u64; 16], |mut sums, line| {
                        for (sum, x) in sums.iter_mut().zip(line) {
                            *sum = sum.wrapping_add(*x);
                        }
                        sums
                    })
                })
                .map(|sums| sums.iter().sum::<u64>())
                .sum();
            black_box(sum);
        })
        / 1e9
}
