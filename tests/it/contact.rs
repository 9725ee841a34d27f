//! Tests of a new user's first steps: the start, its errors, and a model that cannot judge.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value, json};

use crate::patience::client;
use crate::process::Server;

fn pocket() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/pocket")
}

/// Copies the pocket model without its own self-test. It cannot answer the general questions, so it fails as a judge.
fn no_judge(dir: &Path) {
    for file in fs::read_dir(pocket()).unwrap() {
        let file = file.unwrap();
        if file.file_type().unwrap().is_file() && file.file_name() != "judge_self_test.jsonl" {
            fs::copy(file.path(), dir.join(file.file_name())).unwrap();
        }
    }
}

fn run(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_selfjudge"))
        .args(arguments)
        // Many developers have this variable set.
        .env("RUST_BACKTRACE", "1")
        .output()
        .unwrap()
}

fn post(server: &Server, path: &str, body: &Value) -> (u16, Value) {
    let answer = client().post(server.url(path)).json(body).send().unwrap();
    (answer.status().as_u16(), answer.json().unwrap())
}

fn get(server: &Server, path: &str) -> Value {
    let answer = client().get(server.url(path)).send().unwrap();
    assert_eq!(answer.status().as_u16(), 200, "{path}");
    answer.json().unwrap()
}

const PAIR: &str = r#"{"prompt": "What is 45 plus 17?", "candidates": ["62", "52"]}"#;

fn pair() -> Value {
    serde_json::from_str(PAIR).unwrap()
}

#[test]
fn a_users_mistake_is_one_line_without_a_backtrace() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    fs::create_dir(at("adapter")).unwrap();
    fs::write(at("adapter/adapter_config.json"), "{}").unwrap();
    fs::create_dir(at("empty")).unwrap();
    fs::write(at("m.gguf"), "GGUF").unwrap();
    fs::write(at("learn.toml"), "[stage]\npromts = 3\n").unwrap();
    fs::write(at("jsft.toml"), "learnin_rate = 1\n").unwrap();
    let serve = |arguments: &[&str]| {
        let all = ["serve", "--listen", "127.0.0.1:0"];
        [&all[..], arguments]
            .concat()
            .iter()
            .map(|word| (*word).to_owned())
            .collect::<Vec<_>>()
    };
    let words = |words: &[&str]| {
        words
            .iter()
            .map(|word| (*word).to_owned())
            .collect::<Vec<_>>()
    };
    for (arguments, named) in [
        (
            serve(&["--model", &at("adapter")]),
            &["--adapter", "adapter, not a model"][..],
        ),
        (serve(&["--model", &at("m.gguf")]), &["GGUF"]),
        (serve(&["--model", &at("empty")]), &["no config.json"]),
        (serve(&["--model", &at("gone")]), &["no such directory"]),
        (
            serve(&["--kv-cache-memory", "1000GiB"]),
            &["memory", "1000 GiB", "--kv-cache-memory"],
        ),
        (serve(&["--kv-cache-memory", "900TB"]), &["memory"]),
        (
            serve(&["--data-dir", &at("d"), "--learn", &at("learn.toml")]),
            &["line 2", "`promts`", "did you mean `prompts`"],
        ),
        (
            serve(&["--api-key-file", &at("gone")]),
            &["gone", "No such file"],
        ),
        (
            words(&["train", "jsft", "--config", &at("jsft.toml")]),
            &["line 1", "`learnin_rate`"],
        ),
        (
            words(&[
                "train",
                "jsft",
                "--model",
                &at("empty"),
                "--data",
                &at("gone"),
                "--out",
                &at("o"),
            ]),
            &["no config.json"],
        ),
        (
            words(&[
                "eval",
                "judge",
                "--model",
                &at("gone"),
                "--data",
                &at("gone"),
            ]),
            &["no such directory"],
        ),
        (
            words(&["records", "import", "--data-dir", &at("new"), &at("gone")]),
            &["cannot read", "gone", "No such file"],
        ),
        (
            words(&[
                "records",
                "export",
                "--data-dir",
                &at("gone"),
                "--out",
                &at("out"),
            ]),
            &["does not exist"],
        ),
    ] {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let output = run(&arguments);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {said}");
        let lines: Vec<&str> = said
            .lines()
            .filter(|line| line.starts_with("Error"))
            .collect();
        assert_eq!(lines.len(), 1, "{arguments:?}: {said}");
        assert!(
            said.trim_end().ends_with(lines[0]),
            "the error must be the last line: {said}"
        );
        assert!(
            !said.contains("stack backtrace") && !said.contains("Caused by"),
            "{said}"
        );
        for name in named {
            assert!(
                lines[0].contains(name),
                "{arguments:?}: {said} does not name {name}"
            );
        }
        let halves = lines[0].split(": ").collect::<Vec<_>>();
        let mut once = halves.clone();
        once.dedup();
        assert_eq!(halves, once, "the line says the same twice: {said}");
    }
}

#[test]
fn a_listener_may_be_named_by_its_host() {
    for address in ["localhost:0", "0"] {
        let server = Server::start(&["--metrics-listen", address]);
        let ready = get(&server, "/ready");
        assert_eq!(ready["status"], "ready");
    }
}

#[test]
fn the_pocket_model_passes_its_own_self_test() {
    let server = Server::start(&[]);
    let judge = get(&server, "/ready")["judge"].clone();
    assert_eq!(judge["reliable"], true, "{judge}");
    assert_eq!(
        (&judge["set"], &judge["pairs"]),
        (&json!("model"), &json!(24))
    );
    assert_eq!(get(&server, "/v1/models")["data"][0]["judge"], judge);
    assert_eq!(get(&server, "/")["judge_reliable"], true);
    let (status, verdict) = post(&server, "/judge", &pair());
    assert_eq!(
        (status, &verdict["reliable"]),
        (200, &json!(true)),
        "{verdict}"
    );
    // The two orders of these candidates disagree.
    let undecided =
        json!({"prompt": "Write planet backwards.", "candidates": ["tenalp", "tenalp!"]});
    let (_, verdict) = post(&server, "/judge", &undecided);
    assert_eq!(
        (&verdict["consistent"], &verdict["reliable"]),
        (&json!(false), &json!(false)),
        "{verdict}"
    );
    assert!(verdict["winner"].is_u64(), "{verdict}");
    let mut asked = undecided;
    asked["on_disagreement"] = json!("undecided");
    let (_, verdict) = post(&server, "/judge", &asked);
    assert_eq!(verdict["winner"], Value::Null, "{verdict}");
    asked["orders"] = json!("given");
    let (status, refused) = post(&server, "/judge", &asked);
    assert_eq!(
        (status, &refused["error"]["param"]),
        (400, &json!("on_disagreement")),
        "{refused}"
    );
    let best = json!({"prompt": "What is 45 plus 17?", "best_of": 4, "seed": 5});
    let (status, answer) = post(&server, "/generate", &best);
    assert_eq!(
        (status, &answer["tournament"]["reliable"]),
        (200, &json!(true)),
        "{answer}"
    );
    let metrics = client()
        .get(server.url("/metrics"))
        .send()
        .unwrap()
        .text()
        .unwrap();
    for line in [
        r#"selfjudge:judge_reliable{model_name="pocket"} 1"#,
        r#"selfjudge:judge_self_test{number="orders_agree",model_name="pocket"} 1"#,
        r#"selfjudge:request_failure_total{reason="error",model_name="pocket"} 0"#,
        r#"selfjudge:http_rejected_total{reason="overloaded",model_name="pocket"} 0"#,
        r#"selfjudge:generation_info{id="base",role="policy",model_name="pocket"} 1"#,
        "selfjudge:build_info{",
        "process_resident_memory_bytes{",
        "process_open_fds{",
    ] {
        assert!(metrics.contains(line), "{line}: {metrics}");
    }
}

#[test]
fn a_model_that_is_no_judge_is_found_out() {
    let dir = tempfile::tempdir().unwrap();
    no_judge(dir.path());
    let model = dir.path().to_str().unwrap();
    let best = json!({"prompt": "What is 45 plus 17?", "best_of": 4, "seed": 5});
    let server = Server::start(&["--model", model]);
    let judge = get(&server, "/ready")["judge"].clone();
    assert_eq!(
        (&judge["reliable"], &judge["set"]),
        (&json!(false), &json!("general")),
        "{judge}"
    );
    let (status, verdict) = post(&server, "/judge", &pair());
    assert_eq!(
        (status, &verdict["reliable"]),
        (200, &json!(false)),
        "{verdict}"
    );
    for (path, body) in [
        ("/generate", best.clone()),
        (
            "/v1/completions",
            json!({"prompt": "2 plus", "best_of": 2, "n": 2}),
        ),
    ] {
        let (status, refused) = post(&server, path, &body);
        let error = &refused["error"];
        assert_eq!(
            (status, &error["code"]),
            (400, &json!("untrained_judge")),
            "{refused}"
        );
        let message = error["message"].as_str().unwrap();
        assert!(
            message.contains("self-test") && message.contains("`n`") && !message.contains("--"),
            "{message}"
        );
    }
    let (status, _) = post(
        &server,
        "/generate",
        &json!({"prompt": "x", "n": 2, "max_tokens": 2}),
    );
    assert_eq!(status, 200, "a call without a judge must be answered");
    crate::patience::eventually("a line that says so", || {
        let said = server.said();
        let found = said.iter().any(|line| line.contains("not a trained judge"));
        found.then_some(())
    });

    let allowed = Server::start(&["--model", model, "--allow-untrained-judge"]);
    assert_eq!(post(&allowed, "/generate", &best).0, 200);
    let untested = Server::start(&[
        "--model",
        model,
        "--no-self-test",
        "--on-disagreement",
        "undecided",
    ]);
    assert_eq!(get(&untested, "/ready")["judge"], Value::Null);
    assert_eq!(post(&untested, "/generate", &best).0, 200);
    let (_, verdict) = post(&untested, "/judge", &pair());
    assert_eq!(verdict["reliable"], Value::Null, "{verdict}");

    let data = dir.path().join("data");
    let data = data.to_str().unwrap();
    let output = run(&[
        "serve",
        "--listen",
        "127.0.0.1:0",
        "--model",
        model,
        "--data-dir",
        data,
        "--learn",
        "default",
    ]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.contains("learning is refused") && said.contains("--allow-untrained-judge"),
        "{said}"
    );
}

#[test]
fn a_refused_call_is_one_short_line() {
    let server = Server::start(&[]);
    let (status, _) = post(
        &server,
        "/generate?secret=1",
        &json!({"promt": "private words"}),
    );
    assert_eq!(status, 400);
    let line = crate::patience::eventually("a line of the refusal", || {
        server
            .said()
            .into_iter()
            .find(|line| line.contains("refused"))
    });
    for part in [
        "POST",
        "/generate",
        "400",
        "ms=",
        "caller=",
        "unknown_parameter",
    ] {
        assert!(line.contains(part), "{line} has no {part}");
    }
    assert!(
        !line.contains("secret") && !line.contains("private"),
        "{line}"
    );
    assert!(line.len() < 300 && !line.contains("otel"), "{line}");
}

#[test]
fn an_interrupted_run_leaves_a_checkpoint_and_says_how_to_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("pairs.jsonl");
    let pairs = fs::read_to_string(pocket().join("judge_self_test.jsonl")).unwrap();
    fs::write(&data, pairs).unwrap();
    let out = dir.path().join("out");
    for (command, kind) in [("jsft", "model"), ("dpo", "adapter")] {
        let out = out.join(command);
        let model = pocket();
        let run = |more: &[&str]| {
            let mut run = Command::new(env!("CARGO_BIN_EXE_selfjudge"));
            run.args(["train", command, "--model"]).arg(&model);
            run.arg("--data").arg(&data).arg("--output-dir").arg(&out);
            run.args([
                "--lora-rank",
                "2",
                "--batch-size",
                "4",
                "--max-steps",
                "100000",
                "--epochs",
                "100000",
                "--quiet",
            ]);
            run.args(more).stdout(std::process::Stdio::piped());
            run
        };
        let child = run(&["--log-every", "1"]).spawn().unwrap();
        let metrics = out.join("metrics.jsonl");
        crate::patience::eventually("a first step", || {
            let written = fs::metadata(&metrics).is_ok_and(|file| file.len() > 0);
            written.then_some(())
        });
        // SAFETY: kill(2) takes no pointers. The child has not been waited for, so its id is valid.
        assert_eq!(unsafe { libc::kill(child.id() as i32, libc::SIGINT) }, 0);
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        assert!(
            output.status.success() && said.contains("--resume"),
            "{command}: {said}"
        );
        assert!(!out.join(kind).exists());
        let steps: u64 = said.split(" of ").next().unwrap().trim().parse().unwrap();
        assert!(steps >= 1, "{said}");
        let resumed = run(&["--resume", "--stop-after", "1"]).output().unwrap();
        let said = String::from_utf8(resumed.stdout).unwrap();
        assert!(resumed.status.success(), "{said}");
        assert!(
            said.starts_with(&format!("{} of", steps + 1)),
            "{command}: {said}"
        );
    }
}

#[test]
fn an_import_makes_its_data_directory_and_a_missing_file_makes_none() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    let pair = r#"{"prompt": "p", "chosen": "a", "rejected": "b"}"#;
    fs::write(at("pairs.jsonl"), pair).unwrap();
    let import = |to: &str, file: &str| run(&["records", "import", "--data-dir", to, file]);
    let gone = import(&at("none"), &at("gone.jsonl"));
    assert!(!gone.status.success() && !dir.path().join("none").exists());
    let made = import(&at("new/data"), &at("pairs.jsonl"));
    let said = String::from_utf8_lossy(&made.stdout).into_owned();
    assert!(
        made.status.success() && said.contains("1 new pairs"),
        "{said}"
    );
    let out = at("out.jsonl");
    let exported = run(&[
        "records",
        "export",
        "--data-dir",
        &at("new/data"),
        "--out",
        &out,
    ]);
    assert!(exported.status.success());
}

/// Changes the model's JSON file of this name.
fn rewrite(dir: &Path, name: &str, change: impl FnOnce(&mut Value)) {
    let file = dir.join(name);
    let mut json: Value = serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
    change(&mut json);
    fs::write(file, json.to_string()).unwrap();
}

#[test]
fn a_model_whose_answers_nothing_ends_is_named_at_the_start() {
    let warned = |server: &Server| {
        let mut said = server.said().into_iter();
        said.find(|line| line.contains("has no end token"))
    };
    let known = Server::start(&[]);
    get(&known, "/ready");
    assert_eq!(
        warned(&known),
        None,
        "the pocket model must need no warning"
    );
    let dir = tempfile::tempdir().unwrap();
    no_judge(dir.path());
    for name in ["config.json", "generation_config.json"] {
        rewrite(dir.path(), name, |config| {
            config.as_object_mut().unwrap().remove("eos_token_id");
        });
    }
    rewrite(dir.path(), "tokenizer_config.json", |config| {
        config.as_object_mut().unwrap().remove("eos_token");
        config["chat_template"] = json!(
            "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '\n' }}{% endfor %}assistant:"
        );
    });
    fs::write(dir.path().join("special_tokens_map.json"), "{}").unwrap();
    let server = Server::start(&["--model", dir.path().to_str().unwrap()]);
    let line = warned(&server).unwrap_or_else(|| panic!("{:?}", server.said()));
    for part in ["WARN", "eos_token_id", "chat template", "max_tokens"] {
        assert!(line.contains(part), "{line} has no {part}");
    }
    let (status, answer) = post(
        &server,
        "/generate",
        &json!({"prompt": "x", "max_tokens": 5}),
    );
    assert_eq!(
        (status, &answer["outputs"][0]["finish_reason"]),
        (200, &json!("length")),
        "{answer}"
    );
}
