//! Tests of calls that are repeated under an idempotency key.

use super::*;

const PATH: &str = "/generate";

fn call<'a>(key: Option<&'a str>, name: &'a str, path: &'a str, body: &'a Value) -> Call<'a> {
    Call {
        method: "POST",
        path,
        key,
        idempotency: Some(name),
        body: Some(body),
    }
}

fn asked(prompt: &str, log: Value) -> Value {
    json!({"prompt": prompt, "max_tokens": 2, "log": log})
}

fn error(answer: &(StatusCode, Value)) -> (u16, &str) {
    let code = answer.1["error"]["code"].as_str();
    (answer.0.as_u16(), code.unwrap_or_default())
}

#[test]
fn strangers_have_no_names_and_see_nothing_of_each_other() {
    let logged = logged(&HttpConfig::default(), TrafficConfig::default());
    let kept = json!({"retain": true});
    for body in [
        asked("SECRET of A: my pin is 7531", kept.clone()),
        asked("hello from B", json!({"train": true})),
    ] {
        let refused = call(None, "1", PATH, &body).of(&logged.server);
        assert_eq!(error(&refused), (400, "idempotency_needs_key"));
        assert_eq!(refused.1["error"]["param"], "Idempotency-Key");
    }
    let judged = json!({"prompt": "x", "candidates": ["a", "b"], "log": kept});
    let refused = call(None, "1", "/judge", &judged).of(&logged.server);
    assert_eq!(error(&refused), (400, "idempotency_needs_key"));
    assert_eq!(logged.log.stats().records, 0);
    // A call without a record may have an idempotency key, which names nothing.
    let unkept = asked("hello", json!(null));
    call(None, "1", PATH, &unkept).ok(&logged.server);
}

#[test]
fn users_who_are_trusted_have_names_of_their_own() {
    let traffic = TrafficConfig {
        trust_user: true,
        ..TrafficConfig::default()
    };
    let logged = logged(&HttpConfig::default(), traffic);
    let of = |user: &str, prompt: &str| {
        let mut body = asked(prompt, json!({"retain": true}));
        body["user"] = json!(user);
        call(None, "1", PATH, &body).ok(&logged.server)["record_id"].clone()
    };
    let ann = of("ann", "one");
    assert_eq!(of("ann", "one"), ann);
    assert_ne!(of("bob", "another"), ann);
}

#[test]
fn another_body_under_a_name_is_refused_and_nothing_of_it_is_kept() {
    let logged = logged(&keyed(), TrafficConfig::default());
    let kept = json!({"retain": true, "train": true});
    let first = asked("What is 3 plus 4?", kept.clone());
    let id = call(Some("a"), "one", PATH, &first).ok(&logged.server)["record_id"].clone();
    let mut more = first.clone();
    more["max_tokens"] = json!(3);
    let mut streamed = asked("What is 4 plus 4?", kept.clone());
    streamed["stream"] = json!(true);
    let chat = json!({"messages": [{"role": "user", "content": "What is 3 plus 4?"}], "max_tokens": 2, "log": kept});
    for (path, body) in [
        (PATH, asked("What is 4 plus 4?", kept.clone())),
        (PATH, more),
        (PATH, streamed),
        ("/v1/chat/completions", chat),
    ] {
        let refused = call(Some("a"), "one", path, &body).of(&logged.server);
        assert_eq!(error(&refused), (422, "idempotency_key_reused"), "{body}");
    }
    assert_eq!(logged.log.stats().records, 1);
    // A body with another order of keys, and with neutral values, is the same call.
    let same: serde_json::Result<Value> = serde_json::from_str(
        r#"{"log": {"train": true, "retain": true}, "timeout": 60, "seed": null, "max_tokens": 2, "prompt": "What is 3 plus 4?"}"#,
    );
    let same = same.unwrap();
    assert_eq!(
        call(Some("a"), "one", PATH, &same).ok(&logged.server)["record_id"],
        id
    );
    assert_eq!(logged.log.stats().records, 1);
}

#[test]
fn two_bodies_that_come_at_once_under_one_name_are_one_record() {
    let logged = logged(&keyed(), TrafficConfig::default());
    let bodies =
        ["one", "two", "three", "four"].map(|prompt| asked(prompt, json!({"retain": true})));
    let answers = RUNTIME.block_on(async {
        let calls = bodies.iter().map(async |body| {
            let answer = call(Some("a"), "race", PATH, body)
                .response(&logged.server)
                .await;
            answer.status().as_u16()
        });
        futures::future::join_all(calls).await
    });
    let answered = |status: u16| answers.iter().filter(|&&got| got == status).count();
    assert_eq!((answered(200), answered(422)), (1, 3), "{answers:?}");
    assert_eq!(logged.log.stats().records, 1);
}

#[test]
fn of_two_consents_the_stricter_one_holds() {
    let logged = logged(&keyed(), TrafficConfig::default());
    let with = |log: Value| {
        let body = asked("What is 3 plus 4?", log);
        call(Some("a"), "one", PATH, &body).ok(&logged.server)
    };
    let first = with(json!({"retain": true, "train": true}));
    let trains = || record_of(&logged.server, "a", &first)["log"]["train"].clone();
    assert_eq!(trains(), true);
    let again = with(json!({"retain": true, "train": false}));
    assert_eq!(again["record_id"], first["record_id"]);
    assert_eq!(trains(), false);
    with(json!({"retain": true, "train": true}));
    assert_eq!(trains(), false, "a withdrawn consent must stay withdrawn");
    // A repetition without consent to keep the record deletes it.
    let last = with(json!({"retain": false}));
    assert!(last.get("record_id").is_none(), "{last}");
    assert_eq!(logged.log.stats().records, 0);
}

#[test]
fn prompts_of_one_call_are_named_together() {
    let logged = logged(&keyed(), TrafficConfig::default());
    let path = "/v1/completions";
    let body =
        |prompts: &[&str]| json!({"prompt": prompts, "max_tokens": 2, "log": {"retain": true}});
    let first = call(Some("a"), "many", path, &body(&["one", "two", "three"])).ok(&logged.server);
    let again = call(Some("a"), "many", path, &body(&["one", "two", "three"])).ok(&logged.server);
    assert_eq!(first["record_ids"], again["record_ids"]);
    let other = call(Some("a"), "many", path, &body(&["one", "two", "four"])).of(&logged.server);
    assert_eq!(error(&other), (422, "idempotency_key_reused"));
    assert_eq!(logged.log.stats().records, 3);
    let mut unkept = body(&["one", "two", "three"]);
    unkept["log"] = json!({"retain": false});
    call(Some("a"), "many", path, &unkept).ok(&logged.server);
    assert_eq!(logged.log.stats().records, 0);
}
