//! Tests of neutral values on every route, and of the errors of wrong ones.

use super::*;

const SUM: &str = "What is 45 plus 17?";

#[test]
fn null_and_neutral_values_are_accepted_where_a_parameter_is_known() {
    let pair = |more: Value| {
        let mut body = json!({"prompt": SUM, "candidates": ["62", "52"]});
        body.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        body
    };
    let asked = |more: Value| {
        let mut body = json!({"prompt": SUM, "max_tokens": 4, "seed": 1});
        body.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        body
    };
    for (path, body) in [
        (
            "/judge",
            pair(json!({"orders": null, "principles": null, "on_disagreement": null})),
        ),
        (
            "/judge",
            pair(json!({"principles": [{"principle": "correct", "weight": null}]})),
        ),
        ("/generate", asked(json!({"judge": {}}))),
        (
            "/generate",
            asked(json!({"judge": {"principles": null, "orders": "both"}})),
        ),
        (
            "/generate",
            asked(json!({"best_of": 2, "judge": {"principles": null}})),
        ),
        ("/generate", asked(json!({"stream_options": {}}))),
        (
            "/generate",
            asked(json!({"stream_options": {"include_usage": false}})),
        ),
        (
            "/generate",
            asked(json!({"structured_outputs": {"json": null, "regex": "[0-9]+", "choice": null}})),
        ),
        (
            "/generate",
            asked(
                json!({"structured_outputs": {"choice": ["a"], "disable_fallback": false,
                "disable_any_whitespace": false, "whitespace_pattern": null}}),
            ),
        ),
        (
            "/detokenize",
            json!({"tokens": [51], "skip_special_tokens": null}),
        ),
        (
            "/v1/chat/completions",
            json!({"messages": [{"role": "user", "content": SUM, "name": "alice"}], "max_tokens": 4}),
        ),
    ] {
        let (status, answer) = post(path, &body);
        assert_eq!(status, StatusCode::OK, "{path} {body}: {answer}");
    }
}

#[test]
fn what_is_asked_wrongly_is_named_in_a_sentence() {
    let ask = |more: Value| {
        let mut body = json!({"prompt": SUM, "max_tokens": 4});
        body.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        body
    };
    for (more, message) in [
        (
            json!({"structured_outputs": {}}),
            "`structured_outputs` must have one of `json`, `regex`, `grammar` and `choice`",
        ),
        (
            json!({"structured_outputs": {"regex": "a", "choice": ["a"]}}),
            "`structured_outputs` must have one of `json`, `regex`, `grammar` and `choice`",
        ),
        (
            json!({"structured_outputs": {"regex": "["}}),
            "`structured_outputs` does not compile: a regular expression does not parse: unclosed character class",
        ),
        (
            json!({"judge": {"orders": "given"}}),
            "`judge` has no meaning without a `best_of` above 1",
        ),
    ] {
        let (status, answer) = post("/generate", &ask(more.clone()));
        assert_eq!(status, StatusCode::BAD_REQUEST, "{more}");
        assert_eq!(answer["error"]["message"], message, "{more}");
    }
    for nothing_drawn in [
        json!({"top_k": 1}),
        json!({"min_p": 1}),
        json!({"top_p": 1e-9}),
    ] {
        let mut more = nothing_drawn.clone();
        more["best_of"] = json!(4);
        let (_, answer) = post("/generate", &ask(more));
        assert_eq!(answer["error"]["param"], "best_of", "{nothing_drawn}");
    }
    let body = json!({"prompt": SUM, "candidates": ["62", "52"], "orders": ["both"]});
    let (_, answer) = post("/judge", &body);
    assert_eq!(
        answer["error"]["message"],
        "`orders` must be a text, not a list"
    );
}

#[test]
fn a_verdict_says_where_its_principles_come_from_and_joins_them() {
    let judge = |principles: Value| {
        let body =
            json!({"prompt": SUM, "candidates": ["Sure! 62.", "62"], "principles": principles});
        ok("/judge", &body)
    };
    let verdict = judge(json!(["correct", "corect"]));
    assert_eq!(verdict["principles"][0]["source"], "table");
    assert_eq!(verdict["principles"][1]["source"], "text");
    for principles in [
        json!("table"),
        json!(["correct", "brief"]),
        json!(["polite"]),
    ] {
        let verdict = judge(principles.clone());
        // These are the probabilities in each order that candidate 0 is better.
        let [given, turned] = [0, 1].map(|at| verdict["orders"][at]["p_first"].as_f64().unwrap());
        let agree = (given > 0.5) == (1.0 - turned > 0.5);
        assert_eq!(verdict["consistent"], agree, "{principles}: {verdict}");
    }
}

#[test]
fn a_known_parameter_that_is_not_supported_is_named_with_its_neutral_values() {
    let messages = json!([{"role": "user", "content": SUM}]);
    for (path, body, param, values) in [
        (
            "/v1/chat/completions",
            json!({"messages": messages, "store": true}),
            "store",
            "null or false",
        ),
        (
            "/v1/chat/completions",
            json!({"messages": messages, "reasoning_effort": "high"}),
            "reasoning_effort",
            "null or \"none\" or \"medium\"",
        ),
        (
            "/v1/chat/completions",
            json!({"messages": [{"role": "user", "content": SUM, "audio": {"id": "x"}}]}),
            "messages[0].audio",
            "null",
        ),
        (
            "/v1/completions",
            json!({"prompt": SUM, "suffix": "x"}),
            "suffix",
            "null or \"\"",
        ),
        (
            "/v1/responses",
            json!({"input": SUM, "service_tier": "flex"}),
            "service_tier",
            "null or \"auto\" or \"default\"",
        ),
        (
            "/v1/decisions",
            json!({"input": SUM, "questions": [], "n": 2}),
            "n",
            "null or 1",
        ),
    ] {
        let (status, answer) = post(path, &body);
        let error = &answer["error"];
        assert_eq!(status, StatusCode::BAD_REQUEST, "{path}: {answer}");
        assert_eq!(error["code"], "unsupported_parameter", "{path}: {answer}");
        assert_eq!(error["param"], param, "{path}: {answer}");
        let message =
            format!("`{param}` is not supported by this server: leave it out, or give {values}");
        assert_eq!(error["message"], message, "{path}");
    }
    let (_, answer) = post(
        "/v1/chat/completions",
        &json!({"messages": messages, "stroe": false}),
    );
    assert_eq!(answer["error"]["code"], "unknown_parameter", "{answer}");
}

#[test]
fn a_list_is_taken_for_no_object() {
    let messages = json!([{"role": "user", "content": SUM}]);
    for (path, body, param) in [
        (
            "/v1/chat/completions",
            json!({"messages": messages, "response_format": []}),
            "response_format",
        ),
        (
            "/v1/chat/completions",
            json!({"messages": messages, "response_format": ["text", null]}),
            "response_format",
        ),
        (
            "/v1/chat/completions",
            json!({"messages": [["user", SUM]]}),
            "messages[0]",
        ),
        (
            "/v1/chat/completions",
            json!({"messages": messages, "stream": true, "stream_options": [true, false]}),
            "stream_options",
        ),
        (
            "/generate",
            json!({"prompt": SUM, "structured_outputs": [null, "a", null, null]}),
            "structured_outputs",
        ),
        (
            "/judge",
            json!({"prompt": SUM, "candidates": ["62", "52"], "log": [true, false]}),
            "log",
        ),
    ] {
        let (status, answer) = post(path, &body);
        assert_eq!(status, StatusCode::BAD_REQUEST, "{path} {body}: {answer}");
        assert_eq!(answer["error"]["param"], param, "{path} {body}");
        let message = format!("`{param}` must be an object, not a list");
        assert_eq!(answer["error"]["message"], message, "{path} {body}");
    }
}

#[test]
fn nothing_to_draw_from_is_refused_by_name_with_a_grammar_too() {
    for (path, more, param) in [
        ("/v1/chat/completions", json!({"top_p": 0}), "top_p"),
        (
            "/v1/chat/completions",
            json!({"max_tokens": 0}),
            "max_tokens",
        ),
        (
            "/v1/completions",
            json!({"max_tokens": 0}),
            "structured_outputs",
        ),
        ("/generate", json!({"max_tokens": 0}), "max_tokens"),
    ] {
        let mut body = match path {
            "/v1/chat/completions" => json!({"messages": [{"role": "user", "content": SUM}]}),
            _ => json!({"prompt": SUM}),
        };
        body["structured_outputs"] = json!({"choice": ["a", "b"]});
        let fields = body.as_object_mut().unwrap();
        fields.extend(more.as_object().unwrap().clone());
        let (status, answer) = post(path, &body);
        assert_eq!(status, StatusCode::BAD_REQUEST, "{path} {body}: {answer}");
        assert_eq!(answer["error"]["param"], param, "{path} {body}: {answer}");
    }
}
