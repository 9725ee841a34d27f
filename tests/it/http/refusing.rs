//! Tests of calls that cannot be served, or are too large.

use futures::{StreamExt, stream};
use tokio::sync::oneshot;

use super::*;
pub use crate::patience::until;
use crate::patience::until_quick_enough;

#[test]
fn what_cannot_be_served_is_a_4xx_that_says_what() {
    let long = "7".repeat(600);
    for (path, body, param) in [
        ("/generate", json!({}), json!("prompt")),
        ("/generate", json!({"prompt": ""}), json!("prompt")),
        ("/generate", json!({"messages": []}), json!("messages")),
        (
            "/generate",
            json!({"prompt": "x", "messages": [{"role": "user", "content": "x"}]}),
            json!("prompt"),
        ),
        ("/generate", json!({"prompt": long}), json!("prompt")),
        (
            "/generate",
            json!({"prompt": "x", "temperature": -1}),
            json!("temperature"),
        ),
        ("/generate", json!({"prompt": "x", "n": 0}), json!("n")),
        ("/generate", json!({"prompt": "x", "n": 1000}), json!("n")),
        (
            "/generate",
            json!({"prompt": "x", "best_of": 1000}),
            json!("best_of"),
        ),
        (
            "/v1/completions",
            json!({"prompt": "x", "best_of": 1000}),
            json!("best_of"),
        ),
        (
            "/v1/completions",
            json!({"prompt": vec!["x"; 400], "best_of": 100}),
            json!("best_of"),
        ),
        (
            "/generate",
            json!({"prompt": "x", "best_of": 100, "judge": {"principles": vec!["brief"; 64], "bracket": "round_robin"}}),
            json!("best_of"),
        ),
        (
            "/generate",
            json!({"prompt": "x", "best_of": 2, "judge": {"principles": vec!["brief"; 65]}}),
            json!("judge.principles"),
        ),
        (
            "/generate",
            json!({"prompt": "x", "best_of": 4, "judge": {"bracket": "round_robin", "seed": 1}}),
            json!("judge.seed"),
        ),
        (
            "/generate",
            json!({"prompt": "x", "logprobs": 21}),
            json!("logprobs"),
        ),
        (
            "/generate",
            json!({"prompt": "x", "logprob_token_ids": vec![65; 129]}),
            json!("logprob_token_ids"),
        ),
        (
            "/generate",
            json!({"prompt": "x", "priority": 101}),
            json!("priority"),
        ),
        (
            "/judge",
            json!({"prompt": "x", "candidates": ["a", "b"], "priority": -101}),
            json!("priority"),
        ),
        (
            "/judge",
            json!({"prompt": "x", "candidates": ["a", "b"], "seed": 1}),
            json!("seed"),
        ),
        (
            "/judge",
            json!({"prompt": "x", "candidates": ["a", "b", "c"], "bracket": "round_robin", "seed": 1}),
            json!("seed"),
        ),
        (
            "/judge",
            json!({"prompt": "x", "candidates": ["a", "b"], "principles": vec!["brief"; 65]}),
            json!("principles"),
        ),
        (
            "/judge",
            json!({"prompt": "x", "candidates": vec!["a"; 400], "principles": vec!["brief"; 64]}),
            json!("candidates"),
        ),
        (
            "/v1/decisions",
            json!({"input": "7".repeat(600), "questions": [{"type": "predicate", "instructions": "x"}]}),
            json!("input"),
        ),
        (
            "/generate",
            json!({"prompt": "x", "n": 3, "best_of": 2}),
            json!("best_of"),
        ),
        (
            "/generate",
            json!({"prompt": "x", "judge": {"orders": "given"}}),
            json!("judge"),
        ),
        (
            "/generate",
            json!({"prompt": "x", "best_of": 2, "stream": true}),
            json!("stream"),
        ),
        (
            "/generate",
            json!({"prompt": "x", "stop": [""]}),
            json!("stop"),
        ),
        (
            "/generate",
            json!({"prompt": "x", "logit_bias": {"x": 1}}),
            json!("logit_bias"),
        ),
        (
            "/generate",
            json!({"prompt": "x", "timeout": 0}),
            json!("timeout"),
        ),
        (
            "/generate",
            json!({"prompt": "x", "unknown": 1}),
            json!("unknown"),
        ),
        (
            "/generate",
            json!({"prompt": "x", "temperature": "hot"}),
            json!("temperature"),
        ),
        (
            "/judge",
            json!({"prompt": "x", "candidates": ["a"]}),
            json!("candidates"),
        ),
        (
            "/judge",
            json!({"prompt": "x", "candidates": ["a", "b", "c"], "method": "pairwise"}),
            json!("method"),
        ),
        (
            "/judge",
            json!({"prompt": "x", "candidates": ["a", "b"], "bracket": "ring"}),
            json!("bracket"),
        ),
        (
            "/judge",
            json!({"prompt": "x", "candidates": ["a", "b"], "principles": [""]}),
            json!("principles"),
        ),
        (
            "/judge",
            json!({"prompt": "x", "candidates": ["a", "b"], "principles": [{"principle": "brief", "weight": 0}]}),
            json!("principles"),
        ),
        (
            "/generate",
            json!({"messages": [{"role": "user", "content": "x"}, {"role": "user", "content": "x", "mood": 1}]}),
            json!("messages[1].mood"),
        ),
        (
            "/generate",
            json!({"messages": [{"role": "user"}]}),
            json!("messages[0].content"),
        ),
        (
            "/generate",
            json!({"prompt": "x", "stream": true, "stream_options": {"include_usage": 1}}),
            json!("stream_options.include_usage"),
        ),
        (
            "/generate",
            json!({"prompt": "x", "logit_bias": {"7": "much"}}),
            json!("logit_bias.7"),
        ),
        (
            "/judge",
            json!({"prompt": "x", "candidates": ["a", 7]}),
            json!("candidates[1]"),
        ),
        (
            "/v1/chat/completions",
            json!({"messages": [{"role": "user", "content": "x"}], "tools": [{"type": "function"}]}),
            json!("tools[0].function"),
        ),
        (
            "/v1/completions",
            json!({"prompt": "x", "suffix": "y"}),
            json!("suffix"),
        ),
        ("/tokenize", json!({}), json!("text")),
        ("/detokenize", json!({"tokens": [9999]}), json!("tokens")),
    ] {
        let (status, answer) = post(path, &body);
        assert_eq!(status, StatusCode::BAD_REQUEST, "{path} {body}: {answer}");
        let error = &answer["error"];
        assert!(error["code"].is_string());
        assert_whole(error["message"].as_str().unwrap());
        assert_eq!(error["param"], param, "{path} {body}: {answer}");
    }
    RUNTIME.block_on(async {
        for body in ["", "{", "[]", "null", "\"x\"", "{\"prompt\": NaN}", "\u{0}"] {
            let response = call(&SERVER, "/generate", body).await;
            assert_eq!(response.status(), StatusCode::BAD_REQUEST, "{body}");
        }
        let huge = "x".repeat(9 << 20);
        let response = call(&SERVER, "/generate", huge).await;
        assert_eq!(response.status(), StatusCode::PAYLOAD_TOO_LARGE);
        let request = Request::get("/generate").body(Body::empty()).unwrap();
        let response = SERVER.clone().oneshot(request).await.unwrap();
        assert_eq!(response.status(), StatusCode::METHOD_NOT_ALLOWED);
    });
}

/// Asserts that a message is a sentence of its own, since some clients show it without `param`.
pub fn assert_whole(message: &str) {
    let goes_on = [
        "must ",
        "has ",
        "have ",
        "cannot ",
        "can ",
        "is ",
        "are ",
        "or ",
        "and ",
        "not ",
        "needs ",
        "takes ",
        "none ",
        "of ",
        "names ",
        "no ",
        "permits ",
        "invalid ",
        "unknown field",
    ];
    assert!(
        !message.is_empty() && !goes_on.iter().any(|start| message.starts_with(start)),
        "the message is not a whole sentence: {message}"
    );
    assert!(
        message.contains(' ') && !message.contains('\n'),
        "{message}"
    );
}

#[test]
fn too_much_at_once_is_turned_away_and_a_gone_client_frees_its_place() {
    let config = HttpConfig {
        max_requests: 1,
        ..HttpConfig::default()
    };
    let server = start(&engine(), &config);
    let endless = json!({"prompt": "What is 34 plus 28?", "ignore_eos": true, "max_tokens": 480, "n": 128,
        "stream": true});
    RUNTIME.block_on(until_quick_enough(async || {
        let before = failures(&server, "aborted").await;
        let first = call(&server, "/generate", endless.to_string()).await;
        assert_eq!(first.status(), StatusCode::OK);
        let mut pieces = first.into_body().into_data_stream();
        pieces.next().await.unwrap().unwrap();
        // Most pieces of the answer are unread, however far the engine is. So the call keeps its place.
        let second = call(&server, "/generate", endless.to_string()).await;
        assert_eq!(second.status(), StatusCode::TOO_MANY_REQUESTS);
        assert!(second.headers().contains_key("retry-after"));
        drop(pieces);
        let plain = r#"{"prompt": "What is 3 plus 4?"}"#;
        until(async || call(&server, "/generate", plain).await.status() == StatusCode::OK).await;
        until(async || metric(&server, "kv_cache_usage_perc").await == 0.0).await;
        assert_eq!(metric(&server, "num_requests_running").await, 0.0);
        // All samples of one call end at the same step.
        let aborted = failures(&server, "aborted").await - before;
        assert!([0.0, 128.0].contains(&aborted), "{aborted}");
        aborted > 0.0
    }));
}

/// A call holds its place before its body arrives. So calls whose bodies are still read are bounded on every route.
#[test]
fn a_body_that_is_still_coming_has_a_place_already() {
    let config = HttpConfig {
        max_requests: 1,
        ..HttpConfig::default()
    };
    let server = start(&EngineConfig::default(), &config);
    let all = [
        ("/generate", json!({"prompt": "x", "max_tokens": 1})),
        ("/judge", json!({"prompt": "x", "candidates": ["a", "a"]})),
        ("/tokenize", json!({"text": "x"})),
        ("/detokenize", json!({"tokens": [65]})),
        ("/v1/completions", json!({"prompt": "x", "max_tokens": 1})),
        (
            "/v1/chat/completions",
            json!({"messages": [{"role": "user", "content": "x"}], "max_tokens": 1}),
        ),
        (
            "/v1/decisions",
            json!({"input": "x", "questions": [{"type": "predicate", "instructions": "x"}]}),
        ),
    ];
    RUNTIME.block_on(async {
        for (path, body) in &all {
            let (begins, begun) = oneshot::channel();
            let (comes, coming) = oneshot::channel::<String>();
            let slow = stream::once(async move {
                begins.send(()).unwrap();
                coming.await
            });
            let sent = tokio::spawn({
                let (server, path) = (server.clone(), *path);
                async move { call(&server, path, Body::from_stream(slow)).await }
            });
            begun.await.unwrap();
            for (other, body) in &all {
                let (status, _) = post_to(&server, other, body).await;
                assert_eq!(status, StatusCode::TOO_MANY_REQUESTS, "{other}");
            }
            comes.send(body.to_string()).unwrap();
            assert_eq!(sent.await.unwrap().status(), StatusCode::OK, "{path}");
        }
    });
}

#[test]
fn refusals_are_counted_by_their_codes() {
    let server = start(&EngineConfig::default(), &HttpConfig::default());
    RUNTIME.block_on(async {
        for (path, body, times) in [
            ("/generate", "{", 1),
            ("/generate", r#"{"prompt": ""}"#, 2),
            ("/nowhere", "", 3),
        ] {
            for _ in 0..times {
                assert!(call(&server, path, body).await.status().is_client_error());
            }
        }
        let request = Request::get("/metrics").body(Body::empty()).unwrap();
        let page = text(server.clone().oneshot(request).await.unwrap()).await;
        for (reason, times) in [
            ("invalid_json", 1),
            ("invalid_parameter", 2),
            ("not_found", 3),
        ] {
            let line =
                format!("http_rejected_total{{reason=\"{reason}\",model_name=\"pocket\"}} {times}");
            assert!(page.contains(&line), "{line} is not in {page}");
        }
    });
}

#[test]
fn the_consent_of_a_call_is_checked_after_its_other_parameters() {
    let logged = logged(&keyed(), TrafficConfig::default());
    for (path, mut body) in [
        ("/generate", json!({"prompt": "q"})),
        ("/generate", json!({"prompt": "q", "best_of": 3})),
        ("/judge", json!({"prompt": "q", "candidates": ["1", "2"]})),
        (
            "/judge",
            json!({"prompt": "q", "candidates": ["1", "2", "3"]}),
        ),
    ] {
        body["log"] = json!({"retain": false, "train": true});
        let named =
            |body: &Value| posted(path, "a", body).of(&logged.server).1["error"]["param"].clone();
        assert_eq!(named(&body), "log", "{body}");
        let judging = match path {
            "/judge" => "principles",
            _ => "judge.principles",
        };
        let principles = json!([""]);
        let mut other = vec![("priority", "priority", json!(1000))];
        match path {
            "/judge" => other.push(("principles", judging, principles)),
            _ if body.get("best_of").is_some() => {
                other.push(("judge", judging, json!({"principles": principles})));
            }
            _ => {}
        }
        for (field, param, value) in other {
            let mut body = body.clone();
            body[field] = value;
            assert_eq!(named(&body), param, "{body}");
        }
    }
}
