//! The committed description of the API is the program's, and its examples are true.

use selfjudge::http::api_doc;

use super::*;

#[test]
fn the_committed_description_is_the_programs() {
    let committed =
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("openapi/openapi.json"))
            .unwrap();
    let ours = api_doc().to_pretty_json().unwrap() + "\n";
    assert!(
        committed == ours,
        "openapi/openapi.json is old: cargo run -- openapi > openapi/openapi.json"
    );
}

/// All request bodies that the description shows for an operation.
fn examples(operation: &Value) -> Vec<Value> {
    let Some(content) = operation["requestBody"]["content"].get("application/json") else {
        return Vec::new();
    };
    let named = content["examples"].as_object().into_iter().flatten();
    let named = named.map(|(_, example)| example["value"].clone());
    named.chain(content.get("example").cloned()).collect()
}

#[test]
fn every_example_is_answered() {
    let doc = serde_json::to_value(api_doc()).unwrap();
    let mut bodies = 0;
    for (path, item) in doc["paths"].as_object().unwrap() {
        if item.get("get").is_some() {
            let request = Request::get(path).body(Body::empty()).unwrap();
            let response = RUNTIME.block_on(SERVER.clone().oneshot(request)).unwrap();
            assert_eq!(response.status(), StatusCode::OK, "{path}");
        }
        let Some(post) = item.get("post") else {
            continue;
        };
        let examples = examples(post);
        assert!(!examples.is_empty(), "{path} shows no example");
        for body in examples {
            let response = RUNTIME.block_on(call(&SERVER, path, body.to_string()));
            let status = response.status();
            let answer = RUNTIME.block_on(text(response));
            assert_eq!(status, StatusCode::OK, "{path} {body}: {answer}");
            assert!(!answer.contains("\"error\""), "{path} {body}: {answer}");
            bodies += 1;
        }
    }
    assert!(bodies >= 10, "{bodies}");
}
