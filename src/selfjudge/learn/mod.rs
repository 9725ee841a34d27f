//! Learning from traffic: logged prompts become on-policy pairs, pairs become updates, and updates become served versions.
//!
//! This is SELF-JUDGE (arXiv 2402.11253, section 3.3) made continuous. The files, in the order of the algorithm:
//!
//! | file | contents |
//! |---|---|
//! | `config` | all settings |
//! | `learner` | the loop: take the lease, open a stage, take it from phase to phase |
//! | `phase` | the phases of a stage, and which follows which |
//! | `stage`, `stage_state`, `open_stage` | the state of a stage, its version, and what is saved of it |
//! | `waiting` | the reasons why no stage runs |
//! | `opener`, `pool`, `pooling` | disjoint prompts of the log, easy ones first across stages, cut into updates (sDPO) |
//! | `pair_maker`, `batch` | the pairs of an update, and their additions to the log |
//! | `rollout` | fresh answers from the current policy |
//! | `pairs` | the pinned judge reads both orders under the table's principles (SALMON); which answers make a pair |
//! | `contrast`, `generator` | SSO: chosen and rejected answers sampled under opposed principles |
//! | `active` | the choice of the most instructive pairs |
//! | `logged` | pairs of logged answers: replay of earlier stages, feedback of callers |
//! | `training` | the updates of a stage, and its candidate |
//! | `seed` | the seeds of all random draws |
//! | `trainer_pool` | the DPO trainer on its own threads, at lower priority than serving |
//! | `gating`, `gate/` | the tests that a candidate must pass before it serves |
//! | `publishing` | the promotion of a candidate that passed |
//! | `generation`, `base` | immutable directories named by their digest, bound to one base and tokenizer |
//! | `tidy` | which of those directories are kept on disk |
//! | `publish` | from pointers to served weights |
//! | `canary` | the health of a version that a share of the callers tries out |
//! | `status`, `record`, `staleness`, `past` | status and metrics of learning, also after a restart |
//!
//! # Differences from the papers
//! 1. SELF-JUDGE trains once over its prompts. Here stages follow each other as long as traffic arrives, each with its own data, and
//!    the reference of a stage is the policy it starts from (sDPO, arXiv 2403.19270). sDPO sorts whole data sources once, by how often
//!    the initial model prefers their chosen answers. Traffic has no sources and no end, so prompts are sorted instead, by the pinned
//!    judge's certainty about a pair of the reference's answers, one pool of `stage.pool` stages at a time (`pool`). Within a pool the
//!    stages go from easy to hard. The saved state of a stage has its prompts and those that it leaves over from the pool.
//! 2. SELF-JUDGE keeps every judged pair. Here pairs whose orders disagree are dropped by default (SALMON, arXiv 2310.05910).
//! 3. The released code ends cut-off samples with an end token and re-tokenises text. Here token ids are kept as they were
//!    sampled, and a cut-off sample makes no pair.
//! 4. A principle of SSO (arXiv 2410.17131v2) comes from a list instead of being written by a language model for each query.
//!    Plain-text prompts have no place for a principle and make ordinary pairs.
//! 5. SALMON samples three principles per rollout. Here all named principles are judged, each separately, and averaged by weight. Its
//!    prohibitions against reward hacking are the principles that the table marks `always`, judged in addition.
//! 6. No paper learns from callers' feedback. It is off by default; if trusted, it gives a few off-policy pairs (`logged`).

mod active;
pub mod base;
mod batch;
mod canary;
pub mod config;
mod contrast;
pub mod gate;
mod gating;
pub mod generation;
mod generator;
mod learner;
mod logged;
mod open_stage;
mod opener;
mod pair_maker;
mod pairs;
mod past;
mod phase;
mod pool;
mod pooling;
mod publish;
mod publishing;
mod record;
pub mod rollout;
mod seed;
mod stage;
mod stage_state;
mod staleness;
mod status;
mod tidy;
mod trainer_pool;
mod training;
mod waiting;

use crate::call::CallError;
use traffic_log::LogError;
use train::TrainError;

pub use canary::{CanaryBands, CanaryHealth, Verdict, Vitals};
pub use config::LearnConfig;
pub use gate::anchor::answer_ids;
pub use learner::Learner;
pub use opener::judged_by;
pub use phase::{NoTransition, Phase, StageEvent};
pub use publish::{CanaryWatch, Publisher, Swaps};
pub use staleness::Staleness;
pub use status::{AbandonedStage, LearnControl, LearnState, LearnStatus};
pub use trainer_pool::{TrainerPool, panic_message};
pub use waiting::{Waiting, WaitingReason};

/// An error of learning.
#[derive(Debug, thiserror::Error)]
pub enum LearnError {
    #[error(transparent)]
    Log(#[from] LogError),
    #[error(transparent)]
    Service(#[from] CallError),
    #[error(transparent)]
    Train(#[from] TrainError),
    #[error(transparent)]
    Model(#[from] model::ModelError),
    #[error("learning is set up wrongly: {0}")]
    Config(String),
    #[error("there is no generation `{0}` here")]
    NoGeneration(String),
    #[error("generation {id} is damaged: {detail}")]
    DamagedGeneration { id: String, detail: String },
    /// The adapter belongs to other weights or was trained with another tokenizer, so it cannot be used on this model.
    #[error(
        "generation {id} does not fit this model: {what} differ (made with {made}, here {here})"
    )]
    OtherBase {
        id: String,
        /// `the weights`, `the adapters at the start`, `the tokenizers` or `the types of the weights`.
        what: &'static str,
        made: String,
        here: String,
    },
    #[error(transparent)]
    Principles(#[from] crate::principles::PrinciplesError),
    #[error("a file of the learner: {0}")]
    Json(#[from] serde_json::Error),
    /// The open stage cannot be read, because another version of the program wrote it.
    #[error(
        "stage {stage} was opened by another version of the program, which alone can continue it: {detail}. POST /train/abandon leaves it"
    )]
    OtherVersion { stage: i64, detail: String },
    /// The stage came to an event that its phase excludes: an error in the program.
    #[error(transparent)]
    NoTransition(#[from] NoTransition),
    /// The trainer's thread panicked; its work in progress is discarded.
    #[error("a training step panicked: {0}")]
    Panicked(String),
}
