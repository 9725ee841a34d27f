//! The specification of a text's form, and its translation for llguidance.

use llguidance::api::TopLevelGrammar;
use serde_json::{Value, json};

use super::GrammarError;
use super::calls::CallGrammar;
use super::schema::prepare;

/// The specification of a text's form.
#[derive(Debug, Clone, PartialEq)]
pub enum GrammarSpec {
    /// JSON of this schema, with properties in the schema's order. Parts that llguidance does not support (`oneOf` of overlapping
    /// alternatives, for example) are errors, not ignored.
    JsonSchema(Value),
    /// JSON of this schema, without the parts that llguidance does not support: [`Grammar::warnings`](super::Grammar::warnings) lists
    /// them.
    LooseJsonSchema(Value),
    /// Any JSON object.
    JsonObject,
    /// Text that matches this expression as a whole, in the syntax of Rust's `regex` without look-around and anchors.
    Regex(String),
    /// A grammar in llguidance's dialect of Lark.
    Lark(String),
    /// One of these texts.
    Choice(Vec<String>),
    /// Tool calls.
    Calls(CallGrammar),
}

/// Size limit of the source, in bytes.
const MOST_BYTES: usize = 256 << 10;

/// Limit on the number of texts to choose from.
const MAX_CHOICES: usize = 5000;

/// Limit on the nesting of brackets. llguidance parses recursively.
const MOST_NESTED: usize = 128;

/// White space between the parts of JSON: as much as any usual indentation, but limited, because small models tend to repeat it
/// endlessly.
const JSON_SPACE: &str = r"[\x20\x0A\x0D\x09]{1,40}";

impl GrammarSpec {
    /// Returns the specification in llguidance's form.
    pub(super) fn to_llguidance(&self) -> Result<TopLevelGrammar, GrammarError> {
        let bytes = self.source_bytes();
        if bytes > MOST_BYTES {
            return Err(GrammarError::TooLong {
                bytes,
                most: MOST_BYTES,
            });
        }
        match self {
            Self::JsonSchema(schema) => {
                Ok(json_schema(prepare(schema.clone(), MOST_BYTES)?, false))
            }
            Self::LooseJsonSchema(schema) => {
                Ok(json_schema(prepare(schema.clone(), MOST_BYTES)?, true))
            }
            Self::JsonObject => Ok(json_schema(json!({"type": "object"}), false)),
            Self::Regex(regex) => {
                check_nesting(regex)?;
                Ok(TopLevelGrammar::from_regex(regex))
            }
            Self::Lark(grammar) => {
                check_nesting(grammar)?;
                Ok(TopLevelGrammar::from_lark(grammar.clone()))
            }
            Self::Calls(calls) => Ok(TopLevelGrammar::from_lark(calls.lark(MOST_BYTES)?)),
            Self::Choice(choices) if choices.is_empty() => Err(GrammarError::NoChoice),
            Self::Choice(choices) if choices.len() > MAX_CHOICES => {
                Err(GrammarError::TooManyChoices {
                    choices: choices.len(),
                    most: MAX_CHOICES,
                })
            }
            Self::Choice(choices) => Ok(TopLevelGrammar::from_lark(one_of(choices))),
        }
    }

    /// Returns the specification with every part required, if this one allows parts to be ignored.
    pub(super) fn whole(&self) -> Option<Self> {
        match self {
            Self::LooseJsonSchema(schema) => Some(Self::JsonSchema(schema.clone())),
            Self::Calls(calls) if calls.is_loose() => Some(Self::Calls(calls.whole())),
            _ => None,
        }
    }

    pub(super) fn source_bytes(&self) -> usize {
        match self {
            Self::JsonSchema(schema) | Self::LooseJsonSchema(schema) => schema.to_string().len(),
            Self::JsonObject => 0,
            Self::Regex(text) | Self::Lark(text) => text.len(),
            Self::Choice(choices) => choices.iter().map(|choice| choice.len() + 3).sum(),
            Self::Calls(calls) => calls.source_bytes(),
        }
    }
}

/// Builds a JSON grammar; `loose` ignores what llguidance does not support.
fn json_schema(mut schema: Value, loose: bool) -> TopLevelGrammar {
    if let Some(fields) = schema.as_object_mut() {
        let options = || json!({"whitespace_pattern": JSON_SPACE});
        let options = fields.entry("x-guidance").or_insert_with(options);
        if let Some(options) = options.as_object_mut().filter(|_| loose) {
            options.insert("lenient".to_owned(), Value::Bool(true));
        }
    }
    TopLevelGrammar::from_json_schema(schema)
}

/// Returns a Lark grammar for one of `choices`, with one rule for each prefix that several choices share. llguidance examines every
/// alternative of a rule for every byte, and this limits the alternatives to one per possible next character.
fn one_of(choices: &[String]) -> String {
    let mut sorted: Vec<&str> = choices.iter().map(String::as_str).collect();
    sorted.sort_unstable();
    sorted.dedup();
    let mut grammar = String::from("start: r0\n");
    // For each rule still to write: its range of choices, and the length in bytes of their shared prefix, which is already matched.
    let mut rules = vec![(0, sorted.len(), 0)];
    let mut at = 0;
    while let Some(&(start, end, read)) = rules.get(at) {
        let mut alternatives = Vec::new();
        // A choice that ends here is the first of those that begin with it.
        let ends = sorted[start].len() == read;
        let mut from = start + usize::from(ends);
        while from < end {
            let first = sorted[from];
            let next = first[read..].chars().next();
            let same = |choice: &&str| choice[read..].chars().next() == next;
            let to = from + sorted[from..end].partition_point(same);
            let shared = read + shared_bytes(&first[read..], &sorted[to - 1][read..]);
            // A string literal of Lark has the syntax of JSON.
            let mut alternative = json!(first[read..shared]).to_string();
            if to - from > 1 {
                alternative.push_str(&format!(" r{}", rules.len()));
                rules.push((from, to, shared));
            }
            alternatives.push(alternative);
            from = to;
        }
        let alternatives = alternatives.join(" | ");
        let rule = match (ends, alternatives.is_empty()) {
            (true, true) => format!("r{at}: \"\"\n"),
            (true, false) => format!("r{at}: ({alternatives})?\n"),
            (false, _) => format!("r{at}: {alternatives}\n"),
        };
        grammar.push_str(&rule);
        at += 1;
    }
    grammar
}

/// Returns the length in bytes of the common prefix of both texts.
fn shared_bytes(a: &str, b: &str) -> usize {
    let both = a.chars().zip(b.chars());
    both.take_while(|(a, b)| a == b)
        .map(|(a, _)| a.len_utf8())
        .sum()
}

/// Counts every bracket, including those in strings and classes: a bound, not a parse.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_that_begin_alike_share_a_rule() {
        let grammar = |choices: &[&str]| {
            let choices: Vec<String> = choices.iter().map(|&choice| choice.into()).collect();
            one_of(&choices)
        };
        assert_eq!(grammar(&["b", "a", "b"]), "start: r0\nr0: \"a\" | \"b\"\n");
        assert_eq!(
            grammar(&["abc", "abd", "ab", "x\"é", "x\"è"]),
            "start: r0\nr0: \"ab\" r1 | \"x\\\"\" r2\nr1: (\"c\" | \"d\")?\nr2: \"è\" | \"é\"\n"
        );
        assert_eq!(grammar(&[""]), "start: r0\nr0: \"\"\n");
        assert_eq!(grammar(&["", "a"]), "start: r0\nr0: (\"a\")?\n");
    }
}
