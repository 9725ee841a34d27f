//! Tests of decisions, which answer with probabilities of options instead of text.

use super::*;

fn sum(answer: &Value) -> f64 {
    let probabilities = answer["probabilities"].as_array().unwrap();
    probabilities
        .iter()
        .map(|p| p["probability"].as_f64().unwrap())
        .sum()
}

#[test]
fn every_kind_of_question_gets_its_kind_of_answer() {
    let questions = json!([
        {"type": "predicate", "name": "right", "instructions": "The sum is right."},
        {"type": "choice", "instructions": "Which?", "choices": [{"value": true}, {"value": "true"}, {"value": "other", "description": "neither"}]},
        {"type": "score", "name": "how", "instructions": "How polite?", "levels": [{"label": "not"}, {"label": "a bit"}, {"label": "very"}]}
    ]);
    let answer = ok(
        "/v1/decisions",
        &json!({"model": "pocket", "input": "34 plus 28 is 62.", "questions": questions}),
    );
    let answers = answer["answers"].as_array().unwrap();
    assert_eq!(answers.len(), 3);
    assert_eq!(
        (&answers[0]["type"], &answers[0]["name"]),
        (&json!("predicate"), &json!("right"))
    );
    let p = answers[0]["probability"].as_f64().unwrap();
    assert!((0.0..=1.0).contains(&p));
    assert_eq!(
        (&answers[1]["type"], &answers[1]["name"]),
        (&json!("choice"), &Value::Null)
    );
    assert!((sum(&answers[1]) - 1.0).abs() < 1e-5);
    assert_eq!(answers[1]["probabilities"][0]["value"], true);
    let best = answers[1]["probabilities"].as_array().unwrap().iter();
    let best = best
        .max_by(|a, b| {
            a["probability"]
                .as_f64()
                .unwrap()
                .total_cmp(&b["probability"].as_f64().unwrap())
        })
        .unwrap();
    assert_eq!(
        (&answers[1]["choice"], &answers[1]["confidence"]),
        (&best["value"], &best["probability"])
    );
    assert!((sum(&answers[2]) - 1.0).abs() < 1e-5);
    let expected: f64 = answers[2]["probabilities"]
        .as_array()
        .unwrap()
        .iter()
        .map(|p| p["value"].as_f64().unwrap() * p["probability"].as_f64().unwrap())
        .sum();
    assert!((answers[2]["score"].as_f64().unwrap() - expected).abs() < 1e-5);
    let usage = &answer["usage"];
    assert_eq!(
        usage["output_tokens"], 6,
        "the three questions must have two orders each"
    );
    assert!(
        usage["input_tokens_details"]["cached_tokens"]
            .as_u64()
            .unwrap()
            > 0,
        "the input must be computed once"
    );
}

#[test]
fn the_order_of_options_does_not_matter() {
    let ask = |choices: Value| {
        let question = json!({"type": "choice", "instructions": "Which?", "choices": choices});
        ok(
            "/v1/decisions",
            &json!({"input": "x", "questions": [question]}),
        )["answers"][0]
            .clone()
    };
    let (one, two) = (
        ask(json!([{"value": "a"}, {"value": "b"}])),
        ask(json!([{"value": "b"}, {"value": "a"}])),
    );
    assert_eq!(one["choice"], two["choice"]);
    assert_eq!(one["probabilities"][0], two["probabilities"][1]);
}

#[test]
fn what_is_no_question_is_refused() {
    let many: Vec<Value> = (0..27).map(|i| json!({"value": i.to_string()})).collect();
    let predicate = json!({"type": "predicate", "instructions": "x"});
    for (input, questions, param) in [
        (json!(""), json!([predicate]), "input"),
        (json!([]), json!([predicate]), "input"),
        (json!("x"), json!([]), "questions"),
        (
            json!("x"),
            json!([{"type": "predicate", "instructions": " "}]),
            "questions[0].instructions",
        ),
        (
            json!("x"),
            json!([predicate, {"type": "choice", "instructions": "x", "choices": [{"value": "a"}]}]),
            "questions[1].choices",
        ),
        (
            json!("x"),
            json!([{"type": "choice", "instructions": "x", "choices": [{"value": "a"}, {"value": "a"}]}]),
            "questions[0].choices",
        ),
        (
            json!("x"),
            json!([{"type": "choice", "instructions": "x", "choices": many}]),
            "questions[0].choices",
        ),
        (
            json!("x"),
            json!([{"type": "score", "instructions": "x", "levels": []}]),
            "questions[0].levels",
        ),
    ] {
        let (status, answer) = post(
            "/v1/decisions",
            &json!({"input": input, "questions": questions}),
        );
        assert_eq!(status, StatusCode::BAD_REQUEST, "{questions}");
        assert_eq!(answer["error"]["param"], param, "{answer}");
    }
}
