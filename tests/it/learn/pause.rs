//! Tests of learning that an operator has paused.

use serde_json::json;

use super::support::{LEARN, Program, Setup, wait_for};

#[test]
fn a_pause_outlives_the_process() {
    let dir = tempfile::tempdir().unwrap();
    let setup = Setup::learning(dir.path(), LEARN);
    let program = Program::start(&setup);
    for _ in 0..2 {
        let (status, train) = program.admin_post("/train/pause", &json!({}));
        assert_eq!((status, &train["paused"]), (200, &json!(true)));
    }
    for number in 0..40 {
        program.ask(number);
    }
    drop(program); // as by kill -9
    let program = Program::start(&setup);
    let train = wait_for("a pause", || {
        let train = program.admin_get("/train");
        (train["state"] == "paused").then_some(train)
    });
    assert_eq!(
        (&train["paused"], &train["stage"]),
        (&json!(true), &json!(0))
    );
    let metrics = program.metrics();
    let shown = |series: &str| {
        let line = metrics.lines().find(|line| line.starts_with(series));
        line.and_then(|line| line.rsplit_once(' '))
            .map(|(_, value)| value.to_owned())
    };
    assert_eq!(shown("selfjudge:train_paused{").as_deref(), Some("1"));

    let (status, train) = program.admin_post("/train/resume", &json!({}));
    assert_eq!((status, &train["paused"]), (200, &json!(false)));
    program.learned();
    // After one unattended stage the learner pauses, and so does the next process.
    let paused = |program: &Program| {
        wait_for("a pause", || {
            let train = program.admin_get("/train");
            (train["state"] == "paused").then_some(train)
        })
    };
    assert_eq!(paused(&program)["unattended"], 1);
    drop(program);
    let program = Program::start(&setup);
    assert_eq!(paused(&program)["unattended"], 1);

    let events = program.admin_get("/events?limit=1000")["events"].clone();
    let of = |action: &str| {
        let events = events.as_array().unwrap().iter();
        events.filter(|event| event["action"] == action).count()
    };
    assert_eq!(
        (of("train.paused"), of("train.resumed")),
        (2, 1),
        "a repeated pause must be one event"
    );
    program.stop();
}
