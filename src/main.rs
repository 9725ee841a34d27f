//! The binary: parse, run, say what went wrong.

use clap::Parser;

/// Activations are allocated and freed at every op.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> anyhow::Result<()> {
    selfjudge::cli::run(selfjudge::cli::Cli::parse())
}
