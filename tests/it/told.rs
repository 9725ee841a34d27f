//! Tests of what callers and operators are told: a caller's own mistakes are no errors of the log, a caller learns neither files nor flags,
//! and an operator is told what has no effect.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::patience::{client, eventually};
use crate::process::Server;
use crate::support::data;

const PROGRAM: &str = env!("CARGO_BIN_EXE_selfjudge");

fn post(server: &Server, path: &str, body: &Value) -> (u16, Value) {
    let answer = client().post(server.url(path)).json(body).send().unwrap();
    (answer.status().as_u16(), answer.json().unwrap())
}

/// Runs a command in a folder, and returns its status, its output and its log.
fn run_in(dir: &Path, words: &[&str]) -> (Option<i32>, String, String) {
    let output = Command::new(PROGRAM)
        .args(words)
        .current_dir(dir)
        .output()
        .unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (
        output.status.code(),
        text(output.stdout),
        text(output.stderr),
    )
}

#[test]
fn a_model_without_a_template_is_explained_to_each_in_its_own_words() {
    let dir = data("stories260k");
    let server = Server::start(&["--model", dir.to_str().unwrap()]);
    let asked = json!([{"role": "user", "content": "q"}]);
    for (path, body) in [
        ("/v1/chat/completions", json!({"messages": asked})),
        ("/generate", json!({"prompt": "q"})),
        ("/judge", json!({"prompt": "q", "candidates": ["a", "b"]})),
        (
            "/v1/decisions",
            json!({"input": "x", "questions": [{"type": "predicate", "instructions": "Is it?"}]}),
        ),
    ] {
        let (status, answer) = post(&server, path, &body);
        let message = answer["error"]["message"].as_str().unwrap();
        assert_eq!(status, 400, "{path}: {answer}");
        assert!(
            !message.contains("--") && !message.contains("stories260k"),
            "{path}: {message}"
        );
    }
    let warned = server
        .said()
        .into_iter()
        .find(|line| line.contains("cannot judge"));
    let line = warned.unwrap_or_else(|| panic!("{:?}", server.said()));
    assert!(
        line.contains("--chat-template") && line.contains("stories260k"),
        "{line}"
    );
}

#[test]
fn the_end_of_a_callers_own_timeout_is_no_error_of_the_server() {
    let server = Server::start(&[]);
    let body = json!({"prompt": "What is 45 plus 17?", "timeout": 0.000001});
    let (status, answer) = post(&server, "/generate", &body);
    let error = &answer["error"];
    assert_eq!(
        (status, &error["code"], &error["param"]),
        (504, &json!("deadline_exceeded"), &json!("timeout")),
        "{answer}"
    );
    let (status, answer) = post(
        &server,
        "/v1/completions",
        &json!({"prompt": "x", "model": "y"}),
    );
    assert_eq!((status, &answer["error"]["param"]), (404, &json!("model")));
    // The line of this refusal is written after any of the timeout.
    eventually("the line of a refusal", || {
        let said = server.said();
        said.iter()
            .any(|line| line.contains("refused"))
            .then_some(())
    });
    let said = server.said();
    assert!(!said.iter().any(|line| line.contains("ERROR")), "{said:?}");
}

#[test]
fn weights_that_serve_from_the_start_are_no_swap() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&["--data-dir", dir.path().to_str().unwrap()]);
    let page = client().get(server.url("/metrics")).send().unwrap();
    let page = page.text().unwrap();
    let line = "selfjudge:weights_swaps_total{model_name=\"pocket\"} 0";
    assert!(page.contains(line), "{page}");
}

#[test]
fn a_log_beside_the_working_directory_needs_no_warning() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = Command::new(PROGRAM);
    command
        .args([
            "serve",
            "--listen",
            "127.0.0.1:0",
            "--log-url",
            "sqlite:x.db",
            "--retain",
        ])
        .current_dir(dir.path());
    let server = Server::started(command);
    let (status, answer) = post(
        &server,
        "/generate",
        &json!({"prompt": "x", "max_tokens": 2}),
    );
    assert_eq!(status, 200, "{answer}");
    assert!(answer["record_id"].is_string(), "{answer}");
    let said = server.said();
    assert!(!said.iter().any(|line| line.contains("WARN")), "{said:?}");
    for made in ["x.db", "x.db.reserve"] {
        assert!(dir.path().join(made).is_file(), "{made}");
    }
}

#[test]
fn an_import_counts_what_is_new_and_says_what_may_be_done_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let line =
        |n: usize| format!("{{\"prompt\": \"q{n}\", \"chosen\": \"a\", \"rejected\": \"b\"}}\n");
    fs::write(dir.path().join("pairs.jsonl"), line(1) + &line(2)).unwrap();
    let import = |more: &[&str]| {
        let words = [
            &["records", "import", "--data-dir", "d", "pairs.jsonl"][..],
            more,
        ]
        .concat();
        let (status, said, log) = run_in(dir.path(), &words);
        assert_eq!(status, Some(0), "{log}");
        said
    };
    let said = import(&[]);
    assert!(
        said.starts_with("2 new pairs from pairs.jsonl, 0 were there already; ")
            && said.contains("not trained on (--train permits it)"),
        "{said}"
    );
    fs::write(dir.path().join("pairs.jsonl"), line(2) + &line(3)).unwrap();
    let said = import(&["--train"]);
    assert!(
        said.starts_with("1 new pairs from pairs.jsonl, 1 were there already; ")
            && said.contains("the new ones may be trained on"),
        "{said}"
    );
    for source in ["on_policy", "on-policy", "imported"] {
        let words = [
            "records",
            "export",
            "--data-dir",
            "d",
            "--source",
            source,
            "--out",
            "out.jsonl",
        ];
        let (status, said, log) = run_in(dir.path(), &words);
        assert_eq!(status, Some(0), "{log}");
        let pairs = if source == "imported" {
            "1 pairs"
        } else {
            "0 pairs"
        };
        assert!(said.starts_with(pairs), "{source}: {said}");
    }
}

#[test]
fn a_training_run_names_flags_or_keys_as_its_user_gave_them() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("run.toml");
    for (text, words, said) in [
        (None, &[][..], "Error: `--model` is missing"),
        (None, &["--model", "m"], "Error: `--output-dir` is missing"),
        (
            None,
            &["--model", "m", "--output-dir", "o"],
            "Error: `--data` is missing",
        ),
        (Some(""), &[], "Error: run.toml: `model` is missing"),
        (
            Some("model = 'm'\n"),
            &["--output-dir", "o", "--data", "d", "--epochs", "-1"],
            "Error: `--epochs` must be positive",
        ),
        (
            Some("model = 'm'\noutput_dir = 'o'\nepochs = -1.0\n"),
            &["--data", "d"],
            "Error: run.toml: `epochs` must be positive",
        ),
    ] {
        for kind in ["dpo", "jsft"] {
            let mut all = vec!["train", kind];
            if let Some(text) = text {
                fs::write(&file, text).unwrap();
                all.extend(["--config", "run.toml"]);
            }
            all.extend(words);
            let (status, _, log) = run_in(dir.path(), &all);
            assert_eq!(status, Some(1), "{all:?}: {log}");
            assert!(log.starts_with(said), "{all:?}: {log}");
        }
    }
}

/// Starts the program through a shell, whose limits it inherits.
#[cfg(target_os = "linux")]
#[test]
fn a_tiny_stack_is_no_matter() {
    for kib in [64, 128, 256] {
        let script =
            format!("ulimit -s {kib}; exec {PROGRAM} serve --listen 127.0.0.1:0 --threads 2");
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", &script]);
        let server = Server::started(shell);
        let body = json!({"prompt": "What is 45 plus 17?", "best_of": 2, "seed": 1});
        let (status, answer) = post(&server, "/generate", &body);
        assert_eq!(status, 200, "{kib}: {answer}");
    }
}
