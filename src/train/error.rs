//! The error type of training.

use std::path::{Path, PathBuf};

/// An error of training; every message names the file, setting or tensor to look at.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
    #[error(transparent)]
    Model(#[from] model::ModelError),
    #[error("{what} {}: {source}", path.display())]
    Io {
        /// The failed operation: "cannot write", "cannot read", ...
        what: &'static str,
        path: PathBuf,
        source: std::io::Error,
    },
    /// A file that exists but has invalid contents.
    #[error("{}: {detail}", path.display())]
    BadFile { path: PathBuf, detail: String },
    #[error("the gradient of `{tensor}` is not finite; the step was not taken")]
    NonFiniteGradient { tensor: String },
    #[error("the loss of pair {pair} is not finite; the step was not taken")]
    NonFiniteLoss {
        /// Index in the batch, from 0.
        pair: usize,
    },
    /// The trainable tensors do not match what is applied to them (gradients, saved state).
    #[error("{0}")]
    Mismatch(String),
    /// Unusable training data, templates or tokenizer; the message names the file or the token.
    #[error("{0}")]
    Data(String),
    #[error("configuration: {0}")]
    Config(String),
    /// A run that needs more memory than is available.
    #[error("{0}")]
    Memory(String),
}

impl TrainError {
    /// Returns a function for `map_err` on an I/O call; `what` reads like "cannot write".
    pub fn io(
        what: &'static str,
        path: impl AsRef<Path>,
    ) -> impl FnOnce(std::io::Error) -> TrainError {
        let path = path.as_ref().to_path_buf();
        move |source| TrainError::Io { what, path, source }
    }

    pub(crate) fn bad_file(path: impl AsRef<Path>, detail: impl ToString) -> TrainError {
        TrainError::BadFile {
            path: path.as_ref().to_path_buf(),
            detail: detail.to_string(),
        }
    }
}
