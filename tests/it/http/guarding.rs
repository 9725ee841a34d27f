//! Tests of keys, rates, request ids, and pages of other origins.

use std::num::NonZeroU32;

use axum::http::header::{AUTHORIZATION, ORIGIN, RETRY_AFTER};
use axum::response::Response;
use selfjudge::http::{ApiKeys, Cors, RateLimit};

use super::*;
use crate::patience::until;

async fn get(server: &Router, path: &str, headers: &[(&str, &str)]) -> Response {
    let mut request = Request::get(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    server
        .clone()
        .oneshot(request.body(Body::empty()).unwrap())
        .await
        .unwrap()
}

#[test]
fn only_keys_pass_and_only_as_often_as_they_may() {
    let config = HttpConfig {
        keys: ApiKeys::parse("alice:one\nbob:two").unwrap(),
        admin_keys: ApiKeys::parse("root:three").unwrap(),
        rate_limit: Some(RateLimit {
            per_second: NonZeroU32::MIN,
            burst: NonZeroU32::new(2).unwrap(),
        }),
        ..HttpConfig::default()
    };
    let server = start(&engine(), &config);
    RUNTIME.block_on(async {
        until(async || get(&server, "/ready", &[]).await.status() == StatusCode::OK).await;
        for path in ["/health", "/ready", "/openapi.json", "/docs/"] {
            assert_eq!(
                get(&server, path, &[]).await.status(),
                StatusCode::OK,
                "{path}"
            );
        }
        for headers in [
            &[][..],
            &[("authorization", "Bearer four")],
            &[("authorization", "Basic one")],
        ] {
            let refused = get(&server, "/v1/models", headers).await;
            assert_eq!(refused.status(), StatusCode::UNAUTHORIZED);
            assert!(text(refused).await.contains("invalid_api_key"));
        }
        let refused = call(&server, "/generate", r#"{"prompt": "x"}"#).await;
        assert_eq!(refused.status(), StatusCode::UNAUTHORIZED);
        let bearer = [(AUTHORIZATION.as_str(), "Bearer one")];
        // The key allows two calls at once. Each second that passes on a slow machine allows one more.
        let mut passed = 0;
        let refused = loop {
            assert!(passed < 10_000, "no call was refused");
            let answer = get(&server, "/v1/models", &bearer).await;
            if answer.status() != StatusCode::OK {
                break answer;
            }
            passed += 1;
        };
        assert!(passed >= 2, "{passed}");
        assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(refused.headers()[RETRY_AFTER], "1");
        let other = get(&server, "/v1/models", &[("x-api-key", "two")]).await;
        assert_eq!(
            other.status(),
            StatusCode::OK,
            "the other key must have its own rate"
        );
        let page = text(get(&server, "/metrics", &[("x-api-key", "three")]).await).await;
        assert!(
            page.contains("http_rejected_total{reason=\"rate_limited\",model_name=\"pocket\"} 1"),
            "{page}"
        );
    });
}

#[test]
fn every_answer_names_its_request() {
    RUNTIME.block_on(async {
        let named = get(&SERVER, "/health", &[("x-request-id", "mine")]).await;
        assert_eq!(named.headers()["x-request-id"], "mine");
        let unnamed = get(&SERVER, "/nowhere", &[]).await;
        assert_eq!(unnamed.status(), StatusCode::NOT_FOUND);
        assert!(unnamed.headers()["x-request-id"].len() > 8);
    });
}

#[test]
fn pages_of_named_origins_may_call() {
    let config = HttpConfig {
        cors: Cors::Origins(vec!["https://here.example".parse().unwrap()]),
        ..HttpConfig::default()
    };
    let server = start(&engine(), &config);
    let allowed = "access-control-allow-origin";
    RUNTIME.block_on(async {
        let here = get(
            &server,
            "/health",
            &[(ORIGIN.as_str(), "https://here.example")],
        )
        .await;
        assert_eq!(here.headers()[allowed], "https://here.example");
        let there = get(
            &server,
            "/health",
            &[(ORIGIN.as_str(), "https://there.example")],
        )
        .await;
        assert!(!there.headers().contains_key(allowed));
        let none = get(
            &SERVER,
            "/health",
            &[(ORIGIN.as_str(), "https://here.example")],
        )
        .await;
        assert!(!none.headers().contains_key(allowed));
    });
}
