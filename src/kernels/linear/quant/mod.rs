//! Quantised weights times quantised activations: integers of four or eight bits in groups of [`GROUP`] along the depth.
//!
//! # Numbers
//! A weight is `scale (u - zero)` with an unsigned integer `u` and a scale of 16 bits for each group of an output; `zero` is half of the
//! integers' range. Weights of a [`Grid`] with offsets are `scale u + offset`. An activation is `scale q` with `q` from -127 to 127 and a
//! scale for each group of its row, so that the largest magnitude of the group is 127 ([`rows`]).
//!
//! # Bits
//! A sum of products within a group is an integer, and exact. An element of the result is the sum of its groups, each multiplied by
//! both scales, in order and without fused multiply-adds. So all engines give the same bits, on every processor, for every number of
//! rows and every division of the work.
//!
//! | file | content |
//! |---|---|
//! | `grid` | groups of integers, and the rounding of weights to them |
//! | `panels` | the memory layout |
//! | `rows` | the rounding of activations |
//! | `product` | the loops over rows, panels and groups |
//! | `engine` | the sums of a group in plain Rust; `x86`: AVX2, AVX-VNNI and AVX-512-VNNI |

mod engine;
mod grid;
mod panels;
mod product;
mod rows;
#[cfg(test)]
mod tests;
#[cfg(target_arch = "x86_64")]
mod x86;

pub use grid::{Bits, GROUP, Grid, Group};
pub(super) use panels::Panels;
pub(super) use product::{Block, SCRATCH, run};
pub(super) use rows::Rows;
