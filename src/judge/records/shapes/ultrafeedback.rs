//! UltraFeedback's records (Cui et al. 2023, arXiv 2310.01377): an instruction, and completions with annotations for each aspect.

use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

use super::{ShapeError, id, take};
use crate::records::ultrafeedback::{RankedPrompt, RankedResponse, Rating, principle_of};

#[derive(Deserialize)]
struct Completion {
    response: String,
    #[serde(default)]
    custom_system_prompt: Option<String>,
    annotations: Map<String, Value>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Annotation {
    #[serde(deserialize_with = "rating")]
    rating: Option<f64>,
    #[serde(default)]
    rationale: Option<String>,
    /// The reason for the rating; present if `rationale` only classifies.
    #[serde(default, rename = "Rationale For Rating")]
    rationale_for_rating: Option<String>,
}

/// Reads a number, a number in a string, or "N/A".
fn rating<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<f64>, D::Error> {
    let value = Value::deserialize(deserializer)?;
    let rating = match &value {
        Value::Null => return Ok(None),
        Value::String(text) if text.trim() == "N/A" => return Ok(None),
        Value::String(text) => text.trim().parse().ok(),
        other => other.as_f64(),
    };
    match rating.filter(|rating| rating.is_finite()) {
        Some(rating) => Ok(Some(rating)),
        None => Err(serde::de::Error::custom(format!(
            "{value} is neither a rating nor \"N/A\""
        ))),
    }
}

pub(super) fn read(record: &mut Map<String, Value>) -> Result<RankedPrompt, ShapeError> {
    let completions: Vec<Completion> = take(record, "completions")?;
    Ok(RankedPrompt {
        id: id(record),
        instruction: take(record, "instruction")?,
        responses: completions
            .into_iter()
            .map(response)
            .collect::<Result<_, _>>()?,
    })
}

fn response(completion: Completion) -> Result<RankedResponse, ShapeError> {
    let ratings = completion.annotations.into_iter().map(|(aspect, value)| {
        let annotation: Annotation =
            serde_json::from_value(value).map_err(|error| ShapeError::Field {
                key: "completions",
                problem: format!("have an annotation `{aspect}` that cannot be read: {error}"),
            })?;
        // Joined with a space, as in the released code.
        let parts = [annotation.rationale, annotation.rationale_for_rating];
        let texts: Vec<String> = parts.into_iter().flatten().collect();
        Ok(Rating {
            principle: principle_of(&aspect).to_owned(),
            rating: annotation.rating,
            rationale: (!texts.is_empty()).then(|| texts.join(" ")),
        })
    });
    Ok(RankedResponse {
        ratings: ratings.collect::<Result<_, _>>()?,
        text: completion.response,
        system: completion
            .custom_system_prompt
            .filter(|text| !text.is_empty()),
    })
}
