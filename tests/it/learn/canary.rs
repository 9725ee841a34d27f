//! A generation that a share of the callers tries out, and that is taken back where it is ill.

use serde_json::{Value, json};

use super::support::{LEARN, Program, Setup, question, wait_for, with_traffic};

/// An unlogged call of somebody, and the version that answered.
fn version(program: &Program, user: Option<&str>, max_tokens: usize) -> String {
    let mut call = question(1);
    call["log"] = json!({"retain": false});
    call["max_tokens"] = json!(max_tokens);
    if let Some(user) = user {
        call["user"] = json!(user);
    }
    let answer = program.post("/generate", &call);
    answer["version"].as_str().unwrap().to_owned()
}

#[test]
fn a_canary_whose_answers_are_cut_off_is_taken_back() {
    let dir = with_traffic();
    let learn = format!("{LEARN}\n[publish]\npromote = false\ncanary = {{ min_answers = 10 }}\n");
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
    // Everybody who is somebody asks the canary, for a single token; nobody in particular has the live version's whole answers.
    for number in 0..5 {
        assert_eq!(version(&program, Some(&format!("user-{number}")), 1), id);
        assert_eq!(version(&program, None, 64), "base");
    }
    let health = wait_for("a look at the canary", || {
        let generations = program.admin_get("/generations");
        let health = generations["canary"].clone();
        (health["canary"]["answers"] == 5).then_some(health)
    });
    assert_eq!(health["verdict"], "too_early", "{health}");
    for number in 5..12 {
        version(&program, Some(&format!("user-{number}")), 1);
        version(&program, None, 64);
    }
    let generations = wait_for("its withdrawal", || {
        let generations = program.admin_get("/generations");
        (generations["pointers"]["canary"] == "base" && generations["withdrawn"].is_string())
            .then_some(generations)
    });
    let withdrawn = generations["withdrawn"].as_str().unwrap();
    assert!(
        withdrawn.starts_with(&id) && withdrawn.contains("truncated"),
        "{withdrawn}"
    );
    wait_for("the live version for everybody", || {
        (version(&program, Some("user-1"), 1) == "base").then_some(())
    });

    let trail = program.admin_get("/events");
    let mut events = trail["events"].as_array().unwrap().iter();
    let event = events.find(|event| event["actor"] == "canary-watch");
    let event = event.unwrap_or_else(|| panic!("{trail}"));
    assert_eq!(event["action"], "pointers.moved");
    let reason = event["detail"]["reason"].as_str().unwrap();
    assert!(reason.contains("truncated 1.000 after"), "{reason}");
    let metrics = program.metrics();
    let counted = metrics
        .lines()
        .find(|line| line.starts_with("selfjudge:canaries_withdrawn_total"));
    let counted = counted.unwrap_or_default();
    assert!(
        counted.contains(r#"number="truncated""#) && counted.ends_with(" 1"),
        "{counted}"
    );
    program.stop();
}
