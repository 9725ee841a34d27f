//! The rotary settings of a `config.json`, in either spelling.

use super::Architecture;
use super::arch::MAX_POSITIONS;
use super::config::Fields;
use super::error::ModelError;
use kernels::nn::rotary::{LongRope, RopeScaling, RopeSpec, YarnScaling};

/// What a `config.json` says elsewhere about the rotation.
pub(super) struct RopeDefaults {
    pub architecture: Architecture,
    pub head_dim: usize,
    pub max_position_embeddings: usize,
    pub theta: f64,
}

/// The base of Gemma 3's layers with a window.
const LOCAL_THETA: f64 = 10_000.0;

/// The context for which Phi-3 was trained, where its file does not say it.
const PHI3_ORIGINAL: usize = 4096;

/// Reads the rotation and, of Gemma 3, that of the layers with a window. Both spellings are read: `rope_parameters` (transformers 5) or
/// `rope_theta` beside `rope_scaling`. As in transformers, a non-empty `rope_scaling` takes precedence where a file has both.
pub(super) fn read(
    fields: &Fields,
    defaults: RopeDefaults,
) -> Result<(RopeSpec, Option<RopeSpec>), ModelError> {
    let scaling = fields.object("rope_scaling")?.filter(|s| !s.is_empty());
    let parameters = fields.object("rope_parameters")?;
    let parameters = parameters.unwrap_or_else(|| Fields::empty(fields.path()));
    if defaults.architecture != Architecture::Gemma3 {
        let parameters = scaling.unwrap_or(parameters);
        for kind in ["full_attention", "sliding_attention"] {
            if parameters.has(kind) {
                return Err(fields.error(format!(
                    "separate rope parameters for {kind} layers are not supported; all layers must share one set"
                )));
            }
        }
        return Ok((one(fields, &parameters, "rope_theta", &defaults)?, None));
    }
    let of = |kind: &str| -> Result<Fields, ModelError> {
        let own = parameters.object(kind)?;
        Ok(own.unwrap_or_else(|| Fields::empty(fields.path())))
    };
    if parameters.has("rope_theta") || parameters.has("rope_type") {
        return Err(fields.error(
            "rope_parameters are one set, but Gemma 3 has one for full_attention and one for sliding_attention",
        ));
    }
    let global = match scaling {
        Some(scaling) => scaling,
        None => of("full_attention")?,
    };
    let local = RopeDefaults {
        theta: LOCAL_THETA,
        ..defaults
    };
    Ok((
        one(fields, &global, "rope_theta", &defaults)?,
        Some(one(
            fields,
            &of("sliding_attention")?,
            "rope_local_base_freq",
            &local,
        )?),
    ))
}

/// Reads one rotation. `theta_key` is the key of its base beside the parameters.
fn one(
    fields: &Fields,
    parameters: &Fields,
    theta_key: &str,
    defaults: &RopeDefaults,
) -> Result<RopeSpec, ModelError> {
    let theta = match parameters.number("rope_theta")? {
        Some(theta) => theta,
        None => fields.number(theta_key)?.unwrap_or(defaults.theta),
    };
    if !(1.0..=1e30).contains(&theta) {
        return Err(fields.error(format!("{theta_key} {theta:?} is out of range")));
    }
    let dim = rotated(fields, parameters, defaults)?;
    let spec = RopeSpec {
        theta,
        dim,
        scaling: scaling(fields, parameters, theta, dim, defaults)?,
        max_position_embeddings: defaults.max_position_embeddings,
    };
    match spec.max_context() {
        context if context > MAX_POSITIONS => Err(fields.error(format!(
            "the rope parameters stretch the context to {context} positions, more than {MAX_POSITIONS}"
        ))),
        _ => Ok(spec),
    }
}

/// Returns the number of rotated components of a head. Only Phi-3 rotates a part of them.
fn rotated(
    fields: &Fields,
    parameters: &Fields,
    defaults: &RopeDefaults,
) -> Result<usize, ModelError> {
    let key = "partial_rotary_factor";
    let part = match parameters.number(key)? {
        Some(part) => part,
        None => fields.number(key)?.unwrap_or(1.0),
    };
    if part == 1.0 {
        return Ok(defaults.head_dim);
    }
    if defaults.architecture != Architecture::Phi3 {
        return Err(fields.error(format!("{key} {part} is not supported; it must be 1")));
    }
    let dim = (defaults.head_dim as f64 * part) as usize;
    match (0.0..=1.0).contains(&part) && dim > 0 && dim.is_multiple_of(2) {
        true => Ok(dim),
        false => Err(fields.error(format!(
            "{key} {part} of {} components rotates {dim}, which is not a positive even number of them",
            defaults.head_dim
        ))),
    }
}

fn scaling(
    fields: &Fields,
    parameters: &Fields,
    theta: f64,
    dim: usize,
    defaults: &RopeDefaults,
) -> Result<RopeScaling, ModelError> {
    let max_position_embeddings = defaults.max_position_embeddings;
    let phi3 = defaults.architecture == Architecture::Phi3;
    let kind = match parameters.string("rope_type")? {
        Some(kind) => kind,
        None => parameters
            .string("type")?
            .unwrap_or_else(|| "default".into()),
    };
    let kind = match kind.as_str() {
        // The names in Phi-3's first files.
        "su" | "yarn" if phi3 => "longrope".to_owned(),
        "default" | "longrope" => kind,
        _ if phi3 => {
            return Err(fields.error(format!(
                "rope type `{kind}` is not supported for Phi-3; supported are default and longrope"
            )));
        }
        _ => kind,
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
            None if phi3 => PHI3_ORIGINAL,
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
        "longrope" => {
            let original = original()?;
            let stretch = max_position_embeddings as f64 / original as f64;
            let factor = positive("factor", Some(stretch))?;
            if original < 2 {
                return Err(fields.error(format!(
                    "rope longrope: original_max_position_embeddings is {original}, but must be at least 2"
                )));
            }
            let list = |name: &str| -> Result<Vec<f32>, ModelError> {
                let list = parameters.numbers(name)?;
                let list = list
                    .ok_or_else(|| fields.error(format!("rope longrope: {name} is missing")))?;
                if list.len() != dim / 2 {
                    return Err(fields.error(format!(
                        "rope longrope: {name} has {} entries for {} frequencies",
                        list.len(),
                        dim / 2
                    )));
                }
                match list.iter().find(|&&value| !(1e-6..=1e9).contains(&value)) {
                    Some(value) => Err(fields.error(format!(
                        "rope longrope: {name} contains {value:?}, which is out of range"
                    ))),
                    None => Ok(list.iter().map(|&value| value as f32).collect()),
                }
            };
            let attention_factor = match parameters.number("attention_factor")? {
                Some(factor) if (0.0..=1e9).contains(&factor) => factor,
                Some(factor) => {
                    return Err(fields.error(format!(
                        "rope longrope: attention_factor {factor:?} is out of range"
                    )));
                }
                None if factor <= 1.0 => 1.0,
                None => (1.0 + factor.ln() / (original as f64).ln()).sqrt(),
            };
            Ok(RopeScaling::LongRope(LongRope {
                short: list("short_factor")?,
                long: list("long_factor")?,
                original_max_position_embeddings: original,
                attention_factor,
            }))
        }
        _ => Err(fields.error(format!(
            "rope type `{kind}` is not supported; supported are default, linear, dynamic, llama3, yarn and longrope"
        ))),
    }
}
