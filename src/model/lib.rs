//! The model: one decoder, its configuration, its files.

pub mod adapter;
mod arch;
mod block;
mod config;
mod decoder;
mod error;
pub mod gguf;
pub mod hub;
mod kept;
mod language_model;
mod packed;
mod parameters;
mod rope_config;
pub mod safetensors;
mod safetensors_header;
mod sampling_defaults;
mod stop_ids;
mod store;
mod stored;
pub mod weights;

pub use arch::{
    Activation, Architecture, DecoderSpec, ExpertsSpec, LayerRotation, LayerSpec, Multipliers,
    NormPlacement,
};
pub use config::ModelConfig;
pub use decoder::Decoder;
pub use error::ModelError;
pub use kept::Kept;
pub use language_model::{LanguageModel, LoadOptions};
pub use packed::{Packed, PackedBatch};
pub use parameters::{ParameterSource, random_parameters};
pub use sampling_defaults::SamplingDefaults;
pub use stop_ids::stop_ids;
pub use store::{
    Canary, PrincipalHash, Role, Roles, StoreError, VersionStatus, WeightStore, WeightsLease,
    WeightsName, WeightsVersion,
};
pub use weights::Checkpoint;

#[cfg(test)]
mod oracle_tests;
