//! Settings that would have no effect are refused or named, instead of being silently ignored.

use std::process::{Command, Output};

use crate::support::data;

fn run(words: &[&str], variable: (&str, &str)) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_selfjudge"));
    command.args(words).env(variable.0, variable.1);
    command.output().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn a_variable_without_a_meaning_is_named_and_a_former_one_refused() {
    let output = run(&["openapi"], ("SELFJUDGE_DTYPE", "int8"));
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(
        said(&output),
        "Error: the environment variable SELFJUDGE_DTYPE is now SELFJUDGE_WEIGHTS: rename it\n"
    );
    for (name, hint) in [
        ("SELFJUDGE_WEIGTHS", "; did you mean SELFJUDGE_WEIGHTS?"),
        ("SELFJUDGE_COLOUR", ""),
    ] {
        let output = run(&["openapi"], (name, "int8"));
        assert!(output.status.success());
        let said = said(&output);
        let line = format!("the environment variable {name} has no effect{hint}\n");
        assert!(said.ends_with(&line) && said.lines().count() == 1, "{said}");
    }
    for name in [
        "SELFJUDGE_WEIGHTS",
        "SELFJUDGE_TEST_LOG_URL",
        "SELFJUDGE_PORT_80_TCP",
    ] {
        let output = run(&["openapi"], (name, "int8"));
        assert!(
            output.status.success() && said(&output).is_empty(),
            "{name}"
        );
    }
}

#[test]
fn flags_that_nothing_would_use_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let stories = data("stories260k");
    let (dir, stories) = (dir.path().to_str().unwrap(), stories.to_str().unwrap());
    let learn = ["serve", "--data-dir", dir, "--learn", "default"];
    for (words, flag, why) in [
        (
            &[&learn[..], &["--canary-share", "0.1"]].concat(),
            "--canary-share",
            "set --api-key-file or --trust-user",
        ),
        (
            &["serve", "--model", stories, "--tool-format", "json"].to_vec(),
            "--tool-format",
            "no chat template",
        ),
        (
            &[
                "serve",
                "--model",
                stories,
                "--chat-template-kwargs",
                r#"{"a":1}"#,
            ]
            .to_vec(),
            "--chat-template-kwargs",
            "no chat template",
        ),
    ] {
        let output = run(words, ("RUST_BACKTRACE", "1"));
        let said = said(&output);
        let last = said.lines().last().unwrap_or_default();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(
            last.starts_with("Error: ") && last.contains(flag) && last.contains(why),
            "{said}"
        );
    }
}
