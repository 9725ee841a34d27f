//! Layers: parameters joined to the ops that use them. No layer knows an architecture.

mod adapter;
mod attention;
mod dropout;
mod linear;
mod mlp;
mod norm;
pub mod rotary;

pub use adapter::{AdaptedRows, Adapter, LowRank};
pub use attention::{Adapted, Attention, AttentionBackend, Rotations};
pub use dropout::{Dropout, with_dropout};
pub use linear::{Linear, Lora};
pub use mlp::Mlp;
pub use norm::RmsNorm;
