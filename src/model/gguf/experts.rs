//! The matrices of experts, which a GGUF file stacks in one tensor of each kind and block.

use super::TensorPlace;
use crate::{Architecture, ExpertsSpec};

/// The maximum number of matrices of experts in a file.
pub(super) const MAX_MATRICES: usize = 3 << 16;

/// Stacks of a block: llama.cpp's name, and the name of each matrix in its expert.
const STACKS: [(&str, &str); 3] = [
    ("ffn_gate_exps", "gate_proj"),
    ("ffn_up_exps", "up_proj"),
    ("ffn_down_exps", "down_proj"),
];

/// A stack of one matrix of each expert.
pub(super) struct Stack<'a> {
    layer: usize,
    own: &'static str,
    place: &'a TensorPlace,
}

impl<'a> Stack<'a> {
    /// Returns the stack that a tensor is, if it is one.
    pub fn of(architecture: Architecture, name: &str, place: &'a TensorPlace) -> Option<Self> {
        let within = name.strip_prefix("blk.")?.strip_suffix(".weight")?;
        let (layer, theirs) = within.split_once('.')?;
        let layer = layer.parse().ok()?;
        let (_, own) = STACKS.iter().find(|(name, _)| *name == theirs)?;
        let fits = architecture == Architecture::Qwen3Moe && place.shape.len() == 3;
        fits.then_some(Self { layer, own, place })
    }

    /// Returns the number of experts.
    pub fn len(&self) -> usize {
        self.place.shape[0]
    }

    /// Returns each expert's matrix by its name in a checkpoint.
    pub fn matrices(&self) -> impl Iterator<Item = (String, TensorPlace)> + '_ {
        let TensorPlace {
            format,
            shape,
            bytes,
        } = self.place;
        let size = bytes.len() / self.len();
        (0..self.len()).map(move |expert| {
            let start = bytes.start + expert * size;
            let place = TensorPlace {
                format: *format,
                shape: shape[1..].to_vec(),
                bytes: start..start + size,
            };
            let (layer, own) = (self.layer, self.own);
            let name = format!(
                "model.layers.{layer}.{}.weight",
                ExpertsSpec::expert(expert, own)
            );
            (name, place)
        })
    }
}
