//! An architecture is data: what a `config.json` says, turned into the one decoder's [`DecoderSpec`].
//!
//! Names, defaults and meanings are `transformers`' (5.x, which reads the older spellings too): a key that is absent
//! means what it means there. What the decoder cannot compute faithfully is refused here, so that inside the program
//! every spec is sound.

use super::config::Fields;
use super::error::ModelError;
use super::rope_config;
use crate::nn::rotary::RopeSpec;

/// Everything the decoder needs to know about an architecture.
///
/// Tensor names are Llama's for all of them (`model.layers.{i}.self_attn.q_proj.weight` ...); Qwen3's are
/// `self_attn.q_norm.weight` and `k_norm.weight` besides, `[head_dim]` each.
#[derive(Debug, Clone, PartialEq)]
pub struct DecoderSpec {
    pub architecture: Architecture,
    pub hidden_size: usize,
    pub num_heads: usize,
    /// Divides `num_heads`.
    pub num_kv_heads: usize,
    /// Even; `num_heads * head_dim` need not be `hidden_size`.
    pub head_dim: usize,
    pub intermediate_size: usize,
    pub vocab_size: usize,
    pub rms_norm_eps: f64,
    /// The output projection is the embedding matrix; no `lm_head.weight` is read.
    pub tie_word_embeddings: bool,
    /// q, k and v projections have biases.
    pub qkv_bias: bool,
    pub o_bias: bool,
    /// gate, up and down projections have biases.
    pub mlp_bias: bool,
    /// RMS norm over each head of q and k, before the rotation.
    pub qk_norm: bool,
    pub rope: RopeSpec,
    pub max_position_embeddings: usize,
    pub hidden_act: Activation,
    /// One entry a layer.
    pub layers: Vec<LayerSpec>,
}

impl DecoderSpec {
    pub fn num_layers(&self) -> usize {
        self.layers.len()
    }

    /// The longest sequence the model is made for, in tokens: see [`RopeSpec::max_context`].
    pub fn max_context(&self) -> usize {
        self.rope.max_context()
    }
}

/// What differs from layer to layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerSpec {
    /// A query at position i sees keys at j with `i - j < window`: itself and the `window - 1` before it.
    pub sliding_window: Option<usize>,
    /// False for SmolLM3's NoPE layers: q and k are not rotated.
    pub rope: bool,
}

/// The gate of the MLP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    Silu,
}

/// The checkpoints that load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Architecture {
    Llama,
    Mistral,
    Qwen2,
    Qwen3,
    SmolLm3,
}

// Bounds on what a config may ask for: far above every real model, low enough that the size of the whole model in bytes
// fits 64 bits and no list of layers exhausts memory before the tensors' shapes are compared.
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

    /// The class in `architectures`.
    pub fn class_name(self) -> &'static str {
        match self {
            Self::Llama => "LlamaForCausalLM",
            Self::Mistral => "MistralForCausalLM",
            Self::Qwen2 => "Qwen2ForCausalLM",
            Self::Qwen3 => "Qwen3ForCausalLM",
            Self::SmolLm3 => "SmolLM3ForCausalLM",
        }
    }

    fn model_type(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Mistral => "mistral",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
            Self::SmolLm3 => "smollm3",
        }
    }

    /// From `architectures`, or from `model_type` where that list is absent (as in a saved base config).
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

    /// `num_key_value_heads` when the key is absent (null means as many as heads).
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
    /// Reads the architecture out of a `config.json`.
    pub(super) fn from_fields(fields: &Fields) -> Result<Self, ModelError> {
        let architecture = Architecture::from_fields(fields)?;
        if let Some(quantised) = fields.object("quantization_config")? {
            let method = quantised.string("quant_method")?;
            return Err(fields.error(format!(
                "the checkpoint is quantised ({}), which is not supported: name the model it was made from",
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
                "head_dim {head_dim} is odd: a rotary embedding turns pairs"
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
            return Err(fields.error(format!("hidden_act `{act}` is not supported, only silu")));
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
            return Err(fields.error(format!("rms_norm_eps {rms_norm_eps:?} is out of range")));
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
        // An absent window is 4096, a null one is none.
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

/// The window of all layers. Layers of different kinds make a Mistral another architecture, Ministral, in transformers.
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

/// `layer_types` where given, else `slides` for a model whose window is switched on.
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
                "layer_types[{layer}] is sliding_attention, but no sliding window is switched on"
            ))),
            _ => Err(fields.error(format!("layer_types[{layer}] `{kind}` is not supported"))),
        })
        .collect()
}

/// `no_rope_layers` holds 1 for a layer WITH rotation; without the list every `no_rope_layer_interval`-th has none.
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
