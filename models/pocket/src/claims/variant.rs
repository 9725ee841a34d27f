//! The variants that the claims compare.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::ClaimsOptions;
use crate::world::Principle;
use selfjudge::{
    learn::LearnConfig,
    learn::config::{OpposedPrinciples, StageOrder},
    learn::gate::BaseBudget,
};

/// One way of learning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Variant {
    /// Three on-policy stages through all gates: the program's default.
    Stages,
    /// The same prompts in one stage.
    AtOnce,
    /// One stage, with every answer sampled from the initial weights.
    OffPolicy,
    /// The same number of updates on pairs of the JSFT corpus.
    Offline,
    /// One stage judged by `correct` and `brief`.
    Brief,
    /// One stage judged by `correct` and `polite`.
    Polite,
    /// One stage of pairs sampled under opposed principles.
    Contrast,
    /// The same as `Contrast`, with a generator trained for it.
    ContrastGenerator,
    /// One stage of judged pairs, the baseline of `Contrast` and `ContrastGenerator`.
    Plain,
}

/// Number of stages of [`Variant::Stages`].
pub const STAGES: usize = 3;

impl Variant {
    pub const ALL: [Self; 9] = [
        Self::Stages,
        Self::AtOnce,
        Self::OffPolicy,
        Self::Offline,
        Self::Brief,
        Self::Polite,
        Self::Contrast,
        Self::ContrastGenerator,
        Self::Plain,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Stages => "stages",
            Self::AtOnce => "at-once",
            Self::OffPolicy => "off-policy",
            Self::Offline => "offline",
            Self::Brief => "brief",
            Self::Polite => "polite",
            Self::Contrast => "contrast",
            Self::ContrastGenerator => "contrast-generator",
            Self::Plain => "plain",
        }
    }

    /// Returns the number of prompts in units of a stage. Compared policies learn from the same number.
    pub fn stage_units(self) -> usize {
        match self {
            Self::Stages | Self::AtOnce | Self::OffPolicy | Self::Offline => STAGES,
            _ => 1,
        }
    }

    /// Returns the number of stages.
    pub fn stages(self) -> usize {
        match self {
            Self::Stages => STAGES,
            _ => 1,
        }
    }

    /// Returns the principle with an additional weight, and the weight (`correct` has weight 1).
    pub fn raised(self) -> Option<(Principle, f64)> {
        match self {
            Self::Brief => Some((Principle::Brief, 1.0)),
            Self::Polite => Some((Principle::Polite, 1.0)),
            _ => None,
        }
    }

    /// Returns the settings, which are equal for all variants except for what the variant tests.
    pub fn config(self, options: &ClaimsOptions, seed: u64) -> LearnConfig {
        let mut config = LearnConfig::default();
        let stage = &mut config.stage;
        stage.prompts = options.stage_prompts * self.stage_units() / self.stages();
        stage.batch = 32;
        stage.order = StageOrder::EasyFirst;
        // Prompts go from easy to hard over all stages of a variant.
        stage.pool = self.stages() as f64;
        stage.seed = seed;
        // One caller replays all prompts.
        stage.principal_share = 1.0;
        stage.held_out = 0.1;
        stage.checkpoint_every = 1000;
        config.rollout.top_p = 1.0;
        config.rollout.max_tokens = 64;
        config.dpo.seed = seed;
        config.dpo.schedule.learning_rate = options.learning_rate;
        config.gates.prompts = 64;
        // The duels are too few for a decision. The measured accuracy of each generation counts, whatever the gates decide.
        config.gates.pass_undecided = true;
        if self != Self::Stages {
            // The accuracy after training on the pairs is compared, so the gates pass every generation.
            config.gates.win_rate.p0 = 1e-6;
            config.gates.win_rate.p1 = 2e-6;
            config.gates.min_length_controlled = 0.0;
            config.gates.max_kl = f64::MAX;
            config.gates.max_norm = f64::MAX;
            config.gates.max_truncated = 1.0;
            config.gates.tolerance = 1.0_f64.next_down();
            config.gates.base = BaseBudget {
                min_win_rate: 0.0,
                max_truncated: 1.0,
                tolerance: 1.0_f64.next_down(),
            };
            config.stage.kl_budget = f64::MAX;
        }
        match self {
            Self::OffPolicy => config.rollout.on_policy = false,
            Self::Brief | Self::Polite => {
                let principles = [Principle::Correct]
                    .into_iter()
                    .chain(self.raised().map(|(p, _)| p));
                config.judging.principles = principles.map(|p| p.name().to_owned()).collect();
            }
            Self::Contrast | Self::ContrastGenerator => {
                config.contrast.share = 1.0;
                // The paper uses no judge in this variant.
                config.contrast.confirmed = false;
                config.contrast.generator = self == Self::ContrastGenerator;
                config.contrast.principles = vec![OpposedPrinciples {
                    good: Principle::Correct.request().to_owned(),
                    bad: Principle::Correct.opposite().to_owned(),
                }];
            }
            _ => {}
        }
        config
    }
}

impl FromStr for Variant {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let known = Self::ALL.into_iter().find(|variant| variant.name() == name);
        known.ok_or_else(|| {
            let names = Self::ALL.map(Self::name).join(", ");
            format!("unknown variant `{name}`; use one of {names}")
        })
    }
}
