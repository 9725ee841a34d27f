//! The model: one decoder, its configuration, its files.

mod arch;
mod config;
mod error;
pub mod hub;
mod language_model;
mod rope_config;
pub mod safetensors;
pub mod weights;

pub use arch::{Activation, Architecture, DecoderSpec, LayerSpec};
pub use config::ModelConfig;
pub use error::ModelError;
pub use language_model::{Completion, LanguageModel, SampleParams};
pub use weights::Checkpoint;
