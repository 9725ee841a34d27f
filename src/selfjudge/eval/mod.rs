//! Evaluation of a model as policy and as judge, against ground truth where it exists.

pub mod judge;
pub mod metrics;
pub mod perplexity;
pub mod stats;
pub mod subject;

pub use stats::Estimate;
pub use subject::{Contest, ModelSubject, Subject};

/// An error of an evaluation.
#[derive(Debug, thiserror::Error)]
pub enum EvalError {
    #[error(transparent)]
    Engine(#[from] engine::InlineError),
    #[error(transparent)]
    Call(#[from] crate::call::CallError),
    #[error(transparent)]
    Text(#[from] text::TextError),
    #[error(transparent)]
    Io(#[from] std::io::Error),
    #[error("{0}")]
    Options(&'static str),
    #[error("cannot draw the plot: {0}")]
    Plot(String),
}
