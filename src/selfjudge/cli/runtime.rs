//! The tokio runtime of a command.

use tokio::runtime::{Builder, Runtime};

use kernels::device::threads_can_be_had;

/// Number of threads that a runtime starts besides its workers: for files, databases and the startup steps.
const BESIDE: usize = 6;

/// Returns a runtime with this many workers.
///
/// # Errors
/// Fails if the system refuses the threads; the runtime itself would panic.
pub fn runtime(workers: usize) -> anyhow::Result<Runtime> {
    threads_can_be_had(workers + BESIDE)?;
    Ok(Builder::new_multi_thread()
        .worker_threads(workers)
        .enable_all()
        .build()?)
}
