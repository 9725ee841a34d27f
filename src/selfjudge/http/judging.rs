//! The parameters of judging, in `/judge` and with `best_of`.

use serde::de::{self, Unexpected};
use serde::{Deserialize, Deserializer, Serialize};
use utoipa::openapi::schema::ArrayBuilder;
use utoipa::openapi::{Ref, RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};

use super::error::ApiError;
use super::extract::null_is_absent;
use super::one_or_many::{Given, TextOr, one_or_many, text_or_object};
use crate::call::Turn;
use crate::judging::{JudgeTask, TournamentTask};
use crate::principles::VersionedTable;
use judge::{Method, OnDisagreement, Orders, PrincipleTable, WEIGHTS, WeightedPrinciple};
use text::Message;

/// Maximum number of principles per call.
const MAX_PRINCIPLES: usize = 64;

/// Maximum bytes of a principle's name or text.
const MAX_PRINCIPLE_BYTES: usize = 4096;

/// Maximum number of the judge's forward passes per call: comparisons × orders × principles.
const MAX_READS: usize = 40_000;

/// A principle by name or text, optionally with a weight.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[serde(untagged)]
pub enum PrincipleBody {
    Plain(String),
    Weighted(WeightedBody),
}

impl<'de> Deserialize<'de> for PrincipleBody {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let expected = "a name, a text, or an object with `principle` and `weight`";
        let read = text_or_object(deserializer, expected);
        read.map(|read| match read {
            TextOr::Text(principle) => Self::Plain(principle),
            TextOr::Object(weighted) => Self::Weighted(weighted),
        })
    }
}

/// A principle with its own weight.
#[derive(Debug, Clone, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct WeightedBody {
    /// The name or the text of the principle.
    pub principle: String,
    /// The weight of its verdict: from 1e-6 to 1e6.
    #[schema(minimum = 0.000001, maximum = 1000000)]
    pub weight: Option<f64>,
}

/// The whole table, or a list of principles.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[serde(untagged)]
pub enum PrinciplesBody {
    Table(TableBody),
    These(#[schema(inline)] PrincipleList),
}

impl<'de> Deserialize<'de> for PrinciplesBody {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        const EXPECTED: &str =
            "\"table\", or a list of names, texts, and objects with `principle` and `weight`";
        match one_or_many(deserializer, EXPECTED)? {
            Given::Text(text) if text == "table" => Ok(Self::Table(TableBody::Table)),
            Given::Text(text) => Err(de::Error::invalid_value(Unexpected::Str(&text), &EXPECTED)),
            Given::List(principles) => Ok(Self::These(PrincipleList(principles))),
        }
    }
}

/// A list of at most [`MAX_PRINCIPLES`] principles.
#[derive(Debug, Clone, Default, Serialize)]
pub struct PrincipleList(Vec<PrincipleBody>);

impl PartialSchema for PrincipleList {
    fn schema() -> RefOr<Schema> {
        ArrayBuilder::new()
            .items(Ref::from_schema_name(PrincipleBody::name()))
            .max_items(Some(MAX_PRINCIPLES))
            .into()
    }
}

impl ToSchema for PrincipleList {
    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        schemas.push((PrincipleBody::name().into(), PrincipleBody::schema()));
        PrincipleBody::schemas(schemas);
    }
}

/// All principles of the server's table with a weight above 0.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum TableBody {
    Table,
}

impl Default for PrinciplesBody {
    fn default() -> Self {
        Self::These(PrincipleList::default())
    }
}

impl PrinciplesBody {
    /// Returns the principles to judge by. Principles with weight 0 in the table are left out, unless the call sets their weight.
    fn asked(&self, table: &VersionedTable) -> Result<Vec<WeightedPrinciple>, ApiError> {
        let VersionedTable { version, table } = table;
        let asked = match self {
            Self::Table(_) => WeightedPrinciple::of_table(table),
            Self::These(PrincipleList(principles)) if principles.is_empty() => {
                return Ok(Vec::new());
            }
            Self::These(PrincipleList(principles)) if principles.len() > MAX_PRINCIPLES => {
                return Err(ApiError::invalid(
                    "principles",
                    format!("must be at most {MAX_PRINCIPLES}, not {}", principles.len()),
                ));
            }
            Self::These(PrincipleList(principles)) => {
                let asked = principles.iter().map(|principle| principle.asked(table));
                asked
                    .filter_map(Result::transpose)
                    .collect::<Result<_, _>>()?
            }
        };
        match asked.is_empty() {
            true => Err(ApiError::invalid(
                "principles",
                format!("has no principle with a weight above 0 in version {version} of the table"),
            )),
            false => Ok(asked),
        }
    }
}

impl PrincipleBody {
    /// Returns the principle to judge by; `None` if its weight is 0.
    fn asked(&self, table: &PrincipleTable) -> Result<Option<WeightedPrinciple>, ApiError> {
        let (name, weight) = match self {
            Self::Plain(name) => (name, None),
            Self::Weighted(body) => (&body.principle, body.weight),
        };
        if name.trim().is_empty() {
            return Err(ApiError::invalid("principles", "must not be empty"));
        }
        if name.len() > MAX_PRINCIPLE_BYTES {
            let message = format!(
                "must be of at most {MAX_PRINCIPLE_BYTES} bytes each, not {}",
                name.len()
            );
            return Err(ApiError::invalid("principles", message));
        }
        if weight.is_some_and(|weight| !WEIGHTS.contains(&weight)) {
            return Err(ApiError::invalid(
                "principles",
                "has a weight that is not from 1e-6 to 1e6",
            ));
        }
        let mut asked = WeightedPrinciple::named(table, name);
        if let Some(weight) = weight {
            asked.weight = weight as f32;
        }
        Ok((asked.weight > 0.0).then_some(asked))
    }
}

/// The orders in which the judge reads a pair.
#[derive(Debug, Clone, Copy, Default, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum OrdersBody {
    /// Both, averaged.
    #[default]
    Both,
    /// As given: half the cost, and the verdict includes the judge's position bias.
    Given,
}

/// The winner of a pair whose orders disagree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum OnDisagreementBody {
    /// The answer with the higher mean probability.
    Average,
    /// None: `winner` is null, and in a tournament the pair is a tie.
    Undecided,
}

impl From<OnDisagreementBody> for OnDisagreement {
    fn from(body: OnDisagreementBody) -> Self {
        match body {
            OnDisagreementBody::Average => Self::Average,
            OnDisagreementBody::Undecided => Self::Undecided,
        }
    }
}

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
    pub orders: OrdersBody,
    /// The winner of a pair whose two orders disagree; by default the server's setting (`--on-disagreement`,
    /// `average`).
    pub on_disagreement: Option<OnDisagreementBody>,
    /// The bracket of a tournament; by default `single_elimination`.
    pub bracket: Option<BracketBody>,
    /// Seed of the tournament's draw; without effect in a round robin. By default 0.
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
        matches!(principles, PrinciplesBody::These(PrincipleList(these)) if these.is_empty())
            && matches!(orders, OrdersBody::Both)
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
        if self.on_disagreement.is_some() && matches!(self.orders, OrdersBody::Given) {
            return Err(ApiError::invalid(
                "on_disagreement",
                "has no meaning with `\"orders\": \"given\"`: one order cannot disagree with itself",
            ));
        }
        Ok(JudgeTask {
            context,
            principles: self.principles.asked(table)?,
            orders: match self.orders {
                OrdersBody::Both => Orders::Both,
                OrdersBody::Given => Orders::Given,
            },
            on_disagreement: self
                .on_disagreement
                .map_or(on_disagreement, OnDisagreement::from),
            weights: None,
            turn,
        })
    }
}

/// Checks the number of forward passes of `brackets` tournaments with the given number of candidates; `param` names the candidates.
///
/// # Errors
/// Names the parameters that make the number too large.
pub fn check_reads(
    param: &str,
    task: &JudgeTask,
    method: Method,
    candidates: usize,
    brackets: usize,
) -> Result<(), ApiError> {
    let each = comparisons(method, candidates);
    let (orders, principles) = (task.orders.reads().len(), task.principles.len().max(1));
    let reads = each.saturating_mul(task.reads()).saturating_mul(brackets);
    if reads <= MAX_READS {
        return Ok(());
    }
    let of_prompts = match brackets {
        1 => String::new(),
        _ => format!(" for each of {brackets} prompts"),
    };
    Err(ApiError::invalid(
        param,
        format!(
            "{candidates} candidates take {each} comparisons{of_prompts}, in {orders} orders and under {principles} principles: {reads} \
             judge reads, which exceeds the limit of {MAX_READS} per call"
        ),
    ))
}

/// Returns the maximum number of comparisons in a tournament of `n` candidates; `n` is at least 1.
fn comparisons(method: Method, n: usize) -> usize {
    match method {
        Method::Knockout => n - 1,
        Method::RoundRobin => n.saturating_mul(n - 1) / 2,
        Method::Ring { pivots } => n.saturating_mul(1 + pivots),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use judge::Polarity;

    fn task(orders: Orders, principles: usize) -> JudgeTask {
        let principle = WeightedPrinciple {
            name: String::new(),
            text: String::new(),
            polarity: Polarity::Encourage,
            weight: 1.0,
            listed: false,
        };
        JudgeTask {
            context: Vec::new(),
            principles: vec![principle; principles],
            orders,
            on_disagreement: OnDisagreement::default(),
            weights: None,
            turn: Turn::now(),
        }
    }

    #[test]
    fn reads_are_comparisons_times_orders_times_principles() {
        let allowed = |orders, principles, method, candidates, brackets| {
            check_reads(
                "candidates",
                &task(orders, principles),
                method,
                candidates,
                brackets,
            )
            .is_ok()
        };
        let (both, given) = (Orders::Both, Orders::Given);
        // Without principles the template's own question counts as one.
        for principles in [0, 1] {
            assert!(allowed(both, principles, Method::Knockout, 20_001, 1));
            assert!(!allowed(both, principles, Method::Knockout, 20_002, 1));
            assert!(allowed(given, principles, Method::Knockout, 40_001, 1));
        }
        assert!(allowed(both, 64, Method::Knockout, 313, 1));
        assert!(!allowed(both, 64, Method::Knockout, 314, 1));
        assert!(allowed(both, 1, Method::RoundRobin, 200, 1));
        assert!(!allowed(both, 1, Method::RoundRobin, 201, 1));
        assert!(!allowed(both, 1, Method::RoundRobin, 200, 2));
        assert!(!allowed(both, 2, Method::RoundRobin, 200, 1));
        assert!(allowed(given, 1, Method::Ring { pivots: 3 }, 10_000, 1));
        assert!(!allowed(given, 1, Method::RoundRobin, usize::MAX, 1));
    }
}
