//! Tests of the operators' listener, of the metrics, and of the records of callers without a key.

use axum::response::Response;
use selfjudge::{
    http::{AdminHosts, Cors, metrics_router},
    service::Permitted,
};
use traffic_log::Consent;

use super::*;

/// Sends a call with headers, as a browser does. `said` is its method and path.
async fn said(server: &Router, said: &str, headers: &[(&str, &str)], body: &str) -> Response {
    let (method, path) = said.split_once(' ').unwrap();
    let mut request = Request::builder().method(method).uri(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(Body::from(body.to_owned())).unwrap();
    server.clone().oneshot(request).await.unwrap()
}

const TABLE: &str = r#"{"version": 1, "principles": [{"id": "correct", "text": "correct"}]}"#;
const OWN: (&str, &str) = ("host", "127.0.0.1:8081");
const JSON: (&str, &str) = ("content-type", "application/json");

#[test]
fn no_page_of_another_origin_is_an_operator() {
    let config = HttpConfig {
        cors: Cors::Any,
        ..HttpConfig::default()
    };
    let logged = logged(&config, TrafficConfig::default());
    let evil = ("origin", "https://evil.example");
    RUNTIME.block_on(async {
        for call in [
            "GET /events",
            "POST /train/pause",
            "POST /generations/base/rollback",
            "PUT /principles",
            "DELETE /records?principal=anonymous",
            "GET /metrics",
            "GET /health",
            "GET /nowhere",
            "OPTIONS /events",
        ] {
            for headers in [
                &[OWN, evil, JSON][..],
                &[("host", "evil.example:8081"), JSON],
                &[
                    ("host", "evil.example:8081"),
                    evil,
                    ("content-type", "text/plain"),
                ],
                &[OWN, ("origin", "null"), JSON],
                &[OWN, ("origin", "http://127.0.0.1:3000"), JSON],
                &[OWN, ("sec-fetch-site", "cross-site"), JSON],
            ] {
                let body = if call.starts_with("PUT") { TABLE } else { "" };
                let answer = said(&logged.admin, call, headers, body).await;
                assert_eq!(answer.status(), StatusCode::FORBIDDEN, "{call} {headers:?}");
                let shared = answer.headers().contains_key("access-control-allow-origin");
                assert!(!shared, "{call} {headers:?}");
            }
        }
    });
    assert_eq!(logged.principles.current().version, 1);
    let switch = RUNTIME.block_on(logged.log.switch.get()).unwrap();
    assert!(!switch.paused);
}

#[test]
fn its_own_pages_and_tools_are_answered_and_never_told_to_share() {
    let config = HttpConfig {
        cors: Cors::Any,
        admin_hosts: AdminHosts {
            address: Some("127.0.0.1".parse().unwrap()),
            names: vec!["ops.example".to_owned()],
        },
        ..HttpConfig::default()
    };
    let logged = logged(&config, TrafficConfig::default());
    RUNTIME.block_on(async {
        for headers in [
            &[][..],
            &[OWN],
            &[("host", "localhost:8081")],
            &[("host", "[::1]:8081")],
            &[("host", "ops.example:443")],
            &[OWN, ("origin", "http://127.0.0.1:8081")],
        ] {
            let answer = said(&logged.admin, "GET /events", headers, "").await;
            assert_eq!(answer.status(), StatusCode::OK, "{headers:?}");
            let shared = answer.headers().contains_key("access-control-allow-origin");
            assert!(!shared, "{headers:?}");
        }
    });
}

#[test]
fn bodies_of_operators_are_json_by_name() {
    let logged = logged(&HttpConfig::default(), TrafficConfig::default());
    RUNTIME.block_on(async {
        for (kind, status) in [
            (None, StatusCode::UNSUPPORTED_MEDIA_TYPE),
            (Some("text/plain"), StatusCode::UNSUPPORTED_MEDIA_TYPE),
            (
                Some("application/x-www-form-urlencoded"),
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
            ),
            (
                Some("application/jsonp"),
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
            ),
            (Some("application/json"), StatusCode::OK),
            (Some("Application/JSON; charset=utf-8"), StatusCode::OK),
        ] {
            let headers: Vec<_> = kind
                .into_iter()
                .map(|kind| ("content-type", kind))
                .collect();
            let version = logged.principles.current().version;
            let table = TABLE.replace("\"version\": 1", &format!("\"version\": {version}"));
            let answer = said(&logged.admin, "PUT /principles", &headers, &table).await;
            assert_eq!(answer.status(), status, "{kind:?}");
            let answer = said(
                &logged.admin,
                "POST /generations/base/rollback",
                &headers,
                "{}",
            )
            .await;
            assert_eq!(
                answer.status() == StatusCode::UNSUPPORTED_MEDIA_TYPE,
                status == StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "{kind:?}"
            );
        }
        // A call without a body needs no content type.
        let answer = said(&logged.admin, "DELETE /records?principal=nobody", &[], "").await;
        assert_eq!(answer.status(), StatusCode::OK);
    });
}

#[test]
fn where_callers_have_keys_metrics_are_an_operators() {
    let keyed = logged(&keyed(), TrafficConfig::default());
    let open = logged(&HttpConfig::default(), TrafficConfig::default());
    let metrics = |server: &Router, key: Option<&str>| {
        let headers: Vec<_> = key.into_iter().map(|key| ("x-api-key", key)).collect();
        RUNTIME.block_on(async { said(server, "GET /metrics", &headers, "").await.status() })
    };
    for (key, status) in [
        (None, StatusCode::UNAUTHORIZED),
        (Some("nobody's"), StatusCode::UNAUTHORIZED),
        (Some("a"), StatusCode::FORBIDDEN),
        (Some("r"), StatusCode::OK),
    ] {
        assert_eq!(metrics(&keyed.server, key), status, "{key:?}");
    }
    assert_eq!(metrics(&open.server, None), StatusCode::OK);
}

#[test]
fn a_listener_for_metrics_has_nothing_else() {
    let config = keyed();
    let metrics = Metrics::new("pocket");
    let state = Shared::new(SERVICE.clone(), "pocket", metrics, &config).into_state();
    let server = metrics_router(state, &config);
    RUNTIME.block_on(async {
        for path in ["/metrics", "/health", "/ready"] {
            let answer = said(&server, &format!("GET {path}"), &[], "").await;
            assert_eq!(answer.status(), StatusCode::OK, "{path}");
        }
        for call in [
            "GET /v1/models",
            "POST /generate",
            "GET /docs/",
            "GET /openapi.json",
            "GET /events",
            "GET /principles",
            "DELETE /records",
        ] {
            for headers in [&[][..], &[("x-api-key", "r")]] {
                let answer = said(&server, call, headers, "").await;
                assert_eq!(answer.status(), StatusCode::NOT_FOUND, "{call}");
            }
        }
    });
}

#[test]
fn strangers_leave_no_more_than_the_operator_lets_them() {
    let consent = |retain, train| Permitted(Consent { retain, train });
    let body = json!({"prompt": "2 plus", "max_tokens": 1, "log": {"retain": true, "train": true}});
    for (strangers, kept) in [
        ("nothing", None),
        ("retain", Some(false)),
        ("train", Some(true)),
    ] {
        let strangers: Permitted = strangers.parse().unwrap();
        for trust_user in [false, true] {
            let traffic = TrafficConfig {
                strangers,
                trust_user,
                ..TrafficConfig::default()
            };
            let logged = logged(&HttpConfig::default(), traffic);
            let mut body = body.clone();
            let mut query = String::new();
            if trust_user {
                body["user"] = json!("eve");
                query = "?user=eve".to_owned();
            }
            let (status, answer) = RUNTIME.block_on(post_to(&logged.server, "/generate", &body));
            assert_eq!(status, StatusCode::OK);
            let Some(train) = kept else {
                assert_eq!(answer["logged"], false, "{answer}");
                assert_eq!(logged.log.stats().records, 0);
                continue;
            };
            let path = format!("/records/{}{query}", answer["record_id"].as_str().unwrap());
            let call = Call {
                method: "GET",
                path: &path,
                ..Call::default()
            };
            assert_eq!(call.ok(&logged.server)["log"]["train"], train);
        }
    }
    // The bound for strangers does not hold for a caller with a key.
    let traffic = TrafficConfig {
        strangers: consent(false, false),
        ..TrafficConfig::default()
    };
    let logged = logged(&keyed(), traffic);
    assert!(posted("/generate", "a", &body).ok(&logged.server)["record_id"].is_string());
    assert!("everything".parse::<Permitted>().is_err());
}

#[test]
fn what_is_answered_is_what_it_says_it_is() {
    RUNTIME.block_on(async {
        for (path, page) in [
            ("/docs/", true),
            ("/openapi.json", false),
            ("/health", false),
            ("/nowhere", false),
        ] {
            let answer = said(&SERVER, &format!("GET {path}"), &[], "").await;
            let headers = answer.headers();
            assert_eq!(headers["x-content-type-options"], "nosniff", "{path}");
            let policy = headers["content-security-policy"].to_str().unwrap();
            assert!(policy.starts_with("default-src 'none'"), "{path}: {policy}");
            assert_eq!(
                policy.contains("script-src 'self';"),
                page,
                "{path}: {policy}"
            );
        }
    });
}
