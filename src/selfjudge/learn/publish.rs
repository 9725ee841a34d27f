//! Publishing: loads the generations that the pointers name and serves them.
//!
//! The pointers in the log determine what serves; they move by compare-and-swap, and every server follows them. If a pointer cannot be
//! followed (a damaged generation, a missing directory), the served weights stay unchanged. A generation of another base never serves;
//! the base itself does instead.
//!
//! Several tasks may follow the pointers concurrently: the periodic one, an operator's request, the learner. Each loads the named
//! weights, which takes seconds, and swaps the roles only if the pointers have not moved meanwhile; the swap is under a lock.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;
use utoipa::ToSchema;

use super::LearnError;
use super::canary::{CanaryBands, CanaryHealth, NUMBERS, Verdict, Vitals};
use super::generation::Generations;
use crate::service::Tallies;
use model::{Canary, Roles, WeightStore, WeightsLease};
use telemetry::LearnMetrics;
use traffic_log::{GenerationId, LogError, Pointer, PointerMove, Pointers, TrafficLog};
use train::base::Adapter;

/// Number of earlier policies kept in memory, so that a rollback needs no load.
const RESIDENT: usize = 2;

/// The actor of automatic canary withdrawals in the audit trail.
const WATCH: &str = "canary-watch";

/// The settings of canaries; by default the share is 0.
#[derive(Debug, Clone, Default)]
pub struct CanaryWatch {
    /// Share of the principals that the canary answers while its pointer differs from the policy's; 0 is none.
    pub share: f64,
    pub bands: CanaryBands,
    /// Tallies of the serving service.
    pub tallies: Tallies,
}

/// Loads generations and swaps them into the serving roles.
#[derive(Clone)]
pub struct Publisher {
    store: WeightStore,
    generations: Generations,
    log: TrafficLog,
    canary: CanaryWatch,
    metrics: LearnMetrics,
    followed: Arc<Mutex<Followed>>,
    /// Held from the last read of the pointers to the swap, so that an older read cannot follow a newer one.
    swapping: Arc<tokio::sync::Mutex<()>>,
}

/// Swaps of the served weights in this process.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, ToSchema)]
#[schema(as = SwapsBody)]
pub struct Swaps {
    /// The number of swaps since the program started.
    pub count: u64,
    /// Duration of the last swap, excluding loading; the metric `weights_swap_seconds` has all.
    pub last_seconds: Option<f64>,
}

#[derive(Debug, Default)]
struct Followed {
    pointers: Option<Pointers>,
    swaps: Swaps,
    /// The last policies, the newest last.
    resident: Vec<WeightsLease>,
    problem: Option<String>,
    /// Health of the current canary.
    health: Option<CanaryHealth>,
    /// The last canary that this process withdrew, and why.
    withdrawn: Option<String>,
}

impl Publisher {
    pub fn new(
        store: WeightStore,
        generations: Generations,
        log: TrafficLog,
        canary: CanaryWatch,
        metrics: LearnMetrics,
    ) -> Self {
        for number in NUMBERS {
            metrics
                .canaries_withdrawn
                .with_label_values(&[number])
                .inc_by(0);
        }
        let publisher = Self {
            store,
            generations,
            log,
            canary,
            metrics,
            followed: Arc::default(),
            swapping: Arc::default(),
        };
        publisher.show_roles();
        publisher
    }

    /// Exports the weights of each role as metrics.
    fn show_roles(&self) {
        let roles = self.store.roles();
        let shown = &self.metrics.generation;
        shown.reset();
        let canary = roles.canary.as_ref().map(|canary| &canary.weights);
        let serving = [
            ("policy", Some(&roles.policy)),
            ("judge", Some(&roles.judge)),
            ("canary", canary),
        ];
        for (role, weights) in serving {
            if let Some(weights) = weights {
                let labels = [weights.name().as_str(), role];
                shown.with_label_values(&labels).set(1);
            }
        }
    }

    /// Returns the reason why the pointers are not followed at present.
    pub fn problem(&self) -> Option<String> {
        self.lock().problem.clone()
    }

    /// Returns the name of the weights that answer: the policy pointer's, unless there is a [`Self::problem`].
    pub fn serving(&self) -> String {
        self.store.roles().policy.name().to_string()
    }

    /// Returns how often the served weights were swapped, and how long the last swap took.
    pub fn swaps(&self) -> Swaps {
        self.lock().swaps
    }

    /// Returns the share of the principals that a canary answers here.
    pub fn canary_share(&self) -> f64 {
        self.canary.share
    }

    /// Returns the health of the current canary, and the reason for the last withdrawal.
    pub fn canary(&self) -> (Option<CanaryHealth>, Option<String>) {
        let followed = self.lock();
        (followed.health.clone(), followed.withdrawn.clone())
    }

    /// Returns weights by the name of their generation; loads and verifies them unless they are in memory. Keep the lease: a version
    /// without a role is dropped with its last lease.
    ///
    /// # Errors
    /// Fails if there is no such generation, if it is damaged, or if the adapter does not fit the base.
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
            let adapter = generations.served(&name)?;
            let adapter = adapter.ok_or_else(|| LearnError::NoGeneration(name.clone()))?;
            fault::point("publish.load");
            Ok(store.publish(&name, &adapter.config, &adapter.weights)?)
        });
        let failed = |error: tokio::task::JoinError| LearnError::Panicked(error.to_string());
        loaded.await.map_err(failed)?
    }

    /// Registers weights under training, under a name that no generation has.
    ///
    /// # Errors
    /// Fails if the adapter does not fit the base.
    pub fn register(&self, name: &str, adapter: &Adapter) -> Result<WeightsLease, LearnError> {
        Ok(self
            .store
            .publish(name, &adapter.config, &adapter.weights)?)
    }

    /// Serves the weights that the pointers name, and returns the pointers.
    ///
    /// # Errors
    /// Errors from the log and from loading a generation leave everything unchanged; after [`LearnError::OtherBase`] the base
    /// serves.
    pub async fn follow(&self) -> Result<Pointers, LearnError> {
        let followed = self.follow_pointers().await;
        let problem = followed.as_ref().err().map(ToString::to_string);
        let before = std::mem::replace(&mut self.lock().problem, problem.clone());
        self.metrics.degraded.set(i64::from(followed.is_err()));
        if let Some(problem) = problem
            && before.as_ref() != Some(&problem)
        {
            // Logged once, not at every poll.
            tracing::error!(
                "{} serves, and not what the pointers say: {problem}",
                self.serving()
            );
        }
        followed
    }

    async fn follow_pointers(&self) -> Result<Pointers, LearnError> {
        let mut pointers = self.log.generations.pointers().await?;
        loop {
            if self.lock().pointers.as_ref() == Some(&pointers) {
                return Ok(pointers);
            }
            let loaded = self.roles_of(&pointers).await;
            let _swapping = self.swapping.lock().await;
            let now = self.log.generations.pointers().await?;
            if now != pointers {
                // An operator moved the pointers during the load, and the new ones may be served already.
                pointers = now;
                continue;
            }
            return match loaded {
                Ok(roles) => {
                    self.swap(&pointers, roles)?;
                    Ok(pointers)
                }
                Err(error @ LearnError::OtherBase { .. }) => {
                    self.serve_base()?;
                    Err(error)
                }
                Err(error) => Err(error),
            };
        }
    }

    /// Loads the weights that the pointers name.
    async fn roles_of(&self, pointers: &Pointers) -> Result<Roles, LearnError> {
        let canary = if pointers.canary == pointers.policy || self.canary.share == 0.0 {
            None
        } else {
            Some(Canary {
                weights: self.weights(pointers.canary.as_str()).await?,
                share: self.canary.share,
            })
        };
        Ok(Roles {
            policy: self.weights(pointers.policy.as_str()).await?,
            judge: self.weights(pointers.judge.as_str()).await?,
            canary,
        })
    }

    /// Swaps the roles; the caller holds `swapping`.
    fn swap(&self, pointers: &Pointers, roles: Roles) -> Result<(), LearnError> {
        // Both versions are compared over the same period.
        self.canary.tallies.clear();
        let policy = roles.policy.clone();
        // At the start the pointers often name what serves already, which replaces nothing.
        let swapped = match self.store.roles() == roles {
            true => None,
            false => {
                let begun = Instant::now();
                self.store.set_roles(roles)?;
                self.show_roles();
                let seconds = begun.elapsed().as_secs_f64();
                self.metrics.swap_seconds.observe(seconds);
                self.metrics.swaps.inc();
                Some(seconds)
            }
        };
        tracing::info!("serving generation {}", pointers.policy);
        let mut followed = self.lock();
        followed
            .resident
            .retain(|lease| lease.version() != policy.version());
        followed.resident.push(policy);
        let surplus = followed.resident.len().saturating_sub(RESIDENT);
        followed.resident.drain(..surplus);
        followed.pointers = Some(pointers.clone());
        if let Some(seconds) = swapped {
            followed.swaps.count += 1;
            followed.swaps.last_seconds = Some(seconds);
        }
        Ok(())
    }

    /// Serves the base in every role unless it does already; the caller holds `swapping`. The pointers then count as not followed.
    fn serve_base(&self) -> Result<(), LearnError> {
        let base = Roles::all(self.store.base());
        if self.store.roles() != base {
            self.store.set_roles(base)?;
            self.show_roles();
        }
        self.lock().pointers = None;
        Ok(())
    }

    /// Follows the pointers for as long as it is polled, because other servers and trainers on the same log move them too.
    pub async fn run(self, every: Duration) {
        loop {
            // `follow` logs its own errors.
            let _ = self.follow().await;
            if let Err(error) = self.watch().await {
                tracing::warn!("the canary is not watched: {error}");
            }
            tokio::time::sleep(every).await;
        }
    }

    /// Checks the current canary, if there is one, and withdraws it if it is unhealthy. Each server judges by its own answers.
    ///
    /// # Errors
    /// Errors from the log; a policy that cannot be followed.
    pub async fn watch(&self) -> Result<(), LearnError> {
        let roles = self.store.roles();
        let pointers = self.lock().pointers.clone();
        let (Some(canary), Some(pointers)) = (roles.canary, pointers) else {
            self.lock().health = None;
            return Ok(());
        };
        let share = self.canary.bands.principal_share;
        let of = |lease: &WeightsLease| self.canary.tallies.of(lease.name(), share);
        let (own, live) = (of(&canary.weights), of(&roles.policy));
        let health = CanaryHealth::of(&self.canary.bands, &own, &live);
        for (version, vitals) in [("canary", &health.canary), ("live", &health.live)] {
            for number in NUMBERS {
                let labels = [version, number];
                let shown = self.metrics.canary.with_label_values(&labels);
                shown.set(vitals.number(number));
            }
        }
        let verdict = health.verdict;
        let numbers = [health.canary, health.live];
        self.lock().health = Some(health);
        match verdict {
            Verdict::Withdraw(number) => self.withdraw(&pointers, number, numbers).await,
            Verdict::TooEarly | Verdict::Keep => Ok(()),
        }
    }

    /// Moves the canary pointer back to the policy if neither pointer has moved.
    async fn withdraw(
        &self,
        at: &Pointers,
        number: &'static str,
        [canary, live]: [Vitals; 2],
    ) -> Result<(), LearnError> {
        let step = |pointer, from: &GenerationId| PointerMove {
            pointer,
            from: from.clone(),
            to: at.policy.clone(),
        };
        let moves = [
            step(Pointer::Policy, &at.policy),
            step(Pointer::Canary, &at.canary),
        ];
        let reason = format!(
            "canary withdrawn: {number} {:.3} after {:.0} answers, live {:.3} after {:.0}",
            canary.number(number),
            canary.answers,
            live.number(number),
            live.answers,
        );
        match self
            .log
            .generations
            .move_pointers(&moves, WATCH, &reason)
            .await
        {
            // Another process moved the pointers first; they are followed anyway.
            Err(LogError::Conflict { .. }) => {}
            moved => {
                moved?;
                tracing::warn!("generation {}: {reason}", at.canary);
                let withdrawn = self.metrics.canaries_withdrawn.with_label_values(&[number]);
                withdrawn.inc();
                self.lock().withdrawn = Some(format!("{}: {reason}", at.canary));
            }
        }
        self.follow().await.map(|_| ())
    }

    /// Checks that a generation can serve: its files are intact and fit the base.
    ///
    /// # Errors
    /// Names the problem.
    pub async fn check(&self, id: &GenerationId) -> Result<(), LearnError> {
        // Weights in memory may be of a generation whose files were deleted: after a restart they could not be loaded.
        if !id.is_base() {
            self.generations.listed(id.as_str())?;
        }
        self.weights(id.as_str()).await.map(|_| ())
    }

    /// Locks the state. It changes by single assignments, so a panic elsewhere leaves it usable.
    fn lock(&self) -> std::sync::MutexGuard<'_, Followed> {
        self.followed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
