//! In which format a weight is kept in memory, and the policy that says so.

use candle_core::DType;

/// How a packed weight is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightFormat {
    /// Full precision.
    F32,
    /// Half the bytes. Processors that multiply bf16 round the activations too (and accumulate in f32); on the others
    /// the weights are widened as they are read, and every product is exact as in f32.
    Bf16,
}

impl WeightFormat {
    /// The numbers it is made of.
    pub fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::Bf16 => DType::BF16,
        }
    }
}

/// The format for a weight that a checkpoint stores as `stored`, unless somebody `asked` for one.
///
/// bf16 checkpoints stay bf16 on every processor. Where bf16 is not multiplied this changes no bit of the result (a
/// bf16 is exactly an f32) and halves what a decode step reads; where it is, it is also the far faster arithmetic, at
/// the price of rounding activations to bf16. Ask for f32 to compare with a reference. Checkpoints in f32 or f16 hold
/// more bits than bf16 has and become f32.
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
