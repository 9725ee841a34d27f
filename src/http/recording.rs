//! What is kept of a call: its samples as they are drawn, their verdicts, and the commit before the answer names its record.

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
use crate::model::{PrincipalHash, WeightsName};
use crate::preference::Message;
use crate::preference::log::{
    Consent, LogError, LoggedVerdict, NewRecord, PairSource, Principal, Prompt, RecordId,
    RecordKind, Sample, Scope, TrafficLog,
};
use crate::service::{
    Finish, JudgeTask, Orders, Output, PairVerdict, TextTask, TokenText, Tournament, Turn,
};
use crate::telemetry::LogMetrics;

/// How a sample ends whose reader left, or whose call failed, before it was complete.
const ABORTED: &str = "aborted";

/// Verdicts of one record: those of the first matches of a tournament. A call may make tens of thousands, and all writers would wait for
/// them.
const MAX_VERDICTS: usize = 4096;

/// Whether, for whom and where a call is kept.
#[derive(Clone)]
pub struct Keeping {
    /// None where the call is not kept.
    log: Option<TrafficLog>,
    /// Whether the caller asked for it, and so is told what became of it.
    asked: bool,
    consent: Consent,
    principal: Principal,
    identity: Identity,
    on_failure: OnLogFailure,
    metrics: LogMetrics,
    /// Held by the one call that finds out whether a log that failed works again.
    _probe: Option<Arc<OwnedSemaphorePermit>>,
}

impl AppState {
    /// A log whose last commit failed is tried by one call at a time; the others are turned away before any work.
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

/// What became of a call's records.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Kept {
    /// One a prompt, in their order.
    records: Vec<RecordId>,
    /// Whether one was to be kept and is not, or the caller asked for one that may not be.
    missing: bool,
}

/// What an answer says of its records; nothing, where none was to be kept.
#[derive(Debug, Default, Serialize, ToSchema)]
pub struct KeptBody {
    /// The record of this call, once it is committed; for `GET /records/{id}` and `POST /feedback`.
    #[serde(skip_serializing_if = "Option::is_none")]
    record_id: Option<String>,
    /// The records of a call with several prompts, in their order.
    #[serde(skip_serializing_if = "Option::is_none")]
    record_ids: Option<Vec<String>>,
    /// False where the call is in no record although it was to be.
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
    /// # Errors
    /// What the call asks of the log and cannot have; a name that it cannot have, or that stands for another request; a log that is known
    /// to take nothing, where the policy is to refuse.
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

    /// Whether the call is kept.
    pub fn keeps(&self) -> bool {
        self.log.is_some()
    }

    /// The same for a call that draws no answer of its own: there is nothing to keep.
    pub fn unkept(self) -> Self {
        Self { log: None, ..self }
    }

    /// Whether the end of a stream has to say what became of the record.
    pub fn is_reported(&self) -> bool {
        self.asked
    }

    /// The turn of a call on its principal's behalf: the same principal has the same version. Those who are nobody in
    /// particular have the one that everybody has.
    pub fn turn(&self, turn: Turn) -> Turn {
        let known = self.principal != Principal::anonymous();
        let principal = known.then(|| PrincipalHash::of(self.principal.as_str()));
        Turn { principal, ..turn }
    }

    /// What is drawn for prompt `at` of the call: where it is kept, its seed and raw log-probabilities are known.
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

    /// The record of prompt `at`, if the call is kept. `asked` is what was asked, as it was asked.
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

    /// The record of a comparison of texts that somebody gave, if the call is kept.
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

    /// Commits the records of a call, one a prompt.
    ///
    /// # Errors
    /// What went wrong, where the policy is to refuse.
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
            // The call is another one than its name says: nothing of it is kept or answered.
            Err(error @ LogError::IdempotencyReused) => Err(error.into()),
            Err(error) => self.not_kept(error),
        }
    }

    /// What becomes of a call whose record is not kept.
    fn not_kept(&self, error: LogError) -> Result<Option<RecordId>, ApiError> {
        let reason = reason(&error);
        self.metrics.unlogged.with_label_values(&[reason]).inc();
        tracing::warn!(reason, %error, "a call is not in the traffic log");
        match self.on_failure {
            OnLogFailure::ServeUnlogged => Ok(None),
            OnLogFailure::Refuse => Err(error.into()),
        }
    }
}

/// Looks whether the name of a call stands for a record already, before anything is computed. A repetition that is not to be kept takes
/// that record's retention back.
///
/// # Errors
/// A name of a caller without a key, where the call is `kept`; one that stands for another request.
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
            // A log that cannot be read cannot be written either: what follows is decided where the record is committed.
            _ => break,
        }
    }
    Ok(())
}

/// The label of a record that was not kept.
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

/// The record of one prompt in the making. Dropped before [`Self::commit`], it is committed as it is, with the samples that had
/// begun: what was sent is kept, even where its reader has gone.
pub struct Draft {
    keeping: Keeping,
    content: Option<Content>,
    /// The bytes of a record that became too large while it was made.
    too_large: Option<usize>,
}

struct Content {
    record: NewRecord,
    /// What is known of a sample before it is drawn.
    drawn: Sample,
}

impl Content {
    /// The next sample, before its first token. How it is sampled is kept with the first.
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
    /// Takes a token of sample `index`.
    pub fn token(&mut self, index: usize, text: &str, token: &TokenText, finish: Option<Finish>) {
        let Some(content) = &mut self.content else {
            return;
        };
        while content.record.samples.len() <= index {
            content.begin();
        }
        take(&mut content.record.samples[index], text, token, finish);
    }

    /// Takes whole samples.
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

    /// Takes texts that somebody gave.
    pub fn candidates(&mut self, candidates: &[String]) {
        if let Some(Content { record, .. }) = &mut self.content {
            record.samples.extend(candidates.iter().map(Sample::given));
        }
    }

    /// Takes what the judge says of pairs of samples: `a`, `b`, and the verdict on them. Each that names a winner is a
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
        // Copies of one answer were not judged.
        let judged: Vec<_> = judged
            .filter(|(_, _, verdict)| !verdict.orders.is_empty())
            .take(MAX_VERDICTS)
            .collect();
        // Before they are written with every verdict and every pair.
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
            // One order alone says as much about the position as about the answers, and an undecided verdict says nothing.
            if verdict.winner.is_some() && verdict.consistent.is_some() {
                record
                    .pairs
                    .extend(logged.default_pair(PairSource::Tournament));
            }
            record.verdicts.push(logged);
        }
    }

    /// [`Self::verdicts`] of all matches of a tournament.
    pub fn tournament(
        &mut self,
        judge: &JudgeTask,
        weights: Option<&WeightsName>,
        tournament: &Tournament,
    ) {
        let matches = tournament.rounds.iter().flatten();
        self.verdicts(judge, weights, matches.map(|m| (m.a, m.b, &m.verdict)));
    }

    /// Commits the record, if the call is kept: its id, or none where it could not be and the call is answered all the same.
    ///
    /// # Errors
    /// What went wrong, where the policy is to refuse.
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
        // Whoever waits for the answer may leave meanwhile; the record is written nevertheless.
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
        // Without a runtime the process is on its way out, and nobody was told that anything is kept.
        let runtime = tokio::runtime::Handle::try_current();
        if let (Ok(runtime), Some(log)) = (runtime, self.keeping.log.take()) {
            let keeping = self.keeping.clone();
            // Errors are counted where they happen; there is nobody left to tell.
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

/// The log's word for an end. An answer that the model did not end itself has no end token, and never gets one.
fn finish_reason(finish: Finish) -> &'static str {
    match finish {
        Finish::EndToken(_) => "stop",
        Finish::StopString(_) => "stop_string",
        Finish::Complete => "complete",
        Finish::Length => "length",
    }
}

/// Probability that candidate 0 is better, shown first and shown second.
fn orders(verdict: &PairVerdict, asked: Orders) -> [f32; 2] {
    match (asked, verdict.orders.as_slice()) {
        (Orders::Both, [first, second]) => [first.p_first, 1.0 - second.p_first],
        _ => [verdict.p; 2],
    }
}
