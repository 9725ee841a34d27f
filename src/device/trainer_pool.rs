//! Threads of the trainer's own: serving's pool never runs, and never waits for, a trainer's task.

use rayon::{ThreadPool, ThreadPoolBuilder};

use super::DeviceError;

/// How much the trainer's threads step back for others that want to run (`nice`, of 19).
#[cfg(target_os = "linux")]
const NICENESS: libc::c_int = 15;

/// A pool of `threads`, of lower priority than the rest of the process. What is installed in it computes there, products
/// included.
///
/// # Errors
/// No threads, or threads that cannot be started.
pub fn trainer_pool(threads: usize) -> Result<ThreadPool, DeviceError> {
    if threads == 0 {
        return Err(DeviceError::Threads(
            "the trainer needs a thread at least".to_owned(),
        ));
    }
    ThreadPoolBuilder::new()
        .num_threads(threads)
        .thread_name(|at| format!("trainer-{at}"))
        .start_handler(|_| step_back())
        .build()
        .map_err(|error| DeviceError::Threads(error.to_string()))
}

/// Lowers the calling thread's priority: on Linux threads have their own.
#[cfg(target_os = "linux")]
fn step_back() {
    // SAFETY: the call has no preconditions; 0 is the calling thread.
    if unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICENESS) } != 0 {
        let error = std::io::Error::last_os_error();
        tracing::warn!(%error, "the trainer's threads keep the priority of serving's");
    }
}

#[cfg(not(target_os = "linux"))]
fn step_back() {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_runs_on_threads_of_the_pool() {
        let pool = trainer_pool(2).unwrap();
        let name = pool.install(|| std::thread::current().name().map(str::to_owned));
        assert!(name.unwrap().starts_with("trainer-"));
        assert_eq!(pool.install(rayon::current_num_threads), 2);
        assert!(trainer_pool(0).is_err());
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn its_threads_step_back_and_others_do_not() {
        // SAFETY: no preconditions.
        let niceness = || unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) };
        let before = niceness();
        let within = trainer_pool(1).unwrap().install(niceness);
        assert_eq!(within, NICENESS.max(before));
        assert_eq!(niceness(), before);
    }
}
