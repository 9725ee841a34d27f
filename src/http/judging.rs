//! How judging is asked for, in `/judge` and beside `best_of`.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::error::ApiError;
use crate::judge::Method;
use crate::preference::Message;
use crate::service::{JudgeTask, Orders, TournamentTask, Turn, WeightedPrinciple};

/// A principle by name or text, or with a weight.
#[derive(Debug, Clone, Deserialize, Serialize, ToSchema)]
#[serde(
    untagged,
    expecting = "must be a name, a text, or {\"principle\": …, \"weight\": …}"
)]
pub enum PrincipleBody {
    Plain(String),
    Weighted(WeightedBody),
}

#[derive(Debug, Clone, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct WeightedBody {
    pub principle: String,
    /// How much it counts: above 0.
    pub weight: f32,
}

/// Which orders a pair is shown in.
#[derive(Debug, Clone, Copy, Default, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum OrdersBody {
    /// Both, averaged.
    #[default]
    Both,
    /// As given: half the cost, and the judge's preference for a position is in the verdict.
    Given,
}

#[derive(Debug, Clone, Copy, Default, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum BracketBody {
    /// A knockout: one comparison fewer than candidates.
    #[default]
    SingleElimination,
    /// Everyone against everyone.
    RoundRobin,
    /// A ring, then everyone against its strongest: ranked by Bradley-Terry strength, four comparisons a candidate at most.
    Ring,
}

/// Candidates of the ring that everyone else meets.
const PIVOTS: usize = 3;

impl From<BracketBody> for Method {
    fn from(bracket: BracketBody) -> Self {
        match bracket {
            BracketBody::SingleElimination => Self::Knockout,
            BracketBody::RoundRobin => Self::RoundRobin,
            BracketBody::Ring => Self::Ring { pivots: PIVOTS },
        }
    }
}

/// How the tournament of `best_of` is judged.
#[derive(Debug, Clone, Default, Deserialize, Serialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct JudgingBody {
    /// Names of the model's principles or any texts; each is asked by itself, and they are averaged by weight.
    pub principles: Vec<PrincipleBody>,
    pub orders: OrdersBody,
    pub bracket: BracketBody,
    /// Decides who meets whom.
    pub seed: u64,
}

impl JudgingBody {
    pub fn tournament(&self) -> TournamentTask {
        TournamentTask {
            method: self.bracket.into(),
            seed: self.seed,
        }
    }

    pub fn task(&self, context: Vec<Message>, turn: Turn) -> Result<JudgeTask, ApiError> {
        let principles = self.principles.iter().map(|principle| {
            let (name, weight) = match principle {
                PrincipleBody::Plain(name) => (name, 1.0),
                PrincipleBody::Weighted(body) => (&body.principle, body.weight),
            };
            if name.trim().is_empty() {
                return Err(ApiError::invalid("principles", "must not be empty"));
            }
            if !(weight > 0.0 && weight.is_finite()) {
                return Err(ApiError::invalid("principles", "weights must be above 0"));
            }
            Ok(WeightedPrinciple {
                name_or_text: name.clone(),
                weight,
            })
        });
        Ok(JudgeTask {
            context,
            principles: principles.collect::<Result<_, _>>()?,
            orders: match self.orders {
                OrdersBody::Both => Orders::Both,
                OrdersBody::Given => Orders::Given,
            },
            weights: None,
            turn,
        })
    }
}
