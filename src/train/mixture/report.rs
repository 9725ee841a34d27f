//! Counts of a mixture's pairs and examples.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{ExampleKind, TrainExample};

/// Counts of everything made, cut and dropped.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct MixtureReport {
    pub pairs: u64,
    pub sft_examples: u64,
    pub judge_examples: u64,
    pub sft_tokens: u64,
    pub judge_tokens: u64,
    /// Tokens with a weight above zero.
    pub sft_supervised: u64,
    pub judge_supervised: u64,
    /// Sums of the weights: each skill's share of the gradient.
    pub sft_weight: f64,
    pub judge_weight: f64,
    /// Dialogues of which only the last assistant turn is supervised, because the chat template renders earlier turns differently from
    /// the last.
    pub sft_last_turn_only: u64,
    /// Dialogues that lost old turns, or the beginning of a message, to `max_length`.
    pub sft_context_cut: u64,
    /// Answers whose end was cut, and which have no end-of-turn token.
    pub sft_answer_cut: u64,
    /// Not imitated: the preferred answer is empty.
    pub sft_empty: u64,
    /// Not imitated: the chat template or the tokenizer failed, or the template's prompt is not a prefix.
    pub sft_refused: u64,
    /// Judge examples (two per pair) whose context or candidates were cut.
    pub judge_cut: u64,
    /// Judge examples whose rationale was cut.
    pub judge_rationale_cut: u64,
    /// Pairs judged under negated principles.
    pub judge_negated: u64,
    /// Not judged: both answers are equal.
    pub judge_equal: u64,
    /// Not judged: the frame leaves no room in `max_length`.
    pub judge_no_room: u64,
    /// Not judged: a template or the tokenizer failed.
    pub judge_refused: u64,
    /// The message of the first such failure.
    pub first_refusal: Option<String>,
    /// Records that could not be read as pairs: of an unknown format, of two different conversations, or with an unsupported column.
    pub unusable: u64,
    /// File, position and reason of the first unusable record.
    pub first_unusable: Option<String>,
    /// Pairs of plain strings.
    pub plain: u64,
    /// Pairs of plain strings whose text holds control tokens.
    pub plain_control: u64,
}

impl MixtureReport {
    pub(super) fn count(&mut self, example: &TrainExample) {
        let tokens = example.ids.len() as u64;
        let supervised = example
            .weights
            .iter()
            .filter(|weight| **weight > 0.0)
            .count() as u64;
        let weight = example
            .weights
            .iter()
            .map(|weight| f64::from(*weight))
            .sum::<f64>();
        match example.kind {
            ExampleKind::Sft => {
                self.sft_examples += 1;
                self.sft_tokens += tokens;
                self.sft_supervised += supervised;
                self.sft_weight += weight;
            }
            ExampleKind::Judge => {
                self.judge_examples += 1;
                self.judge_tokens += tokens;
                self.judge_supervised += supervised;
                self.judge_weight += weight;
            }
        }
    }

    pub(super) fn refuse(&mut self, why: impl fmt::Display) {
        self.first_refusal.get_or_insert_with(|| why.to_string());
    }

    /// Adds the counts of a later part of the stream.
    pub fn add(&mut self, later: MixtureReport) {
        let MixtureReport {
            pairs,
            sft_examples,
            judge_examples,
            sft_tokens,
            judge_tokens,
            sft_supervised,
            judge_supervised,
            sft_weight,
            judge_weight,
            sft_last_turn_only,
            sft_context_cut,
            sft_answer_cut,
            sft_empty,
            sft_refused,
            judge_cut,
            judge_rationale_cut,
            judge_negated,
            judge_equal,
            judge_no_room,
            judge_refused,
            first_refusal,
            unusable,
            first_unusable,
            plain,
            plain_control,
        } = later;
        self.unusable += unusable;
        self.first_unusable = self.first_unusable.take().or(first_unusable);
        self.plain += plain;
        self.plain_control += plain_control;
        self.pairs += pairs;
        self.sft_examples += sft_examples;
        self.judge_examples += judge_examples;
        self.sft_tokens += sft_tokens;
        self.judge_tokens += judge_tokens;
        self.sft_supervised += sft_supervised;
        self.judge_supervised += judge_supervised;
        self.sft_weight += sft_weight;
        self.judge_weight += judge_weight;
        self.sft_last_turn_only += sft_last_turn_only;
        self.sft_context_cut += sft_context_cut;
        self.sft_answer_cut += sft_answer_cut;
        self.sft_empty += sft_empty;
        self.sft_refused += sft_refused;
        self.judge_cut += judge_cut;
        self.judge_rationale_cut += judge_rationale_cut;
        self.judge_negated += judge_negated;
        self.judge_equal += judge_equal;
        self.judge_no_room += judge_no_room;
        self.judge_refused += judge_refused;
        self.first_refusal = self.first_refusal.take().or(first_refusal);
    }
}

impl fmt::Display for MixtureReport {
    /// Writes one line of totals, then a line for every kind of cut or drop that occurred.
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let total = self.sft_weight + self.judge_weight;
        let share = if total > 0.0 {
            100.0 * self.judge_weight / total
        } else {
            0.0
        };
        write!(
            f,
            "{} pairs: {} SFT examples ({} tokens, {} supervised), {} judge examples ({} tokens, {} supervised), \
             judge share of the loss weight {share:.2} %",
            self.pairs,
            self.sft_examples,
            self.sft_tokens,
            self.sft_supervised,
            self.judge_examples,
            self.judge_tokens,
            self.judge_supervised,
        )?;
        for (count, what) in [
            (
                self.sft_last_turn_only,
                "dialogues with only their last answer supervised",
            ),
            (self.sft_context_cut, "dialogues with a cut context"),
            (self.sft_answer_cut, "dialogues with a cut answer"),
            (self.sft_empty, "pairs not imitated: empty answer"),
            (
                self.sft_refused,
                "pairs not imitated: refused by template or tokenizer",
            ),
            (self.judge_cut, "judge prompts cut"),
            (self.judge_rationale_cut, "rationales cut"),
            (self.judge_negated, "pairs judged under negated principles"),
            (self.judge_equal, "pairs not judged: equal answers"),
            (
                self.judge_no_room,
                "pairs not judged: no room beside the frame",
            ),
            (
                self.judge_refused,
                "pairs not judged: refused by template or tokenizer",
            ),
        ] {
            if count > 0 {
                write!(f, "\n  {count} {what}")?;
            }
        }
        if let Some(why) = &self.first_refusal {
            write!(f, "\n  first refusal: {why}")?;
        }
        Ok(())
    }
}
