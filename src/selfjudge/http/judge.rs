//! `POST /judge`: which of two answers is better, or the best of many.

use std::time::Instant;

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::AppState;
use super::conversation::{MessageBody, conversation};
use super::error::{ApiError, ErrorBody};
use super::extract::Beside;
use super::idempotency::IDEMPOTENCY;
use super::identity::Identity;
use super::judging::{JudgingBody, check_reads};
use super::kept::KeptBody;
use super::sampling::{cache_salt, turn};
use crate::call::{Turn, Usage};
use crate::judging::{PlayedMatch, Tournament};
use crate::service::ConsentRequest;
use judge::{PairVerdict, ShownRead};
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
    verdict: VerdictBody,
    /// The weights that judged: `base`, or the digest of a generation; null if no judging was necessary.
    #[schema(value_type = Option<String>)]
    version: Option<WeightsName>,
    /// The tokens of the call.
    usage: Usage,
    #[serde(flatten)]
    kept: KeptBody,
}

/// The verdict on a pair.
#[derive(Debug, Serialize, ToSchema)]
pub struct VerdictBody {
    /// 0 or 1; null on an exact tie, and with `"on_disagreement": "undecided"` if the orders disagree.
    winner: Option<usize>,
    /// Probability that candidate 0 is better.
    p: f32,
    /// Whether both orders name the same winner, with several principles by their weighted means; null if only one order was judged.
    consistent: Option<bool>,
    /// Whether the verdict is reliable: the judge passed its self-test, both orders name the same winner, and `label_mass` is at
    /// least 0.5. Null if unknown: without a self-test, with one order, or between equal candidates.
    reliable: Option<bool>,
    /// Probability of the judge's labels among all tokens: low if the model does not answer as a judge. Below 0.5 the verdict is
    /// meaningless, whatever `winner` is, and makes no preference pair.
    label_mass: f32,
    /// The result of each order; empty between equal candidates.
    orders: Vec<OrderBody>,
    /// The verdict by principle, if principles were named.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    principles: Vec<PrincipleVerdictBody>,
    /// Whether texts were cut to fit the context.
    truncated: bool,
}

/// The judge's result for a pair in one order.
#[derive(Debug, Serialize, ToSchema)]
pub struct OrderBody {
    /// The candidates in the order in which the judge read them.
    shown: [usize; 2],
    /// Probability that the first of them is better.
    p_first: f32,
}

/// The origin of a principle.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum SourceBody {
    /// The server's table.
    Table,
    /// The call.
    Text,
}

/// The verdict on a pair under one principle.
#[derive(Debug, Serialize, ToSchema)]
pub struct PrincipleVerdictBody {
    /// The name or the text of the principle.
    principle: String,
    /// The origin of the principle: a name that is not in the table is used as a text.
    source: SourceBody,
    /// The probability that candidate 0 is better under the principle.
    p: f32,
    /// Whether both orders name the same winner; null if only one order was judged.
    consistent: Option<bool>,
    /// Probability of the judge's labels among all tokens.
    label_mass: f32,
    /// The result of each order.
    orders: Vec<OrderBody>,
}

/// A tournament.
#[derive(Debug, Serialize, ToSchema)]
pub struct TournamentBody {
    /// The number of the best candidate, from 0.
    winner: usize,
    /// The numbers of all candidates, the best first.
    ranking: Vec<usize>,
    /// The matches of each round.
    rounds: Vec<Vec<MatchBody>>,
    /// The candidate without a match in each round.
    byes: Vec<Option<usize>>,
    /// Number of compared pairs, including equal candidates.
    comparisons: usize,
    /// Whether texts were cut to fit the context, in any match.
    truncated: bool,
    /// Whether the judge passed its self-test; null without a self-test.
    reliable: Option<bool>,
}

/// A match of two candidates.
#[derive(Debug, Serialize, ToSchema)]
pub struct MatchBody {
    /// The number of the first candidate.
    a: usize,
    /// The number of the second candidate.
    b: usize,
    /// The probability that `a` is better.
    p_a: f32,
    /// The number of the winner; null on a tie.
    winner: Option<usize>,
    /// Whether both orders name the same winner; null if only one order was judged, or no judging was necessary.
    consistent: Option<bool>,
    /// Whether the verdict is reliable, as in a pair's answer; null if unknown.
    reliable: Option<bool>,
}

/// A judged tournament. Candidates are named by their numbers, from 0.
#[derive(Debug, Serialize, ToSchema)]
pub struct TournamentAnswer {
    /// The id of the call.
    id: String,
    #[serde(flatten)]
    tournament: TournamentBody,
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

fn orders(reads: Vec<ShownRead>) -> Vec<OrderBody> {
    let body = |read: ShownRead| OrderBody {
        shown: read.shown,
        p_first: read.p_first,
    };
    reads.into_iter().map(body).collect()
}

impl From<PairVerdict> for VerdictBody {
    fn from(verdict: PairVerdict) -> Self {
        let principles = verdict
            .principles
            .into_iter()
            .map(|part| PrincipleVerdictBody {
                principle: part.principle,
                source: match part.listed {
                    true => SourceBody::Table,
                    false => SourceBody::Text,
                },
                p: part.p,
                consistent: part.consistent,
                label_mass: part.label_mass,
                orders: orders(part.orders),
            });
        Self {
            winner: verdict.winner,
            p: verdict.p,
            consistent: verdict.consistent,
            reliable: verdict.reliable,
            label_mass: verdict.label_mass,
            orders: orders(verdict.orders),
            principles: principles.collect(),
            truncated: verdict.truncated,
        }
    }
}

impl From<PlayedMatch> for MatchBody {
    fn from(played: PlayedMatch) -> Self {
        Self {
            a: played.a,
            b: played.b,
            p_a: played.verdict.p,
            winner: played.verdict.winner.map(|side| [played.a, played.b][side]),
            consistent: played.verdict.consistent,
            reliable: played.verdict.reliable,
        }
    }
}

impl From<Tournament> for TournamentBody {
    fn from(tournament: Tournament) -> Self {
        let round = |matches: Vec<PlayedMatch>| matches.into_iter().map(MatchBody::from).collect();
        Self {
            winner: tournament.winner,
            ranking: tournament.ranking,
            rounds: tournament.rounds.into_iter().map(round).collect(),
            byes: tournament.byes,
            comparisons: tournament.comparisons,
            truncated: tournament.truncated,
            reliable: tournament.reliable,
        }
    }
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
                verdict: judged.result.result.into(),
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
                tournament: judged.result.result.into(),
                version: judged.result.weights,
                usage: judged.result.usage,
                kept: judged.records.into(),
            })
        }
    }))
}
