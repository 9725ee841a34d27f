//! The one integration binary.

mod config;
mod corrupt;
mod floors;
mod jsft;
mod parity;
mod serving;
mod support;
