//! Tests of `selfjudge records`: pairs of a server's tournaments are exported from its log and imported into another.

use std::path::PathBuf;
use std::process::{Command, Output};

use super::*;

fn records(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_selfjudge"))
        .arg("records")
        .args(arguments)
        .env_remove("SELFJUDGE_DATA_DIR")
        .env_remove("SELFJUDGE_LOG_URL")
        .output()
        .unwrap()
}

fn done(arguments: &[&str]) -> String {
    let run = records(arguments);
    let said = String::from_utf8_lossy(&run.stderr).into_owned();
    assert!(run.status.success(), "{arguments:?}: {said}");
    String::from_utf8(run.stdout).unwrap()
}

fn text_of(path: PathBuf) -> String {
    path.to_str().unwrap().to_owned()
}

#[test]
fn pairs_leave_by_one_format_and_come_back_by_the_other() {
    let logged = logged(&keyed(), TrafficConfig::default());
    let body = |train: bool| {
        json!({"prompt": "Reverse the word piano.", "best_of": 4, "seed": 2, "temperature": 1.5,
            "log": {"retain": true, "train": train}})
    };
    let answer = posted("/generate", "a", &body(true)).ok(&logged.server);
    posted("/generate", "a", &body(false)).ok(&logged.server);
    let record = record_of(&logged.server, "a", &answer);
    let pairs = record["pairs"].as_array().unwrap().len();
    assert!(pairs > 0, "{record}");

    let dir = text_of(logged.dir.path().to_owned());
    let file = |name: &str| text_of(logged.dir.path().join(name));
    let said = done(&["export", "--data-dir", &dir, "--out", &file("pairs.jsonl")]);
    assert!(said.starts_with(&format!("{pairs} pairs")), "{said}");
    let lines = std::fs::read_to_string(file("pairs.jsonl")).unwrap();
    assert_eq!(
        lines.lines().count(),
        pairs,
        "only pairs with consent to train must be exported"
    );
    for line in lines.lines() {
        let pair: Value = serde_json::from_str(line).unwrap();
        assert_ne!(pair["chosen"], pair["rejected"]);
        assert_eq!(pair["source"], "tournament");
    }

    let other = format!("sqlite:{}", file("other.sqlite"));
    done(&["import", "--log", &other, "--train", &file("pairs.jsonl")]);
    let parquet = ["--format", "parquet"];
    let export = [
        "export",
        "--log",
        &other,
        "--source",
        "tournament",
        "--out",
        &file("pairs.parquet"),
    ];
    let said = done(&[&export[..], &parquet].concat());
    assert!(said.starts_with(&format!("{pairs} pairs")), "{said}");
    let third = text_of(logged.dir.path().join("third"));
    std::fs::create_dir(&third).unwrap();
    let import = [
        "import",
        "--data-dir",
        &third,
        "--train",
        &file("pairs.parquet"),
    ];
    done(&[&import[..], &parquet].concat());
    let said = done(&[
        "export",
        "--data-dir",
        &third,
        "--out",
        &file("again.jsonl"),
    ]);
    assert!(said.starts_with(&format!("{pairs} pairs")), "{said}");
    let texts = |name: &str| {
        let lines = std::fs::read_to_string(file(name)).unwrap();
        let text = |line: &str| {
            let pair: Value = serde_json::from_str(line).unwrap();
            (pair["chosen"].to_string(), pair["rejected"].to_string())
        };
        let mut texts: Vec<_> = lines.lines().map(text).collect();
        texts.sort();
        texts
    };
    assert_eq!(texts("again.jsonl"), texts("pairs.jsonl"));
}

#[test]
fn what_cannot_be_exported_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let (nowhere, out) = (
        text_of(dir.path().to_owned()),
        text_of(dir.path().join("out")),
    );
    for (arguments, says) in [
        (
            vec!["export", "--data-dir", &nowhere, "--out", &out],
            "no server has logged traffic",
        ),
        (vec!["export", "--out", &out], "--data-dir"),
        (
            vec![
                "export",
                "--data-dir",
                &nowhere,
                "--out",
                &out,
                "--min-margin",
                "2",
            ],
            "probability",
        ),
    ] {
        let run = records(&arguments);
        let said = String::from_utf8_lossy(&run.stderr).into_owned();
        assert!(
            !run.status.success() && said.contains(says),
            "{arguments:?}: {said}"
        );
    }
    assert!(!dir.path().join("out").exists());
}
