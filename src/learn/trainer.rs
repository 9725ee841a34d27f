//! The trainer on its own threads: serving computes first, and nothing of it waits on an async thread.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use rayon::ThreadPool;

use super::LearnError;
use super::config::LearnConfig;
use crate::device::DeviceArbiter;
use crate::train::TrainError;
use crate::train::base::{Adapter, FrozenBase};
use crate::train::dpo::{DpoConfig, DpoTrainer};

/// Where trainers compute, and from what they start.
#[derive(Clone)]
pub struct Workshop {
    pub base: FrozenBase,
    /// Names the base weights: a generation belongs to one base.
    pub base_digest: String,
    pool: Arc<ThreadPool>,
    arbiter: DeviceArbiter,
}

impl Workshop {
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
        }
    }

    /// Computes on the trainer's threads; `work` gets what it calls between quanta.
    ///
    /// # Errors
    /// The work's; [`LearnError::Panicked`] where it panicked.
    pub async fn compute<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut dyn FnMut()) -> Result<T, LearnError> + Send + 'static,
    ) -> Result<T, LearnError> {
        let (pool, arbiter) = (Arc::clone(&self.pool), self.arbiter.clone());
        let done = tokio::task::spawn_blocking(move || {
            let mut pace = || arbiter.pace();
            // The graph's nodes may be half-built when a step panics; all of them are dropped with it.
            let done = catch_unwind(AssertUnwindSafe(|| {
                pool.install(|| arbiter.making_way(|| work(&mut pace)))
            }));
            arbiter.rest();
            done
        });
        match done.await {
            Ok(Ok(done)) => done,
            Ok(Err(panic)) => Err(LearnError::Panicked(said(&*panic))),
            Err(error) => Err(LearnError::Panicked(error.to_string())),
        }
    }

    /// A trainer that starts at `start`, which is its reference too.
    ///
    /// # Errors
    /// An adapter that does not fit the base.
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
            // A saved state of other base weights is refused.
            trainer.bind(&digest);
            Ok(trainer)
        });
        Ok(Trainer {
            workshop: self.clone(),
            inner: Some(made.await?),
        })
    }
}

/// What a panic said.
fn said(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
    text.unwrap_or_else(|| "a panic without words".to_owned())
}

/// A trainer that is lent to the workshop for every piece of work.
pub struct Trainer {
    workshop: Workshop,
    /// None after a panic: what is left of the trainer then is not to be trusted.
    inner: Option<DpoTrainer>,
}

impl Trainer {
    /// # Errors
    /// The work's. After a panic the trainer is of no more use.
    pub async fn with<T: Send + 'static>(
        &mut self,
        work: impl FnOnce(&mut DpoTrainer, &mut dyn FnMut()) -> Result<T, TrainError> + Send + 'static,
    ) -> Result<T, LearnError> {
        let lost = || LearnError::Panicked("an earlier step".to_owned());
        let mut inner = self.inner.take().ok_or_else(lost)?;
        let done = self.workshop.compute(move |pace| {
            let result = work(&mut inner, pace);
            Ok((inner, result))
        });
        let (inner, result) = done.await?;
        self.inner = Some(inner);
        Ok(result?)
    }
}

impl LearnConfig {
    /// The settings of an SSO generator: those of the policy with the likelihood terms of its loss.
    pub(super) fn generator(&self) -> DpoConfig {
        DpoConfig {
            nll: self.contrast.gamma,
            ..self.dpo.clone()
        }
    }
}
