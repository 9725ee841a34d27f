//! Tests of the types of weights in the program: `serve --weights` and `eval perplexity`.

use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::patience::client;
use crate::process::Server;

fn pocket() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/pocket");
    path.to_str().unwrap().to_owned()
}

/// Runs the program and returns whether it succeeded, and both outputs.
fn run(arguments: &[&str]) -> (bool, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_selfjudge"))
        .args(arguments)
        .output()
        .unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8(text).unwrap())
}

#[test]
fn a_server_of_integers_says_so_and_judges_well() {
    for (flag, asked, kept) in [
        ("--weights", "int8", "int8"),
        ("--dtype", "int4", "int4+int8"),
        ("--weights", "auto", "bf16"),
    ] {
        let server = Server::start(&[flag, asked]);
        let get = |path: &str| client().get(server.url(path)).send().unwrap();
        let metrics = get("/metrics").text().unwrap();
        let line = format!("selfjudge:weights_bytes{{type=\"{kept}\",model_name=\"pocket\"}} ");
        assert!(metrics.contains(&line), "{line}: {metrics}");
        let ready: Value = get("/ready").json().unwrap();
        assert_eq!(ready["judge"]["reliable"], json!(true), "{asked}: {ready}");
        let pair = json!({"prompt": "What is 45 plus 17?", "candidates": ["62", "52"]});
        let judged = client().post(server.url("/judge")).json(&pair).send();
        let judged: Value = judged.unwrap().json().unwrap();
        assert_eq!(judged["winner"], json!(0), "{asked}: {judged}");
    }
}

#[test]
fn the_perplexity_of_each_type_is_printed() {
    let dir = tempfile::tempdir().unwrap();
    let (text, report) = (dir.path().join("text"), dir.path().join("report.json"));
    let lines = (10..60).map(|n| format!("What is {n} plus 17? It is {}.", n + 17));
    std::fs::write(&text, lines.collect::<Vec<_>>().join("\n")).unwrap();
    let (text, report) = (text.to_str().unwrap(), report.to_str().unwrap());
    let pocket = pocket();
    let common = ["eval", "perplexity", "--model", &pocket, "--data", text];
    let all = [
        "--weights",
        "f32,bf16,int8,int4",
        "--window",
        "64",
        "--json",
        report,
    ];
    let (ok, output) = run(&[&common[..], &all].concat());
    assert!(ok && output.contains("int4+int8"), "{output}");
    let report: Value = serde_json::from_slice(&std::fs::read(report).unwrap()).unwrap();
    let rows = report["rows"].as_array().unwrap();
    let number = |row: usize, name: &str| rows[row][name].as_f64().unwrap();
    assert_eq!(rows.len(), 4, "{report}");
    assert_eq!(number(0, "agreement"), 1.0);
    for (row, most) in [(1, 0.02), (2, 0.02), (3, 0.2)] {
        let change = (number(row, "perplexity") / number(0, "perplexity"))
            .ln()
            .abs();
        assert!(change < most, "{report}");
        assert!(number(row, "bytes") < number(row - 1, "bytes"), "{report}");
        assert!(number(row, "agreement") > 0.8, "{report}");
    }
    for (arguments, named) in [
        (&["--weights", "int3"][..], "int3"),
        (&["--window", "100000"], "100000"),
    ] {
        let (ok, output) = run(&[&common[..], arguments].concat());
        assert!(!ok && output.contains(named), "{output}");
    }
}

#[test]
fn a_type_that_does_not_exist_is_refused_by_name() {
    for flag in ["--weights", "--dtype"] {
        let (ok, output) = run(&["serve", flag, "int3"]);
        assert!(
            !ok && output.contains("int3") && output.contains("int4"),
            "{output}"
        );
    }
}
