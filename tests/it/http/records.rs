//! Tests of the owner of a record, which is the principal of its call.

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
        "a misspelled parameter must delete no record"
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

fn trusting(keys: &str, admins: &str) -> Logged {
    let keys_of = |list: &str| match list {
        "" => ApiKeys::default(),
        list => ApiKeys::parse(list).unwrap(),
    };
    let config = HttpConfig {
        keys: keys_of(keys),
        admin_keys: keys_of(admins),
        ..HttpConfig::default()
    };
    let traffic = TrafficConfig {
        trust_user: true,
        ..TrafficConfig::default()
    };
    logged(&config, traffic)
}

fn call_as(server: &Router, key: Option<&str>, user: Option<&str>) -> (StatusCode, Value) {
    let mut body = json!({"prompt": "2 plus", "max_tokens": 2, "log": {"retain": true}});
    if let Some(user) = user {
        body["user"] = json!(user);
    }
    let call = Call {
        method: "POST",
        path: "/generate",
        key,
        body: Some(&body),
        ..Call::default()
    };
    call.of(server)
}

/// Names of users are checked on every route that takes one, so that no name forms another kind of principal.
#[test]
fn a_user_cannot_be_forged_into_another_principal() {
    let logged = trusting("", "alice:operators-secret");
    let (_, answer) = call_as(&logged.server, Some("operators-secret"), None);
    let path = path_of(&answer);
    let id = answer["record_id"].clone();
    for (user, encoded) in [
        ("admin\nalice", "admin%0Aalice"),
        ("\nadmin\nalice", "%0Aadmin%0Aalice"),
        ("admin\u{0}alice", "admin%00alice"),
        ("admin\r\nalice", "admin%0D%0Aalice"),
        ("a\u{85}b", "a%C2%85b"),
    ] {
        let (status, said) = call_as(&logged.server, None, Some(user));
        assert_eq!(
            (status, &said["error"]["param"]),
            (StatusCode::BAD_REQUEST, &json!("user"))
        );
        for (method, path) in [
            ("GET", format!("{path}?user={encoded}")),
            ("DELETE", format!("{path}?user={encoded}")),
            ("DELETE", format!("/records?user={encoded}")),
        ] {
            let (status, said) = call_record(method, &path, None).of(&logged.server);
            assert_eq!(status, StatusCode::BAD_REQUEST, "{method} {path}: {said}");
        }
        let said = json!({"record_id": id, "thumbs": "up", "user": user});
        let (status, _) = RUNTIME.block_on(post_to(&logged.server, "/feedback", &said));
        assert_eq!(status, StatusCode::BAD_REQUEST);
    }
    let long = "x".repeat(1025);
    assert_eq!(
        call_as(&logged.server, None, Some(&long)).0,
        StatusCode::BAD_REQUEST
    );
    for near in ["admin", "alice", "adminalice", "admin%20alice"] {
        let path = format!("{path}?user={near}");
        assert_eq!(
            call_record("GET", &path, None).of(&logged.server).0,
            StatusCode::NOT_FOUND
        );
    }
    assert_eq!(logged.log.stats().records, 1);
    // A server that does not trust users ignores their names, whatever they are.
    let wary = super::logged(&HttpConfig::default(), TrafficConfig::default());
    assert_eq!(
        call_as(&wary.server, None, Some("admin\nalice")).0,
        StatusCode::OK
    );
}

#[test]
fn principals_of_every_kind_see_their_own_alone() {
    let logged = trusting("eve:k1\nanonymous:k2\nuser-eve:k3", "eve:o1\nroot:o2");
    let all = [
        (Some("k1"), None),
        (Some("k1"), Some("eve")),
        (Some("k2"), None),
        (Some("k2"), Some("eve")),
        (Some("k3"), None),
        (Some("o1"), None),
        (Some("o1"), Some("eve")),
        (Some("o2"), None),
        (Some("o2"), Some("eve")),
    ];
    for (key, user) in all {
        let (_, answer) = call_as(&logged.server, key, user);
        for (other, their) in all {
            let query = their.map_or_else(String::new, |user| format!("?user={user}"));
            let path = format!("{}{query}", path_of(&answer));
            let (status, _) = call_record("GET", &path, other).of(&logged.server);
            let own = (key, user) == (other, their);
            assert_eq!(
                status,
                if own {
                    StatusCode::OK
                } else {
                    StatusCode::NOT_FOUND
                },
                "the record of {key:?} {user:?}, read by {other:?} {their:?}"
            );
        }
    }
}

/// Operators' users were stored as users of a caller's key before. Where no caller has that name, they still find their records.
#[test]
fn a_user_of_an_operators_key_finds_what_was_stored_before() {
    use traffic_log::{NewRecord, Principal, Prompt, RecordKind, Sample};
    let stored = |logged: &Logged| {
        let record = NewRecord {
            kind: RecordKind::Generate,
            principal: Principal::of_user(Some("root"), "eve"),
            consent: traffic_log::Consent {
                retain: true,
                train: false,
            },
            idempotency_key: None,
            prompt: Prompt::Text("x".to_owned()),
            prompt_token_ids: Vec::new(),
            version: "base".to_owned(),
            samples: vec![Sample::given("y")],
            verdicts: Vec::new(),
            pairs: Vec::new(),
        };
        let id = RUNTIME.block_on(logged.log.records.append(record)).unwrap();
        format!("/records/{id}?user=eve")
    };
    let alone = trusting("alice:k", "root:o");
    let path = stored(&alone);
    call_record("GET", &path, Some("o")).ok(&alone.server);
    // Where a caller has that name, the records belong to the caller's users.
    let shared = trusting("root:k", "root:o");
    let path = stored(&shared);
    call_record("GET", &path, Some("k")).ok(&shared.server);
    let (status, _) = call_record("GET", &path, Some("o")).of(&shared.server);
    assert_eq!(status, StatusCode::NOT_FOUND);
}

#[test]
fn an_operator_names_every_kind_of_principal() {
    let logged = trusting("anonymous:k1\nalice:k2", "root:o");
    for (key, user) in [
        (Some("k1"), None),
        (Some("k1"), Some("eve")),
        (Some("k2"), None),
        (Some("o"), None),
        (Some("o"), Some("eve")),
    ] {
        call_as(&logged.server, key, user);
    }
    let deleted = |query: &str| {
        let path = format!("/records?{query}");
        call_record("DELETE", &path, Some("o")).ok(&logged.server)["records"].clone()
    };
    assert_eq!(
        deleted("principal=anonymous"),
        0,
        "a caller with a key is not anonymous"
    );
    assert_eq!(deleted("principal=anonymous&user=eve"), 0);
    for query in [
        "principal=key:anonymous",
        "principal=key:anonymous&user=eve",
        "principal=alice",
        "principal=operator:root",
        "principal=operator:root&user=eve",
    ] {
        assert_eq!(deleted(query), 1, "{query}");
    }
    assert_eq!(logged.log.stats().records, 0);
    let (status, _) =
        call_record("DELETE", "/records?principal=a%0Ab", Some("o")).of(&logged.server);
    assert_eq!(status, StatusCode::BAD_REQUEST);
}
