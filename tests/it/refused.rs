//! Tests of settings and files that cannot work: each is refused before the work begins, in one line that says what to change.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value, json};

use crate::patience::{client, eventually};
use crate::process::Server;

const PROGRAM: &str = env!("CARGO_BIN_EXE_selfjudge");

fn pocket() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/pocket")
}

fn run(words: &[&str]) -> Output {
    let mut command = Command::new(PROGRAM);
    // Many developers have this variable set.
    command.args(words).env("RUST_BACKTRACE", "1");
    command.output().unwrap()
}

/// Returns the one line of an error.
fn refused(words: &[&str]) -> String {
    let output = run(words);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{words:?}: {said}");
    let errors: Vec<&str> = said
        .lines()
        .skip_while(|line| !line.starts_with("Error: "))
        .collect();
    assert_eq!(errors.len(), 1, "{words:?}: {said}");
    errors[0].to_owned()
}

/// Copies the pocket model with one file replaced.
fn pocket_with(dir: &Path, name: &str, text: &str) {
    fs::create_dir(dir).unwrap();
    for file in fs::read_dir(pocket()).unwrap() {
        let file = file.unwrap();
        if file.file_type().unwrap().is_file() {
            fs::copy(file.path(), dir.join(file.file_name())).unwrap();
        }
    }
    fs::write(dir.join(name), text).unwrap();
}

const POINTER: &str =
    "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935\nsize 4088872\n";

#[test]
fn a_server_is_refused_what_it_cannot_do() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    fs::create_dir(at("empty")).unwrap();
    fs::write(at("file"), "").unwrap();
    pocket_with(Path::new(&at("lfs")), "model.safetensors", POINTER);
    pocket_with(Path::new(&at("lfs-tokenizer")), "tokenizer.json", POINTER);
    pocket_with(
        Path::new(&at("table")),
        "principles.toml",
        "[[principle]]\nid = 3\n",
    );
    pocket_with(
        Path::new(&at("template")),
        "chat_template.jinja",
        "{% if %}",
    );
    let model = pocket().to_str().unwrap().to_owned();
    let broken = at("broken");
    fs::create_dir(&broken).unwrap();
    fs::write(
        Path::new(&broken).join("traffic.sqlite"),
        "this is no database, is it?",
    )
    .unwrap();
    for (words, named) in [
        (
            vec!["--max-concurrent", "100000000000"],
            &["--max-concurrent", "--max-batch-tokens"][..],
        ),
        (
            vec!["--max-batch-tokens", "100000000000"],
            &["--max-batch-tokens", "activations"],
        ),
        (
            vec!["--kv-cache-memory", "1000GiB"],
            &["--kv-cache-memory", "the program"],
        ),
        (vec!["--threads", "5000"], &["5000 threads", "at most"]),
        (vec!["--threads", "100000"], &["100000 threads", "at most"]),
        (
            vec!["--cors-origin", "https://*.example.org"],
            &["--cors-origin", "name each host"],
        ),
        (
            vec![
                "--data-dir",
                &at("d"),
                "--retain",
                "--redact-command",
                "./nope",
            ],
            &["--redact-command", "./nope"],
        ),
        (
            vec![
                "--data-dir",
                &at("d"),
                "--retain",
                "--redact-command",
                "/bin/false",
            ],
            &["--redact-command", "/bin/false"],
        ),
        (vec!["--adapter", &model], &["--model", "pocket"]),
        (
            vec!["--adapter", &at("empty")],
            &["adapter_config.json", "empty"],
        ),
        (vec!["--adapter", &at("file")], &["is a file"]),
        (vec!["--adapter", &at("gone")], &["no such directory"]),
        (
            vec!["--model", &at("lfs")],
            &["model.safetensors", "git lfs pull"],
        ),
        (
            vec!["--model", &at("lfs-tokenizer")],
            &["tokenizer.json", "git lfs pull"],
        ),
        (
            vec!["--model", &at("table")],
            &["principles.toml", "line 2", "a text"],
        ),
        (
            vec!["--model", &at("template")],
            &["chat_template.jinja", "does not parse"],
        ),
        (
            vec!["--data-dir", &broken],
            &["traffic.sqlite", "not a database"],
        ),
    ] {
        let all = [&["serve", "--listen", "127.0.0.1:0"][..], &words[..]].concat();
        let line = refused(&all);
        for name in named {
            assert!(
                line.contains(name),
                "{words:?}: {line} does not name {name}"
            );
        }
        assert!(!line.contains("judge template: "), "{line}");
    }
}

#[test]
fn a_setting_of_learning_is_found_out_at_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("learn.toml");
    let data = dir.path().join("data");
    let (file, data) = (file.to_str().unwrap(), data.to_str().unwrap());
    for (text, named) in [
        ("[dpo]\nbeta = -1\n", "beta"),
        ("[dpo]\nbeta = inf\n", "beta"),
        ("[dpo.schedule]\nlearning_rate = nan\n", "learning_rate"),
        ("[dpo.lora]\ntarget_modules = [\"q_prj\"]\n", "`q_prj`"),
        ("[dpo.lora]\nr = 0\n", "rank"),
        ("[judging]\nprinciples = [\"nosuch\"]\n", "`nosuch`"),
        ("[stage]\nprompts = 0\n", "learn.toml: stage.prompts"),
        (
            "[stage]\nprompts = \"many\"\n",
            "line 2: `\"many\"` does not fit",
        ),
        ("[dpo]\nloss = \"sigmiod\"\n", "a table with a `type`"),
        ("[gates]\nwin_rate = 0.5\n", "a table of settings"),
        ("stage = [8, 4]\n", "`stage`: a list does not fit"),
        (
            "[gates]\nwin_rate = [0.5, 0.6]\n",
            "`gates.win_rate`: a list",
        ),
    ] {
        fs::write(file, text).unwrap();
        let serve = [
            "serve",
            "--listen",
            "127.0.0.1:0",
            "--data-dir",
            data,
            "--learn",
            file,
        ];
        let line = refused(&serve);
        assert!(line.contains(named), "{text}: {line}");
    }
    let untested = [
        "serve",
        "--listen",
        "127.0.0.1:0",
        "--data-dir",
        data,
        "--learn",
        "default",
        "--no-self-test",
    ];
    let line = refused(&untested);
    assert!(
        line.contains("--no-self-test") && line.contains("--allow-untrained-judge"),
        "{line}"
    );
}

#[test]
fn nothing_is_made_where_something_was_meant_to_be() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    fs::write(at("file"), "").unwrap();
    fs::write(at("pairs.jsonl"), "").unwrap();
    let model = pocket().to_str().unwrap().to_owned();
    let log = format!("sqlite:{}", at("nope.db"));
    let (out, pairs) = (at("out"), at("pairs.jsonl"));
    for (words, named) in [
        (
            vec!["records", "export", "--log", &log, "--out", &out],
            &["nope.db"][..],
        ),
        (
            vec!["records", "import", "--data-dir", &at("file"), &pairs],
            &["is not a directory"],
        ),
        (
            vec!["records", "import", "--log", &log, &at("gone")],
            &["gone"],
        ),
        (
            vec![
                "records",
                "import",
                "--log",
                &log,
                "--principal",
                "foo:bar",
                &pairs,
            ],
            &["--principal", "foo:bar"],
        ),
        (
            vec![
                "records",
                "import",
                "--log",
                &log,
                "--principal",
                "key:",
                &pairs,
            ],
            &["--principal", "key:"],
        ),
        (
            vec!["train", "dpo", "--follow", "--data-dir", &at("typo")],
            &["typo", "does not exist"],
        ),
        (
            vec!["train", "dpo", "--follow", "--data-dir", &at("file")],
            &["is not a directory"],
        ),
        (
            vec![
                "train",
                "dpo",
                "--model",
                &model,
                "--data",
                &pairs,
                "--output-dir",
                &out,
            ],
            &["no preference pair"],
        ),
        (
            vec![
                "train",
                "jsft",
                "--model",
                &model,
                "--data",
                &pairs,
                "--output-dir",
                &out,
            ],
            &["no preference pair"],
        ),
        (
            vec!["eval", "judge", "--model", &model, "--data", &pairs],
            &["pairs.jsonl", "nothing to judge"],
        ),
        (
            vec![
                "eval",
                "judge",
                "--model",
                &model,
                "--data",
                &pairs,
                "--json",
                &at("no/such/x"),
            ],
            &["cannot write", "no/such/x"],
        ),
        (
            vec!["merge", "--adapter", &at("gone"), "--out", &out],
            &["gone: no such directory"],
        ),
        (
            vec![
                "train",
                "dpo",
                "--model",
                &model,
                "--data",
                &pairs,
                "--output-dir",
                &out,
                "--start",
                &at("file"),
            ],
            &["no preference pair"],
        ),
    ] {
        let line = refused(&words);
        for name in named {
            assert!(
                line.contains(name),
                "{words:?}: {line} does not name {name}"
            );
        }
        let halves: Vec<&str> = line.split(": ").collect();
        let mut once = halves.clone();
        once.dedup();
        assert_eq!(halves, once, "the line says the same twice: {line}");
    }
    for made in ["nope.db", "typo"] {
        assert!(!dir.path().join(made).exists(), "{made}");
    }
}

/// Starts the program through a shell, whose limits it inherits.
#[cfg(target_os = "linux")]
#[test]
fn a_limit_of_the_address_space_is_one_line() {
    for (kib, cache) in [
        (1_500_000, "2GiB"),
        (800_000, "2GiB"),
        (800_000, "1GiB"),
        (300_000, "16MiB"),
    ] {
        let script = format!(
            "ulimit -v {kib}; exec {PROGRAM} serve --listen 127.0.0.1:0 --threads 2 --kv-cache-memory {cache}"
        );
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", &script]).env("RUST_BACKTRACE", "1");
        let output = shell.output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{kib} {cache}: {said}");
        assert_eq!(said.lines().count(), 1, "{kib} {cache}: {said}");
        assert!(said.contains("address space"), "{kib} {cache}: {said}");
    }
}

#[test]
fn nothing_is_said_of_a_server_whose_other_listener_is_taken() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    for flag in ["--admin-listen", "--metrics-listen"] {
        let output = run(&["serve", "--listen", "127.0.0.1:0", flag, &taken]);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(
            said.contains(&format!("cannot listen on {taken}")),
            "{said}"
        );
        assert!(
            !said.contains(" on http") && !said.contains("self-test"),
            "{said}"
        );
    }
}

#[test]
fn a_json_log_has_json_lines_alone() {
    let server = Server::start(&["--log-format", "json", "--metrics-listen", "0"]);
    let answer = client().get(server.url("/nowhere")).send().unwrap();
    assert_eq!(answer.status().as_u16(), 404);
    let line = eventually("a line of the request", || {
        let said = server.said();
        said.into_iter().find(|line| line.contains("refused"))
    });
    for line in server.said() {
        let line: Value =
            serde_json::from_str(&line).unwrap_or_else(|error| panic!("{line}: {error}"));
        assert!(
            line["level"].is_string() && line["message"].is_string() && line["spans"].is_null(),
            "{line}"
        );
    }
    assert!(line.contains("\"path\":\"/nowhere\""), "{line}");
    let output = run(&["serve", "--log-format", "json", "--model", "/no/such/model"]);
    let said = String::from_utf8(output.stderr).unwrap();
    let line: Value = serde_json::from_str(&said).unwrap_or_else(|error| panic!("{said}: {error}"));
    assert_eq!(line["level"], "ERROR", "{line}");
}

#[test]
fn feedback_is_counted_and_a_principal_that_cannot_be_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().to_str().unwrap();
    let server = Server::start(&[
        "--data-dir",
        data,
        "--retain",
        "--admin-listen",
        "0",
        "--metrics-listen",
        "0",
    ]);
    let address = |whom: &str| {
        eventually("the address of a listener", || {
            let said = server.said();
            let found = said
                .iter()
                .find_map(|line| line.strip_prefix(whom).map(str::to_owned));
            found.map(|rest| rest.trim_start_matches(": ").to_owned())
        })
    };
    let (operators, metrics) = (address("for operators"), address("for metrics"));
    let post = |path: &str, body: &Value| {
        let answer = client().post(server.url(path)).json(body).send().unwrap();
        let status = answer.status().as_u16();
        (status, answer.json::<Value>().unwrap())
    };
    let (_, answer) = post(
        "/generate",
        &json!({"prompt": "What is 45 plus 17?", "n": 2, "max_tokens": 4}),
    );
    let id = &answer["record_id"];
    for said in [
        json!({"record_id": id, "thumbs": "up"}),
        json!({"record_id": id, "sample": 1, "thumbs": "down"}),
        json!({"record_id": id, "edited": "62"}),
    ] {
        let (status, answer) = post("/feedback", &said);
        assert_eq!(status, 200, "{answer}");
    }
    let get = |url: String| client().get(url).send().unwrap().text().unwrap();
    let page = get(format!("{metrics}/metrics"));
    for (kind, count) in [
        ("thumbs_up", 1),
        ("thumbs_down", 1),
        ("edited", 1),
        ("preferred", 0),
    ] {
        let line =
            format!(r#"selfjudge:log_feedback_total{{kind="{kind}",model_name="pocket"}} {count}"#);
        assert!(page.contains(&line), "{line}: {page}");
    }
    let lost = get(format!("{metrics}/"));
    for route in ["/metrics", "/health", "/ready"] {
        assert!(lost.contains(route), "{lost}");
    }
    assert!(!lost.contains("lists all routes"), "{lost}");
    for whose in ["foo:bar", "key:", "operator:", "key:a:b"] {
        let url = format!("{operators}/records?principal={whose}");
        let answer = client().delete(url).send().unwrap();
        let status = answer.status().as_u16();
        let error = answer.json::<Value>().unwrap()["error"].clone();
        assert_eq!(
            (status, &error["param"]),
            (400, &json!("principal")),
            "{whose}: {error}"
        );
    }
}
