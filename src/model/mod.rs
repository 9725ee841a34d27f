//! The model: one decoder, its configuration, its files.

mod arch;
mod config;
mod error;
mod language_model;

pub use arch::{Activation, Architecture, DecoderSpec, LayerSpec};
pub use config::ModelConfig;
pub use error::ModelError;
pub use language_model::{Completion, LanguageModel, SampleParams};
