//! The number of compute threads of the process, and a check that the system allows them.

use std::sync::{Mutex, mpsc};
use std::thread;

use super::DeviceError;

/// The number of threads that can be requested on any machine.
const FEW: usize = 64;

/// The maximum number of threads per processor: more only take turns.
const TIMES: usize = 4;

/// Sizes every thread pool: rayon's global one, and the number of parts into which candle lets `gemm` cut a product (which
/// would otherwise be the number of *physical* cores, whatever the container may use). Returns the number.
///
/// Candle also has a pool for large elementwise operations, which the whole process shares and whose threads spin:
/// serving would wait there for a paused trainer. That pool gets no threads, so each caller computes such an operation on its own thread.
///
/// The default (without `requested` and `RAYON_NUM_THREADS`) is the parallelism available to the process:
/// [`std::thread::available_parallelism`] reads the affinity mask and the CPU quota of cgroup v1 and v2.
///
/// Errors of libraries have no backtrace after this call, unless `RUST_LIB_BACKTRACE` requests one: candle writes it into the text of
/// the error, which users read. Panics keep theirs.
///
/// # Errors
/// Errors for more threads than [`most_threads`], or if other threads were started before: the number is passed in an environment
/// variable, and changing the environment is only sound while no other thread reads it. So call this first in `main`, or first in the one
/// thread that `main` starts and waits for.
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
            "{threads} threads are requested (--threads or RAYON_NUM_THREADS), but this machine can run at most {most} at once; request \
             at most {most}"
        )));
    }
    // SAFETY: no other thread could read the environment in the meantime: there is none, or only the process's first one, which waits for
    // this one; checked above.
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

/// Returns the maximum number of threads that can be requested: 64, or four times the available parallelism if that is more.
pub fn most_threads() -> usize {
    processors().saturating_mul(TIMES).max(FEW)
}

/// Checks that the system allows the process this many more threads at once. Runtimes that start their own threads panic where it does not.
///
/// # Errors
/// Errors with [`DeviceError::Threads`] and the system's reason: limits on processes (`ulimit -u`, a cgroup) or on the address space
/// (`ulimit -v`).
pub fn threads_can_be_had(count: usize) -> Result<(), DeviceError> {
    let (end, ended) = mpsc::channel::<()>();
    let ended = Mutex::new(ended);
    let wait = || {
        // Blocks until the sender is dropped.
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
            "the system cannot start the threads that the process needs: {error}; check the limits on its processes (ulimit -u) and \
             address space (ulimit -v)"
        ))
    })
}

fn processors() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

/// Returns the requested number, otherwise the environment's, otherwise the available parallelism.
fn thread_count(requested: Option<usize>, environment: Option<&str>) -> usize {
    let number = requested.or_else(|| environment?.parse().ok());
    match number {
        Some(n) if n > 0 => n,
        _ => processors(),
    }
}

/// Returns whether the caller is the only thread that runs: the process's first one, or the one that the first one started and waits for.
#[cfg(target_os = "linux")]
fn is_single_threaded() -> bool {
    // SAFETY: the system calls only return numbers.
    let is_first = unsafe { libc::gettid() == libc::getpid() };
    let allowed = if is_first { 1 } else { 2 };
    std::fs::read_dir("/proc/self/task").is_ok_and(|tasks| tasks.count() == allowed)
}

#[cfg(not(target_os = "linux"))]
fn is_single_threaded() -> bool {
    // There is no portable check; the caller has to keep the contract.
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
        let (end, ended) = mpsc::channel::<()>();
        let other = thread::spawn(move || ended.recv());
        assert!(init_threads(Some(1)).is_err());
        drop(end);
        other.join().unwrap().unwrap_err();
    }
}
