//! Matrix products with weights.

mod autograd;
mod gemm;

pub use autograd::{linear, plain};
pub use gemm::gemm_f32;
