//! The threads that tokenise, render and parse, separate from those that serve connections and those that compute steps.
//!
//! On Linux they have a lower priority (nice), so that one caller's long texts delay the next tokens of all others only in proportion to
//! the threads' weight.

use std::sync::LazyLock;

use tokio::runtime::{Builder, Runtime};

/// The niceness of the threads: a tenth of the scheduling weight of a thread that serves connections.
#[cfg(target_os = "linux")]
const NICENESS: libc::c_int = 10;

/// Returns the number of pieces of work that run at once: one more than there are cores, and at least three.
pub(super) fn count() -> usize {
    rayon::current_num_threads().max(2) + 1
}

/// Runs `work` on one of the threads. Returns none if the threads could not be started or are shutting down.
///
/// # Panics
/// Panics if `work` panics.
pub(super) async fn run<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    /// The only worker thread is idle; the work runs on blocking threads.
    static RUNTIME: LazyLock<Option<Runtime>> = LazyLock::new(|| {
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .max_blocking_threads(count())
            .thread_name("text")
            .on_thread_start(lower_priority)
            .build();
        let runtime = runtime.inspect_err(|error| {
            tracing::error!(%error, "cannot start the threads for text processing");
        });
        runtime.ok()
    });
    match RUNTIME.as_ref()?.spawn_blocking(work).await {
        Ok(done) => Some(done),
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(_) => None,
    }
}

#[cfg(target_os = "linux")]
fn lower_priority() {
    // SAFETY: a system call without memory; 0 is the calling thread.
    if unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICENESS) } != 0 {
        let error = std::io::Error::last_os_error();
        tracing::warn!(%error, "cannot lower the priority of the threads for text processing");
    }
}

#[cfg(not(target_os = "linux"))]
fn lower_priority() {}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn work_runs_on_threads_of_lower_priority_and_its_panic_is_the_callers() {
        let name = run(|| std::thread::current().name().map(str::to_owned)).await;
        assert_eq!(name.flatten().as_deref(), Some("text"));
        #[cfg(target_os = "linux")]
        {
            // SAFETY: a system call without memory; 0 is the calling thread.
            let niceness = run(|| unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) }).await;
            assert!(niceness >= Some(NICENESS), "{niceness:?}");
        }
        let panicked = tokio::spawn(run(|| panic!("as a test asked"))).await;
        assert!(panicked.unwrap_err().is_panic());
        assert_eq!(run(|| 1).await, Some(1), "work goes on");
    }
}
