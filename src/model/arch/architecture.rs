//! The supported architectures: their names, and the values of keys that a `config.json` does not have.

use kernels::{glu::Activation, nn::QkNormWidth};

use super::NormPlacement;
use super::unsupported;
use crate::config::Fields;
use crate::error::ModelError;

/// The supported architectures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Architecture {
    Llama,
    Mistral,
    Qwen2,
    Qwen3,
    Qwen3Moe,
    SmolLm3,
    Olmo2,
    Phi3,
    Granite,
    Gemma,
    Gemma2,
    Gemma3,
}

/// The values of absent keys.
#[derive(Debug, Clone, Copy)]
pub(super) struct Defaults {
    /// `None` for as many as heads.
    pub kv_heads: Option<usize>,
    /// `None` for hidden size over heads.
    pub head_dim: Option<usize>,
    pub positions: usize,
    pub theta: f64,
    pub eps: f64,
    pub tied: bool,
    pub activation: Activation,
}

impl Architecture {
    pub const ALL: [Architecture; 12] = [
        Self::Llama,
        Self::Mistral,
        Self::Qwen2,
        Self::Qwen3,
        Self::Qwen3Moe,
        Self::SmolLm3,
        Self::Olmo2,
        Self::Phi3,
        Self::Granite,
        Self::Gemma,
        Self::Gemma2,
        Self::Gemma3,
    ];

    /// Returns the class name in `architectures`.
    pub fn class_name(self) -> &'static str {
        match self {
            Self::Llama => "LlamaForCausalLM",
            Self::Mistral => "MistralForCausalLM",
            Self::Qwen2 => "Qwen2ForCausalLM",
            Self::Qwen3 => "Qwen3ForCausalLM",
            Self::Qwen3Moe => "Qwen3MoeForCausalLM",
            Self::SmolLm3 => "SmolLM3ForCausalLM",
            Self::Olmo2 => "Olmo2ForCausalLM",
            Self::Phi3 => "Phi3ForCausalLM",
            Self::Granite => "GraniteForCausalLM",
            Self::Gemma => "GemmaForCausalLM",
            Self::Gemma2 => "Gemma2ForCausalLM",
            Self::Gemma3 => "Gemma3ForCausalLM",
        }
    }

    /// Returns the name in `model_type`.
    pub(crate) fn model_type(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Mistral => "mistral",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
            Self::Qwen3Moe => "qwen3_moe",
            Self::SmolLm3 => "smollm3",
            Self::Olmo2 => "olmo2",
            Self::Phi3 => "phi3",
            Self::Granite => "granite",
            Self::Gemma => "gemma",
            Self::Gemma2 => "gemma2",
            Self::Gemma3 => "gemma3_text",
        }
    }

    /// Reads `architectures`, or `model_type` where that list is absent (as in a saved base config).
    ///
    /// # Errors
    /// Errors with the name of one that is not supported, and with its kind if that is known.
    pub(super) fn from_fields(fields: &Fields) -> Result<Self, ModelError> {
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
        Err(unsupported::architecture(&found))
    }

    /// Returns the names of all, for messages.
    pub(super) fn names() -> String {
        let names = Self::ALL.map(|a| a.class_name().trim_end_matches("ForCausalLM"));
        format!("{} (...ForCausalLM)", names.join(", "))
    }

    pub(crate) fn is_gemma(self) -> bool {
        matches!(self, Self::Gemma | Self::Gemma2 | Self::Gemma3)
    }

    /// Returns the places of the norms in a block.
    pub(crate) fn norms(self) -> NormPlacement {
        match self {
            Self::Olmo2 => NormPlacement::After,
            Self::Gemma2 | Self::Gemma3 => NormPlacement::Around,
            _ => NormPlacement::Before,
        }
    }

    pub(super) fn qk_norm(self) -> Option<QkNormWidth> {
        match self {
            Self::Qwen3 | Self::Qwen3Moe | Self::Gemma3 => Some(QkNormWidth::Head),
            Self::Olmo2 => Some(QkNormWidth::Projection),
            _ => None,
        }
    }

    /// Returns the key of the MLP's activation.
    pub(super) fn activation_key(self) -> &'static str {
        match self {
            Self::Gemma2 | Self::Gemma3 => "hidden_activation",
            _ => "hidden_act",
        }
    }

    /// Returns the values of absent keys: those of the configuration's class in transformers.
    pub(super) fn defaults(self) -> Defaults {
        let llama = Defaults {
            kv_heads: None,
            head_dim: None,
            positions: 2048,
            theta: 10_000.0,
            eps: 1e-6,
            tied: false,
            activation: Activation::Silu,
        };
        let gemma = Defaults {
            kv_heads: Some(4),
            head_dim: Some(256),
            positions: 8192,
            tied: true,
            activation: Activation::GeluTanh,
            ..llama
        };
        match self {
            Self::Llama | Self::Granite => llama,
            Self::Mistral => Defaults {
                kv_heads: Some(8),
                positions: 4096 * 32,
                ..llama
            },
            Self::Qwen2 => Defaults {
                kv_heads: Some(32),
                positions: 32768,
                ..llama
            },
            Self::Qwen3 => Defaults {
                kv_heads: Some(32),
                head_dim: Some(128),
                positions: 32768,
                ..llama
            },
            Self::Qwen3Moe => Defaults {
                kv_heads: Some(4),
                positions: 32768,
                ..llama
            },
            Self::SmolLm3 => Defaults {
                kv_heads: Some(4),
                positions: 32768,
                theta: 2_000_000.0,
                tied: true,
                ..llama
            },
            Self::Olmo2 => Defaults { eps: 1e-5, ..llama },
            Self::Phi3 => Defaults {
                positions: 4096,
                eps: 1e-5,
                ..llama
            },
            Self::Gemma => Defaults {
                kv_heads: Some(16),
                ..gemma
            },
            Self::Gemma2 => gemma,
            Self::Gemma3 => Defaults {
                positions: 131_072,
                theta: 1_000_000.0,
                ..gemma
            },
        }
    }
}
