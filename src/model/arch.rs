//! Architectures as data: the contents of a `config.json`, converted to a [`DecoderSpec`] for the one decoder.
//!
//! Names, defaults and meanings are those of `transformers` (5.x, which reads the older spellings too): an absent key
//! has the same meaning as there. A configuration that the decoder cannot compute exactly is rejected here, so that
//! inside the program every spec is valid.

use super::config::Fields;
use super::error::ModelError;
use super::rope_config;
use kernels::nn::rotary::RopeSpec;

/// The complete description of an architecture for the decoder.
///
/// Tensor names are Llama's for all of them (`model.layers.{i}.self_attn.q_proj.weight` ...); Qwen3 also has
/// `self_attn.q_norm.weight` and `k_norm.weight`, `[head_dim]` each.
#[derive(Debug, Clone, PartialEq)]
pub struct DecoderSpec {
    pub architecture: Architecture,
    pub hidden_size: usize,
    pub num_heads: usize,
    /// A divisor of `num_heads`.
    pub num_kv_heads: usize,
    /// Even; `num_heads * head_dim` need not equal `hidden_size`.
    pub head_dim: usize,
    pub intermediate_size: usize,
    pub vocab_size: usize,
    pub rms_norm_eps: f64,
    /// Whether the output projection is the embedding matrix; no `lm_head.weight` is read then.
    pub tie_word_embeddings: bool,
    /// Whether the q, k and v projections have biases.
    pub qkv_bias: bool,
    pub o_bias: bool,
    /// Whether the gate, up and down projections have biases.
    pub mlp_bias: bool,
    /// Whether an RMS norm is applied to each head of q and k, before the rotation.
    pub qk_norm: bool,
    pub rope: RopeSpec,
    pub max_position_embeddings: usize,
    pub hidden_act: Activation,
    /// One entry per layer.
    pub layers: Vec<LayerSpec>,
}

impl DecoderSpec {
    pub fn num_layers(&self) -> usize {
        self.layers.len()
    }

    /// Returns the maximum sequence length of the model, in tokens: see [`RopeSpec::max_context`].
    pub fn max_context(&self) -> usize {
        self.rope.max_context()
    }
}

/// The settings that differ between layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerSpec {
    /// A query at position i attends to keys at j with `i - j < window`: itself and the `window - 1` before it.
    pub sliding_window: Option<usize>,
    /// False for SmolLM3's NoPE layers: q and k are not rotated.
    pub rope: bool,
}

/// The activation of the MLP's gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    Silu,
}

/// The supported architectures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Architecture {
    Llama,
    Mistral,
    Qwen2,
    Qwen3,
    SmolLm3,
}

// Upper limits of a config's values: far above every real model, and low enough that the size of the whole model in
// bytes fits 64 bits and no list of layers exhausts memory before the tensors' shapes are compared.
const MAX_LAYERS: usize = 1 << 12;
const MAX_HIDDEN: usize = 1 << 18;
const MAX_WIDTH: usize = 1 << 24;
const MAX_HEADS: usize = 1 << 12;
const MAX_HEAD_DIM: usize = 1 << 12;
pub(super) const MAX_POSITIONS: usize = 1 << 31;

impl Architecture {
    pub const ALL: [Architecture; 5] = [
        Self::Llama,
        Self::Mistral,
        Self::Qwen2,
        Self::Qwen3,
        Self::SmolLm3,
    ];

    /// Returns the class name in `architectures`.
    pub fn class_name(self) -> &'static str {
        match self {
            Self::Llama => "LlamaForCausalLM",
            Self::Mistral => "MistralForCausalLM",
            Self::Qwen2 => "Qwen2ForCausalLM",
            Self::Qwen3 => "Qwen3ForCausalLM",
            Self::SmolLm3 => "SmolLM3ForCausalLM",
        }
    }

    /// Returns the name in `model_type`.
    pub(super) fn model_type(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Mistral => "mistral",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
            Self::SmolLm3 => "smollm3",
        }
    }

    /// Reads `architectures`, or `model_type` where that list is absent (as in a saved base config).
    fn from_fields(fields: &Fields) -> Result<Self, ModelError> {
        let found = match fields.first_string("architectures")? {
            Some(class) => {
                if let Some(known) = Self::ALL.into_iter().find(|a| a.class_name() == class) {
                    return Ok(known);
                }
                class
            }
            None => {
                let model_type = fields.string("model_type")?.unwrap_or_default();
                if let Some(known) = Self::ALL.into_iter().find(|a| a.model_type() == model_type) {
                    return Ok(known);
                }
                if model_type.is_empty() {
                    return Err(fields.error("neither `architectures` nor `model_type` is given"));
                }
                model_type
            }
        };
        Err(ModelError::UnsupportedArchitecture {
            found: format!("`{found}`"),
            supported: Self::ALL.map(Self::class_name).join(", "),
        })
    }

    /// Returns `num_key_value_heads` for an absent key (null means as many as heads).
    fn default_kv_heads(self, num_heads: usize) -> usize {
        match self {
            Self::Llama => num_heads,
            Self::Mistral => 8,
            Self::Qwen2 | Self::Qwen3 => 32,
            Self::SmolLm3 => 4,
        }
    }

    fn default_positions(self) -> usize {
        match self {
            Self::Llama => 2048,
            Self::Mistral => 4096 * 32,
            Self::Qwen2 | Self::Qwen3 | Self::SmolLm3 => 32768,
        }
    }

    fn default_theta(self) -> f64 {
        match self {
            Self::SmolLm3 => 2_000_000.0,
            _ => 10_000.0,
        }
    }
}

impl DecoderSpec {
    /// Reads the architecture from a `config.json`.
    pub(super) fn from_fields(fields: &Fields) -> Result<Self, ModelError> {
        let architecture = Architecture::from_fields(fields)?;
        if let Some(quantised) = fields.object("quantization_config")? {
            let method = quantised.string("quant_method")?;
            return Err(fields.error(format!(
                "the checkpoint is quantised ({}), which is not supported: use the model from which it was made",
                method.as_deref().unwrap_or("quantization_config")
            )));
        }
        let hidden_size = fields.size("hidden_size", MAX_HIDDEN)?;
        let num_layers = fields.size("num_hidden_layers", MAX_LAYERS)?;
        let num_heads = fields.size("num_attention_heads", MAX_HEADS)?;
        let num_kv_heads = if fields.is_null("num_key_value_heads") {
            num_heads
        } else {
            fields
                .optional_size("num_key_value_heads", MAX_HEADS)?
                .unwrap_or_else(|| architecture.default_kv_heads(num_heads))
        };
        if num_heads % num_kv_heads != 0 {
            return Err(fields.error(format!(
                "num_attention_heads {num_heads} is not a multiple of num_key_value_heads {num_kv_heads}"
            )));
        }
        let head_dim = match fields.optional_size("head_dim", MAX_HEAD_DIM)? {
            Some(head_dim) => head_dim,
            None if architecture == Architecture::Qwen3 => 128,
            None if hidden_size % num_heads != 0 => {
                return Err(fields.error(format!(
                    "hidden_size {hidden_size} is not a multiple of num_attention_heads {num_heads} and head_dim is not given"
                )));
            }
            None => hidden_size / num_heads,
        };
        if head_dim % 2 != 0 {
            return Err(fields.error(format!(
                "head_dim {head_dim} is odd, but rotary embeddings need an even number"
            )));
        }
        let max_position_embeddings = fields
            .optional_size("max_position_embeddings", MAX_POSITIONS)?
            .unwrap_or_else(|| architecture.default_positions());
        let act = fields
            .string("hidden_act")?
            .unwrap_or_else(|| "silu".into());
        // "swish" is another name of the same function.
        if act != "silu" && act != "swish" {
            return Err(fields.error(format!("hidden_act `{act}` is not supported; only silu is")));
        }
        let attention_bias = fields.bool("attention_bias")?.unwrap_or(false);
        let (qkv_bias, o_bias) = match architecture {
            Architecture::Llama | Architecture::Qwen3 | Architecture::SmolLm3 => {
                (attention_bias, attention_bias)
            }
            Architecture::Qwen2 => (true, false),
            Architecture::Mistral => (false, false),
        };
        let mlp_bias = matches!(architecture, Architecture::Llama | Architecture::SmolLm3)
            && fields.bool("mlp_bias")?.unwrap_or(false);
        let rms_norm_eps = fields.number("rms_norm_eps")?.unwrap_or(1e-6);
        if !(0.0..1.0).contains(&rms_norm_eps) {
            return Err(fields.error(format!(
                "rms_norm_eps {rms_norm_eps:?} is out of range: it must be at least 0 and below 1"
            )));
        }
        Ok(Self {
            architecture,
            hidden_size,
            num_heads,
            num_kv_heads,
            head_dim,
            intermediate_size: fields.size("intermediate_size", MAX_WIDTH)?,
            vocab_size: fields.size("vocab_size", MAX_WIDTH)?,
            rms_norm_eps,
            tie_word_embeddings: fields
                .bool("tie_word_embeddings")?
                .unwrap_or(architecture == Architecture::SmolLm3),
            qkv_bias,
            o_bias,
            mlp_bias,
            qk_norm: architecture == Architecture::Qwen3,
            rope: rope_config::read(
                fields,
                head_dim,
                max_position_embeddings,
                architecture.default_theta(),
            )?,
            max_position_embeddings,
            hidden_act: Activation::Silu,
            layers: layers(fields, architecture, num_layers)?,
        })
    }
}

fn layers(
    fields: &Fields,
    architecture: Architecture,
    num_layers: usize,
) -> Result<Vec<LayerSpec>, ModelError> {
    let rope = match architecture {
        Architecture::SmolLm3 => smollm3_rope(fields, num_layers)?,
        _ => vec![true; num_layers],
    };
    let windows = match architecture {
        Architecture::Llama => vec![None; num_layers],
        // An absent window is 4096; null means no window.
        Architecture::Mistral => vec![one_window(fields, window(fields, Some(4096))?)?; num_layers],
        Architecture::Qwen2 | Architecture::Qwen3 => {
            let first = fields
                .optional_count("max_window_layers", MAX_WIDTH)?
                .unwrap_or(28);
            windows_by_layer(fields, num_layers, Some(4096), |layer| layer >= first)?
        }
        Architecture::SmolLm3 => windows_by_layer(fields, num_layers, None, |layer| !rope[layer])?,
    };
    Ok(windows
        .into_iter()
        .zip(rope)
        .map(|(sliding_window, rope)| LayerSpec {
            sliding_window,
            rope,
        })
        .collect())
}

fn window(fields: &Fields, default: Option<usize>) -> Result<Option<usize>, ModelError> {
    if fields.is_null("sliding_window") {
        return Ok(None);
    }
    Ok(fields
        .optional_size("sliding_window", MAX_POSITIONS)?
        .or(default))
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

/// Returns the windows given by `layer_types`, or by `slides` for a model whose window is enabled.
fn windows_by_layer(
    fields: &Fields,
    num_layers: usize,
    default: Option<usize>,
    slides: impl Fn(usize) -> bool,
) -> Result<Vec<Option<usize>>, ModelError> {
    let window = match fields.bool("use_sliding_window")? {
        Some(true) => window(fields, default)?,
        _ => None,
    };
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
fn smollm3_rope(fields: &Fields, num_layers: usize) -> Result<Vec<bool>, ModelError> {
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
