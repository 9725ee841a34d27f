//! Fields of OpenAI's and vLLM's APIs that have no effect here.
//!
//! Clients send such fields with every call: as null, as an empty value, as the documented default, or with values that cannot change an
//! answer. They are removed from a body before it is parsed. A field that requests a change stays, so a route that does not support it
//! refuses it by name.

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

/// OpenAI's fields in a body that generates.
pub const BODY: &[Row] = &[
    ("audio", At(&[])),
    ("echo", At(&["false"])),
    ("function_call", At(&["\"none\"", "\"auto\""])),
    ("functions", At(&["[]"])),
    ("metadata", Any(Kind::Object)),
    ("modalities", At(&["[\"text\"]"])),
    ("moderation", At(&[])),
    // A predicted answer: it may only make the answer faster.
    ("prediction", Any(Kind::Object)),
    ("prompt_cache_key", Any(Kind::Text)),
    ("prompt_cache_options", Any(Kind::Object)),
    ("prompt_cache_retention", Any(Kind::Text)),
    ("reasoning_effort", At(&["\"none\"", "\"medium\""])),
    ("safety_identifier", Any(Kind::Text)),
    ("service_tier", At(&["\"auto\"", "\"default\""])),
    // `true` requests a conversation that can be fetched later. Here `log` controls what is kept of a call.
    ("store", At(&["false"])),
    ("suffix", At(&["\"\""])),
    ("tools", At(&["[]"])),
    ("verbosity", At(&["\"medium\""])),
    ("web_search_options", At(&[])),
];

/// vLLM's fields in a body that generates.
pub const VLLM: &[Row] = &[
    ("allowed_token_ids", At(&[])),
    ("bad_words", At(&["[]"])),
    ("documents", At(&["[]"])),
    ("early_stopping", At(&["false"])),
    ("ec_transfer_params", At(&["{}"])),
    ("guided_choice", At(&[])),
    ("guided_decoding_backend", At(&[])),
    ("guided_grammar", At(&[])),
    ("guided_json", At(&[])),
    ("guided_json_object", At(&["false"])),
    ("guided_regex", At(&[])),
    ("guided_whitespace_pattern", At(&[])),
    ("include_reasoning", At(&["true"])),
    ("kv_transfer_params", At(&["{}"])),
    ("length_penalty", At(&["1"])),
    ("logits_processors", At(&["[]"])),
    ("media_io_kwargs", At(&["{}"])),
    ("mm_processor_kwargs", At(&["{}"])),
    ("prompt_embeds", At(&[])),
    ("prompt_logprobs", At(&[])),
    ("repetition_detection", At(&[])),
    // The id of the call is in the header `X-Request-Id`.
    ("request_id", At(&[])),
    ("return_token_ids", At(&["false"])),
    ("return_tokens_as_token_ids", At(&["false"])),
    ("seed", At(&["-1"])),
    ("skip_special_tokens", At(&["true"])),
    ("spaces_between_special_tokens", At(&["true"])),
    ("thinking_token_budget", At(&[])),
    ("top_k", At(&["-1"])),
    ("truncate_prompt_tokens", At(&[])),
    ("truncation_side", At(&[])),
    ("use_beam_search", At(&["false"])),
    ("vllm_xargs", At(&["{}"])),
];

/// Fields of a body that offers no tools.
pub const NO_TOOLS: &[Row] = &[
    ("parallel_tool_calls", Any(Kind::Bool)),
    ("tool_choice", At(&["\"none\"", "\"auto\""])),
];

/// Fields of a body that has `messages`.
pub const CHAT: &[Row] = &[
    // The chat template has written the special tokens already.
    ("add_special_tokens", At(&["false"])),
    ("chat_template", At(&[])),
    ("chat_template_kwargs", At(&["{}"])),
];

/// Fields of a body without messages.
pub const COMPLETION: &[Row] = &[("add_special_tokens", At(&["true"]))];

/// Fields of a body of `/v1/decisions`, in addition to those of chats.
pub const DECISIONS: &[Row] = &[
    ("add_generation_prompt", At(&["true"])),
    ("continue_final_message", At(&["false"])),
    ("log", At(&["{}"])),
    ("n", At(&["1"])),
    ("stream", At(&["false"])),
    // Such a call is not recorded.
    ("user", Any(Kind::Text)),
];

/// Fields of `stream_options`.
pub const STREAM_OPTIONS: &[Row] = &[
    ("continuous_usage_stats", At(&["false"])),
    // Padding against observers of packet lengths; here events are never padded.
    ("include_obfuscation", Any(Kind::Bool)),
    ("include_usage", At(&["false"])),
];

/// Fields of `structured_outputs`.
pub const STRUCTURED: &[Row] = &[
    ("choice", At(&[])),
    ("disable_additional_properties", At(&["false"])),
    ("disable_any_whitespace", At(&["false"])),
    ("disable_fallback", At(&["false"])),
    ("grammar", At(&[])),
    ("json", At(&[])),
    ("json_object", At(&["false"])),
    ("regex", At(&[])),
    ("structural_tag", At(&[])),
    ("whitespace_pattern", At(&[])),
];

/// Fields of a message.
pub const MESSAGE: &[Row] = &[
    ("annotations", At(&["[]"])),
    ("audio", At(&[])),
    // A hint for prefix caches; here the cache works without hints.
    ("cache_control", Any(Kind::Object)),
    ("function_call", At(&[])),
    ("id", Any(Kind::Text)),
    ("images", At(&["[]"])),
    ("name", At(&["\"\""])),
    // The content as parsed by openai-python.
    ("parsed", Any(Kind::Value)),
    ("prefix", At(&["false"])),
    ("provider_specific_fields", At(&["{}"])),
    ("reasoning", At(&["\"\""])),
    ("reasoning_content", At(&["\"\""])),
    ("reasoning_details", At(&["[]"])),
    ("refusal", At(&["\"\""])),
    ("thinking_blocks", At(&["[]"])),
    ("tool_call_id", At(&["\"\""])),
    ("tool_calls", At(&["[]"])),
];

/// Fields of a message that is not a tool's result.
pub const SPEAKER: &[Row] = &[
    // The name of one of several speakers; chat templates receive roles only.
    ("name", Any(Kind::Text)),
];

/// Fields of a call in a message.
pub const CALL: &[Row] = &[
    // Clients copy this field from a stream.
    ("index", Any(Kind::Value)),
];

/// Fields of the function of a call in a message.
pub const CALLED: &[Row] = &[
    // The arguments as parsed by openai-python.
    ("parsed_arguments", Any(Kind::Value)),
];

/// Fields of a part of a message.
pub const PART: &[Row] = &[
    ("annotations", At(&["[]"])),
    ("cache_control", Any(Kind::Object)),
    ("id", Any(Kind::Text)),
    ("logprobs", At(&["[]"])),
    ("prompt_cache_breakpoint", Any(Kind::Object)),
];

impl Neutral {
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
