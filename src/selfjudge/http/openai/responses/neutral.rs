//! Fields of a call that have no effect here; see [`crate::http::neutral`].

use serde_json::{Map, Value};

use crate::http::neutral::Neutral::{Any, At};
use crate::http::neutral::{Kind, PART, Row, STREAM_OPTIONS, Tables, VLLM, strip};

/// Fields of the body. Fields that are returned with the answer are declared in the body.
pub const BODY: &[Row] = &[
    // OpenAI's.
    ("access_programs", At(&[])),
    ("background", At(&["false"])),
    ("background_options", At(&[])),
    ("context_management", At(&["[]"])),
    ("image", At(&[])),
    ("max_tool_calls", Any(Kind::Number)),
    ("moderation", At(&[])),
    ("prompt_cache_options", Any(Kind::Object)),
    ("prompt_cache_retention", Any(Kind::Text)),
    ("reasoning", At(&["{}"])),
    ("service_tier", At(&["\"auto\"", "\"default\""])),
    ("tools", At(&["[]"])),
    ("truncation", At(&["\"disabled\""])),
    // vLLM's, in addition to those of its other routes.
    ("add_special_tokens", At(&["false"])),
    ("enable_response_messages", At(&["false"])),
    ("previous_input_messages", At(&["[]"])),
    ("previous_response", At(&[])),
    // Those of the other routes here.
    ("n", At(&["1"])),
    ("response_format", At(&["{\"type\": \"text\"}"])),
];

/// Fields of `reasoning`.
const REASONING: &[Row] = &[
    ("context", At(&["\"auto\""])),
    ("effort", At(&["\"none\"", "\"medium\""])),
    ("generate_summary", At(&[])),
    ("mode", At(&["\"standard\""])),
    ("summary", At(&[])),
];

/// Fields of `text`.
const TEXT: &[Row] = &[("verbosity", At(&["\"medium\""]))];

/// Fields of an item.
const ITEM: &[Row] = &[
    ("id", Any(Kind::Text)),
    // Whether a message is the final answer; chat templates know only final ones.
    ("phase", Any(Kind::Text)),
];

/// Fields of a part of an item, in addition to those of a message's part.
const ITEM_PART: &[Row] = &[
    // The log-probabilities from an earlier answer of the server.
    ("logprobs", Any(Kind::Value)),
    // The text as parsed by openai-python.
    ("parsed", Any(Kind::Value)),
];

/// All tables.
pub const ALL: Tables = Tables {
    top: &[BODY, VLLM],
    inner: &[REASONING, TEXT, STREAM_OPTIONS, ITEM, PART, ITEM_PART],
};

/// Removes fields without effect from a body.
pub fn strip_body(body: &mut Map<String, Value>) {
    for (name, table) in [
        ("reasoning", REASONING),
        ("text", TEXT),
        ("stream_options", STREAM_OPTIONS),
    ] {
        if let Some(Value::Object(object)) = body.get_mut(name) {
            strip(object, &[table]);
        }
    }
    if body
        .get("stream_options")
        .is_some_and(|options| *options == Value::Object(Map::new()))
    {
        body.remove("stream_options");
    }
    strip(body, &[BODY, VLLM]);
    let Some(Value::Array(items)) = body.get_mut("input") else {
        return;
    };
    for item in items.iter_mut().filter_map(Value::as_object_mut) {
        if keep_foreign_type(item, &["message"]) {
            continue;
        }
        strip(item, &[ITEM]);
        let Some(Value::Array(parts)) = item.get_mut("content") else {
            continue;
        };
        for part in parts.iter_mut().filter_map(Value::as_object_mut) {
            if !keep_foreign_type(part, &["input_text", "output_text", "text"]) {
                strip(part, &[PART, ITEM_PART]);
            }
        }
    }
}

/// Removes all fields but the type from an object whose type is not among the `known` ones, so that the refusal names the type. Returns
/// whether it did.
fn keep_foreign_type(object: &mut Map<String, Value>, known: &[&str]) -> bool {
    let foreign =
        matches!(object.get("type"), Some(Value::String(kind)) if !known.contains(&kind.as_str()));
    if foreign {
        object.retain(|name, _| name == "type");
    }
    foreign
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_asks_for_nothing_goes_and_the_rest_stays() {
        let mut body = json!({
            "input": [
                {"type": "message", "id": "msg_1", "phase": null, "role": "user", "content": "x"},
                {"role": "assistant", "content": [
                    {"type": "output_text", "text": "y", "annotations": [], "logprobs": [{"token": "y"}], "parsed": {"a": 1}}
                ]},
                {"type": "function_call", "name": "f", "arguments": "{}", "call_id": "1"},
                {"role": "user", "content": [{"type": "input_image", "image_url": "data:", "detail": "low"}]}
            ],
            "background": false, "reasoning": {"effort": "medium", "summary": null}, "text": {"verbosity": "medium"},
            "tools": [], "truncation": "auto", "max_tool_calls": 3, "stream_options": {"include_obfuscation": false},
            "top_k": -1, "n": 2, "metadata": {"a": "b"}
        });
        strip_body(body.as_object_mut().unwrap());
        let kept = json!({
            "input": [
                {"type": "message", "role": "user", "content": "x"},
                {"role": "assistant", "content": [{"type": "output_text", "text": "y"}]},
                {"type": "function_call"},
                {"role": "user", "content": [{"type": "input_image"}]}
            ],
            "text": {}, "truncation": "auto", "n": 2, "metadata": {"a": "b"}
        });
        assert_eq!(body, kept);
    }
}
