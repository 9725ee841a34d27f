//! selfjudge: one language model that answers, judges and keeps improving, in one process.
//!
//! The floors below are crates beside this one, so that cargo refuses an import that points up. The rooms of this crate stand in this
//! order; each imports only from those below it.
//!
//! | room | holds |
//! |---|---|
//! | [`cli`] | the command line |
//! | [`app`] | the wiring of weights, engine, service, learner and router; the order of starting and stopping |
//! | [`eval`], [`http`] | measuring policy and judge; the API |
//! | [`learn`] | traffic to pairs to updates to served versions |
//! | [`service`] | text and best of N through the engine |
//! | [`judging`] | the judge with its model: reads, verdicts and tournaments through the engine |
//! | [`call`] | the scheduling and errors of calls; work outside the threads that serve connections |
//! | [`principles`] | the principle table in force |

pub mod app;
pub mod call;
pub mod cli;
pub mod eval;
pub mod http;
pub mod judging;
pub mod learn;
pub mod principles;
pub mod service;
