//! The learner in a process of its own, beside a server that only follows the pointers.

use serde_json::json;

use super::support::{Follower, LEARN, Program, Setup, question, wait_for};

#[test]
fn a_follower_learns_from_a_servers_log_and_the_server_takes_over_what_it_made() {
    let dir = tempfile::tempdir().unwrap();
    let server = Program::start(&Setup::new(dir.path()));
    for number in 0..40 {
        server.ask(number);
    }
    assert_eq!(server.policy(), "base", "the server itself learns nothing");
    let mut follower = Follower::start(dir.path(), LEARN);
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

    // Two processes wrote one log, and its chain holds.
    server.ask(40);
    let trail = server.admin_get("/events?verify=true");
    assert_eq!(trail["valid"], json!(true), "{trail}");
    // Without its learner the server goes on with what it has.
    follower.stop();
    assert_eq!(
        server.post("/generate", &question(2))["version"],
        json!(taken_over)
    );
    server.stop();
}
