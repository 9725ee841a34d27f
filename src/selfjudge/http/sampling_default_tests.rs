//! Tests of the sampling parameters that a checkpoint recommends.

use axum::Router;
use serde_json::{Value, json};

use super::prompt_tests::{model, send, sent, serve};
use text::ChatSetup;

/// A checkpoint that recommends greedy answers in its generation_config.json.
const GREEDY: &str = r#"{"eos_token_id": 383, "temperature": 0.0, "max_new_tokens": 64}"#;

/// Returns the distinct answers of a few seeds.
fn answers(server: &Router, path: &str, call: &Value) -> usize {
    let mut answers: Vec<String> = (0..8)
        .map(|seed| {
            let mut call = call.clone();
            call["seed"] = json!(seed);
            let answer = sent(server, path, call);
            let choice = &answer["choices"][0];
            match (
                &choice["message"]["content"],
                &choice["text"],
                &answer["outputs"][0]["text"],
            ) {
                (Value::String(text), _, _)
                | (_, Value::String(text), _)
                | (_, _, Value::String(text)) => text.clone(),
                _ => panic!("{answer}"),
            }
        })
        .collect();
    answers.sort();
    answers.dedup();
    answers.len()
}

#[test]
fn a_call_that_sets_no_sampling_gets_the_checkpoints() {
    let dir = model(&[("generation_config.json", Some(GREEDY))]);
    let server = serve(&dir, ChatSetup::default(), false);
    let messages = json!([{"role": "user", "content": "What is 45 plus 17?"}]);
    for (path, call) in [
        (
            "/v1/chat/completions",
            json!({"messages": messages, "max_tokens": 24}),
        ),
        (
            "/v1/completions",
            json!({"prompt": "What is 45 plus", "max_tokens": 24}),
        ),
        ("/generate", json!({"messages": messages, "max_tokens": 24})),
    ] {
        assert_eq!(answers(&server, path, &call), 1, "{path}");
        let null = {
            let mut call = call.clone();
            call["temperature"] = Value::Null;
            call
        };
        assert_eq!(answers(&server, path, &null), 1, "{path}");
        let own = {
            let mut call = call.clone();
            call["temperature"] = json!(1.5);
            call
        };
        assert!(answers(&server, path, &own) > 1, "{path}");
    }
    // Equal candidates are not compared, and the reason is said.
    let (status, refused) = send(
        &server,
        "/generate",
        json!({"messages": messages, "best_of": 4}),
    );
    assert_eq!(status, 400, "{refused}");
    assert_eq!(refused["error"]["param"], "best_of", "{refused}");
}

#[test]
fn without_a_recommendation_the_models_own_distribution_is_drawn_from() {
    let dir = model(&[("generation_config.json", Some(r#"{"eos_token_id": 383}"#))]);
    let server = serve(&dir, ChatSetup::default(), false);
    let call = json!({"prompt": "Hello", "max_tokens": 24});
    assert!(answers(&server, "/v1/completions", &call) > 1);
}
