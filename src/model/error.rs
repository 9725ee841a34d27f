//! Errors of loading or running a model.

use std::path::PathBuf;

/// Errors of the model layer: from its files (each names the file or tensor) and from its computation.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    #[error("{path}: {source}")]
    Io {
        path: PathBuf,
        source: std::io::Error,
    },
    /// An invalid configuration file; the message names the field and its value.
    #[error("{path}: {message}")]
    Config { path: PathBuf, message: String },
    #[error("unsupported architecture {found}; supported are {supported}")]
    UnsupportedArchitecture { found: String, supported: String },
    /// A weights file or index that is truncated, corrupt or inconsistent.
    #[error("{path}: {message}")]
    Checkpoint { path: PathBuf, message: String },
    #[error("{path}: no tensor `{name}` (expected shape {expected:?})")]
    MissingTensor {
        path: PathBuf,
        name: String,
        expected: Vec<usize>,
    },
    #[error("{path}: tensor `{name}` has shape {found:?}, expected {expected:?}")]
    TensorShape {
        path: PathBuf,
        name: String,
        expected: Vec<usize>,
        found: Vec<usize>,
    },
    #[error("{path}: tensor `{name}` is {found}; only F32, F16 and BF16 are supported")]
    TensorDtype {
        path: PathBuf,
        name: String,
        found: String,
    },
    #[error("{path}: tensor `{name}` has {count} values that are not finite, the first at {first}")]
    NotFinite {
        path: PathBuf,
        name: String,
        count: usize,
        first: usize,
    },
    #[error("{path}: the configuration does not use {count} of the tensors: {names}")]
    UnexpectedTensors {
        path: PathBuf,
        count: usize,
        names: String,
    },
    /// A model id that could not be resolved or downloaded.
    #[error("model `{id}`: {message}")]
    Hub { id: String, message: String },
    /// Tokens or lengths that the model does not support.
    #[error("{0}")]
    Input(String),
    #[error(transparent)]
    Adapter(#[from] super::adapter::AdapterError),
    #[error(transparent)]
    Store(#[from] super::store::StoreError),
    #[error(transparent)]
    Text(#[from] text::TextError),
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}
