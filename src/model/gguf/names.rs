//! The tensors of a GGUF file under the names, and in the order of rows, of a checkpoint in Hugging Face layout.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{DType, quantized::GgmlDType};

use super::experts::{MAX_MATRICES, Stack};
use super::{BlockFormat, GgufFile, TensorPlace};
use crate::arch::described;
use crate::error::ModelError;
use crate::stored::{Format, RowOrder, Shard, Stored};
use crate::{Architecture, ExpertsSpec};

/// The factors by which the rotary frequencies are divided; they are part of the configuration (see `rope`).
pub(super) const ROPE_FACTORS: &str = "rope_freqs.weight";
/// The divisors of LongRoPE's frequencies, for short and for long sequences; also part of the configuration.
pub(super) const LONGROPE_FACTORS: [&str; 2] =
    ["rope_factors_short.weight", "rope_factors_long.weight"];

/// The supported architectures, by `general.architecture`. Mistral's models are `llama` there.
const ARCHITECTURES: [(&str, Architecture); 11] = [
    ("gemma", Architecture::Gemma),
    ("gemma2", Architecture::Gemma2),
    ("gemma3", Architecture::Gemma3),
    ("granite", Architecture::Granite),
    ("llama", Architecture::Llama),
    ("olmo2", Architecture::Olmo2),
    ("phi3", Architecture::Phi3),
    ("qwen2", Architecture::Qwen2),
    ("qwen3", Architecture::Qwen3),
    ("qwen3moe", Architecture::Qwen3Moe),
    ("smollm3", Architecture::SmolLm3),
];

/// Parts of a block: llama.cpp's name and the checkpoint's.
const PARTS: [(&str, &str); 10] = [
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
];

/// Returns the checkpoint's name of a part of a block, if it has one.
fn part(architecture: Architecture, theirs: &str) -> Option<&'static str> {
    let norms = architecture.norms().names();
    match (theirs, architecture) {
        ("ffn_norm", _) => norms.before_mlp,
        ("post_attention_norm", _) => norms.after_attention,
        ("post_ffw_norm", _) => norms.after_mlp,
        ("attn_qkv", Architecture::Phi3) => Some("self_attn.qkv_proj"),
        ("ffn_gate_inp", Architecture::Qwen3Moe) => Some(ExpertsSpec::ROUTER),
        ("ffn_up", Architecture::Phi3) => Some("mlp.gate_up_proj"),
        _ => {
            let known = PARTS.iter().find(|(name, _)| *name == theirs);
            known.map(|(_, own)| *own)
        }
    }
}

/// Returns whether llama.cpp rotates neighbouring components of this architecture, rather than halves of a head.
fn is_paired(architecture: Architecture) -> bool {
    matches!(
        architecture,
        Architecture::Llama | Architecture::SmolLm3 | Architecture::Granite
    )
}

impl GgufFile {
    /// Returns the architecture, and its name in the file, with which its keys begin.
    ///
    /// # Errors
    /// Errors with [`ModelError::UnsupportedArchitecture`].
    pub(super) fn architecture(&self) -> Result<(Architecture, &str), ModelError> {
        let found = self.text("general.architecture")?;
        let found =
            found.ok_or_else(|| self.error("metadata `general.architecture` is missing"))?;
        let known = ARCHITECTURES.iter().find(|(name, _)| *name == found);
        known
            .map(|(_, known)| (*known, found))
            .ok_or_else(|| ModelError::UnsupportedArchitecture {
                found: format!("{} ({})", described(found), self.path.display()),
                supported: ARCHITECTURES.map(|(name, _)| name).join(", "),
            })
    }

    /// Returns the number of heads of queries, and of keys and values.
    pub(super) fn heads(&self, architecture: &str) -> Result<(u64, u64), ModelError> {
        let key = format!("{architecture}.attention.head_count");
        let heads = self.count(&key)?.filter(|&heads| heads > 0);
        let heads = heads.ok_or_else(|| self.error(format!("metadata `{key}` is missing or 0")))?;
        let key = format!("{key}_kv");
        match self.count(&key)? {
            Some(0) => Err(self.error(format!("metadata `{key}` is 0"))),
            kv_heads => Ok((heads, kv_heads.unwrap_or(heads))),
        }
    }
}

/// Returns the checkpoint's name of a tensor, if it has one.
fn checkpoint_name(architecture: Architecture, name: &str) -> Option<String> {
    match name {
        "token_embd.weight" => return Some("model.embed_tokens.weight".to_owned()),
        "output_norm.weight" => return Some("model.norm.weight".to_owned()),
        "output.weight" => return Some("lm_head.weight".to_owned()),
        _ => {}
    }
    let (layer, within) = name.strip_prefix("blk.")?.split_once('.')?;
    let (theirs, kind) = within.rsplit_once('.')?;
    let layer: usize = layer.parse().ok()?;
    let own = part(architecture, theirs)?;
    matches!(kind, "weight" | "bias").then(|| format!("model.layers.{layer}.{own}.{kind}"))
}

/// Returns the tensors of a file. One without a name in a checkpoint keeps its own, so that the decoder, which does not use it, refuses it.
///
/// # Errors
/// Errors with [`ModelError::UnsupportedArchitecture`], if there are too many experts, or if the rows of a tensor cannot be those of the
/// model's heads.
pub(crate) fn stored_tensors(file: GgufFile) -> Result<BTreeMap<String, Stored>, ModelError> {
    let (architecture, prefix) = file.architecture()?;
    let paired = is_paired(architecture);
    let (heads, kv_heads) = file.heads(prefix)?;
    let mut orders = BTreeMap::new();
    for (name, place) in &file.tensors {
        let part = name.rsplit('.').nth(1).unwrap_or_default();
        let heads = match part {
            "attn_q" if paired => heads,
            "attn_k" if paired => kv_heads,
            _ => {
                orders.insert(name.clone(), RowOrder::Plain);
                continue;
            }
        };
        let rows = place.shape.first().copied().unwrap_or_default();
        let heads = usize::try_from(heads)
            .ok()
            .filter(|&heads| rows % heads == 0);
        match heads {
            Some(heads) if (rows / heads).is_multiple_of(2) => {
                orders.insert(name.clone(), RowOrder::Paired { heads });
            }
            _ => {
                return Err(file.error(format!(
                    "tensor `{name}` of shape {:?} is not one of heads of pairs",
                    place.shape
                )));
            }
        }
    }
    let stacks = file.tensors.iter();
    let stacks = stacks.filter_map(|(name, place)| Stack::of(architecture, name, place));
    let matrices = stacks.fold(0, |sum: usize, stack| sum.saturating_add(stack.len()));
    if matrices > MAX_MATRICES {
        return Err(file.error(format!(
            "the experts have {matrices} matrices; the limit is {MAX_MATRICES}"
        )));
    }
    let GgufFile {
        path, map, tensors, ..
    } = file;
    let shard = Arc::new(Shard { path, map });
    let mut stored = BTreeMap::new();
    for (name, place) in tensors {
        if name == ROPE_FACTORS || LONGROPE_FACTORS.contains(&name.as_str()) {
            continue;
        }
        if let Some(stack) = Stack::of(architecture, &name, &place) {
            for (own, place) in stack.matrices() {
                let (format, order) = (plain(place.format), RowOrder::Plain);
                let matrix = Stored::new(&shard, format, place.shape, place.bytes, order);
                stored.insert(own, matrix);
            }
            continue;
        }
        let order = orders[&name];
        let TensorPlace {
            format,
            shape,
            bytes,
        } = place;
        let own = checkpoint_name(architecture, &name).unwrap_or(name);
        let mut tensor = Stored::new(&shard, plain(format), shape, bytes, order);
        if architecture.is_gemma() && own.ends_with("norm.weight") {
            // Files have the factor, checkpoints its difference from 1.
            tensor.shift = 1.0;
        }
        stored.insert(own, tensor);
    }
    Ok(stored)
}

fn plain(format: BlockFormat) -> Format {
    match format.dtype {
        GgmlDType::F32 => Format::Plain(DType::F32),
        GgmlDType::F16 => Format::Plain(DType::F16),
        GgmlDType::BF16 => Format::Plain(DType::BF16),
        _ => Format::Blocks(format),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_a_checkpoint() {
        for (theirs, own) in [
            ("token_embd.weight", Some("model.embed_tokens.weight")),
            ("output.weight", Some("lm_head.weight")),
            (
                "blk.12.attn_q.bias",
                Some("model.layers.12.self_attn.q_proj.bias"),
            ),
            (
                "blk.0.ffn_norm.weight",
                Some("model.layers.0.post_attention_layernorm.weight"),
            ),
            ("blk.0.ffn_gate_exps.weight", None),
            ("blk.x.ffn_norm.weight", None),
            ("blk.0.attn_q.scale", None),
            ("rope_freqs.weight", None),
            ("blk.0.post_ffw_norm.weight", None),
        ] {
            let name = checkpoint_name(Architecture::Llama, theirs);
            assert_eq!(name.as_deref(), own, "{theirs}");
        }
        for (architecture, theirs, own) in [
            (
                Architecture::Olmo2,
                "post_attention_norm",
                Some("post_attention_layernorm"),
            ),
            (
                Architecture::Olmo2,
                "post_ffw_norm",
                Some("post_feedforward_layernorm"),
            ),
            (Architecture::Olmo2, "ffn_norm", None),
            (
                Architecture::Gemma2,
                "post_attention_norm",
                Some("post_attention_layernorm"),
            ),
            (
                Architecture::Gemma2,
                "ffn_norm",
                Some("pre_feedforward_layernorm"),
            ),
            (
                Architecture::Gemma,
                "ffn_norm",
                Some("post_attention_layernorm"),
            ),
            (Architecture::Phi3, "attn_qkv", Some("self_attn.qkv_proj")),
            (Architecture::Phi3, "ffn_up", Some("mlp.gate_up_proj")),
            (Architecture::Llama, "attn_qkv", None),
        ] {
            assert_eq!(part(architecture, theirs), own, "{architecture:?} {theirs}");
        }
    }
}
