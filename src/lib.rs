//! selfjudge: one language model that answers, judges and keeps improving, in one process.
//!
//! A module imports only from floors below its own; modules on one floor do not meet.
//! `tests/it/floors.rs` reads the sources and checks this table.
//!
//! | floor | modules | what they are |
//! |---|---|---|
//! | 11 | `main`, `cli` | what is said on the command line |
//! | 10 | [`claims`] | the papers' claims, measured on the pocket model |
//! | 9 | [`app`] | wiring: weights, engine, service, learner, router; the order of starting and stopping |
//! | 8 | [`eval`], [`http`] | measuring policy and judge; the API |
//! | 7 | [`learn`] | traffic to pairs to updates to served versions |
//! | 6 | [`service`], [`train`] | clients of the engine: text, verdicts, best of N; JSFT and DPO, clients of the model |
//! | 5 | [`engine`], [`judge`] | many requests through one model; the judge's prompt, read and bracket |
//! | 4 | [`model`] | the one decoder, its weights, versions and files |
//! | 3 | [`nn`] | layers |
//! | 2 | [`kernels`], [`text`], [`pocket`] | ops, plain beside fused; tokens and templates; the default model's world |
//! | 1 | [`preference`], [`telemetry`], [`device`] | pairs, principles and the traffic log; metrics; where to compute |
//! | 0 | [`fault`], [`files`], [`settings`] | places at which tests kill the process; reading files with a bound, and configuration over its defaults, with errors in one line |

pub mod app;
pub mod claims;
pub mod cli;
pub mod device;
pub mod engine;
pub mod eval;
pub mod fault;
pub mod files;
pub mod http;
pub mod judge;
pub mod kernels;
pub mod learn;
pub mod model;
pub mod nn;
pub mod pocket;
pub mod preference;
pub mod service;
pub mod settings;
pub mod telemetry;
pub mod text;
pub mod train;

#[cfg(test)]
pub(crate) mod test_support;
