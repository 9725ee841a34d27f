//! Tests of a stage that an operator abandons, and of open stages of earlier versions.

use serde_json::{Value, json};
use sqlx::{Connection, SqliteConnection};

use super::support::{LEARN, Program, Setup, copy, until, wait_for, with_traffic};

#[test]
fn an_abandoned_stage_ends_at_once_and_its_prompts_are_learned_from_later() {
    let dir = with_traffic();
    let setup = Setup {
        fault: Some("wait@train.step:2"),
        ..Setup::learning(dir.path(), LEARN)
    };
    let program = Program::start(&setup);
    wait_for("the first update", || {
        let train = program.admin_get("/train");
        (train["stage"] == 1 && train["update"] == 1).then_some(())
    });
    let (status, left) = program.admin_post("/train/abandon", &json!({}));
    let expected = json!({"stage": 1, "released": 8, "kept": 0});
    assert_eq!((status, left), (200, expected));
    let train = wait_for("the end of the stage", || {
        let train = program.admin_get("/train");
        (train["abandoned"]["stage"] == 1).then_some(train)
    });
    assert_eq!(train["last_outcome"], "failed", "{train}");
    let reason = train["abandoned"]["reason"].as_str().unwrap();
    assert!(reason.contains("operator"), "{reason}");
    // The step during which the stage was abandoned ends, and the next stage begins.
    std::fs::write(until(dir.path()), "").unwrap();
    let id = program.learned();
    let generations = program.admin_get("/generations");
    let generation = &generations["generations"][0];
    assert_eq!(
        (&generation["id"], &generation["stage"]),
        (&json!(id), &json!(2)),
        "{generations}"
    );
    let failed = r#"selfjudge:train_stages_total{outcome="failed""#;
    assert_eq!(program.metric(failed), Some(1.0));

    let (status, refused) = program.admin_post("/train/abandon", &json!({}));
    assert_eq!(
        (status, &refused["error"]["code"]),
        (409, &json!("no_open_stage"))
    );
    let trail = program.admin_get("/events?limit=1000&verify=true");
    assert_eq!(trail["valid"], json!(true), "{trail}");
    let events = trail["events"].as_array().unwrap().iter();
    let abandoned: Vec<&Value> = events
        .filter(|event| event["action"] == "stage.abandoned")
        .collect();
    assert_eq!(abandoned.len(), 1, "{trail}");
    program.stop();
}

/// Rewrites the open stage in version 1 of its state: one object without a version and a phase.
fn as_version_one(data_dir: &std::path::Path) {
    let url = format!("sqlite:{}", data_dir.join("traffic.sqlite").display());
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let mut log = SqliteConnection::connect(&url).await.unwrap();
        let (state, progress): (String, Option<String>) =
            sqlx::query_as("SELECT state, progress FROM stages WHERE outcome IS NULL")
                .fetch_one(&mut log)
                .await
                .unwrap();
        let mut state: Value = serde_json::from_str(&state).unwrap();
        let progress: Value = serde_json::from_str(&progress.unwrap()).unwrap();
        let whole = state.as_object_mut().unwrap();
        whole.remove("version");
        whole.extend(progress.as_object().unwrap().clone());
        let phase = whole.remove("phase").unwrap();
        whole.insert("ordered".to_owned(), json!(phase != "pooling"));
        sqlx::query("UPDATE stages SET state = $1, progress = NULL WHERE outcome IS NULL")
            .bind(state.to_string())
            .execute(&mut log)
            .await
            .unwrap();
        log.close().await.unwrap();
    });
}

#[test]
fn a_stage_of_version_one_ends_where_it_would_have_ended() {
    let dir = with_traffic();
    let uninterrupted = copy(dir.path());
    let program = Program::start(&Setup::learning(uninterrupted.path(), LEARN));
    let expected = program.learned();
    program.stop();
    for place in ["train.recorded:1", "gate.recorded"] {
        let dir = copy(dir.path());
        let setup = Setup {
            fault: Some(place),
            ..Setup::learning(dir.path(), LEARN)
        };
        assert!(Program::dies(&setup), "{place}: the program was not killed");
        as_version_one(dir.path());
        let program = Program::start(&Setup::learning(dir.path(), LEARN));
        assert_eq!(
            program.learned(),
            expected,
            "{place}: the generation differs from that of an uninterrupted run"
        );
        program.stop();
    }
}
