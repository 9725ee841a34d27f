//! Tests of learning from traffic in the running program, also after it was killed.

mod abandon;
mod adapter;
mod canary;
mod faults;
mod follow;
mod long_prompts;
mod options;
mod other_model;
mod outage;
mod pause;
mod pruning;
mod quantised;
mod supervision;
pub mod support;
mod traffic;
mod waiting;
