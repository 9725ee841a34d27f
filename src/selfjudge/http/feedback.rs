//! `POST /feedback`: callers' feedback on answers.

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::AppState;
use super::error::{ApiError, ErrorBody};
use super::extract::JsonBody;
use super::identity::Identity;
use super::records::{no_record, record_id};
use traffic_log::Feedback;

/// Maximum length of an edited answer, in bytes.
const MAX_EDIT: usize = 1 << 20;

/// Exactly one of `thumbs`, `preferred` and `edited`.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct FeedbackBody {
    /// The `record_id` of an answer.
    record_id: String,
    /// The index of the record's sample that `thumbs` or `edited` is about; with `best_of` the candidate's number.
    sample: Option<usize>,
    /// Whether the answer is good.
    thumbs: Option<ThumbsBody>,
    /// The index of the record's sample that is better than all others.
    preferred: Option<usize>,
    /// The corrected text of the answer.
    edited: Option<String>,
    /// The `user` that the call named, if the server trusts it.
    user: Option<String>,
}

/// Whether an answer is good or bad.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ThumbsBody {
    Up,
    Down,
}

/// The result of the feedback.
#[derive(Debug, Serialize, ToSchema)]
pub struct FeedbackAnswer {
    /// The id of the record.
    record_id: String,
    /// Number of preference pairs from all feedback on the record so far. If the operator requires the judge's agreement, more may follow
    /// after a stage of learning has judged them.
    pairs: usize,
}

impl FeedbackBody {
    fn feedback(&self) -> Result<Feedback, ApiError> {
        let sample = self.sample.unwrap_or(0);
        match (self.thumbs, self.preferred, &self.edited) {
            (Some(thumbs), None, None) => Ok(Feedback::Thumbs {
                sample,
                up: thumbs == ThumbsBody::Up,
            }),
            (None, Some(_), None) if self.sample.is_some() => Err(ApiError::invalid(
                "sample",
                "has no meaning beside `preferred`",
            )),
            (None, Some(sample), None) => Ok(Feedback::Preferred { sample }),
            (None, None, Some(text)) if text.len() > MAX_EDIT => Err(ApiError::invalid(
                "edited",
                format!("must be at most {MAX_EDIT} bytes"),
            )),
            (None, None, Some(text)) => Ok(Feedback::Edited {
                sample,
                text: text.clone(),
            }),
            (None, None, None) => Err(ApiError::invalid(
                "thumbs",
                "one of `thumbs`, `preferred` and `edited` must be given",
            )),
            _ => Err(ApiError::invalid(
                "thumbs",
                "only one of `thumbs`, `preferred` and `edited` can be given",
            )),
        }
    }
}

/// Returns the metric label of feedback.
fn kind(feedback: &Feedback) -> &'static str {
    match feedback {
        Feedback::Thumbs { up: true, .. } => "thumbs_up",
        Feedback::Thumbs { up: false, .. } => "thumbs_down",
        Feedback::Preferred { .. } => "preferred",
        Feedback::Edited { .. } => "edited",
    }
}

/// Records a caller's feedback on its own answer: good or bad, the best of several, or a corrected text.
///
/// The operator decides whether the model is trained on it: never, if the judge agrees in both orders, or always.
#[utoipa::path(
    post,
    path = "/feedback",
    tag = "records",
    request_body(content = FeedbackBody, examples(
        ("1. thumbs" = (value = json!({"record_id": "01ARZ3NDEKTSV4RRFFQ69G5FAV", "thumbs": "up"}))),
        ("2. preferred" = (value = json!({"record_id": "01ARZ3NDEKTSV4RRFFQ69G5FAV", "preferred": 1}))),
        ("3. edited" = (value = json!({"record_id": "01ARZ3NDEKTSV4RRFFQ69G5FAV", "sample": 0, "edited": "62"})))
    )),
    responses(
        (status = 200, body = FeedbackAnswer),
        (status = "4XX", description = "404 also for another caller's record", body = ErrorBody),
        (status = "5XX", body = ErrorBody)
    )
)]
pub async fn feedback(
    State(state): State<AppState>,
    identity: Identity,
    JsonBody(body): JsonBody<FeedbackBody>,
) -> Result<Json<FeedbackAnswer>, ApiError> {
    let log = state.traffic().log()?;
    let feedback = body.feedback()?;
    let principal = state.own(&identity, body.user.as_deref())?;
    let id = record_id(&body.record_id)?;
    let scope = state.scope(&identity, body.user.as_deref())?;
    let size = log.records.size_of(&id, &scope).await?;
    let samples = size.ok_or_else(|| no_record().about("record_id"))?.shown;
    let (param, about) = match &feedback {
        Feedback::Thumbs { sample, .. } | Feedback::Edited { sample, .. } => ("sample", *sample),
        Feedback::Preferred { sample } => ("preferred", *sample),
    };
    if about >= samples {
        return Err(ApiError::invalid(
            param,
            format!("must name one of the record's {samples} samples, which are counted from 0"),
        ));
    }
    let kind = kind(&feedback);
    let outcome = log.feedback.add(&id, &principal, feedback).await?;
    state.metrics.log.feedback.with_label_values(&[kind]).inc();
    Ok(Json(FeedbackAnswer {
        record_id: body.record_id,
        pairs: outcome.pairs,
    }))
}
