//! Tests of random bodies of every route that takes one, made from the examples of the API's description.

use std::sync::LazyLock;

use axum::Router;
use axum::http::StatusCode;
use engine::{EngineConfig, QueueLimits};
use rand::RngExt;
use selfjudge::http::{HttpConfig, api_doc};
use serde_json::{Value, json};

use super::{cases, damage, rng};
use crate::http::{RUNTIME, call, engine, metric, start, text};
use crate::patience::until;

/// A server of its own that runs few sequences at once. It refuses a body that asks for hundreds of answers.
static SERVER: LazyLock<Router> = LazyLock::new(|| {
    let engine = EngineConfig {
        max_concurrent: 8,
        queue: QueueLimits {
            max_requests: 64,
            max_tokens: 1 << 14,
        },
        ..engine()
    };
    start(&engine, &HttpConfig::default())
});

struct Route {
    path: String,
    examples: Vec<Value>,
    parameters: Vec<String>,
}

/// Returns all routes that take a body of JSON.
fn routes() -> Vec<Route> {
    let doc = serde_json::to_value(api_doc()).unwrap();
    let mut routes = Vec::new();
    for (path, item) in doc["paths"].as_object().unwrap() {
        // The operators' routes are on another listener.
        if item["post"]["tags"][0] == "admin" {
            continue;
        }
        let content = &item["post"]["requestBody"]["content"]["application/json"];
        let Some(named) = content["examples"].as_object() else {
            continue;
        };
        let reference = content["schema"]["$ref"].as_str().unwrap_or_default();
        let schema = doc.pointer(reference.trim_start_matches('#'));
        let properties = schema.and_then(|schema| schema["properties"].as_object());
        routes.push(Route {
            path: path.clone(),
            examples: named.values().map(|named| named["value"].clone()).collect(),
            parameters: properties
                .into_iter()
                .flat_map(|properties| properties.keys().cloned())
                .collect(),
        });
    }
    routes
}

/// Sends a body. The result must be an answer, or a refusal with a code and a message.
async fn try_body(path: &str, body: Vec<u8>) -> StatusCode {
    let shown = String::from_utf8_lossy(&body).into_owned();
    let response = call(&SERVER, path, body).await;
    let status = response.status();
    let answer = text(response).await;
    let told = || format!("{path} {shown}: {status} {answer}");
    if status == StatusCode::OK {
        let broken = answer.contains("\"code\":\"internal\"");
        assert!(!broken, "{}", told());
        return status;
    }
    let error: Value = serde_json::from_str(&answer).unwrap_or_else(|_| panic!("{}", told()));
    let error = &error["error"];
    let said = error["code"].is_string() && !error["message"].as_str().unwrap_or("").is_empty();
    assert!(said, "{}", told());
    // A body may ask for a deadline that no server can keep.
    let late = error["code"] == "deadline_exceeded";
    assert!(status.is_client_error() || late, "{}", told());
    status
}

#[test]
fn no_body_is_answered_with_a_5xx() {
    let routes = routes();
    assert!(routes.len() >= 6, "{}", routes.len());
    let (mut answered, mut refused) = (0, 0);
    for (part, route) in (0u64..).zip(&routes) {
        let mut rng = rng(part);
        assert!(!route.parameters.is_empty(), "{} has no schema", route.path);
        for _ in 0..cases(60) {
            let mut body = route.examples[rng.random_range(0..route.examples.len())].clone();
            match (rng.random_range(0..3), &mut body) {
                (0, Value::Object(object)) => {
                    damage::parameters(&mut rng, object, &route.parameters);
                }
                _ => damage::value(&mut rng, &mut body),
            }
            let mut bytes = body.to_string().into_bytes();
            if rng.random_bool(0.25) {
                damage::bytes(&mut rng, &mut bytes);
            }
            match RUNTIME.block_on(try_body(&route.path, bytes)) {
                StatusCode::OK => answered += 1,
                _ => refused += 1,
            }
        }
    }
    // The test needs both outcomes: if all damage were refused at once, the code after the checks would not be tested.
    assert!(answered > 20 && refused > 20, "{answered}, {refused}");
    RUNTIME.block_on(async {
        let body = json!({"prompt": "What is 3 plus 4?"}).to_string();
        assert_eq!(
            call(&SERVER, "/generate", body).await.status(),
            StatusCode::OK
        );
        // A call that reaches its deadline is answered before the engine has removed it.
        for gauge in ["num_requests_running", "kv_cache_usage_perc"] {
            until(async || metric(&SERVER, gauge).await == 0.0).await;
        }
    });
}

/// Numbers as large as an integer holds reach every sum and product before a limit refuses them.
#[test]
fn no_number_is_too_large_for_a_refusal() {
    let numbers = [
        json!(u64::MAX),
        json!(i64::MAX),
        json!(u32::MAX),
        json!(i64::MIN),
    ];
    for route in routes() {
        for example in &route.examples {
            for (parameter, number) in route
                .parameters
                .iter()
                .flat_map(|parameter| numbers.iter().map(move |number| (parameter, number)))
            {
                let mut body = example.clone();
                body[parameter.as_str()] = number.clone();
                RUNTIME.block_on(try_body(&route.path, body.to_string().into_bytes()));
            }
        }
    }
}

#[test]
fn a_key_that_comes_twice_is_refused_by_its_path_on_every_route() {
    for route in routes() {
        for example in &route.examples {
            let text = example.to_string();
            let (key, value) = example.as_object().unwrap().iter().next().unwrap();
            let doubled = format!("{},{}:{value}}}", &text[..text.len() - 1], json!(key));
            let (status, answer) = RUNTIME.block_on(async {
                let response = call(&SERVER, &route.path, doubled).await;
                (response.status(), crate::http::text(response).await)
            });
            assert_eq!(status, StatusCode::BAD_REQUEST, "{answer}");
            let error: Value = serde_json::from_str(&answer).unwrap();
            assert_eq!(error["error"]["code"], "duplicate_parameter", "{answer}");
            assert_eq!(error["error"]["param"], *key, "{answer}");
        }
    }
}
