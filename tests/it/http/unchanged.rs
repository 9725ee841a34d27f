//! Tests of unchanged requests of other servers' clients: neutral fields, messages, spellings. Formats of answers are in
//! `response_formats.rs`, headers in `headers.rs`.

use super::*;

pub(super) const CHAT: &str = "/v1/chat/completions";
pub(super) const TEXT: &str = "/v1/completions";

pub(super) fn chat_body() -> Value {
    json!({"messages": [{"role": "user", "content": "What is 34 plus 28?"}], "seed": 1, "max_tokens": 6})
}

pub(super) fn text_body() -> Value {
    json!({"prompt": "2 plus", "seed": 1, "max_tokens": 6})
}

pub(super) fn with(body: &Value, field: &str, value: &Value) -> Value {
    let mut body = body.clone();
    body[field] = value.clone();
    body
}

/// Returns fields of OpenAI's and vLLM's APIs: neutral values, and a value that would have an effect, where there is one.
fn fields() -> Vec<(&'static str, Vec<Value>, Option<Value>)> {
    let text = || vec![json!("x"), json!("")];
    vec![
        (
            "audio",
            vec![],
            Some(json!({"voice": "ash", "format": "wav"})),
        ),
        ("echo", vec![json!(false)], None),
        (
            "function_call",
            vec![json!("none"), json!("auto")],
            Some(json!({"name": "f"})),
        ),
        ("functions", vec![json!([])], Some(json!([{"name": "f"}]))),
        (
            "metadata",
            vec![json!({}), json!({"topic": "sums"})],
            Some(json!("x")),
        ),
        (
            "modalities",
            vec![json!(["text"])],
            Some(json!(["text", "audio"])),
        ),
        ("moderation", vec![], Some(json!({"model": "m"}))),
        ("parallel_tool_calls", vec![json!(true), json!(false)], None),
        (
            "prediction",
            vec![json!({"type": "content", "content": "62"})],
            Some(json!("62")),
        ),
        ("prompt_cache_key", text(), None),
        (
            "prompt_cache_retention",
            vec![json!("in_memory"), json!("24h")],
            None,
        ),
        (
            "reasoning_effort",
            vec![json!("none"), json!("medium")],
            Some(json!("high")),
        ),
        ("safety_identifier", text(), None),
        (
            "service_tier",
            vec![json!("auto"), json!("default")],
            Some(json!("flex")),
        ),
        ("store", vec![json!(false)], Some(json!(true))),
        (
            "tool_choice",
            vec![json!("none"), json!("auto")],
            Some(json!("required")),
        ),
        (
            "tools",
            vec![json!([])],
            Some(json!([{"type": "web_search"}])),
        ),
        ("verbosity", vec![json!("medium")], Some(json!("low"))),
        ("web_search_options", vec![], Some(json!({}))),
        ("allowed_token_ids", vec![], Some(json!([5]))),
        ("bad_words", vec![json!([])], Some(json!(["x"]))),
        ("documents", vec![json!([])], Some(json!([{"text": "x"}]))),
        ("early_stopping", vec![json!(false)], Some(json!(true))),
        ("guided_choice", vec![], Some(json!(["a"]))),
        ("guided_json", vec![], Some(json!({}))),
        ("guided_regex", vec![], Some(json!("a"))),
        ("guided_grammar", vec![], Some(json!("a"))),
        ("include_reasoning", vec![json!(true)], Some(json!(false))),
        ("length_penalty", vec![json!(1), json!(1.0)], Some(json!(2))),
        ("logits_processors", vec![json!([])], Some(json!(["x"]))),
        (
            "mm_processor_kwargs",
            vec![json!({})],
            Some(json!({"a": 1})),
        ),
        ("request_id", vec![], Some(json!("mine"))),
        ("return_token_ids", vec![json!(false)], Some(json!(true))),
        (
            "return_tokens_as_token_ids",
            vec![json!(false)],
            Some(json!(true)),
        ),
        ("seed", vec![], None),
        ("skip_special_tokens", vec![json!(true)], Some(json!(false))),
        (
            "spaces_between_special_tokens",
            vec![json!(true)],
            Some(json!(false)),
        ),
        ("top_k", vec![json!(-1), json!(0)], Some(json!(-2))),
        ("truncate_prompt_tokens", vec![], Some(json!(5))),
        ("use_beam_search", vec![json!(false)], Some(json!(true))),
        ("vllm_xargs", vec![json!({})], Some(json!({"a": 1}))),
        ("logit_bias", vec![json!({})], None),
        ("stop", vec![json!([])], None),
        ("stop_token_ids", vec![json!([])], None),
        ("temperature", vec![json!(1), json!(1.0)], None),
        ("top_p", vec![json!(1)], Some(json!(0))),
        ("n", vec![json!(1), json!(1.0)], Some(json!(1.5))),
        ("stream", vec![json!(false)], None),
        ("stream_options", vec![], None),
        (
            "response_format",
            vec![json!({"type": "text"})],
            Some(json!({"type": "xml"})),
        ),
        ("structured_outputs", vec![], None),
        ("user", text(), None),
        ("cache_salt", vec![], Some(json!(""))),
        ("model", vec![], Some(json!(""))),
    ]
}

#[test]
fn what_asks_for_nothing_changes_nothing_and_the_rest_is_refused_by_name() {
    for (path, body) in [(CHAT, chat_body()), (TEXT, text_body())] {
        let plain = ok(path, &body);
        for (field, nothing, something) in fields() {
            let nulls = if field == "seed" {
                None
            } else {
                Some(Value::Null)
            };
            for value in nothing.into_iter().chain(nulls) {
                let (status, answer) = post(path, &with(&body, field, &value));
                assert_eq!(status, StatusCode::OK, "{field}: {value}: {answer}");
                assert_eq!(answer["choices"], plain["choices"], "{field}: {value}");
            }
            if let Some(value) = something {
                let (status, answer) = post(path, &with(&body, field, &value));
                assert!(status.is_client_error(), "{field}: {value}");
                let named = answer["error"]["param"].as_str().unwrap_or("model");
                assert!(named.starts_with(field), "{field}: {answer}");
            }
        }
    }
    for (path, body, field, value) in [
        (TEXT, text_body(), "suffix", json!("")),
        (TEXT, text_body(), "suffix", Value::Null),
        (CHAT, chat_body(), "add_generation_prompt", json!(true)),
        (CHAT, chat_body(), "add_special_tokens", json!(false)),
        (CHAT, chat_body(), "chat_template", Value::Null),
        (CHAT, chat_body(), "chat_template_kwargs", json!({})),
        (CHAT, chat_body(), "continue_final_message", json!(false)),
        (CHAT, chat_body(), "logprobs", json!(false)),
        (CHAT, chat_body(), "top_logprobs", json!(0)),
    ] {
        ok(path, &with(&body, field, &value));
    }
    let (status, answer) = post(TEXT, &with(&text_body(), "suffix", &json!("x")));
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert_eq!(answer["error"]["param"], "suffix");
    ok(CHAT, &with(&chat_body(), "seed", &json!(-1)));
    // A field of no known API is refused, whatever its value is.
    for value in [Value::Null, json!([]), json!(false)] {
        let (status, answer) = post(CHAT, &with(&chat_body(), "mood", &value));
        assert_eq!(status, StatusCode::BAD_REQUEST);
        assert_eq!(answer["error"]["code"], "unknown_parameter");
    }
    let mut streamed = chat_body();
    streamed["stream"] = json!(true);
    streamed["stream_options"] = json!({"include_usage": null, "include_obfuscation": true});
    assert!(!events(CHAT, &streamed).is_empty());
}

#[test]
fn messages_come_back_as_clients_keep_them() {
    let user = json!({"role": "user", "content": "What is 34 plus 28?"});
    let more = json!({"role": "user", "content": "And 3 plus 4?"});
    let body =
        |answer: &Value| json!({"messages": [user, answer, more], "seed": 2, "max_tokens": 6});
    let plain = json!({"role": "assistant", "content": "62"});
    // `/generate`, `/judge` and `/tokenize` accept these messages too.
    let expected = ok(CHAT, &body(&plain));
    for (field, value) in [
        ("refusal", Value::Null),
        ("refusal", json!("")),
        ("annotations", Value::Null),
        ("annotations", json!([])),
        ("audio", Value::Null),
        ("function_call", Value::Null),
        ("tool_calls", Value::Null),
        ("tool_calls", json!([])),
        ("parsed", Value::Null),
        ("parsed", json!({"sum": 62})),
        ("reasoning_content", Value::Null),
        ("reasoning", json!("")),
        ("name", Value::Null),
        ("id", json!("msg_1")),
        ("prefix", json!(false)),
        ("cache_control", json!({"type": "ephemeral"})),
        ("provider_specific_fields", json!({})),
        (
            "content",
            json!([{"type": "text", "text": "62", "annotations": [], "cache_control": {"type": "ephemeral"}}]),
        ),
        (
            "content",
            json!([{"type": "output_text", "text": "62", "logprobs": []}]),
        ),
    ] {
        let body = body(&with(&plain, field, &value));
        assert_eq!(
            ok(CHAT, &body)["choices"],
            expected["choices"],
            "{field}: {value}"
        );
    }
    // This is `message.model_dump()` of openai-python.
    let dumped = json!({"content": "62", "refusal": null, "role": "assistant", "annotations": null, "audio": null,
        "function_call": null, "tool_calls": null});
    assert_eq!(ok(CHAT, &body(&dumped))["choices"], expected["choices"]);
    for path in ["/generate", "/tokenize"] {
        let mut body = body(&dumped);
        if path == "/tokenize" {
            body = json!({"messages": body["messages"]});
        }
        ok(path, &body);
    }
    ok(
        CHAT,
        &body(&json!({"role": "assistant", "content": null, "refusal": null})),
    );
    for (answer, param) in [
        (
            with(&plain, "refusal", &json!("I cannot.")),
            "messages[1].refusal",
        ),
        (
            with(&plain, "tool_calls", &json!([{"id": "1"}])),
            "messages[1].tool_calls[0].function",
        ),
        (
            with(&plain, "reasoning_content", &json!("34 and 28")),
            "messages[1].reasoning_content",
        ),
        (with(&plain, "prefix", &json!(true)), "messages[1].prefix"),
        (with(&plain, "mood", &Value::Null), "messages[1].mood"),
        (json!({"role": "assistant"}), "messages[1].content"),
        (
            json!({"role": "user", "content": null}),
            "messages[1].content",
        ),
        (json!({"role": "user", "content": 7}), "messages[1].content"),
        (
            json!({"role": "user", "content": [{"type": "text", "text": "x"}, {"type": "image_url", "text": "x"}]}),
            "messages[1].content[1].type",
        ),
        (
            json!({"role": "user", "content": [{"type": "text", "text": "x", "detail": "low"}]}),
            "messages[1].content[0].detail",
        ),
        (
            json!({"role": "user", "content": [{"type": "text"}]}),
            "messages[1].content[0].text",
        ),
    ] {
        let (status, error) = post(CHAT, &body(&answer));
        assert_eq!(status, StatusCode::BAD_REQUEST, "{answer}");
        assert_eq!(error["error"]["param"], param, "{error}");
    }
}

#[test]
fn elements_of_lists_are_named_in_errors() {
    for (path, field, value, param) in [
        (TEXT, "prompt", json!(["a", 7]), "prompt"),
        (TEXT, "prompt", json!(["a", ["b"]]), "prompt[1][0]"),
        (TEXT, "prompt", json!([1, -2]), "prompt[1]"),
        (TEXT, "prompt", json!([[1, 2], [3, 4.5]]), "prompt[1][1]"),
        (TEXT, "prompt", json!({"text": "a"}), "prompt"),
        (TEXT, "prompt", json!([4_294_967_296_u64]), "prompt[0]"),
        (TEXT, "stop", json!(["a", 7]), "stop[1]"),
        (TEXT, "stop", json!(7), "stop"),
        (TEXT, "stop_token_ids", json!([1, "2"]), "stop_token_ids[1]"),
        (CHAT, "stop", json!(["a", null]), "stop[1]"),
    ] {
        let body = if path == TEXT {
            text_body()
        } else {
            chat_body()
        };
        let (status, error) = post(path, &with(&body, field, &value));
        assert_eq!(status, StatusCode::BAD_REQUEST, "{value}");
        assert_eq!(error["error"]["param"], param, "{error}");
    }
    // A whole number is accepted in any spelling.
    let whole = with(&text_body(), "max_tokens", &json!(6.0));
    assert_eq!(
        ok(TEXT, &whole)["choices"],
        ok(TEXT, &text_body())["choices"]
    );
    ok(TEXT, &json!({"prompt": [50.0, 32, 43], "max_tokens": 1.0}));
}

#[test]
fn a_model_is_found_by_its_name() {
    let found = |path: &str| {
        let call = Call {
            method: "GET",
            path,
            ..Call::default()
        };
        call.of(&SERVER)
    };
    let (status, model) = found("/v1/models/pocket");
    assert_eq!(status, StatusCode::OK);
    let (_, models) = found("/v1/models");
    assert_eq!(model["id"], models["data"][0]["id"]);
    assert_eq!(model["object"], "model");
    for path in [
        "/v1/models/gpt-4",
        "/v1/models/meta-llama/Llama-2-7b",
        "/v1/models/a%2Fb",
    ] {
        let (status, answer) = found(path);
        assert_eq!(status, StatusCode::NOT_FOUND);
        assert_eq!(answer["error"]["code"], "model_not_found", "{path}");
    }
    let (status, answer) = post(CHAT, &with(&chat_body(), "model", &json!("")));
    assert_eq!(status, StatusCode::NOT_FOUND, "{answer}");
}

#[test]
fn tournaments_stay_visible() {
    let mut body = chat_body();
    body["best_of"] = json!(4);
    let answer = ok(CHAT, &body);
    let ranking = answer["tournament"]["ranking"].as_array().unwrap();
    assert_eq!(ranking.len(), 4);
    assert_eq!(answer["choices"].as_array().unwrap().len(), 1);
    assert!(ok(CHAT, &chat_body()).get("tournament").is_none());
    let texts = json!({"prompt": ["2 plus", "3 plus"], "best_of": 3, "max_tokens": 4, "seed": 1});
    let answer = ok(TEXT, &texts);
    assert_eq!(answer["tournaments"].as_array().unwrap().len(), 2);
}

#[test]
fn an_answer_goes_on_in_the_last_message() {
    let user = json!({"role": "user", "content": "What is 34 plus 28?"});
    let whole = ok(CHAT, &json!({"messages": [user], "temperature": 0}));
    let text = whole["choices"][0]["message"]["content"].as_str().unwrap();
    assert!(text.len() > 1, "{text}");
    // The call continues every beginning of the answer like the whole answer, on both routes and in a stream.
    for end in 1..text.len() {
        let begun = json!({"role": "assistant", "content": text[..end]});
        let mut body = json!({"messages": [user, begun], "temperature": 0, "continue_final_message": true,
            "add_generation_prompt": false});
        let answer = ok(CHAT, &body);
        let rest = answer["choices"][0]["message"]["content"].as_str().unwrap();
        // Another tokenization of the same text may lead to another end. With the same tokens the end is the same.
        if text.starts_with(char::is_numeric) {
            assert_eq!(format!("{}{rest}", &text[..end]), text);
        }
        let generated = ok("/generate", &body);
        assert_eq!(generated["outputs"][0]["text"], rest);
        body["stream"] = json!(true);
        let streamed: String = events(CHAT, &body)
            .iter()
            .flat_map(|event| event["choices"].as_array().unwrap().clone())
            .map(|choice| choice["delta"]["content"].as_str().unwrap().to_owned())
            .collect();
        assert_eq!(streamed, rest);
    }
    let closed = json!({"messages": [user], "temperature": 0, "add_generation_prompt": false, "max_tokens": 3});
    assert!(
        ok(CHAT, &closed)["usage"]["prompt_tokens"].as_u64()
            < whole["usage"]["prompt_tokens"].as_u64()
    );
    let begun = json!([user, {"role": "assistant", "content": "6"}]);
    for (path, body, param) in [
        (
            CHAT,
            json!({"messages": begun, "continue_final_message": true, "best_of": 2}),
            "best_of",
        ),
        (
            CHAT,
            json!({"messages": [user, {"role": "assistant", "content": " "}], "continue_final_message": true}),
            "continue_final_message",
        ),
        (
            "/generate",
            json!({"prompt": "x", "continue_final_message": true}),
            "messages",
        ),
        (
            "/generate",
            json!({"prompt": "x", "add_generation_prompt": false}),
            "messages",
        ),
    ] {
        let (status, error) = post(path, &body);
        assert_eq!(status, StatusCode::BAD_REQUEST, "{body}");
        assert_eq!(error["error"]["param"], param, "{error}");
    }
}
