//! `POST /judge`: which of two answers is better, or the best of many.

mod principles;
mod reads;
mod settings;

use std::time::Instant;

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

pub use reads::check_reads;
pub use settings::JudgingBody;

use crate::call::{Turn, Usage};
use crate::http::AppState;
use crate::http::beside::Beside;
use crate::http::conversation::{MessageBody, conversation};
use crate::http::error::{ApiError, ErrorBody};
use crate::http::idempotency::IDEMPOTENCY;
use crate::http::identity::Identity;
use crate::http::kept::KeptBody;
use crate::http::sampling::{cache_salt, turn};
use crate::judging::Tournament;
use crate::service::ConsentRequest;
use judge::PairVerdict;
use model::WeightsName;

/// The kind of comparison: a pair, or any number of answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum MethodBody {
    Pairwise,
    Tournament,
}

/// The body. Unknown fields are refused.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct JudgeBody {
    /// The prompt of the candidates: one message of the user. Exactly one of `prompt` and `messages` must be given.
    prompt: Option<String>,
    /// The prompt of the candidates: a conversation.
    messages: Option<Vec<MessageBody>>,
    /// Two or more answers. An empty one counts as an answer; two equal ones tie without being judged.
    #[schema(min_items = 2)]
    candidates: Vec<String>,
    /// `pairwise` for exactly two, `tournament` for any number; by default depending on their number.
    method: Option<MethodBody>,
    /// Lower is served first; each level is worth a bounded head start.
    #[schema(minimum = -100, maximum = 100, default = 0)]
    priority: Option<i32>,
    /// Maximum duration of the request in seconds.
    #[schema(exclusive_minimum = 0)]
    timeout: Option<f64>,
    /// Only calls of the same key (without keys: address) with the same salt share the prefix cache; at least one character.
    #[schema(min_length = 1)]
    cache_salt: Option<String>,
    /// The permitted use of the call.
    log: Option<ConsentRequest>,
    /// The end user. It has an effect only if the server trusts it: records then belong to the user.
    user: Option<String>,
}

type JudgeRequest = Beside<JudgeBody, JudgingBody>;

/// A judged pair. Candidates are named by their indices.
#[derive(Debug, Serialize, ToSchema)]
pub struct PairAnswer {
    /// The id of the call.
    id: String,
    #[serde(flatten)]
    verdict: PairVerdict,
    /// The weights that judged: `base`, or the digest of a generation; null if no judging was necessary.
    #[schema(value_type = Option<String>)]
    version: Option<WeightsName>,
    /// The tokens of the call.
    usage: Usage,
    #[serde(flatten)]
    kept: KeptBody,
}

/// A judged tournament. Candidates are named by their numbers, from 0.
#[derive(Debug, Serialize, ToSchema)]
pub struct TournamentAnswer {
    /// The id of the call.
    id: String,
    #[serde(flatten)]
    tournament: Tournament,
    /// The weights that judged; null if no judging was necessary.
    #[schema(value_type = Option<String>)]
    version: Option<WeightsName>,
    /// The tokens of the call.
    usage: Usage,
    #[serde(flatten)]
    kept: KeptBody,
}

/// A pair's verdict or a tournament's result.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
pub enum JudgeAnswer {
    Pair(PairAnswer),
    Tournament(TournamentAnswer),
}

impl JudgeBody {
    /// Returns whether one pair is compared, rather than a tournament.
    fn is_pair(&self, judging: &JudgingBody) -> Result<bool, ApiError> {
        let count = self.candidates.len();
        if count < 2 {
            return Err(ApiError::invalid("candidates", "must be at least two"));
        }
        let pair = match self.method {
            Some(MethodBody::Pairwise) if count != 2 => {
                return Err(ApiError::invalid(
                    "method",
                    format!(
                        "`\"method\": \"pairwise\"` takes exactly two `candidates`, not {count}"
                    ),
                ));
            }
            Some(method) => method == MethodBody::Pairwise,
            None => count == 2,
        };
        if pair && judging.bracket.is_some() {
            return Err(ApiError::invalid("bracket", "has no meaning for one pair"));
        }
        if pair && judging.seed.is_some() {
            return Err(ApiError::invalid(
                "seed",
                "has no meaning for one pair: nothing is drawn",
            ));
        }
        Ok(pair)
    }
}

/// Judges which of two answers is better, or ranks many.
///
/// Verdicts are the log-probabilities of the judge's two label tokens, over the full vocabulary: one forward pass per pair, order
/// and principle, without generated text.
#[utoipa::path(
    post,
    path = "/judge",
    tag = "selfjudge",
    request_body(content = JudgeRequest, examples(
        ("1. a pair" = (value = json!({"prompt": "What is 45 plus 17?", "candidates": ["62", "52"]}))),
        ("2. undecided where the orders disagree" = (value = json!({
            "prompt": "Write planet backwards.", "candidates": ["tenalp", "tenalp!"], "on_disagreement": "undecided"
        }))),
        ("3. a tournament" = (value = json!({
            "prompt": "Reverse the word car.", "candidates": ["rac", "rca", "car", "arc"], "bracket": "round_robin"
        }))),
        ("4. under two principles" = (value = json!({
            "prompt": "What is 45 plus 17?", "candidates": ["Sure! 62. Glad to help!", "52"],
            "principles": ["correct", {"principle": "polite", "weight": 0.5}]
        }))),
        ("5. by the whole table" = (value = json!({
            "prompt": "What is 45 plus 17?", "candidates": ["Sure! 62.", "62"], "principles": "table"
        })))
    )),
    params(("Idempotency-Key" = Option<String>, Header, description = IDEMPOTENCY)),
    responses(
        (status = 200, body = JudgeAnswer),
        (status = "4XX", body = ErrorBody),
        (status = "5XX", body = ErrorBody)
    )
)]
pub async fn judge(
    State(state): State<AppState>,
    identity: Identity,
    body: JudgeRequest,
) -> Result<Json<JudgeAnswer>, ApiError> {
    let arrival = Instant::now();
    let Beside {
        own: body,
        shared: judging,
    } = body;
    let is_pair = body.is_pair(&judging)?;
    let messages = conversation(body.prompt, body.messages)?;
    let turn = Turn {
        tenant: identity.tenant,
        cache_salt: cache_salt(body.cache_salt.as_deref())?,
        ..turn(arrival, body.priority, body.timeout)?
    };
    let table = state.principles.current();
    let task = judging.task(messages, turn, &table, state.judging.on_disagreement)?;
    let id = state.next_id("judge");
    let (recorded, origin) = (&state.recorded, identity.origin(body.user));
    let candidates = body.candidates;
    Ok(Json(match is_pair {
        true => {
            let pair = [&candidates[0], &candidates[1]];
            let judged = recorded.judge_pair(origin, body.log, task, pair).await?;
            JudgeAnswer::Pair(PairAnswer {
                id,
                verdict: judged.result.result,
                version: judged.result.weights,
                usage: judged.result.usage,
                kept: judged.records.into(),
            })
        }
        false => {
            let how = judging.tournament()?;
            check_reads("candidates", &task, how.method, candidates.len(), 1)?;
            let held = recorded.hold_tournament(origin, body.log, task, how, &candidates);
            let judged = held.await?;
            JudgeAnswer::Tournament(TournamentAnswer {
                id,
                tournament: judged.result.result,
                version: judged.result.weights,
                usage: judged.result.usage,
                kept: judged.records.into(),
            })
        }
    }))
}
