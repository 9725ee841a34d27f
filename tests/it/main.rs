//! The binary of all integration tests.

mod adapter_base;
mod architectures;
mod attack;
mod config;
mod config_refused;
mod contact;
mod corrupt;
mod dashboards;
mod data_dir;
mod dpo;
mod experts;
mod fuzz;
mod gguf;
mod http;
mod ineffective;
mod jsft;
mod learn;
mod learning;
mod log;
mod parity;
mod patience;
mod process;
mod refused;
mod serving;
mod settings_reference;
mod spans;
mod support;
mod told;
mod weights_files;
mod weights_types;

/// An allocator that records the largest allocation. No damaged file may ask for more memory than there is.
#[global_allocator]
static ALLOCATOR: support::Noting = support::Noting;
