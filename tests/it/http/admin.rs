//! Tests of the operators' routes, and of refusals to other callers.

use traffic_log::{
    GenerationId, NewGeneration, NewStage, RecordId, StageId, TrafficLog, TrainerLease,
};

use super::*;

fn table() -> Value {
    json!({"version": 1, "principles": [{"id": "correct", "text": "correct"}]})
}

/// The calls that only operators may make.
const CALLS: [&str; 3] = [
    "GET /events",
    "PUT /principles",
    "DELETE /records?principal=alice",
];

fn status(server: &Router, said: &str, key: Option<&str>, body: &Value) -> StatusCode {
    let (method, path) = said.split_once(' ').unwrap();
    let call = Call {
        method,
        path,
        key,
        body: (method == "PUT").then_some(body),
        ..Call::default()
    };
    call.of(server).0
}

#[test]
fn without_a_key_or_a_listener_of_their_own_nobody_is_an_operator() {
    let open = logged(&HttpConfig::default(), TrafficConfig::default());
    for (said, refused) in [
        ("GET /events", StatusCode::NOT_FOUND),
        ("PUT /principles", StatusCode::METHOD_NOT_ALLOWED),
        ("DELETE /records?principal=alice", StatusCode::FORBIDDEN),
        ("DELETE /records?principal=anonymous", StatusCode::FORBIDDEN),
    ] {
        for key in [None, Some("r"), Some("")] {
            assert_eq!(status(&open.server, said, key, &table()), refused, "{said}");
        }
    }
    assert_eq!(open.principles.current().version, 1);
}

#[test]
fn an_operators_key_opens_what_a_callers_does_not() {
    let logged = logged(&keyed(), TrafficConfig::default());
    for said in CALLS {
        assert_eq!(
            status(&logged.server, said, Some("a"), &table()),
            StatusCode::FORBIDDEN,
            "{said}"
        );
        for key in [None, Some("nobody's")] {
            assert_eq!(
                status(&logged.server, said, key, &table()),
                StatusCode::UNAUTHORIZED,
                "{said}"
            );
        }
        assert_eq!(
            status(&logged.server, said, Some("r"), &table()),
            StatusCode::OK,
            "{said}"
        );
    }
}

#[test]
fn a_listener_of_their_own_takes_a_key_where_there_is_one() {
    let open = logged(&HttpConfig::default(), TrafficConfig::default());
    let keyed = logged(&keyed(), TrafficConfig::default());
    for said in CALLS {
        assert_eq!(
            status(&open.admin, said, None, &table()),
            StatusCode::OK,
            "{said}"
        );
        assert_eq!(
            status(&keyed.admin, said, None, &table()),
            StatusCode::UNAUTHORIZED,
            "{said}"
        );
        assert_eq!(
            status(&keyed.admin, said, Some("a"), &table()),
            StatusCode::FORBIDDEN,
            "{said}"
        );
        assert_eq!(
            status(&keyed.admin, said, Some("r"), &table()),
            StatusCode::OK,
            "{said}"
        );
    }
    let elsewhere = status(&open.admin, "GET /v1/models", None, &table());
    assert_eq!(
        elsewhere,
        StatusCode::NOT_FOUND,
        "this listener must have no other routes"
    );
}

#[test]
fn what_is_done_is_in_the_audit_trail() {
    let logged = logged(&keyed(), TrafficConfig::default());
    let body = json!({"prompt": "2 plus", "max_tokens": 2, "log": {"retain": true}});
    posted("/generate", "a", &body).ok(&logged.server);
    for said in CALLS {
        assert_eq!(
            status(&logged.server, said, Some("r"), &table()),
            StatusCode::OK
        );
    }
    let events = |query: &str| {
        let call = Call {
            method: "GET",
            path: &format!("/events{query}"),
            key: Some("r"),
            ..Call::default()
        };
        call.of(&logged.server)
    };
    let (_, all) = events("");
    let all = all["events"].as_array().unwrap().clone();
    let put = all
        .iter()
        .find(|event| event["action"] == "principles.replaced");
    let put = put.unwrap_or_else(|| panic!("{all:?}"));
    assert_eq!(
        (&put["actor"], &put["detail"]["version"]),
        (&json!("root"), &json!(2))
    );
    for (before, after) in all.iter().zip(&all[1..]) {
        assert_eq!(before["hash"], after["previous"]);
    }
    let count = RUNTIME.block_on(logged.log.audit.verify()).unwrap();
    assert_eq!(count, all.len() as u64);
    let (_, rest) = events("?after=1&limit=1");
    assert_eq!(
        rest["events"],
        json!(all.get(1).into_iter().collect::<Vec<_>>())
    );
    for wrong in [
        "?limit=0",
        "?limit=9999",
        "?after=-1",
        "?after=x",
        "?before=1",
    ] {
        assert_eq!(events(wrong).0, StatusCode::BAD_REQUEST, "{wrong}");
    }
}

#[test]
fn the_judge_is_moved_by_name_and_not_while_a_stage_runs() {
    let logged = logged(&keyed(), TrafficConfig::default());
    let moved = |path: &str, body: Value| {
        let call = Call {
            method: "POST",
            path,
            key: Some("r"),
            body: Some(&body),
            ..Call::default()
        };
        call.of(&logged.server)
    };
    let judge = |expected: &str| json!({"expected": expected, "as": "judge"});
    let (status, said) = moved("/generations/base/promote", judge("base"));
    assert_eq!(status, StatusCode::OK, "{said}");
    assert_eq!(said["pointers"]["judge"], "base");
    let (status, _) = moved("/generations/base/promote", judge("0"));
    assert_eq!(
        status,
        StatusCode::CONFLICT,
        "the pointer must not be at that generation"
    );
    for (path, body) in [
        (
            "/generations/base/promote",
            json!({"expected": "base", "as": "judge", "canary": true}),
        ),
        (
            "/generations/base/promote",
            json!({"expected": "base", "as": "jury"}),
        ),
        ("/generations/base/rollback", judge("base")),
    ] {
        let (status, said) = moved(path, body);
        assert_eq!(status, StatusCode::BAD_REQUEST, "{said}");
    }
    RUNTIME.block_on(async {
        open_stage(&logged.log).await;
    });
    let (status, said) = moved("/generations/base/promote", judge("base"));
    assert_eq!(
        (status, &said["error"]["code"]),
        (StatusCode::CONFLICT, &json!("stage_running"))
    );
    let (status, said) = moved("/generations/base/promote", json!({"expected": "base"}));
    assert_eq!(
        status,
        StatusCode::OK,
        "the operator must be able to move the policy: {said}"
    );
}

#[test]
fn an_open_stage_can_be_abandoned_once() {
    let logged = logged(&keyed(), TrafficConfig::default());
    let abandon = |key| {
        let call = Call {
            method: "POST",
            path: "/train/abandon",
            key: Some(key),
            ..Call::default()
        };
        call.of(&logged.server)
    };
    let refused = |(status, said): (StatusCode, Value)| {
        assert_eq!(
            (status, &said["error"]["code"]),
            (StatusCode::CONFLICT, &json!("no_open_stage"))
        );
    };
    refused(abandon("r"));
    assert_eq!(
        abandon("a").0,
        StatusCode::FORBIDDEN,
        "callers must not abandon a stage"
    );
    let body = json!({"prompt": "2 plus", "max_tokens": 2, "log": {"retain": true, "train": true}});
    let answer = posted("/generate", "a", &body).ok(&logged.server);
    let id = RecordId::parse(answer["record_id"].as_str().unwrap()).unwrap();
    let stage = RUNTIME.block_on(async {
        let (lease, stage) = open_stage(&logged.log).await;
        lease.claim_rows(stage, &[id]).await.unwrap();
        stage
    });
    let (status, said) = abandon("r");
    assert_eq!(
        (status, said),
        (
            StatusCode::OK,
            json!({"stage": stage.0, "released": 1, "kept": 0})
        )
    );
    refused(abandon("r"));
    let events = RUNTIME.block_on(logged.log.audit.after(0, 100)).unwrap();
    let event = events.last().unwrap();
    assert_eq!(event.action, "stage.abandoned");
    assert_eq!(event.detail["stage"], json!(stage.0));
    assert_ne!(event.actor, "trainer");
}

#[test]
fn a_canary_that_would_answer_nobody_is_refused() {
    let body = json!({"expected": "base", "canary": true});
    let tried = |traffic: TrafficConfig| {
        let logged = logged(&HttpConfig::default(), traffic);
        Call {
            method: "POST",
            path: "/generations/base/promote",
            body: Some(&body),
            ..Call::default()
        }
        .of(&logged.admin)
    };
    let (status, said) = tried(TrafficConfig::default());
    assert_eq!(
        (status, &said["error"]["code"]),
        (StatusCode::CONFLICT, &json!("no_canary_callers"))
    );
    let (status, said) = tried(TrafficConfig {
        trust_user: true,
        ..TrafficConfig::default()
    });
    assert_eq!(status, StatusCode::OK, "{said}");
}

#[test]
fn a_name_that_is_no_text_is_refused_as_everything_is() {
    let logged = logged(&HttpConfig::default(), TrafficConfig::default());
    let call = Call {
        method: "GET",
        path: "/records/%ff",
        ..Call::default()
    };
    let (status, said) = call.of(&logged.server);
    assert_eq!(
        (status, &said["error"]["code"]),
        (StatusCode::BAD_REQUEST, &json!("invalid_path"))
    );
}

#[test]
fn generations_are_listed_by_a_record_that_they_read() {
    let logged = logged(&keyed(), TrafficConfig::default());
    let body = json!({"prompt": "2 plus", "max_tokens": 2, "log": {"retain": true, "train": true}});
    let answers: Vec<Value> = (0..2)
        .map(|_| posted("/generate", "a", &body).ok(&logged.server))
        .collect();
    let ids = answers
        .iter()
        .map(|answer| answer["record_id"].as_str().unwrap());
    let ids: Vec<RecordId> = ids.map(|id| RecordId::parse(id).unwrap()).collect();
    RUNTIME.block_on(async {
        let (lease, stage) = open_stage(&logged.log).await;
        lease.claim_rows(stage, &ids[..1]).await.unwrap();
        let generation = NewGeneration {
            id: GenerationId::new("one"),
            parent: GenerationId::base(),
            reference: GenerationId::base(),
            stage: Some(stage),
            manifest: json!({}),
        };
        lease.insert_generation(generation).await.unwrap();
    });
    let listed = |query: &str| {
        let call = Call {
            method: "GET",
            path: &format!("/generations{query}"),
            key: Some("r"),
            ..Call::default()
        };
        let (status, said) = call.of(&logged.server);
        (status, said["generations"].as_array().map_or(0, Vec::len))
    };
    assert_eq!(listed(""), (StatusCode::OK, 1));
    assert_eq!(listed(&format!("?record={}", ids[0])), (StatusCode::OK, 1));
    assert_eq!(listed(&format!("?record={}", ids[1])), (StatusCode::OK, 0));
    assert_eq!(listed("?recrod=x").0, StatusCode::BAD_REQUEST);
}

/// Opens a stage, with the lease of its trainer.
pub(super) async fn open_stage(log: &TrafficLog) -> (TrainerLease, StageId) {
    let ttl = std::time::Duration::from_secs(3600);
    let lease = log.leases.acquire("t", ttl).await.unwrap().unwrap();
    let stage = NewStage {
        reference: GenerationId::base(),
        state: json!({}),
    };
    let stage = lease.open_stage(stage).await.unwrap();
    (lease, stage)
}
