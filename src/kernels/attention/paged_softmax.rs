//! The softmax of paged attention, computed online (Milakov and Gimelshein 2018): over the chunks of one split of the keys, and over splits.

use crate::micro::PANEL;
use crate::simd::{Simd, exp};

/// The softmax of some rows before normalisation: `o / l` is the result, `m` the largest score so far.
pub struct Partial<'a> {
    pub m: &'a mut [f32],
    pub l: &'a mut [f32],
    /// The weighted sum of values, `[rows, padded head_dim]`.
    pub o: &'a mut [f32],
}

impl<'a> Partial<'a> {
    pub fn len(rows: usize, width: usize) -> usize {
        rows * (width + 2)
    }

    pub fn new(memory: &'a mut [f32], rows: usize) -> Self {
        let (m, rest) = memory.split_at_mut(rows);
        let (l, o) = rest.split_at_mut(rows);
        Self { m, l, o }
    }

    pub fn reset(&mut self) {
        self.m.fill(f32::NEG_INFINITY);
        self.l.fill(0.0);
        self.o.fill(0.0);
    }

    /// Adds the partial softmax of later keys.
    pub fn fold(&mut self, m: &[f32], l: &[f32], o: &[f32]) {
        let width = o.len() / m.len();
        for (r, (o, part)) in self
            .o
            .chunks_exact_mut(width)
            .zip(o.chunks_exact(width))
            .enumerate()
        {
            if l[r] == 0.0 {
                continue;
            }
            if self.l[r] == 0.0 {
                (self.m[r], self.l[r]) = (m[r], l[r]);
                o.copy_from_slice(part);
                continue;
            }
            let largest = self.m[r].max(m[r]);
            let (mine, theirs) = ((self.m[r] - largest).exp(), (m[r] - largest).exp());
            self.m[r] = largest;
            self.l[r] = self.l[r] * mine + l[r] * theirs;
            for (o, part) in o.iter_mut().zip(part) {
                *o = *o * mine + part * theirs;
            }
        }
    }
}

/// Turns a row of scores into weights and rescales the row's maximum, sum and output to the new maximum. Scores outside
/// `seen` get weight 0.
///
/// # Safety
/// `scores` and `o` have whole panels of [`PANEL`] each, and the processor has `S`.
#[inline(always)]
pub unsafe fn softmax_row<S: Simd>(
    scores: &mut [f32],
    seen: (usize, usize),
    m: &mut f32,
    l: &mut f32,
    o: &mut [f32],
) {
    if seen.0 >= seen.1 {
        return scores.fill(0.0);
    }
    scores[..seen.0].fill(f32::NEG_INFINITY);
    scores[seen.1..].fill(f32::NEG_INFINITY);
    // SAFETY: scores and o are whole panels, so whole vectors; the caller promises S.
    unsafe {
        let mut largest = S::splat(f32::NEG_INFINITY);
        for i in (0..scores.len()).step_by(S::LANES) {
            largest = largest.max(S::load(scores.as_ptr().add(i)));
        }
        let largest = m.max(largest.reduce_max());
        let mut sum = S::splat(0.0);
        for i in (0..scores.len()).step_by(S::LANES) {
            let at = scores.as_mut_ptr().add(i);
            let weight = exp(S::load(at).sub(S::splat(largest)));
            weight.store(at);
            sum = sum.add(weight);
        }
        if *m == largest {
            *l += sum.reduce_sum();
            return;
        }
        let mut lanes = [0f32; PANEL];
        exp(S::splat(*m - largest)).store(lanes.as_mut_ptr());
        let correction = lanes[0];
        *m = largest;
        *l = *l * correction + sum.reduce_sum();
        for i in (0..o.len()).step_by(S::LANES) {
            let at = o.as_mut_ptr().add(i);
            S::load(at).mul(S::splat(correction)).store(at);
        }
    }
}
