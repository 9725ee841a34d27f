//! The type of the weights of a base that is not trained.

use std::str::FromStr;

use candle_core::Device;
use serde::{Deserialize, Serialize};

use super::TrainError;
use kernels::linear::WeightFormat;

/// The type of the frozen weights under an adapter. Quantised ones are never copied to f32 as a whole (QLoRA).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BaseWeights {
    /// The integers of a GGUF file, and f32 for all other weights.
    #[default]
    Auto,
    F32,
    Int8,
    Int4,
}

impl BaseWeights {
    /// Returns the type under an adapter of a server whose weights are kept in `format`.
    ///
    /// # Errors
    /// If the server's weights are rounded in another way than a trainer's.
    pub fn of_server(format: Option<WeightFormat>) -> Result<Self, TrainError> {
        match format {
            None => Ok(Self::Auto),
            Some(WeightFormat::F32) => Ok(Self::F32),
            Some(WeightFormat::Int8) => Ok(Self::Int8),
            Some(WeightFormat::Int4) => Ok(Self::Int4),
            Some(WeightFormat::Bf16) => Err(TrainError::Config(
                "weights in bf16 cannot be learned over: serve them as auto, f32, int8 or int4"
                    .to_owned(),
            )),
        }
    }

    /// Returns the type in which a server keeps the same weights; none for the checkpoint's own.
    pub fn format(self) -> Option<WeightFormat> {
        match self {
            Self::Auto => None,
            Self::F32 => Some(WeightFormat::F32),
            Self::Int8 => Some(WeightFormat::Int8),
            Self::Int4 => Some(WeightFormat::Int4),
        }
    }

    /// Returns whether it is the default, which saved configurations omit, so that a run started before this option existed keeps its
    /// identity.
    pub fn is_auto(&self) -> bool {
        *self == Self::Auto
    }

    /// Returns the type that is asked for on this device: the format, and whether the checkpoint's own integers are kept.
    ///
    /// # Errors
    /// If the device does not have it.
    pub(super) fn on(self, device: &Device) -> Result<(Option<WeightFormat>, bool), TrainError> {
        let packs = match self {
            Self::Auto => device.is_cpu(),
            Self::F32 => false,
            Self::Int8 | Self::Int4 if device.is_cpu() => true,
            Self::Int8 | Self::Int4 => {
                return Err(TrainError::Config(format!(
                    "weights in {self} are trained over on the CPU only"
                )));
            }
        };
        Ok((self.format(), packs))
    }

    /// Checks that the whole model can be trained from weights of this type.
    ///
    /// # Errors
    /// If they are asked to be quantised.
    pub(super) fn check_whole(self) -> Result<(), TrainError> {
        match self {
            Self::Auto | Self::F32 => Ok(()),
            Self::Int8 | Self::Int4 => Err(TrainError::Config(format!(
                "weights = \"{self}\" needs an adapter (`lora`, --lora-rank): quantised weights are not trained themselves"
            ))),
        }
    }
}

impl std::fmt::Display for BaseWeights {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::F32 => "f32",
            Self::Int8 => "int8",
            Self::Int4 => "int4",
        })
    }
}

impl FromStr for BaseWeights {
    type Err = String;

    /// Parses a name.
    fn from_str(text: &str) -> Result<Self, String> {
        [Self::Auto, Self::F32, Self::Int8, Self::Int4]
            .into_iter()
            .find(|known| known.to_string() == text)
            .ok_or_else(|| format!("`{text}` is not one of auto, f32, int8 and int4"))
    }
}
