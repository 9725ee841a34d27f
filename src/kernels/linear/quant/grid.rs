//! Groups of integers, and the rounding of weights to them.

use candle_core::Result;
use half::f16;

/// The number of weights along the depth that share a scale.
pub const GROUP: usize = 32;

/// The width of the integers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bits {
    Four,
    Eight,
}

/// The numbers that a weight can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grid {
    pub bits: Bits,
    /// Whether groups have an offset; without one they are symmetric.
    pub offsets: bool,
}

/// The weights of one output in one group.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Group {
    pub scale: f16,
    /// Added to every weight; not used without offsets.
    pub offset: f16,
    /// The integers, from 0; without offsets half of their range stands for 0.
    pub values: [u8; GROUP],
}

impl Grid {
    /// Returns the grid of weights that are rounded here: without offsets.
    pub const fn symmetric(bits: Bits) -> Self {
        Self {
            bits,
            offsets: false,
        }
    }

    /// Returns the integer that stands for 0.
    pub(super) const fn zero(self) -> i32 {
        match (self.offsets, self.bits) {
            (true, _) => 0,
            (false, Bits::Four) => 8,
            (false, Bits::Eight) => 128,
        }
    }

    /// Returns the bytes of a row of `k` weights.
    pub fn row_bytes(self, k: u64) -> u64 {
        let weights = match self.bits {
            Bits::Four => GROUP as u64 / 2,
            Bits::Eight => GROUP as u64,
        };
        let scales = if self.offsets { 4 } else { 2 };
        k.div_ceil(GROUP as u64).saturating_mul(weights + scales)
    }

    /// Returns the weights of a group.
    pub(super) fn values(self, group: &Group) -> [f32; GROUP] {
        let (scale, zero) = (group.scale.to_f32(), self.zero());
        let offset = match self.offsets {
            true => group.offset.to_f32(),
            false => 0.0,
        };
        group
            .values
            .map(|u| scale * (i32::from(u) - zero) as f32 + offset)
    }
}

impl Bits {
    /// Returns the largest integer.
    pub(super) const fn most(self) -> u8 {
        match self {
            Self::Four => 15,
            Self::Eight => 255,
        }
    }
}

impl Group {
    /// A group of zeros in every grid.
    pub(super) fn zeros() -> Self {
        Self {
            scale: f16::ZERO,
            offset: f16::ZERO,
            values: [0; GROUP],
        }
    }

    /// Rounds up to [`GROUP`] weights to the symmetric grid of this width; the rest becomes 0.
    ///
    /// # Errors
    /// Errors if a weight is not finite or too large for a scale of 16 bits.
    pub fn round(weights: &[f32], bits: Bits) -> Result<Self> {
        let largest = weights
            .iter()
            .copied()
            .fold(0f32, |all, w| if w.abs() > all.abs() { w } else { all });
        let scale = match bits {
            Bits::Eight => rounded(largest.abs() / 127.0),
            Bits::Four => best_of_four_bits(weights, largest),
        };
        if !scale.is_finite() || weights.iter().any(|w| !w.is_finite()) {
            candle_core::bail!("linear: the weight {largest} cannot be quantised");
        }
        let zero = Grid::symmetric(bits).zero();
        let mut values = [zero as u8; GROUP];
        let factor = inverse(scale);
        for (value, w) in values.iter_mut().zip(weights) {
            *value = nearest(*w, factor, zero, bits);
        }
        Ok(Self {
            scale,
            offset: f16::ZERO,
            values,
        })
    }
}

/// Returns the scale with the least squared error. The candidates put the largest magnitude at or beyond the end of the range, whose
/// negative side has one integer more.
fn best_of_four_bits(weights: &[f32], largest: f32) -> f16 {
    const ENDS: [f32; 9] = [-8.0, -8.4, -8.8, -7.6, -7.2, 7.0, 7.4, -9.2, 7.8];
    let error = |scale: f16| {
        let (factor, wide) = (inverse(scale), scale.to_f32());
        let square = |w: &f32| {
            let u = nearest(*w, factor, 8, Bits::Four);
            let difference = wide * (i32::from(u) - 8) as f32 - w;
            difference * difference
        };
        weights.iter().map(square).sum::<f32>()
    };
    let mut best = (f32::INFINITY, rounded(largest / ENDS[0]));
    for end in ENDS {
        let scale = rounded(largest / end);
        let error = error(scale);
        if error < best.0 {
            best = (error, scale);
        }
    }
    best.1
}

/// Returns a scale in 16 bits; not 0 unless it is given 0.
fn rounded(scale: f32) -> f16 {
    let narrow = f16::from_f32(scale);
    match narrow == f16::ZERO && scale != 0.0 {
        true => f16::MIN_POSITIVE_SUBNORMAL.copysign(narrow),
        false => narrow,
    }
}

fn inverse(scale: f16) -> f32 {
    match scale == f16::ZERO {
        true => 0.0,
        false => 1.0 / scale.to_f32(),
    }
}

fn nearest(w: f32, factor: f32, zero: i32, bits: Bits) -> u8 {
    let u = (w * factor).round_ties_even() + zero as f32;
    u.clamp(0.0, f32::from(bits.most())) as u8
}
