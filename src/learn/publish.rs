//! From pointers to served weights.
//!
//! The truth about what serves is the pointers in the log, moved by compare-and-swap; every server follows them. A pointer that
//! cannot be followed (a damaged generation, a directory that is not there) leaves what serves as it is.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::LearnError;
use super::generation::Generations;
use crate::fault;
use crate::model::{Canary, Roles, WeightStore, WeightsLease};
use crate::preference::log::{GenerationId, Pointers, TrafficLog};
use crate::telemetry::LearnMetrics;
use crate::train::base::Adapter;

/// Generations that stay in memory after they stopped serving: the way back is a pointer's move and no load.
const RESIDENT: usize = 2;

/// Loads generations and gives them their roles.
#[derive(Clone)]
pub struct Publisher {
    store: WeightStore,
    generations: Generations,
    log: TrafficLog,
    canary_share: f64,
    metrics: LearnMetrics,
    followed: Arc<Mutex<Followed>>,
}

#[derive(Debug, Default)]
struct Followed {
    pointers: Option<Pointers>,
    /// The last policies, the newest last.
    resident: Vec<WeightsLease>,
    problem: Option<String>,
}

impl Publisher {
    /// `canary_share`: of the principals, while the canary pointer is not at the policy.
    pub fn new(
        store: WeightStore,
        generations: Generations,
        log: TrafficLog,
        canary_share: f64,
        metrics: LearnMetrics,
    ) -> Self {
        Self {
            store,
            generations,
            log,
            canary_share,
            metrics,
            followed: Arc::default(),
        }
    }

    /// Why the pointers are not followed at the moment.
    pub fn problem(&self) -> Option<String> {
        self.lock().problem.clone()
    }

    /// Weights by the name of their generation, loaded and verified if they are not in memory. Hold the lease: a version without
    /// a role lives as long as somebody does.
    ///
    /// # Errors
    /// No such generation; a damaged one; an adapter that does not fit the base.
    pub async fn weights(&self, name: &str) -> Result<WeightsLease, LearnError> {
        if name == "base" {
            return Ok(self.store.base().clone());
        }
        if let Some(lease) = self.store.find(name) {
            return Ok(lease);
        }
        let (store, generations, name) = (
            self.store.clone(),
            self.generations.clone(),
            name.to_owned(),
        );
        let loaded = tokio::task::spawn_blocking(move || {
            let (dir, _) = generations.verified(&name)?;
            fault::point("publish.load");
            Ok(store.publish_dir(&name, &dir)?)
        });
        let failed = |error: tokio::task::JoinError| LearnError::Panicked(error.to_string());
        loaded.await.map_err(failed)?
    }

    /// Weights in the making, under a name that no generation has.
    ///
    /// # Errors
    /// An adapter that does not fit the base.
    pub fn lend(&self, name: &str, adapter: &Adapter) -> Result<WeightsLease, LearnError> {
        Ok(self
            .store
            .publish(name, &adapter.config, &adapter.weights)?)
    }

    /// Serves what the pointers say. True if something changed.
    ///
    /// # Errors
    /// The log's; a generation that cannot be loaded, and then everything stays as it is.
    pub async fn follow(&self) -> Result<bool, LearnError> {
        let followed = self.follow_pointers().await;
        self.lock().problem = followed.as_ref().err().map(ToString::to_string);
        self.metrics.degraded.set(i64::from(followed.is_err()));
        followed
    }

    async fn follow_pointers(&self) -> Result<bool, LearnError> {
        let pointers = self.log.pointers().await?;
        if self.lock().pointers.as_ref() == Some(&pointers) {
            return Ok(false);
        }
        let policy = self.weights(pointers.policy.as_str()).await?;
        let judge = self.weights(pointers.judge.as_str()).await?;
        let canary = if pointers.canary == pointers.policy || self.canary_share == 0.0 {
            None
        } else {
            Some(Canary {
                weights: self.weights(pointers.canary.as_str()).await?,
                share: self.canary_share,
            })
        };
        let begun = Instant::now();
        self.store.set_roles(Roles {
            policy: policy.clone(),
            canary,
            judge,
        })?;
        self.metrics
            .swap_seconds
            .observe(begun.elapsed().as_secs_f64());
        self.metrics.swaps.inc();
        tracing::info!("serving generation {}", pointers.policy);
        let mut followed = self.lock();
        followed
            .resident
            .retain(|lease| lease.version() != policy.version());
        followed.resident.push(policy);
        let surplus = followed.resident.len().saturating_sub(RESIDENT);
        followed.resident.drain(..surplus);
        followed.pointers = Some(pointers);
        Ok(true)
    }

    /// Follows the pointers for as long as it is polled: other servers and trainers on the same log move them too.
    pub async fn run(self, every: Duration) {
        loop {
            if let Err(error) = self.follow().await {
                tracing::warn!("what serves stays as it is: {error}");
            }
            tokio::time::sleep(every).await;
        }
    }

    /// Whether a generation could serve: its files are whole and fit.
    ///
    /// # Errors
    /// Why not.
    pub async fn check(&self, id: &GenerationId) -> Result<(), LearnError> {
        self.weights(id.as_str()).await.map(|_| ())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Followed> {
        self.followed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
