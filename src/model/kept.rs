//! How the matrices of a checkpoint are kept in memory for serving on the CPU.

use candle_core::{DType, Device, Tensor};

use super::{Checkpoint, ExpertsSpec, ModelError};
use kernels::linear::{Grid, PackedLinear, WeightFormat, choose};

/// The names of the embedding and the head, whose rounding costs more than that of other matrices.
pub(crate) const EMBEDDING: &str = "model.embed_tokens.weight";
pub(crate) const HEAD: &str = "lm_head.weight";

/// How a matrix is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    /// Packed in this format from its numbers.
    In(WeightFormat),
    /// With the integers that its file has.
    AsStored(Grid),
}

impl Kept {
    /// Returns how this matrix is kept if all are asked for in the format `asked`. Without it a matrix keeps the form that the checkpoint
    /// has, or the nearest one: bf16 stays bf16, f16 and f32 become f32, and blocks of a GGUF file stay their integers, or become int8 if
    /// groups of 32 do not hold them. Integers of the width that is asked for are kept, too. The embedding and the head of a model in int4 are
    /// int8; a router is f32.
    pub fn of(checkpoint: &Checkpoint, name: &str, asked: Option<WeightFormat>) -> Self {
        if name
            .strip_suffix(".weight")
            .is_some_and(ExpertsSpec::is_router)
        {
            return Self::In(WeightFormat::F32);
        }
        let stored = checkpoint.dtype(name).unwrap_or(DType::F32);
        let asked = match asked {
            Some(WeightFormat::Int4) if [EMBEDDING, HEAD].contains(&name) => {
                Some(WeightFormat::Int8)
            }
            asked => asked,
        };
        let blocks = checkpoint.blocks(name);
        match (asked, blocks.and_then(|blocks| blocks.grid())) {
            (None, Some(grid)) => Self::AsStored(grid),
            (None, None) if blocks.is_some() => Self::In(WeightFormat::Int8),
            (Some(format), Some(own))
                if format.grid().is_some_and(|grid| grid.bits == own.bits) =>
            {
                Self::AsStored(own)
            }
            _ => Self::In(choose(stored, asked)),
        }
    }

    /// Returns whether its numbers are integers with scales.
    pub fn quantised(self) -> bool {
        match self {
            Self::In(format) => format.grid().is_some(),
            Self::AsStored(_) => true,
        }
    }

    /// Returns the dtype that goes with it; see [`WeightFormat::dtype`].
    pub fn dtype(self) -> DType {
        match self {
            Self::In(format) => format.dtype(),
            Self::AsStored(_) => WeightFormat::Int8.dtype(),
        }
    }

    /// Returns the bytes of a matrix `[n, k]` under a trained adapter: its integers, or f32.
    pub fn frozen_bytes(self, n: u64, k: u64) -> u64 {
        match self.quantised() {
            true => self.bytes(n, k),
            false => WeightFormat::F32.bytes(n, k),
        }
    }

    /// Returns the bytes of a matrix `[n, k]`.
    pub fn bytes(self, n: u64, k: u64) -> u64 {
        match self {
            Self::In(format) => format.bytes(n, k),
            Self::AsStored(grid) => n.saturating_mul(grid.row_bytes(k)),
        }
    }
}

impl Kept {
    /// Packs a matrix of this shape, with a bias, for the CPU.
    ///
    /// # Errors
    /// Errors as [`Checkpoint::tensor`]; also if a weight is too large for a scale of 16 bits.
    pub fn pack(
        self,
        checkpoint: &Checkpoint,
        name: &str,
        shape: [usize; 2],
        bias: Option<&Tensor>,
    ) -> Result<PackedLinear, ModelError> {
        let format = match self {
            Self::AsStored(grid) => return pack_stored(checkpoint, name, shape, grid, bias),
            Self::In(format) => format,
        };
        // Packing widens f16 and bf16 itself, and quantises any of them; bf16 is read where it takes fewer bytes.
        let dtype = match (checkpoint.dtype(name), format) {
            (Some(DType::F32) | None, WeightFormat::Bf16) => DType::BF16,
            (stored, _) => stored.unwrap_or(DType::F32),
        };
        let weight = checkpoint.tensor(name, shape.to_vec(), dtype, &Device::Cpu)?;
        PackedLinear::from_tensor(&weight, bias, format)
            .map_err(|error| ModelError::Input(format!("tensor `{name}`: {error}")))
    }
}

/// Packs the blocks of a quantised matrix without rounding them again.
///
/// # Errors
/// Errors if the tensor is missing, has another shape or a scale that is not finite.
fn pack_stored(
    checkpoint: &Checkpoint,
    name: &str,
    shape: [usize; 2],
    grid: Grid,
    bias: Option<&Tensor>,
) -> Result<PackedLinear, ModelError> {
    let matrix = checkpoint.quantized(name, shape)?;
    let bias = bias
        .map(|bias| bias.to_dtype(DType::F32)?.to_vec1::<f32>())
        .transpose()?;
    let [out, width] = shape;
    let row = width / matrix.format.values * matrix.format.bytes;
    let packed = PackedLinear::of_groups((out, width), grid, bias.as_deref(), |at, to| {
        let start = matrix.order.source(at, out) * row;
        matrix
            .format
            .read_groups(&matrix.blocks[start..start + row], to);
        if to
            .iter()
            .any(|group| !group.scale.is_finite() || !group.offset.is_finite())
        {
            candle_core::bail!("tensor `{name}` has a scale that is not finite, in row {at}");
        }
        Ok(())
    });
    checkpoint.release(name);
    Ok(packed?)
}
