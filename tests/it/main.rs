//! The one integration binary.

mod config;
mod corrupt;
mod floors;
mod support;
