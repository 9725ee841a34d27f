//! `/records`: what is kept of a caller's traffic, to be read and to be deleted.

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::{IntoParams, ToSchema};

use super::AppState;
use super::answering;
use super::error::{ApiError, ErrorBody};
use super::extract::{Named, Query};
use super::keys;
use super::traffic::{Identity, check_name};
use crate::preference::Message;
use crate::preference::log::{
    Feedback, LoggedFeedback, LoggedPair, LoggedRecord, LoggedVerdict, Principal, Prompt, RecordId,
    Sample, Scope,
};
use crate::service::offload;

/// A record.
#[derive(Debug, Serialize, ToSchema)]
pub struct RecordBody {
    /// The name of the record.
    id: String,
    /// `generate`, `judge` or `imported`.
    kind: &'static str,
    /// Milliseconds since 1970.
    created_at: i64,
    /// What the record may be used for.
    log: ConsentBody,
    /// What was asked.
    prompt: PromptBody,
    /// Empty where personal data was taken out of the prompt.
    prompt_token_ids: Vec<u32>,
    /// Whether personal data was taken out.
    redacted: bool,
    /// Which weights answered.
    version: String,
    /// The answers, or the texts that were given.
    samples: Vec<SampleBody>,
    /// What the judge said of pairs of samples.
    verdicts: Vec<LoggedVerdictBody>,
    /// The preference pairs that follow from verdicts and feedback.
    pairs: Vec<PairBody>,
    /// What was said about the samples.
    feedback: Vec<FeedbackGiven>,
}

/// What the record may be used for.
#[derive(Debug, Serialize, ToSchema)]
pub struct ConsentBody {
    /// Whether the record is kept.
    retain: bool,
    /// Whether the model may be trained on it.
    train: bool,
}

/// What was asked.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
pub enum PromptBody {
    Text(String),
    Messages(Vec<SaidMessage>),
}

/// A message of a conversation.
#[derive(Debug, Serialize, ToSchema)]
pub struct SaidMessage {
    /// `system`, `user` or `assistant`.
    role: &'static str,
    /// The text of the message.
    content: String,
}

/// An answer, or a text that somebody gave.
#[derive(Debug, Serialize, ToSchema)]
pub struct SampleBody {
    /// The ids of the sample's tokens; none of a text that was given.
    token_ids: Vec<u32>,
    /// The text of the sample.
    text: String,
    /// One a token: over the full vocabulary, at temperature 1, before penalties and truncation.
    logprobs: Vec<f32>,
    /// The seed by which the sample was drawn; null for a text that was given.
    seed: Option<u64>,
    /// How it was drawn.
    sampling: Value,
    /// `stop`, `stop_string`, `complete`, `length`, or `aborted`.
    finish_reason: Option<String>,
    /// Which weights drew the sample; null for a text that was given.
    version: Option<String>,
}

/// A comparison of two of the samples.
#[derive(Debug, Serialize, ToSchema)]
pub struct LoggedVerdictBody {
    /// The number of the first sample, from 0.
    a: usize,
    /// The number of the second sample.
    b: usize,
    /// Probability that `a` is better, shown first and shown second.
    orders: [f32; 2],
    /// The probability that `a` is better, over both orders.
    p: f32,
    /// Whether both orders name the same winner.
    consistent: bool,
    /// The probability that the judge gave to its labels, of all tokens.
    label_mass: f32,
    /// The principles of the verdict; none are the judge's own question.
    principles: Vec<String>,
    /// Which weights judged.
    version: String,
}

/// Two of the samples, one preferred.
#[derive(Debug, Serialize, ToSchema)]
pub struct PairBody {
    /// The number of the better sample, from 0.
    chosen: usize,
    /// The number of the worse sample.
    rejected: usize,
    /// Probability that `chosen` is better.
    margin: f32,
    /// `tournament`, `on_policy`, `feedback`, `contrast` or `imported`.
    source: &'static str,
    /// The principles of the verdict; none are the judge's own question.
    principles: Vec<String>,
}

/// What was said about the answers.
#[derive(Debug, Serialize, ToSchema)]
pub struct FeedbackGiven {
    /// When it was said, in milliseconds since 1970.
    created_at: i64,
    /// The number of the sample, from 0.
    sample: usize,
    #[serde(flatten)]
    said: Opinion,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Opinion {
    /// `up` or `down`.
    Thumbs(&'static str),
    /// Always true: the sample is better than all others of the record.
    Preferred(bool),
    /// How the sample should have read.
    Edited(String),
}

impl From<LoggedRecord> for RecordBody {
    fn from(record: LoggedRecord) -> Self {
        Self {
            id: record.id.to_string(),
            kind: record.kind.as_str(),
            created_at: record.created_at,
            log: ConsentBody {
                retain: record.consent.retain,
                train: record.consent.train,
            },
            prompt: match record.prompt {
                Prompt::Text(text) => PromptBody::Text(text),
                Prompt::Messages(messages) => {
                    PromptBody::Messages(messages.into_iter().map(SaidMessage::from).collect())
                }
            },
            prompt_token_ids: record.prompt_token_ids,
            redacted: record.redacted,
            version: record.version,
            samples: record.samples.into_iter().map(SampleBody::from).collect(),
            verdicts: record
                .verdicts
                .into_iter()
                .map(LoggedVerdictBody::from)
                .collect(),
            pairs: record.pairs.into_iter().map(PairBody::from).collect(),
            feedback: record
                .feedback
                .into_iter()
                .map(FeedbackGiven::from)
                .collect(),
        }
    }
}

impl From<Message> for SaidMessage {
    fn from(message: Message) -> Self {
        Self {
            role: message.role.as_str(),
            content: message.content,
        }
    }
}

impl From<Sample> for SampleBody {
    fn from(sample: Sample) -> Self {
        Self {
            token_ids: sample.token_ids,
            text: sample.text,
            logprobs: sample.logprobs,
            seed: sample.seed,
            sampling: sample.sampling,
            finish_reason: sample.finish_reason,
            version: sample.version,
        }
    }
}

impl From<LoggedVerdict> for LoggedVerdictBody {
    fn from(verdict: LoggedVerdict) -> Self {
        Self {
            a: verdict.a,
            b: verdict.b,
            orders: verdict.orders,
            p: verdict.p,
            consistent: verdict.consistent,
            label_mass: verdict.label_mass,
            principles: verdict.principles,
            version: verdict.version,
        }
    }
}

impl From<LoggedPair> for PairBody {
    fn from(pair: LoggedPair) -> Self {
        Self {
            chosen: pair.chosen,
            rejected: pair.rejected,
            margin: pair.margin,
            source: pair.source.as_str(),
            principles: pair.principles,
        }
    }
}

impl From<LoggedFeedback> for FeedbackGiven {
    fn from(given: LoggedFeedback) -> Self {
        let (sample, said) = match given.feedback {
            Feedback::Thumbs { sample, up } => {
                (sample, Opinion::Thumbs(if up { "up" } else { "down" }))
            }
            Feedback::Preferred { sample } => (sample, Opinion::Preferred(true)),
            Feedback::Edited { sample, text } => (sample, Opinion::Edited(text)),
        };
        Self {
            created_at: given.created_at,
            sample,
            said,
        }
    }
}

/// Whose record it is.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct OwnerQuery {
    /// The `user` that the call named, where the server trusts it.
    user: Option<String>,
}

/// A record's id in an address.
pub fn record_id(text: &str) -> Result<RecordId, ApiError> {
    // What cannot be an id is the id of no record.
    RecordId::parse(text).ok_or_else(no_record)
}

/// What is said of records that are not there, and of those that are not the caller's to see.
pub fn no_record() -> ApiError {
    ApiError::new(
        StatusCode::NOT_FOUND,
        "not_found",
        "there is no such record",
    )
}

impl AppState {
    /// The principal whose records a caller may see: its own.
    pub fn own(&self, identity: &Identity, user: Option<&str>) -> Result<Principal, ApiError> {
        if user.is_some() && !self.traffic.trust_user {
            return Err(ApiError::invalid(
                "user",
                "is not trusted by this server: records are those of the key",
            ));
        }
        self.traffic.principal(identity.caller.as_ref(), user)
    }

    /// The scope of a caller's own records.
    pub fn scope(&self, identity: &Identity, user: Option<&str>) -> Result<Scope, ApiError> {
        let own = self.own(identity, user)?;
        let former = self
            .traffic
            .former_principal(identity.caller.as_ref(), user);
        Ok(match former {
            Some(former) => Scope::Either(own, former),
            None => Scope::Only(own),
        })
    }
}

/// Returns a record of the caller's own.
///
/// It has what was asked, the answers, the verdicts on them, the preference pairs and the feedback.
#[utoipa::path(
    get,
    path = "/records/{id}",
    tag = "records",
    params(("id" = String, Path, description = "The `record_id` of an answer"), OwnerQuery),
    responses(
        (status = 200, body = RecordBody),
        (status = "4XX", description = "404 for a record of somebody else's as well", body = ErrorBody),
        (status = "5XX", body = ErrorBody)
    )
)]
pub async fn get(
    State(state): State<AppState>,
    identity: Identity,
    Named(id): Named,
    Query(owner): Query<OwnerQuery>,
) -> Result<Response, ApiError> {
    /// What a record takes while it is read and written, as a multiple of what it takes in the log: its rows, and its numbers as text.
    const FACTOR: usize = 4;
    let log = state.traffic.log()?;
    let scope = state.scope(&identity, owner.user.as_deref())?;
    let id = record_id(&id)?;
    let size = log.size_of(&id, &scope).await?.ok_or_else(no_record)?;
    let read = size.bytes.saturating_mul(FACTOR);
    identity.memory.grow(read)?;
    let record = log.get(&id, &scope).await?.ok_or_else(no_record)?;
    let memory = identity.memory.clone();
    let body = offload(move || {
        let body = answering::written(&RecordBody::from(record), memory.clone());
        memory.shrink(read);
        body
    });
    Ok(([(header::CONTENT_TYPE, "application/json")], body.await??).into_response())
}

/// What was deleted, or may no longer be learned from.
#[derive(Debug, Serialize, ToSchema)]
pub struct DeletedBody {
    /// The number of records.
    records: u64,
}

/// Deletes a record of the caller's own, or for operators anyone's.
///
/// Its samples, verdicts, pairs and feedback go with it, and training reads it no more.
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
    let log = state.traffic.log()?;
    let scope = match identity.is_admin() {
        true => Scope::All,
        false => state.scope(&identity, owner.user.as_deref())?,
    };
    match log.delete(&record_id(&id)?, &scope).await? {
        true => Ok(Json(DeletedBody { records: 1 })),
        false => Err(no_record()),
    }
}

/// Whose records are deleted, or no longer learned from.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct PrincipalQuery {
    /// For operators: `NAME` or `key:NAME` is a caller's key, `operator:NAME` an operator's, `anonymous` every caller without a key (the
    /// key of that name is `key:anonymous`). Without it, the caller's own are deleted.
    principal: Option<String>,
    /// Of the key's, the records of this `user`.
    user: Option<String>,
    /// Delete nothing, but withdraw the consent to train on them.
    #[serde(default)]
    keep: bool,
}

/// Deletes all records of a principal, and its feedback: the caller's own, or for operators anyone's.
///
/// With `keep` they stay, and no later stage of learning reads them. What was learned from them is in the weights already, and
/// `GET /generations?record=` names those.
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
    let log = state.traffic.log()?;
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
    // Everyone without a key is one principal: nobody may dispose of the records of all the others.
    if principal == Principal::anonymous() && !identity.is_admin() {
        return Err(ApiError::new(
            StatusCode::FORBIDDEN,
            "no_principal",
            "calls without a key share one principal: delete records by their ids",
        ));
    }
    let records = match whose.keep {
        true => log.withdraw_training(&principal).await?,
        false => log.delete_principal(&principal).await?,
    };
    Ok(Json(DeletedBody { records }))
}
