//! The rotary settings of a `config.json`, in either spelling.

use super::arch::MAX_POSITIONS;
use super::config::Fields;
use super::error::ModelError;
use kernels::nn::rotary::{RopeScaling, RopeSpec, YarnScaling};

/// Reads both spellings: `rope_parameters` (transformers 5) or `rope_theta` beside `rope_scaling`. As in transformers,
/// a non-empty `rope_scaling` takes precedence where a file has both.
pub(super) fn read(
    fields: &Fields,
    dim: usize,
    max_position_embeddings: usize,
    default_theta: f64,
) -> Result<RopeSpec, ModelError> {
    let parameters = match fields.object("rope_scaling")? {
        Some(scaling) if !scaling.is_empty() => scaling,
        _ => match fields.object("rope_parameters")? {
            Some(parameters) => parameters,
            None => Fields::empty(fields.path()),
        },
    };
    let theta = match parameters.number("rope_theta")? {
        Some(theta) => theta,
        None => fields.number("rope_theta")?.unwrap_or(default_theta),
    };
    if !(1.0..=1e30).contains(&theta) {
        return Err(fields.error(format!("rope_theta {theta:?} is out of range")));
    }
    for holder in [&parameters, fields] {
        if let Some(part) = holder.number("partial_rotary_factor")?
            && part != 1.0
        {
            return Err(fields.error(format!(
                "partial_rotary_factor {part} is not supported; it must be 1"
            )));
        }
    }
    for kind in ["full_attention", "sliding_attention"] {
        if parameters.has(kind) {
            return Err(fields.error(format!(
                "separate rope parameters for {kind} layers are not supported; all layers must share one set"
            )));
        }
    }
    let spec = RopeSpec {
        theta,
        dim,
        scaling: scaling(fields, &parameters, theta, dim, max_position_embeddings)?,
        max_position_embeddings,
    };
    match spec.max_context() {
        context if context > MAX_POSITIONS => Err(fields.error(format!(
            "the rope parameters stretch the context to {context} positions, more than {MAX_POSITIONS}"
        ))),
        _ => Ok(spec),
    }
}

fn scaling(
    fields: &Fields,
    parameters: &Fields,
    theta: f64,
    dim: usize,
    max_position_embeddings: usize,
) -> Result<RopeScaling, ModelError> {
    let kind = match parameters.string("rope_type")? {
        Some(kind) => kind,
        None => parameters
            .string("type")?
            .unwrap_or_else(|| "default".into()),
    };
    let positive = |name: &str, default: Option<f64>| -> Result<f64, ModelError> {
        match parameters.number(name)?.or(default) {
            Some(value) if value > 0.0 && value <= 1e9 => Ok(value),
            Some(value) => {
                Err(fields.error(format!("rope {kind}: {name} {value:?} is out of range")))
            }
            None => Err(fields.error(format!("rope {kind}: {name} is missing"))),
        }
    };
    let factor = |default: Option<f64>| -> Result<f64, ModelError> {
        match positive("factor", default)? {
            factor if factor < 1.0 => Err(fields.error(format!(
                "rope {kind}: factor {factor} is below 1, which would shorten the context"
            ))),
            factor => Ok(factor),
        }
    };
    // A value beside the rope parameters takes precedence over one inside them; the model's own length replaces neither.
    let original = || -> Result<usize, ModelError> {
        let name = "original_max_position_embeddings";
        Ok(match fields.optional_size(name, MAX_POSITIONS)? {
            Some(length) => length,
            None => parameters
                .optional_size(name, MAX_POSITIONS)?
                .unwrap_or(max_position_embeddings),
        })
    };
    match kind.as_str() {
        "default" => Ok(RopeScaling::None),
        "linear" => Ok(RopeScaling::Linear {
            factor: factor(None)?,
        }),
        "dynamic" if dim <= 2 => Err(fields.error(format!(
            "rope dynamic needs a head_dim above 2, it is {dim}"
        ))),
        "dynamic" => Ok(RopeScaling::Dynamic {
            factor: factor(None)?,
        }),
        "llama3" => {
            let (low, high) = (
                positive("low_freq_factor", None)?,
                positive("high_freq_factor", None)?,
            );
            if high <= low {
                return Err(fields.error(format!(
                    "rope llama3: high_freq_factor {high} is not above low_freq_factor {low}"
                )));
            }
            Ok(RopeScaling::Llama3 {
                factor: factor(None)?,
                low_freq_factor: low,
                high_freq_factor: high,
                original_max_position_embeddings: original()?,
            })
        }
        "yarn" if theta <= 1.0 => Err(fields.error(format!(
            "rope yarn: rope_theta {theta} must be above 1"
        ))),
        "yarn" => {
            let original = original()?;
            if original > max_position_embeddings {
                return Err(fields.error(format!(
                    "rope yarn: original_max_position_embeddings {original} is more than max_position_embeddings {max_position_embeddings}"
                )));
            }
            let (beta_fast, beta_slow) = (
                positive("beta_fast", Some(32.0))?,
                positive("beta_slow", Some(1.0))?,
            );
            if beta_fast < beta_slow {
                return Err(fields.error(format!(
                    "rope yarn: beta_fast {beta_fast} is below beta_slow {beta_slow}"
                )));
            }
            // If the factor is absent or null, it is the ratio by which the context was extended.
            let stretch = max_position_embeddings as f64 / original as f64;
            let optional = |name: &str| -> Result<Option<f64>, ModelError> {
                match parameters.number(name)? {
                    Some(value) if !(0.0..=1e9).contains(&value) => {
                        Err(fields.error(format!("rope yarn: {name} {value:?} is out of range")))
                    }
                    value => Ok(value),
                }
            };
            Ok(RopeScaling::Yarn(YarnScaling {
                factor: factor(Some(stretch))?,
                original_max_position_embeddings: original,
                attention_factor: optional("attention_factor")?,
                mscale: optional("mscale")?,
                mscale_all_dim: optional("mscale_all_dim")?,
                beta_fast,
                beta_slow,
                truncate: parameters.bool("truncate")?.unwrap_or(true),
            }))
        }
        _ => Err(fields.error(format!(
            "rope type `{kind}` is not supported; supported are default, linear, dynamic, llama3 and yarn"
        ))),
    }
}
