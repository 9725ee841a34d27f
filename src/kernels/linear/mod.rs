//! Matrix products with weights.

mod gemm;

pub use gemm::gemm_f32;
