//! What a text shall be like, in words that llguidance compiles.

use llguidance::api::TopLevelGrammar;
use serde_json::{Value, json};

use super::GrammarError;
use super::calls::CallGrammar;
use super::schema::prepare;

/// What a text shall be like.
#[derive(Debug, Clone, PartialEq)]
pub enum GrammarSpec {
    /// JSON of this schema, properties in the schema's order. What llguidance cannot keep (`oneOf` of alternatives that overlap,
    /// for one) is refused, not ignored.
    JsonSchema(Value),
    /// JSON of this schema, without what llguidance cannot keep: [`Grammar::warnings`](super::Grammar::warnings) names that.
    LooseJsonSchema(Value),
    /// Any JSON object.
    JsonObject,
    /// All of the text matches this expression, in the syntax of Rust's `regex` without look-around and anchors.
    Regex(String),
    /// A grammar in llguidance's dialect of Lark.
    Lark(String),
    /// One of these texts.
    Choice(Vec<String>),
    /// Calls of tools.
    Calls(CallGrammar),
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

    /// Returns the spec of which nothing may be left out, where this one allows it.
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

/// `loose` leaves out what llguidance cannot keep.
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

/// A grammar of Lark for one of `choices`: a rule for each text with which several of them begin. llguidance looks at every
/// alternative of a rule for every byte, and here they are no more than there are characters to go on with.
fn one_of(choices: &[String]) -> String {
    let mut sorted: Vec<&str> = choices.iter().map(String::as_str).collect();
    sorted.sort_unstable();
    sorted.dedup();
    let mut grammar = String::from("start: r0\n");
    // The choices of each rule that is to be written, and the bytes that they share and that have been read.
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
            // A string of Lark is one of JSON.
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

/// Bytes of the characters with which both texts begin.
fn shared_bytes(a: &str, b: &str) -> usize {
    let both = a.chars().zip(b.chars());
    both.take_while(|(a, b)| a == b)
        .map(|(a, _)| a.len_utf8())
        .sum()
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
