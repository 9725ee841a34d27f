//! Tests of a canary that serves a share of the callers, and is withdrawn where it answers badly.

use serde_json::{Value, json};

use super::support::{LEARN, Program, Setup, question, wait_for, with_traffic};

/// Sends an unlogged call of a user with parameters of its own, and returns the version that answered.
fn version(program: &Program, user: Option<&str>, parameters: &Value) -> String {
    let mut call = question(1);
    call["log"] = json!({"retain": false});
    call["max_tokens"] = Value::Null;
    for (name, value) in parameters.as_object().unwrap() {
        call[name] = value.clone();
    }
    if let Some(user) = user {
        call["user"] = json!(user);
    }
    let answer = program.post("/generate", &call);
    answer["version"].as_str().unwrap().to_owned()
}

#[test]
fn a_canary_is_withdrawn_for_what_its_weights_do_and_not_for_what_callers_ask() {
    let dir = with_traffic();
    // This learning rate destroys the model.
    let learn = LEARN.replace("learning_rate = 1e-3", "learning_rate = 1.0");
    let learn = format!(
        "{learn}\n[publish]\npromote = false\ncanary = {{ min_answers = 10, principal_share = 1.0 }}\n"
    );
    let setup = Setup {
        arguments: &["--canary-share", "1", "--trust-user"],
        ..Setup::learning(dir.path(), &learn)
    };
    let program = Program::start(&setup);
    let id = wait_for("a candidate with gates", || {
        let generations = program.admin_get("/generations");
        let newest = &generations["generations"][0];
        (newest["gates"].is_array()).then(|| newest["id"].as_str().unwrap().to_owned())
    });
    program.admin_post("/train/pause", &Value::Null);
    assert_eq!(program.policy(), "base");
    assert!(program.admin_get("/generations")["canary"].is_null());

    let body = json!({"expected": "base", "canary": true});
    let (status, answer) = program.admin_post(&format!("/generations/{id}/promote"), &body);
    assert_eq!(
        (status, &answer["pointers"]["canary"]),
        (200, &json!(id)),
        "{answer}"
    );
    // Calls with a user's name ask the canary, and calls without one the live version. Answers that the caller cuts short, shapes
    // or leaves count for neither.
    let whole = json!({});
    let shaped = [
        json!({"max_tokens": 1}),
        json!({"stop": ["a", "e", "1", " "]}),
        json!({"structured_outputs": {"choice": ["yes", "no"]}}),
        json!({"ignore_eos": true, "max_tokens": 8}),
        json!({"min_tokens": 4, "max_tokens": 8}),
    ];
    for number in 0..20 {
        let user = format!("user-{number}");
        let parameters = &shaped[number % shaped.len()];
        assert_eq!(version(&program, Some(&user), parameters), id);
        assert_eq!(version(&program, None, &whole), "base");
    }
    let health = wait_for("the health of the live version", || {
        let generations = program.admin_get("/generations");
        let health = generations["canary"].clone();
        (health["live"]["answers"] == 20.0).then_some(health)
    });
    assert_eq!(health["verdict"], "too_early", "{health}");
    assert_eq!(health["canary"]["answers"], 0.0, "{health}");
    for number in 0..12 {
        version(&program, Some(&format!("user-{number}")), &whole);
    }
    let generations = wait_for("the withdrawal of the canary", || {
        let generations = program.admin_get("/generations");
        (generations["pointers"]["canary"] == "base" && generations["withdrawn"].is_string())
            .then_some(generations)
    });
    let withdrawn = generations["withdrawn"].as_str().unwrap();
    assert!(withdrawn.starts_with(&id), "{withdrawn}");
    wait_for("the live version for all callers", || {
        (version(&program, Some("user-1"), &whole) == "base").then_some(())
    });

    let trail = program.admin_get("/events");
    let mut events = trail["events"].as_array().unwrap().iter();
    let event = events.find(|event| event["actor"] == "canary-watch");
    let event = event.unwrap_or_else(|| panic!("{trail}"));
    assert_eq!(event["action"], "pointers.moved");
    let reason = event["detail"]["reason"].as_str().unwrap();
    assert!(reason.contains("canary withdrawn"), "{reason}");
    let metrics = program.metrics();
    let counted = metrics
        .lines()
        .filter(|line| line.starts_with("selfjudge:canaries_withdrawn_total"))
        .find(|line| !line.ends_with(" 0"));
    let counted = counted.unwrap_or_default();
    assert!(
        counted.contains("number=") && counted.ends_with(" 1"),
        "{counted}"
    );
    program.stop();
}
