//! Tests of feedback: its callers, its records and its samples.

use super::*;

#[test]
fn feedback_is_kept_with_its_record() {
    let logged = logged(&keyed(), TrafficConfig::default());
    let body = json!({"prompt": "What is 34 plus 28?", "n": 2, "seed": 1, "log": {"retain": true, "train": true}});
    let answer = posted("/generate", "a", &body).ok(&logged.server);
    let id = &answer["record_id"];
    let give = |body: Value| posted("/feedback", "a", &body).ok(&logged.server);
    let first = give(json!({"record_id": id, "thumbs": "up"}));
    assert_eq!(&first["record_id"], id);
    give(json!({"record_id": id, "sample": 1, "thumbs": "down"}));
    give(json!({"record_id": id, "preferred": 1}));
    let last = give(json!({"record_id": id, "sample": 1, "edited": "It is 62."}));
    assert!(
        last["pairs"].as_u64().unwrap() > 0,
        "this server must trust the feedback: {last}"
    );
    let record = record_of(&logged.server, "a", &answer);
    let said = |of: &Value| {
        let mut of = of.clone();
        of.as_object_mut().unwrap().shift_remove("created_at");
        of.to_string()
    };
    let given = record["feedback"].as_array().unwrap().iter().map(said);
    let mut given: Vec<String> = given.collect();
    given.sort();
    let mut expected = [
        json!({"sample": 0, "thumbs": "up"}),
        json!({"sample": 1, "thumbs": "down"}),
        json!({"sample": 1, "preferred": true}),
        json!({"sample": 1, "edited": "It is 62."}),
    ]
    .map(|given| given.to_string());
    expected.sort();
    assert_eq!(given, expected);
}

#[test]
fn feedback_that_makes_no_sense_is_refused() {
    let logged = logged(&keyed(), TrafficConfig::default());
    let body = json!({"prompt": "2 plus", "max_tokens": 2, "log": {"retain": true}});
    let answer = posted("/generate", "a", &body).ok(&logged.server);
    let id = &answer["record_id"];
    for (key, body, status) in [
        ("a", json!({"record_id": id}), StatusCode::BAD_REQUEST),
        (
            "a",
            json!({"record_id": id, "thumbs": "sideways"}),
            StatusCode::BAD_REQUEST,
        ),
        (
            "a",
            json!({"record_id": id, "thumbs": "up", "preferred": 0}),
            StatusCode::BAD_REQUEST,
        ),
        (
            "a",
            json!({"record_id": id, "preferred": 1}),
            StatusCode::BAD_REQUEST,
        ),
        (
            "a",
            json!({"record_id": id, "preferred": 0, "sample": 0}),
            StatusCode::BAD_REQUEST,
        ),
        (
            "a",
            json!({"record_id": id, "sample": 7, "edited": "x"}),
            StatusCode::BAD_REQUEST,
        ),
        (
            "a",
            json!({"record_id": id, "thumbs": "up", "user": "eve"}),
            StatusCode::BAD_REQUEST,
        ),
        (
            "a",
            json!({"record_id": id, "stars": 5}),
            StatusCode::BAD_REQUEST,
        ),
        (
            "a",
            json!({"record_id": "x", "thumbs": "up"}),
            StatusCode::NOT_FOUND,
        ),
        (
            "b",
            json!({"record_id": id, "thumbs": "up"}),
            StatusCode::NOT_FOUND,
        ),
    ] {
        let (said, answer) = posted("/feedback", key, &body).of(&logged.server);
        assert_eq!(said, status, "{body}: {answer}");
    }
}
