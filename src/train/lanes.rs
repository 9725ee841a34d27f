//! Lanes: micro-batches that run at the same time, each on its own threads.
//!
//! Micro-batch `i` runs in lane `i mod lanes`, a lane runs its micro-batches in order, and the lanes' gradients are added in order: the
//! sum depends on the number of lanes, not on the number of threads or their timing.

use rayon::{ThreadPool, ThreadPoolBuilder};

use super::TrainError;
use super::batch::MicroBatch;
use super::optim::GradBuffers;
use super::step::BatchStats;

/// The gradient buffers and threads of all lanes.
pub struct Lanes {
    grads: Vec<GradBuffers>,
    /// One thread pool per lane; empty with a single lane, which runs on the global pool.
    pools: Vec<ThreadPool>,
}

impl Lanes {
    /// Creates `count` lanes (at least one) that share `threads` threads, at least one each.
    ///
    /// # Errors
    /// If threads cannot be started or buffers cannot be allocated.
    pub fn new(
        count: usize,
        threads: usize,
        buffers: impl Fn() -> Result<GradBuffers, TrainError>,
    ) -> Result<Self, TrainError> {
        let count = count.max(1);
        let pool = |_| {
            ThreadPoolBuilder::new()
                .num_threads((threads / count).max(1))
                .build()
                .map_err(|e| TrainError::Config(format!("cannot start threads: {e}")))
        };
        let pools = if count > 1 { count } else { 0 };
        Ok(Self {
            grads: (0..count).map(|_| buffers()).collect::<Result<_, _>>()?,
            pools: (0..pools).map(pool).collect::<Result<_, _>>()?,
        })
    }

    /// Runs `work` on every micro-batch with its lane's buffers, then adds the lanes' gradients: see [`Self::gradients`].
    ///
    /// # Errors
    /// That of the first lane that failed.
    pub fn run(
        &mut self,
        micro_batches: &[MicroBatch],
        work: impl Fn(&MicroBatch, &mut GradBuffers) -> Result<BatchStats, TrainError> + Sync,
    ) -> Result<BatchStats, TrainError> {
        let count = self.grads.len();
        let run_lane = |index: usize, grads: &mut GradBuffers| -> Result<BatchStats, TrainError> {
            let mut stats = BatchStats::default();
            grads.zero()?;
            for micro_batch in micro_batches.iter().skip(index).step_by(count) {
                stats.add(&work(micro_batch, grads)?);
            }
            Ok(stats)
        };
        if self.pools.is_empty() {
            return run_lane(0, &mut self.grads[0]);
        }
        let results = std::thread::scope(|scope| {
            let running: Vec<_> = self
                .grads
                .iter_mut()
                .zip(&self.pools)
                .enumerate()
                .map(|(index, (grads, pool))| {
                    let run_lane = &run_lane;
                    scope.spawn(move || pool.install(|| run_lane(index, grads)))
                })
                .collect();
            running
                .into_iter()
                .map(|lane| {
                    lane.join()
                        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
                })
                .collect::<Vec<_>>()
        });
        let mut stats = BatchStats::default();
        for result in results {
            stats.add(&result?);
        }
        let (first, rest) = self
            .grads
            .split_first_mut()
            .expect("there is at least one lane; this is a bug");
        for grads in rest {
            first.add_all(grads)?;
        }
        Ok(stats)
    }

    /// Returns the gradients of the last [`Self::run`].
    pub fn gradients(&self) -> &GradBuffers {
        &self.grads[0]
    }
}
