//! The policy of one call: whether it is recorded, for which principal, and how its records are committed.

use std::sync::Arc;
use std::time::Instant;

use futures::future::try_join_all;
use tokio::sync::OwnedSemaphorePermit;

use super::draft::{Given, RecordDraft};
use super::{CallName, CallOrigin, CallRecords, ConsentRequest, OnLogFailure, RecordedService};
use crate::call::RecordError;
use crate::call::Turn;
use crate::service::TextTask;
use model::PrincipalHash;
use telemetry::LogMetrics;
use text::Message;
use traffic_log::{
    Consent, LogError, NewRecord, Principal, Prompt, RecordId, RecordKind, Scope, TrafficLog,
};

/// Whether a call is recorded, for which principal, and in which log.
#[derive(Clone)]
pub(super) struct RecordPolicy {
    /// The log; none if the call is not recorded.
    log: Option<TrafficLog>,
    /// Whether the caller requested a record; the answer then reports whether there is one.
    requested: bool,
    consent: Consent,
    principal: Principal,
    origin: CallOrigin,
    on_failure: OnLogFailure,
    metrics: LogMetrics,
    /// Held by the one call that tests whether a failed log works again.
    _probe: Option<Arc<OwnedSemaphorePermit>>,
}

impl RecordedService {
    /// Determines whether and how a call is recorded.
    ///
    /// # Errors
    /// Errors if the call requests a record that is not possible, if its name is invalid or stands for another request, or if the log is
    /// known to be failing and the policy is to refuse.
    pub(super) async fn policy(
        &self,
        origin: CallOrigin,
        request: Option<ConsentRequest>,
    ) -> Result<RecordPolicy, RecordError> {
        let traffic = self.traffic();
        let request = request.unwrap_or_default();
        let consent = traffic.consent_of(&origin, request)?;
        let log = traffic.log.clone().filter(|_| consent.retain);
        let principal = traffic.principal(origin.caller.as_ref(), origin.user.as_deref())?;
        if let (Some(name), Some(all)) = (&origin.name, &traffic.log) {
            let refused = request.retain == Some(false);
            check_name(name, all, &principal, log.is_some(), refused).await?;
        }
        Ok(RecordPolicy {
            _probe: match traffic.on_failure {
                OnLogFailure::ServeUnlogged => None,
                OnLogFailure::Refuse => log.as_ref().map_or(Ok(None), |log| self.probe(log))?,
            },
            log,
            requested: request.wants_record(),
            consent,
            principal,
            origin,
            on_failure: traffic.on_failure,
            metrics: self.metrics().clone(),
        })
    }

    /// Lets one call at a time try a log whose last commit failed; the others are refused before any work.
    fn probe(&self, log: &TrafficLog) -> Result<Option<Arc<OwnedSemaphorePermit>>, RecordError> {
        if log.stats().healthy {
            return Ok(None);
        }
        match self.log_probe().try_acquire_owned() {
            Ok(permit) => Ok(Some(Arc::new(permit))),
            Err(_) => {
                let error = LogError::Unavailable("the last commit failed".to_owned());
                count_unlogged(self.metrics(), &error);
                Err(error.into())
            }
        }
    }
}

impl RecordPolicy {
    /// Returns whether the call is recorded.
    pub fn records(&self) -> bool {
        self.log.is_some()
    }

    /// Returns whether the caller requested a record.
    pub fn is_requested(&self) -> bool {
        self.requested
    }

    /// Returns whether a record of `bytes` bytes is too large for the log.
    pub fn exceeds(&self, bytes: usize) -> bool {
        let log = self.log.as_ref();
        log.is_some_and(|log| bytes > log.records.max_record())
    }

    /// Returns the policy of a call without an answer of its own, which is not recorded.
    pub fn without_record(self) -> Self {
        Self { log: None, ..self }
    }

    /// Sets the principal of a call's turn, because a principal always gets the same version. Anonymous callers share the version of the
    /// general public.
    pub fn turn(&self, turn: Turn) -> Turn {
        let known = self.principal != Principal::anonymous();
        let principal = known.then(|| PrincipalHash::of(self.principal.as_str()));
        Turn { principal, ..turn }
    }

    /// Prepares the task of the prompt with this index: a recorded call gets an explicit seed and raw log-probabilities.
    pub fn prepare(&self, task: &mut TextTask, index: usize) {
        if self.log.is_some() {
            let params = &mut task.params;
            params.logprobs = params.logprobs.or(Some(0));
            params.seed = params
                .seed
                .or_else(|| Some(self.origin.seed(&self.principal, index)));
        }
    }

    /// Creates the record of a comparison of given texts, if the call is recorded.
    pub fn draft_of_judging(&self, context: &[Message]) -> RecordDraft {
        self.draft(RecordKind::Judge, 0, || Given {
            prompt: Prompt::Messages(context.to_vec()),
            ..Given::default()
        })
    }

    /// Creates the record of the prompt with this index, if the call is recorded.
    pub fn draft(
        &self,
        kind: RecordKind,
        index: usize,
        given: impl FnOnce() -> Given,
    ) -> RecordDraft {
        if self.log.is_none() {
            return RecordDraft::none(self.clone());
        }
        let given = given();
        let record = NewRecord {
            kind,
            principal: self.principal.clone(),
            consent: self.consent,
            idempotency_key: self.origin.name.as_ref().map(|name| name.key(index)),
            prompt: given.prompt,
            prompt_token_ids: given.prompt_token_ids,
            version: given.version,
            samples: Vec::new(),
            verdicts: Vec::new(),
            pairs: Vec::new(),
        };
        RecordDraft::new(self.clone(), record, given.sample)
    }

    /// Commits the records of a call, one per prompt.
    ///
    /// # Errors
    /// The error of the log, if the policy is to refuse.
    pub async fn commit(&self, drafts: Vec<RecordDraft>) -> Result<CallRecords, RecordError> {
        let records = try_join_all(drafts.into_iter().map(RecordDraft::commit)).await?;
        let all: Option<Vec<RecordId>> = records.into_iter().collect();
        Ok(CallRecords {
            missing: all.is_none() && (self.requested || self.log.is_some()),
            ids: all.unwrap_or_default(),
        })
    }

    /// Appends a record, if the call is recorded. Returns its id, or none if it could not be committed and the call is answered anyway.
    pub async fn append(&self, record: NewRecord) -> Result<Option<RecordId>, RecordError> {
        let Some(log) = &self.log else {
            return Ok(None);
        };
        let begun = Instant::now();
        match log.records.append(record).await {
            Ok(id) => {
                self.metrics.commits.inc();
                self.metrics.lag.observe(begun.elapsed().as_secs_f64());
                Ok(Some(id))
            }
            // The name stands for another call, so this one is neither recorded nor answered.
            Err(error @ LogError::IdempotencyReused) => Err(error.into()),
            Err(error) => self.not_recorded(error),
        }
    }

    /// Applies the policy for a record of `bytes` bytes, which is too large.
    pub fn too_large(&self, bytes: usize) -> Result<Option<RecordId>, RecordError> {
        let most = self.log.as_ref().map_or(0, |log| log.records.max_record());
        self.not_recorded(LogError::TooLarge { bytes, most })
    }

    /// Applies the policy for a call whose record could not be committed.
    fn not_recorded(&self, error: LogError) -> Result<Option<RecordId>, RecordError> {
        let reason = count_unlogged(&self.metrics, &error);
        tracing::warn!(reason, %error, "a call could not be recorded in the traffic log");
        match self.on_failure {
            OnLogFailure::ServeUnlogged => Ok(None),
            OnLogFailure::Refuse => Err(error.into()),
        }
    }
}

/// Checks, before any computation, whether the name of a call stands for a record already. A repetition that must not be recorded
/// deletes that record.
///
/// # Errors
/// Errors for a name from a caller without a key if the call is recorded, and for a name of another request.
async fn check_name(
    name: &CallName,
    log: &TrafficLog,
    principal: &Principal,
    recorded: bool,
    refused: bool,
) -> Result<(), RecordError> {
    if *principal == Principal::anonymous() {
        return match recorded {
            true => Err(RecordError::NameNeedsKey),
            false => Ok(()),
        };
    }
    if !recorded && !refused {
        return Ok(());
    }
    for index in 0.. {
        match log.records.find_by_key(principal, &name.key(index)).await {
            Ok(Some(record)) if refused => {
                let scope = Scope::Only(principal.clone());
                log.deletions.delete(&record, &scope).await?;
            }
            Err(error @ LogError::IdempotencyReused) => return Err(error.into()),
            // A log that cannot be read cannot be written either; the policy applies when the record is committed.
            _ => break,
        }
    }
    Ok(())
}

/// Counts a record that was not committed. Returns the reason as a metric label.
fn count_unlogged(metrics: &LogMetrics, error: &LogError) -> &'static str {
    let reason = match error {
        LogError::Overloaded => "queue_full",
        LogError::Unavailable(_) => "unavailable",
        LogError::Redaction(_) => "redaction",
        LogError::TooLarge { .. } => "record_too_large",
        LogError::Invalid(_) => "invalid",
        LogError::PrincipalQuota { .. } | LogError::Full(_) => "quota",
        _ => "other",
    };
    metrics.unlogged.with_label_values(&[reason]).inc();
    reason
}
