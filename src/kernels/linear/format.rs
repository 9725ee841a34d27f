//! The in-memory formats of a weight, and the policy that chooses one.

use std::str::FromStr;

use candle_core::DType;

use super::quant::{Bits, Grid};

/// The storage format of a packed weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightFormat {
    /// Full precision.
    F32,
    /// Half the bytes of f32. Processors that multiply bf16 round the activations too (and accumulate in f32); on
    /// others the weights are widened as they are read, and every product is exact as in f32.
    Bf16,
    /// Integers of eight bits with a scale for each 32 of an output, 8.5 bits a weight. Activations are rounded in the same way.
    Int8,
    /// Integers of four bits, 4.5 bits a weight; otherwise as [`WeightFormat::Int8`].
    Int4,
}

impl WeightFormat {
    /// Returns the dtype that goes with it: of its own numbers, or for integers bf16, the dtype nearest to them.
    pub fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::Bf16 | Self::Int8 | Self::Int4 => DType::BF16,
        }
    }

    /// Returns the grid of a quantised format.
    pub fn grid(self) -> Option<Grid> {
        match self {
            Self::F32 | Self::Bf16 => None,
            Self::Int8 => Some(Grid::symmetric(Bits::Eight)),
            Self::Int4 => Some(Grid::symmetric(Bits::Four)),
        }
    }

    /// Returns the bytes of a packed weight `[n, k]`, without what panels add to fill their last lines.
    pub fn bytes(self, n: u64, k: u64) -> u64 {
        let of = |row: u64| n.saturating_mul(row);
        match (self, self.grid()) {
            (_, Some(grid)) => of(grid.row_bytes(k)),
            (Self::F32, None) => of(k.saturating_mul(4)),
            (_, None) => of(k.saturating_mul(2)),
        }
    }

    /// Returns the name that [`WeightFormat::from_str`] reads.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::Int8 => "int8",
            Self::Int4 => "int4",
        }
    }
}

impl std::fmt::Display for WeightFormat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for WeightFormat {
    type Err = String;

    /// Parses a name.
    fn from_str(value: &str) -> Result<Self, String> {
        [Self::F32, Self::Bf16, Self::Int8, Self::Int4]
            .into_iter()
            .find(|format| format.name() == value)
            .ok_or_else(|| {
                format!("unknown type of weights `{value}`; use f32, bf16, int8 or int4")
            })
    }
}

/// Returns the format for a weight that a checkpoint stores as `stored`; `asked` overrides the policy.
///
/// bf16 checkpoints stay bf16 on every processor. On processors without bf16 products this changes no bit of the result
/// (every bf16 is exactly an f32) and halves the bytes read in a decode step; on processors with them it is also far
/// faster, at the price of rounding activations to bf16. Choose f32 to compare with a reference. Checkpoints in f32 or
/// f16 have more precision than bf16 and become f32.
pub fn choose(stored: DType, asked: Option<WeightFormat>) -> WeightFormat {
    asked.unwrap_or(match stored {
        DType::BF16 => WeightFormat::Bf16,
        _ => WeightFormat::F32,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bf16_stays_and_wishes_win() {
        assert_eq!(choose(DType::BF16, None), WeightFormat::Bf16);
        assert_eq!(choose(DType::F32, None), WeightFormat::F32);
        assert_eq!(choose(DType::F16, None), WeightFormat::F32);
        let asked = Some(WeightFormat::F32);
        assert_eq!(choose(DType::BF16, asked), WeightFormat::F32);
    }
}
