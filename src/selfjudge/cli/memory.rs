//! Returns memory left over from a burst of work to the system.
//!
//! The allocator returns pages that have been unused for a second, but only during allocations and deallocations: an idle server
//! would otherwise keep the memory of its busiest minute.

use std::time::Duration;

use telemetry::EngineMetrics;

/// Interval between checks.
const EVERY: Duration = Duration::from_secs(10);

/// Minimum growth since the last collection that is worth the work.
const GROWTH: usize = 32 << 20;

/// Returns memory to the system whenever the engine is idle and the process has grown.
pub(super) async fn give_back_when_idle(engine: EngineMetrics) {
    let mut least = resident();
    loop {
        tokio::time::sleep(EVERY).await;
        let busy = engine.requests_running.get() + engine.requests_waiting.get() > 0;
        let Some((now, before)) = resident().zip(least).filter(|_| !busy) else {
            least = least.or_else(resident);
            continue;
        };
        if now > before + GROWTH {
            // SAFETY: an allocator function that may be called from any thread.
            let collect = || unsafe { libmimalloc_sys::mi_collect(true) };
            if tokio::task::spawn_blocking(collect).await.is_err() {
                return;
            }
            least = resident();
        } else {
            least = Some(before.min(now));
        }
    }
}

/// Returns the resident memory of the process in bytes, if the system reports it.
fn resident() -> Option<usize> {
    let line = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: usize = line.split_ascii_whitespace().nth(1)?.parse().ok()?;
    Some(pages * 4096)
}
