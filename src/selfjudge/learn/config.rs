//! All settings of learning.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::LearnError;
use super::canary::CanaryBands;
use super::gate::GateConfig;
use judge::MIN_LABEL_MASS;
use model::DecoderSpec;
use train::TrainError;
use train::base::Adapter;
use train::continued::LoraSettings;
use train::dpo::DpoConfig;

/// `[learn]`: the settings that determine the trained weights. When and where training runs is configured in
/// [`kernels::device::arbiter`] and the server.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LearnConfig {
    pub stage: StageConfig,
    pub rollout: RolloutConfig,
    pub judging: JudgingConfig,
    pub contrast: ContrastConfig,
    pub active: ActiveConfig,
    pub replay: ReplayConfig,
    pub feedback: FeedbackConfig,
    pub dpo: DpoConfig,
    pub gates: GateConfig,
    pub publish: PublishConfig,
    /// Keys of `dpo.lora` that the file sets explicitly, even to the default value.
    #[serde(skip)]
    pub own_lora: Vec<String>,
}

/// Which prompts a stage takes from the log.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StageConfig {
    /// Prompts per stage. A stage begins once the log has that many unused prompts that may be trained on.
    pub prompts: usize,
    /// Prompts per update.
    pub batch: usize,
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
    pub temperature: f32,
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
    pub good: String,
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
    /// Number of generations that never served (candidates, rejected and failed ones) whose directories are kept; older ones are deleted
    /// after each stage. Generations that served, that a pointer names, or that those were trained from are always kept.
    pub keep_generations: usize,
    /// When a canary that an operator started is withdrawn automatically.
    pub canary: CanaryBands,
}

impl Default for PublishConfig {
    fn default() -> Self {
        Self {
            promote: true,
            extrapolate: 0.0,
            keep_generations: 8,
            canary: CanaryBands::default(),
        }
    }
}

impl LearnConfig {
    /// Reads the settings from a TOML file.
    ///
    /// # Errors
    /// Fails if the file cannot be read or is not a valid configuration; the message names the setting.
    pub fn from_file(path: &Path) -> Result<Self, LearnError> {
        let text = files::read_small(path)
            .map_err(|error| LearnError::Config(format!("{}: {error}", path.display())))?;
        let mut config: Self = settings::from_toml(&text)
            .map_err(|error| LearnError::Config(format!("{}: {error}", path.display())))?;
        config.own_lora = settings::given_keys(&text, &["dpo", "lora"]);
        // Paths in the file are relative to it. They are made independent of the working directory, because a stage keeps its settings.
        if let Some(anchor) = &mut config.gates.anchor {
            let beside = path.parent().unwrap_or(Path::new("")).join(&*anchor);
            *anchor = std::path::absolute(&beside)
                .map_err(|error| LearnError::Config(format!("{}: {error}", beside.display())))?;
        }
        config.validate().map_err(|error| match error {
            LearnError::Config(problem) => {
                LearnError::Config(format!("{}: {problem}", path.display()))
            }
            other => other,
        })?;
        Ok(config)
    }

    /// Returns the settings for learning that starts from this adapter, and the adapter in trainable form. Its rank, alpha and layers
    /// apply to every generation.
    ///
    /// # Errors
    /// Names a setting that contradicts the adapter.
    pub fn beginning_at(
        mut self,
        adapter: Adapter,
        spec: &DecoderSpec,
    ) -> Result<(Self, Adapter), LearnError> {
        if self.publish.extrapolate != 0.0 {
            return Err(LearnError::Config(
                "publish.extrapolate scales the whole adapter, that which learning begins at included: leave it out, or merge that adapter \
                 into the model first (`selfjudge merge`)"
                    .into(),
            ));
        }
        let settings = LoraSettings {
            requested: &self.dpo.lora,
            default: &Self::default().dpo.lora,
            given: &self.own_lora,
        };
        let adapter = adapter.continued(spec, settings)?;
        self.dpo.lora = adapter.config.clone();
        Ok((self, adapter))
    }

    /// Checks the settings.
    ///
    /// # Errors
    /// Names the first setting that is out of range, and its range.
    pub fn validate(&self) -> Result<(), LearnError> {
        let share = |x: f64| (0.0..=1.0).contains(&x);
        let Self {
            stage,
            rollout,
            judging,
            contrast,
            active,
            replay,
            feedback,
            publish,
            ..
        } = self;
        let checks = [
            (stage.prompts > 0, "stage.prompts must be at least 1"),
            (
                (1..=stage.prompts.max(1)).contains(&stage.batch),
                "stage.batch must be from 1 to stage.prompts",
            ),
            (
                stage.principal_share > 0.0 && share(stage.principal_share),
                "stage.principal_share must be above 0 and at most 1",
            ),
            (
                (0.001..=0.9).contains(&stage.held_out),
                "stage.held_out must be from 0.001 to 0.9",
            ),
            (
                stage.checkpoint_every > 0,
                "stage.checkpoint_every must be at least 1",
            ),
            (stage.kl_budget > 0.0, "stage.kl_budget must be above 0"),
            (rollout.samples >= 2, "rollout.samples must be at least 2"),
            (
                rollout.temperature > 0.0 && rollout.temperature <= 100.0,
                "rollout.temperature must be above 0 and at most 100",
            ),
            (
                rollout.top_p > 0.0 && rollout.top_p <= 1.0,
                "rollout.top_p must be above 0 and at most 1",
            ),
            (
                rollout.max_tokens > 0,
                "rollout.max_tokens must be at least 1",
            ),
            (
                (0.0..0.5).contains(&judging.min_margin),
                "judging.min_margin must be from 0 to less than 0.5",
            ),
            (
                (0.0..=1.0).contains(&judging.min_label_mass),
                "judging.min_label_mass must be from 0 to 1",
            ),
            (share(contrast.share), "contrast.share must be from 0 to 1"),
            (
                contrast.share == 0.0 || !contrast.principles.is_empty(),
                "contrast.share is above 0, so contrast.principles must name a pair",
            ),
            (
                contrast.gamma >= 0.0 && contrast.gamma.is_finite(),
                "contrast.gamma must be finite and not negative",
            ),
            (
                contrast.max_distance > 0.0,
                "contrast.max_distance must be above 0",
            ),
            (share(active.entropy), "active.entropy must be from 0 to 1"),
            (
                (0.0..1.0).contains(&replay.share),
                "replay.share must be from 0 to less than 1",
            ),
            (
                (0.0..1.0).contains(&feedback.share),
                "feedback.share must be from 0 to less than 1",
            ),
            (
                (1.0..=16.0).contains(&stage.pool),
                "stage.pool must be from 1 to 16",
            ),
            (
                (0.0..=2.0).contains(&publish.extrapolate),
                "publish.extrapolate must be from 0 to 2",
            ),
        ];
        if let Some((_, problem)) = checks.iter().find(|(ok, _)| !ok) {
            return Err(LearnError::Config((*problem).to_owned()));
        }
        self.dpo.validate().map_err(|error| match error {
            TrainError::Config(problem) => LearnError::Config(format!("dpo: {problem}")),
            other => other.into(),
        })?;
        publish.canary.validate()?;
        self.gates.validate()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_valid_and_survive_a_file() {
        let config = LearnConfig::default();
        config.validate().unwrap();
        let text = toml::to_string(&config).unwrap();
        assert_eq!(toml::from_str::<LearnConfig>(&text).unwrap(), config);
        assert!(toml::from_str::<LearnConfig>("[stage]\npromts = 3").is_err());
    }

    #[test]
    fn a_partly_given_table_keeps_the_defaults_of_its_place() {
        settings::assert_each_key_alone_keeps_the_rest::<LearnConfig>();
        let text = "[dpo.schedule]\nlearning_rate = 1e-3\n[dpo.lora]\nr = 4\n[gates.base]\ntolerance = 0.5";
        let mut whole = LearnConfig::default();
        whole.dpo.schedule.learning_rate = 1e-3;
        whole.dpo.lora.r = 4;
        whole.gates.base.tolerance = 0.5;
        assert_eq!(settings::from_toml::<LearnConfig>(text).unwrap(), whole);
    }

    #[test]
    fn what_a_file_names_is_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("learn.toml");
        std::fs::write(&file, "[gates]\nanchor = \"pairs/anchors.jsonl\"\n").unwrap();
        let config = LearnConfig::from_file(&file).unwrap();
        assert_eq!(
            config.gates.anchor,
            Some(dir.path().join("pairs/anchors.jsonl"))
        );
    }

    /// Returns the paths of keys in a table that the default's table lacks. Optional settings are not serialized.
    fn missing(whole: &toml::Table, given: &toml::Table, path: &str) -> Vec<String> {
        let mut missing = Vec::new();
        for (key, value) in whole {
            let path = format!("{path}.{key}");
            match (value, given.get(key)) {
                (_, None) => missing.push(path),
                (toml::Value::Table(whole), Some(toml::Value::Table(given))) => {
                    missing.extend(self::missing(whole, given, &path));
                }
                _ => {}
            }
        }
        missing
    }

    #[test]
    fn the_settings_of_the_default_model_are_whole_and_what_was_measured() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/pocket/learn.toml");
        let config = LearnConfig::from_file(&file).unwrap();
        config.validate().unwrap();
        // The meaning of a file that set only the learning rate when the model was measured.
        let schedule = train::schedule::ScheduleConfig {
            learning_rate: 2e-3,
            lr_scheduler: train::schedule::ScheduleKind::Cosine,
            warmup_steps: None,
            warmup_ratio: 0.03,
            min_lr_ratio: 0.0,
            decay_ratio: 0.2,
        };
        assert_eq!(config.dpo.schedule, schedule);
        assert_eq!((config.dpo.lora.r, config.dpo.lora.lora_alpha), (16, 32.0));
        assert!(
            config.gates.pass_rate(0.58) >= 0.9,
            "{}",
            config.gates.pass_rate(0.58)
        );

        let given: toml::Table = toml::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
        let whole: toml::Table = toml::from_str(&toml::to_string(&config).unwrap()).unwrap();
        for (name, given) in &given {
            let tables = whole[name].as_table().zip(given.as_table());
            let (whole, given) = tables.unwrap();
            assert_eq!(missing(whole, given, name), [""; 0]);
        }
    }

    #[test]
    fn settings_out_of_their_range_are_named() {
        let wrong = [
            ("judging.min_label_mass", "[judging]\nmin_label_mass = 1.5"),
            (
                "gates.base.tolerance",
                "[gates]\nbase = { tolerance = 1.0 }",
            ),
            ("stage.batch", "[stage]\nprompts = 4\nbatch = 5"),
            ("rollout.samples", "[rollout]\nsamples = 1"),
            ("contrast.principles", "[contrast]\nshare = 0.5"),
            ("judging.min_margin", "[judging]\nmin_margin = 0.5"),
            ("replay.share", "[replay]\nshare = 1.0"),
            ("feedback.share", "[feedback]\nshare = 1.0"),
            ("stage.pool", "[stage]\npool = 0.5"),
            ("contrast.gamma", "[contrast]\ngamma = inf"),
            ("dpo: beta", "[dpo]\nbeta = -1"),
            ("dpo: beta", "[dpo]\nbeta = inf"),
            ("dpo: nll", "[dpo]\nnll = nan"),
            ("dpo: micro_batch_tokens", "[dpo]\nmicro_batch_tokens = 0"),
            ("dpo: learning_rate", "[dpo.schedule]\nlearning_rate = -1"),
            ("dpo: warmup_ratio", "[dpo.schedule]\nwarmup_ratio = 2"),
            ("dpo: lora", "[dpo.lora]\nr = 0"),
            ("dpo: lora", "[dpo.lora]\nlora_dropout = 1"),
            ("dpo: beta1", "[dpo.optim]\nbeta1 = 1"),
        ];
        for (setting, text) in wrong {
            let config: LearnConfig = toml::from_str(text).unwrap();
            let error = config.validate().unwrap_err().to_string();
            assert!(error.contains(setting), "{error}");
        }
    }
}
