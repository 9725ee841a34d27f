//! From pointers to served weights.
//!
//! The truth about what serves is the pointers in the log, moved by compare-and-swap; every server follows them. A pointer that
//! cannot be followed (a damaged generation, a directory that is not there) leaves what serves as it is. A generation of another base
//! never serves: the base itself does then.
//!
//! Several tasks may follow at once: the one that does so every few seconds, an operator's call, the learner. Each loads what the
//! pointers say, which takes seconds, and gives the roles only if the pointers still say so; this last step is one task's at a time.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::LearnError;
use super::canary::{CanaryBands, CanaryHealth, NUMBERS, Verdict, Vitals};
use super::generation::Generations;
use crate::fault;
use crate::model::{Canary, Roles, WeightStore, WeightsLease};
use crate::preference::log::{GenerationId, LogError, Pointer, PointerMove, Pointers, TrafficLog};
use crate::service::Tallies;
use crate::telemetry::LearnMetrics;
use crate::train::base::Adapter;

/// Generations that stay in memory after they stopped serving: the way back is a pointer's move and no load.
const RESIDENT: usize = 2;

/// Who withdraws a canary, in the audit trail.
const WATCH: &str = "canary-watch";

/// How a canary is tried out; by default on nobody.
#[derive(Debug, Clone, Default)]
pub struct CanaryWatch {
    /// Of the principals, while the canary pointer is not at the policy; 0 is nobody.
    pub share: f64,
    pub bands: CanaryBands,
    /// Of the service that serves.
    pub tallies: Tallies,
}

/// Loads generations and gives them their roles.
#[derive(Clone)]
pub struct Publisher {
    store: WeightStore,
    generations: Generations,
    log: TrafficLog,
    canary: CanaryWatch,
    metrics: LearnMetrics,
    followed: Arc<Mutex<Followed>>,
    /// Held from the last look at the pointers to the swap, so that no older look comes after a newer one.
    swapping: Arc<tokio::sync::Mutex<()>>,
}

/// The swaps of this process.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Swaps {
    pub count: u64,
    /// Of the last one, loading not included.
    pub last_seconds: Option<f64>,
}

#[derive(Debug, Default)]
struct Followed {
    pointers: Option<Pointers>,
    swaps: Swaps,
    /// The last policies, the newest last.
    resident: Vec<WeightsLease>,
    problem: Option<String>,
    /// Of the canary that is out.
    health: Option<CanaryHealth>,
    /// The last canary that was taken back here, and why.
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

    /// Shows in the metrics which weights serve as what.
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

    /// Why the pointers are not followed at the moment.
    pub fn problem(&self) -> Option<String> {
        self.lock().problem.clone()
    }

    /// The name of the weights that answer: what the policy pointer says, unless there is a [`Self::problem`].
    pub fn serving(&self) -> String {
        self.store.roles().policy.name().to_string()
    }

    /// How often other weights began to serve, and how long that took.
    pub fn swaps(&self) -> Swaps {
        self.lock().swaps
    }

    /// Of the principals, those that a canary would answer here.
    pub fn canary_share(&self) -> f64 {
        self.canary.share
    }

    /// How the canary is that is out here; and why the last one was taken back.
    pub fn canary(&self) -> (Option<CanaryHealth>, Option<String>) {
        let followed = self.lock();
        (followed.health.clone(), followed.withdrawn.clone())
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

    /// Serves what the pointers say, and says where they stand.
    ///
    /// # Errors
    /// The log's; a generation that cannot be loaded, and then everything stays as it is; [`LearnError::OtherBase`], and then the base
    /// serves.
    pub async fn follow(&self) -> Result<Pointers, LearnError> {
        let followed = self.follow_pointers().await;
        let problem = followed.as_ref().err().map(ToString::to_string);
        let before = std::mem::replace(&mut self.lock().problem, problem.clone());
        self.metrics.degraded.set(i64::from(followed.is_err()));
        if let Some(problem) = problem
            && before.as_ref() != Some(&problem)
        {
            // Once, and not every few seconds.
            tracing::error!(
                "{} serves, and not what the pointers say: {problem}",
                self.serving()
            );
        }
        followed
    }

    async fn follow_pointers(&self) -> Result<Pointers, LearnError> {
        let mut pointers = self.log.pointers().await?;
        loop {
            if self.lock().pointers.as_ref() == Some(&pointers) {
                return Ok(pointers);
            }
            let loaded = self.roles_of(&pointers).await;
            let _swapping = self.swapping.lock().await;
            let now = self.log.pointers().await?;
            if now != pointers {
                // An operator moved them while this was loading, and may be serving what they say already.
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

    /// The weights that the pointers name, in memory.
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

    /// Gives the roles; the caller holds `swapping`.
    fn swap(&self, pointers: &Pointers, roles: Roles) -> Result<(), LearnError> {
        // Whoever is compared is counted from the same moment on.
        self.canary.tallies.clear();
        let policy = roles.policy.clone();
        let begun = Instant::now();
        self.store.set_roles(roles)?;
        self.show_roles();
        let seconds = begun.elapsed().as_secs_f64();
        self.metrics.swap_seconds.observe(seconds);
        self.metrics.swaps.inc();
        tracing::info!("serving generation {}", pointers.policy);
        let mut followed = self.lock();
        followed
            .resident
            .retain(|lease| lease.version() != policy.version());
        followed.resident.push(policy);
        let surplus = followed.resident.len().saturating_sub(RESIDENT);
        followed.resident.drain(..surplus);
        followed.pointers = Some(pointers.clone());
        followed.swaps.count += 1;
        followed.swaps.last_seconds = Some(seconds);
        Ok(())
    }

    /// Lets the base serve as everything, where it does not; the caller holds `swapping`. The pointers count as not followed.
    fn serve_base(&self) -> Result<(), LearnError> {
        let base = Roles::all(self.store.base());
        if self.store.roles() != base {
            self.store.set_roles(base)?;
            self.show_roles();
        }
        self.lock().pointers = None;
        Ok(())
    }

    /// Follows the pointers for as long as it is polled: other servers and trainers on the same log move them too.
    pub async fn run(self, every: Duration) {
        loop {
            // Says itself what is wrong.
            let _ = self.follow().await;
            if let Err(error) = self.watch().await {
                tracing::warn!("the canary is not watched: {error}");
            }
            tokio::time::sleep(every).await;
        }
    }

    /// Looks at the canary that is out, if one is, and takes it back if it is ill. Each server judges by the answers it gave itself.
    ///
    /// # Errors
    /// The log's; a policy that cannot be followed.
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

    /// Puts the canary pointer back to the policy, if both stand where they did.
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
        match self.log.move_pointers(&moves, WATCH, &reason).await {
            // Somebody else was faster, and the pointers are followed anyway.
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

    /// Whether a generation could serve: its files are whole and fit.
    ///
    /// # Errors
    /// Why not.
    pub async fn check(&self, id: &GenerationId) -> Result<(), LearnError> {
        self.weights(id.as_str()).await.map(|_| ())
    }

    /// What is guarded is changed by single assignments, so a panic elsewhere leaves it usable.
    fn lock(&self) -> std::sync::MutexGuard<'_, Followed> {
        self.followed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
