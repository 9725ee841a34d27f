//! The reasons why no stage runs, with the numbers that would have to change.

use serde::Serialize;
use utoipa::ToSchema;

use super::LearnError;
use super::config::LearnConfig;
use traffic_log::Eligible;

/// The reason why learning waits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[schema(as = WaitingBody)]
pub struct Waiting {
    /// `too_few_prompts`, `principal_share`, `held_out`, `other_tokenizer`, `other_base`, `other_version`, `paused`, `unattended`,
    /// `another_trainer`, `died` or `failed`.
    #[serde(rename = "code")]
    #[schema(value_type = String)]
    pub reason: WaitingReason,
    /// One sentence that includes the numbers.
    pub message: String,
}

/// The kind of a reason; `GET /train` and the metric `train_waiting` use [`WaitingReason::name`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum WaitingReason {
    /// The log has fewer unused prompts than a stage takes.
    TooFewPrompts,
    /// Enough prompts wait, but too many of them belong to one caller.
    PrincipalShare,
    /// The log has fewer held-out prompts than the gates measure on.
    HeldOut,
    /// Prompts wait whose token ids belong to another tokenizer.
    OtherTokenizer,
    /// A pointer names a generation of other weights or of another tokenizer.
    OtherBase,
    /// The open stage was written by another version of the program.
    OtherVersion,
    /// An operator paused learning.
    Paused,
    /// The limit of consecutive stages without an operator is reached.
    Unattended,
    /// Another process trains on this log.
    AnotherTrainer,
    /// The learner died, and is restarted after a pause.
    Died,
    /// Something failed, and is retried after a pause.
    Failed,
}

impl WaitingReason {
    pub const ALL: [Self; 11] = [
        Self::TooFewPrompts,
        Self::PrincipalShare,
        Self::HeldOut,
        Self::OtherTokenizer,
        Self::OtherBase,
        Self::OtherVersion,
        Self::Paused,
        Self::Unattended,
        Self::AnotherTrainer,
        Self::Died,
        Self::Failed,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::TooFewPrompts => "too_few_prompts",
            Self::PrincipalShare => "principal_share",
            Self::HeldOut => "held_out",
            Self::OtherTokenizer => "other_tokenizer",
            Self::OtherBase => "other_base",
            Self::OtherVersion => "other_version",
            Self::Paused => "paused",
            Self::Unattended => "unattended",
            Self::AnotherTrainer => "another_trainer",
            Self::Died => "died",
            Self::Failed => "failed",
        }
    }
}

/// The prompts that the log has for the next stage.
#[derive(Debug, Clone, Copy, Default)]
pub struct Supply {
    /// Prompts to train on.
    pub train: Eligible,
    /// Prompts left over by an earlier stage; `train` includes them.
    pub left: usize,
    /// Held-out prompts.
    pub held_out: Eligible,
    /// Records that are left out because their token ids belong to another tokenizer.
    pub of_other_tokenizers: u64,
}

impl Waiting {
    pub fn new(reason: WaitingReason, message: impl Into<String>) -> Self {
        let message = message.into();
        Self { reason, message }
    }

    /// Returns what the next stage has to wait for; none if the log has enough.
    pub fn for_prompts(config: &LearnConfig, supply: &Supply) -> Option<Self> {
        let sides = [
            (
                supply.train,
                supply.train.drawable.max(supply.left),
                config.stage.prompts,
                "prompts to learn from",
                WaitingReason::TooFewPrompts,
            ),
            (
                supply.held_out,
                supply.held_out.drawable,
                config.gates.prompts,
                "held-out prompts to measure on",
                WaitingReason::HeldOut,
            ),
        ];
        let (found, _, needed, what, reason) = sides
            .into_iter()
            .find(|(_, available, needed, ..)| available < needed)?;
        let Eligible {
            rows,
            principals,
            drawable,
        } = found;
        if rows >= needed {
            let share = config.stage.principal_share;
            return Some(Self::new(
                WaitingReason::PrincipalShare,
                format!(
                    "The log has {rows} {what} and {needed} are needed, but they are of {principals} callers, and with at most \
                     {share} of a stage from each (stage.principal_share) {drawable} may be taken."
                ),
            ));
        }
        let foreign = supply.of_other_tokenizers;
        if foreign > 0
            && reason == WaitingReason::TooFewPrompts
            && rows + foreign as usize >= needed
        {
            return Some(Self::new(
                WaitingReason::OtherTokenizer,
                format!(
                    "The log has {rows} of {needed} {what}, and {foreign} records are left out because their token ids are of another \
                     tokenizer."
                ),
            ));
        }
        let [
            (train, .., of_train, _, _),
            (held_out, .., of_held_out, _, _),
        ] = sides;
        Some(Self::new(
            reason,
            format!(
                "The log has {} of {of_train} prompts to learn from and {} of {of_held_out} held-out prompts to measure on ({} of the log \
                 is held out: stage.held_out), and a stage begins once it has all {}.",
                train.rows.min(of_train),
                held_out.rows.min(of_held_out),
                config.stage.held_out,
                of_train.saturating_add(of_held_out),
            ),
        ))
    }

    /// Returns the waiting reason for an error that is retried.
    pub fn after(error: &LearnError) -> Self {
        let reason = match error {
            LearnError::OtherBase { .. } => WaitingReason::OtherBase,
            LearnError::OtherVersion { .. } => WaitingReason::OtherVersion,
            _ => WaitingReason::Failed,
        };
        Self::new(reason, error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn eligible(rows: usize, principals: usize, drawable: usize) -> Eligible {
        Eligible {
            rows,
            principals,
            drawable,
        }
    }

    #[test]
    fn what_is_missing_is_named_with_its_numbers() {
        let mut config = LearnConfig::default();
        config.stage.prompts = 256;
        config.gates.prompts = 400;
        let enough = eligible(900, 9, 900);
        let supply = Supply {
            train: enough,
            held_out: enough,
            ..Supply::default()
        };
        assert_eq!(Waiting::for_prompts(&config, &supply), None);
        let few = Supply {
            train: eligible(40, 3, 40),
            ..supply
        };
        let capped = Supply {
            train: eligible(900, 1, 1),
            ..supply
        };
        let held_out = Supply {
            held_out: eligible(90, 9, 90),
            ..supply
        };
        let held_out_capped = Supply {
            held_out: eligible(900, 2, 2),
            ..supply
        };
        let foreign = Supply {
            of_other_tokenizers: 300,
            ..few
        };
        let cases = [
            (few, WaitingReason::TooFewPrompts, ["40", "256"]),
            (capped, WaitingReason::PrincipalShare, ["1 callers", "0.25"]),
            (held_out, WaitingReason::HeldOut, ["90", "400"]),
            (
                held_out_capped,
                WaitingReason::PrincipalShare,
                ["2 callers", "400"],
            ),
            (foreign, WaitingReason::OtherTokenizer, ["300", "256"]),
        ];
        for (supply, reason, numbers) in cases {
            let waiting = Waiting::for_prompts(&config, &supply).unwrap();
            assert_eq!(waiting.reason, reason, "{waiting:?}");
            for number in numbers {
                assert!(waiting.message.contains(number), "{waiting:?}");
            }
            let sentence =
                waiting.message.starts_with("The log has ") && waiting.message.ends_with('.');
            assert!(sentence, "{waiting:?}");
        }
        let message = Waiting::for_prompts(&config, &few).unwrap().message;
        assert!(
            message.contains("all 656"),
            "as `prompts_needed` has it: {message}"
        );
        // The prompts left over by an earlier stage suffice by themselves.
        let left = Supply { left: 256, ..few };
        assert_eq!(Waiting::for_prompts(&config, &left), None);
    }

    #[test]
    fn a_reason_has_one_name() {
        for reason in WaitingReason::ALL {
            assert_eq!(serde_json::to_value(reason).unwrap(), reason.name());
        }
    }
}
