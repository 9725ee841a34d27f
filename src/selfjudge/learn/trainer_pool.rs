//! The trainer on its own threads: serving has priority, and no async thread is blocked by training.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rayon::ThreadPool;
use tokio::sync::Mutex;

use super::LearnError;
use kernels::device::DeviceArbiter;
use train::{
    TrainError,
    base::{Adapter, FrozenBase},
    dpo::{DpoConfig, DpoTrainer},
};

/// The resources of trainers: the threads, the device and the base weights.
#[derive(Clone)]
pub struct TrainerPool {
    pub base: FrozenBase,
    /// Digest of the base weights; a generation belongs to one base.
    pub base_digest: String,
    pool: Arc<ThreadPool>,
    arbiter: DeviceArbiter,
    /// Held by the running work: work whose future was dropped may not have ended yet.
    busy: Arc<Mutex<()>>,
}

/// When dropped, stops the work at its next quantum, because no caller waits for the result.
struct Cancelled(Arc<AtomicBool>);

impl Drop for Cancelled {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl TrainerPool {
    pub fn new(
        base: FrozenBase,
        base_digest: String,
        pool: ThreadPool,
        arbiter: DeviceArbiter,
    ) -> Self {
        Self {
            base,
            base_digest,
            pool: Arc::new(pool),
            arbiter,
            busy: Arc::default(),
        }
    }

    /// Runs `work` on the trainer's threads; `work` calls its argument between quanta. One piece of work runs at a time. If the future is
    /// dropped, the work ends at its next quantum.
    ///
    /// # Errors
    /// The work's error; [`LearnError::Panicked`] if it panicked.
    pub async fn compute<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut dyn FnMut()) -> Result<T, LearnError> + Send + 'static,
    ) -> Result<T, LearnError> {
        let (pool, arbiter) = (Arc::clone(&self.pool), self.arbiter.clone());
        let cancelled = Cancelled(Arc::default());
        let ends = Arc::clone(&cancelled.0);
        let busy = Arc::clone(&self.busy).lock_owned().await;
        let done = tokio::task::spawn_blocking(move || {
            let _busy = busy;
            let mut pace = || {
                arbiter.pace();
                if ends.load(Ordering::Relaxed) {
                    // This unwinds out of the work without a panic message.
                    resume_unwind(Box::new("cancelled"));
                }
            };
            // The graph's nodes may be half-built when a step panics; all of them are dropped with it.
            let done = catch_unwind(AssertUnwindSafe(|| {
                pool.install(|| arbiter.yielding_to_serving(|| work(&mut pace)))
            }));
            arbiter.rest();
            done
        });
        match done.await {
            Ok(Ok(done)) => done,
            Ok(Err(panic)) => Err(LearnError::Panicked(panic_message(&*panic))),
            Err(error) => Err(LearnError::Panicked(error.to_string())),
        }
    }

    /// Creates a trainer that starts at `start` and uses it as the reference.
    ///
    /// # Errors
    /// Fails if the adapter does not fit the base.
    pub async fn trainer(
        &self,
        config: &DpoConfig,
        start: Option<Adapter>,
        updates: u64,
    ) -> Result<Trainer, LearnError> {
        let (base, config, digest) = (self.base.clone(), config.clone(), self.base_digest.clone());
        let made = self.compute(move |_| {
            let start = start.as_ref();
            let mut trainer = DpoTrainer::new(&base, start, start, config, updates)?;
            // A saved state of other base weights is rejected.
            trainer.bind(&digest);
            Ok(trainer)
        });
        Ok(Trainer {
            trainers: self.clone(),
            inner: Some(made.await?),
        })
    }
}

/// Returns the message of a panic.
pub fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
    text.unwrap_or_else(|| "a panic without a message".to_owned())
}

/// A trainer that is moved to the pool's threads for every piece of work and returned afterwards.
pub struct Trainer {
    trainers: TrainerPool,
    /// None after a panic, because the trainer's state is then unreliable.
    inner: Option<DpoTrainer>,
}

impl Trainer {
    /// Runs `work` on the trainer.
    ///
    /// # Errors
    /// The work's error. After a panic the trainer cannot be used any more.
    pub async fn with<T: Send + 'static>(
        &mut self,
        work: impl FnOnce(&mut DpoTrainer, &mut dyn FnMut()) -> Result<T, TrainError> + Send + 'static,
    ) -> Result<T, LearnError> {
        let lost = || LearnError::Panicked("an earlier step".to_owned());
        let mut inner = self.inner.take().ok_or_else(lost)?;
        let done = self.trainers.compute(move |pace| {
            let result = work(&mut inner, pace);
            Ok((inner, result))
        });
        let (inner, result) = done.await?;
        self.inner = Some(inner);
        Ok(result?)
    }
}
