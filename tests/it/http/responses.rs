//! Tests of `/v1/responses`, OpenAI's Responses API. Streams and records are in `response_streams.rs`, fields of other APIs in
//! `response_fields.rs`.

use super::*;

pub(super) const PATH: &str = "/v1/responses";
const CHAT: &str = "/v1/chat/completions";
pub(super) const QUESTION: &str = "What is 45 plus 17?";

pub(super) fn body() -> Value {
    json!({"input": QUESTION, "seed": 1, "max_output_tokens": 64})
}

pub(super) fn with(field: &str, value: &Value) -> Value {
    let mut body = body();
    body[field] = value.clone();
    body
}

pub(super) fn text_of(response: &Value) -> &str {
    response["output"][0]["content"][0]["text"]
        .as_str()
        .unwrap()
}

/// Returns the text of a chat of these messages with the same seed.
fn chat_text(messages: &Value) -> String {
    let body = json!({"messages": messages, "seed": 1, "max_tokens": 64});
    let answer = ok(CHAT, &body);
    answer["choices"][0]["message"]["content"]
        .as_str()
        .unwrap()
        .to_owned()
}

#[test]
fn a_text_is_answered_as_a_chat_of_one_message() {
    let response = ok(PATH, &with("model", &json!("pocket")));
    let id = response["id"].as_str().unwrap();
    assert!(id.starts_with("resp_") && id.len() == 37, "{id}");
    let message = &response["output"][0];
    let own = message["id"].as_str().unwrap();
    assert!(own.starts_with("msg_") && own.len() == 36, "{own}");
    assert_eq!(response["output"].as_array().unwrap().len(), 1);
    assert_eq!(message["content"].as_array().unwrap().len(), 1);
    assert_eq!(
        text_of(&response),
        chat_text(&json!([{"role": "user", "content": QUESTION}]))
    );
    for (pointer, expected) in [
        ("/object", json!("response")),
        ("/status", json!("completed")),
        ("/error", Value::Null),
        ("/incomplete_details", Value::Null),
        ("/model", json!("pocket")),
        ("/system_fingerprint", json!("base")),
        ("/output/0/type", json!("message")),
        ("/output/0/role", json!("assistant")),
        ("/output/0/status", json!("completed")),
        ("/output/0/content/0/type", json!("output_text")),
        ("/output/0/content/0/annotations", json!([])),
        ("/output/0/content/0/logprobs", json!([])),
        ("/usage/output_tokens_details/reasoning_tokens", json!(0)),
        // The following parameters have their defaults.
        ("/instructions", Value::Null),
        ("/max_output_tokens", json!(64)),
        ("/metadata", json!({})),
        ("/parallel_tool_calls", json!(true)),
        ("/previous_response_id", Value::Null),
        ("/reasoning", json!({"effort": null, "summary": null})),
        ("/service_tier", json!("default")),
        ("/store", json!(false)),
        ("/temperature", json!(1.0)),
        (
            "/text",
            json!({"format": {"type": "text"}, "verbosity": "medium"}),
        ),
        ("/tool_choice", json!("auto")),
        ("/tools", json!([])),
        ("/top_logprobs", json!(0)),
        ("/top_p", json!(1.0)),
        ("/truncation", json!("disabled")),
        ("/user", Value::Null),
        ("/background", json!(false)),
    ] {
        assert_eq!(
            response.pointer(pointer),
            Some(&expected),
            "{pointer}: {response}"
        );
    }
    let usage = &response["usage"];
    let count = |name: &str| usage[name].as_u64().unwrap();
    assert_eq!(
        count("input_tokens") + count("output_tokens"),
        count("total_tokens")
    );
    let details = &usage["input_tokens_details"];
    let parts = ["cached_tokens", "cache_write_tokens"].map(|name| details[name].as_u64().unwrap());
    assert_eq!(parts[0] + parts[1], count("input_tokens"));
    let at = ["created_at", "completed_at"].map(|name| response[name].as_u64().unwrap());
    assert!(at[0] > 1_700_000_000 && at[1] >= at[0], "{at:?}");
    assert!(response.get("warnings").is_none() && response.get("record_id").is_none());
}

#[test]
fn what_was_asked_for_comes_back_with_the_answer() {
    let asked = json!({
        "input": QUESTION, "seed": 1, "instructions": "Be brief.", "max_output_tokens": 3, "ignore_eos": true, "metadata": {"topic": "sums", "n": "1"},
        "temperature": 0.5, "top_p": 0.25, "user": "alice", "safety_identifier": "x", "prompt_cache_key": "y",
        "parallel_tool_calls": false, "tool_choice": "none", "store": true,
        "include": ["message.output_text.logprobs", "reasoning.encrypted_content"], "top_logprobs": 2
    });
    let response = ok(PATH, &asked);
    for name in [
        "instructions",
        "max_output_tokens",
        "metadata",
        "temperature",
        "top_p",
        "user",
        "safety_identifier",
        "prompt_cache_key",
        "parallel_tool_calls",
        "tool_choice",
        "top_logprobs",
    ] {
        assert_eq!(response[name], asked[name], "{name}");
    }
    // A warning names the parameter that cannot have its effect.
    assert_eq!(response["store"], false);
    let warnings = response["warnings"].as_array().unwrap();
    assert!(
        warnings.len() == 1 && warnings[0].as_str().unwrap().starts_with("store: "),
        "{warnings:?}"
    );
    assert_eq!(
        (&response["status"], &response["output"][0]["status"]),
        (&json!("incomplete"), &json!("incomplete"))
    );
    assert_eq!(
        response["incomplete_details"],
        json!({"reason": "max_output_tokens"})
    );
    let logprobs = response["output"][0]["content"][0]["logprobs"]
        .as_array()
        .unwrap();
    assert_eq!(logprobs.len(), 3);
    let mut bytes: Vec<u8> = Vec::new();
    for token in logprobs {
        assert_eq!(
            token["top_logprobs"].as_array().unwrap().len(),
            2,
            "{token}"
        );
        bytes.extend(serde_json::from_value::<Vec<u8>>(token["bytes"].clone()).unwrap());
    }
    assert_eq!(String::from_utf8(bytes).unwrap(), text_of(&response));
}

#[test]
fn the_items_of_a_conversation_are_its_messages() {
    let first = ok(PATH, &body());
    let more = json!({"role": "user", "content": "And 3 plus 4?"});
    let chat = json!([
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": QUESTION},
        {"role": "assistant", "content": text_of(&first)},
        more
    ]);
    let expected = chat_text(&chat);
    // The returned message gets the fields that clients add.
    let mut output = first["output"][0].clone();
    output["phase"] = Value::Null;
    output["content"][0]["parsed"] = Value::Null;
    output["content"][0]["logprobs"] =
        json!([{"token": "6", "bytes": [54], "logprob": -0.5, "top_logprobs": []}]);
    let question = json!({"type": "message", "id": "msg_1", "status": "completed", "role": "user",
        "content": [{"type": "input_text", "text": "What is "}, {"type": "input_text", "text": "45 plus 17?"}]});
    for (instructions, items) in [
        (
            json!("Be brief."),
            json!([{"role": "user", "content": QUESTION}, chat[2], more]),
        ),
        (
            Value::Null,
            json!([{"role": "developer", "content": "Be brief."}, question, output, more]),
        ),
        (
            json!(""),
            json!([{"type": "message", "role": "system", "content": "Be brief."}, question, output, more]),
        ),
    ] {
        let mut body = with("input", &items);
        body["instructions"] = instructions;
        assert_eq!(text_of(&ok(PATH, &body)), expected, "{body}");
    }
}

#[test]
fn an_unfinished_last_message_is_gone_on_in() {
    let items = |status: &str| {
        json!([{"role": "user", "content": QUESTION}, {"type": "message", "role": "assistant", "status": status,
            "content": [{"type": "output_text", "text": "6"}]}])
    };
    let chat = |continued: bool| {
        let body = json!({"messages": [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": "6"}],
            "continue_final_message": continued, "temperature": 0, "max_tokens": 8});
        ok(CHAT, &body)["choices"][0]["message"]["content"].clone()
    };
    let ask = |status: &str| {
        let body = json!({"input": items(status), "temperature": 0, "max_output_tokens": 8});
        text_of(&ok(PATH, &body)).to_owned()
    };
    for status in ["incomplete", "in_progress"] {
        assert_eq!(ask(status), chat(true), "{status}");
    }
    assert_eq!(ask("completed"), chat(false));
}

#[test]
fn json_is_answered_by_its_schema() {
    let schema = json!({"type": "object", "properties": {"sum": {"type": "integer"}}, "required": ["sum"], "additionalProperties": false});
    let format = |format: Value| with("text", &json!({"format": format}));
    for name in ["json_schema", "json_object"] {
        let asked = match name {
            "json_schema" => json!({"type": name, "name": "sum", "strict": true, "schema": schema}),
            _ => json!({"type": name}),
        };
        let mut body = format(asked.clone());
        body["max_output_tokens"] = json!(60);
        let response = ok(PATH, &body);
        assert_eq!(response["text"]["format"], asked);
        assert!(
            text_of(&response).trim_start().starts_with('{'),
            "{response}"
        );
        if response["status"] == "completed" {
            let said: Value = serde_json::from_str(text_of(&response)).unwrap();
            assert!(
                said.is_object() && (name == "json_object" || said["sum"].is_i64()),
                "{said}"
            );
        }
    }
    // Without `strict`, a keyword that the grammar cannot express is left out and named.
    let loose = json!({"type": "json_schema", "name": "odd", "schema": {"type": "object", "propertyNames": {"pattern": "^a"}}});
    let response = ok(PATH, &format(loose.clone()));
    let warning = response["warnings"][0].as_str().unwrap();
    assert!(
        warning.starts_with("text.format: ") && warning.contains("propertyNames"),
        "{warning}"
    );
    let mut strict = loose;
    strict["strict"] = json!(true);
    for (body, param) in [
        (format(strict), "text.format"),
        (
            format(json!({"type": "json_schema", "name": "x"})),
            "text.format.schema",
        ),
        (
            format(json!({"type": "text", "name": "x"})),
            "text.format.name",
        ),
        (
            format(json!({"type": "json_object", "schema": {}})),
            "text.format.schema",
        ),
        (format(json!({"type": "xml"})), "text.format.type"),
        (format(json!({"type": "text", "x": 1})), "text.format.x"),
        (with("text", &json!({"verbosity": "low"})), "text.verbosity"),
    ] {
        let (status, error) = post(PATH, &body);
        assert_eq!(status, StatusCode::BAD_REQUEST, "{body}");
        assert_eq!(error["error"]["param"], param, "{error}");
    }
    let mut both = format(json!({"type": "json_object"}));
    both["structured_outputs"] = json!({"choice": ["a", "b"]});
    let (status, error) = post(PATH, &both);
    assert_eq!(
        (status, &error["error"]["param"]),
        (StatusCode::BAD_REQUEST, &json!("structured_outputs")),
        "{error}"
    );
}

#[test]
fn the_best_of_several_is_answered_with_its_tournament() {
    let asked = json!({"input": QUESTION, "best_of": 4, "seed": 5, "judge": {"seed": 1}});
    let response = ok(PATH, &asked);
    let chat = ok(
        CHAT,
        &json!({"messages": [{"role": "user", "content": QUESTION}], "best_of": 4, "seed": 5, "judge": {"seed": 1}}),
    );
    assert_eq!(
        text_of(&response),
        chat["choices"][0]["message"]["content"].as_str().unwrap()
    );
    assert_eq!(response["tournament"], chat["tournament"]);
    assert_eq!(
        response["usage"]["output_tokens"],
        chat["usage"]["completion_tokens"]
    );
}
