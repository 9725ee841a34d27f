//! Activations rounded to bf16 (nearest, ties to even), once for all products that read them.

use super::amx;
use super::panels::padded;
use crate::cpu::multiversioned;
use crate::device::team;

/// The padding of bf16 rows beyond their depth: a row stride that is a power of two would put the same column of
/// all rows into one set of the cache.
const ROW_PAD: usize = 32;

/// The number of rows that a task rounds at a time.
const ROWS: usize = 32;

/// Rows of x in bf16, padded with zeros in depth. As many further rows as AMX tiles may read follow the last one.
#[derive(Clone, Copy)]
pub struct Rows<'a> {
    pub values: &'a [u16],
    pub rows: usize,
    /// The distance between two rows.
    pub stride: usize,
    /// The padded depth.
    pub depth: usize,
}

impl<'a> Rows<'a> {
    /// Returns the u16 that [`Rows::round`] needs for `rows` rows of `k`; even.
    pub fn space(rows: usize, k: usize) -> usize {
        (rows + amx::TILE - 1) * (padded(k) + ROW_PAD)
    }

    /// Rounds `x`, `[rows, k]`.
    pub fn round(x: &[f32], rows: usize, k: usize, space: &'a mut [u16]) -> Self {
        let depth = padded(k);
        let stride = depth + ROW_PAD;
        let parts = space[..rows * stride]
            .chunks_mut(ROWS * stride)
            .zip(x.chunks(ROWS * k));
        team::each(parts, |(to, x)| round_rows(x, k, stride, to));
        Self {
            values: space,
            rows,
            stride,
            depth,
        }
    }

    /// Returns rows `from..to`.
    pub fn part(&self, from: usize, to: usize) -> Self {
        Self {
            values: &self.values[from * self.stride..],
            rows: to - from,
            ..*self
        }
    }
}

multiversioned! {
    fn round_rows(x: &[f32], k: usize, stride: usize, to: &mut [u16]) {
        for (x, to) in x.chunks_exact(k).zip(to.chunks_exact_mut(stride)) {
            for (to, x) in to.iter_mut().zip(x) {
                *to = round(*x);
            }
            to[k..].fill(0);
        }
    }
}

/// Rounds to bf16 (nearest, ties to even), without branches, so that loops over it vectorise.
#[inline(always)]
fn round(x: f32) -> u16 {
    let bits = x.to_bits();
    let even = (bits >> 16) & 1;
    let rounded = bits.wrapping_add(0x7fff + even) >> 16;
    // A NaN must stay a NaN.
    (if x.is_nan() {
        (bits >> 16) | 0x40
    } else {
        rounded
    }) as u16
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::bf16;

    #[test]
    fn rows_are_padded_with_zeros_and_parts_are_theirs() {
        let (rows, k) = (70, 33);
        let x: Vec<f32> = (0..rows * k).map(|i| i as f32 * 0.37).collect();
        let mut space = vec![u16::MAX; Rows::space(rows, k)];
        let part = Rows::round(&x, rows, k, &mut space).part(40, 65);
        assert_eq!((part.rows, part.depth), (25, 64));
        for (r, row) in part.values.chunks(part.stride).take(25).enumerate() {
            for (l, value) in row.iter().enumerate() {
                let want = if l < k { x[(40 + r) * k + l] } else { 0.0 };
                assert_eq!(*value, bf16::from_f32(want).to_bits());
            }
        }
    }

    #[test]
    fn rounding_is_to_nearest_even() {
        for x in [
            0.0,
            -0.0,
            1.0,
            1.003_906_2,
            1.011_718_8,
            -3.3,
            1e-40,
            3.4e38,
            f32::INFINITY,
        ] {
            assert_eq!(round(x), bf16::from_f32(x).to_bits(), "{x}");
        }
        assert!(bf16::from_bits(round(f32::NAN)).is_nan());
        assert!(bf16::from_bits(round(f32::from_bits(0x7f80_0001))).is_nan());
    }
}
