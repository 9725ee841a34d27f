//! The content of a record: a request with its samples, verdicts, pairs and feedback.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::{LogError, Principal, RecordId, Result, UnixMillis};
use judge::MIN_LABEL_MASS;
use text::Message;

/// Implements the conversion of an enum to and from the words that are stored for its variants.
macro_rules! stored_words {
    ($name:ident, $what:literal, $($variant:ident => $word:literal),+ $(,)?) => {
        impl $name {
            pub fn as_str(self) -> &'static str {
                match self { $($name::$variant => $word),+ }
            }

            pub(crate) fn stored(word: &str) -> $crate::Result<Self> {
                match word {
                    $($word => Ok($name::$variant),)+
                    other => Err($crate::LogError::Corrupt(format!("unknown {} `{other}`", $what))),
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

/// The kind of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RecordKind {
    Generate,
    Judge,
    /// Pairs imported from a file.
    Imported,
}

stored_words!(RecordKind, "record kind", Generate => "generate", Judge => "judge", Imported => "imported");

/// The permitted use of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[schema(as = ConsentBody)]
pub struct Consent {
    /// Whether the record is kept.
    pub retain: bool,
    /// Whether the model may be trained on it.
    pub train: bool,
}

/// The prompt of a record, as it was received.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(untagged)]
#[schema(as = RecordPrompt)]
pub enum Prompt {
    Text(String),
    Messages(Vec<Message>),
}

/// An answer, or a text given by a caller.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = SampleBody)]
pub struct Sample {
    /// The ids of the sample's tokens; empty for a given text.
    pub token_ids: Vec<u32>,
    /// The text of the sample.
    pub text: String,
    /// Log-probability of each token: over the full vocabulary, at temperature 1, before penalties and truncation.
    // So importance ratios can be computed for any sampling parameters. Empty for a given text.
    pub logprobs: Vec<f32>,
    /// The sampling seed; null for a given text.
    pub seed: Option<u64>,
    /// The sampling settings.
    // Null for a given text. The samples of one call have the same settings, so that all but the first refer to an earlier sample, see
    // `Sample::sampled_as`. Reading from the log resolves the references.
    pub sampling: Value,
    /// `stop`, `stop_string`, `complete`, `length`, or `aborted`.
    pub finish_reason: Option<String>,
    /// The weights that generated the sample; null for a given text.
    pub version: Option<String>,
}

impl Sample {
    /// Returns a text that was not drawn from the model: a judged candidate or an edited answer.
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

/// The only field of sampling parameters that refer to an earlier sample of the record.
const AS_SAMPLE: &str = "as_sample";

impl Sample {
    /// Returns a reference to the sampling parameters of sample `earlier` of the record. They may be large, so they are stored once.
    pub fn sampled_as(earlier: usize) -> Value {
        Value::Object(
            [(AS_SAMPLE.to_owned(), earlier.into())]
                .into_iter()
                .collect(),
        )
    }

    /// Replaces references to earlier samples by their sampling parameters.
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

/// A comparison of two of the samples.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = LoggedVerdictBody)]
pub struct LoggedVerdict {
    /// The number of the first sample, from 0.
    pub a: usize,
    /// The number of the second sample.
    pub b: usize,
    /// Probability that `a` is better, with `a` read first and with `a` read second.
    pub orders: [f32; 2],
    /// The probability that `a` is better, over both orders.
    pub p: f32,
    /// Whether both orders name the same winner.
    pub consistent: bool,
    /// Probability of the judge's labels among all tokens.
    pub label_mass: f32,
    /// The principles of the verdict; empty for the judge's default question.
    pub principles: Vec<String>,
    /// The weights that judged.
    pub version: String,
}

impl LoggedVerdict {
    /// Returns the preference pair that follows from the verdict: the winner over the loser. None for a tie, or if the labels have less
    /// than [`MIN_LABEL_MASS`].
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

    /// Returns the pair of a verdict by the judge's default question. A verdict under principles that the call itself named reflects that
    /// caller's request, and is not learned from.
    pub fn default_pair(&self, source: PairSource) -> Option<LoggedPair> {
        match self.principles.is_empty() {
            true => self.pair(source),
            false => None,
        }
    }
}

/// The origin of a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PairSource {
    /// A match of a tournament or best-of-N that a call requested.
    Tournament,
    /// Two new samples that the trainer drew and judged.
    OnPolicy,
    /// Feedback of principals.
    Feedback,
    /// Answers written under contrasting principles.
    Contrast,
    /// Imported from a file.
    Imported,
}

stored_words!(
    PairSource, "pair source",
    Tournament => "tournament", OnPolicy => "on_policy", Feedback => "feedback", Contrast => "contrast", Imported => "imported",
);

impl std::str::FromStr for PairSource {
    type Err = String;

    /// Parses a source as pairs name it.
    fn from_str(word: &str) -> std::result::Result<Self, String> {
        // Earlier versions took this spelling on the command line.
        let word = if word == "on-policy" {
            "on_policy"
        } else {
            word
        };
        Self::stored(word).map_err(|_| {
            format!(
                "unknown source `{word}`; use tournament, on_policy, feedback, contrast or imported"
            )
        })
    }
}

/// A preference pair of two samples.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = PairBody)]
pub struct LoggedPair {
    /// The number of the better sample, from 0.
    pub chosen: usize,
    /// The number of the worse sample.
    pub rejected: usize,
    /// Probability that `chosen` is better.
    pub margin: f32,
    /// `tournament`, `on_policy`, `feedback`, `contrast` or `imported`.
    #[schema(value_type = String)]
    pub source: PairSource,
    /// The principles of the verdict; empty for the judge's default question.
    pub principles: Vec<String>,
}

/// The size of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordSize {
    /// The number of samples of the answer.
    pub shown: usize,
    /// The approximate size of its rows in bytes, with the sampling parameters of every sample in full.
    pub bytes: usize,
}

/// A record to append.
#[derive(Debug, Clone, PartialEq)]
pub struct NewRecord {
    pub kind: RecordKind,
    pub principal: Principal,
    pub consent: Consent,
    pub idempotency_key: Option<IdempotencyKey>,
    pub prompt: Prompt,
    /// The tokens that the model read. Dropped if redaction changes the prompt, because the tokens would reveal the redacted text.
    pub prompt_token_ids: Vec<u32>,
    /// The name of the weights that answered.
    pub version: String,
    pub samples: Vec<Sample>,
    pub verdicts: Vec<LoggedVerdict>,
    pub pairs: Vec<LoggedPair>,
}

impl NewRecord {
    /// Returns the record's size in the database in bytes: its texts, tokens and numbers, and a fixed cost per row.
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

    /// Checks the conditions that the types do not express.
    pub(super) fn check(&self) -> Result<()> {
        if !self.consent.retain {
            return Err(LogError::Invalid(
                "a record may not be kept without consent".to_owned(),
            ));
        }
        check(&self.samples, &self.verdicts, &self.pairs)
    }
}

/// The trainer's addition to a record. Indices count the addition's own samples from 0.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Addition {
    pub samples: Vec<Sample>,
    pub verdicts: Vec<LoggedVerdict>,
    pub pairs: Vec<LoggedPair>,
    /// Verdicts on samples that the record already has, by their indices in the record: the judge's corroboration of feedback. The pairs
    /// from feedback are then derived again.
    pub corroborating: Vec<LoggedVerdict>,
}

impl Addition {
    /// Checks the conditions that the types do not express.
    pub(super) fn check(&self) -> Result<()> {
        self.corroborating.iter().try_for_each(check_numbers)?;
        check(&self.samples, &self.verdicts, &self.pairs)
    }
}

/// Returns the approximate length of a value as JSON.
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
            return invalid("the numbers of a sample's tokens and log-probabilities differ");
        }
    }
    let known = |a: usize, b: usize| a < samples.len() && b < samples.len() && a != b;
    for verdict in verdicts {
        if !known(verdict.a, verdict.b) {
            return invalid("a verdict refers to samples that do not exist");
        }
        check_numbers(verdict)?;
    }
    for pair in pairs {
        if !known(pair.chosen, pair.rejected) {
            return invalid("a pair refers to samples that do not exist");
        }
        if !pair.margin.is_finite() {
            return invalid("a pair has a margin that is not finite");
        }
    }
    Ok(())
}

/// A record as it is read from the log.
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

/// A principal's feedback on the answers of a record.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Feedback {
    /// The answer is good or bad.
    Thumbs { sample: usize, up: bool },
    /// The answer is better than all others.
    Preferred { sample: usize },
    /// The text is how the answer should have read.
    Edited { sample: usize, text: String },
}

/// Feedback as it is stored. Of each kind and sample, only a principal's latest is kept.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LoggedFeedback {
    pub principal: Principal,
    pub created_at: UnixMillis,
    pub feedback: Feedback,
}

/// The result of adding feedback.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct FeedbackOutcome {
    /// The number of pairs that follow from all feedback on the record under the trust policy.
    pub pairs: usize,
}

/// The set of principals whose records an operation may access.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// The records of all principals, for operators.
    All,
    Only(Principal),
    /// The records of a principal under its current and its former digest.
    Either(Principal, Principal),
}

impl Scope {
    /// Returns the principals whose records are in scope; none stands for all principals.
    pub(super) fn principals(&self) -> Option<[&Principal; 2]> {
        match self {
            Self::All => None,
            Self::Only(principal) => Some([principal, principal]),
            Self::Either(principal, former) => Some([principal, former]),
        }
    }

    /// Returns whether a principal's records are in scope.
    pub(super) fn includes(&self, principal: &Principal) -> bool {
        self.principals().is_none_or(|own| own.contains(&principal))
    }
}

/// The idempotency key of a call. The same key of the same principal refers to the same record, so that a retry adds no second one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdempotencyKey {
    pub name: String,
    /// The digest of the request: another request with the same key is refused.
    pub request: [u8; 32],
}
