//! The types of tensors in GGUF files, with the sizes of their blocks.

use candle_core::quantized::GgmlDType;

/// How the numbers of a tensor are stored: in blocks of a fixed number of values and bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockFormat {
    /// The name in GGUF files: `F32`, `Q4_K`, ...
    pub name: &'static str,
    /// The number of values of a block, which lie side by side in a row of the tensor.
    pub values: usize,
    /// The number of bytes of a block.
    pub bytes: usize,
    /// candle's name of the format.
    pub dtype: GgmlDType,
}

const fn format(
    name: &'static str,
    values: usize,
    bytes: usize,
    dtype: GgmlDType,
) -> Option<BlockFormat> {
    Some(BlockFormat {
        name,
        values,
        bytes,
        dtype,
    })
}

/// The names of types that are not supported, by their number in the file.
const OTHERS: [(u32, &str); 24] = [
    (9, "Q8_1"),
    (10, "Q2_K"),
    (11, "Q3_K"),
    (15, "Q8_K"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (20, "IQ4_NL"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (23, "IQ4_XS"),
    (24, "I8"),
    (25, "I16"),
    (26, "I32"),
    (27, "I64"),
    (28, "F64"),
    (29, "IQ1_M"),
    (31, "Q4_0_4_4"),
    (32, "Q4_0_4_8"),
    (33, "Q4_0_8_8"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (39, "MXFP4"),
];

/// The names of all supported types, for messages.
const SUPPORTED: &str = "F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q4_K, Q5_K and Q6_K";

impl BlockFormat {
    /// Returns the type with this number.
    ///
    /// # Errors
    /// Errors with the name of a type that is not supported.
    pub(super) fn of(id: u32) -> Result<Self, String> {
        let known = match id {
            0 => format("F32", 1, 4, GgmlDType::F32),
            1 => format("F16", 1, 2, GgmlDType::F16),
            2 => format("Q4_0", 32, 18, GgmlDType::Q4_0),
            3 => format("Q4_1", 32, 20, GgmlDType::Q4_1),
            6 => format("Q5_0", 32, 22, GgmlDType::Q5_0),
            7 => format("Q5_1", 32, 24, GgmlDType::Q5_1),
            8 => format("Q8_0", 32, 34, GgmlDType::Q8_0),
            12 => format("Q4_K", 256, 144, GgmlDType::Q4K),
            13 => format("Q5_K", 256, 176, GgmlDType::Q5K),
            14 => format("Q6_K", 256, 210, GgmlDType::Q6K),
            30 => format("BF16", 1, 2, GgmlDType::BF16),
            _ => None,
        };
        known.ok_or_else(|| {
            let name = OTHERS.iter().find(|(other, _)| *other == id);
            let name = name.map_or_else(|| format!("of type {id}"), |(_, name)| (*name).to_owned());
            format!("it is {name}, which is not supported; supported are {SUPPORTED}")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_those_of_candles_blocks() {
        for id in 0..64 {
            if let Ok(format) = BlockFormat::of(id) {
                let dtype = format.dtype;
                assert_eq!(format.bytes, dtype.type_size(), "{}", format.name);
                assert_eq!(format.values, dtype.block_size(), "{}", format.name);
                assert!(SUPPORTED.contains(format.name));
            }
        }
        let error = BlockFormat::of(23).unwrap_err();
        assert!(error.contains("IQ4_XS"), "{error}");
        let error = BlockFormat::of(999).unwrap_err();
        assert!(error.contains("type 999"), "{error}");
    }
}
