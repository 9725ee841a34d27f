//! Architectures as data: the contents of a `config.json`, converted to a [`DecoderSpec`] for the one decoder.
//!
//! Names, defaults and meanings are those of `transformers` (5.x, which reads the older spellings too): an absent key
//! has the same meaning as there. A configuration that the decoder cannot compute exactly is rejected here, so that
//! inside the program every spec is valid.

mod architecture;
mod experts;
mod layers;
mod unsupported;

use candle_core::DType;
use half::{bf16, f16};

pub use self::architecture::Architecture;
pub use self::experts::ExpertsSpec;
pub(super) use self::unsupported::described;
use super::config::Fields;
use super::error::ModelError;
use super::rope_config::{self, RopeDefaults};
pub use kernels::glu::Activation;
use kernels::nn::{QkNormWidth, rotary::RopeSpec};

/// The complete description of an architecture for the decoder.
///
/// Tensor names are those of the architecture's class in transformers (`model.layers.{i}.self_attn.q_proj.weight` ...).
#[derive(Debug, Clone, PartialEq)]
pub struct DecoderSpec {
    pub architecture: Architecture,
    pub hidden_size: usize,
    pub num_heads: usize,
    /// A divisor of `num_heads`.
    pub num_kv_heads: usize,
    /// `num_heads * head_dim` need not equal `hidden_size`.
    pub head_dim: usize,
    pub intermediate_size: usize,
    /// The experts of the layers that have them in place of an MLP.
    pub experts: Option<ExpertsSpec>,
    pub vocab_size: usize,
    pub rms_norm_eps: f64,
    /// The places of the norms in a block.
    pub norms: NormPlacement,
    /// Whether norms multiply by `1 + weight` instead of `weight`.
    pub norms_around_one: bool,
    /// Whether the output projection is the embedding matrix; no `lm_head.weight` is read then.
    pub tie_word_embeddings: bool,
    /// Whether q, k and v are one layer (`qkv_proj`), and gate and up another (`gate_up_proj`).
    pub fused_projections: bool,
    /// Whether the q, k and v projections have biases.
    pub qkv_bias: bool,
    pub o_bias: bool,
    /// Whether the gate, up and down projections have biases.
    pub mlp_bias: bool,
    /// The width of the RMS norms of q and k before the rotation, if there are any.
    pub qk_norm: Option<QkNormWidth>,
    /// The factor of the attention scores.
    pub attention_scale: f32,
    /// The soft cap of the attention scores.
    pub attention_soft_cap: Option<f32>,
    /// The soft cap of the logits.
    pub logits_soft_cap: Option<f32>,
    pub multipliers: Multipliers,
    pub rope: RopeSpec,
    /// The rotation of layers with [`LayerRotation::Local`].
    pub local_rope: Option<RopeSpec>,
    pub max_position_embeddings: usize,
    pub hidden_act: Activation,
    /// One entry per layer.
    pub layers: Vec<LayerSpec>,
}

/// Factors on the way through the decoder; 1 for most architectures.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Multipliers {
    /// Of the embeddings.
    pub embedding: f64,
    /// Of what each half of a block adds to the residual stream.
    pub residual: f64,
    /// Of the logits.
    pub logits: f64,
}

/// The places of the norms in a block. The norm after the last block exists in all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormPlacement {
    /// Before attention and before the MLP.
    Before,
    /// After attention and after the MLP, before each result is added to the residual stream.
    After,
    /// Both.
    Around,
}

/// The names of a block's norms by their place, for those that it has.
#[derive(Debug, Clone, Copy)]
pub struct BlockNorms {
    pub before_attention: Option<&'static str>,
    pub after_attention: Option<&'static str>,
    pub before_mlp: Option<&'static str>,
    pub after_mlp: Option<&'static str>,
}

impl NormPlacement {
    pub fn names(self) -> BlockNorms {
        let (first, second) = ("input_layernorm", "post_attention_layernorm");
        let last = "post_feedforward_layernorm";
        match self {
            Self::Before => BlockNorms {
                before_attention: Some(first),
                after_attention: None,
                before_mlp: Some(second),
                after_mlp: None,
            },
            Self::After => BlockNorms {
                before_attention: None,
                after_attention: Some(second),
                before_mlp: None,
                after_mlp: Some(last),
            },
            Self::Around => BlockNorms {
                before_attention: Some(first),
                after_attention: Some(second),
                before_mlp: Some("pre_feedforward_layernorm"),
                after_mlp: Some(last),
            },
        }
    }
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
    /// `None` for SmolLM3's NoPE layers: q and k are not rotated.
    pub rotation: Option<LayerRotation>,
    /// Whether the layer has the model's experts in place of an MLP.
    pub experts: bool,
}

/// The rotation of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LayerRotation {
    /// That of [`DecoderSpec::rope`].
    Global,
    /// That of [`DecoderSpec::local_rope`].
    Local,
}

// Upper limits of a config's values: far above every real model, and low enough that the size of the whole model in
// bytes fits 64 bits and no list of layers exhausts memory before the tensors' shapes are compared.
const MAX_LAYERS: usize = 1 << 12;
const MAX_HIDDEN: usize = 1 << 18;
const MAX_WIDTH: usize = 1 << 24;
const MAX_HEADS: usize = 1 << 12;
const MAX_HEAD_DIM: usize = 1 << 12;
pub(super) const MAX_POSITIONS: usize = 1 << 31;

impl DecoderSpec {
    /// Reads the architecture from a `config.json`. `dtype` is the type in which the weights were saved.
    pub(super) fn from_fields(fields: &Fields, dtype: Option<DType>) -> Result<Self, ModelError> {
        let architecture = Architecture::from_fields(fields)?;
        unsupported::refuse_quantised(fields)?;
        let defaults = architecture.defaults();
        let hidden_size = fields.size("hidden_size", MAX_HIDDEN)?;
        let num_layers = fields.size("num_hidden_layers", MAX_LAYERS)?;
        let num_heads = fields.size("num_attention_heads", MAX_HEADS)?;
        let num_kv_heads = if fields.is_null("num_key_value_heads") {
            num_heads
        } else {
            fields
                .optional_size("num_key_value_heads", MAX_HEADS)?
                .or(defaults.kv_heads)
                .unwrap_or(num_heads)
        };
        if num_heads % num_kv_heads != 0 {
            return Err(fields.error(format!(
                "num_attention_heads {num_heads} is not a multiple of num_key_value_heads {num_kv_heads}"
            )));
        }
        let head_dim = fields.optional_size("head_dim", MAX_HEAD_DIM)?;
        let head_dim = match head_dim.or(defaults.head_dim) {
            Some(head_dim) => head_dim,
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
            .unwrap_or(defaults.positions);
        let attention_bias = fields.bool("attention_bias")?.unwrap_or(false);
        let (qkv_bias, o_bias) = match architecture {
            Architecture::Qwen2 => (true, false),
            Architecture::Mistral | Architecture::Phi3 => (false, false),
            _ => (attention_bias, attention_bias),
        };
        let has_mlp_bias = matches!(
            architecture,
            Architecture::Llama | Architecture::SmolLm3 | Architecture::Granite
        );
        let mlp_bias = has_mlp_bias && fields.bool("mlp_bias")?.unwrap_or(false);
        if architecture.is_gemma() && fields.bool("use_bidirectional_attention")? == Some(true) {
            return Err(fields.error(
                "use_bidirectional_attention is true: an encoder, which generates no text, is not supported",
            ));
        }
        let rms_norm_eps = fields.number("rms_norm_eps")?.unwrap_or(defaults.eps);
        if !(0.0..1.0).contains(&rms_norm_eps) {
            return Err(fields.error(format!(
                "rms_norm_eps {rms_norm_eps:?} is out of range: it must be at least 0 and below 1"
            )));
        }
        let (rope, local_rope) = rope_config::read(
            fields,
            RopeDefaults {
                head_dim,
                max_position_embeddings,
                theta: defaults.theta,
                architecture,
            },
        )?;
        let (attention_soft_cap, logits_soft_cap) = soft_caps(fields, architecture)?;
        let (experts, with_experts) = experts::read(fields, architecture, num_layers)?;
        Ok(Self {
            architecture,
            hidden_size,
            num_heads,
            num_kv_heads,
            head_dim,
            intermediate_size: fields.size("intermediate_size", MAX_WIDTH)?,
            experts,
            vocab_size: fields.size("vocab_size", MAX_WIDTH)?,
            rms_norm_eps,
            norms: architecture.norms(),
            norms_around_one: architecture.is_gemma(),
            tie_word_embeddings: fields.bool("tie_word_embeddings")?.unwrap_or(defaults.tied),
            fused_projections: architecture == Architecture::Phi3,
            qkv_bias,
            o_bias,
            mlp_bias,
            qk_norm: architecture.qk_norm(),
            attention_scale: attention_scale(fields, architecture, head_dim)?,
            attention_soft_cap,
            logits_soft_cap,
            multipliers: multipliers(fields, architecture, hidden_size, dtype)?,
            rope,
            local_rope,
            max_position_embeddings,
            hidden_act: activation(fields, architecture, defaults.activation)?,
            layers: layers::layers(fields, architecture, &with_experts)?,
        })
    }
}

fn activation(
    fields: &Fields,
    architecture: Architecture,
    default: Activation,
) -> Result<Activation, ModelError> {
    let key = architecture.activation_key();
    match fields.string(key)?.as_deref() {
        None => Ok(default),
        // "swish" is another name of the same function.
        Some("silu" | "swish") => Ok(Activation::Silu),
        Some("gelu_pytorch_tanh") => Ok(Activation::GeluTanh),
        // Gemma's first files name the exact function, and mean the approximation.
        Some("gelu") if architecture == Architecture::Gemma => Ok(Activation::GeluTanh),
        Some(other) => Err(fields.error(format!(
            "{key} `{other}` is not supported; only silu and gelu_pytorch_tanh are"
        ))),
    }
}

/// Reads a positive number that may be absent.
fn factor(fields: &Fields, key: &str) -> Result<Option<f64>, ModelError> {
    match fields.number(key)? {
        Some(value) if !(1e-9..=1e9).contains(&value) => Err(fields.error(format!(
            "{key} {value:?} is out of range: it must be positive"
        ))),
        value => Ok(value),
    }
}

/// Returns the factor of the attention scores.
fn attention_scale(
    fields: &Fields,
    architecture: Architecture,
    head_dim: usize,
) -> Result<f32, ModelError> {
    Ok(match architecture {
        Architecture::Gemma2 | Architecture::Gemma3 => {
            let scalar = factor(fields, "query_pre_attn_scalar")?;
            scalar.unwrap_or(256.0).powf(-0.5) as f32
        }
        Architecture::Granite => factor(fields, "attention_multiplier")?.unwrap_or(1.0) as f32,
        _ => 1.0 / (head_dim as f32).sqrt(),
    })
}

/// Returns the soft caps of the attention scores and of the logits. An absent key is Gemma 2's value, and null means none.
fn soft_caps(
    fields: &Fields,
    architecture: Architecture,
) -> Result<(Option<f32>, Option<f32>), ModelError> {
    let keys = ["attn_logit_softcapping", "final_logit_softcapping"];
    let read = |key: &str, default: Option<f64>| -> Result<Option<f32>, ModelError> {
        if fields.is_null(key) {
            return Ok(None);
        }
        Ok(factor(fields, key)?.or(default).map(|cap| cap as f32))
    };
    let [attention, logits] = keys;
    match architecture {
        Architecture::Gemma2 => Ok((read(attention, Some(50.0))?, read(logits, Some(30.0))?)),
        // transformers computes Gemma 3's attention without its cap.
        Architecture::Gemma3 if fields.has(attention) => Err(fields.error(format!(
            "{attention} is given, but the attention of Gemma 3 has no soft cap"
        ))),
        Architecture::Gemma3 => Ok((None, read(logits, None)?)),
        _ => Ok((None, None)),
    }
}

fn multipliers(
    fields: &Fields,
    architecture: Architecture,
    hidden_size: usize,
    dtype: Option<DType>,
) -> Result<Multipliers, ModelError> {
    let one = |key: &str| factor(fields, key).map(|value| value.unwrap_or(1.0));
    Ok(match architecture {
        Architecture::Granite => Multipliers {
            embedding: one("embedding_multiplier")?,
            residual: one("residual_multiplier")?,
            logits: 1.0 / one("logits_scaling")?,
        },
        _ => Multipliers {
            embedding: match architecture.is_gemma() {
                true => rounded_root(hidden_size, dtype),
                false => 1.0,
            },
            residual: 1.0,
            logits: 1.0,
        },
    })
}

/// Returns the square root of the hidden size, rounded to the type of the weights, in which Gemma was trained to multiply.
fn rounded_root(hidden_size: usize, dtype: Option<DType>) -> f64 {
    let root = (hidden_size as f64).sqrt();
    match dtype {
        Some(DType::BF16) => bf16::from_f64(root).to_f64(),
        Some(DType::F16) => f16::from_f64(root).to_f64(),
        _ => f64::from(root as f32),
    }
}
