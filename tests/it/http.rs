//! The HTTP API over the pocket model, called without a socket.

use std::path::Path;
use std::sync::LazyLock;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::{Request, StatusCode};
use futures::StreamExt;
use selfjudge::engine::{Engine, EngineConfig};
use selfjudge::http::{AppState, HttpLimits, router};
use selfjudge::model::{LanguageModel, LoadOptions, Weights, WeightsVersion};
use selfjudge::service::Service;
use selfjudge::telemetry::Metrics;
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use tower::ServiceExt;

static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| Runtime::new().unwrap());

fn start(engine: &EngineConfig, limits: HttpLimits) -> Router {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/pocket");
    let model = LanguageModel::load(&dir, &LoadOptions::default()).unwrap();
    let weights = Weights {
        version: WeightsVersion(1),
        decoder: model.decoder().clone(),
    };
    let metrics = Metrics::new("pocket");
    let (engine, _) = Engine::start(weights, engine, metrics.engine.clone()).unwrap();
    let service = Service::new(engine, &model, &dir, metrics.judge.clone()).unwrap();
    router(AppState::new(service, "pocket", metrics, limits), limits)
}

/// One server for the tests that need nothing of their own.
static SERVER: LazyLock<Router> =
    LazyLock::new(|| start(&EngineConfig::default(), HttpLimits::default()));

async fn call(server: &Router, path: &str, body: impl Into<Body>) -> axum::response::Response {
    let request = Request::post(path).body(body.into()).unwrap();
    server.clone().oneshot(request).await.unwrap()
}

async fn text(response: axum::response::Response) -> String {
    let bytes = to_bytes(response.into_body(), usize::MAX).await.unwrap();
    String::from_utf8(bytes.to_vec()).unwrap()
}

async fn post_to(server: &Router, path: &str, body: &Value) -> (StatusCode, Value) {
    let response = call(server, path, body.to_string()).await;
    let status = response.status();
    (status, serde_json::from_str(&text(response).await).unwrap())
}

fn post(path: &str, body: &Value) -> (StatusCode, Value) {
    RUNTIME.block_on(post_to(&SERVER, path, body))
}

fn ok(path: &str, body: &Value) -> Value {
    let (status, answer) = post(path, body);
    assert_eq!(status, StatusCode::OK, "{answer}");
    answer
}

async fn metric(server: &Router, name: &str) -> f64 {
    let request = Request::get("/metrics").body(Body::empty()).unwrap();
    let page = text(server.clone().oneshot(request).await.unwrap()).await;
    let line = page
        .lines()
        .find(|line| line.starts_with(&format!("selfjudge:{name}{{")));
    let value = line.and_then(|line| line.rsplit(' ').next());
    value
        .unwrap_or_else(|| panic!("no {name} in {page}"))
        .parse()
        .unwrap()
}

#[test]
fn answers_have_what_was_asked_for() {
    let body = json!({"prompt": "Reverse the word piano.", "n": 3, "seed": 7, "logprobs": 2, "logprob_token_ids": [65]});
    let answer = ok("/generate", &body);
    let outputs = answer["outputs"].as_array().unwrap();
    assert_eq!(outputs.len(), 3);
    let mut tokens = 0;
    for (index, output) in outputs.iter().enumerate() {
        assert_eq!(output["index"], index);
        assert_eq!(output["finish_reason"], "stop");
        let ids = output["token_ids"].as_array().unwrap();
        let logprobs = output["logprobs"].as_array().unwrap();
        assert_eq!(ids.len(), logprobs.len());
        tokens += ids.len();
        for (id, logprob) in ids.iter().zip(logprobs) {
            assert_eq!(&logprob["token_id"], id);
            assert_eq!(logprob["top"].as_array().unwrap().len(), 2);
            assert_eq!(logprob["chosen"][0]["token_id"], 65);
        }
    }
    assert_eq!(answer["usage"]["completion_tokens"], tokens);
    assert_eq!(answer["version"], 1);
    // The same seed, the same words.
    assert_eq!(ok("/generate", &body)["outputs"], answer["outputs"]);
    let messages = json!({"messages": [{"role": "user", "content": "Reverse the word piano."}], "n": 3, "seed": 7,
        "logprobs": 2, "logprob_token_ids": [65]});
    assert_eq!(ok("/generate", &messages)["outputs"], answer["outputs"]);
}

#[test]
fn a_stream_is_the_whole_answer_in_pieces() {
    let mut body = json!({"prompt": "Spell piano with hyphens.", "n": 2, "seed": 3, "stop": ["a"], "max_tokens": 40});
    let whole = ok("/generate", &body);
    body["stream"] = json!(true);
    let stream =
        RUNTIME.block_on(async { text(call(&SERVER, "/generate", body.to_string()).await).await });
    let events: Vec<&str> = stream
        .lines()
        .filter_map(|line| line.strip_prefix("data: "))
        .collect();
    let (done, events) = events.split_last().unwrap();
    assert_eq!(*done, "[DONE]");
    let events: Vec<Value> = events
        .iter()
        .map(|event| serde_json::from_str(event).unwrap())
        .collect();
    let mut texts = [String::new(), String::new()];
    let mut reasons = [Value::Null, Value::Null];
    for output in events
        .iter()
        .flat_map(|event| event["outputs"].as_array().unwrap())
    {
        let index = output["index"].as_u64().unwrap() as usize;
        assert!(reasons[index].is_null(), "nothing comes after the end");
        texts[index].push_str(output["text"].as_str().unwrap());
        reasons[index] = output["finish_reason"].clone();
    }
    for (index, output) in whole["outputs"].as_array().unwrap().iter().enumerate() {
        assert_eq!(output["text"], texts[index]);
        assert!(
            !texts[index].contains('a'),
            "the stop string is no part of the text"
        );
        assert_eq!(output["finish_reason"], reasons[index]);
        assert_eq!(output["stop_reason"], "a");
    }
    let usage = &events.last().unwrap()["usage"];
    assert_eq!(
        usage["completion_tokens"],
        whole["usage"]["completion_tokens"]
    );
}

#[test]
fn the_best_of_many_is_the_tournaments_winner() {
    let body = json!({"prompt": "What is 34 plus 28?", "best_of": 9, "n": 2, "seed": 1});
    let answer = ok("/generate", &body);
    let tournament = &answer["tournament"];
    assert_eq!(tournament["comparisons"], 8);
    let outputs = answer["outputs"].as_array().unwrap();
    assert_eq!(outputs.len(), 2);
    for (rank, output) in outputs.iter().enumerate() {
        assert_eq!(output["index"], tournament["ranking"][rank]);
    }
    assert_eq!(tournament["winner"], outputs[0]["index"]);
    let byes = tournament["byes"].as_array().unwrap();
    assert!(
        byes[0].is_u64(),
        "one of nine has no match in the first round"
    );
}

#[test]
fn verdicts_turn_with_the_candidates() {
    for principles in [
        json!([]),
        json!(["correct"]),
        json!(["brief", {"principle": "polite", "weight": 0.5}]),
    ] {
        let judge = |a: &str, b: &str| {
            ok(
                "/judge",
                &json!({"prompt": "What is 34 plus 28?", "candidates": [a, b], "principles": principles}),
            )
        };
        for (a, b) in [("62", "[52]"), ("Sure! 62", "62"), ("", "62")] {
            let (one, two) = (judge(a, b), judge(b, a));
            let p = |answer: &Value| answer["p"].as_f64().unwrap();
            assert!((p(&one) + p(&two) - 1.0).abs() < 1e-6, "{one} {two}");
            assert_eq!(
                one["winner"].as_u64(),
                two["winner"].as_u64().map(|w| 1 - w)
            );
            assert_eq!(one["consistent"], two["consistent"]);
            assert_eq!(one["orders"].as_array().unwrap().len(), 2);
        }
    }
}

#[test]
fn a_verdict_does_not_depend_on_load() {
    let body = json!({"prompt": "Sort 8 3 5 in rising order.", "candidates": ["3 5 8", "3 8 5"]});
    let alone = ok("/judge", &body);
    let noise = json!({"prompt": "Sort 8 3 5 in rising order.", "n": 16, "max_tokens": 60, "ignore_eos": true});
    RUNTIME.block_on(async {
        let noise =
            futures::future::join_all((0..6).map(|_| post_to(&SERVER, "/generate", &noise)));
        let judged = futures::future::join_all((0..6).map(|_| post_to(&SERVER, "/judge", &body)));
        let (_, judged) = futures::join!(noise, judged);
        for (_, loaded) in judged {
            assert_eq!(loaded["orders"], alone["orders"], "not a bit may differ");
        }
    });
}

#[test]
fn odd_candidates_are_defined() {
    let prompt = "What is 34 plus 28?";
    let same = ok(
        "/judge",
        &json!({"prompt": prompt, "candidates": ["62", "62"]}),
    );
    assert_eq!((&same["winner"], &same["p"]), (&Value::Null, &json!(0.5)));
    assert_eq!(same["usage"]["prompt_tokens"], 0, "nothing had to be asked");
    let long = ok(
        "/judge",
        &json!({"prompt": prompt, "candidates": ["62", "7".repeat(5000)]}),
    );
    assert_eq!(long["truncated"], true);
    let many: Vec<String> = (0..300).map(|i| i.to_string()).collect();
    let tournament = ok(
        "/judge",
        &json!({"prompt": prompt, "candidates": many, "seed": 5}),
    );
    assert_eq!(tournament["comparisons"], 299);
    assert_eq!(tournament["ranking"].as_array().unwrap().len(), 300);
    let refused = post(
        "/judge",
        &json!({"prompt": prompt, "candidates": many, "bracket": "round_robin"}),
    );
    assert_eq!(
        (refused.0, &refused.1["error"]["param"]),
        (StatusCode::BAD_REQUEST, &json!("candidates"))
    );
}

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
            json!({"prompt": "x", "n": 3, "best_of": 2}),
            json!("best_of"),
        ),
        (
            "/generate",
            json!({"prompt": "x", "judge": {}}),
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
            Value::Null,
        ),
        (
            "/generate",
            json!({"prompt": "x", "temperature": "hot"}),
            Value::Null,
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
        ("/tokenize", json!({}), json!("text")),
        ("/detokenize", json!({"tokens": [9999]}), json!("tokens")),
    ] {
        let (status, answer) = post(path, &body);
        assert_eq!(status, StatusCode::BAD_REQUEST, "{path} {body}: {answer}");
        let error = &answer["error"];
        assert!(error["code"].is_string() && !error["message"].as_str().unwrap().is_empty());
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

#[test]
fn text_survives_tokenising() {
    for sample in ["What is 34 plus 28?", "péché \u{1F980} <|im_end|>", ""] {
        let tokens = ok("/tokenize", &json!({"text": sample}))["tokens"].clone();
        assert_eq!(
            ok("/detokenize", &json!({"tokens": tokens}))["text"],
            sample
        );
    }
}

#[test]
fn too_much_at_once_is_turned_away_and_a_gone_client_frees_its_place() {
    let limits = HttpLimits {
        max_requests: 1,
        ..HttpLimits::default()
    };
    let server = start(&EngineConfig::default(), limits);
    let endless = json!({"prompt": "What is 34 plus 28?", "ignore_eos": true, "max_tokens": 400, "stream": true});
    RUNTIME.block_on(async {
        let first = call(&server, "/generate", endless.to_string()).await;
        let mut pieces = first.into_body().into_data_stream();
        pieces.next().await.unwrap().unwrap();
        assert!(metric(&server, "kv_cache_usage_perc").await > 0.0);
        let second = call(&server, "/generate", endless.to_string()).await;
        assert_eq!(second.status(), StatusCode::TOO_MANY_REQUESTS);
        assert!(second.headers().contains_key("retry-after"));
        drop(pieces);
        for _ in 0..200 {
            if metric(&server, "kv_cache_usage_perc").await == 0.0 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(metric(&server, "kv_cache_usage_perc").await, 0.0);
        assert_eq!(metric(&server, "num_requests_running").await, 0.0);
        let third = call(&server, "/generate", r#"{"prompt": "What is 3 plus 4?"}"#).await;
        assert_eq!(third.status(), StatusCode::OK);
    });
}

#[test]
fn completions_are_openais() {
    let prompt = "Reverse the word piano.";
    let mut body = json!({"model": "pocket", "prompt": [prompt, prompt, "2 plus"], "n": 2, "max_tokens": 9, "seed": 4,
        "logprobs": 1});
    let whole = ok("/v1/completions", &body);
    assert_eq!(whole["object"], "text_completion");
    let choices = whole["choices"].as_array().unwrap();
    assert_eq!(choices.len(), 6);
    for (index, choice) in choices.iter().enumerate() {
        assert_eq!(choice["index"], index);
        let list = |name: &str| choice["logprobs"][name].as_array().unwrap().len();
        assert_eq!(list("tokens"), list("token_logprobs"));
        assert_eq!(list("tokens"), list("top_logprobs"));
        assert!(["stop", "length"].contains(&choice["finish_reason"].as_str().unwrap()));
    }
    // One seed, one prompt, one text; samples of a prompt differ.
    assert_eq!(choices[0]["text"], choices[2]["text"]);
    assert_eq!(choices[1]["text"], choices[3]["text"]);
    let usage = &whole["usage"];
    let sum =
        usage["prompt_tokens"].as_u64().unwrap() + usage["completion_tokens"].as_u64().unwrap();
    assert_eq!(usage["total_tokens"], sum);

    body["stream"] = json!(true);
    body["stream_options"] = json!({"include_usage": true});
    let stream = RUNTIME
        .block_on(async { text(call(&SERVER, "/v1/completions", body.to_string()).await).await });
    let events: Vec<&str> = stream
        .lines()
        .filter_map(|line| line.strip_prefix("data: "))
        .collect();
    let (done, events) = events.split_last().unwrap();
    assert_eq!(*done, "[DONE]");
    let mut texts = vec![String::new(); 6];
    for event in events {
        let event: Value = serde_json::from_str(event).unwrap();
        for choice in event["choices"].as_array().unwrap() {
            let index = choice["index"].as_u64().unwrap() as usize;
            assert_eq!(
                choice["logprobs"]["text_offset"][0],
                texts[index].chars().count()
            );
            texts[index].push_str(choice["text"].as_str().unwrap());
        }
    }
    for (choice, text) in choices.iter().zip(&texts) {
        assert_eq!(choice["text"], *text);
    }
    let last: Value = serde_json::from_str(events.last().unwrap()).unwrap();
    assert_eq!(
        last["usage"]["completion_tokens"],
        usage["completion_tokens"]
    );

    let best = ok(
        "/v1/completions",
        &json!({"prompt": prompt, "best_of": 4, "n": 2, "max_tokens": 9, "seed": 4}),
    );
    assert_eq!(best["choices"].as_array().unwrap().len(), 2);
    for (body, status) in [
        (
            json!({"model": "gpt-4", "prompt": prompt}),
            StatusCode::NOT_FOUND,
        ),
        (
            json!({"prompt": prompt, "echo": true}),
            StatusCode::BAD_REQUEST,
        ),
        (json!({"prompt": []}), StatusCode::BAD_REQUEST),
        (json!({"prompt": ""}), StatusCode::BAD_REQUEST),
        (json!({"prompt": [1, 2, 9999]}), StatusCode::BAD_REQUEST),
        (
            json!({"prompt": prompt, "logprobs": 21}),
            StatusCode::BAD_REQUEST,
        ),
        (
            json!({"prompt": prompt, "best_of": 2, "stream": true}),
            StatusCode::BAD_REQUEST,
        ),
        (
            json!({"prompt": prompt, "stream_options": {}}),
            StatusCode::BAD_REQUEST,
        ),
    ] {
        assert_eq!(post("/v1/completions", &body).0, status, "{body}");
    }
}
