//! Tests of the table of principles: it is read, replaced, and used in verdicts.

use super::*;

fn get(server: &Router, key: Option<&str>) -> Value {
    let call = Call {
        method: "GET",
        path: "/principles",
        key,
        ..Call::default()
    };
    call.ok(server)
}

fn put<'a>(key: Option<&'a str>, body: &'a Value) -> Call<'a> {
    Call {
        method: "PUT",
        path: "/principles",
        key,
        body: Some(body),
        ..Call::default()
    }
}

/// Returns the pocket model's table with other weights.
fn weighing(version: u64, weights: &[(&str, f64)]) -> Value {
    let principles = weights
        .iter()
        .map(|(id, weight)| json!({"id": id, "text": id, "weight": weight}));
    json!({"version": version, "principles": principles.collect::<Vec<_>>()})
}

#[test]
fn a_table_is_replaced_by_who_knows_its_version() {
    let logged = logged(&keyed(), TrafficConfig::default());
    let table = get(&logged.server, Some("a"));
    assert_eq!(table["version"], 1);
    assert_eq!(
        table["principles"][0],
        json!({"id": "correct", "text": "correct", "weight": 3.0,
        "polarity": "encourage", "always": false}),
        "the table must be the model's"
    );
    let next = weighing(1, &[("correct", 1.0), ("brief", 0.5)]);
    let replaced = put(Some("r"), &next).ok(&logged.server);
    assert_eq!(replaced["version"], 2);
    assert_eq!(get(&logged.server, Some("a")), replaced);
    let (status, said) = put(Some("r"), &next).of(&logged.server);
    assert_eq!(
        (status, &said["error"]["code"]),
        (StatusCode::CONFLICT, &json!("stale_version"))
    );
    let kept = Principles::open(logged.dir.path(), SERVICE.judge().table().clone()).unwrap();
    assert_eq!(
        *kept.current(),
        *logged.principles.current(),
        "the table must be the same after a restart"
    );
    assert_eq!(kept.current().version, 2);
    for body in [
        weighing(2, &[("a", 1.0), ("a", 1.0)]),
        weighing(2, &[("a", -1.0)]),
        weighing(2, &[("a", 1e-9)]),
        weighing(2, &[("", 1.0)]),
        weighing(2, &vec![("a", 1.0); 300]),
        json!({"version": 2, "principles": [{"id": "a", "text": "a", "wieght": 1}]}),
        json!({"version": 2, "principles": [{"id": "a", "text": "a", "polarity": "maybe"}]}),
        json!({"principles": []}),
    ] {
        let (status, said) = put(Some("r"), &body).of(&logged.server);
        assert_eq!(status, StatusCode::BAD_REQUEST, "{body}: {said}");
    }
    assert_eq!(get(&logged.server, Some("a")), replaced);
}

/// Returns the verdict of `/judge` on two answers under `principles`.
fn judged(server: &Router, principles: &Value) -> Value {
    let body = json!({"prompt": "Write planet backwards.", "candidates": ["Sure! tenalp. Glad to help!", "tenlap"],
        "principles": principles});
    posted("/judge", "a", &body).ok(server)
}

fn p(verdict: &Value) -> f64 {
    verdict["p"].as_f64().unwrap()
}

/// Returns the probability under one of the principles of a verdict.
fn under(verdict: &Value, name: &str) -> f64 {
    let parts = verdict["principles"].as_array().unwrap();
    p(parts.iter().find(|part| part["principle"] == name).unwrap())
}

#[test]
fn weights_change_verdicts_at_once() {
    let logged = logged(&keyed(), TrafficConfig::default());
    let server = &logged.server;
    let names = json!(["correct", "brief"]);
    let even = judged(server, &names);
    let (correct, brief) = (under(&even, "correct"), under(&even, "brief"));
    assert!(
        (correct - brief).abs() > 0.1,
        "the two probabilities must differ, so that weights have an effect: {even}"
    );
    // The weights in the model's table are 3 and 1.
    assert!(
        (p(&even) - (3.0 * correct + brief) / 4.0).abs() < 1e-5,
        "{even}"
    );
    put(Some("r"), &weighing(1, &[("correct", 1.0), ("brief", 9.0)])).ok(server);
    let tilted = judged(server, &names);
    assert!(
        (p(&tilted) - (correct + 9.0 * brief) / 10.0).abs() < 1e-5,
        "{tilted}"
    );
    assert_eq!(p(&judged(server, &json!("table"))), p(&tilted));
    // The principles of a call take precedence over the table.
    let said = judged(
        server,
        &json!(["correct", {"principle": "brief", "weight": 1}]),
    );
    assert!((p(&said) - (correct + brief) / 2.0).abs() < 1e-5, "{said}");

    // A principle of weight 0 is not asked.
    put(Some("r"), &weighing(2, &[("correct", 1.0), ("brief", 0.0)])).ok(server);
    let alone = judged(server, &names);
    assert_eq!(alone["principles"].as_array().unwrap().len(), 1);
    assert!((p(&alone) - correct).abs() < 1e-6);
    let tokens = |verdict: &Value| verdict["usage"]["prompt_tokens"].as_u64().unwrap();
    assert!(
        tokens(&alone) < tokens(&even),
        "each order must have one read less"
    );
    assert_eq!(p(&judged(server, &json!("table"))), p(&alone));

    put(Some("r"), &weighing(3, &[("correct", 0.0)])).ok(server);
    for principles in [json!("table"), json!(["correct"])] {
        let body = json!({"prompt": "x", "candidates": ["a", "b"], "principles": principles});
        let (status, said) = posted("/judge", "a", &body).of(server);
        assert_eq!(
            (status, &said["error"]["param"]),
            (StatusCode::BAD_REQUEST, &json!("principles"))
        );
    }
}

#[test]
fn what_is_ruled_out_turns_the_verdict_around() {
    let logged = logged(&keyed(), TrafficConfig::default());
    let server = &logged.server;
    let wanted = judged(server, &json!(["polite"]));
    let table = json!({"version": 1, "principles": [{"id": "polite", "text": "polite", "polarity": "forbid"}]});
    put(Some("r"), &table).ok(server);
    let ruled_out = judged(server, &json!(["polite"]));
    assert!(
        (p(&wanted) + p(&ruled_out) - 1.0).abs() < 1e-6,
        "{wanted} {ruled_out}"
    );
    assert_ne!(wanted["winner"], ruled_out["winner"]);
    assert_eq!(wanted["consistent"], ruled_out["consistent"]);
    let tournament = json!({"prompt": "What is 34 plus 28?", "candidates": ["34 plus 28 is 62. Glad to help!", "52"],
        "principles": "table", "method": "tournament"});
    let held = posted("/judge", "a", &tournament).ok(server);
    assert_eq!(held["winner"], ruled_out["winner"]);
}
