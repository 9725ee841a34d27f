//! The runtime that a command waits on.

use tokio::runtime::{Builder, Runtime};

use crate::device::threads_can_be_had;

/// Threads that a runtime starts beside its workers: for files, databases and the steps of starting.
const BESIDE: usize = 6;

/// Returns a runtime of so many workers.
///
/// # Errors
/// A system that refuses the threads: the runtime itself would panic.
pub(super) fn runtime(workers: usize) -> anyhow::Result<Runtime> {
    threads_can_be_had(workers + BESIDE)?;
    Ok(Builder::new_multi_thread()
        .worker_threads(workers)
        .enable_all()
        .build()?)
}
