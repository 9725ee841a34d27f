//! `POST /v1/decisions`: questions about an input, answered with probabilities instead of text.
//!
//! The format is that of OpenAI's Decisions API. Numbers that it leaves open are defined as follows: `confidence` is the probability of
//! the chosen option or level, and `score` the expected position among the levels, the lowest being 0. In addition every answer has its
//! `label_mass`.

mod answer;
mod body;
mod prompts;

use std::collections::BTreeSet;
use std::time::Instant;

use axum::Json;
use axum::extract::State;
use serde::Deserialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use crate::call::Turn;
use crate::http::AppState;
use crate::http::beside::{Beside, Shared};
use crate::http::error::{ApiError, ErrorBody};
use crate::http::identity::Identity;
use crate::http::neutral::{self, Tables};
use crate::http::sampling::{SamplingBody, cache_salt, turn};
use crate::service::Question;
use answer::DecisionsAnswer;
use body::DecisionsBody;

/// Maximum number of questions per call.
const MAX_QUESTIONS: usize = 400;

/// The shared parameters of this route: none, only fields without effect.
#[derive(Debug, Deserialize, ToSchema)]
pub struct Nothing {}

impl Shared for Nothing {
    const UNSUPPORTED: Tables = Tables::DECISIONS;

    fn names() -> &'static BTreeSet<String> {
        static NAMES: BTreeSet<String> = BTreeSet::new();
        &NAMES
    }

    fn strip(body: &mut Map<String, Value>) {
        neutral::strip_decisions(body, SamplingBody::names());
    }
}

type DecisionsRequest = Beside<DecisionsBody, Nothing>;

/// Answers questions about an input by the probabilities of their options.
///
/// No text is generated or parsed.
///
/// `label_mass` is the probability of the options' letters. It is near 0 if the model does not answer in letters, as with the pocket
/// model: its probabilities are then meaningless. Use a chat model.
#[utoipa::path(
    post,
    path = "/v1/decisions",
    tag = "OpenAI",
    request_body(content = DecisionsRequest, example = json!({
        "model": "pocket",
        "input": "The delivery was late, but the staff were very kind.",
        "questions": [
            {"type": "predicate", "name": "late", "instructions": "The delivery was late."},
            {"type": "choice", "instructions": "What is praised?", "choices": [
                {"value": "staff"}, {"value": "delivery", "description": "or its speed"}
            ]},
            {"type": "score", "instructions": "How polite is it?", "levels": [
                {"label": "blunt"}, {"label": "neutral"}, {"label": "polite"}
            ]}
        ]
    })),
    responses(
        (status = 200, body = DecisionsAnswer),
        (status = "4XX", body = ErrorBody),
        (status = "5XX", body = ErrorBody)
    )
)]
pub async fn decisions(
    State(state): State<AppState>,
    identity: Identity,
    Beside { own: body, .. }: DecisionsRequest,
) -> Result<Json<DecisionsAnswer>, ApiError> {
    let turn = Turn {
        tenant: identity.tenant,
        cache_salt: cache_salt(body.cache_salt.as_deref())?,
        ..turn(Instant::now(), body.priority, body.timeout)?
    };
    state.check_model(body.model.as_deref())?;
    if !(1..=MAX_QUESTIONS).contains(&body.questions.len()) {
        let message = format!("must be from 1 to {MAX_QUESTIONS} questions");
        return Err(ApiError::invalid("questions", message));
    }
    let max_options = state.service.max_options()?;
    let questions = body.questions.iter().enumerate();
    let asked = questions
        .map(|(at, question)| question.ask(at, max_options))
        .collect::<Result<Vec<Question>, _>>()?;
    let input = body.input.into_text()?;
    let decided = state.service.decide(input, asked, turn).await;
    let decided = decided.map_err(|error| ApiError::from(error).renamed("prompt", "input"))?;
    let answers = body.questions.into_iter().zip(decided.result);
    Ok(Json(DecisionsAnswer {
        id: state.next_id("decision"),
        model: state.model_name.to_string(),
        answers: answers
            .map(|(question, decision)| question.answer(decision))
            .collect(),
        usage: decided.usage.into(),
    }))
}
