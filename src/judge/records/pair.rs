//! The two record types from which all judging and training start: the preference pair and the judge item.

use serde::{Deserialize, Serialize};
use text::Message;

/// Two answers to one conversation, of which one is preferred.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PreferencePair {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// The conversation up to and including the user turn to answer; it may start with a system turn.
    pub messages: Vec<Message>,
    pub chosen: String,
    pub rejected: String,
    /// Names or texts of the principles under which `chosen` is preferred; empty means the default one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub principles: Vec<String>,
    /// The reason why `chosen` is preferred: trained after the decision token (SELF-JUDGE's PR variant), never read at inference.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rationale: Option<String>,
    /// Whether `chosen` is also a target of supervised fine-tuning. False for pairs that are only judge examples.
    #[serde(default = "yes", skip_serializing_if = "is_yes")]
    pub sft: bool,
    /// Whether the comparison becomes judge examples. False for pairs that are only targets of supervised fine-tuning.
    #[serde(default = "yes", skip_serializing_if = "is_yes")]
    pub judge: bool,
    /// Whether prompt and answers are raw text, without a chat template (TRL's plain format). The prompt is then the content of the only
    /// message.
    #[serde(default, skip_serializing_if = "is_no")]
    pub plain: bool,
    /// The record's `margin`. In this program's own exports: the probability that `chosen` is the better answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub margin: Option<f64>,
    /// The record's `source`: the origin of the pair.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
}

/// The reading of records whose prompt and answers are plain strings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PlainText {
    /// As raw text, like TRL: no chat template, control tokens in the text are read as control tokens, and the end-of-sequence token
    /// follows the answer.
    #[default]
    Raw,
    /// As one user turn and the assistant's answer to it.
    Chat,
}

impl PreferencePair {
    /// Returns the pair with its plain prompt as a user turn and its answers as assistant turns, without the white space that joined them
    /// to the prompt.
    pub fn into_chat(mut self) -> Self {
        if self.plain {
            for answer in [&mut self.chosen, &mut self.rejected] {
                *answer = answer.trim_start().to_owned();
            }
            self.plain = false;
        }
        self
    }
}

fn is_no(flag: &bool) -> bool {
    !*flag
}

fn yes() -> bool {
    true
}

fn is_yes(flag: &bool) -> bool {
    *flag
}

/// The verdict of a [`JudgeItem`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Label {
    A,
    B,
    Tie,
}

/// Two answers to one conversation with a human (or programmatic) verdict, ties included.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JudgeItem {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    pub messages: Vec<Message>,
    pub a: String,
    pub b: String,
    pub label: Label,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub principles: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rationale: Option<String>,
}
