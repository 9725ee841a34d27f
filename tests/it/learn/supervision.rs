//! Tests of supervision. A dead engine ends its process. A dead learner is started again and leaves a stage that kills it. An
//! older load of the pointers does not undo a newer one.

use serde_json::{Value, json};

use super::support::{
    Follower, LEARN, Program, Setup, question, until, wait_for, with_calls, with_traffic,
};

#[test]
fn a_server_whose_engine_dies_ends_with_a_failure() {
    let dir = tempfile::tempdir().unwrap();
    let setup = Setup {
        fault: Some("panic@engine.step:1"),
        // The self-test would reach the fault before the server listens.
        arguments: &["--no-self-test"],
        ..Setup::new(dir.path())
    };
    let mut program = Program::start(&setup);
    assert_eq!(program.get("/health"), (200, json!({"status": "ok"})));
    match program.try_post("/generate", &question(1)) {
        Ok((status, answer)) => assert!(status >= 500, "{status} {answer}"),
        Err(gone) => assert!(!gone.is_timeout(), "{gone}"),
    }
    let status = program.wait();
    assert_eq!(status.code(), Some(1), "{status}");
}

#[test]
fn a_server_whose_engine_is_stuck_is_not_healthy_until_it_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let setup = Setup {
        fault: Some("wait@engine.step:1"),
        // The self-test would reach the fault before the server listens.
        arguments: &["--no-self-test"],
        ..Setup::new(dir.path())
    };
    let program = Program::start(&setup);
    std::thread::scope(|scope| {
        let answered = scope.spawn(|| program.try_post("/generate", &question(1)));
        let (_, body) = wait_for("the health of a stuck engine", || {
            Some(program.get("/health")).filter(|(status, _)| *status == 503)
        });
        assert_eq!(body["error"]["code"], "engine_down", "{body}");
        std::fs::write(until(dir.path()), "").unwrap();
        assert_eq!(answered.join().unwrap().unwrap().0, 200);
    });
    assert_eq!(program.get("/health").0, 200);
    program.stop();
}

#[test]
fn a_learner_that_dies_is_started_again_and_leaves_the_stage_that_kills_it() {
    let dir = with_calls(90);
    // The first fault is in the learner's own thread, the second in the trainer's, whose panics the learner receives.
    for place in ["learn.stage", "train.step"] {
        let dir = super::support::copy(dir.path());
        let fault = format!("panic@{place}:1-3");
        let setup = Setup {
            fault: Some(&fault),
            ..Setup::learning(dir.path(), LEARN)
        };
        let program = Program::start(&setup);
        let died = wait_for("a death", || {
            // The server still serves meanwhile.
            let mut call = question(1);
            call["log"] = json!({"retain": false});
            program.post("/generate", &call);
            let train = program.admin_get("/train");
            (train["waiting_reason"]["code"] == "died").then_some(train)
        });
        assert_eq!(died["state"], "failed", "{place}: {died}");
        let why = died["error"].as_str().unwrap();
        assert!(why.contains("as a test asked"), "{place}: {why}");
        let promoted = wait_for("the next stage", || {
            let policy = program.policy();
            (policy != "base").then_some(policy)
        });
        let train = program.admin_get("/train");
        assert_eq!(train["deaths"], 3, "{place}: {train}");
        assert_eq!(program.metric("selfjudge:train_deaths_total"), Some(3.0));
        let generations = program.admin_get("/generations");
        let generation = &generations["generations"][0];
        assert_eq!(
            (&generation["id"], &generation["stage"]),
            (&json!(promoted), &json!(2)),
            "{place}: {generations}"
        );
        let trail = program.admin_get("/events?limit=1000&verify=true");
        assert_eq!(trail["valid"], json!(true), "{place}: {trail}");
        let events = trail["events"].as_array().unwrap();
        let of = |action: &str| -> Vec<&Value> {
            let events = events.iter();
            events.filter(|event| event["action"] == action).collect()
        };
        assert_eq!(of("trainer.died").len(), 3, "{place}");
        let abandoned = of("stage.abandoned");
        assert_eq!(abandoned.len(), 1, "{place}");
        assert_eq!(abandoned[0]["detail"]["stage"], 1, "{place}");
        assert_eq!(program.get("/health").0, 200);
        program.stop();
    }
}

#[test]
fn a_learner_that_died_twice_goes_on_to_where_it_would_have_ended() {
    let dir = with_traffic();
    let uninterrupted = super::support::copy(dir.path());
    let program = Program::start(&Setup::learning(uninterrupted.path(), LEARN));
    let expected = program.learned();
    program.stop();
    let setup = Setup {
        fault: Some("panic@train.step:1-2"),
        ..Setup::learning(dir.path(), LEARN)
    };
    let program = Program::start(&setup);
    let policy = wait_for("a promoted stage", || {
        let policy = program.policy();
        (policy != "base").then_some(policy)
    });
    assert_eq!(
        policy, expected,
        "the generation differs from that of an uninterrupted run"
    );
    assert_eq!(program.admin_get("/train")["deaths"], 2);
    program.stop();
}

#[test]
fn a_follower_whose_learner_dies_ends_with_a_failure_and_its_deaths_are_counted_over_restarts() {
    let dir = with_calls(90);
    for _ in 0..3 {
        let fault = Some("panic@learn.stage:1");
        let mut follower = Follower::with_fault(dir.path(), LEARN, fault);
        let status = follower.wait();
        assert_eq!(status.code(), Some(1), "{status}");
    }
    // The learner leaves the stage in which three of its processes died.
    let follower = Follower::start(dir.path(), LEARN);
    wait_for("the next stage", || {
        let generations = follower.admin_get("/generations");
        let promoted = &generations["generations"][0];
        (promoted["state"] == "promoted" && promoted["stage"] == 2).then_some(())
    });
    follower.stop();
}

#[test]
fn a_slow_load_does_not_win_over_a_rollback_that_came_after_it() {
    let dir = with_traffic();
    let program = Program::start(&Setup::learning(dir.path(), LEARN));
    let id = program.learned();
    let (status, answer) =
        program.admin_post("/generations/base/rollback", &json!({"expected": id}));
    assert_eq!(status, 200, "{answer}");
    program.stop();

    // The first load checks for the operator whether the generation can serve. The second load is to serve it.
    let setup = Setup {
        fault: Some("wait@publish.load:2"),
        ..Setup::new(dir.path())
    };
    let program = Program::start(&setup);
    std::thread::scope(|scope| {
        let promoting = scope.spawn(|| {
            let body = json!({"expected": "base"});
            program.admin_post(&format!("/generations/{id}/promote"), &body)
        });
        // The check of the pointers, every few seconds, is faster.
        wait_for("the generation to serve", || {
            (program.admin_get("/generations")["serving"] == json!(id)).then_some(())
        });
        let body = json!({"expected": id});
        let (status, answer) = program.admin_post("/generations/base/rollback", &body);
        assert_eq!(status, 200, "{answer}");
        assert_eq!(program.admin_get("/generations")["serving"], "base");
        std::fs::write(until(dir.path()), "").unwrap();
        assert_eq!(promoting.join().unwrap().0, 200);
    });
    for number in 0..50 {
        assert_eq!(program.admin_get("/generations")["serving"], "base");
        let mut call = question(number);
        call["log"] = json!({"retain": false});
        assert_eq!(program.post("/generate", &call)["version"], "base");
    }
    program.stop();
}
