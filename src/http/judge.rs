//! `POST /judge`: which of two answers is better, or the best of many.

use std::time::Instant;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};

use super::AppState;
use super::body::{
    BracketBody, JudgingBody, MessageBody, OrdersBody, PrincipleBody, UsageBody, conversation,
    deadline,
};
use super::error::ApiError;
use super::extract::JsonBody;
use crate::judge::Method;
use crate::model::WeightsVersion;
use crate::service::{PairVerdict, PlayedMatch, ShownRead, Tournament};

/// The most comparisons of one call.
const MAX_COMPARISONS: usize = 20_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MethodBody {
    Pairwise,
    Tournament,
}

/// The body. Anything else in it is refused.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JudgeBody {
    prompt: Option<String>,
    messages: Option<Vec<MessageBody>>,
    /// Two or more answers. An empty one is an answer too.
    candidates: Vec<String>,
    /// `pairwise` for exactly two, `tournament` for any number; by default what fits their number.
    method: Option<MethodBody>,
    #[serde(default)]
    principles: Vec<PrincipleBody>,
    #[serde(default)]
    orders: OrdersBody,
    bracket: Option<BracketBody>,
    #[serde(default)]
    seed: u64,
    #[serde(default)]
    priority: i32,
    /// Seconds the request may take.
    timeout: Option<f64>,
}

/// A judged pair. Candidates are named by their indices.
#[derive(Debug, Serialize)]
struct PairAnswer {
    id: String,
    #[serde(flatten)]
    verdict: VerdictBody,
    version: Option<WeightsVersion>,
    usage: UsageBody,
}

#[derive(Debug, Serialize)]
struct VerdictBody {
    winner: Option<usize>,
    /// Probability that candidate 0 is better.
    p: f32,
    consistent: Option<bool>,
    label_mass: f32,
    orders: Vec<OrderBody>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    principles: Vec<PrincipleVerdictBody>,
    truncated: bool,
}

#[derive(Debug, Serialize)]
struct OrderBody {
    shown: [usize; 2],
    p_first: f32,
}

#[derive(Debug, Serialize)]
struct PrincipleVerdictBody {
    principle: String,
    p: f32,
    consistent: Option<bool>,
    label_mass: f32,
    orders: Vec<OrderBody>,
}

/// A tournament.
#[derive(Debug, Serialize)]
pub struct TournamentBody {
    winner: usize,
    ranking: Vec<usize>,
    rounds: Vec<Vec<MatchBody>>,
    /// Who had no match in each round.
    byes: Vec<Option<usize>>,
    comparisons: usize,
}

#[derive(Debug, Serialize)]
struct MatchBody {
    a: usize,
    b: usize,
    p_a: f32,
    winner: Option<usize>,
    consistent: Option<bool>,
}

#[derive(Debug, Serialize)]
struct TournamentAnswer {
    id: String,
    #[serde(flatten)]
    tournament: TournamentBody,
    version: Option<WeightsVersion>,
    usage: UsageBody,
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
                p: part.p,
                consistent: part.consistent,
                label_mass: part.label_mass,
                orders: orders(part.orders),
            });
        Self {
            winner: verdict.winner,
            p: verdict.p,
            consistent: verdict.consistent,
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
        }
    }
}

/// Comparisons a tournament of `n` takes at most.
fn comparisons(method: Method, n: usize) -> usize {
    match method {
        Method::Knockout => n - 1,
        Method::RoundRobin => n.saturating_mul(n - 1) / 2,
        Method::Ring { pivots } => n.saturating_mul(1 + pivots),
    }
}

pub async fn judge(
    State(state): State<AppState>,
    JsonBody(body): JsonBody<JudgeBody>,
) -> Result<Response, ApiError> {
    let arrival = Instant::now();
    let messages = conversation(body.prompt, body.messages)?;
    let deadline = deadline(arrival, body.timeout)?;
    let count = body.candidates.len();
    if count < 2 {
        return Err(ApiError::invalid("candidates", "must be at least two"));
    }
    let pairwise = match body.method {
        Some(MethodBody::Pairwise) if count != 2 => {
            return Err(ApiError::invalid(
                "method",
                format!("pairwise takes exactly two candidates, not {count}"),
            ));
        }
        Some(method) => method == MethodBody::Pairwise,
        None => count == 2,
    };
    if pairwise && body.bracket.is_some() {
        return Err(ApiError::invalid("bracket", "has no meaning for one pair"));
    }
    let judging = JudgingBody {
        principles: body.principles,
        orders: body.orders,
        bracket: body.bracket.unwrap_or_default(),
        seed: body.seed,
    };
    let task = judging.task(messages, arrival, deadline, body.priority)?;
    let id = state.next_id("judge");
    let _permit = state.permit()?;
    if pairwise {
        let [a, b] = [&body.candidates[0], &body.candidates[1]];
        let judged = state.service.judge_pair(&task, a, b).await?;
        return Ok(Json(PairAnswer {
            id,
            verdict: judged.result.into(),
            version: judged.version,
            usage: judged.usage.into(),
        })
        .into_response());
    }
    let how = judging.tournament();
    let needed = comparisons(how.method, count);
    if needed > MAX_COMPARISONS {
        return Err(ApiError::invalid(
            "candidates",
            format!(
                "{count} of them take {needed} comparisons, and {MAX_COMPARISONS} is the most of a call"
            ),
        ));
    }
    let judged = state
        .service
        .hold_tournament(&task, how, &body.candidates)
        .await?;
    Ok(Json(TournamentAnswer {
        id,
        tournament: judged.result.into(),
        version: judged.version,
        usage: judged.usage.into(),
    })
    .into_response())
}
