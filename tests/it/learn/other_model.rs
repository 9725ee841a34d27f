//! Tests of a data directory under another model: its generations neither serve nor are learned from.

use std::path::Path;

use serde_json::{Value, json};

use super::support::{LEARN, Program, Setup, copy, question, wait_for, with_traffic};

/// Copies the default model with one file changed.
fn other_model(file: &str, change: impl Fn(&mut Vec<u8>)) -> tempfile::TempDir {
    let pocket = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/pocket");
    let dir = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(&pocket).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            std::fs::copy(&path, dir.path().join(path.file_name().unwrap())).unwrap();
        }
    }
    let path = dir.path().join(file);
    let mut bytes = std::fs::read(&path).unwrap();
    change(&mut bytes);
    std::fs::write(&path, bytes).unwrap();
    dir
}

fn start(data_dir: &Path, model: &Path, learn: Option<&str>) -> Program {
    let model = model.to_str().unwrap();
    Program::start(&Setup {
        learn,
        arguments: &["--model", model],
        ..Setup::new(data_dir)
    })
}

/// Asserts that the generation of the policy pointer cannot serve, and returns the problem that operators see.
fn refused(program: &Program, id: &str) -> Value {
    let mut call = question(1);
    call["log"] = json!({"retain": false});
    assert_eq!(program.post("/generate", &call)["version"], "base");
    let generations = program.admin_get("/generations");
    assert_eq!(generations["pointers"]["policy"], json!(id));
    assert_eq!(generations["serving"], "base", "{generations}");
    let problem = generations["serving_problem"].as_str().unwrap();
    assert!(problem.contains(id), "{problem}");
    assert_eq!(program.metric("selfjudge:weights_degraded"), Some(1.0));
    let body = json!({"expected": id});
    let (status, answer) = program.admin_post(&format!("/generations/{id}/promote"), &body);
    assert_eq!(status, 409, "{answer}");
    generations["serving_problem"].clone()
}

#[test]
fn a_generation_of_another_base_does_not_serve_and_is_not_learned_from() {
    let dir = with_traffic();
    let program = Program::start(&Setup::learning(dir.path(), LEARN));
    let id = program.learned();
    program.stop();

    // The change flips the lowest bit of one weight.
    let other = other_model("model.safetensors", |bytes| {
        let at = bytes.len() - 4;
        bytes[at] ^= 1;
    });
    let program = start(dir.path(), other.path(), None);
    let problem = refused(&program, &id);
    assert!(problem.as_str().unwrap().contains("weights"), "{problem}");
    program.stop();

    let program = start(dir.path(), other.path(), Some(LEARN));
    program.admin_post("/train/resume", &json!({}));
    for number in 0..40 {
        program.ask(number);
    }
    let train = wait_for("a reason", || {
        let train = program.admin_get("/train");
        (train["waiting_reason"]["code"] == "other_base").then_some(train)
    });
    assert_eq!(train["serving_problem"], problem, "{train}");
    // The only stage is that of the other base.
    assert_eq!(train["stage"], 1, "{train}");
    // After a rollback to the base the records may be learned from, since the tokenizer is the same.
    let body = json!({"expected": id});
    let (status, answer) = program.admin_post("/generations/base/rollback", &body);
    assert_eq!(status, 200, "{answer}");
    assert_eq!(program.metric("selfjudge:weights_degraded"), Some(0.0));
    let new = wait_for("a stage of the new base", || {
        let policy = program.policy();
        (policy != "base").then_some(policy)
    });
    assert_ne!(new, id);
    program.stop();

    // The new generation does not serve on the first base.
    let program = Program::start(&Setup::new(dir.path()));
    refused(&program, &new);
    program.stop();
}

#[test]
fn a_generation_of_999f5af_serves_on_the_base_it_was_made_of_and_on_no_other() {
    let dir = copy(&crate::support::fixture("data-dir-999f5af"));
    let program = Program::start(&Setup::new(dir.path()));
    let generations = program.admin_get("/generations");
    let id = generations["pointers"]["policy"].as_str().unwrap();
    assert_ne!(id, "base");
    assert_eq!(generations["serving"], json!(id), "{generations}");
    assert_eq!(generations["serving_problem"], Value::Null);
    let mut call = question(1);
    call["log"] = json!({"retain": false});
    assert_eq!(program.post("/generate", &call)["version"], json!(id));
    program.stop();

    let other = other_model("model.safetensors", |bytes| {
        let at = bytes.len() - 4;
        bytes[at] ^= 1;
    });
    let program = start(dir.path(), other.path(), None);
    refused(&program, id);
    program.stop();
}

#[test]
fn records_and_generations_of_another_tokenizer_are_not_used() {
    let dir = with_traffic();
    let learned = copy(dir.path());
    let program = Program::start(&Setup::learning(learned.path(), LEARN));
    let id = program.learned();
    program.stop();
    // The tokens are the same under another digest. The program refuses, and people decide whether the difference matters.
    let other = other_model("tokenizer.json", |bytes| bytes.push(b'\n'));
    let program = start(learned.path(), other.path(), None);
    let problem = refused(&program, &id);
    assert!(problem.as_str().unwrap().contains("tokenizer"), "{problem}");
    program.stop();

    let program = start(dir.path(), other.path(), Some(LEARN));
    let train = wait_for("a reason", || {
        let train = program.admin_get("/train");
        (train["waiting_reason"]["code"] == "other_tokenizer").then_some(train)
    });
    assert_eq!(train["records_of_other_tokenizers"], 40, "{train}");
    assert_eq!(
        program.metric("selfjudge:train_records_other_tokenizer"),
        Some(40.0)
    );
    for number in 100..140 {
        program.ask(number);
    }
    wait_for("a stage of the new records", || {
        (program.policy() != "base").then_some(())
    });
    program.stop();
}
