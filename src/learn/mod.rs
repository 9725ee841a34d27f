//! Learning from traffic: the log's prompts become on-policy pairs, pairs become updates, updates become served versions.
//!
//! SELF-JUDGE (arXiv 2402.11253, section 3.3) made continuous. The folder in the order of the algorithm:
//!
//! | file | what |
//! |---|---|
//! | `config` | the settings, whole |
//! | `learner` | the loop: take the lease, begin a stage, update, conclude |
//! | `waiting` | what holds it back |
//! | `begin`, `pool`, `stage` | a stage: disjoint prompts of the log, easy first across stages, cut into updates (sDPO) |
//! | `update` | an update's pairs, and what of them the log keeps |
//! | `rollout` | fresh answers from the policy as it is now |
//! | `judging` | the pinned judge reads both orders under the table's principles (SALMON); what makes a pair, and what is dropped |
//! | `contrast`, `generator` | SSO: chosen and rejected drawn under opposed principles |
//! | `logged` | pairs of answers that the log has: replay of earlier stages, feedback of callers |
//! | `training` | the updates of a stage |
//! | `trainer` | the DPO trainer on its own threads, after serving |
//! | `conclude`, `gate/` | what a candidate has to show before it serves |
//! | `generation`, `base` | immutable directories named by their digest, bound to one base and tokenizer |
//! | `tidy` | what of them stays on the disk |
//! | `publish` | pointers to served weights |
//! | `canary` | whether what a share of the callers tries out is well |
//! | `status`, `record`, `staleness`, `past` | what is shown of all this, also after a restart |
//!
//! # Where this departs from the papers
//! 1. SELF-JUDGE trains once through its prompts; here stages follow each other for as long as traffic comes, each with its own
//!    data, and the reference of a stage is the policy it starts from (sDPO, arXiv 2403.19270). sDPO sorts whole sources by how often
//!    the start prefers their chosen answers, once; traffic has no sources and no end, so prompts are sorted, by how sure the pinned
//!    judge is of a pair of the start's answers, pool by pool of `stage.pool` stages (`pool`). Stages go from easy to hard within a
//!    pool, and begin with easy ones again with the next. Each stage's prompts, and what it leaves of the pool, are in its saved state.
//! 2. SELF-JUDGE keeps every judged pair. By default pairs whose orders disagree are dropped here (SALMON, arXiv 2310.05910).
//! 3. The released code ends cut-off samples with an end token and re-tokenises text. Here token ids are kept as they were
//!    sampled, and a cut-off sample makes no pair.
//! 4. A principle of SSO (arXiv 2410.17131v2) is not written by a language model for each query but taken from a list. Prompts of plain
//!    text, which have no place for one, make ordinary pairs.
//! 5. SALMON draws three principles for each rollout; here all that are named are asked, each by itself, and averaged by weight. Its
//!    prohibitions against reward hacking are the principles that the table marks `always`, asked beside those.
//! 6. No paper learns from what callers say. Feedback is off by default; where it is trusted, a small share of off-policy pairs (`logged`).

pub mod base;
mod begin;
mod canary;
mod conclude;
pub mod config;
mod contrast;
pub mod gate;
pub mod generation;
mod generator;
mod judging;
mod learner;
mod logged;
mod past;
mod pool;
mod publish;
mod record;
pub mod rollout;
mod stage;
mod staleness;
mod status;
mod tidy;
mod trainer;
mod training;
mod update;
mod waiting;

use crate::preference::log::LogError;
use crate::service::ServiceError;
use crate::train::TrainError;

pub use begin::judged_by;
pub use canary::{CanaryBands, CanaryHealth, Verdict, Vitals};
pub use config::LearnConfig;
pub use gate::anchor::answer_ids;
pub use learner::Learner;
pub use publish::{CanaryWatch, Publisher};
pub use staleness::Staleness;
pub use status::{LearnControl, LearnStatus, Phase};
pub use trainer::{Workshop, said};
pub use waiting::{Waiting, WaitingReason};

/// What learning can fail with.
#[derive(Debug, thiserror::Error)]
pub enum LearnError {
    #[error(transparent)]
    Log(#[from] LogError),
    #[error(transparent)]
    Service(#[from] ServiceError),
    #[error(transparent)]
    Train(#[from] TrainError),
    #[error(transparent)]
    Model(#[from] crate::model::ModelError),
    #[error("learning is set up wrongly: {0}")]
    Config(String),
    #[error("there is no generation `{0}` here")]
    NoGeneration(String),
    #[error("generation {id} is damaged: {detail}")]
    DamagedGeneration { id: String, detail: String },
    /// The adapter is a change of other weights, or was trained on other token ids: on this model it means nothing.
    #[error(
        "generation {id} does not fit this model: {what} differ (made with {made}, here {here})"
    )]
    OtherBase {
        id: String,
        /// `the weights`, `the adapters at the start` or `the tokenizers`.
        what: &'static str,
        made: String,
        here: String,
    },
    #[error(transparent)]
    Principles(#[from] crate::preference::PrinciplesError),
    #[error("a file of the learner: {0}")]
    Json(#[from] serde_json::Error),
    /// The open stage cannot be read: another version of the program wrote it.
    #[error(
        "stage {stage} was opened by another version of the program, which alone can go on with it: {detail}"
    )]
    OtherVersion { stage: i64, detail: String },
    /// The trainer's thread panicked; what it was doing is thrown away.
    #[error("a training step panicked: {0}")]
    Panicked(String),
}
