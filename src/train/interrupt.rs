//! Handling of Ctrl-C (SIGINT) and SIGTERM in a training run: it stops after the current step, with a checkpoint.

use std::sync::atomic::{AtomicBool, Ordering};

/// Whether a signal to stop has arrived.
static STOP_REQUESTED: AtomicBool = AtomicBool::new(false);

/// Records the signal. A second one ends the process at once, by the default handler.
extern "C" fn record_signal(signal: libc::c_int) {
    STOP_REQUESTED.store(true, Ordering::Relaxed);
    // SAFETY: a signal handler may set another one; the default handler is not a Rust function.
    unsafe { libc::signal(signal, libc::SIG_DFL) };
}

/// Installs the handler: the first Ctrl-C or SIGTERM stops a run after its step, instead of ending the process.
pub fn catch() {
    let handler = record_signal as extern "C" fn(libc::c_int) as libc::sighandler_t;
    for signal in [libc::SIGINT, libc::SIGTERM] {
        // SAFETY: the handler only stores to an atomic and calls `signal`, both of which are allowed in a signal handler.
        unsafe { libc::signal(signal, handler) };
    }
}

/// Returns whether a signal to stop has arrived.
pub fn stop_requested() -> bool {
    STOP_REQUESTED.load(Ordering::Relaxed)
}
