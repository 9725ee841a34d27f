//! Activations rounded to eight bits, group by group, once for all products that read them.

use super::grid::GROUP;
use crate::cpu::multiversioned;
use crate::device::team;

/// The number of rows that a task rounds at a time.
const ROWS: usize = 16;

/// The words of four integers in a group.
const WORDS: usize = GROUP / 4;

/// Rows of x as integers from -127 to 127, padded with zeros to whole groups. A row is its integers, four in a word, then the scale of
/// each group (the bits of an f32), then the sum of each group's integers.
#[derive(Clone, Copy)]
pub struct Rows<'a> {
    pub words: &'a [u32],
    pub rows: usize,
    pub groups: usize,
}

impl<'a> Rows<'a> {
    /// Returns the words of a row.
    pub const fn stride(groups: usize) -> usize {
        groups * (WORDS + 2)
    }

    /// Returns the words that [`Rows::round`] needs for `rows` rows of `k`.
    pub fn space(rows: usize, k: usize) -> usize {
        rows * Self::stride(k.div_ceil(GROUP))
    }

    /// Rounds `x`, `[rows, k]`; `k` is not 0.
    pub fn round(x: &[f32], rows: usize, k: usize, space: &'a mut [u32]) -> Self {
        let groups = k.div_ceil(GROUP);
        let stride = Self::stride(groups);
        let parts = space[..rows * stride]
            .chunks_mut(ROWS * stride)
            .zip(x.chunks(ROWS * k));
        team::each(parts, |(to, x)| round_rows(x, k, to));
        Self {
            words: space,
            rows,
            groups,
        }
    }

    /// Returns rows `from..to`.
    pub fn part(&self, from: usize, to: usize) -> Self {
        Self {
            words: &self.words[from * Self::stride(self.groups)..],
            rows: to - from,
            ..*self
        }
    }
}

multiversioned! {
    fn round_rows(x: &[f32], k: usize, to: &mut [u32]) {
        let groups = k.div_ceil(GROUP);
        for (x, to) in x.chunks_exact(k).zip(to.chunks_exact_mut(Rows::stride(groups))) {
            let (words, about) = to.split_at_mut(groups * WORDS);
            let (scales, sums) = about.split_at_mut(groups);
            for (g, x) in x.chunks(GROUP).enumerate() {
                let mut whole = [0f32; GROUP];
                whole[..x.len()].copy_from_slice(x);
                let (values, scale, sum) = round_group(&whole);
                scales[g] = scale.to_bits();
                sums[g] = sum as u32;
                for (word, four) in words[g * WORDS..].iter_mut().zip(values.as_chunks::<4>().0) {
                    *word = u32::from_le_bytes(*four);
                }
            }
        }
    }
}

/// Returns the integers of a group, their scale and their sum, without branches in its loops, so that they vectorise. A number that is not
/// finite makes the scale so, and with it every product of the row.
#[inline(always)]
fn round_group(x: &[f32; GROUP]) -> ([u8; GROUP], f32, i32) {
    /// Adding it rounds to the nearest integer, ties to even, and leaves that in the low bits: 1.5 * 2^23.
    const ROUND: f32 = 12_582_912.0;
    /// Below this magnitude a group is 0: its inverse would overflow.
    const LEAST: f32 = 1e-30;
    // Among the bits of magnitudes, those of infinity and NaN are the largest.
    let mut most = 0;
    for x in x {
        most = most.max(x.to_bits() & 0x7fff_ffff);
    }
    let most = f32::from_bits(most);
    if most < LEAST {
        return ([0; GROUP], 0.0, 0);
    }
    let factor = 127.0 / most;
    let (mut values, mut sum) = ([0; GROUP], 0);
    for (value, x) in values.iter_mut().zip(x) {
        let q = ((x * factor + ROUND).to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32) as i8;
        *value = q as u8;
        sum += i32::from(q);
    }
    (values, most / 127.0, sum)
}
