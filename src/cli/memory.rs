//! Gives memory that a burst of work has left behind back to the system.
//!
//! The allocator returns pages that have been unused for a second, but only while it is asked for more or given some back: a server
//! that has become idle would keep what its busiest minute took.

use std::time::Duration;

use crate::telemetry::EngineMetrics;

/// Between two looks.
const EVERY: Duration = Duration::from_secs(10);

/// Growth since the last time that is worth the work.
const GROWTH: usize = 32 << 20;

/// Returns memory whenever the engine has nothing to do and the process has grown.
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
            // SAFETY: the allocator's own function, which any thread may call.
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

/// Bytes of memory that the process has, where the system says so.
fn resident() -> Option<usize> {
    let line = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: usize = line.split_ascii_whitespace().nth(1)?.parse().ok()?;
    Some(pages * 4096)
}
