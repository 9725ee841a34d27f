//! The configuration of a model, from the metadata of its GGUF file: the fields of a `config.json` and of a `generation_config.json`.

use serde_json::{Map, Value, json};

use super::GgufFile;
use super::families;
use super::names::ROPE_FACTORS;
use super::rope;
use crate::Architecture;
use crate::error::ModelError;

/// Keys of an architecture that are read here, or that describe the file without a part in the computation.
const KNOWN: [&str; 24] = [
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.layer_norm_rms_epsilon",
    "attention.value_length",
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scale_linear",
    "rope.scaling.attn_factor",
    "rope.scaling.factor",
    "rope.scaling.finetuned",
    "rope.scaling.original_context_length",
    "rope.scaling.type",
    "rope.scaling.yarn_attn_factor",
    "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow",
    "rope.scaling.yarn_ext_factor",
    "rope.scaling.yarn_log_multiplier",
    "tensor_data_layout",
    "vocab_size",
];

/// Keys whose feature is absent at this value; at every other one the model is refused.
const NEUTRAL: [(&str, f64); 4] = [
    ("expert_count", 0.0),
    ("expert_used_count", 0.0),
    ("rope.scaling.attn_factor", 1.0),
    ("rope.scaling.yarn_attn_factor", 1.0),
];

/// The keys of one architecture.
pub(super) struct Keys<'a> {
    pub file: &'a GgufFile,
    pub prefix: &'a str,
}

impl Keys<'_> {
    pub fn name(&self, key: &str) -> String {
        format!("{}.{key}", self.prefix)
    }

    pub fn count(&self, key: &str) -> Result<Option<u64>, ModelError> {
        self.file.count(&self.name(key))
    }

    pub fn number(&self, key: &str) -> Result<Option<f64>, ModelError> {
        self.file.number(&self.name(key))
    }

    pub fn refuse(&self, key: &str, why: impl std::fmt::Display) -> ModelError {
        let name = self.name(key);
        self.file.error(format!("metadata `{name}` {why}"))
    }

    pub fn required(&self, key: &str) -> Result<u64, ModelError> {
        self.count(key)?
            .ok_or_else(|| self.refuse(key, "is missing"))
    }

    /// Errors if a key describes a feature that the decoder does not have; `own` are keys of this architecture.
    fn refuse_unknown(&self, own: &[&str]) -> Result<(), ModelError> {
        for key in self.file.keys() {
            let Some(key) = key.strip_prefix(self.prefix) else {
                continue;
            };
            let Some(key) = key.strip_prefix('.') else {
                continue;
            };
            if own.contains(&key) {
                continue;
            }
            if let Some((_, neutral)) = NEUTRAL.iter().find(|(name, _)| *name == key) {
                if self.number(key)? != Some(*neutral) {
                    return Err(
                        self.refuse(key, format!("is not {neutral}, which alone is supported"))
                    );
                }
            } else if !KNOWN.contains(&key) {
                return Err(self.refuse(key, "is not supported"));
            }
        }
        Ok(())
    }
}

/// Returns the fields of the `config.json` that describes the model.
///
/// # Errors
/// Errors with [`ModelError::UnsupportedArchitecture`], or if metadata is missing, contradicts the tensors or is not supported.
pub(super) fn config(file: &GgufFile) -> Result<Map<String, Value>, ModelError> {
    let (architecture, prefix) = file.architecture()?;
    let keys = Keys { file, prefix };
    keys.refuse_unknown(families::keys(architecture))?;
    let (heads, kv_heads) = file.heads(prefix)?;
    let hidden = keys.required("embedding_length")?;
    let head_dim = match keys.count("attention.key_length")? {
        Some(dim) => dim,
        None if hidden % heads == 0 => hidden / heads,
        None => return Err(keys.refuse("attention.key_length", "is missing")),
    };
    let whole_heads = ["attention.value_length", "rope.dimension_count"];
    let partial = architecture == Architecture::Phi3;
    for key in &whole_heads[..if partial { 1 } else { 2 }] {
        if let Some(dim) = keys.count(key)?
            && dim != head_dim
        {
            let why = format!("is {dim}, and only the length of a head, {head_dim}, is supported");
            return Err(keys.refuse(key, why));
        }
    }
    let embedding = file.shape("token_embd.weight");
    let vocab = match embedding {
        Some(&[rows, _]) => rows as u64,
        _ => return Err(file.error("tensor `token_embd.weight` is missing or no matrix")),
    };
    if let Some(given) = keys.count("vocab_size")?
        && given != vocab
    {
        let why = format!("is {given}, but the embedding has {vocab} rows");
        return Err(keys.refuse("vocab_size", why));
    }
    let epsilon = "attention.layer_norm_rms_epsilon";
    let epsilon = keys
        .number(epsilon)?
        .ok_or_else(|| keys.refuse(epsilon, "is missing"))?;
    let has = |name: &str| file.shape(name).is_some();
    let json = json!({
        "architectures": [architecture.class_name()],
        "model_type": architecture.model_type(),
        "hidden_size": hidden,
        "num_hidden_layers": keys.required("block_count")?,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "intermediate_size": keys.required("feed_forward_length")?,
        "vocab_size": vocab,
        "rms_norm_eps": epsilon,
        "tie_word_embeddings": !has("output.weight"),
        "max_position_embeddings": keys.required("context_length")?,
        "rope_theta": keys.number("rope.freq_base")?.unwrap_or(10_000.0),
    });
    let Value::Object(mut config) = json else {
        unreachable!("the literal is an object");
    };
    config.insert("attention_bias".into(), has("blk.0.attn_q.bias").into());
    config.insert("mlp_bias".into(), has("blk.0.ffn_up.bias").into());
    families::add(&keys, architecture, &mut config)?;
    let factors = file.vector(ROPE_FACTORS)?;
    if !config.contains_key("rope_scaling")
        && let Some(scaling) = rope::scaling(&keys, &config, factors)?
    {
        config.insert("rope_scaling".into(), scaling);
    }
    for (name, key) in TOKENS {
        if let Some(id) = file.count(&format!("tokenizer.ggml.{key}"))? {
            config.insert(name.into(), id.into());
        }
    }
    Ok(config)
}

/// Named tokens: the field of a `config.json`, and the key of the metadata.
const TOKENS: [(&str, &str); 3] = [
    ("bos_token_id", "bos_token_id"),
    ("eos_token_id", "eos_token_id"),
    ("pad_token_id", "padding_token_id"),
];

/// Sampling parameters: the field of a `generation_config.json`, and the key of the metadata.
const SAMPLING: [(&str, &str); 5] = [
    ("temperature", "temp"),
    ("top_k", "top_k"),
    ("top_p", "top_p"),
    ("min_p", "min_p"),
    ("repetition_penalty", "penalty_repeat"),
];

/// Returns the fields of a `generation_config.json`: the tokens that end an answer, and the recommended sampling.
///
/// # Errors
/// Errors if a value is not a number. Other kinds of sampling that the file recommends are named in the log.
pub(super) fn generation_config(file: &GgufFile) -> Result<Map<String, Value>, ModelError> {
    let mut ends = Vec::new();
    for key in ["eos_token_id", "eot_token_id", "eom_token_id"] {
        if let Some(id) = file.count(&format!("tokenizer.ggml.{key}"))?
            && !ends.contains(&id)
        {
            ends.push(id);
        }
    }
    let mut config = Map::new();
    if !ends.is_empty() {
        config.insert("eos_token_id".into(), ends.into());
    }
    for key in file
        .keys()
        .filter_map(|key| key.strip_prefix("general.sampling."))
    {
        let name = format!("general.sampling.{key}");
        match SAMPLING.iter().find(|(_, theirs)| *theirs == key) {
            Some((own, _)) => {
                let value = file.number(&name)?.map(Value::from);
                config.insert((*own).into(), value.unwrap_or_default());
            }
            None => tracing::warn!(
                "the model recommends `{name}`, which is not supported and has no effect"
            ),
        }
    }
    Ok(config)
}
