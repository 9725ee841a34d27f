//! Tests of a learner in a process of its own, beside a server that only follows the pointers.

use serde_json::json;

use super::support::{Follower, LEARN, Program, Setup, question, wait_for};

#[test]
fn a_follower_learns_from_a_servers_log_and_the_server_takes_over_what_it_made() {
    let dir = tempfile::tempdir().unwrap();
    let server = Program::start(&Setup::new(dir.path()));
    for number in 0..40 {
        server.ask(number);
    }
    assert_eq!(
        server.policy(),
        "base",
        "the server must not learn by itself"
    );
    let mut follower = Follower::start(dir.path(), LEARN);
    assert_eq!(follower.admin_get("/train")["paused"], json!(false));
    let taken_over = wait_for("the follower's generation in an answer", || {
        assert!(follower.is_running());
        let mut call = question(1);
        call["log"] = json!({"retain": false});
        let answer = server.post("/generate", &call);
        let version = answer["version"].as_str().unwrap().to_owned();
        (version != "base").then_some(version)
    });
    assert_eq!(server.policy(), taken_over);
    let generations = server.admin_get("/generations");
    let generation = &generations["generations"][0];
    assert_eq!(
        (&generation["id"], &generation["state"]),
        (&json!(taken_over), &json!("promoted"))
    );
    assert!(dir.path().join("generations").join(&taken_over).is_dir());

    // The learner's operators can read its state and switch it. Changes at the server reach the learner.
    let train = wait_for("the learner's pause after one stage", || {
        let train = follower.admin_get("/train");
        (train["state"] == "paused").then_some(train)
    });
    assert_eq!(
        (&train["stage"], &train["unattended"]),
        (&json!(1), &json!(1))
    );
    assert_eq!(follower.admin_post("/train/resume")["paused"], json!(false));
    let mut table = server.admin_get("/principles");
    table["principles"][0]["weight"] = json!(7.0);
    let (status, replaced) = server.admin_put("/principles", &table);
    assert_eq!(
        (status, &replaced["version"]),
        (200, &json!(2)),
        "{replaced}"
    );
    wait_for("the server's table in the follower", || {
        let seen = follower.admin_get("/principles");
        (seen["principles"] == replaced["principles"]).then_some(())
    });

    // Two processes wrote one log, and the audit chain verifies.
    server.ask(40);
    let trail = server.admin_get("/events?verify=true");
    assert_eq!(trail["valid"], json!(true), "{trail}");
    // Without its learner the server still serves its generation.
    follower.stop();
    assert_eq!(
        server.post("/generate", &question(2))["version"],
        json!(taken_over)
    );
    server.stop();
}
