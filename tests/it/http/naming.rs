//! Tests of the parameter that an error names: it is the key at fault, at any depth and for any value.

use super::*;

const CHAT: &str = "/v1/chat/completions";
const DECISIONS: &str = "/v1/decisions";

/// Returns the parameter and the message of a refusal.
fn refused(path: &str, body: &Value) -> (String, String) {
    let (status, answer) = post(path, body);
    assert_eq!(status, StatusCode::BAD_REQUEST, "{path} {body}: {answer}");
    let error = &answer["error"];
    let text = |name: &str| error[name].as_str().unwrap_or_default().to_owned();
    (text("param"), text("message"))
}

#[test]
fn principles_are_named_by_their_place() {
    for (value, place, part) in [
        (json!("tabel"), "", "\"table\""),
        (json!(7), "", "\"table\", or a list"),
        (json!({"principle": "x"}), "", "not an object"),
        (json!(["correct", 7]), "[1]", "a name, a text, or an object"),
        (json!(["correct", null]), "[1]", "not null"),
        (json!([["correct"]]), "[0]", "not a list"),
        (json!([{"weight": 1}]), "[0].principle", "must be given"),
        (
            json!(["correct", {"principle": "x", "weigth": 1}]),
            "[1].weigth",
            "did you mean `weight`",
        ),
        (
            json!([{"principle": "x", "weight": "1"}]),
            "[0].weight",
            "must be a number",
        ),
        (
            json!([{"principle": 1, "weight": 1}]),
            "[0].principle",
            "must be a string",
        ),
    ] {
        let judge = json!({"prompt": "x", "candidates": ["a", "b"], "principles": value});
        let within = json!({"best_of": 2, "max_tokens": 2, "judge": {"principles": value}});
        let with = |field: &str, given: Value| {
            let mut body = within.clone();
            body[field] = given;
            body
        };
        let messages = json!([{"role": "user", "content": "x"}]);
        for (path, body, outer) in [
            ("/judge", judge, "principles"),
            ("/generate", with("prompt", json!("x")), "judge.principles"),
            (CHAT, with("messages", messages), "judge.principles"),
            (
                "/v1/completions",
                with("prompt", json!("x")),
                "judge.principles",
            ),
        ] {
            let (param, message) = refused(path, &body);
            assert_eq!(
                param,
                format!("{outer}{place}"),
                "{path} {value}: {message}"
            );
            assert!(message.contains(part), "{path} {value}: {message}");
        }
    }
    for value in [
        json!("table"),
        json!([]),
        json!(["correct", {"principle": "polite", "weight": 0.5}]),
    ] {
        ok(
            "/judge",
            &json!({"prompt": "x", "candidates": ["a", "b"], "principles": value}),
        );
    }
}

#[test]
fn questions_and_inputs_are_named_by_their_place() {
    let ask = |question: Value| json!({"input": "x", "questions": [{"type": "predicate", "instructions": "y"}, question]});
    let said = |message: Value| json!({"input": [{"role": "user", "content": "y"}, message], "questions": [{"type": "predicate", "instructions": "y"}]});
    for (body, param, part) in [
        (
            ask(json!({"type": "predicat", "instructions": "x"})),
            "questions[1].type",
            "did you mean `predicate`",
        ),
        (
            ask(json!({"instructions": "x"})),
            "questions[1].type",
            "must be given",
        ),
        (
            ask(json!({"type": "predicate"})),
            "questions[1].instructions",
            "must be given",
        ),
        (
            ask(json!({"type": "predicate", "instructions": 7})),
            "questions[1].instructions",
            "a string",
        ),
        (
            ask(json!({"type": "predicate", "instruction": "x"})),
            "questions[1].instruction",
            "did you mean `instructions`",
        ),
        (
            ask(json!({"type": "choice", "instructions": "x"})),
            "questions[1].choices",
            "must be given",
        ),
        (
            ask(json!({"type": "score", "instructions": "x"})),
            "questions[1].levels",
            "must be given",
        ),
        (
            ask(json!({"type": "predicate", "instructions": "x", "choices": [{"value": "a"}]})),
            "questions[1].choices",
            "not a parameter",
        ),
        (
            ask(
                json!({"type": "score", "instructions": "x", "levels": [{"label": "a"}, {"label": "b"}], "choices": []}),
            ),
            "questions[1].choices",
            "not a parameter",
        ),
        (
            ask(
                json!({"type": "choice", "instructions": "x", "choices": [{"value": "a"}, {"valeu": "b"}]}),
            ),
            "questions[1].choices[1].valeu",
            "did you mean `value`",
        ),
        (
            ask(
                json!({"type": "choice", "instructions": "x", "choices": [{"value": "a"}, {"value": 7}]}),
            ),
            "questions[1].choices[1].value",
            "must be a string or a boolean",
        ),
        (
            ask(
                json!({"type": "score", "instructions": "x", "levels": [{"label": "a"}, {"label": null}]}),
            ),
            "questions[1].levels[1].label",
            "not null",
        ),
        (
            said(json!({"role": "usr", "content": "x"})),
            "input[1].role",
            "did you mean `user`",
        ),
        (
            said(json!({"role": "user", "content": [{"type": "text"}]})),
            "input[1].content[0].text",
            "must be given",
        ),
        (
            said(json!({"role": "user", "content": [7]})),
            "input[1].content[0]",
            "an object",
        ),
        (
            said(json!({"role": "user", "content": "x", "mood": 1})),
            "input[1].mood",
            "not a parameter",
        ),
    ] {
        let (named, message) = refused(DECISIONS, &body);
        assert_eq!(named, param, "{body}: {message}");
        assert!(message.contains(part), "{body}: {message}");
    }
}

/// Decisions accept the same neutral fields as chats.
#[test]
fn decisions_accept_what_asks_for_nothing() {
    let body = json!({"model": "pocket", "input": "34 plus 28 is 62.", "questions": [{"type": "predicate", "instructions": "The sum is right."}]});
    let plain = ok(DECISIONS, &body);
    for (field, value) in [
        ("safety_identifier", json!("x")),
        ("user", json!("alice")),
        ("metadata", json!({"topic": "sums"})),
        ("prompt_cache_key", json!("x")),
        ("store", json!(false)),
        ("service_tier", json!("auto")),
        ("reasoning_effort", json!("medium")),
        ("parallel_tool_calls", json!(true)),
        ("tools", json!([])),
        ("tool_choice", json!("auto")),
        ("modalities", json!(["text"])),
        ("verbosity", json!("medium")),
        ("chat_template_kwargs", json!({})),
        ("skip_special_tokens", json!(true)),
        ("vllm_xargs", json!({})),
        ("stream", json!(false)),
        ("n", json!(1)),
        ("temperature", Value::Null),
        ("seed", Value::Null),
        ("stop", Value::Null),
        ("log", Value::Null),
        ("response_format", Value::Null),
    ] {
        let mut body = body.clone();
        body[field] = value;
        assert_eq!(ok(DECISIONS, &body)["answers"], plain["answers"], "{field}");
    }
    for (field, value) in [
        ("store", json!(true)),
        (
            "tools",
            json!([{"type": "function", "function": {"name": "f"}}]),
        ),
        ("reasoning_effort", json!("high")),
        ("stream", json!(true)),
        ("temperature", json!(0.5)),
        ("mood", Value::Null),
    ] {
        let mut body = body.clone();
        body[field] = value;
        assert_eq!(refused(DECISIONS, &body).0, field);
    }
    // These messages have the form in which clients keep them.
    let mut kept = body;
    kept["input"] = json!([
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "34 plus 28?"}]},
        {"role": "assistant", "content": null, "refusal": null, "tool_calls": [], "annotations": []},
        {"id": "msg_1", "role": "assistant", "content": [{"type": "output_text", "text": "62", "annotations": [], "logprobs": []}]}
    ]);
    ok(DECISIONS, &kept);
}
