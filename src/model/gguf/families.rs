//! What single architectures have in their metadata beside the common keys.
//!
//! llama.cpp derives some values from the number of layers; the same is done here.

use serde_json::{Map, Value, json};

use super::config::Keys;
use super::names::LONGROPE_FACTORS;
use crate::Architecture;
use crate::error::ModelError;

/// The largest relative difference of LongRoPE's attention factor that a file's rounding explains.
const TOLERANCE: f64 = 1e-4;

/// Returns the keys that only this architecture has.
pub(super) fn keys(architecture: Architecture) -> &'static [&'static str] {
    match architecture {
        Architecture::Gemma2 => &[
            "attention.sliding_window",
            "attn_logit_softcapping",
            "final_logit_softcapping",
        ],
        Architecture::Gemma3 => &[
            "attention.sliding_window",
            "final_logit_softcapping",
            "rope.freq_base_swa",
        ],
        Architecture::Granite => &[
            "attention.scale",
            "embedding_scale",
            "logit_scale",
            "residual_scale",
        ],
        Architecture::Phi3 => &["attention.sliding_window", "rope.scaling.attn_factor"],
        Architecture::Qwen3Moe => &[
            "expert_count",
            "expert_feed_forward_length",
            "expert_used_count",
        ],
        _ => &[],
    }
}

/// Adds the fields of this architecture to those that all have.
///
/// # Errors
/// Errors if a key is missing or its value not supported.
pub(super) fn add(
    keys: &Keys<'_>,
    architecture: Architecture,
    config: &mut Map<String, Value>,
) -> Result<(), ModelError> {
    match architecture {
        Architecture::Gemma2 => {
            // The 27B model divides by the width of a head of the hidden size instead of the head's own.
            add_attention(keys, config, 46)?;
            add_window(keys, config)?;
            for (field, key) in [
                ("attn_logit_softcapping", "attn_logit_softcapping"),
                ("final_logit_softcapping", "final_logit_softcapping"),
            ] {
                let cap = keys.number(key)?;
                let cap = cap.ok_or_else(|| keys.refuse(key, "is missing"))?;
                config.insert(field.into(), cap.into());
            }
        }
        Architecture::Gemma3 => {
            add_attention(keys, config, 62)?;
            add_window(keys, config)?;
            if let Some(cap) = keys.number("final_logit_softcapping")? {
                config.insert("final_logit_softcapping".into(), cap.into());
            }
            let theta = keys.number("rope.freq_base_swa")?.unwrap_or(10_000.0);
            config.insert("rope_local_base_freq".into(), theta.into());
            if keys.number("rope.freq_base")?.is_none() {
                config.insert("rope_theta".into(), 1_000_000.0.into());
            }
        }
        Architecture::Granite => {
            let scale = match keys.number("attention.scale")? {
                Some(scale) => scale,
                None => size(config, "head_dim").powf(-0.5),
            };
            config.insert("attention_multiplier".into(), scale.into());
            for (field, key) in [
                ("embedding_multiplier", "embedding_scale"),
                ("residual_multiplier", "residual_scale"),
                ("logits_scaling", "logit_scale"),
            ] {
                if let Some(factor) = keys.number(key)? {
                    config.insert(field.into(), factor.into());
                }
            }
        }
        Architecture::Phi3 => {
            let window = keys.count("attention.sliding_window")?;
            let window = window.filter(|&window| window > 0);
            config.insert("sliding_window".into(), json!(window));
            let head_dim = size(config, "head_dim");
            if let Some(dim) = keys.count("rope.dimension_count")? {
                // Half a component more, so that the product is not below the whole number.
                let part = (dim as f64 + 0.5) / head_dim;
                if dim as f64 != head_dim {
                    config.insert("partial_rotary_factor".into(), part.into());
                }
            }
            if let Some(original) = keys.count("rope.scaling.original_context_length")? {
                config.insert("original_max_position_embeddings".into(), original.into());
            }
            add_longrope(keys, config)?;
        }
        Architecture::Qwen3Moe => {
            for (field, key) in [
                ("num_experts", "expert_count"),
                ("num_experts_per_tok", "expert_used_count"),
                ("moe_intermediate_size", "expert_feed_forward_length"),
            ] {
                config.insert(field.into(), keys.required(key)?.into());
            }
            config.insert("norm_topk_prob".into(), true.into());
        }
        _ => {}
    }
    Ok(())
}

fn size(config: &Map<String, Value>, field: &str) -> f64 {
    config[field].as_f64().unwrap_or_default()
}

/// Adds the number by whose root scores are divided. `largest` is the number of layers of the family's largest model.
fn add_attention(
    keys: &Keys<'_>,
    config: &mut Map<String, Value>,
    largest: u64,
) -> Result<(), ModelError> {
    let scalar = match keys.required("block_count")? == largest {
        true => size(config, "hidden_size") / size(config, "num_attention_heads"),
        false => size(config, "head_dim"),
    };
    config.insert("query_pre_attn_scalar".into(), scalar.into());
    Ok(())
}

fn add_window(keys: &Keys<'_>, config: &mut Map<String, Value>) -> Result<(), ModelError> {
    let window = keys.required("attention.sliding_window")?;
    config.insert("sliding_window".into(), window.into());
    Ok(())
}

/// Adds LongRoPE's two lists of divisors, if the file has them.
fn add_longrope(keys: &Keys<'_>, config: &mut Map<String, Value>) -> Result<(), ModelError> {
    let [short, long] = LONGROPE_FACTORS;
    let factors = (keys.file.vector(short)?, keys.file.vector(long)?);
    let (Some(short_factor), Some(long_factor)) = factors else {
        return match factors {
            (None, None) => Ok(()),
            _ => Err(keys
                .file
                .error(format!("only one of `{short}` and `{long}` is given"))),
        };
    };
    let key = "rope.scaling.attn_factor";
    let original = keys.required("rope.scaling.original_context_length")? as f64;
    let stretch = size(config, "max_position_embeddings") / original;
    let expected = match stretch > 1.0 {
        true => (1.0 + stretch.ln() / original.ln()).sqrt(),
        false => 1.0,
    };
    if let Some(found) = keys.number(key)?
        && (found / expected - 1.0).abs() > TOLERANCE
    {
        let why = format!("is {found}, and only LongRoPE's own, {expected}, is supported");
        return Err(keys.refuse(key, why));
    }
    let scaling =
        json!({"rope_type": "longrope", "short_factor": short_factor, "long_factor": long_factor});
    config.insert("rope_scaling".into(), scaling);
    Ok(())
}
