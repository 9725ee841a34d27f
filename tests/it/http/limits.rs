//! Tests of limits: queues, deadlines, candidates of a tournament, and the answers to calls beyond them.

use std::io::Write;
use std::net::TcpStream;
use std::time::Duration;

use axum::http::header::RETRY_AFTER;
use engine::QueueLimits;

use super::*;
use crate::patience::{until, until_quick_enough};

const QUESTION: &str = "What is 34 plus 28?";

/// Returns a call for an answer of 400 tokens.
fn long_answer() -> Value {
    json!({"prompt": QUESTION, "ignore_eos": true, "max_tokens": 400, "stream": true})
}

/// Starts a server on which one sequence runs, with these bounds of the queue.
fn narrow(max_requests: usize, max_tokens: usize) -> Router {
    let engine = EngineConfig {
        max_concurrent: 1,
        queue: QueueLimits {
            max_requests,
            max_tokens,
        },
        ..engine()
    };
    start(&engine, &HttpConfig::default())
}

#[test]
fn a_full_queue_is_a_429_that_says_when_to_come_back() {
    // The first queue is full by its number of requests, and the second by their tokens: a prompt has more than 10.
    for server in [narrow(1, 1 << 20), narrow(1000, 10)] {
        RUNTIME.block_on(async {
            // Each call runs for 400 steps, so sooner or later a call finds one running and one waiting.
            let (mut streams, mut refused) = (Vec::new(), 0);
            while refused < 3 {
                assert!(streams.len() < 2000, "no call was refused");
                let response = call(&server, "/generate", long_answer().to_string()).await;
                if response.status() == StatusCode::OK {
                    streams.push(response);
                    continue;
                }
                assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
                let seconds = response.headers()[RETRY_AFTER].to_str().unwrap();
                let seconds: u64 = seconds.parse().unwrap();
                assert!((1..=60).contains(&seconds), "{seconds}");
                let answer: Value = serde_json::from_str(&text(response).await).unwrap();
                assert_eq!(answer["error"]["code"], "overloaded");
                assert_eq!(answer["error"]["type"], "rate_limit_error");
                refused += 1;
            }
            // A call that was admitted is still answered.
            let first = text(streams.swap_remove(0)).await;
            assert!(first.trim_end().ends_with("[DONE]"), "{first}");
            drop(streams);
            until_idle(&server).await;
        });
    }
}

#[test]
fn a_deadline_ends_a_call_and_frees_what_it_held() {
    let server = start(&engine(), &HttpConfig::default());
    RUNTIME.block_on(async {
        let mut body = long_answer();
        (body["n"], body["timeout"]) = (json!(32), json!(0.002));
        let stream = text(call(&server, "/generate", body.to_string()).await).await;
        assert!(stream.contains("deadline_exceeded"), "{stream}");
        assert!(!stream.contains("[DONE]"), "{stream}");
        body["stream"] = json!(false);
        let judge = json!({"prompt": QUESTION, "candidates": (0..500).map(|i| i.to_string()).collect::<Vec<_>>(),
            "timeout": 0.002});
        for (path, body) in [("/generate", body), ("/judge", judge)] {
            let (status, answer) = post_to(&server, path, &body).await;
            assert_eq!(status, StatusCode::GATEWAY_TIMEOUT, "{answer}");
            assert_eq!(answer["error"]["code"], "deadline_exceeded");
        }
        until_idle(&server).await;
        // Where a call has reached the engine, its samples are counted.
        let late = failures(&server, "deadline").await;
        assert!(late >= 1.0, "{late}");
    });
}

/// Waits until the engine runs nothing and holds no block.
async fn until_idle(server: &Router) {
    let gauges = [
        "kv_cache_usage_perc",
        "num_requests_running",
        "num_requests_waiting",
    ];
    until(async || {
        for gauge in gauges {
            if metric(server, gauge).await != 0.0 {
                return false;
            }
        }
        true
    })
    .await;
}

/// Tests a client that waits for a whole answer of any kind and then closes its connection.
#[test]
fn a_client_that_is_gone_frees_its_blocks() {
    let server = start(&engine(), &HttpConfig::default());
    let many: Vec<String> = (0..3000).map(|i| format!("{i} is it.")).collect();
    let answers = json!({"prompt": QUESTION, "ignore_eos": true, "max_tokens": 480, "n": 128});
    let mut best = answers.clone();
    (best["n"], best["best_of"]) = (json!(1), json!(128));
    RUNTIME.block_on(async {
        // The third column is the number of aborted samples, where it is known.
        for (path, body, lost) in [
            ("/generate", answers.clone(), Some(128.0)),
            ("/generate", best, Some(128.0)),
            (
                "/judge",
                json!({"prompt": QUESTION, "candidates": many}),
                None,
            ),
            ("/v1/completions", answers, Some(128.0)),
        ] {
            until_quick_enough(async || {
                let counted = async || {
                    let tokens = metric(&server, "generation_tokens_total").await;
                    (failures(&server, "aborted").await, tokens)
                };
                let started = metric(&server, "prompt_tokens_total").await;
                let before = counted().await;
                let gone = tokio::spawn({
                    let (server, body) = (server.clone(), body.to_string());
                    async move { call(&server, path, body).await }
                });
                until(async || metric(&server, "prompt_tokens_total").await > started).await;
                gone.abort();
                let cut_off = gone.await.is_err_and(|error| error.is_cancelled());
                until_idle(&server).await;
                let after = counted().await;
                let (aborted, generated) = (after.0 - before.0, after.1 - before.1);
                // Each match has two reads: 5998 in all for the judge.
                let all = lost.map_or(5998.0, |samples| samples * 480.0);
                // All samples of one call end at the same step. Of the judge's reads, those in the queue at that time are
                // aborted.
                let known = lost.unwrap_or(aborted);
                assert!([0.0, known].contains(&aborted), "{path}: {aborted}");
                assert!(aborted == 0.0 || generated < all, "{path}: {generated}");
                cut_off && aborted > 0.0
            })
            .await;
        }
        let (status, _) = post_to(&server, "/generate", &json!({"prompt": QUESTION})).await;
        assert_eq!(status, StatusCode::OK);
    });
}

/// Runs as the program serves, over sockets, which close without a message.
#[test]
fn a_connection_that_is_cut_frees_what_ran_and_what_waited() {
    const SAMPLES: usize = 3 * 128;
    let server = start(&engine(), &HttpConfig::default());
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    let service = server.clone().into_make_service();
    RUNTIME.spawn(async move {
        axum_server::from_tcp(listener)
            .unwrap()
            .serve(service)
            .await
    });
    for stream in [true, false] {
        let body = json!({"prompt": QUESTION, "ignore_eos": true, "max_tokens": 480, "n": 128, "stream": stream});
        let body = body.to_string();
        let head = format!(
            "POST /generate HTTP/1.1\r\nhost: {address}\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        RUNTIME.block_on(until_quick_enough(async || {
            let before = failures(&server, "aborted").await;
            let tokens = async || metric(&server, "generation_tokens_total").await;
            let one_is_through = tokens().await + 128.0 * 480.0;
            // One of these calls fills all places.
            let connect = |_| {
                let mut connection = TcpStream::connect(address).unwrap();
                let call = format!("{head}{body}");
                connection.write_all(call.as_bytes()).unwrap();
                connection
            };
            let connections: Vec<TcpStream> = (0..3).map(connect).collect();
            until(async || {
                metric(&server, "num_requests_waiting").await == 2.0
                    || tokens().await >= one_is_through
            })
            .await;
            drop(connections);
            until_idle(&server).await;
            let aborted = failures(&server, "aborted").await - before;
            assert!(aborted <= SAMPLES as f64, "{aborted}");
            aborted == SAMPLES as f64
        }));
    }
}

#[test]
fn equal_and_empty_candidates_are_answers_too() {
    let judge = |candidates: Value| {
        ok(
            "/judge",
            &json!({"prompt": QUESTION, "candidates": candidates}),
        )
    };
    let same = judge(json!(["62", "62", "62", "62", "62"]));
    assert_eq!(same["ranking"].as_array().unwrap().len(), 5);
    assert_eq!(
        same["usage"]["prompt_tokens"], 0,
        "equal candidates must need no prompt"
    );
    let empty = judge(json!(["", ""]));
    assert_eq!((&empty["winner"], &empty["p"]), (&Value::Null, &json!(0.5)));
    let some_empty = judge(json!(["", "62", ""]));
    let mut ranking: Vec<u64> = some_empty["ranking"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(Value::as_u64)
        .collect();
    ranking.sort_unstable();
    assert_eq!(ranking, [0, 1, 2]);
    let refused = |candidates: Value| {
        let (status, answer) = post(
            "/judge",
            &json!({"prompt": QUESTION, "candidates": candidates}),
        );
        assert_eq!(status, StatusCode::BAD_REQUEST, "{answer}");
        answer["error"]["param"].as_str().unwrap().to_owned()
    };
    assert_eq!(refused(json!([])), "candidates");
    assert_eq!(refused(json!(["62"])), "candidates");
    assert_eq!(refused(json!(["62", null])), "candidates[1]");
}

#[test]
fn thousands_of_candidates_are_judged_and_tens_of_thousands_refused() {
    // Few candidates differ, and equal ones need no verdict.
    let many: Vec<&str> = (0..4000)
        .map(|i| if i % 16 == 0 { "62" } else { "52" })
        .collect();
    let answer = ok(
        "/judge",
        &json!({"prompt": QUESTION, "candidates": many, "seed": 3}),
    );
    let ranking = answer["ranking"].as_array().unwrap();
    let mut ranked: Vec<u64> = ranking.iter().filter_map(Value::as_u64).collect();
    assert_eq!(answer["winner"], ranking[0]);
    ranked.sort_unstable();
    assert!(
        ranked.into_iter().eq(0..4000),
        "every candidate must be ranked once"
    );
    let (status, answer) = post(
        "/judge",
        &json!({"prompt": QUESTION, "candidates": vec!["62"; 20_002]}),
    );
    assert_eq!(status, StatusCode::BAD_REQUEST, "{answer}");
    assert_eq!(answer["error"]["param"], "candidates");
}

#[test]
fn what_is_longer_than_the_context_is_cut_where_the_judge_reads_it_and_says_so() {
    let long = "seven ".repeat(3000);
    let judge = |prompt: &str, a: &str, b: &str| {
        ok("/judge", &json!({"prompt": prompt, "candidates": [a, b]}))
    };
    for answer in [
        judge(QUESTION, &long, "62"),
        judge(QUESTION, &long, &format!("{long}eight")),
        judge(&long, "62", "63"),
        judge(&long, &long, "63"),
    ] {
        assert_eq!(answer["truncated"], true, "{answer}");
        assert!(answer["usage"]["prompt_tokens"].as_u64().unwrap() <= 2 * 512);
        let p = answer["p"].as_f64().unwrap();
        assert!((0.0..=1.0).contains(&p));
    }
    assert_eq!(judge(QUESTION, "62", "63")["truncated"], false);
}

#[test]
fn a_deadline_that_is_kept_changes_nothing() {
    let body = json!({"prompt": QUESTION, "seed": 4});
    let mut timed = body.clone();
    timed["timeout"] = json!(Duration::from_secs(600).as_secs_f64());
    assert_eq!(
        ok("/generate", &body)["outputs"],
        ok("/generate", &timed)["outputs"]
    );
}
