//! Fields of OpenAI's and vLLM's APIs that have no effect here.
//!
//! Clients send such fields with every call: as null, as an empty value, as the documented default, or with values that cannot change an
//! answer. They are removed from a body before it is parsed. A field that requests a change stays, so a route that does not support it
//! refuses it by name.

mod tables;

use std::collections::BTreeSet;

use serde_json::{Map, Value};

/// The values, besides null, for which a field has no effect.
#[derive(Debug, Clone, Copy)]
pub enum Neutral {
    /// One of these values, written as JSON.
    At(&'static [&'static str]),
    /// Any value of this kind, because it cannot change an answer.
    Any(Kind),
}

/// A kind of JSON value.
#[derive(Debug, Clone, Copy)]
pub enum Kind {
    Text,
    Bool,
    Number,
    Object,
    Value,
}

/// A field and its rule.
pub type Row = (&'static str, Neutral);

use Neutral::{Any, At};

pub use tables::*;

impl Neutral {
    /// Returns the values without effect, as the end of a sentence about a field that has another one.
    pub fn accepted(self) -> String {
        let values: Vec<&str> = match self {
            At(values) => std::iter::once("null")
                .chain(values.iter().copied())
                .collect(),
            Any(Kind::Text) => vec!["null", "a text"],
            Any(Kind::Bool) => vec!["null", "true", "false"],
            Any(Kind::Number) => vec!["null", "a number"],
            Any(Kind::Object) => vec!["null", "an object"],
            Any(Kind::Value) => Vec::new(),
        };
        match values.as_slice() {
            [] => String::new(),
            values => format!(", or give {}", values.join(" or ")),
        }
    }

    /// Returns whether a field with this value has no effect.
    fn holds(self, value: &Value) -> bool {
        match self {
            _ if value.is_null() => true,
            At(values) => values
                .iter()
                .any(|text| serde_json::from_str::<Value>(text).is_ok_and(|known| known == *value)),
            Any(Kind::Text) => value.is_string(),
            Any(Kind::Bool) => value.is_boolean(),
            Any(Kind::Number) => value.is_number(),
            Any(Kind::Object) => value.is_object(),
            Any(Kind::Value) => true,
        }
    }
}

/// Removes the fields of `tables` that have no effect from an object.
pub fn strip(object: &mut Map<String, Value>, tables: &[&[Row]]) {
    object.retain(|name, value| {
        let mut rows = tables.iter().copied().flatten();
        !rows.any(|(field, neutral)| field == name && neutral.holds(value))
    });
}

/// Removes fields without effect from a body that generates, including its messages.
pub fn strip_body(body: &mut Map<String, Value>) {
    let own = match body.contains_key("messages") {
        true => CHAT,
        false => COMPLETION,
    };
    strip(body, &[BODY, VLLM, own]);
    if !body.contains_key("tools") {
        strip(body, &[NO_TOOLS]);
    }
    if let Some(Value::Object(options)) = body.get_mut("stream_options") {
        strip(options, &[STREAM_OPTIONS]);
        if options.is_empty() {
            body.remove("stream_options");
        }
    }
    if let Some(Value::Object(fields)) = body.get_mut("structured_outputs") {
        strip(fields, &[STRUCTURED]);
    }
    strip_messages(body);
}

/// Removes fields without effect from a body of `/v1/decisions`, which samples nothing. `sampling` holds the names of the sampling
/// parameters of other routes.
pub fn strip_decisions(body: &mut Map<String, Value>, sampling: &BTreeSet<String>) {
    body.retain(|name, value| !(value.is_null() && sampling.contains(name)));
    strip(body, &[BODY, VLLM, NO_TOOLS, CHAT, DECISIONS]);
    strip_list(body, "input");
}

/// Removes fields without effect from the messages of a body.
pub fn strip_messages(body: &mut Map<String, Value>) {
    strip_list(body, "messages");
}

fn strip_list(body: &mut Map<String, Value>, field: &str) {
    let Some(Value::Array(messages)) = body.get_mut(field) else {
        return;
    };
    for message in messages.iter_mut().filter_map(Value::as_object_mut) {
        strip(message, &[MESSAGE]);
        if message.get("role").is_none_or(|role| role != "tool") {
            strip(message, &[SPEAKER]);
        }
        if let Some(Value::Array(calls)) = message.get_mut("tool_calls") {
            for call in calls.iter_mut().filter_map(Value::as_object_mut) {
                strip(call, &[CALL]);
                if let Some(Value::Object(function)) = call.get_mut("function") {
                    strip(function, &[CALLED]);
                }
            }
        }
        let answered = message.get("role").is_some_and(|role| role == "assistant");
        match message.get_mut("content") {
            // An answer without text, as returned by OpenAI's API.
            Some(content @ Value::Null) if answered => *content = Value::String(String::new()),
            Some(Value::Array(parts)) => {
                for part in parts.iter_mut().filter_map(Value::as_object_mut) {
                    strip(part, &[PART]);
                }
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Returns a value of another kind than any neutral one.
    fn asking(neutral: Neutral) -> Option<Value> {
        match neutral {
            At(_) => Some(json!({"asks": "for something"})),
            Any(Kind::Text | Kind::Bool | Kind::Number) => Some(json!([1])),
            Any(Kind::Object) => Some(json!("text")),
            Any(Kind::Value) => None,
        }
    }

    fn neutral_values(neutral: Neutral) -> Vec<Value> {
        let texts: &[&str] = match neutral {
            At(values) => values,
            Any(Kind::Text) => &["\"\"", "\"abc\""],
            Any(Kind::Bool) => &["true", "false"],
            Any(Kind::Number) => &["0", "7"],
            Any(Kind::Object) => &["{}", "{\"a\": 1}"],
            Any(Kind::Value) => &["7", "{}", "[]"],
        };
        let values = texts.iter().map(|text| serde_json::from_str(text).unwrap());
        values.chain([Value::Null]).collect()
    }

    #[test]
    fn every_row_lets_its_neutral_values_go_and_keeps_others() {
        for table in [
            BODY,
            VLLM,
            DECISIONS,
            NO_TOOLS,
            CHAT,
            COMPLETION,
            STREAM_OPTIONS,
            STRUCTURED,
            MESSAGE,
            SPEAKER,
            CALL,
            CALLED,
            PART,
        ] {
            for &(name, neutral) in table {
                for value in neutral_values(neutral) {
                    let mut object = Map::from_iter([(name.to_owned(), value.clone())]);
                    strip(&mut object, &[table]);
                    assert!(object.is_empty(), "{name}: {value}");
                }
                if let Some(value) = asking(neutral) {
                    let mut object = Map::from_iter([(name.to_owned(), value.clone())]);
                    strip(&mut object, &[table]);
                    assert_eq!(object.get(name), Some(&value));
                }
            }
            let mut names: Vec<&str> = table.iter().map(|(name, _)| *name).collect();
            names.sort_unstable();
            names.dedup();
            assert_eq!(names.len(), table.len(), "a field has one rule");
        }
    }

    #[test]
    fn tables_are_used_where_their_fields_are() {
        let mut body = json!({
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}}]},
                {"role": "assistant", "content": null, "refusal": null, "tool_calls": []},
                {"role": "user", "content": null, "name": "alice"}
            ],
            "store": true, "user": "u", "add_special_tokens": true,
            "stream_options": {"include_usage": null, "include_obfuscation": false}
        });
        strip_body(body.as_object_mut().unwrap());
        let kept = json!({
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "x"}]},
                {"role": "assistant", "content": ""},
                {"role": "user", "content": null}
            ],
            "store": true, "user": "u", "add_special_tokens": true
        });
        assert_eq!(body, kept);
        let call = json!({"id": "c", "function": {"name": "f", "arguments": "{}"}});
        let mut kept_by_clients = call.clone();
        kept_by_clients["index"] = json!(0);
        kept_by_clients["function"]["parsed_arguments"] = json!({});
        let mut body = json!({
            "messages": [{"role": "assistant", "content": null, "tool_calls": [kept_by_clients]}],
            "tools": [{}], "tool_choice": "none", "parallel_tool_calls": false
        });
        strip_body(body.as_object_mut().unwrap());
        let kept = json!({
            "messages": [{"role": "assistant", "content": "", "tool_calls": [call]}],
            "tools": [{}], "tool_choice": "none", "parallel_tool_calls": false
        });
        assert_eq!(body, kept);
        let mut body = json!({"prompt": "x", "tools": [], "tool_choice": "auto", "add_special_tokens": true, "add_generation_prompt": true});
        strip_body(body.as_object_mut().unwrap());
        assert_eq!(body, json!({"prompt": "x", "add_generation_prompt": true}));
    }
}
