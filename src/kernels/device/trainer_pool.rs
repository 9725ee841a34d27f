//! The trainer's own thread pool: the serving pool never runs, and never waits for, a trainer's task.
//!
//! On Linux its threads have the scheduling class `SCHED_IDLE`. Niceness alone is not enough: it determines how the processor is shared in
//! the long run, but a thread that wakes for a token still waits until a nice thread has used up its slice, and such a slice is longer
//! than the time between two tokens. An idle thread is preempted at once.

use rayon::{ThreadPool, ThreadPoolBuilder};

use super::DeviceError;

/// Creates a pool of `threads` threads that run only where no other thread of the system needs the processor. Work installed in the pool
/// runs there, matrix products included.
///
/// # Errors
/// Errors for zero threads or more than [`super::most_threads`], or if threads cannot be started.
pub fn trainer_pool(threads: usize) -> Result<ThreadPool, DeviceError> {
    if threads == 0 {
        return Err(DeviceError::Threads(
            "--trainer-threads must be at least 1".to_owned(),
        ));
    }
    let most = super::most_threads();
    if threads > most {
        return Err(DeviceError::Threads(format!(
            "{threads} threads are requested for the trainer (--trainer-threads), but this machine can run at most {most} at once"
        )));
    }
    ThreadPoolBuilder::new()
        .num_threads(threads)
        .thread_name(|at| format!("trainer-{at}"))
        .start_handler(|_| lower_priority())
        .build()
        .map_err(|error| DeviceError::Threads(error.to_string()))
}

/// Gives the calling thread the lowest priority of all; on Linux each thread has its own class.
#[cfg(target_os = "linux")]
fn lower_priority() {
    let lowest = libc::sched_param { sched_priority: 0 };
    // SAFETY: 0 is the calling thread, and `lowest` outlives the call, which keeps no pointer to it.
    if unsafe { libc::sched_setscheduler(0, libc::SCHED_IDLE, &raw const lowest) } != 0 {
        let error = std::io::Error::last_os_error();
        tracing::warn!(%error, "cannot lower the priority of the trainer's threads");
    }
}

#[cfg(not(target_os = "linux"))]
fn lower_priority() {}

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
        let class = || unsafe { libc::sched_getscheduler(0) };
        let before = class();
        assert_eq!(trainer_pool(1).unwrap().install(class), libc::SCHED_IDLE);
        assert_eq!(class(), before);
    }
}
