//! What a text shall be like, in words that llguidance compiles.

use llguidance::api::TopLevelGrammar;
use serde_json::{Value, json};

use super::GrammarError;

/// What a text shall be like.
#[derive(Debug, Clone, PartialEq)]
pub enum GrammarSpec {
    /// JSON of this schema, properties in the schema's order. What llguidance cannot keep (`oneOf` of alternatives that overlap,
    /// for one) is refused, not ignored.
    JsonSchema(Value),
    /// Any JSON object.
    JsonObject,
    /// All of the text matches this expression, in the syntax of Rust's `regex` without look-around and anchors.
    Regex(String),
    /// A grammar in llguidance's dialect of Lark.
    Lark(String),
    /// One of these texts.
    Choice(Vec<String>),
}

/// Longest source, in bytes.
const MOST_BYTES: usize = 256 << 10;

/// Most texts to choose from.
const MAX_CHOICES: usize = 5000;

/// Deepest nesting of brackets. llguidance parses recursively.
const MOST_NESTED: usize = 128;

/// White space between the parts of JSON: as much as anyone indents, but not without end, which small models fall for.
const JSON_SPACE: &str = r"[\x20\x0A\x0D\x09]{1,40}";

impl GrammarSpec {
    /// The same in llguidance's words.
    pub(super) fn to_llguidance(&self) -> Result<TopLevelGrammar, GrammarError> {
        let bytes = self.source_bytes();
        if bytes > MOST_BYTES {
            return Err(GrammarError::TooLong {
                bytes,
                most: MOST_BYTES,
            });
        }
        match self {
            Self::JsonSchema(schema) => Ok(json_schema(schema.clone())),
            Self::JsonObject => Ok(json_schema(json!({"type": "object"}))),
            Self::Regex(regex) => {
                check_nesting(regex)?;
                Ok(TopLevelGrammar::from_regex(regex))
            }
            Self::Lark(grammar) => {
                check_nesting(grammar)?;
                Ok(TopLevelGrammar::from_lark(grammar.clone()))
            }
            Self::Choice(choices) if choices.is_empty() => Err(GrammarError::NoChoice),
            Self::Choice(choices) if choices.len() > MAX_CHOICES => {
                Err(GrammarError::TooManyChoices {
                    choices: choices.len(),
                    most: MAX_CHOICES,
                })
            }
            Self::Choice(choices) => {
                // A string of Lark is one of JSON.
                let choices: Vec<String> = choices.iter().map(|c| json!(c).to_string()).collect();
                let grammar = format!("start: {}", choices.join(" | "));
                Ok(TopLevelGrammar::from_lark(grammar))
            }
        }
    }

    fn source_bytes(&self) -> usize {
        match self {
            Self::JsonSchema(schema) => schema.to_string().len(),
            Self::JsonObject => 0,
            Self::Regex(text) | Self::Lark(text) => text.len(),
            Self::Choice(choices) => choices.iter().map(|choice| choice.len() + 3).sum(),
        }
    }
}

fn json_schema(mut schema: Value) -> TopLevelGrammar {
    if let Some(fields) = schema.as_object_mut() {
        let options = || json!({"whitespace_pattern": JSON_SPACE});
        fields.entry("x-guidance").or_insert_with(options);
    }
    TopLevelGrammar::from_json_schema(schema)
}

/// Counts every bracket, those in strings and classes too: a bound, not a parse.
fn check_nesting(source: &str) -> Result<(), GrammarError> {
    let mut depth = 0usize;
    for byte in source.bytes() {
        match byte {
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > MOST_NESTED {
            return Err(GrammarError::TooDeep(MOST_NESTED));
        }
    }
    Ok(())
}
