//! The memory layout of packed weights.
//!
//! A weight `[n, k]` is cut into panels of [`PANEL`] output columns (rows of the weight), the last padded with zeros.
//! - **f32**: a panel is `[k][16]`: one cache line for each step of depth.
//! - **bf16**: a panel is `[k / 2][16][2]`: one line holds two steps of depth, pairs side by side. This is the VNNI order
//!   that `vdpbf16ps` and AMX tiles want, and a shift or a mask widens it to f32. `k` is padded with zeros to
//!   [`DEPTH_STEP`], the depth of an AMX tile.

use half::{bf16, f16};
use rayon::prelude::*;

use crate::micro::PANEL;
use crate::scratch::{Line, PairLine};

/// The depth of bf16 panels is a multiple of this.
pub const DEPTH_STEP: usize = 32;

/// A number type that checkpoints store.
pub trait Element: Copy + Send + Sync {
    fn f32(self) -> f32;
    /// Converts to bf16, rounded to nearest, ties to even.
    fn bf16(self) -> bf16;
}

impl Element for f32 {
    fn f32(self) -> f32 {
        self
    }
    fn bf16(self) -> bf16 {
        bf16::from_f32(self)
    }
}

impl Element for bf16 {
    fn f32(self) -> f32 {
        self.to_f32()
    }
    fn bf16(self) -> bf16 {
        self
    }
}

impl Element for f16 {
    fn f32(self) -> f32 {
        self.to_f32()
    }
    fn bf16(self) -> bf16 {
        bf16::from_f32(self.to_f32())
    }
}

/// Packs `[n, k]` row-major into f32 panels.
pub fn pack_f32<T: Element>(weight: &[T], n: usize, k: usize) -> Vec<Line> {
    let mut lines = vec![Line([0.0; 16]); n.div_ceil(PANEL) * k];
    lines
        .par_chunks_mut(k.max(1))
        .enumerate()
        .for_each(|(p, panel)| {
            for (column, row) in (p * PANEL..n.min((p + 1) * PANEL)).enumerate() {
                for (line, w) in panel.iter_mut().zip(&weight[row * k..(row + 1) * k]) {
                    line.0[column] = w.f32();
                }
            }
        });
    lines
}

/// Packs `[n, k]` row-major into bf16 panels of depth [`padded`].
pub fn pack_bf16<T: Element>(weight: &[T], n: usize, k: usize) -> Vec<PairLine> {
    let pairs = padded(k) / 2;
    let mut lines = vec![PairLine([0; 16]); n.div_ceil(PANEL) * pairs];
    lines
        .par_chunks_mut(pairs.max(1))
        .enumerate()
        .for_each(|(p, panel)| {
            for (column, row) in (p * PANEL..n.min((p + 1) * PANEL)).enumerate() {
                let weights = &weight[row * k..(row + 1) * k];
                for (line, pair) in panel.iter_mut().zip(weights.chunks(2)) {
                    let low = u32::from(pair[0].bf16().to_bits());
                    let high = pair.get(1).map_or(0, |w| u32::from(w.bf16().to_bits()));
                    line.0[column] = low | high << 16;
                }
            }
        });
    lines
}

/// Copies row `row` of a weight packed by [`pack_f32`], `[k]`.
pub fn unpack_f32(lines: &[Line], row: usize, to: &mut [f32]) {
    let (panel, column) = (row / PANEL * to.len(), row % PANEL);
    for (to, line) in to.iter_mut().zip(&lines[panel..]) {
        *to = line.0[column];
    }
}

/// Copies row `row` of a weight packed by [`pack_bf16`], `[k]`, widened.
pub fn unpack_bf16(lines: &[PairLine], row: usize, to: &mut [f32]) {
    let (panel, column) = (row / PANEL * (padded(to.len()) / 2), row % PANEL);
    for (to, line) in to.chunks_mut(2).zip(&lines[panel..]) {
        let pair = line.0[column];
        for (to, bits) in to.iter_mut().zip([pair << 16, pair & 0xffff_0000]) {
            *to = f32::from_bits(bits);
        }
    }
}

/// Returns `k` rounded up to [`DEPTH_STEP`].
pub fn padded(k: usize) -> usize {
    k.next_multiple_of(DEPTH_STEP)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panels_hold_every_weight_once_and_zeros_elsewhere() {
        let (n, k) = (19, 35);
        let weight: Vec<f32> = (0..n * k).map(|i| i as f32 + 1.0).collect();
        let lines = pack_f32(&weight, n, k);
        let pairs = pack_bf16(&weight, n, k);
        assert_eq!((lines.len(), pairs.len()), (2 * k, 2 * 64 / 2));
        for column in 0..32 {
            for l in 0..64 {
                let want = if column < n && l < k {
                    weight[column * k + l]
                } else {
                    0.0
                };
                if l < k {
                    assert_eq!(lines[column / 16 * k + l].0[column % 16], want);
                }
                let pair = pairs[column / 16 * 32 + l / 2].0[column % 16];
                let half = if l % 2 == 0 {
                    pair << 16
                } else {
                    pair & 0xffff_0000
                };
                assert_eq!(f32::from_bits(half), bf16::from_f32(want).to_f32());
            }
        }
    }
}
