//! Matrix products with weights.
//!
//! Training: [`linear`] and [`lora_linear`] over [`gemm_f32`], with a backward. Serving: [`PackedLinear`], packed once at load.

mod add;
mod amx;
mod autograd;
mod dot;
mod format;
mod frozen;
mod gemm;
mod lora;
mod packed;
#[cfg(test)]
mod packed_tests;
mod panels;
mod product;
mod quant;
mod rounded;
mod widen;

pub use autograd::{add_bias, linear, plain};
pub use format::{WeightFormat, choose};
pub use frozen::{Frozen, frozen_linear};
pub use gemm::gemm_f32;
pub use lora::{lora_linear, lora_over};
pub use packed::PackedLinear;
pub use panels::Element;
pub use product::spreads;
pub use quant::{Bits, GROUP, Grid, Group};
