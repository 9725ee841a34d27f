//! selfjudge: one language model that answers, judges and keeps improving, in one process.
//!
//! A module imports only from floors below its own; modules on one floor do not meet.
//! `tests/it/floors.rs` reads the sources and checks this table.
//!
//! | floor | modules | what they are |
//! |---|---|---|
//! | 7 | `main`, `cli` | wiring only |
//! | 6 | [`eval`], [`http`] | measuring policy and judge; the API |
//! | 5 | [`service`], [`train`] | clients of the engine: text, verdicts, best of N; JSFT, whose mixture is written with the judge's own prompt |
//! | 4 | [`engine`], [`judge`] | many requests through one model; the judge's prompt, read and bracket |
//! | 3 | [`model`] | the one decoder, its weights and files |
//! | 2 | [`nn`] | layers |
//! | 1 | [`kernels`], [`text`], [`pocket`] | ops, plain beside fused; tokens and templates; the default model's world |
//! | 0 | [`preference`], [`telemetry`], [`device`] | leaves |

pub mod cli;
pub mod device;
pub mod engine;
pub mod eval;
pub mod http;
pub mod judge;
pub mod kernels;
pub mod model;
pub mod nn;
pub mod pocket;
pub mod preference;
pub mod service;
pub mod telemetry;
pub mod text;
pub mod train;

#[cfg(test)]
pub(crate) mod test_support;
