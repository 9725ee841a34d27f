//! Tests of the committed description of the API: it is the program's, and its examples are answered as they are shown.

use selfjudge::http::api_doc;
use traffic_log::Consent;

use super::*;
use crate::support::python;

#[test]
fn the_committed_description_is_the_programs() {
    let committed = std::fs::read_to_string(
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../openapi/openapi.json"),
    )
    .unwrap();
    let ours = api_doc().to_pretty_json().unwrap() + "\n";
    assert!(
        committed == ours,
        "openapi/openapi.json is out of date, run: cargo run -- openapi > openapi/openapi.json"
    );
}

/// Returns all request bodies that the description shows for an operation.
fn examples(operation: &Value) -> Vec<Value> {
    let Some(content) = operation["requestBody"]["content"].get("application/json") else {
        return Vec::new();
    };
    let named = content["examples"].as_object().into_iter().flatten();
    let named = named.map(|(_, example)| example["value"].clone());
    named.chain(content.get("example").cloned()).collect()
}

/// The record id of the examples, which the test replaces.
const EXAMPLE_ID: &str = "01ARZ3NDEKTSV4RRFFQ69G5FAV";

#[test]
fn every_example_is_answered() {
    let logged = logged(&keyed(), TrafficConfig::default());
    let record = || {
        let body = json!({"prompt": "2 plus", "n": 2, "max_tokens": 2, "log": {"retain": true}});
        let answer = posted("/generate", "r", &body).ok(&logged.server);
        answer["record_id"].as_str().unwrap().to_owned()
    };
    let doc = serde_json::to_value(api_doc()).unwrap();
    let mut bodies = 0;
    for (path, item) in doc["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let method = method.to_uppercase();
            let examples = examples(operation);
            assert!(
                operation.get("requestBody").is_none() || !examples.is_empty(),
                "{method} {path} has no example"
            );
            bodies += examples.len();
            let none = examples.is_empty().then_some(None);
            for body in none.into_iter().chain(examples.into_iter().map(Some)) {
                let id = record();
                if path == "/train/abandon" {
                    RUNTIME.block_on(super::admin::open_stage(&logged.log));
                }
                let body = body.map(|body| body.to_string().replace(EXAMPLE_ID, &id));
                let request = Request::builder()
                    .method(&*method)
                    // The base is the only generation here.
                    .uri(match path.starts_with("/generations") {
                        true => path.replace("{id}", "base"),
                        false if path.starts_with("/v1/models") => path.replace("{id}", "pocket"),
                        false => path.replace("{id}", &id),
                    })
                    .header("x-api-key", "r")
                    .body(body.clone().map_or_else(Body::empty, Body::from))
                    .unwrap();
                let (status, answer) = RUNTIME.block_on(async {
                    let response = logged.server.clone().oneshot(request).await.unwrap();
                    (response.status(), text(response).await)
                });
                assert_eq!(status, StatusCode::OK, "{method} {path} {body:?}: {answer}");
                assert!(
                    !answer.contains("\"error\":{"),
                    "{method} {path} {body:?}: {answer}"
                );
            }
        }
    }
    assert!(bodies >= 14, "{bodies}");
}

/// Sends random requests by the API's description to a server with a log and operators. No answer may be a 5xx or differ from the
/// description.
#[test]
#[cfg_attr(
    not(has_clients),
    ignore = "needs the Python clients: SELFJUDGE_REQUIRE=clients"
)]
fn schemathesis_finds_nothing_in_a_server_with_a_log() {
    let client = || python(&["-m", "schemathesis.cli"], "--version");
    let traffic = TrafficConfig {
        default: Consent {
            retain: true,
            train: true,
        },
        trust_user: true,
        ..TrafficConfig::default()
    };
    let logged = logged(&HttpConfig::default(), traffic);
    let description = logged.dir.path().join("openapi.json");
    std::fs::write(&description, api_doc().to_json().unwrap()).unwrap();
    // The operators' routes are on their own listener.
    let routers = [logged.server.clone(), logged.admin.clone()];
    for (router, paths) in routers.into_iter().zip([PUBLIC, ADMIN]) {
        let address = RUNTIME.block_on(async {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            tokio::spawn(async move { axum::serve(listener, router).await });
            address
        });
        let run = client()
            .current_dir(logged.dir.path())
            .args(["run", "openapi.json", "--url"])
            .arg(format!("http://{address}"))
            .args([
                "--seed",
                "1",
                "--max-examples",
                "20",
                "--include-path-regex",
                paths,
            ])
            // A schema cannot express that fields contradict each other.
            .args([
                "--exclude-checks",
                "positive_data_acceptance",
                "--max-time",
                "60",
                "--no-color",
                // The timeout is large, so that a slow machine does not fail the test.
                "--request-timeout",
                "600",
                "--suppress-health-check",
                "too_slow",
            ])
            .output()
            .unwrap();
        assert!(
            run.status.success(),
            "{}",
            String::from_utf8_lossy(&run.stdout)
        );
    }
}

/// The paths that schemathesis calls on each listener, as its patterns.
const PUBLIC: &str = "^/(generate|judge|records.*|feedback|v1/.*)$";
const ADMIN: &str = "^/(events|principles|records|train.*|generations.*)$";
