//! The JSFT mixture: preference pairs in, weighted token sequences out.
//!
//! As in SELF-JUDGE's released code (papers.md 1.2 to 1.4): every pair is imitated once, on its preferred answer, and judged
//! twice, once in each order; examples are concatenated, loss is the mean over supervised tokens. The code's defects are
//! left out, and so these deviations, numbered:
//!
//! 1. Supervised spans are found by rendering prefixes of the conversation and comparing bytes, not by matching the tokens of
//!    markers; an example is never kept with everything masked, but dropped and counted.
//! 2. One way of encoding for all examples, so that BOS is where the chat template writes it.
//! 3. Over-long judge prompts keep their frame ([`crate::judge::fit`]); over-long dialogues lose their oldest turns first, and
//!    an answer that had to be cut is not given an end of turn.
//! 4. Pairs of equal answers are not judged.
//!
//! Named options go beyond the paper: see [`MixtureOptions`].

mod examples;
mod judging;
mod report;
mod sft;
#[cfg(test)]
mod tests;

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

pub use examples::{Examples, Order};
pub use report::MixtureReport;

use crate::judge::{JudgeError, JudgeTemplate, LabelTokens};
use crate::preference::{PlainText, PreferencePair, PrincipleTable};
use crate::text::{ChatTemplate, TextError, Tokenizer};
use crate::train::plain::{PlainEnd, spells_control_tokens};

/// What building a mixture can fail with.
#[derive(Debug, thiserror::Error)]
pub enum MixtureError {
    #[error("mixture option `{option}` {problem}")]
    Option {
        option: &'static str,
        problem: &'static str,
    },
    #[error(transparent)]
    Judge(#[from] JudgeError),
    #[error("reading pairs: {0}")]
    Source(Box<dyn std::error::Error + Send + Sync>),
    #[error("there is no preference pair in the data")]
    NoPairs,
    #[error("none of {pairs} pairs gave an example{}", .first_refusal.as_ref().map(|why| format!("; the first refusal: {why}")).unwrap_or_default())]
    Empty {
        pairs: u64,
        first_refusal: Option<String>,
    },
}

/// Which of the two skills an example trains.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ExampleKind {
    Sft,
    Judge,
}

/// One training sequence. The loss of a batch is `sum_i w_i * nll_i / sum_i w_i` over all its tokens.
#[derive(Debug, Clone, PartialEq)]
pub struct TrainExample {
    pub ids: Vec<u32>,
    /// As long as `ids`; `weights[i]` is the loss weight of predicting `ids[i]` from what precedes it, so `weights[0]` is 0.
    pub weights: Vec<f32>,
    pub kind: ExampleKind,
    /// Where a judge example's label token is.
    pub label: Option<usize>,
}

/// How supervised tokens are weighted against each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Weighting {
    /// Every supervised token counts the same, as published: a judge example is one token against an answer's hundreds.
    #[default]
    TokenMean,
    /// Every example counts the same: its weights are scaled to sum to one, before `judge_weight` is applied.
    ExampleMean,
}

/// What a mixture is made of. The defaults are the published algorithm.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MixtureOptions {
    /// The longest sequence, in tokens.
    pub max_length: usize,
    pub weighting: Weighting,
    /// Multiplies the weight of the label token.
    pub judge_weight: f32,
    /// Whether a pair's rationale follows its label token (SELF-JUDGE's PR variant). It is supervised, without an end of
    /// turn. It is written the same in both orders, so it must not speak of A and B.
    pub rationale: bool,
    /// Weight of each rationale token.
    pub rationale_weight: f32,
    /// Weight of each token of the preferred candidate inside the judge prompt; not in the paper. It has a small model read
    /// candidates with the skill it writes them with. Under a negated principle it stays with the pair's own `chosen`.
    pub candidate_weight: f32,
    /// Probability that a comparison is shown under the negations of its principles with the labels flipped (SALMON), where
    /// all its principles have one.
    pub negation: f64,
    pub seed: u64,
}

impl Default for MixtureOptions {
    fn default() -> Self {
        Self {
            max_length: 2048,
            weighting: Weighting::TokenMean,
            judge_weight: 1.0,
            rationale: false,
            rationale_weight: 1.0,
            candidate_weight: 0.0,
            negation: 0.0,
            seed: 42,
        }
    }
}

impl MixtureOptions {
    fn check(&self) -> Result<(), MixtureError> {
        let refuse = |option, problem| Err(MixtureError::Option { option, problem });
        if self.max_length < 16 {
            return refuse("max_length", "is below 16");
        }
        if self.max_length > u32::MAX as usize {
            return refuse("max_length", "is above 2^32");
        }
        for (option, weight) in [
            ("judge_weight", self.judge_weight),
            ("rationale_weight", self.rationale_weight),
            ("candidate_weight", self.candidate_weight),
        ] {
            if !(weight.is_finite() && weight >= 0.0) {
                return refuse(option, "must be finite and not negative");
            }
        }
        if self.judge_weight == 0.0 {
            return refuse(
                "judge_weight",
                "is 0: turn `judge` off in the records instead",
            );
        }
        if !(0.0..=1.0).contains(&self.negation) {
            return refuse("negation", "must lie between 0 and 1");
        }
        Ok(())
    }
}

/// Turns pairs into examples; everything is decided by the options and the pair's place in the stream.
#[derive(Clone)]
pub struct Mixture {
    tokenizer: Tokenizer,
    chat: ChatTemplate,
    template: JudgeTemplate,
    labels: LabelTokens,
    principles: PrincipleTable,
    options: MixtureOptions,
    plain: PlainText,
    plain_end: PlainEnd,
    /// Ids from here on are not in the model's embedding.
    vocab_size: usize,
}

/// Pairs encoded at a time: enough for every thread, little enough to keep in memory twice.
const CHUNK: usize = 2048;

impl Mixture {
    /// # Errors
    /// If an option is out of range or the template's labels are not one token each.
    pub fn new(
        tokenizer: Tokenizer,
        chat: ChatTemplate,
        template: JudgeTemplate,
        principles: PrincipleTable,
        options: MixtureOptions,
    ) -> Result<Self, MixtureError> {
        options.check()?;
        let labels = LabelTokens::resolve(&tokenizer, &chat, &template)?;
        Ok(Self {
            tokenizer,
            chat,
            template,
            labels,
            principles,
            options,
            plain: PlainText::Raw,
            plain_end: PlainEnd::default(),
            vocab_size: usize::MAX,
        })
    }

    /// Says how plain strings are imitated, and what ends their answers.
    pub(super) fn with_plain_text(self, plain: PlainText, plain_end: PlainEnd) -> Self {
        Self {
            plain,
            plain_end,
            ..self
        }
    }

    /// Refuses examples with a token that the model has no embedding for.
    pub(super) fn within(self, vocab_size: usize) -> Self {
        Self { vocab_size, ..self }
    }

    pub fn labels(&self) -> LabelTokens {
        self.labels
    }

    pub fn options(&self) -> &MixtureOptions {
        &self.options
    }

    /// The examples of the pair at place `index` of the stream (SFT first, then the judge's two), and what happened to it.
    pub fn examples(
        &self,
        index: u64,
        pair: &PreferencePair,
    ) -> (Vec<TrainExample>, MixtureReport) {
        let mut report = MixtureReport {
            pairs: 1,
            ..MixtureReport::default()
        };
        let mut built = Vec::with_capacity(3);
        report.plain = u64::from(pair.plain);
        report.plain_control =
            u64::from(pair.plain && spells_control_tokens(&self.tokenizer, pair));
        let chat = pair.clone().into_chat();
        if pair.sft {
            let imitated = match self.plain {
                PlainText::Raw => pair,
                PlainText::Chat => &chat,
            };
            built.extend(self.sft(imitated, &mut report));
        }
        let pair = &chat;
        if pair.judge {
            // A stream of its own for every pair: results do not depend on how the work is spread over threads.
            let mut rng = ChaCha8Rng::seed_from_u64(self.options.seed);
            rng.set_stream(index);
            built.extend(self.judging(pair, &mut rng, &mut report));
        }
        let examples: Vec<_> = built.into_iter().map(|built| self.weigh(built)).collect();
        examples.iter().for_each(|example| report.count(example));
        (examples, report)
    }

    /// Applies the weighting to weights as the builders left them: 1 where supervised, or what their option gives.
    fn weigh(&self, mut example: TrainExample) -> TrainExample {
        // Nothing precedes the first token.
        if let Some(first) = example.weights.first_mut() {
            *first = 0.0;
        }
        if self.options.weighting == Weighting::ExampleMean {
            let sum: f32 = example.weights.iter().sum();
            if sum > 0.0 {
                example.weights.iter_mut().for_each(|weight| *weight /= sum);
            }
        }
        if let Some(label) = example.label {
            example.weights[label] *= self.options.judge_weight;
        }
        example
    }

    /// # Errors
    /// The first token of an example that is outside the model's embedding.
    fn check_ids(&self, ids: &[u32]) -> Result<(), Refusal> {
        let vocab = self.vocab_size;
        match ids.iter().find(|&&id| id as usize >= vocab) {
            Some(&id) => Err(Refusal::Token { id, vocab }),
            None => Ok(()),
        }
    }

    /// Encodes a whole stream, on all threads, in its order.
    ///
    /// # Errors
    /// If the stream fails, or nothing of it gave an example. Pairs that cannot be used are counted in the report instead.
    pub fn build<E>(
        &self,
        pairs: impl IntoIterator<Item = Result<PreferencePair, E>>,
    ) -> Result<(Examples, MixtureReport), MixtureError>
    where
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let mut examples = Examples::new(self.tokenizer.vocab_size());
        let mut report = MixtureReport::default();
        let mut pairs = pairs.into_iter();
        loop {
            let chunk = pairs
                .by_ref()
                .take(CHUNK)
                .collect::<Result<Vec<_>, E>>()
                .map_err(|error| MixtureError::Source(error.into()))?;
            if chunk.is_empty() {
                break;
            }
            let start = report.pairs;
            let encoded: Vec<_> = chunk
                .par_iter()
                .enumerate()
                .map(|(at, pair)| self.examples(start + at as u64, pair))
                .collect();
            for (built, happened) in encoded {
                report.add(happened);
                built.iter().for_each(|example| examples.push(example));
            }
        }
        if report.pairs == 0 {
            return Err(MixtureError::NoPairs);
        }
        if examples.is_empty() {
            return Err(MixtureError::Empty {
                pairs: report.pairs,
                first_refusal: report.first_refusal,
            });
        }
        Ok((examples, report))
    }
}

/// Why an example of a pair was not made; the report's counters.
enum Refusal {
    Text(TextError),
    Judge(JudgeError),
    /// The chat template's prompt for the answer is not the beginning of the conversation with the answer.
    Prefix,
    /// A token that the model has no embedding for.
    Token {
        id: u32,
        vocab: usize,
    },
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        match self {
            Refusal::Text(error) => error.fmt(f),
            Refusal::Judge(error) => error.fmt(f),
            Refusal::Token { id, vocab } => {
                write!(f, "token {id} is outside the model's vocabulary of {vocab}")
            }
            Refusal::Prefix => f.write_str(
                "the chat template writes a conversation with its answer unlike the prompt for that answer",
            ),
        }
    }
}

impl From<TextError> for Refusal {
    fn from(error: TextError) -> Self {
        Refusal::Text(error)
    }
}

impl From<JudgeError> for Refusal {
    fn from(error: JudgeError) -> Self {
        Refusal::Judge(error)
    }
}
