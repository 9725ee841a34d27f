//! The one integration binary.

mod config;
mod corrupt;
mod support;
