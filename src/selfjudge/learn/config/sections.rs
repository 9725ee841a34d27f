//! The sections of the settings.

use serde::{Deserialize, Serialize};

use crate::learn::canary::CanaryBands;
use judge::MIN_LABEL_MASS;

/// Which prompts a stage takes from the log.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StageConfig {
    /// Prompts per stage. A stage begins once the log has that many unused prompts that may be trained on.
    pub prompts: usize,
    /// Prompts per update.
    pub batch: usize,
    /// The order in which a stage takes its prompts: `easy_first` (first those on which the judge is most certain about two fresh answers) or
    /// `as_logged`.
    pub order: StageOrder,
    /// Size of the pool of prompts that are ranked together, in stages, from 1 to 16. A stage takes the easiest of up to `pool * prompts`
    /// waiting prompts and leaves the rest to the stages after it. 1 ranks each stage's prompts separately. Has no effect with
    /// `as_logged`, which ranks nothing.
    pub pool: f64,
    /// Share of the log's records, chosen by a hash of their ids, that is never trained on; the gates are measured on it.
    pub held_out: f64,
    /// Minimum age of a record before it may be trained on, in seconds, so that problems noticed in it can still lead to its deletion.
    pub quarantine: u64,
    /// The largest share of a stage that one principal's records may have, for prompts and for feedback separately, so that a single caller
    /// cannot dominate a stage. A log with fewer callers than `1 / principal_share` never fills a stage; callers without keys count as one
    /// principal. With a pool, the cap applies to the pool and to each stage; a stage may then be smaller because of rounding.
    pub principal_share: f64,
    /// Number of consecutive stages that may pass their gates before `POST /train/resume` is required. Promoted stages count, and with
    /// `publish.promote = false` also those that wait for an operator.
    pub unattended: u64,
    /// Updates between two checkpoints.
    pub checkpoint_every: u64,
    /// A stage stops early, and is evaluated as it is, once the mean KL divergence of an answer from generation 0 exceeds this (nats).
    pub kl_budget: f64,
    /// Seed of the draws of prompts, samples and order.
    pub seed: u64,
}

impl Default for StageConfig {
    fn default() -> Self {
        Self {
            prompts: 256,
            batch: 32,
            order: StageOrder::EasyFirst,
            pool: 2.0,
            held_out: 0.2,
            quarantine: 0,
            principal_share: 0.25,
            unattended: 8,
            checkpoint_every: 4,
            kl_budget: 40.0,
            seed: 0,
        }
    }
}

impl StageConfig {
    /// Returns the number of prompts in a pool.
    pub fn pooled(&self) -> usize {
        ((self.prompts as f64 * self.pool).round() as usize).max(self.prompts)
    }
}

/// The order in which prompts are trained on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StageOrder {
    /// Prompts first for which the judge is most certain about a pair of fresh answers of the reference (sDPO: easy to hard), across the
    /// stages of a pool and within each stage.
    EasyFirst,
    /// In the order of the log.
    AsLogged,
}

/// How fresh answers are sampled. The defaults are the paper's: temperature 1, nucleus 0.9.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RolloutConfig {
    /// Answers per prompt, at least two.
    pub samples: usize,
    /// Temperature of the samples.
    pub temperature: f32,
    /// Nucleus of the samples: only the most probable tokens whose probabilities add up to this.
    pub top_p: f32,
    /// Maximum tokens of an answer. A longer one is cut off and makes no pair.
    pub max_tokens: usize,
    /// True samples the answers from the policy after the last update (on-policy). False samples them from the policy at the start of the
    /// stage: the off-policy baseline of the paper.
    pub on_policy: bool,
}

impl Default for RolloutConfig {
    fn default() -> Self {
        Self {
            samples: 2,
            temperature: 1.0,
            top_p: 0.9,
            max_tokens: 512,
            on_policy: true,
        }
    }
}

/// How judged answers become pairs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct JudgingConfig {
    /// The treatment of a pair whose two orders name different winners: `drop`, `soften` (the label is the averaged probability) or `keep`.
    pub disagreement: Disagreement,
    /// Pairs whose probability is closer to 0.5 than this are dropped.
    pub min_margin: f32,
    /// Minimum probability, from 0 to 1, of the judge's two labels together. Below it the verdict names no winner and its pair is
    /// dropped, because the judge's most probable output was not a label.
    pub min_label_mass: f32,
    /// Whether the label of a pair is the judge's probability (cDPO) instead of 1.
    pub soft_labels: bool,
    /// Names of principles in the table. Each is judged separately, and the results are averaged with the table's weights at the beginning
    /// of a stage (SALMON), together with the principles that the table marks `always`. Empty means the judge template's own question.
    pub principles: Vec<String>,
}

impl Default for JudgingConfig {
    fn default() -> Self {
        Self {
            disagreement: Disagreement::Drop,
            min_margin: 0.0,
            min_label_mass: MIN_LABEL_MASS,
            soft_labels: false,
            principles: Vec::new(),
        }
    }
}

/// The treatment of a pair whose two orders name different winners.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Disagreement {
    /// The pair is dropped (SALMON).
    Drop,
    /// The label is the averaged probability.
    Soften,
    /// The pair is kept like any other (SELF-JUDGE).
    Keep,
}

/// SSO: a share of the pairs is sampled under opposed principles.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ContrastConfig {
    /// Share of a stage's prompts whose pairs are made this way; 0 disables it.
    pub share: f64,
    /// The system messages for the better and for the worse answer.
    pub principles: Vec<OpposedPrinciples>,
    /// Whether a generator is trained first (version 2 of the paper); otherwise the policy itself is prompted.
    pub generator: bool,
    /// Weight of the likelihood terms in the generator's loss.
    pub gamma: f64,
    /// Whether the judge must confirm a pair.
    pub confirmed: bool,
    /// The near-on-policy condition: how far the mean log-probability (nats per token) of either answer under the bare prompt may lie below
    /// that of the policy's own answer to the bare prompt.
    pub max_distance: f32,
}

impl Default for ContrastConfig {
    fn default() -> Self {
        Self {
            share: 0.0,
            principles: Vec::new(),
            generator: false,
            gamma: 0.1,
            confirmed: true,
            max_distance: 1.0,
        }
    }
}

/// Two system messages with opposite instructions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OpposedPrinciples {
    /// The system message for the better answer.
    pub good: String,
    /// The system message for the worse answer.
    pub bad: String,
}

/// Active preference learning (arXiv 2402.08114): selects the most informative of a larger number of pairs.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ActiveConfig {
    /// Pairs are made for this many times the batch, and the best of them are used; 0 and 1 disable selection.
    pub oversample: usize,
    /// Weight, from 0 to 1, of the policy's entropy (negative mean log-probability of the answers) against the certainty of its implicit
    /// reward.
    pub entropy: f64,
}

/// Pairs from callers' feedback on logged answers (`POST /feedback`), mixed with the fresh pairs if the server trusts feedback
/// (`--trust-feedback`). With `corroborated`, the pinned judge must prefer the same answer in both orders.
///
/// These pairs are off-policy: the answers are logged ones with the token ids they were sampled as, or an edit as the chat template
/// renders it. Like all pairs they are scored by the stage's reference. Each is used once, at most one per record, the newest first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FeedbackConfig {
    /// The largest share of a stage's pairs that comes from feedback; 0 disables it. `stage.principal_share` applies to them too.
    pub share: f64,
}

impl Default for FeedbackConfig {
    fn default() -> Self {
        Self { share: 0.1 }
    }
}

/// Pairs of earlier stages mixed with the fresh ones. Redacted records are never replayed, because their tokens were not kept.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ReplayConfig {
    /// Share of an update's pairs that comes from earlier stages; 0 disables it.
    pub share: f64,
}

/// The treatment of a trained stage.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PublishConfig {
    /// Whether a candidate that passes the gates serves at once. False leaves that to `POST /generations/{id}/promote`.
    pub promote: bool,
    /// ExPO (arXiv 2404.16792): the served adapter is `base + (1 + extrapolate) (trained - base)`, the whole adapter scaled; 0 disables it.
    /// The gates measure the scaled adapter. The next stage continues from the unscaled one, so that the scale does not compound.
    pub extrapolate: f32,
    /// Number of generations that never served (candidates, rejected and failed ones) whose files are kept; older ones are deleted after
    /// each stage.
    pub keep_generations: usize,
    /// Number of generations that served earlier whose files are kept, for rollbacks; older ones are deleted after each stage. Generations
    /// at a pointer, those that they were trained from, compared with and judged by, and those of an open stage are always kept.
    pub keep_served: usize,
    /// Number of the newest stages whose curves (TensorBoard files) are kept.
    pub keep_curves: usize,
    /// When a canary that an operator started is withdrawn automatically.
    pub canary: CanaryBands,
}

impl Default for PublishConfig {
    fn default() -> Self {
        Self {
            promote: true,
            extrapolate: 0.0,
            keep_generations: 8,
            keep_served: 32,
            keep_curves: 64,
            canary: CanaryBands::default(),
        }
    }
}
