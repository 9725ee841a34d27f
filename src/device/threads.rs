//! How many threads the process computes on, and whether the system lets it have them.

use std::sync::{Mutex, mpsc};
use std::thread;

use super::DeviceError;

/// Threads that may be asked for on any machine.
const FEW: usize = 64;

/// How many times as many threads as processors may be asked for: more only take turns.
const TIMES: usize = 4;

/// Sizes every thread pool: rayon's global one, and the number of parts candle lets `gemm` cut a product into (which
/// would otherwise be the number of *physical* cores, whatever the container may use). Returns the number.
///
/// Candle also has a pool for large elementwise operations, which the whole process takes turns at and whose threads spin:
/// serving would wait there for a trainer that is not let run. It gets no threads, and whoever computes such an operation
/// does so itself.
///
/// Unless said (`requested`, or `RAYON_NUM_THREADS`), it is what the process may use:
/// [`std::thread::available_parallelism`] reads the affinity mask and the CPU quota of cgroup v1 and v2.
///
/// Errors of libraries come without a backtrace from here on, unless `RUST_LIB_BACKTRACE` asks for one: candle writes it into the text of
/// the error, which users read. A panic keeps its own.
///
/// # Errors
/// More threads than [`most_threads`]. Called after other threads were started: the number travels in an environment variable, and
/// changing the environment is only sound while nothing else reads it. So: first thing in `main`.
pub fn init_threads(requested: Option<usize>) -> Result<usize, DeviceError> {
    if !is_single_threaded() {
        return Err(DeviceError::Threads(
            "the number of threads must be set before any thread is started".to_owned(),
        ));
    }
    let threads = thread_count(
        requested,
        std::env::var("RAYON_NUM_THREADS").ok().as_deref(),
    );
    let most = most_threads();
    if threads > most {
        return Err(DeviceError::Threads(format!(
            "{threads} threads are asked for (--threads or RAYON_NUM_THREADS), and at most {most} may compute on this machine: more than \
             its processors only take turns"
        )));
    }
    // SAFETY: no other thread exists that could read the environment meanwhile; checked above.
    unsafe {
        std::env::set_var("RAYON_NUM_THREADS", threads.to_string());
        std::env::set_var("CANDLE_NUM_THREADS", "1");
        if std::env::var_os("RUST_LIB_BACKTRACE").is_none() {
            std::env::set_var("RUST_LIB_BACKTRACE", "0");
        }
    }
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build_global()
        .map_err(|e| DeviceError::Threads(e.to_string()))?;
    Ok(threads)
}

/// Returns the number of threads that may be asked for: 64, or four times as many as the process may use if that is more.
pub fn most_threads() -> usize {
    processors().saturating_mul(TIMES).max(FEW)
}

/// Whether the system lets the process have so many more threads at once. Runtimes that start their own panic where it does not.
///
/// # Errors
/// [`DeviceError::Threads`], with the system's reason: limits on processes (`ulimit -u`, a cgroup) or on the address space (`ulimit -v`).
pub fn threads_can_be_had(count: usize) -> Result<(), DeviceError> {
    let (end, ended) = mpsc::channel::<()>();
    let ended = Mutex::new(ended);
    let wait = || {
        // Until the sender is dropped.
        let _ = ended.lock().map(|ended| ended.recv());
    };
    thread::scope(|scope| {
        let had = (0..count).try_for_each(|_| {
            let one = thread::Builder::new().spawn_scoped(scope, wait);
            one.map(drop)
        });
        drop(end);
        had
    })
    .map_err(|error| {
        DeviceError::Threads(format!(
            "the system refuses the process the threads it needs: {error}; look at the limits on its processes (ulimit -u) and address \
             space (ulimit -v)"
        ))
    })
}

fn processors() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

/// What was asked for, else what the environment says, else what the process may use.
fn thread_count(requested: Option<usize>, environment: Option<&str>) -> usize {
    let said = requested.or_else(|| environment?.parse().ok());
    match said {
        Some(n) if n > 0 => n,
        _ => processors(),
    }
}

#[cfg(target_os = "linux")]
fn is_single_threaded() -> bool {
    std::fs::read_dir("/proc/self/task").is_ok_and(|tasks| tasks.count() == 1)
}

#[cfg(not(target_os = "linux"))]
fn is_single_threaded() -> bool {
    // Not to be asked portably; the caller's contract stands alone.
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_goes_before_what_is_found() {
        assert_eq!(thread_count(Some(3), Some("5")), 3);
        assert_eq!(thread_count(None, Some("5")), 5);
        let found = thread_count(None, None);
        assert!(found >= 1);
        assert_eq!(thread_count(Some(0), None), found);
        assert_eq!(thread_count(None, Some("many")), found);
    }

    #[test]
    fn a_few_threads_can_be_had_and_many_are_refused() {
        for count in [0, 1, 7] {
            threads_can_be_had(count).unwrap();
        }
        assert!(most_threads() >= 64 && most_threads() >= 4 * processors());
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn threads_cannot_be_set_once_others_run() {
        // The test harness is such another thread.
        assert!(init_threads(Some(1)).is_err());
    }
}
