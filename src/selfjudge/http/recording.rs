//! The record of a call: its samples while they are generated, their verdicts, and the commit before the answer names the record.

use std::sync::Arc;
use std::time::Instant;

use futures::future::try_join_all;
use serde::Serialize;
use tokio::sync::OwnedSemaphorePermit;
use utoipa::ToSchema;

use super::AppState;
use super::error::ApiError;
use super::idempotency::{self, CallName};
use super::sampling::Sampling;
use super::traffic::{Identity, LogBody, OnLogFailure};
use crate::service::{
    Finish, JudgeTask, Orders, Output, PairVerdict, TextTask, TokenText, Tournament, Turn,
};
use model::{PrincipalHash, WeightsName};
use telemetry::LogMetrics;
use text::Message;
use traffic_log::{
    Consent, LogError, LoggedVerdict, NewRecord, PairSource, Principal, Prompt, RecordId,
    RecordKind, Sample, Scope, TrafficLog,
};

/// Finish reason of a sample that was incomplete when its reader disconnected or its call failed.
const ABORTED: &str = "aborted";

/// Maximum verdicts of one record: those of a tournament's first matches. A call may have tens of thousands, which would block all other
/// writers.
const MAX_VERDICTS: usize = 4096;

/// Whether a call is kept, for which principal, and in which log.
#[derive(Clone)]
pub struct Keeping {
    /// The log; none if the call is not kept.
    log: Option<TrafficLog>,
    /// Whether the caller requested it; the answer then reports whether the call was kept.
    asked: bool,
    consent: Consent,
    principal: Principal,
    identity: Identity,
    on_failure: OnLogFailure,
    metrics: LogMetrics,
    /// Held by the one call that tests whether a failed log works again.
    _probe: Option<Arc<OwnedSemaphorePermit>>,
}

impl AppState {
    /// Lets one call at a time try a log whose last commit failed; the others are refused before any work.
    fn probe(&self, log: &TrafficLog) -> Result<Option<Arc<OwnedSemaphorePermit>>, ApiError> {
        if log.stats().healthy {
            return Ok(None);
        }
        match Arc::clone(&self.log_probe).try_acquire_owned() {
            Ok(permit) => Ok(Some(Arc::new(permit))),
            Err(_) => {
                let error = LogError::Unavailable("the last commit failed".to_owned());
                let reason = [reason(&error)];
                self.metrics.log.unlogged.with_label_values(&reason).inc();
                Err(error.into())
            }
        }
    }
}

/// The records of a call after the commit.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Kept {
    /// One record per prompt, in order.
    records: Vec<RecordId>,
    /// Whether a record is missing that should have been kept, or that the caller requested without permission.
    missing: bool,
}

/// The part of an answer about its records; empty if none was to be kept.
#[derive(Debug, Default, Serialize, ToSchema)]
pub struct KeptBody {
    /// The record of this call, once it is committed; for `GET /records/{id}` and `POST /feedback`.
    #[serde(skip_serializing_if = "Option::is_none")]
    record_id: Option<String>,
    /// The records of a call with several prompts, in their order.
    #[serde(skip_serializing_if = "Option::is_none")]
    record_ids: Option<Vec<String>>,
    /// False if the call should have been recorded and was not.
    #[serde(skip_serializing_if = "Option::is_none")]
    logged: Option<bool>,
}

impl From<Kept> for KeptBody {
    fn from(kept: Kept) -> Self {
        let ids: Vec<String> = kept.records.iter().map(RecordId::to_string).collect();
        let (record_id, record_ids) = match ids.as_slice() {
            [] => (None, None),
            [only] => (Some(only.clone()), None),
            _ => (None, Some(ids)),
        };
        Self {
            record_id,
            record_ids,
            logged: kept.missing.then_some(false),
        }
    }
}

impl Keeping {
    /// Determines whether and how a call is kept.
    ///
    /// # Errors
    /// Fails if the call requests logging that is not possible, if its name is invalid or stands for another request, or if the log is
    /// known to be failing and the policy is to refuse.
    pub async fn of_call(
        state: &AppState,
        identity: &Identity,
        said: Option<LogBody>,
        user: Option<&str>,
    ) -> Result<Self, ApiError> {
        let traffic = &state.traffic;
        let caller = identity.caller.as_ref();
        let consent = traffic.consent_of(identity, said)?;
        let log = traffic.log.clone().filter(|_| consent.retain);
        let principal = traffic.principal(caller, user)?;
        if let (Some(name), Some(all)) = (&identity.name, &traffic.log) {
            let unkept = said.is_some_and(|said| said.retain == Some(false));
            known(name, all, &principal, log.is_some(), unkept).await?;
        }
        Ok(Self {
            _probe: match traffic.on_failure {
                OnLogFailure::ServeUnlogged => None,
                OnLogFailure::Refuse => log.as_ref().map_or(Ok(None), |log| state.probe(log))?,
            },
            log,
            asked: said.is_some_and(|said| said.retain == Some(true) || said.train == Some(true)),
            consent,
            principal,
            identity: identity.clone(),
            on_failure: traffic.on_failure,
            metrics: state.metrics.log.clone(),
        })
    }

    /// Returns whether the call is kept.
    pub fn keeps(&self) -> bool {
        self.log.is_some()
    }

    /// Returns the settings for a call without an answer of its own, which is not kept.
    pub fn unkept(self) -> Self {
        Self { log: None, ..self }
    }

    /// Returns whether the end of a stream must report the state of the record.
    pub fn is_reported(&self) -> bool {
        self.asked
    }

    /// Sets the principal of a call's turn, because a principal always gets the same version. Anonymous callers share the version of the
    /// general public.
    pub fn turn(&self, turn: Turn) -> Turn {
        let known = self.principal != Principal::anonymous();
        let principal = known.then(|| PrincipalHash::of(self.principal.as_str()));
        Turn { principal, ..turn }
    }

    /// Prepares the task of prompt `at`: a kept call gets an explicit seed and raw log-probabilities.
    pub fn prepared(&self, mut task: TextTask, at: usize) -> TextTask {
        if self.log.is_some() {
            let params = &mut task.params;
            params.logprobs = params.logprobs.or(Some(0));
            params.seed = params
                .seed
                .or_else(|| Some(self.identity.seed(&self.principal, at)));
        }
        task
    }

    /// Creates the record of prompt `at`, if the call is kept. `asked` is the prompt as the caller sent it.
    pub fn draft(
        &self,
        task: &TextTask,
        asked: Prompt,
        weights: &WeightsName,
        sampling: &Sampling,
        at: usize,
    ) -> Draft {
        let mut draft = self.draft_of(RecordKind::Generate, asked, at);
        if let Some(content) = &mut draft.content {
            content.record.prompt_token_ids.clone_from(&task.prompt);
            content.record.version = weights.to_string();
            content.drawn = Sample {
                seed: task.params.seed,
                sampling: sampling.to_json(&task.params),
                finish_reason: Some(ABORTED.to_owned()),
                version: Some(weights.to_string()),
                ..Sample::given("")
            };
        }
        draft
    }

    /// Creates the record of a comparison of given texts, if the call is kept.
    pub fn draft_of_judging(&self, context: Vec<Message>) -> Draft {
        self.draft_of(RecordKind::Judge, Prompt::Messages(context), 0)
    }

    fn draft_of(&self, kind: RecordKind, asked: Prompt, at: usize) -> Draft {
        let content = self.log.is_some().then(|| Content {
            record: NewRecord {
                kind,
                principal: self.principal.clone(),
                consent: self.consent,
                idempotency_key: self.identity.name.as_ref().map(|name| name.key(at)),
                prompt: asked,
                prompt_token_ids: Vec::new(),
                version: String::new(),
                samples: Vec::new(),
                verdicts: Vec::new(),
                pairs: Vec::new(),
            },
            drawn: Sample::given(""),
        });
        Draft {
            keeping: self.clone(),
            content,
            too_large: None,
        }
    }

    /// Commits the records of a call, one per prompt.
    ///
    /// # Errors
    /// The error of the log, if the policy is to refuse.
    pub async fn commit(&self, drafts: Vec<Draft>) -> Result<Kept, ApiError> {
        let records = try_join_all(drafts.into_iter().map(Draft::commit)).await?;
        let all: Option<Vec<RecordId>> = records.into_iter().collect();
        Ok(Kept {
            missing: all.is_none() && (self.asked || self.log.is_some()),
            records: all.unwrap_or_default(),
        })
    }

    async fn append(
        &self,
        log: &TrafficLog,
        record: NewRecord,
    ) -> Result<Option<RecordId>, ApiError> {
        let begun = Instant::now();
        match log.append(record).await {
            Ok(id) => {
                self.metrics.commits.inc();
                self.metrics.lag.observe(begun.elapsed().as_secs_f64());
                Ok(Some(id))
            }
            // The name stands for another call, so this one is neither kept nor answered.
            Err(error @ LogError::IdempotencyReused) => Err(error.into()),
            Err(error) => self.not_kept(error),
        }
    }

    /// Applies the policy for a call whose record could not be kept.
    fn not_kept(&self, error: LogError) -> Result<Option<RecordId>, ApiError> {
        let reason = reason(&error);
        self.metrics.unlogged.with_label_values(&[reason]).inc();
        tracing::warn!(reason, %error, "a call could not be recorded in the traffic log");
        match self.on_failure {
            OnLogFailure::ServeUnlogged => Ok(None),
            OnLogFailure::Refuse => Err(error.into()),
        }
    }
}

/// Checks, before any computation, whether the name of a call stands for a record already. A repetition that must not be kept deletes
/// that record.
///
/// # Errors
/// Fails for a name from a caller without a key if the call is `kept`, and for a name of another request.
async fn known(
    name: &CallName,
    log: &TrafficLog,
    principal: &Principal,
    kept: bool,
    unkept: bool,
) -> Result<(), ApiError> {
    if *principal == Principal::anonymous() {
        return match kept {
            true => Err(idempotency::needs_key()),
            false => Ok(()),
        };
    }
    if !kept && !unkept {
        return Ok(());
    }
    for at in 0.. {
        match log.named(principal, &name.key(at)).await {
            Ok(Some(record)) if unkept => {
                let scope = Scope::Only(principal.clone());
                log.delete(&record, &scope).await?;
            }
            Err(error @ LogError::IdempotencyReused) => return Err(error.into()),
            // A log that cannot be read cannot be written either; the policy applies when the record is committed.
            _ => break,
        }
    }
    Ok(())
}

/// Returns the metric label for a record that was not kept.
fn reason(error: &LogError) -> &'static str {
    match error {
        LogError::Overloaded => "queue_full",
        LogError::Unavailable(_) => "unavailable",
        LogError::Redaction(_) => "redaction",
        LogError::TooLarge { .. } => "record_too_large",
        LogError::Invalid(_) => "invalid",
        LogError::PrincipalQuota { .. } | LogError::Full(_) => "quota",
        _ => "other",
    }
}

/// The unfinished record of one prompt. If it is dropped before [`Self::commit`], it is committed with the samples so far, because
/// tokens that were sent must be kept even if the reader has disconnected.
pub struct Draft {
    keeping: Keeping,
    content: Option<Content>,
    /// The size of a record that became too large before it was complete.
    too_large: Option<usize>,
}

struct Content {
    record: NewRecord,
    /// The fields of a sample that are fixed before sampling.
    drawn: Sample,
}

impl Content {
    /// Starts the next sample. The sampling settings are stored with the first one.
    fn begin(&mut self) -> &mut Sample {
        let sample = Sample {
            sampling: match self.record.samples.is_empty() {
                true => std::mem::replace(&mut self.drawn.sampling, Sample::sampled_as(0)),
                false => self.drawn.sampling.clone(),
            },
            ..self.drawn.clone()
        };
        self.record.samples.push(sample);
        let samples = &mut self.record.samples;
        samples
            .last_mut()
            .expect("one was just added; this is a bug")
    }
}

impl Draft {
    /// Adds a token to sample `index`.
    pub fn token(&mut self, index: usize, text: &str, token: &TokenText, finish: Option<Finish>) {
        let Some(content) = &mut self.content else {
            return;
        };
        while content.record.samples.len() <= index {
            content.begin();
        }
        take(&mut content.record.samples[index], text, token, finish);
    }

    /// Adds whole samples.
    pub fn outputs(&mut self, outputs: &[Output]) {
        let Some(content) = &mut self.content else {
            return;
        };
        for output in outputs {
            let sample = content.begin();
            for token in &output.tokens {
                take(sample, "", token, None);
            }
            sample.text.clone_from(&output.text);
            sample.finish_reason = Some(finish_reason(output.finish).to_owned());
        }
    }

    /// Adds texts given by the caller.
    pub fn candidates(&mut self, candidates: &[String]) {
        if let Some(Content { record, .. }) = &mut self.content {
            record.samples.extend(candidates.iter().map(Sample::given));
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
        if self
            .keeping
            .log
            .as_ref()
            .is_some_and(|log| bytes > log.max_record())
        {
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
        self.verdicts(judge, weights, matches.map(|m| (m.a, m.b, &m.verdict)));
    }

    /// Commits the record, if the call is kept. Returns its id, or none if it could not be committed and the call is answered anyway.
    ///
    /// # Errors
    /// The error of the log, if the policy is to refuse.
    async fn commit(mut self) -> Result<Option<RecordId>, ApiError> {
        if let (Some(bytes), Some(log)) = (self.too_large, &self.keeping.log) {
            let most = log.max_record();
            return self.keeping.not_kept(LogError::TooLarge { bytes, most });
        }
        let content = self.content.take();
        let (Some(content), Some(log)) = (content, self.keeping.log.clone()) else {
            return Ok(None);
        };
        let record = content.record;
        // The client may disconnect meanwhile; the record is written nevertheless.
        let keeping = self.keeping.clone();
        let committed = tokio::spawn(async move { keeping.append(&log, record).await });
        committed.await.unwrap_or_else(|_| {
            Err(ApiError::from(LogError::Unavailable(
                "the server is being stopped".to_owned(),
            )))
        })
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        let begun = |content: &Content| !content.record.samples.is_empty();
        let Some(content) = self.content.take().filter(begun) else {
            return;
        };
        // Without a runtime the process is ending, and no answer has reported the record as kept.
        let runtime = tokio::runtime::Handle::try_current();
        if let (Ok(runtime), Some(log)) = (runtime, self.keeping.log.take()) {
            let keeping = self.keeping.clone();
            // Errors are counted where they happen, and there is no client to report them to.
            runtime.spawn(async move { keeping.append(&log, content.record).await.ok() });
        }
    }
}

/// Adds a token to a sample.
fn take(sample: &mut Sample, text: &str, token: &TokenText, finish: Option<Finish>) {
    sample.token_ids.push(token.id);
    let logprob = token.logprobs.as_ref().map(|logprobs| logprobs.token);
    sample.logprobs.extend(logprob);
    sample.text.push_str(text);
    if let Some(finish) = finish {
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
