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
