//! Records belong to whoever made the call.

use super::*;

fn call_record<'a>(method: &'a str, path: &'a str, key: Option<&'a str>) -> Call<'a> {
    Call {
        method,
        path,
        key,
        ..Call::default()
    }
}

fn kept(logged: &Logged, key: &str) -> Value {
    let body = json!({"prompt": "2 plus", "max_tokens": 2, "log": {"retain": true}});
    posted("/generate", key, &body).ok(&logged.server)
}

fn path_of(answer: &Value) -> String {
    format!("/records/{}", answer["record_id"].as_str().unwrap())
}

#[test]
fn only_its_owner_sees_a_record_and_may_delete_it() {
    let logged = logged(&keyed(), TrafficConfig::default());
    let answer = kept(&logged, "a");
    let path = path_of(&answer);
    for method in ["GET", "DELETE"] {
        let (status, said) = call_record(method, &path, Some("b")).of(&logged.server);
        assert_eq!(status, StatusCode::NOT_FOUND, "{said}");
        let (status, _) = call_record(method, &path, None).of(&logged.server);
        assert_eq!(status, StatusCode::UNAUTHORIZED);
        for nothing in [
            "/records/01ARZ3NDEKTSV4RRFFQ69G5FAV",
            "/records/x",
            "/records/..%2f..%2fetc",
        ] {
            let (status, _) = call_record(method, nothing, Some("a")).of(&logged.server);
            assert_eq!(status, StatusCode::NOT_FOUND, "{nothing}");
        }
    }
    assert_eq!(
        record_of(&logged.server, "a", &answer)["id"],
        answer["record_id"]
    );
    let gone = call_record("DELETE", &path, Some("a")).ok(&logged.server);
    assert_eq!(gone, json!({"records": 1}));
    let (status, _) = call_record("GET", &path, Some("a")).of(&logged.server);
    assert_eq!(status, StatusCode::NOT_FOUND);
}

#[test]
fn a_principals_records_go_together() {
    let logged = logged(&keyed(), TrafficConfig::default());
    let (ours, theirs) = ([kept(&logged, "a"), kept(&logged, "a")], kept(&logged, "b"));
    let (status, said) =
        call_record("DELETE", "/records?principal=bob", Some("a")).of(&logged.server);
    assert_eq!(
        (status, &said["error"]["code"]),
        (StatusCode::FORBIDDEN, &json!("admin_only"))
    );
    let gone = call_record("DELETE", "/records", Some("a")).ok(&logged.server);
    assert_eq!(gone, json!({"records": 2}));
    for answer in &ours {
        let (status, _) = call_record("GET", &path_of(answer), Some("a")).of(&logged.server);
        assert_eq!(status, StatusCode::NOT_FOUND);
    }
    record_of(&logged.server, "b", &theirs);
    let gone = call_record("DELETE", "/records?principal=bob", Some("r")).ok(&logged.server);
    assert_eq!(gone, json!({"records": 1}), "an operator's key may");
    let (status, _) = call_record("DELETE", "/records?principle=bob", Some("r")).of(&logged.server);
    assert_eq!(
        status,
        StatusCode::BAD_REQUEST,
        "a misspelt parameter deletes nothing"
    );
}

#[test]
fn consent_to_train_is_taken_back_and_the_records_stay() {
    let logged = logged(&keyed(), TrafficConfig::default());
    let body = json!({"prompt": "2 plus", "max_tokens": 2, "log": {"retain": true, "train": true}});
    let (ours, theirs) = (
        posted("/generate", "a", &body).ok(&logged.server),
        posted("/generate", "b", &body).ok(&logged.server),
    );
    for expected in [1, 0] {
        let withdrawn = call_record("DELETE", "/records?keep=true", Some("a")).ok(&logged.server);
        assert_eq!(withdrawn, json!({"records": expected}));
    }
    let consent = |key, answer| record_of(&logged.server, key, answer)["log"].clone();
    assert_eq!(consent("a", &ours), json!({"retain": true, "train": false}));
    assert_eq!(
        consent("b", &theirs),
        json!({"retain": true, "train": true})
    );
}

#[test]
fn who_has_no_key_deletes_records_one_by_one() {
    let logged = logged(&HttpConfig::default(), TrafficConfig::default());
    let body = json!({"prompt": "2 plus", "max_tokens": 2, "log": {"retain": true}});
    let (_, answer) = RUNTIME.block_on(post_to(&logged.server, "/generate", &body));
    let (status, said) = call_record("DELETE", "/records", None).of(&logged.server);
    assert_eq!(
        (status, &said["error"]["code"]),
        (StatusCode::FORBIDDEN, &json!("no_principal"))
    );
    let path = path_of(&answer);
    assert_eq!(
        call_record("GET", &path, None).ok(&logged.server)["id"],
        answer["record_id"]
    );
    assert_eq!(
        call_record("DELETE", &path, None).ok(&logged.server),
        json!({"records": 1})
    );
}

#[test]
fn a_user_counts_where_it_is_trusted() {
    let asked = |user: &str| json!({"prompt": "2 plus", "max_tokens": 2, "user": user, "log": {"retain": true}});
    let trusting = logged(
        &keyed(),
        TrafficConfig {
            trust_user: true,
            ..TrafficConfig::default()
        },
    );
    let answer = posted("/generate", "a", &asked("eve")).ok(&trusting.server);
    let path = path_of(&answer);
    for (query, key, status) in [
        ("?user=eve", "a", StatusCode::OK),
        ("?user=mallory", "a", StatusCode::NOT_FOUND),
        ("", "a", StatusCode::NOT_FOUND),
        ("?user=eve", "b", StatusCode::NOT_FOUND),
    ] {
        let path = format!("{path}{query}");
        assert_eq!(
            call_record("GET", &path, Some(key)).of(&trusting.server).0,
            status,
            "{path}"
        );
    }
    let gone =
        call_record("DELETE", "/records?principal=alice&user=eve", Some("r")).ok(&trusting.server);
    assert_eq!(gone, json!({"records": 1}));

    let wary = logged(&keyed(), TrafficConfig::default());
    let answer = posted("/generate", "a", &asked("eve")).ok(&wary.server);
    record_of(&wary.server, "a", &answer);
    let path = format!("{}?user=eve", path_of(&answer));
    assert_eq!(
        call_record("GET", &path, Some("a")).of(&wary.server).0,
        StatusCode::BAD_REQUEST
    );
}
