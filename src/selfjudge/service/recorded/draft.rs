//! The unfinished record of one prompt: its samples while they are generated, and their verdicts.

use super::policy::RecordPolicy;
use crate::call::RecordError;
use crate::judging::{JudgeTask, PlayedMatch, Tournament};
use crate::service::{Finish, Output};
use judge::{Orders, PairVerdict};
use model::WeightsName;
use traffic_log::{LogError, LoggedVerdict, NewRecord, PairSource, Prompt, RecordId, Sample};

/// Finish reason of a sample that was incomplete when its reader disconnected or its call failed.
pub(super) const ABORTED: &str = "aborted";

/// Maximum verdicts of one record: those of a tournament's first matches. A call may have tens of thousands, which would block all other
/// writers.
const MAX_VERDICTS: usize = 4096;

/// The unfinished record of one prompt; without effect if the call is not recorded. If it is dropped before [`Self::commit`], it is
/// committed with the samples so far, because tokens that were sent must be recorded even if the reader has disconnected.
pub(super) struct RecordDraft {
    policy: RecordPolicy,
    content: Option<Content>,
    /// The size of a record that became too large before it was complete.
    too_large: Option<usize>,
}

struct Content {
    record: NewRecord,
    /// The fields of a sample that are fixed before sampling.
    sample: Sample,
}

/// The content of a record that is known before the call is answered.
pub(super) struct Given {
    /// The prompt as the caller sent it.
    pub prompt: Prompt,
    pub prompt_token_ids: Vec<u32>,
    /// The name of the weights that answer.
    pub version: String,
    /// The fields of a sample that are fixed before sampling.
    pub sample: Sample,
}

impl Default for Given {
    fn default() -> Self {
        Self {
            prompt: Prompt::Text(String::new()),
            prompt_token_ids: Vec::new(),
            version: String::new(),
            sample: Sample::given(""),
        }
    }
}

impl Content {
    /// Starts the next sample. The sampling settings are stored with the first one.
    fn begin(&mut self) -> &mut Sample {
        let sample = Sample {
            sampling: match self.record.samples.is_empty() {
                true => std::mem::replace(&mut self.sample.sampling, Sample::sampled_as(0)),
                false => self.sample.sampling.clone(),
            },
            ..self.sample.clone()
        };
        self.record.samples.push(sample);
        let samples = &mut self.record.samples;
        samples
            .last_mut()
            .expect("one was just added; this is a bug")
    }
}

impl RecordDraft {
    /// Creates the draft of a call that is not recorded.
    pub fn none(policy: RecordPolicy) -> Self {
        Self {
            policy,
            content: None,
            too_large: None,
        }
    }

    pub fn new(policy: RecordPolicy, record: NewRecord, sample: Sample) -> Self {
        Self {
            policy,
            content: Some(Content { record, sample }),
            too_large: None,
        }
    }

    /// Adds an increment to its sample.
    pub fn increment(&mut self, output: &Output) {
        let Some(content) = &mut self.content else {
            return;
        };
        while content.record.samples.len() <= output.index {
            content.begin();
        }
        let sample = &mut content.record.samples[output.index];
        add_tokens(sample, output);
        sample.text.push_str(&output.text);
    }

    /// Adds whole samples.
    pub fn outputs(&mut self, outputs: &[Output]) {
        let Some(content) = &mut self.content else {
            return;
        };
        for output in outputs {
            let sample = content.begin();
            add_tokens(sample, output);
            sample.text.clone_from(&output.text);
        }
    }

    /// Adds texts given by the caller.
    pub fn candidates<'a>(&mut self, candidates: impl IntoIterator<Item = &'a String>) {
        if let Some(Content { record, .. }) = &mut self.content {
            let candidates = candidates.into_iter();
            record.samples.extend(candidates.map(Sample::given));
        }
    }

    /// Adds the judge's verdicts on pairs of samples, `a` and `b` with their verdict. Each verdict with a winner makes a
    /// preference pair.
    pub fn verdicts<'a>(
        &mut self,
        judge: &JudgeTask,
        weights: Option<&WeightsName>,
        judged: impl Iterator<Item = (usize, usize, &'a PairVerdict)>,
    ) {
        let Some(Content { record, .. }) = &mut self.content else {
            return;
        };
        let principles: Vec<String> = judge.principles.iter().map(|p| p.name.clone()).collect();
        // Identical answers were not judged.
        let judged: Vec<_> = judged
            .filter(|(_, _, verdict)| !verdict.orders.is_empty())
            .take(MAX_VERDICTS)
            .collect();
        // Checked before the names are copied to every verdict and every pair.
        let names: usize = principles.iter().map(String::len).sum();
        let bytes = 2 * names * judged.len();
        if self.policy.exceeds(bytes) {
            self.too_large = Some(bytes);
            self.content = None;
            return;
        }
        let version = weights.map_or_else(String::new, WeightsName::to_string);
        if record.version.is_empty() {
            record.version.clone_from(&version);
        }
        for (a, b, verdict) in judged {
            let logged = LoggedVerdict {
                a,
                b,
                orders: orders(verdict, judge.orders),
                p: verdict.p,
                consistent: verdict.consistent == Some(true),
                label_mass: verdict.label_mass,
                principles: principles.clone(),
                version: version.clone(),
            };
            // A single order reflects position bias as much as quality, and an undecided verdict expresses no preference.
            if verdict.winner.is_some() && verdict.consistent.is_some() {
                record
                    .pairs
                    .extend(logged.default_pair(PairSource::Tournament));
            }
            record.verdicts.push(logged);
        }
    }

    /// Applies [`Self::verdicts`] to all matches of a tournament.
    pub fn tournament(
        &mut self,
        judge: &JudgeTask,
        weights: Option<&WeightsName>,
        tournament: &Tournament,
    ) {
        let matches = tournament.rounds.iter().flatten();
        let judged = matches.map(|PlayedMatch { a, b, verdict }| (*a, *b, verdict));
        self.verdicts(judge, weights, judged);
    }

    /// Commits the record, if the call is recorded. Returns its id, or none if it could not be committed and the call is answered anyway.
    ///
    /// # Errors
    /// The error of the log, if the policy is to refuse.
    pub async fn commit(mut self) -> Result<Option<RecordId>, RecordError> {
        if let Some(bytes) = self.too_large {
            return self.policy.too_large(bytes);
        }
        let Some(Content { record, .. }) = self.content.take() else {
            return Ok(None);
        };
        // The client may disconnect meanwhile; the record is written nevertheless.
        let policy = self.policy.clone();
        let committed = tokio::spawn(async move { policy.append(record).await });
        committed.await.unwrap_or_else(|_| {
            let stopped = "the server is being stopped".to_owned();
            Err(LogError::Unavailable(stopped).into())
        })
    }
}

impl Drop for RecordDraft {
    fn drop(&mut self) {
        let begun = |content: &Content| !content.record.samples.is_empty();
        let Some(content) = self.content.take().filter(begun) else {
            return;
        };
        // Without a runtime the process is ending, and no answer has reported the record as kept.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let policy = self.policy.clone();
            // Errors are counted where they happen, and there is no client to report them to.
            runtime.spawn(async move { policy.append(content.record).await.ok() });
        }
    }
}

/// Adds the tokens of an output to its sample, and the finish reason if the output has ended.
fn add_tokens(sample: &mut Sample, output: &Output) {
    for token in &output.tokens {
        sample.token_ids.push(token.id);
        let logprob = token.logprobs.as_ref().map(|logprobs| logprobs.token);
        sample.logprobs.extend(logprob);
    }
    if let Some(finish) = output.finish {
        sample.finish_reason = Some(finish_reason(finish).to_owned());
    }
}

/// Returns the log's finish reason. An answer that the model did not end itself never gets an end token.
fn finish_reason(finish: Finish) -> &'static str {
    match finish {
        Finish::EndToken(_) => "stop",
        Finish::StopString(_) => "stop_string",
        Finish::Complete => "complete",
        Finish::Length => "length",
    }
}

/// Returns the probability that candidate 0 is better, read first and read second.
fn orders(verdict: &PairVerdict, asked: Orders) -> [f32; 2] {
    match (asked, verdict.orders.as_slice()) {
        (Orders::Both, [first, second]) => [first.p_first, 1.0 - second.p_first],
        _ => [verdict.p; 2],
    }
}
