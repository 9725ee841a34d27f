//! Learning from traffic in the running program: what it does, and what is left of it after it was killed.

mod faults;
mod support;
mod traffic;
