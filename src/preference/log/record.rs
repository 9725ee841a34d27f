//! What is logged: a request with its samples, verdicts, pairs and feedback.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{LogError, Principal, RecordId, Result, UnixMillis};
use crate::preference::Message;

/// Implements the stored word of a closed set of names, both ways.
macro_rules! stored_words {
    ($name:ident, $what:literal, $($variant:ident => $word:literal),+ $(,)?) => {
        impl $name {
            pub fn as_str(self) -> &'static str {
                match self { $($name::$variant => $word),+ }
            }

            pub(crate) fn stored(word: &str) -> $crate::preference::log::Result<Self> {
                match word {
                    $($word => Ok($name::$variant),)+
                    other => Err($crate::preference::log::LogError::Corrupt(format!("`{other}` is no {}", $what))),
                }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}
pub(super) use stored_words;

/// What was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RecordKind {
    Generate,
    Judge,
    /// Pairs read from a file.
    Imported,
}

stored_words!(RecordKind, "kind of record", Generate => "generate", Judge => "judge", Imported => "imported");

/// What the principal allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Consent {
    /// The record may be kept. Without it nothing is written.
    pub retain: bool,
    /// The model may be trained on it.
    pub train: bool,
}

/// What was asked, as it was asked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Prompt {
    Text(String),
    Messages(Vec<Message>),
}

/// One answer.
///
/// A sample the model drew has a log-probability for every token: raw, of the full vocabulary at temperature 1, in nats, so that
/// whatever the sampling parameters were, importance ratios can be computed. A text somebody gave has neither.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    pub token_ids: Vec<u32>,
    pub text: String,
    /// One per token, or none at all.
    pub logprobs: Vec<f32>,
    pub seed: Option<u64>,
    /// Sampling parameters as JSON; null if the text was given. Samples of one call have the same, and all but the first say no more
    /// than that, see [`Sample::sampled_as`]; what is read from the log is written out.
    pub sampling: Value,
    /// `stop`, `length`, ...; none if the text was given.
    pub finish_reason: Option<String>,
    /// The weights that wrote it, as responses name them; none if the text was given.
    pub version: Option<String>,
}

impl Sample {
    /// A text that was not drawn from the model: a judged candidate, an edited answer.
    pub fn given(text: impl Into<String>) -> Self {
        Self {
            token_ids: Vec::new(),
            text: text.into(),
            logprobs: Vec::new(),
            seed: None,
            sampling: Value::Null,
            finish_reason: None,
            version: None,
        }
    }
}

/// Least probability that a judge puts on its two labels for its verdict to name a winner: below it there is no pair, and nothing is
/// corroborated.
pub const MIN_LABEL_MASS: f32 = 0.5;

/// The one field of sampling parameters that are those of an earlier sample of the record.
const AS_SAMPLE: &str = "as_sample";

impl Sample {
    /// The sampling parameters of sample `earlier` of the record. They may be large, and are kept once.
    pub fn sampled_as(earlier: usize) -> Value {
        Value::Object(
            [(AS_SAMPLE.to_owned(), earlier.into())]
                .into_iter()
                .collect(),
        )
    }

    /// Writes out what says no more than that it is as an earlier sample's.
    pub(super) fn write_out(samples: &mut [Self]) {
        for at in 0..samples.len() {
            let earlier = match samples[at].sampling.as_object() {
                Some(fields) if fields.len() == 1 => fields.get(AS_SAMPLE).and_then(Value::as_u64),
                _ => None,
            };
            let earlier = earlier.and_then(|earlier| usize::try_from(earlier).ok());
            if let Some(earlier) = earlier.filter(|&earlier| earlier < at) {
                samples[at].sampling = samples[earlier].sampling.clone();
            }
        }
    }
}

/// A comparison of two samples of one record.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LoggedVerdict {
    /// Index of the first sample among the record's.
    pub a: usize,
    /// Index of the second sample.
    pub b: usize,
    /// Probability that `a` is better, with `a` shown first and with `a` shown second.
    pub orders: [f32; 2],
    /// Probability that `a` is better, both orders together.
    pub p: f32,
    /// Whether both orders name the same winner.
    pub consistent: bool,
    /// Probability the judge puts on the two labels together.
    pub label_mass: f32,
    /// Ids or texts of the principles it was made under.
    pub principles: Vec<String>,
    /// The judge's weights.
    pub version: String,
}

impl LoggedVerdict {
    /// The preference pair this match is for free: the winner over the loser. None if neither won, or if the judge put less than
    /// [`MIN_LABEL_MASS`] on its labels.
    pub fn pair(&self, source: PairSource) -> Option<LoggedPair> {
        if self.label_mass.is_nan() || self.label_mass < MIN_LABEL_MASS {
            return None;
        }
        let (chosen, rejected, margin) = match self.p {
            p if p > 0.5 => (self.a, self.b, p),
            p if p < 0.5 => (self.b, self.a, 1.0 - p),
            _ => return None,
        };
        Some(LoggedPair {
            chosen,
            rejected,
            margin,
            source,
            principles: self.principles.clone(),
        })
    }

    /// Returns the pair of a verdict by the judge's default question. What a call is judged by under principles that the call itself
    /// named says what that caller asked for, and is not learned from.
    pub fn default_pair(&self, source: PairSource) -> Option<LoggedPair> {
        match self.principles.is_empty() {
            true => self.pair(source),
            false => None,
        }
    }
}

/// Where a pair comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PairSource {
    /// A match of a tournament or a best-of-N that somebody asked for.
    Tournament,
    /// Two fresh samples the trainer drew and judged.
    OnPolicy,
    /// What principals said.
    Feedback,
    /// Written under contrasting principles.
    Contrast,
    /// Read from a file.
    Imported,
}

stored_words!(
    PairSource, "source of a pair",
    Tournament => "tournament", OnPolicy => "on_policy", Feedback => "feedback", Contrast => "contrast", Imported => "imported",
);

/// Two samples of one record, the first preferred.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LoggedPair {
    /// Index of the preferred sample among the record's.
    pub chosen: usize,
    pub rejected: usize,
    /// Probability that `chosen` is better, above 1/2.
    pub margin: f32,
    pub source: PairSource,
    pub principles: Vec<String>,
}

/// How large a record is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordSize {
    /// Samples of the answer.
    pub shown: usize,
    /// About the bytes of its rows, with the sampling parameters written out for every sample.
    pub bytes: usize,
}

/// A record to be appended.
#[derive(Debug, Clone, PartialEq)]
pub struct NewRecord {
    pub kind: RecordKind,
    pub principal: Principal,
    pub consent: Consent,
    pub idempotency_key: Option<IdempotencyKey>,
    pub prompt: Prompt,
    /// What the model read; dropped if redaction changes the prompt, because tokens would give away what was taken out.
    pub prompt_token_ids: Vec<u32>,
    /// The weights that answered.
    pub version: String,
    pub samples: Vec<Sample>,
    pub verdicts: Vec<LoggedVerdict>,
    pub pairs: Vec<LoggedPair>,
}

impl NewRecord {
    /// What the record takes in the database: its texts, tokens and numbers, and what a row costs by itself.
    pub fn bytes(&self) -> usize {
        const ROW: usize = 128;
        let texts = |texts: &[String]| texts.iter().map(String::len).sum::<usize>();
        let prompt = match &self.prompt {
            Prompt::Text(text) => text.len(),
            Prompt::Messages(messages) => {
                let messages = messages.iter();
                messages
                    .map(|message| message.content.len() + ROW / 4)
                    .sum()
            }
        };
        let samples = self.samples.iter().map(|sample| {
            let numbers = size_of::<u32>() * (sample.token_ids.len() + sample.logprobs.len());
            ROW + sample.text.len() + numbers + json_bytes(&sample.sampling)
        });
        let verdicts = self
            .verdicts
            .iter()
            .map(|verdict| ROW + texts(&verdict.principles));
        let pairs = self.pairs.iter().map(|pair| ROW + texts(&pair.principles));
        ROW + prompt
            + size_of::<u32>() * self.prompt_token_ids.len()
            + samples.sum::<usize>()
            + verdicts.sum::<usize>()
            + pairs.sum::<usize>()
    }

    /// Checks what no type says.
    pub(super) fn check(&self) -> Result<()> {
        if !self.consent.retain {
            return Err(LogError::Invalid(
                "a record may not be kept without consent".to_owned(),
            ));
        }
        check(&self.samples, &self.verdicts, &self.pairs)
    }
}

/// What the trainer adds to a record. Indices count the addition's own samples from 0.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Addition {
    pub samples: Vec<Sample>,
    pub verdicts: Vec<LoggedVerdict>,
    pub pairs: Vec<LoggedPair>,
    /// Verdicts on samples that the record has already, by their indices there: the judge was asked about feedback. What follows
    /// from feedback is derived anew.
    pub corroborating: Vec<LoggedVerdict>,
}

impl Addition {
    /// Checks what no type says.
    pub(super) fn check(&self) -> Result<()> {
        self.corroborating.iter().try_for_each(check_numbers)?;
        check(&self.samples, &self.verdicts, &self.pairs)
    }
}

/// About the length of a value as JSON.
fn json_bytes(value: &Value) -> usize {
    match value {
        Value::Null | Value::Bool(_) => 5,
        Value::Number(_) => 8,
        Value::String(text) => text.len() + 2,
        Value::Array(values) => {
            values
                .iter()
                .map(|value| json_bytes(value) + 1)
                .sum::<usize>()
                + 2
        }
        Value::Object(fields) => {
            let fields = fields.iter();
            fields
                .map(|(key, value)| key.len() + 4 + json_bytes(value))
                .sum::<usize>()
                + 2
        }
    }
}

fn check_numbers(verdict: &LoggedVerdict) -> Result<()> {
    let numbers = [
        verdict.p,
        verdict.label_mass,
        verdict.orders[0],
        verdict.orders[1],
    ];
    match numbers.iter().all(|x| x.is_finite()) {
        true => Ok(()),
        false => Err(LogError::Invalid(
            "a verdict has a number that is not finite".to_owned(),
        )),
    }
}

fn check(samples: &[Sample], verdicts: &[LoggedVerdict], pairs: &[LoggedPair]) -> Result<()> {
    let invalid = |what: &str| Err(LogError::Invalid(what.to_owned()));
    for sample in samples {
        if !sample.logprobs.is_empty() && sample.logprobs.len() != sample.token_ids.len() {
            return invalid("a sample has log-probabilities for some of its tokens only");
        }
    }
    let known = |a: usize, b: usize| a < samples.len() && b < samples.len() && a != b;
    for verdict in verdicts {
        if !known(verdict.a, verdict.b) {
            return invalid("a verdict compares samples that are not there");
        }
        check_numbers(verdict)?;
    }
    for pair in pairs {
        if !known(pair.chosen, pair.rejected) {
            return invalid("a pair is made of samples that are not there");
        }
        if !pair.margin.is_finite() {
            return invalid("a pair has a margin that is not finite");
        }
    }
    Ok(())
}

/// A record as it is read back.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LoggedRecord {
    pub id: RecordId,
    pub kind: RecordKind,
    pub principal: Principal,
    pub created_at: UnixMillis,
    pub consent: Consent,
    pub prompt: Prompt,
    /// Empty if redaction changed the prompt.
    pub prompt_token_ids: Vec<u32>,
    /// Whether redaction replaced anything in the record.
    pub redacted: bool,
    pub version: String,
    pub samples: Vec<Sample>,
    pub verdicts: Vec<LoggedVerdict>,
    pub pairs: Vec<LoggedPair>,
    pub feedback: Vec<LoggedFeedback>,
}

/// What a principal says about a record's answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Feedback {
    /// One answer is good or bad.
    Thumbs { sample: usize, up: bool },
    /// One answer is better than all others.
    Preferred { sample: usize },
    /// How the answer should have read.
    Edited { sample: usize, text: String },
}

/// Feedback as it is stored: one of each kind and sample for a principal, the latest counts.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LoggedFeedback {
    pub principal: Principal,
    pub created_at: UnixMillis,
    pub feedback: Feedback,
}

/// What became of feedback.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct FeedbackOutcome {
    /// Pairs that follow from all of the record's feedback under the trust policy.
    pub pairs: usize,
}

/// Whose records an operation may touch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// The operator's view.
    All,
    Only(Principal),
    /// The records of a principal that was named otherwise before.
    Either(Principal, Principal),
}

impl Scope {
    /// The principals whose records are in the scope; none is everybody.
    pub(super) fn principals(&self) -> Option<[&Principal; 2]> {
        match self {
            Self::All => None,
            Self::Only(principal) => Some([principal, principal]),
            Self::Either(principal, former) => Some([principal, former]),
        }
    }

    /// Returns whether a principal's records are in the scope.
    pub(super) fn includes(&self, principal: &Principal) -> bool {
        self.principals().is_none_or(|own| own.contains(&principal))
    }
}

/// The name of a call. The same name of the same principal names the same record: a retry is no second record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdempotencyKey {
    pub name: String,
    /// The digest of what was asked for: another request under the same name is refused.
    pub request: [u8; 32],
}
