//! Tests of the memory that calls hold, of the size of records, and of pages of other origins.

use axum::http::header::RETRY_AFTER;

use super::*;

/// Returns the settings of a server whose calls may hold `call_memory` bytes together, and each tenant half of them.
fn holding(call_memory: usize) -> HttpConfig {
    HttpConfig {
        call_memory,
        ..keyed()
    }
}

#[test]
fn answers_that_are_not_read_are_refused_once_they_take_up_the_tenants_share() {
    let logged = logged(&holding(2 << 20), TrafficConfig::default());
    let body =
        json!({"prompt": "2 plus", "n": 2, "max_tokens": 60, "ignore_eos": true, "logprobs": 20});
    RUNTIME.block_on(async {
        let mut unread = Vec::new();
        let refused = loop {
            assert!(unread.len() < 100, "no call was refused");
            let response = posted("/generate", "a", &body)
                .response(&logged.server)
                .await;
            match response.status() {
                StatusCode::OK => unread.push(response),
                _ => break response,
            }
        };
        assert!(unread.len() > 1, "the first calls must be answered");
        assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
        assert!(refused.headers().contains_key(RETRY_AFTER));
        let error: Value = serde_json::from_str(&text(refused).await).unwrap();
        assert_eq!(error["error"]["code"], "overloaded");
        // Another tenant has its own share.
        let bobs = posted("/generate", "b", &body)
            .response(&logged.server)
            .await;
        assert_eq!(bobs.status(), StatusCode::OK);
        // An answer that is read frees its memory.
        let answer: Value = serde_json::from_str(&text(unread.swap_remove(0)).await).unwrap();
        assert_eq!(answer["outputs"].as_array().unwrap().len(), 2);
        drop(unread);
        let again = posted("/generate", "a", &body)
            .response(&logged.server)
            .await;
        assert_eq!(again.status(), StatusCode::OK);
    });
}

#[test]
fn what_never_fits_into_a_tenants_share_is_no_429() {
    let logged = logged(&holding(200_000), TrafficConfig::default());
    let long = "x".repeat(110_000);
    let asked = |max_tokens: usize| json!({"prompt": "2 plus", "max_tokens": max_tokens, "ignore_eos": true, "logprobs": 20});
    for (body, status) in [
        (asked(1), 200),
        (json!({"prompt": long}), 413),
        // This call needs 64 bytes for each of 20 log-probabilities of 100 tokens.
        (asked(100), 413),
    ] {
        let (told, answer) = posted("/generate", "a", &body).of(&logged.server);
        assert_eq!(told.as_u16(), status, "{answer}");
        if status == 413 {
            assert_eq!(answer["error"]["code"], "call_too_large", "{answer}");
        }
    }
}

/// Returns a call with a record, whose candidates need no computation.
fn kept(candidates: usize) -> Value {
    let candidates = vec!["same"; candidates];
    json!({"prompt": "x", "candidates": candidates, "method": "tournament", "log": {"retain": true}})
}

#[test]
fn a_record_grows_by_feedback_no_larger_than_a_record_may_be() {
    let logged = logged_with(&keyed(), TrafficConfig::default(), |log| LogConfig {
        max_record: 100_000,
        ..log
    });
    let answer = posted("/judge", "a", &kept(8)).ok(&logged.server);
    let feedback = |sample: usize, bytes: usize| {
        let edited = "y".repeat(bytes);
        let body = json!({"record_id": answer["record_id"], "sample": sample, "edited": edited});
        posted("/feedback", "a", &body).of(&logged.server)
    };
    for (sample, bytes, status) in [
        (0, 20_000, 200),
        (1, 20_000, 200),
        (2, 20_000, 413),
        // This edit replaces another one.
        (0, 20_010, 200),
        (0, 60_000, 413),
        (3, 100, 200),
    ] {
        let (told, said) = feedback(sample, bytes);
        assert_eq!(told.as_u16(), status, "{sample} {bytes}: {said}");
        if status == 413 {
            assert_eq!(said["error"]["code"], "record_too_large");
        }
    }
    // Feedback that was refused is not in the record.
    let record = record_of(&logged.server, "a", &answer);
    assert_eq!(record["samples"].as_array().unwrap().len(), 8 + 3);
    assert_eq!(record["feedback"].as_array().unwrap().len(), 3);
    let (status, said) = feedback(11, 1);
    assert_eq!(status, StatusCode::BAD_REQUEST, "{said}");
}

#[test]
fn a_record_is_read_within_the_memory_of_calls() {
    // Reading a record of 120 KB takes 480 KB, and one tenant has 400.
    let logged = logged(&holding(800_000), TrafficConfig::default());
    let mut body = kept(2);
    for (length, status) in [(100, 200), (60_000, 413)] {
        body["candidates"] = json!(["y".repeat(length), "y".repeat(length)]);
        let (told, answer) = posted("/judge", "a", &body).of(&logged.server);
        assert_eq!(told, StatusCode::OK, "{answer}");
        let call = Call {
            method: "GET",
            path: &format!("/records/{}", answer["record_id"].as_str().unwrap()),
            key: Some("a"),
            ..Call::default()
        };
        let (told, said) = call.of(&logged.server);
        assert_eq!(told.as_u16(), status, "{length}: {}", said["error"]);
    }
}

#[test]
fn a_page_of_another_origin_leaves_no_record() {
    let traffic = TrafficConfig {
        default: traffic_log::Consent {
            retain: true,
            train: false,
        },
        ..TrafficConfig::default()
    };
    let logged = logged(&HttpConfig::default(), traffic);
    let plain = json!({"prompt": "2 plus", "max_tokens": 1});
    let mut asking = plain.clone();
    asking["log"] = json!({"retain": true, "train": true});
    for (header, page, body, status, records) in [
        ("sec-fetch-site", "same-origin", &plain, 200, 1),
        ("sec-fetch-site", "none", &asking, 200, 2),
        ("sec-fetch-site", "cross-site", &plain, 200, 2),
        ("sec-fetch-site", "cross-site", &asking, 403, 2),
        ("sec-fetch-site", "same-site", &asking, 403, 2),
        ("origin", "http://evil.example", &asking, 403, 2),
        ("origin", "null", &plain, 200, 2),
        ("origin", "http://127.0.0.1:8080", &asking, 200, 3),
    ] {
        let request = Request::post("/generate")
            .header("host", "127.0.0.1:8080")
            .header(header, page)
            .header("content-type", "text/plain")
            .body(Body::from(body.to_string()))
            .unwrap();
        let answer = RUNTIME.block_on(async {
            let response = logged.server.clone().oneshot(request).await.unwrap();
            assert_eq!(response.status().as_u16(), status, "{header}: {page}");
            text(response).await
        });
        assert_eq!(status == 403, answer.contains("origin_not_allowed"));
        assert_eq!(logged.log.stats().records, records, "{header}: {page}");
    }
}
