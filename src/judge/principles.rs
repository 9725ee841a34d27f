//! The table of principles under which answers are compared.
//!
//! SALMON (arXiv 2310.05910) keeps each principle with a negated definition, a weight and, against reward hacking, a few prohibitions
//! that are always on. A table is TOML with one `[[principle]]` per entry; the built-in one is `principles.toml` beside this file.

use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer, Serialize};
use utoipa::ToSchema;

/// Whether the text describes the better answer or the worse one. In the latter case its verdict is inverted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[schema(as = PolarityBody)]
pub enum Polarity {
    #[default]
    Encourage,
    Forbid,
}

/// A principle of the table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = TablePrinciple)]
pub struct Principle {
    /// The id of the principle in calls and records.
    #[schema(min_length = 1)]
    pub id: String,
    /// The text that the judge reads.
    #[schema(min_length = 1)]
    pub text: String,
    /// The opposite of the text, for prompts that list several principles and for contrasts in training.
    // The negated definition, under which the verdict flips (SALMON's negation).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub negative: Option<String>,
    /// The weight of its verdict: 0 (never judged), or from 1e-6 to 1e6.
    #[serde(default = "one", deserialize_with = "weight_or_one")]
    #[schema(minimum = 0, maximum = 1000000)]
    pub weight: f64,
    /// Whether the text describes the better answer or the worse one; by default `encourage`.
    #[serde(default, deserialize_with = "null_is_default")]
    pub polarity: Polarity,
    /// Whether every pair for training is judged by it, besides the principles that the learner's settings name; never with weight 0.
    /// Calls that name principles are judged by those alone.
    #[serde(default, deserialize_with = "null_is_default")]
    pub always: bool,
}

/// A principle and the weight of its verdict among the others'.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WeightedPrinciple {
    /// The name of the principle in verdicts.
    pub name: String,
    /// The text in the judge's prompt.
    pub text: String,
    /// Whether the text is true of the better answer or of the worse one.
    pub polarity: Polarity,
    /// Greater than 0.
    pub weight: f32,
    /// Whether the principle is from the server's table and not a text of the call.
    #[serde(default)]
    pub listed: bool,
}

impl WeightedPrinciple {
    /// Returns the principles of a table whose weight is greater than 0; the others are not judged.
    pub fn of_table(table: &PrincipleTable) -> Vec<Self> {
        let asked = table.iter().filter(|principle| principle.weight > 0.0);
        asked.map(Self::from).collect()
    }
}

impl WeightedPrinciple {
    /// Returns the principle with this name, or one of weight 1 with this text if the table has none.
    pub fn named(table: &PrincipleTable, name_or_text: &str) -> Self {
        let listed = table.get(name_or_text).map(Self::from);
        listed.unwrap_or_else(|| Self {
            name: name_or_text.to_owned(),
            text: name_or_text.to_owned(),
            polarity: Polarity::Encourage,
            weight: 1.0,
            listed: false,
        })
    }
}

impl From<&Principle> for WeightedPrinciple {
    fn from(principle: &Principle) -> Self {
        Self {
            name: principle.id.clone(),
            text: principle.text.clone(),
            polarity: principle.polarity,
            weight: principle.weight as f32,
            listed: true,
        }
    }
}

/// The permitted weights other than 0. Any sum of them is finite and can be a divisor.
pub const WEIGHTS: RangeInclusive<f64> = 1e-6..=1e6;

fn one() -> f64 {
    1.0
}

fn weight_or_one<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_else(one))
}

/// Deserializes a value for which null, as JSON has it, means the default.
fn null_is_default<'de, T: Deserialize<'de> + Default, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// An error in reading a principle table.
#[derive(Debug, thiserror::Error)]
pub enum PrincipleError {
    #[error("{path}: {source}")]
    Io {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("principle table: {0}")]
    Toml(#[from] settings::SettingsError),
    #[error("principle table: duplicate id `{0}`")]
    Duplicate(String),
    #[error("principle table: `{id}` {problem}")]
    Invalid { id: String, problem: &'static str },
}

/// The principles of a table, in the order of their file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PrincipleTable {
    #[serde(rename = "principle", default)]
    principles: Vec<Principle>,
}

impl Principle {
    /// Returns a statement that is true of the better answer; none for a forbidden principle without a `negative`.
    fn praise(&self) -> Option<&str> {
        match self.polarity {
            Polarity::Encourage => Some(&self.text),
            Polarity::Forbid => self.negative.as_deref(),
        }
    }

    /// Returns a statement that is true of the worse answer, if there is one.
    fn blame(&self) -> Option<&str> {
        match self.polarity {
            Polarity::Encourage => self.negative.as_deref(),
            Polarity::Forbid => Some(&self.text),
        }
    }
}

impl Default for PrincipleTable {
    fn default() -> Self {
        Self::from_toml(include_str!("principles.toml"))
            .expect("the built-in table is valid, this is a bug")
    }
}

impl PrincipleTable {
    /// Makes a table.
    ///
    /// # Errors
    /// Errors with [`PrincipleError`] if two principles have the same name, or one has an empty name, an empty text or a weight out of
    /// range.
    pub fn new(principles: Vec<Principle>) -> Result<Self, PrincipleError> {
        for (at, principle) in principles.iter().enumerate() {
            let invalid = |problem| PrincipleError::Invalid {
                id: principle.id.clone(),
                problem,
            };
            if principle.id.trim().is_empty() {
                return Err(invalid("has an empty id"));
            }
            if principle.text.trim().is_empty() {
                return Err(invalid("has an empty text"));
            }
            if principle.weight != 0.0 && !WEIGHTS.contains(&principle.weight) {
                return Err(invalid("must have weight 0 or a weight from 1e-6 to 1e6"));
            }
            if principles[..at]
                .iter()
                .any(|other| other.id == principle.id)
            {
                return Err(PrincipleError::Duplicate(principle.id.clone()));
            }
        }
        Ok(Self { principles })
    }

    /// Parses a table.
    ///
    /// # Errors
    /// Errors with [`PrincipleError`] if the text is not a valid table.
    pub fn from_toml(text: &str) -> Result<Self, PrincipleError> {
        let table: Self = settings::parse(text)?;
        Self::new(table.principles)
    }

    /// Reads a table from a file.
    ///
    /// # Errors
    /// Errors if the file cannot be read or is not a valid table.
    pub fn from_file(path: &Path) -> Result<Self, PrincipleError> {
        let text = files::read_settings(path).map_err(|source| PrincipleError::Io {
            path: path.to_owned(),
            source,
        })?;
        Self::from_toml(&text)
    }

    pub fn get(&self, id: &str) -> Option<&Principle> {
        self.principles.iter().find(|principle| principle.id == id)
    }

    pub fn iter(&self) -> impl Iterator<Item = &Principle> {
        self.principles.iter()
    }

    /// Returns the text that a prompt shows for a name or text: the principle's statement about the better answer, or the given text if
    /// no principle has that name. A forbidden principle without a `negative` is shown by its `text`: the caller then has to invert the
    /// verdict.
    pub fn text<'a>(&'a self, name_or_text: &'a str) -> &'a str {
        self.get(name_or_text).map_or(name_or_text, |principle| {
            principle.praise().unwrap_or(&principle.text)
        })
    }

    /// Returns the negated text for a name or a text of the table.
    pub fn negative<'a>(&'a self, name_or_text: &str) -> Option<&'a str> {
        self.get(name_or_text)
            .or_else(|| {
                self.principles
                    .iter()
                    .find(|principle| principle.praise() == Some(name_or_text))
            })?
            .blame()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_table_has_negations_and_three_prohibitions() {
        let table = PrincipleTable::default();
        assert!(table.iter().count() >= 14);
        assert!(table.iter().all(|principle| principle.negative.is_some()));
        let forbidden: Vec<_> = table
            .iter()
            .filter(|principle| principle.polarity == Polarity::Forbid)
            .collect();
        assert_eq!(forbidden.len(), 3);
        assert!(forbidden.iter().all(|principle| principle.always));
        // `text` states the forbidden behaviour; prompts that list principles show the statement about the better answer instead.
        assert!(forbidden.iter().all(|p| {
            table.text(&p.id).contains("must") && table.negative(&p.id) == Some(&p.text)
        }));
        let again = PrincipleTable::from_toml(&toml::to_string(&table).unwrap()).unwrap();
        assert_eq!(again, table);
    }

    #[test]
    fn names_resolve_and_texts_stand_for_themselves() {
        let table = PrincipleTable::from_toml(
            "[[principle]]\nid = 'brief'\ntext = 'Short.'\nnegative = 'Long.'\n[[principle]]\nid = 'x'\ntext = 'X.'",
        )
        .unwrap();
        assert_eq!(table.text("brief"), "Short.");
        assert_eq!(table.text("Be kind."), "Be kind.");
        assert_eq!(table.negative("brief"), Some("Long."));
        assert_eq!(table.negative("Short."), Some("Long."));
        assert_eq!(table.negative("x"), None);
        assert_eq!(table.negative("Be kind."), None);
    }

    #[test]
    fn broken_tables_are_refused() {
        let entry = |body: &str| PrincipleTable::from_toml(&format!("[[principle]]\n{body}"));
        assert!(matches!(
            entry("id = 'a'\ntext = 't'\n[[principle]]\nid = 'a'\ntext = 'u'"),
            Err(PrincipleError::Duplicate(id)) if id == "a"
        ));
        assert!(matches!(entry("id = 'a'"), Err(PrincipleError::Toml(_))));
        assert!(matches!(
            entry("id = 'a'\ntext = 't'\nwieght = 1"),
            Err(PrincipleError::Toml(_))
        ));
        for body in [
            "id = ''\ntext = 't'",
            "id = 'a'\ntext = ' '",
            "id = 'a'\ntext = 't'\nweight = -1.0",
            "id = 'a'\ntext = 't'\nweight = nan",
        ] {
            assert!(
                matches!(entry(body), Err(PrincipleError::Invalid { .. })),
                "{body}"
            );
        }
    }
}
