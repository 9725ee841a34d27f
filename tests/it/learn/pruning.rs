//! The files of generations that served earlier.

use serde_json::{Value, json};

use super::support::{LEARN, Program, Setup, question, wait_for, with_calls};

#[test]
fn the_files_of_the_oldest_generations_that_served_are_deleted() {
    let dir = with_calls(80);
    let learn = LEARN.replace("unattended = 1", "unattended = 3");
    let learn = format!("{learn}\n[publish]\nkeep_served = 0\n");
    let program = Program::start(&Setup::learning(dir.path(), &learn));
    let promoted = wait_for("three generations", || {
        let generations = program.admin_get("/generations")["generations"].clone();
        let generations = generations.as_array().unwrap().iter();
        let promoted = generations.filter(|one| one["state"] == "promoted");
        let ids: Vec<String> = promoted
            .map(|one| one["id"].as_str().unwrap().to_owned())
            .collect();
        (ids.len() == 3).then_some(ids)
    });
    let [policy, parent, oldest] = [0, 1, 2].map(|at: usize| promoted[at].as_str());
    let has_files = |id: &str| dir.path().join("generations").join(id).exists();
    let trail = wait_for("the deletion", || {
        let trail = program.admin_get("/events?limit=1000&verify=true");
        let events = trail["events"].as_array().unwrap();
        let pruned = |event: &Value| event["action"] == "generations.pruned";
        events.iter().any(pruned).then_some(trail)
    });
    assert_eq!(trail["valid"], true, "{trail}");
    let events = trail["events"].as_array().unwrap().iter();
    let mut pruned = events.filter(|event| event["action"] == "generations.pruned");
    let ids = &pruned.next().unwrap()["detail"]["generations"];
    assert_eq!((ids, pruned.next()), (&json!([oldest]), None));
    // What serves and what it was trained from stay.
    assert!(!has_files(oldest) && has_files(policy) && has_files(parent));

    let expected = json!({"expected": policy});
    let (status, answer) =
        program.admin_post(&format!("/generations/{oldest}/rollback"), &expected);
    assert_eq!(status, 409, "{answer}");
    assert_eq!(answer["error"]["code"], "unusable_generation", "{answer}");
    let (status, answer) =
        program.admin_post(&format!("/generations/{parent}/rollback"), &expected);
    assert_eq!(status, 200, "{answer}");
    assert_eq!(
        program.post("/generate", &question(1))["version"],
        json!(parent)
    );
    program.stop();

    let program = Program::start(&Setup::new(dir.path()));
    assert_eq!(
        program.post("/generate", &question(1))["version"],
        json!(parent)
    );
    program.stop();
}
