//! The rotary scaling of a model, from the metadata of its GGUF file and the factors of its frequencies.

use std::f64::consts::TAU;

use serde_json::{Map, Value, json};

use super::config::Keys;
use super::names::ROPE_FACTORS;
use crate::error::ModelError;

/// The parameters of Llama 3's scaling that every published model has; a GGUF file holds their effect only.
const LLAMA3_LOW: f64 = 1.0;
const LLAMA3_HIGH: f64 = 4.0;
const LLAMA3_ORIGINAL: u64 = 8192;

/// The largest relative difference of two factors that an exporter's rounding explains.
const TOLERANCE: f64 = 1e-4;

/// Returns the `rope_scaling` of a `config.json` that already has head_dim and rope_theta; none without scaling.
///
/// # Errors
/// Errors if the scaling is of another kind than linear, YaRN and Llama 3's.
pub(super) fn scaling(
    keys: &Keys<'_>,
    config: &Map<String, Value>,
    factors: Option<Vec<f32>>,
) -> Result<Option<Value>, ModelError> {
    let number = |name: &str| config[name].as_f64().unwrap_or_default();
    let original = keys.count("rope.scaling.original_context_length")?;
    let kind = keys.file.text(&keys.name("rope.scaling.type"))?;
    let scaled = match kind {
        None | Some("none") => {
            // The key of files from before `rope.scaling.type`.
            let factor = keys.number("rope.scale_linear")?;
            factor
                .filter(|&factor| factor != 1.0)
                .map(|factor| json!({"rope_type": "linear", "factor": factor}))
        }
        Some("linear") => Some(json!({"rope_type": "linear", "factor": factor(keys)?})),
        Some("yarn") => Some(yarn(keys, original)?),
        Some(other) => {
            let why = format!(
                "is `{other}`, which is not supported; supported are none, linear and yarn"
            );
            return Err(keys.refuse("rope.scaling.type", why));
        }
    };
    let Some(factors) = factors.filter(|factors| factors.iter().any(|&factor| factor != 1.0))
    else {
        return Ok(scaled);
    };
    if scaled.is_some() {
        let why = format!("is given beside `{ROPE_FACTORS}`, which is not supported");
        return Err(keys.refuse("rope.scaling.type", why));
    }
    let largest = factors.iter().copied().fold(1.0, f32::max);
    let parameters = Llama3 {
        factor: f64::from(largest),
        original: original.unwrap_or(LLAMA3_ORIGINAL),
    };
    let (theta, dim) = (number("rope_theta"), number("head_dim"));
    let fits = factors.len() as f64 == dim / 2.0
        && factors.iter().enumerate().all(|(i, found)| {
            let expected = parameters.divisor(theta.powf(2.0 * i as f64 / dim));
            (f64::from(*found) / expected - 1.0).abs() <= TOLERANCE
        });
    match fits {
        true => Ok(Some(json!({
            "rope_type": "llama3",
            "factor": parameters.factor,
            "low_freq_factor": LLAMA3_LOW,
            "high_freq_factor": LLAMA3_HIGH,
            "original_max_position_embeddings": parameters.original,
        }))),
        false => Err(keys.file.error(format!(
            "the factors in `{ROPE_FACTORS}` are not those of Llama 3's scaling; others are not supported"
        ))),
    }
}

fn factor(keys: &Keys<'_>) -> Result<f64, ModelError> {
    let key = "rope.scaling.factor";
    keys.number(key)?
        .ok_or_else(|| keys.refuse(key, "is missing"))
}

fn yarn(keys: &Keys<'_>, original: Option<u64>) -> Result<Value, ModelError> {
    let key = "rope.scaling.yarn_ext_factor";
    if keys.number(key)?.is_some_and(|factor| factor != 1.0) {
        return Err(keys.refuse(key, "is not 1, which alone is supported"));
    }
    let key = "rope.scaling.yarn_log_multiplier";
    if keys.number(key)?.is_some_and(|factor| factor != 0.0) {
        return Err(keys.refuse(key, "is not 0, which alone is supported"));
    }
    let mut scaling = json!({"rope_type": "yarn", "factor": factor(keys)?});
    if let Some(original) = original {
        scaling["original_max_position_embeddings"] = original.into();
    }
    for name in ["beta_fast", "beta_slow"] {
        if let Some(beta) = keys.number(&format!("rope.scaling.yarn_{name}"))? {
            scaling[name] = beta.into();
        }
    }
    Ok(scaling)
}

/// Llama 3's scaling.
struct Llama3 {
    factor: f64,
    original: u64,
}

impl Llama3 {
    /// Returns the number by which the frequency of this wavelength (over 2 pi) is divided.
    fn divisor(&self, wavelength: f64) -> f64 {
        let (wavelength, original) = (TAU * wavelength, self.original as f64);
        if wavelength < original / LLAMA3_HIGH {
            1.0
        } else if wavelength > original / LLAMA3_LOW {
            self.factor
        } else {
            let smooth = (original / wavelength - LLAMA3_LOW) / (LLAMA3_HIGH - LLAMA3_LOW);
            1.0 / ((1.0 - smooth) / self.factor + smooth)
        }
    }
}
