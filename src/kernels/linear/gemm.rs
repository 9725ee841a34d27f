//! Strided f32 matrix multiply: `C = A·B` or `C += A·B`, on slices, across the rayon pool.
//!
//! For operands that change with every call (activations and gradients in training, where a transposed operand is a
//! change of strides and not a copy). Constant weights are faster in
//! [`PackedLinear`](crate::linear::PackedLinear), which packs once.

use gemm::Parallelism;

use crate::device::yield_to_serving;

/// The number of multiplications below which a second thread costs more than it saves (measured on two cores, 64x64x64).
const SERIAL_BELOW: usize = 64 * 64 * 64;

/// Computes `c[m, n] = a[m, k] · b[k, n]`, added to the previous `c` if `accumulate`.
///
/// A matrix is a slice and two strides in elements, `(row stride, column stride)`: the row-major `[rows, cols]` is
/// `(cols, 1)`, its transpose `(1, cols)`. The order of summation over `k` depends on the shape and the machine; it is
/// the same for every thread count, so a run repeats itself bit for bit.
///
/// # Panics
/// Panics if a slice is too short for its shape and strides, or if the strides of `c` give two elements the same address.
#[allow(clippy::too_many_arguments)]
pub fn gemm_f32(
    m: usize,
    n: usize,
    k: usize,
    a: &[f32],
    a_strides: (usize, usize),
    b: &[f32],
    b_strides: (usize, usize),
    c: &mut [f32],
    c_strides: (usize, usize),
    accumulate: bool,
) {
    if m == 0 || n == 0 {
        return;
    }
    yield_to_serving();
    assert!(
        extent(m, k, a_strides) <= a.len(),
        "gemm_f32: a has {} elements, [{m}, {k}] with strides {a_strides:?} needs {}",
        a.len(),
        extent(m, k, a_strides)
    );
    assert!(
        extent(k, n, b_strides) <= b.len(),
        "gemm_f32: b has {} elements, [{k}, {n}] with strides {b_strides:?} needs {}",
        b.len(),
        extent(k, n, b_strides)
    );
    assert!(
        extent(m, n, c_strides) <= c.len(),
        "gemm_f32: c has {} elements, [{m}, {n}] with strides {c_strides:?} needs {}",
        c.len(),
        extent(m, n, c_strides)
    );
    let (row, column) = c_strides;
    assert!(
        (m == 1 || row >= n * column || n == 1 || column >= m * row)
            && (m == 1 || row > 0)
            && (n == 1 || column > 0),
        "gemm_f32: c's strides {c_strides:?} overlap for [{m}, {n}]"
    );
    if k == 0 {
        if !accumulate {
            for i in 0..m {
                for j in 0..n {
                    c[i * row + j * column] = 0.0;
                }
            }
        }
        return;
    }
    let parallelism = if m * n * k < SERIAL_BELOW || rayon::current_num_threads() == 1 {
        Parallelism::None
    } else {
        Parallelism::Rayon(rayon::current_num_threads())
    };
    // SAFETY: the three extents were checked above, and `c` is a unique borrow whose elements do not overlap.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            c.as_mut_ptr(),
            column as isize,
            row as isize,
            accumulate,
            a.as_ptr(),
            a_strides.1 as isize,
            a_strides.0 as isize,
            b.as_ptr(),
            b_strides.1 as isize,
            b_strides.0 as isize,
            1.0,
            1.0,
            false,
            false,
            false,
            parallelism,
        );
    }
}

/// Returns the number of elements that a `[rows, cols]` matrix with these strides spans.
fn extent(rows: usize, cols: usize, (row, column): (usize, usize)) -> usize {
    if rows == 0 || cols == 0 {
        0
    } else {
        (rows - 1) * row + (cols - 1) * column + 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(count: usize, seed: u32) -> Vec<f32> {
        let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(1);
        (0..count)
            .map(|_| {
                state ^= state << 13;
                state ^= state >> 17;
                state ^= state << 5;
                state as f32 / u32::MAX as f32 - 0.5
            })
            .collect()
    }

    #[test]
    fn every_transposition_and_accumulation_matches_the_definition() {
        for (m, n, k) in [
            (1, 1, 1),
            (3, 5, 7),
            (64, 33, 17),
            (130, 70, 65),
            (1, 96, 48),
            (96, 1, 48),
        ] {
            let (a, b, start) = (values(m * k, 1), values(k * n, 2), values(m * n, 3));
            for (a_strides, b_strides, c_strides) in [
                ((k, 1), (n, 1), (n, 1)),
                ((k, 1), (1, k), (n, 1)),
                ((1, m), (n, 1), (n, 1)),
                ((1, m), (1, k), (1, m)),
            ] {
                for accumulate in [false, true] {
                    let mut c = start.clone();
                    gemm_f32(
                        m, n, k, &a, a_strides, &b, b_strides, &mut c, c_strides, accumulate,
                    );
                    for i in 0..m {
                        for j in 0..n {
                            let mut want: f64 = (0..k)
                                .map(|l| {
                                    f64::from(a[i * a_strides.0 + l * a_strides.1])
                                        * f64::from(b[l * b_strides.0 + j * b_strides.1])
                                })
                                .sum();
                            let at = i * c_strides.0 + j * c_strides.1;
                            if accumulate {
                                want += f64::from(start[at]);
                            }
                            assert!(
                                (f64::from(c[at]) - want).abs() < 1e-5,
                                "{m}x{n}x{k} at ({i}, {j}): {} for {want}",
                                c[at]
                            );
                        }
                    }
                }
            }
        }
    }

    #[test]
    #[should_panic(expected = "a has 5 elements")]
    fn a_short_slice_is_refused() {
        let mut c = [0.0; 4];
        gemm_f32(
            2,
            2,
            3,
            &[0.0; 5],
            (3, 1),
            &[0.0; 6],
            (2, 1),
            &mut c,
            (2, 1),
            false,
        );
    }
}
