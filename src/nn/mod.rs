//! Layers.

pub mod rotary;
