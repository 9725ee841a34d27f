//! The one integration binary.

mod config;
mod config_refused;
mod corrupt;
mod dpo;
mod floors;
mod http;
mod jsft;
mod learning;
mod parity;
mod process;
mod serving;
mod support;
mod weights_files;
