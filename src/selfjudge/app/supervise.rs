//! Supervision of tasks and threads that must run as long as the program: a death is logged, counted and followed by a restart.

use std::time::Duration;

use prometheus::IntCounterVec;
use tokio::task::{JoinHandle, JoinSet};

/// Exponential back-off between restarts: the pause doubles with every death up to a bound, and is drawn between half and the whole of
/// it, so that processes with the same cause of death do not restart simultaneously.
#[derive(Debug, Clone, Default)]
pub(super) struct BackOff {
    deaths: u32,
}

impl BackOff {
    const FIRST: Duration = Duration::from_secs(1);
    const LONGEST: Duration = Duration::from_secs(60);

    /// Returns the pause after another consecutive death.
    pub fn next(&mut self) -> Duration {
        let doubled = Self::FIRST.saturating_mul(1 << self.deaths.min(16));
        self.deaths = self.deaths.saturating_add(1);
        let most = doubled.min(Self::LONGEST);
        most.mul_f64(0.5 + 0.5 * rand::random::<f64>())
    }

    /// Resets the count of deaths, after progress was made.
    pub fn reset(&mut self) {
        self.deaths = 0;
    }
}

/// Runs the future of `start` as long as the program runs: if it ends or panics, it is restarted after a pause.
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
            // If this task is aborted, dropping the set aborts the inner task.
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
    use telemetry::Metrics;

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
        // One reference is held here, one by the closure that starts the task; both of the supervisor's are gone.
        while Arc::strong_count(&alive) > 1 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}
