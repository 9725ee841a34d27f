//! The model: one decoder, its configuration, its files.

pub mod adapter;
mod language_model;

pub use language_model::{Completion, LanguageModel, ModelError, SampleParams};
