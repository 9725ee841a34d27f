//! Training: what turns preference data into better weights.
//!
//! In the order of the algorithm; what the two algorithms share comes before them:
//!
//! | module | what |
//! |---|---|
//! | `base`, `trainable`, `continued` | the frozen model, and the part that is trained: a new adapter, a given one, or the whole model |
//! | `records`, `plain`, `turn` | the files of a run as pairs, plain text in tokens, and where an answer ends in a conversation |
//! | `mixture`, `batch` | JSFT's examples from pairs, and examples laid end to end |
//! | `pass`, `step`, `lanes` | a batch through the decoder and back; the loss of a micro-batch; several at a time |
//! | `optim`, `schedule` | from gradients to weights, at the rate of the step |
//! | [`jsft`] (by `config`) | judge-augmented supervised fine-tuning: one model learns to answer and to judge |
//! | [`dpo`] | the update from judged pairs; [`crate::learn`] draws them from the policy itself |
//! | `run`, `interrupt`, `metrics`, `checkpoint`, `manifest`, `digest` | what every run has: flags, Ctrl-C, numbers, places to go on from, papers |

pub mod base;
pub mod batch;
pub mod checkpoint;
pub mod config;
pub mod continued;
pub mod digest;
pub mod dpo;
mod error;
pub mod interrupt;
pub mod jsft;
pub mod lanes;
pub mod manifest;
pub mod memory;
pub mod merge;
pub mod metrics;
pub mod mixture;
pub mod optim;
pub mod pass;
mod plain;
mod records;
mod run;
pub mod schedule;
pub mod step;
pub mod trainable;
mod turn;

pub use error::TrainError;
pub use run::RunOptions;
