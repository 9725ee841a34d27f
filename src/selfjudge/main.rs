//! The binary: parse, run, say what went wrong.

use std::process::ExitCode;

use libmimalloc_sys::{mi_option_set_default, mi_option_t};
use selfjudge::cli::{Cli, fail, parse_command_line};

/// Activations are allocated and freed at every op.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// `mi_option_purge_delay` of mimalloc 3, which the bindings do not name.
const PURGE_DELAY: mi_option_t = 15;

/// Bytes of the stack on which a command runs.
const STACK: usize = 16 << 20;

/// Runs the command on a thread with a stack of its own: that of the process may be tiny (`ulimit -s 64`), and its overflow would be a
/// signal without a word.
fn main() -> ExitCode {
    let command = std::thread::Builder::new()
        .name("main".to_owned())
        .stack_size(STACK);
    match command.spawn(command_line) {
        // The panic has said its reason.
        Ok(running) => running.join().unwrap_or(ExitCode::from(101)),
        Err(error) => {
            eprintln!(
                "Error: the system cannot start a thread: {error}; check the limits on processes (ulimit -u) and address space (ulimit -v)"
            );
            ExitCode::FAILURE
        }
    }
}

fn command_line() -> ExitCode {
    let cli: Cli = parse_command_line(std::env::args_os()).unwrap_or_else(|error| error.exit());
    // A step frees its activations, and the next allocates the same ones again: given back to the system in between, every page
    // of them would be faulted in anew. A server, whose load comes and goes, gives back what it has not used for a second.
    let purge_delay_ms = if cli.trains() { -1 } else { 1000 };
    // SAFETY: sets one number of the allocator; any value is valid. The environment (MIMALLOC_PURGE_DELAY) goes before it.
    unsafe { mi_option_set_default(PURGE_DELAY, purge_delay_ms) };
    match selfjudge::cli::run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            fail(&error);
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::PURGE_DELAY;
    use libmimalloc_sys::{mi_option_get, mi_option_set};

    #[test]
    fn the_option_is_the_purge_delay() {
        // SAFETY: reads and sets one number of the allocator.
        unsafe {
            // Its default, in milliseconds, which no other option has; another one here means the options were renumbered.
            assert_eq!(mi_option_get(PURGE_DELAY), 1000);
            mi_option_set(PURGE_DELAY, -1);
            assert_eq!(mi_option_get(PURGE_DELAY), -1);
        }
    }
}
