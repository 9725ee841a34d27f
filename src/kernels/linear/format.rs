//! The in-memory formats of a weight, and the policy that chooses one.

use std::str::FromStr;

use candle_core::DType;

/// The storage format of a packed weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightFormat {
    /// Full precision.
    F32,
    /// Half the bytes of f32. Processors that multiply bf16 round the activations too (and accumulate in f32); on
    /// others the weights are widened as they are read, and every product is exact as in f32.
    Bf16,
}

impl WeightFormat {
    /// Returns the dtype of its numbers.
    pub fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::Bf16 => DType::BF16,
        }
    }
}

impl FromStr for WeightFormat {
    type Err = String;

    /// Parses `f32` or `bf16`.
    fn from_str(value: &str) -> Result<Self, String> {
        match value {
            "f32" => Ok(Self::F32),
            "bf16" => Ok(Self::Bf16),
            _ => Err(format!("unknown dtype `{value}`; use f32 or bf16")),
        }
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
