//! Tests of the reasons for which learning waits, and of learning on a server without keys.

use std::time::Duration;

use serde_json::json;
use traffic_log::{GenerationId, NewStage};

use super::support::{LEARN, Program, Setup, wait_for};
use super::traffic::in_log;

#[test]
fn a_server_without_keys_learns_whatever_the_share_of_a_caller() {
    let dir = tempfile::tempdir().unwrap();
    let learn = LEARN.replace("principal_share = 1.0", "principal_share = 0.25");
    let program = Program::start(&Setup::learning(dir.path(), &learn));
    let train = wait_for("a reason", || {
        let train = program.admin_get("/train");
        (train["waiting_reason"]["code"] == "too_few_prompts").then_some(train)
    });
    let message = train["waiting_reason"]["message"].as_str().unwrap();
    assert!(message.contains("0 of 8"), "{message}");
    let waiting = r#"selfjudge:train_waiting{reason="too_few_prompts""#;
    assert_eq!(program.metric(waiting), Some(1.0));
    for number in 0..40 {
        program.ask(number);
    }
    assert_ne!(program.learned(), "base");
    let train = program.admin_get("/train");
    assert_eq!(train["waiting_reason"]["code"], "unattended", "{train}");
    program.stop();
}

#[test]
fn a_caller_with_a_key_is_capped_and_it_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let keys = dir.path().join("keys");
    std::fs::write(&keys, "only:one-and-only-key\n").unwrap();
    let keys = keys.to_str().unwrap();
    let learn = LEARN.replace("principal_share = 1.0", "principal_share = 0.25");
    let setup = Setup {
        arguments: &["--api-key-file", keys],
        ..Setup::learning(dir.path(), &learn)
    };
    let program = Program::start(&setup);
    for number in 0..40 {
        program.ask_with_key(number, "one-and-only-key");
    }
    let message = wait_for("a reason", || {
        let train = program.admin_get("/train");
        let waiting = &train["waiting_reason"];
        (waiting["code"] == "principal_share").then(|| waiting["message"].clone())
    });
    let message = message.as_str().unwrap();
    assert!(
        message.contains("1 callers") && message.contains("0.25"),
        "{message}"
    );
    program.stop();
}

#[test]
fn too_few_held_out_prompts_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let learn = LEARN.replace("prompts = 3", "prompts = 300");
    let program = Program::start(&Setup::learning(dir.path(), &learn));
    for number in 0..40 {
        program.ask(number);
    }
    wait_for("a reason", || {
        let train = program.admin_get("/train");
        let waiting = &train["waiting_reason"];
        let named = waiting["message"].as_str()?.contains("of 300 held-out");
        (waiting["code"] == "held_out" && named).then_some(())
    });
    let (status, _) = program.admin_post("/train/pause", &json!({}));
    assert_eq!(status, 200);
    wait_for("a pause", || {
        let train = program.admin_get("/train");
        (train["waiting_reason"]["code"] == "paused").then_some(())
    });
    program.stop();
}

#[test]
fn an_open_stage_of_another_version_is_named() {
    let dir = tempfile::tempdir().unwrap();
    in_log(dir.path(), async |log| {
        let lease = log.leases.acquire("another", Duration::from_secs(60)).await;
        let lease = lease.unwrap().unwrap();
        let stage = NewStage {
            reference: GenerationId::base(),
            state: json!({"made": "by another version"}),
        };
        lease.open_stage(stage).await.unwrap();
        lease.release().await.unwrap();
    });
    let program = Program::start(&Setup::learning(dir.path(), LEARN));
    let train = wait_for("a reason", || {
        let train = program.admin_get("/train");
        (train["waiting_reason"]["code"] == "other_version").then_some(train)
    });
    let message = train["waiting_reason"]["message"].as_str().unwrap();
    assert!(message.contains("stage 1"), "{message}");
    assert!(message.contains("/train/abandon"), "{message}");
    for number in 0..40 {
        program.ask(number);
    }
    // The learner waits for the stage and does not try it again: it does not even take the lease.
    std::thread::sleep(Duration::from_secs(7));
    let taken = || {
        let events = program.admin_get("/events?limit=1000")["events"].clone();
        let events = events.as_array().unwrap().iter();
        let taken = events.filter(|event| event["action"] == "trainer.acquired");
        taken.count()
    };
    assert_eq!(taken(), 2);
    let (status, left) = program.admin_post("/train/abandon", &json!({}));
    assert_eq!((status, &left["stage"]), (200, &json!(1)), "{left}");
    wait_for("the next stage", || {
        let train = program.admin_get("/train");
        (program.policy() != "base" && train["stage"] == 2).then_some(())
    });
    program.stop();
}
