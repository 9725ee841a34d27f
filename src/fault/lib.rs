//! Fault injection for tests: named points in the code at which a test makes the process fail.
//!
//! Tests of durability need a `kill -9`, and tests of supervision a panic, in a real server in the middle of real work. An environment
//! variable names the point:
//!
//! | `SELFJUDGE_FAULT` | action |
//! |---|---|
//! | `log.before_commit` | the process is killed at the first visit |
//! | `train.step:3` | … at the third visit |
//! | `panic@learn.stage:1-3` | the thread panics at the first three visits |
//! | `panic@learn.stage:1-` | … at every visit |
//! | `wait@publish.load:2` | the thread waits at the second visit until the file named by `SELFJUDGE_FAULT_UNTIL` exists |
//!
//! Points have no other effect; if the variable is unset, a visit costs one load.
//!
//! A program without debug assertions, such as a release, has no fault points.

#[cfg(debug_assertions)]
mod active;

#[cfg(debug_assertions)]
pub use active::point;

/// Does nothing: this program has no fault points.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub fn point(_place: &str) {}
