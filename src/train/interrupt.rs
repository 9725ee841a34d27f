//! Ctrl-C (SIGINT) and SIGTERM during a training run: it stops after the step that runs, with a checkpoint.

use std::sync::atomic::{AtomicBool, Ordering};

/// Whether the process was asked to stop.
static ASKED: AtomicBool = AtomicBool::new(false);

/// Notes the signal. A second one ends the process at once, as without this.
extern "C" fn note(signal: libc::c_int) {
    ASKED.store(true, Ordering::Relaxed);
    // SAFETY: a signal handler may set another one; the default handler is no function of ours.
    unsafe { libc::signal(signal, libc::SIG_DFL) };
}

/// Has the first Ctrl-C or SIGTERM ask running steps to stop, instead of ending the process.
pub fn catch() {
    let handler = note as extern "C" fn(libc::c_int) as libc::sighandler_t;
    for signal in [libc::SIGINT, libc::SIGTERM] {
        // SAFETY: the handler only stores to an atomic and calls `signal`, both of which a handler may do.
        unsafe { libc::signal(signal, handler) };
    }
}

/// Returns whether the process was asked to stop.
pub fn asked() -> bool {
    ASKED.load(Ordering::Relaxed)
}
