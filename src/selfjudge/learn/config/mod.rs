//! All settings of learning.

mod sections;

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::LearnError;
use super::gate::GateConfig;
use model::DecoderSpec;
use train::{TrainError, base::Adapter, continued::LoraSettings, dpo::DpoConfig};

pub use sections::{
    ActiveConfig, ContrastConfig, Disagreement, FeedbackConfig, JudgingConfig, OpposedPrinciples,
    PublishConfig, ReplayConfig, RolloutConfig, StageConfig, StageOrder,
};

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

    /// Returns the settings of an SSO generator: the policy's, with the likelihood terms in its loss.
    pub(super) fn generator(&self) -> DpoConfig {
        DpoConfig {
            nll: self.contrast.gamma,
            ..self.dpo.clone()
        }
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
            (stage.unattended > 0, "stage.unattended must be at least 1"),
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
            ("stage.unattended", "[stage]\nunattended = 0"),
            ("rollout.samples", "[rollout]\nsamples = 1"),
            ("contrast.principles", "[contrast]\nshare = 0.5"),
            ("judging.min_margin", "[judging]\nmin_margin = 0.5"),
            ("replay.share", "[replay]\nshare = 1.0"),
            ("feedback.share", "[feedback]\nshare = 1.0"),
            ("stage.pool", "[stage]\npool = 0.5"),
            ("contrast.gamma", "[contrast]\ngamma = inf"),
            ("dpo: `beta`", "[dpo]\nbeta = -1"),
            ("dpo: `beta`", "[dpo]\nbeta = inf"),
            ("dpo: `nll`", "[dpo]\nnll = nan"),
            ("dpo: `micro_batch_tokens`", "[dpo]\nmicro_batch_tokens = 0"),
            ("dpo: `learning_rate`", "[dpo.schedule]\nlearning_rate = -1"),
            ("dpo: `learning_rate`", "[dpo.schedule]\nlearning_rate = 0"),
            ("dpo: lora", "[dpo.lora]\nlora_alpha = 0"),
            ("dpo: `warmup_ratio`", "[dpo.schedule]\nwarmup_ratio = 2"),
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
