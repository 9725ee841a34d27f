//! The parameters of judging, in `/judge` and with `best_of`.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::principles::PrinciplesBody;
use crate::call::Turn;
use crate::http::error::ApiError;
use crate::http::extract::null_is_absent;
use crate::judging::{JudgeTask, TournamentTask};
use crate::principles::VersionedTable;
use judge::{Method, OnDisagreement, Orders};
use text::Message;

/// The bracket of a tournament.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum BracketBody {
    /// A knockout, with one comparison fewer than candidates.
    #[default]
    SingleElimination,
    /// Every candidate against every other.
    RoundRobin,
    /// A ring, then every candidate against the strongest ones: ranked by Bradley-Terry strength, at most four comparisons per candidate.
    Ring,
}

/// Number of the strongest candidates that all others meet after the ring.
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

/// How answers are judged.
#[derive(Debug, Clone, Default, Deserialize, Serialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct JudgingBody {
    /// `"table"`, or names from the server's table and texts, at most 64. Each is judged separately, and the results are averaged by
    /// weight. Names have the table's weight and polarity, texts have weight 1, unless the call sets another weight.
    #[serde(deserialize_with = "null_is_absent")]
    pub principles: PrinciplesBody,
    /// The orders in which the judge reads a pair; by default `both`.
    #[serde(deserialize_with = "null_is_absent")]
    pub orders: Orders,
    /// The winner of a pair whose two orders disagree; by default the server's setting (`--on-disagreement`,
    /// `average`).
    pub on_disagreement: Option<OnDisagreement>,
    /// The bracket of a tournament; by default `single_elimination`.
    pub bracket: Option<BracketBody>,
    /// Seed of the tournament's draw; refused in a round robin, where nothing is drawn. By default 0.
    pub seed: Option<u64>,
}

impl JudgingBody {
    /// Returns whether no parameter is set.
    pub fn is_empty(&self) -> bool {
        let Self {
            principles,
            orders,
            on_disagreement,
            bracket,
            seed,
        } = self;
        principles.is_empty()
            && *orders == Orders::Both
            && on_disagreement.is_none()
            && bracket.is_none()
            && seed.is_none()
    }

    /// Returns the tournament's settings.
    ///
    /// # Errors
    /// Fails if a seed is given for a bracket without a draw.
    pub fn tournament(&self) -> Result<TournamentTask, ApiError> {
        let bracket = self.bracket.unwrap_or_default();
        if bracket == BracketBody::RoundRobin && self.seed.is_some() {
            return Err(ApiError::invalid(
                "seed",
                "has no meaning in a round robin: all candidates meet, and nothing is drawn",
            ));
        }
        Ok(TournamentTask {
            method: bracket.into(),
            seed: self.seed.unwrap_or(0),
        })
    }

    /// Returns the settings of a comparison. `table` holds the current principles; `on_disagreement` is the default.
    ///
    /// # Errors
    /// Fails if principles are invalid, too many, or all of weight 0.
    pub fn task(
        &self,
        context: Vec<Message>,
        turn: Turn,
        table: &VersionedTable,
        on_disagreement: OnDisagreement,
    ) -> Result<JudgeTask, ApiError> {
        if self.on_disagreement.is_some() && self.orders == Orders::Given {
            return Err(ApiError::invalid(
                "on_disagreement",
                "has no meaning with `\"orders\": \"given\"`: one order cannot disagree with itself",
            ));
        }
        Ok(JudgeTask {
            context,
            principles: self.principles.asked(table)?,
            orders: self.orders,
            on_disagreement: self.on_disagreement.unwrap_or(on_disagreement),
            weights: None,
            turn,
        })
    }
}
