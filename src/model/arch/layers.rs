//! The settings that differ between layers: sliding windows, rotations, and experts.

use super::{Architecture, LayerRotation, LayerSpec, MAX_POSITIONS, MAX_WIDTH};
use crate::config::Fields;
use crate::error::ModelError;

/// Returns the settings of each layer; `experts` are those of the layers that have experts.
pub(super) fn layers(
    fields: &Fields,
    architecture: Architecture,
    experts: &[bool],
) -> Result<Vec<LayerSpec>, ModelError> {
    use Architecture as A;
    let num_layers = experts.len();
    let rotated = match architecture {
        A::SmolLm3 => smollm3_rotated(fields, num_layers)?,
        _ => vec![true; num_layers],
    };
    let windows = match architecture {
        A::Llama | A::Olmo2 | A::Granite | A::Gemma => vec![None; num_layers],
        // An absent window is 4096; null means no window.
        A::Mistral => vec![one_window(fields, window(fields, Some(4096))?)?; num_layers],
        A::Phi3 => vec![window(fields, None)?; num_layers],
        A::Qwen2 | A::Qwen3 => {
            let first = fields
                .optional_count("max_window_layers", MAX_WIDTH)?
                .unwrap_or(28);
            let window = enabled_window(fields, Some(4096))?;
            windows_by_layer(fields, num_layers, window, |layer| layer >= first)?
        }
        A::Qwen3Moe => vec![enabled_window(fields, Some(4096))?; num_layers],
        A::SmolLm3 => {
            let window = enabled_window(fields, None)?;
            windows_by_layer(fields, num_layers, window, |layer| !rotated[layer])?
        }
        A::Gemma2 => alternating_windows(fields, num_layers, 2)?,
        A::Gemma3 => {
            let pattern = fields.optional_size("sliding_window_pattern", MAX_WIDTH)?;
            alternating_windows(fields, num_layers, pattern.unwrap_or(6))?
        }
    };
    let layer = |((sliding_window, rotated), &experts): ((Option<usize>, bool), &bool)| LayerSpec {
        sliding_window,
        experts,
        rotation: match (rotated, architecture, sliding_window) {
            (false, ..) => None,
            (true, A::Gemma3, Some(_)) => Some(LayerRotation::Local),
            (true, ..) => Some(LayerRotation::Global),
        },
    };
    let layers = windows.into_iter().zip(rotated).zip(experts);
    Ok(layers.map(layer).collect())
}

fn window(fields: &Fields, default: Option<usize>) -> Result<Option<usize>, ModelError> {
    if fields.is_null("sliding_window") {
        return Ok(None);
    }
    Ok(fields
        .optional_size("sliding_window", MAX_POSITIONS)?
        .or(default))
}

/// Returns the window of a model that has one only if `use_sliding_window` is set.
fn enabled_window(fields: &Fields, default: Option<usize>) -> Result<Option<usize>, ModelError> {
    match fields.bool("use_sliding_window")? {
        Some(true) => window(fields, default),
        _ => Ok(None),
    }
}

/// Returns the window of all layers. A Mistral with layers of different kinds is another architecture in transformers, Ministral.
fn one_window(fields: &Fields, window: Option<usize>) -> Result<Option<usize>, ModelError> {
    let kind = match window {
        Some(_) => "sliding_attention",
        None => "full_attention",
    };
    let types = fields.strings("layer_types")?.unwrap_or_default();
    match types.iter().position(|own| own != kind) {
        None => Ok(window),
        Some(layer) => Err(fields.error(format!(
            "layer_types[{layer}] is `{}` where a Mistral with this sliding_window has {kind} in all layers: Ministral is not supported",
            types[layer]
        ))),
    }
}

/// Returns the windows of a model in which every `pattern`-th layer has none.
fn alternating_windows(
    fields: &Fields,
    num_layers: usize,
    pattern: usize,
) -> Result<Vec<Option<usize>>, ModelError> {
    let window = window(fields, Some(4096))?;
    let slides = |layer: usize| !(layer + 1).is_multiple_of(pattern);
    if window.is_none() && (0..num_layers).any(slides) && !fields.has("layer_types") {
        return Err(fields.error("sliding_window is null, but some layers have a window"));
    }
    windows_by_layer(fields, num_layers, window, slides)
}

/// Returns the windows given by `layer_types`, or by `slides`.
fn windows_by_layer(
    fields: &Fields,
    num_layers: usize,
    window: Option<usize>,
    slides: impl Fn(usize) -> bool,
) -> Result<Vec<Option<usize>>, ModelError> {
    let Some(types) = fields.strings("layer_types")? else {
        return Ok((0..num_layers)
            .map(|layer| window.filter(|_| slides(layer)))
            .collect());
    };
    if types.len() != num_layers {
        return Err(fields.error(format!(
            "layer_types has {} entries for {num_layers} layers",
            types.len()
        )));
    }
    types
        .iter()
        .enumerate()
        .map(|(layer, kind)| match (kind.as_str(), window) {
            ("full_attention", _) => Ok(None),
            ("sliding_attention", Some(window)) => Ok(Some(window)),
            ("sliding_attention", None) => Err(fields.error(format!(
                "layer_types[{layer}] is sliding_attention, but the configuration has no sliding window"
            ))),
            _ => Err(fields.error(format!("layer_types[{layer}] `{kind}` is not supported"))),
        })
        .collect()
}

/// Reads `no_rope_layers`, which holds 1 for a layer WITH rotation; without the list every `no_rope_layer_interval`-th has none.
fn smollm3_rotated(fields: &Fields, num_layers: usize) -> Result<Vec<bool>, ModelError> {
    let Some(list) = fields.counts("no_rope_layers")? else {
        let interval = fields
            .optional_size("no_rope_layer_interval", MAX_WIDTH)?
            .unwrap_or(4);
        return Ok((1..=num_layers)
            .map(|layer| layer % interval != 0)
            .collect());
    };
    if list.len() < num_layers {
        return Err(fields.error(format!(
            "no_rope_layers has {} entries for {num_layers} layers",
            list.len()
        )));
    }
    Ok(list[..num_layers].iter().map(|&with| with != 0).collect())
}
