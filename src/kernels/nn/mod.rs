//! Layers: parameters together with the ops that use them. Layers are independent of architectures.

mod adapter;
mod attention;
mod dropout;
mod experts;
mod feed_forward;
mod joint;
mod linear;
mod mlp;
mod norm;
pub mod rotary;

pub use adapter::{AdaptedRows, Adapter, LowRank};
pub use attention::{
    Adapted, Attention, AttentionBackend, QkNorm, QkNormWidth, Rotation, Rotations,
};
pub use dropout::{Dropout, with_dropout};
pub use experts::Experts;
pub use feed_forward::FeedForward;
pub use joint::Joint;
pub use linear::{Linear, Lora};
pub use mlp::Mlp;
pub use norm::RmsNorm;
