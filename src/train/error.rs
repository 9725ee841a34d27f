//! What training can fail with.

use std::path::{Path, PathBuf};

/// One enum for the floor; every message says what to look at.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
    #[error(transparent)]
    Model(#[from] crate::model::ModelError),
    #[error("{what} {}: {source}", path.display())]
    Io {
        /// What was being done: "cannot write", "cannot read", ...
        what: &'static str,
        path: PathBuf,
        source: std::io::Error,
    },
    /// A file that exists but does not hold what it should.
    #[error("{}: {detail}", path.display())]
    BadFile { path: PathBuf, detail: String },
    #[error("the gradient of `{tensor}` is not finite; the step was not taken")]
    NonFiniteGradient { tensor: String },
    #[error("the loss of pair {pair} is not finite; the step was not taken")]
    NonFiniteLoss {
        /// Its place in the batch, from 0.
        pair: usize,
    },
    /// The trainable tensors and what is applied to them (gradients, saved state) do not fit.
    #[error("{0}")]
    Mismatch(String),
    /// Training data, templates or tokenizer that cannot be used; the message names the file or the token.
    #[error("{0}")]
    Data(String),
    #[error("configuration: {0}")]
    Config(String),
    /// A run that needs more memory than there is.
    #[error("{0}")]
    Memory(String),
}

impl TrainError {
    /// For `map_err` on an I/O call: `what` reads like "cannot write".
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
