//! `/records`: reading and deleting a caller's own records.

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::AppState;
use super::answering;
use super::error::{ApiError, ErrorBody};
use super::extract::{Named, Query};
use super::identity::{Identity, check_name};
use super::keys;
use crate::call::offload;
use traffic_log::{
    Consent, Feedback, LoggedFeedback, LoggedPair, LoggedRecord, LoggedVerdict, Principal, Prompt,
    RecordId, Sample, Scope,
};

/// A record.
// A type of its own: the log's record names its principal, which is not for callers, and has feedback in another form.
#[derive(Debug, Serialize, ToSchema)]
pub struct RecordBody {
    /// The id of the record.
    id: String,
    /// `generate`, `judge` or `imported`.
    kind: &'static str,
    /// Time in milliseconds since 1970.
    created_at: i64,
    /// The permitted use of the record.
    log: Consent,
    /// The prompt.
    prompt: Prompt,
    /// The ids of the prompt's tokens; empty if personal data was removed from the prompt.
    prompt_token_ids: Vec<u32>,
    /// Whether personal data was removed.
    redacted: bool,
    /// The weights that answered.
    version: String,
    /// The answers, or the given texts.
    samples: Vec<Sample>,
    /// The judge's verdicts on pairs of samples.
    verdicts: Vec<LoggedVerdict>,
    /// The preference pairs from verdicts and feedback.
    pairs: Vec<LoggedPair>,
    /// The feedback on the samples.
    feedback: Vec<FeedbackGiven>,
}

/// Feedback on a sample.
#[derive(Debug, Serialize, ToSchema)]
pub struct FeedbackGiven {
    /// Time of the feedback in milliseconds since 1970.
    created_at: i64,
    /// The number of the sample, from 0.
    sample: usize,
    #[serde(flatten)]
    opinion: Opinion,
}

/// An opinion about a sample.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Opinion {
    /// `up` or `down`.
    Thumbs(&'static str),
    /// Always true: the sample is better than all others of the record.
    Preferred(bool),
    /// The corrected text of the sample.
    Edited(String),
}

impl From<LoggedRecord> for RecordBody {
    fn from(record: LoggedRecord) -> Self {
        Self {
            id: record.id.to_string(),
            kind: record.kind.as_str(),
            created_at: record.created_at,
            log: record.consent,
            prompt: record.prompt,
            prompt_token_ids: record.prompt_token_ids,
            redacted: record.redacted,
            version: record.version,
            samples: record.samples,
            verdicts: record.verdicts,
            pairs: record.pairs,
            feedback: record
                .feedback
                .into_iter()
                .map(FeedbackGiven::from)
                .collect(),
        }
    }
}

impl From<LoggedFeedback> for FeedbackGiven {
    fn from(given: LoggedFeedback) -> Self {
        let (sample, opinion) = match given.feedback {
            Feedback::Thumbs { sample, up } => {
                (sample, Opinion::Thumbs(if up { "up" } else { "down" }))
            }
            Feedback::Preferred { sample } => (sample, Opinion::Preferred(true)),
            Feedback::Edited { sample, text } => (sample, Opinion::Edited(text)),
        };
        Self {
            created_at: given.created_at,
            sample,
            opinion,
        }
    }
}

/// The owner of a record.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct OwnerQuery {
    /// The `user` that the call named, if the server trusts it.
    user: Option<String>,
}

/// Parses a record's id from a path.
pub fn record_id(text: &str) -> Result<RecordId, ApiError> {
    // A malformed id belongs to no record.
    RecordId::parse(text).ok_or_else(no_record)
}

/// Returns the error for a record that does not exist or does not belong to the caller.
pub fn no_record() -> ApiError {
    ApiError::new(
        StatusCode::NOT_FOUND,
        "not_found",
        "there is no such record",
    )
    .about("id")
}

impl AppState {
    /// Returns the principal whose records a caller may read: its own.
    pub fn own(&self, identity: &Identity, user: Option<&str>) -> Result<Principal, ApiError> {
        if user.is_some() && !self.traffic().trust_user {
            return Err(ApiError::invalid(
                "user",
                "is not trusted by this server: records belong to the key",
            ));
        }
        Ok(self.traffic().principal(identity.caller.as_ref(), user)?)
    }

    /// Returns the scope of a caller's own records.
    pub fn scope(&self, identity: &Identity, user: Option<&str>) -> Result<Scope, ApiError> {
        let own = self.own(identity, user)?;
        let traffic = self.traffic();
        let former = traffic.former_principal(identity.caller.as_ref(), user);
        Ok(match former {
            Some(former) => Scope::Either(own, former),
            None => Scope::Only(own),
        })
    }
}

/// Returns a record of the caller's own.
///
/// It has the prompt, the answers, the verdicts on them, the preference pairs and the feedback.
#[utoipa::path(
    get,
    path = "/records/{id}",
    tag = "records",
    params(("id" = String, Path, description = "The `record_id` of an answer"), OwnerQuery),
    responses(
        (status = 200, body = RecordBody),
        (status = "4XX", description = "404 also for another caller's record", body = ErrorBody),
        (status = "5XX", body = ErrorBody)
    )
)]
pub async fn get(
    State(state): State<AppState>,
    identity: Identity,
    Named(id): Named,
    Query(owner): Query<OwnerQuery>,
) -> Result<Response, ApiError> {
    /// Memory of a record while it is read and written, as a multiple of its size in the log: its rows, and its numbers as text.
    const FACTOR: usize = 4;
    let log = state.traffic().log()?;
    let scope = state.scope(&identity, owner.user.as_deref())?;
    let id = record_id(&id)?;
    let size = log
        .records
        .size_of(&id, &scope)
        .await?
        .ok_or_else(no_record)?;
    let read = size.bytes.saturating_mul(FACTOR);
    identity.memory.grow(read)?;
    let record = log.records.get(&id, &scope).await?.ok_or_else(no_record)?;
    let memory = identity.memory.clone();
    let body = offload(move || {
        let body = answering::written(&RecordBody::from(record), memory.clone());
        memory.shrink(read);
        body
    });
    Ok(([(header::CONTENT_TYPE, "application/json")], body.await??).into_response())
}

/// The number of records that were deleted, or whose consent to training was withdrawn.
#[derive(Debug, Serialize, ToSchema)]
pub struct DeletedBody {
    /// The number of records.
    records: u64,
}

/// Deletes a record of the caller's own, or for operators anyone's.
///
/// Its samples, verdicts, pairs and feedback are deleted too, and later training does not read it.
#[utoipa::path(
    delete,
    path = "/records/{id}",
    tag = "records",
    params(("id" = String, Path, description = "The `record_id` of an answer"), OwnerQuery),
    responses(
        (status = 200, body = DeletedBody),
        (status = "4XX", body = ErrorBody),
        (status = "5XX", body = ErrorBody)
    )
)]
pub async fn delete(
    State(state): State<AppState>,
    identity: Identity,
    Named(id): Named,
    Query(owner): Query<OwnerQuery>,
) -> Result<Json<DeletedBody>, ApiError> {
    let log = state.traffic().log()?;
    let scope = match identity.is_admin() {
        true => Scope::All,
        false => state.scope(&identity, owner.user.as_deref())?,
    };
    match log.deletions.delete(&record_id(&id)?, &scope).await? {
        true => Ok(Json(DeletedBody { records: 1 })),
        false => Err(no_record()),
    }
}

/// The owner of the records to delete or to exclude from training.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct PrincipalQuery {
    /// For operators: `NAME` or `key:NAME` is a caller's key, `operator:NAME` an operator's, `anonymous` all callers without a key (the
    /// key of that name is `key:anonymous`). By default the caller's own records are deleted.
    principal: Option<String>,
    /// Only the records of this `user` of the key.
    user: Option<String>,
    /// Delete nothing, but withdraw the consent to training.
    #[serde(default)]
    keep: bool,
}

/// Deletes all records of a principal, and its feedback: the caller's own, or for operators anyone's.
///
/// With `keep` they stay, but no later stage of learning reads them. Weights trained on them do not change;
/// `GET /generations?record=` lists the generations concerned.
#[utoipa::path(
    delete,
    path = "/records",
    tag = "records",
    params(PrincipalQuery),
    responses(
        (status = 200, body = DeletedBody),
        (status = "4XX", body = ErrorBody),
        (status = "5XX", body = ErrorBody)
    )
)]
pub async fn delete_all(
    State(state): State<AppState>,
    identity: Identity,
    Query(whose): Query<PrincipalQuery>,
) -> Result<Json<DeletedBody>, ApiError> {
    if whose.principal.is_some() && !identity.is_admin() {
        return Err(keys::not_an_admin());
    }
    let log = state.traffic().log()?;
    let user = whose.user.as_deref();
    user.map_or(Ok(()), |user| check_name("user", user))?;
    let principal = match &whose.principal {
        Some(name) => {
            check_name("principal", name)?;
            Principal::spelled(name, user)
                .map_err(|problem| ApiError::invalid("principal", problem))?
        }
        None => state.own(&identity, user)?,
    };
    // All callers without a key are one principal, so none of them may delete the records of the others.
    if principal == Principal::anonymous() && !identity.is_admin() {
        return Err(ApiError::new(
            StatusCode::FORBIDDEN,
            "no_principal",
            "calls without a key share one principal: delete records by their ids",
        ));
    }
    let records = match whose.keep {
        true => log.deletions.withdraw_training(&principal).await?,
        false => log.deletions.delete_principal(&principal).await?,
    };
    Ok(Json(DeletedBody { records }))
}
