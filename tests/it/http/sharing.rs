//! Tests of two callers with their own keys: neither delays the other, and neither can find out the other's prompts.

use std::time::Duration;

use axum::http::header::RETRY_AFTER;
use engine::{QueueLimits, TenantShare};
use futures::StreamExt;

use super::refusing::until;
use super::*;

const SECRET: &str = "Patient Ann Lee, born 1984, has diagnosis code 7531, and her pin is 4469. What follows from that?";

/// Starts a server of its own with two callers, alice (`a`) and bob (`b`).
fn two_callers(engine: &EngineConfig) -> Router {
    start(engine, &keyed())
}

async fn answer_of(server: &Router, key: &str, path: &str, body: Value) -> Value {
    let response = posted(path, key, &body).response(server).await;
    let status = response.status();
    let answer: Value = serde_json::from_str(&text(response).await).unwrap();
    assert_eq!(status, StatusCode::OK, "{answer}");
    answer
}

/// Returns the prompt tokens that a call reports as cached.
async fn cached(server: &Router, key: &str, path: &str, body: Value) -> u64 {
    let usage = answer_of(server, key, path, body).await["usage"].clone();
    let by_openai = [
        &usage["prompt_tokens_details"]["cached_tokens"],
        &usage["input_tokens_details"]["cached_tokens"],
    ];
    let told = by_openai.into_iter().find_map(Value::as_u64);
    told.or(usage["cached_tokens"].as_u64())
        .unwrap_or_else(|| panic!("{usage}"))
}

/// Returns a body for each route that computes prompts, with `more` in it.
fn asks(more: &Value) -> Vec<(&'static str, Value)> {
    let bodies = [
        ("/generate", json!({"prompt": SECRET, "max_tokens": 1})),
        (
            "/v1/completions",
            json!({"prompt": SECRET, "max_tokens": 1}),
        ),
        (
            "/v1/chat/completions",
            json!({"messages": [{"role": "user", "content": SECRET}], "max_tokens": 1}),
        ),
        (
            "/judge",
            json!({"prompt": SECRET, "candidates": ["nothing", "something"], "orders": "given"}),
        ),
        (
            "/judge",
            json!({"prompt": SECRET, "candidates": ["x", "y", "z"], "orders": "given"}),
        ),
        (
            "/v1/decisions",
            json!({"input": SECRET, "questions": [{"type": "predicate", "instructions": "It is so."}]}),
        ),
    ];
    let with_more = bodies.map(|(path, mut body)| {
        for (name, value) in more.as_object().into_iter().flatten() {
            body[name] = value.clone();
        }
        (path, body)
    });
    with_more.into()
}

/// Returns whether two counts differ by less than a block. Parallel reads of one call share slightly different lengths, as they
/// begin in different steps.
fn same(a: u64, b: u64) -> bool {
    a.abs_diff(b) < 16
}

/// Returns the cached tokens of a call on a server that no other client has called.
async fn cached_alone(path: &str, body: &Value) -> u64 {
    let fresh = two_callers(&engine());
    cached(&fresh, "b", path, body.clone()).await
}

#[test]
fn what_one_key_has_asked_is_not_cached_for_another_on_any_route() {
    RUNTIME.block_on(async {
        for (path, body) in asks(&json!({})) {
            let server = two_callers(&engine());
            let first = cached(&server, "a", path, body.clone()).await;
            let again = cached(&server, "a", path, body.clone()).await;
            assert!(
                again > first + 30,
                "{path}: calls of one key must share the cache"
            );
            let alone = cached_alone(path, &body).await;
            let of_bob = cached(&server, "b", path, body.clone()).await;
            assert!(
                same(of_bob, alone),
                "{path}: {of_bob} cached tokens, and {alone} without alice's calls"
            );
            // An operator's key is a caller as any other.
            let of_operator = cached(&server, "r", path, body).await;
            assert!(same(of_operator, alone), "{path}: {of_operator} {alone}");
        }
    });
}

#[test]
fn a_token_of_anothers_prompt_cannot_be_guessed() {
    let server = two_callers(&engine());
    RUNTIME.block_on(async {
        let ask = |prompt: String| json!({"prompt": prompt, "max_tokens": 1});
        answer_of(&server, "a", "/generate", ask(SECRET.to_owned())).await;
        let known = SECRET.split_once("7531").unwrap().0;
        // Bob's guesses share the text that he knows. The right guess shares no more than the wrong ones.
        cached(&server, "b", "/generate", ask(format!("{known}?"))).await;
        let mut told = Vec::new();
        for digit in 0..10 {
            told.push(cached(&server, "b", "/generate", ask(format!("{known}{digit}Z"))).await);
        }
        assert!(told.windows(2).all(|two| two[0] == two[1]), "{told:?}");
    });
}

#[test]
fn a_salt_keeps_calls_of_one_key_apart() {
    RUNTIME.block_on(async {
        for (path, body) in asks(&json!({})) {
            let server = two_callers(&engine());
            let salted = |salt: Value| {
                let mut body = body.clone();
                body["cache_salt"] = salt;
                body
            };
            let first = cached(&server, "a", path, body.clone()).await;
            for (key, salt, shares) in [
                // A call with a salt shares nothing with calls without one.
                ("a", json!("red"), false),
                ("a", json!("red"), true),
                ("a", json!("blue"), false),
                ("b", json!("red"), false),
                // A null salt is no salt.
                ("a", Value::Null, true),
            ] {
                let told = cached(&server, key, path, salted(salt.clone())).await;
                assert_eq!(
                    !same(told, first),
                    shares,
                    "{path} {key} {salt}: {told}, first {first}"
                );
            }
            for no_salt in [json!(""), json!(7), json!(["x"])] {
                let body = salted(no_salt);
                let response = posted(path, "a", &body).response(&server).await;
                assert_eq!(response.status(), StatusCode::BAD_REQUEST);
                let answer: Value = serde_json::from_str(&text(response).await).unwrap();
                assert_eq!(answer["error"]["param"], "cache_salt", "{path}: {answer}");
            }
        }
    });
}

#[test]
fn an_operator_may_share_the_cache_between_all_keys() {
    let config = EngineConfig {
        shared_prefix_cache: true,
        ..engine()
    };
    let server = two_callers(&config);
    RUNTIME.block_on(async {
        let ask = json!({"prompt": SECRET, "max_tokens": 1});
        let first = cached(&server, "a", "/generate", ask.clone()).await;
        assert!(cached(&server, "b", "/generate", ask).await > first);
        let salted = json!({"prompt": SECRET, "max_tokens": 1, "cache_salt": "mine"});
        assert_eq!(
            cached(&server, "a", "/generate", salted.clone()).await,
            first
        );
        assert!(cached(&server, "b", "/generate", salted).await > first);
    });
}

/// Best-of-N and tournaments share as much as on a server with one cache for all callers.
#[test]
fn one_call_shares_with_itself_as_much_as_ever() {
    RUNTIME.block_on(async {
        for (path, body) in [
            ("/generate", json!({"prompt": SECRET, "best_of": 8, "seed": 1, "max_tokens": 12})),
            (
                "/judge",
                json!({"prompt": SECRET, "candidates": ["a", "b", "c", "d"], "bracket": "round_robin"}),
            ),
        ] {
            let apart = two_callers(&engine());
            let together = two_callers(&EngineConfig {
                shared_prefix_cache: true,
                ..engine()
            });
            let of_one = cached(&apart, "a", path, body.clone()).await;
            assert!(of_one > 0, "{path}");
            let of_all = cached(&together, "a", path, body).await;
            assert!(of_one * 10 >= of_all * 8, "{path}: {of_one} of {of_all}");
        }
    });
}

fn endless(n: usize) -> Value {
    json!({"prompt": "What is 34 plus 28?", "ignore_eos": true, "max_tokens": 480, "n": n, "stream": true})
}

#[test]
fn one_key_cannot_take_every_place_of_calls() {
    let config = HttpConfig {
        max_requests: 4,
        ..keyed()
    };
    let server = start(&engine(), &config);
    RUNTIME.block_on(async {
        let body = endless(1);
        let alices = [
            posted("/generate", "a", &body).response(&server).await,
            posted("/generate", "a", &body).response(&server).await,
        ];
        assert!(
            alices
                .iter()
                .all(|answer| answer.status() == StatusCode::OK)
        );
        let third = posted("/generate", "a", &body).response(&server).await;
        assert_eq!(third.status(), StatusCode::TOO_MANY_REQUESTS);
        assert!(third.headers().contains_key(RETRY_AFTER));
        let short = json!({"prompt": "What is 3 plus 4?", "max_tokens": 2});
        answer_of(&server, "b", "/generate", short.clone()).await;
        drop(alices);
        answer_of(&server, "a", "/generate", short).await;
    });
}

/// One call has so many prompts, samples and tokens that the engine needs minutes.
#[test]
fn a_huge_call_of_one_key_delays_anothers_by_steps_and_not_by_its_length() {
    let config = EngineConfig {
        max_concurrent: 8,
        ..engine()
    };
    let server = two_callers(&config);
    RUNTIME.block_on(async {
        let many: Vec<String> = (0..200).map(|at| format!("{at} is it.")).collect();
        let huge =
            json!({"prompt": many, "ignore_eos": true, "max_tokens": 480, "n": 8, "stream": true});
        let response = posted("/v1/completions", "a", &huge)
            .response(&server)
            .await;
        assert_eq!(response.status(), StatusCode::OK);
        let mut pieces = response.into_body().into_data_stream();
        pieces.next().await.unwrap().unwrap();
        until(async || metric(&server, "num_requests_running").await == 8.0).await;
        for _ in 0..5 {
            let short = json!({"prompt": "What is 3 plus 4?", "max_tokens": 8, "ignore_eos": true});
            answer_of(&server, "b", "/generate", short).await;
        }
        // Hardly any of the 768,000 tokens have been computed.
        let generated = metric(&server, "generation_tokens_total").await;
        assert!(generated < 40_000.0, "{generated}");
        assert!(metric(&server, "num_preemptions_total").await > 0.0);
        drop(pieces);
        until(async || metric(&server, "num_requests_running").await == 0.0).await;
    });
}

#[test]
fn one_key_cannot_fill_the_queue_of_the_engine() {
    let config = EngineConfig {
        max_concurrent: 1,
        queue: QueueLimits {
            max_requests: 4,
            max_tokens: 1 << 20,
        },
        tenant_share: TenantShare::new(0.5).unwrap(),
        ..engine()
    };
    let server = two_callers(&config);
    RUNTIME.block_on(async {
        let body = endless(1);
        let mut alices = Vec::new();
        let refused = loop {
            let response = posted("/generate", "a", &body).response(&server).await;
            match response.status() {
                StatusCode::OK => alices.push(response),
                refused => break refused,
            }
            assert!(alices.len() < 100, "alice must be refused at some call");
        };
        assert_eq!(refused, StatusCode::TOO_MANY_REQUESTS);
        let short = json!({"prompt": "What is 3 plus 4?", "max_tokens": 2});
        tokio::time::timeout(
            Duration::from_secs(100),
            answer_of(&server, "b", "/generate", short),
        )
        .await
        .expect("bob must not wait for all calls of alice");
        drop(alices);
    });
}

#[test]
fn the_prompts_of_a_call_wait_for_places_instead_of_being_refused() {
    let config = EngineConfig {
        max_concurrent: 2,
        queue: QueueLimits {
            max_requests: 4,
            max_tokens: 1 << 20,
        },
        ..engine()
    };
    let server = two_callers(&config);
    RUNTIME.block_on(async {
        let many: Vec<String> = (0..40).map(|at| format!("{at} is it.")).collect();
        for stream in [false, true] {
            let body =
                json!({"prompt": many, "max_tokens": 2, "ignore_eos": true, "stream": stream});
            let response = posted("/v1/completions", "a", &body)
                .response(&server)
                .await;
            assert_eq!(response.status(), StatusCode::OK);
            let answer = text(response).await;
            match stream {
                true => assert_eq!(events_of(&answer).len(), 80),
                false => {
                    let answer: Value = serde_json::from_str(&answer).unwrap();
                    assert_eq!(answer["choices"].as_array().unwrap().len(), 40);
                }
            }
        }
        // A prompt that cannot be served is still refused with 400, before the stream begins.
        let body = json!({"prompt": ["x", "7 ".repeat(3000)], "max_tokens": 2, "stream": true});
        let response = posted("/v1/completions", "a", &body)
            .response(&server)
            .await;
        assert_eq!(response.status(), StatusCode::BAD_REQUEST);
    });
}

#[test]
fn samples_beyond_the_places_follow_and_are_those_of_a_wide_engine() {
    let body = json!({"prompt": "What is 34 plus 28?", "n": 8, "seed": 3, "temperature": 1.2, "max_tokens": 12});
    let texts = |config: &EngineConfig| {
        let answer = RUNTIME.block_on(async {
            let server = two_callers(config);
            // A call takes its places when it arrives.
            let alices = posted("/generate", "a", &endless(6))
                .response(&server)
                .await;
            let answer = answer_of(&server, "b", "/generate", body.clone()).await;
            drop(alices);
            answer
        });
        let mut outputs = answer["outputs"].as_array().unwrap().clone();
        outputs.sort_by_key(|output| output["index"].as_u64());
        let texts = outputs.iter().map(|output| output["text"].clone());
        texts.collect::<Vec<_>>()
    };
    let narrow = EngineConfig {
        max_concurrent: 8,
        ..engine()
    };
    assert_eq!(texts(&narrow), texts(&engine()));
}

#[test]
fn ids_and_request_ids_say_nothing_about_other_calls() {
    let server = two_callers(&engine());
    RUNTIME.block_on(async {
        let body = json!({"prompt": "x", "max_tokens": 1});
        let mut ids = Vec::new();
        for _ in 0..3 {
            let answer = answer_of(&server, "a", "/generate", body.clone()).await;
            ids.push(answer["id"].as_str().unwrap().to_owned());
        }
        for pair in ids.windows(2) {
            let common = pair[0]
                .bytes()
                .zip(pair[1].bytes())
                .take_while(|(a, b)| a == b);
            assert!(common.count() < "gen-".len() + 8, "{ids:?}");
        }
        let long = "x".repeat(129);
        for (sent, kept) in [
            ("mine", true),
            (&"x".repeat(128), true),
            (&long, false),
            ("with space", false),
            ("gr\u{fc}n", false),
            ("", false),
        ] {
            let mut request = Request::get("/health").body(Body::empty()).unwrap();
            let header = axum::http::HeaderValue::from_bytes(sent.as_bytes()).unwrap();
            request.headers_mut().insert("x-request-id", header);
            let response = server.clone().oneshot(request).await.unwrap();
            let named = response.headers()["x-request-id"]
                .to_str()
                .unwrap()
                .to_owned();
            assert_eq!(named == sent, kept, "{sent}");
            assert!((1..=128).contains(&named.len()));
        }
    });
}
