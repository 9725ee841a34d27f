//! Tests of `kill -9` during learning and publishing. No acknowledged record is lost, the pointer is the old or the new one, and
//! training ends with the same result.

use serde_json::json;

use super::support::{LEARN, Program, Setup, copy, question, wait_for, with_traffic};

/// The fault points of a stage of two updates: in both steps, and while it records, writes, measures, moves the pointers or
/// loads.
const PLACES: [&str; 12] = [
    "train.step:1",
    "train.step:2",
    "train.updated:1",
    "train.recorded:1",
    "train.checkpoint:1",
    "generation.write",
    "generation.renamed",
    "generation.inserted",
    "gate.recorded",
    "log.pointer.before_commit",
    "log.pointer.after_commit",
    "publish.load",
];

#[test]
fn a_stage_that_is_killed_anywhere_ends_as_if_it_had_not_been() {
    let dir = with_traffic();
    let uninterrupted = copy(dir.path());
    let program = Program::start(&Setup::learning(uninterrupted.path(), LEARN));
    let expected = program.learned();
    program.stop();
    for place in PLACES {
        let dir = copy(dir.path());
        let setup = Setup {
            fault: Some(place),
            ..Setup::learning(dir.path(), LEARN)
        };
        assert!(Program::dies(&setup), "{place}: the program was not killed");
        let program = Program::start(&Setup::learning(dir.path(), LEARN));
        let served = program.policy();
        assert!(served == "base" || served == expected, "{place}: {served}");
        assert_eq!(
            program.learned(),
            expected,
            "{place}: the generation differs from that of an uninterrupted run"
        );
        let trail = program.admin_get("/events?verify=true");
        assert_eq!(trail["valid"], json!(true), "{place}: {trail}");
        program.stop();
        let left = std::fs::read_dir(dir.path().join("generations")).unwrap();
        let names: Vec<_> = left.map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, [expected.as_str()], "{place}");
    }

    // A server that is killed while it loads a generation serves it after the next start.
    let setup = Setup {
        fault: Some("publish.load"),
        ..Setup::new(uninterrupted.path())
    };
    assert!(
        Program::dies(&setup),
        "the program must load a generation at the start"
    );
    let program = Program::start(&Setup::new(uninterrupted.path()));
    let answer = program.post("/generate", &question(1));
    assert_eq!(answer["version"], json!(expected), "{answer}");
    program.stop();
}

#[test]
fn a_call_that_was_acknowledged_outlives_the_kill() {
    for place in ["log.before_commit:3", "log.after_commit:3"] {
        let dir = tempfile::tempdir().unwrap();
        let setup = Setup {
            fault: Some(place),
            ..Setup::new(dir.path())
        };
        let mut program = Program::start(&setup);
        let mut acknowledged = Vec::new();
        for number in 0..8 {
            match program.try_post("/generate", &question(number)) {
                Ok((200, answer)) => {
                    acknowledged.push(answer["record_id"].as_str().unwrap().to_owned())
                }
                Ok((status, answer)) => panic!("{place}: {status} {answer}"),
                Err(_) => break,
            }
        }
        assert!(program.was_killed(), "{place}");
        assert_eq!(acknowledged.len(), 2, "{place}");
        let program = Program::start(&Setup::new(dir.path()));
        for id in &acknowledged {
            let (status, record) = program.get(&format!("/records/{id}"));
            assert_eq!(status, 200, "{place}: {record}");
            assert_eq!(record["id"], json!(id));
        }
    }
}

#[test]
fn a_disk_that_is_full_stops_training_and_not_serving() {
    let dir = with_traffic();
    // The optimizer's moments take eight megabytes, and no file may exceed six.
    let learn = LEARN.replace("r = 4, lora_alpha = 8", "r = 64, lora_alpha = 64");
    let with_room = copy(dir.path());
    let program = Program::start(&Setup::learning(with_room.path(), &learn));
    let expected = program.learned();
    program.stop();
    let setup = Setup {
        file_limit: Some(6 << 20),
        ..Setup::learning(dir.path(), &learn)
    };
    let program = Program::start(&setup);
    let train = wait_for("the failure", || {
        let train = program.admin_get("/train");
        (train["state"] == "failed").then_some(train)
    });
    assert!(
        train["error"].as_str().unwrap().contains("cannot write"),
        "{train}"
    );
    let id = program.ask(1000);
    assert_eq!(program.get(&format!("/records/{id}")).0, 200);
    program.stop();

    let program = Program::start(&Setup::learning(dir.path(), &learn));
    assert_eq!(
        program.learned(),
        expected,
        "the generation differs from that of an uninterrupted run"
    );
    program.stop();
}

#[test]
fn a_generation_that_was_damaged_does_not_serve() {
    let dir = with_traffic();
    let program = Program::start(&Setup::learning(dir.path(), LEARN));
    let id = program.learned();
    program.stop();
    let file = dir
        .path()
        .join("generations")
        .join(&id)
        .join("adapter_model.safetensors");
    let mut bytes = std::fs::read(&file).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(&file, bytes).unwrap();

    let program = Program::start(&Setup::new(dir.path()));
    let answer = program.post("/generate", &question(1));
    assert_eq!(answer["version"], "base", "{answer}");
    let metrics = program.metrics();
    let degraded = metrics
        .lines()
        .find(|line| line.starts_with("selfjudge:weights_degraded"));
    assert!(degraded.unwrap().ends_with(" 1"), "{degraded:?}");
    let body = json!({"expected": id});
    let (status, answer) = program.admin_post(&format!("/generations/{id}/promote"), &body);
    assert_eq!(status, 409, "{answer}");
    // A rollback is still possible.
    let (status, answer) = program.admin_post("/generations/base/rollback", &body);
    assert_eq!(status, 200, "{answer}");
    let metrics = program.metrics();
    let degraded = metrics
        .lines()
        .find(|line| line.starts_with("selfjudge:weights_degraded"));
    assert!(degraded.unwrap().ends_with(" 0"), "{degraded:?}");
    program.stop();
}
