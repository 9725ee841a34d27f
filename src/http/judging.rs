//! How judging is asked for, in `/judge` and beside `best_of`.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::error::ApiError;
use crate::judge::Method;
use crate::preference::{Message, Polarity, PrincipleTable, VersionedTable, WEIGHTS};
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
    /// How much it counts: from 1e-6 to 1e6.
    #[schema(minimum = 0.000001, maximum = 1000000)]
    pub weight: f64,
}

/// The whole table, or some principles.
#[derive(Debug, Clone, Deserialize, Serialize, ToSchema)]
#[serde(
    untagged,
    expecting = "must be \"table\", or a list of names, texts and {\"principle\": …, \"weight\": …}"
)]
pub enum PrinciplesBody {
    Table(TableBody),
    These(Vec<PrincipleBody>),
}

/// Every principle of the server's table that has a weight.
#[derive(Debug, Clone, Copy, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum TableBody {
    Table,
}

impl Default for PrinciplesBody {
    fn default() -> Self {
        Self::These(Vec::new())
    }
}

impl PrinciplesBody {
    /// What is asked, by the table in force: what weighs nothing there is left out, unless the call gives it a weight.
    fn asked(&self, table: &VersionedTable) -> Result<Vec<WeightedPrinciple>, ApiError> {
        let VersionedTable { version, table } = table;
        let asked = match self {
            Self::Table(_) => WeightedPrinciple::of_table(table),
            Self::These(principles) if principles.is_empty() => return Ok(Vec::new()),
            Self::These(principles) => {
                let asked = principles.iter().map(|principle| principle.asked(table));
                asked
                    .filter_map(Result::transpose)
                    .collect::<Result<_, _>>()?
            }
        };
        match asked.is_empty() {
            true => Err(ApiError::invalid(
                "principles",
                format!("none of them has a weight in version {version} of the table"),
            )),
            false => Ok(asked),
        }
    }
}

impl PrincipleBody {
    /// `None` for what weighs nothing.
    fn asked(&self, table: &PrincipleTable) -> Result<Option<WeightedPrinciple>, ApiError> {
        let (name, weight) = match self {
            Self::Plain(name) => (name, None),
            Self::Weighted(body) => (&body.principle, Some(body.weight)),
        };
        if name.trim().is_empty() {
            return Err(ApiError::invalid("principles", "must not be empty"));
        }
        if weight.is_some_and(|weight| !WEIGHTS.contains(&weight)) {
            return Err(ApiError::invalid(
                "principles",
                "weights must be from 1e-6 to 1e6",
            ));
        }
        let listed = table.get(name).map(WeightedPrinciple::from);
        let mut asked = listed.unwrap_or_else(|| WeightedPrinciple {
            name: name.clone(),
            text: name.clone(),
            polarity: Polarity::Encourage,
            weight: 1.0,
        });
        if let Some(weight) = weight {
            asked.weight = weight as f32;
        }
        Ok((asked.weight > 0.0).then_some(asked))
    }
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
    /// `"table"`, or names of the table's principles and any texts; each is asked by itself, and they are averaged by weight.
    /// A name has the weight and polarity that the table gives it, and a text the weight 1, unless the call gives another.
    pub principles: PrinciplesBody,
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

    /// `table`: the principles in force.
    ///
    /// # Errors
    /// Principles that make no sense, or that all weigh nothing.
    pub fn task(
        &self,
        context: Vec<Message>,
        turn: Turn,
        table: &VersionedTable,
    ) -> Result<JudgeTask, ApiError> {
        Ok(JudgeTask {
            context,
            principles: self.principles.asked(table)?,
            orders: match self.orders {
                OrdersBody::Both => Orders::Both,
                OrdersBody::Given => Orders::Given,
            },
            weights: None,
            turn,
        })
    }
}
