//! Tests of `/v1/responses`: neutral values of other APIs' fields change nothing, and all others are refused by name.

use super::responses::{PATH, body, text_of, with};
use super::*;

/// Returns fields of OpenAI's and vLLM's APIs: neutral values, and a value that would have an effect, where there is one.
fn fields() -> Vec<(&'static str, Vec<Value>, Option<Value>)> {
    let text = || vec![json!("x"), json!("")];
    vec![
        ("background", vec![json!(false)], Some(json!(true))),
        ("conversation", vec![], Some(json!("conv_1"))),
        ("conversation", vec![], Some(json!({"id": "conv_1"}))),
        ("previous_response_id", vec![], Some(json!("resp_1"))),
        ("prompt", vec![], Some(json!({"id": "pmpt_1"}))),
        (
            "context_management",
            vec![json!([])],
            Some(json!([{"type": "compaction"}])),
        ),
        (
            "include",
            vec![
                json!([]),
                json!(["reasoning.encrypted_content", "file_search_call.results"]),
            ],
            Some(json!(["mood"])),
        ),
        ("instructions", vec![json!("")], Some(json!(["x"]))),
        ("max_tool_calls", vec![json!(3)], Some(json!("x"))),
        (
            "metadata",
            vec![json!({}), json!({"topic": "sums"})],
            Some(json!({"a": 1})),
        ),
        ("metadata", vec![], Some(json!({"a": "x".repeat(513)}))),
        ("moderation", vec![], Some(json!({"model": "m"}))),
        (
            "parallel_tool_calls",
            vec![json!(true), json!(false)],
            Some(json!("x")),
        ),
        ("prompt_cache_key", text(), Some(json!(1))),
        ("prompt_cache_retention", vec![json!("24h")], None),
        (
            "prompt_cache_options",
            vec![json!({"mode": "implicit"})],
            None,
        ),
        (
            "reasoning",
            vec![
                json!({}),
                json!({"effort": null, "summary": null}),
                json!({"effort": "medium"}),
            ],
            Some(json!({"effort": "high"})),
        ),
        ("reasoning", vec![], Some(json!({"summary": "auto"}))),
        ("safety_identifier", text(), Some(json!(1))),
        (
            "service_tier",
            vec![json!("auto"), json!("default")],
            Some(json!("flex")),
        ),
        ("store", vec![json!(false), json!(true)], Some(json!("x"))),
        ("stream", vec![json!(false)], Some(json!("x"))),
        (
            "stream_options",
            vec![json!({}), json!({"include_obfuscation": false})],
            Some(json!({"include_usage": true})),
        ),
        ("temperature", vec![json!(1), json!(1.0)], Some(json!(-1))),
        (
            "text",
            vec![
                json!({}),
                json!({"format": {"type": "text"}}),
                json!({"verbosity": "medium"}),
            ],
            Some(json!("text")),
        ),
        (
            "tool_choice",
            vec![json!("auto"), json!("none")],
            Some(json!("required")),
        ),
        (
            "tool_choice",
            vec![],
            Some(json!({"type": "function", "name": "f"})),
        ),
        (
            "tools",
            vec![json!([])],
            Some(json!([{"type": "function", "name": "f", "parameters": {}}])),
        ),
        ("tools", vec![], Some(json!([{"type": "web_search"}]))),
        ("top_logprobs", vec![json!(0)], Some(json!(2))),
        ("top_logprobs", vec![], Some(json!(21))),
        ("top_p", vec![json!(1)], Some(json!(0))),
        ("truncation", vec![json!("disabled")], Some(json!("auto"))),
        ("user", text(), Some(json!(1))),
        (
            "enable_response_messages",
            vec![json!(false)],
            Some(json!(true)),
        ),
        (
            "previous_input_messages",
            vec![json!([])],
            Some(json!([{}])),
        ),
        ("request_id", vec![], Some(json!("mine"))),
        ("skip_special_tokens", vec![json!(true)], Some(json!(false))),
        ("vllm_xargs", vec![json!({})], Some(json!({"a": 1}))),
        (
            "mm_processor_kwargs",
            vec![json!({})],
            Some(json!({"a": 1})),
        ),
        ("ignore_eos", vec![json!(false)], Some(json!("x"))),
        ("stop", vec![json!([])], Some(json!([7]))),
        ("top_k", vec![json!(-1), json!(0)], Some(json!(-2))),
        ("logit_bias", vec![json!({})], Some(json!({"x": 1}))),
        ("cache_salt", vec![], Some(json!(""))),
        // These fields belong to other routes.
        ("n", vec![json!(1)], Some(json!(2))),
        (
            "response_format",
            vec![json!({"type": "text"})],
            Some(json!({"type": "json_object"})),
        ),
        ("messages", vec![], None),
        ("max_output_tokens", vec![], Some(json!(0))),
    ]
}

#[test]
fn what_asks_for_nothing_changes_nothing_and_the_rest_is_refused_by_name() {
    let plain = ok(PATH, &body());
    for (field, nothing, something) in fields() {
        let null = (!["messages", "max_output_tokens"].contains(&field)).then_some(Value::Null);
        for value in nothing.into_iter().chain(null) {
            let (status, answer) = post(PATH, &with(field, &value));
            assert_eq!(status, StatusCode::OK, "{field}: {value}: {answer}");
            assert_eq!(text_of(&answer), text_of(&plain), "{field}: {value}");
        }
        if let Some(value) = something {
            let (status, answer) = post(PATH, &with(field, &value));
            assert_eq!(
                status,
                StatusCode::BAD_REQUEST,
                "{field}: {value}: {answer}"
            );
            let named = answer["error"]["param"].as_str().unwrap_or_default();
            assert!(named.starts_with(field), "{field}: {answer}");
            let message = answer["error"]["message"].as_str().unwrap();
            assert!(message.starts_with('`'), "{message}");
        }
    }
    for (body, param, part) in [
        (json!({}), "input", "must be given"),
        (json!({"input": ""}), "input", "must not be empty"),
        (json!({"input": []}), "input", "must not be empty"),
        (
            json!({"input": 7}),
            "input",
            "a string or a list of messages",
        ),
        (
            json!({"input": [{"role": "tool", "content": "x"}]}),
            "input[0].role",
            "`developer`",
        ),
        (
            json!({"input": [{"role": "user"}]}),
            "input[0].content",
            "must be given",
        ),
        (
            json!({"input": [{"role": "user", "content": null}]}),
            "input[0].content",
            "not null",
        ),
        (
            json!({"input": [{"role": "user", "content": "x", "mood": 1}]}),
            "input[0].mood",
            "not a parameter",
        ),
        (json!({"input": ["x"]}), "input[0]", "must be an object"),
        (
            json!({"input": [{"role": "user", "content": "x"}, {"type": "function_call_output", "call_id": "1", "output": "2"}]}),
            "input[1].type",
            "`message`",
        ),
        (
            json!({"input": [{"type": "item_reference", "id": "msg_1"}]}),
            "input[0].type",
            "item_reference",
        ),
        (
            json!({"input": [{"role": "user", "content": [{"type": "input_text", "text": "x"}, {"type": "input_image", "image_url": "y"}]}]}),
            "input[0].content[1].type",
            "input_image",
        ),
        (
            json!({"input": [{"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]}]}),
            "input[0].content[0].type",
            "refusal",
        ),
        (
            json!({"input": "x", "max_tokens": 3}),
            "max_tokens",
            "`max_output_tokens`",
        ),
        (json!({"messages": []}), "messages", "`input`"),
        (json!({"input": "seven ".repeat(5000)}), "input", ""),
        (
            json!({"input": "x", "best_of": 2, "stream": true}),
            "stream",
            "best_of",
        ),
    ] {
        let (status, error) = post(PATH, &body);
        let error = &error["error"];
        assert_eq!(status, StatusCode::BAD_REQUEST, "{error}");
        assert_eq!(error["param"], param, "{error}");
        assert!(error["message"].as_str().unwrap().contains(part), "{error}");
    }
    let (status, error) = post(PATH, &with("model", &json!("gpt-4")));
    assert_eq!(
        (status, &error["error"]["code"]),
        (StatusCode::NOT_FOUND, &json!("model_not_found"))
    );
}
