//! Tasks and threads that have to live as long as the program: what dies is said, counted and started again.

use std::time::Duration;

use prometheus::IntCounterVec;
use tokio::task::{JoinHandle, JoinSet};

/// Pauses before another start: doubled from death to death up to a bound, each drawn between a half and the whole of it, so that
/// processes that died of one cause do not come back at once.
#[derive(Debug, Clone, Default)]
pub(super) struct BackOff {
    deaths: u32,
}

impl BackOff {
    const FIRST: Duration = Duration::from_secs(1);
    const LONGEST: Duration = Duration::from_secs(60);

    /// Returns the pause after another death in a row.
    pub fn next(&mut self) -> Duration {
        let doubled = Self::FIRST.saturating_mul(1 << self.deaths.min(16));
        self.deaths = self.deaths.saturating_add(1);
        let most = doubled.min(Self::LONGEST);
        most.mul_f64(0.5 + 0.5 * rand::random::<f64>())
    }

    /// Forgets the deaths so far: something was achieved since.
    pub fn reset(&mut self) {
        self.deaths = 0;
    }
}

/// Runs what `start` makes for as long as the program does: if it ends or panics it is started again after a pause.
pub(super) fn supervised<F>(
    name: &'static str,
    restarts: IntCounterVec,
    mut start: impl FnMut() -> F + Send + 'static,
) -> JoinHandle<()>
where
    F: Future<Output = ()> + Send + 'static,
{
    restarts.with_label_values(&[name]).inc_by(0);
    tokio::spawn(async move {
        let mut pause = BackOff::default();
        loop {
            // The set ends its task with itself, when this one is aborted.
            let mut task = JoinSet::new();
            task.spawn(start());
            match task.join_next().await {
                Some(Err(died)) => tracing::error!("the task `{name}` died: {died}"),
                _ => tracing::error!("the task `{name}` ended"),
            }
            restarts.with_label_values(&[name]).inc();
            tokio::time::sleep(pause.next()).await;
        }
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::telemetry::Metrics;

    #[test]
    fn pauses_grow_to_a_bound_and_are_drawn() {
        let mut pause = BackOff::default();
        for most in [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0] {
            let drawn = pause.next().as_secs_f64();
            assert!((most / 2.0..=most).contains(&drawn), "{drawn} of {most}");
        }
        for _ in 0..100 {
            assert!(pause.next() <= BackOff::LONGEST);
        }
        pause.reset();
        assert!(pause.next() <= BackOff::FIRST);
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_dies_is_started_again_and_ends_with_its_supervisor() {
        let restarts = Metrics::new("m").learn.tasks_restarted;
        let (starts, alive) = (Arc::new(AtomicUsize::new(0)), Arc::new(()));
        let task = supervised("test", restarts.clone(), {
            let (starts, alive) = (Arc::clone(&starts), Arc::clone(&alive));
            move || {
                let (start, alive) = (starts.fetch_add(1, Ordering::SeqCst), Arc::clone(&alive));
                async move {
                    assert!(start >= 2, "dies twice");
                    std::future::pending::<()>().await;
                    drop(alive);
                }
            }
        });
        while starts.load(Ordering::SeqCst) < 3 {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        assert_eq!(restarts.with_label_values(&["test"]).get(), 2);
        task.abort();
        assert!(task.await.unwrap_err().is_cancelled());
        // One is held here, one by what starts the task; both of the supervisor's are gone.
        while Arc::strong_count(&alive) > 1 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}
