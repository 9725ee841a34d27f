//! Training: preference data converted to better weights.
//!
//! The table follows the order of the algorithm; modules shared by both algorithms come first:
//!
//! | module | contents |
//! |---|---|
//! | `base`, `base_weights`, `trainable`, `continued` | the frozen model and the type of its weights, and the trained part: a new adapter, a given one, or the whole model |
//! | `records`, `plain`, `turn` | the files of a run as pairs, plain text in tokens, and the span of an answer in a conversation |
//! | `mixture`, `batch` | JSFT's examples from pairs, and packing of examples |
//! | `pass`, `step`, `lanes` | forward and backward pass of a batch; the loss of a micro-batch; several micro-batches at a time |
//! | `optim`, `schedule` | weight updates from gradients, at the step's learning rate |
//! | [`jsft`] (by `config`) | judge-augmented supervised fine-tuning: one model learns to answer and to judge |
//! | [`dpo`] | the update from judged pairs; [`crate::learn`] samples them from the policy itself |
//! | `run`, `interrupt`, `metrics`, `checkpoint`, `manifest`, `identity`, `digest` | for every run: flags, Ctrl-C, checkpoints, metrics, manifest, the model under an adapter |

pub mod base;
mod base_weights;
pub mod batch;
pub mod checkpoint;
pub mod config;
pub mod continued;
pub mod digest;
pub mod dpo;
mod error;
pub mod identity;
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

pub use base_weights::BaseWeights;
pub use error::TrainError;
pub use run::RunOptions;
