//! The entry point of the binary `pocket`.

use std::process::ExitCode;

use pocket::cli::{Cli, run};
use selfjudge::cli::{fail, parse_command_line};

/// An allocator that is fast for activations, which are allocated and freed at every op.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli: Cli = parse_command_line(std::env::args_os()).unwrap_or_else(|error| error.exit());
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            fail(&error);
            ExitCode::FAILURE
        }
    }
}
