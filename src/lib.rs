//! selfjudge: one language model that answers, judges and keeps improving, in one process.
//!
//! A module imports only from floors below its own; modules on one floor do not meet.
//! `tests/it/floors.rs` reads the sources and checks this table.
//!
//! | floor | modules | what they are |
//! |---|---|---|
//! | 7 | `main`, `cli` | wiring only |
//! | 6 | [`eval`] | measuring policy and judge |
//! | 5 | [`judge`], [`train`] | the judge's prompt, read and bracket; JSFT |
//! | 3 | [`model`] | the one decoder, its weights and files |
//! | 2 | [`nn`] | layers |
//! | 1 | [`kernels`] | ops, plain beside fused |
//! | 0 | [`text`], [`preference`], [`pocket`], [`telemetry`], [`device`] | leaves |

pub mod cli;
pub mod device;
pub mod eval;
pub mod judge;
pub mod kernels;
pub mod model;
pub mod nn;
pub mod pocket;
pub mod preference;
pub mod telemetry;
pub mod text;
pub mod train;

#[cfg(test)]
pub(crate) mod test_support;
