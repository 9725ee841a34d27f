//! A trained adapter names the model that it was trained over, and is of no use to another one.

use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use train::{
    digest::weights_digest,
    identity::{BaseIdentity, tokenizer_digest},
};

fn pocket() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/pocket");
    path.to_str().unwrap().to_owned()
}

/// Runs the program, and returns whether it succeeded and what it said last on standard error.
fn run(words: &[&str]) -> (bool, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_selfjudge"))
        .args(words)
        .env("RUST_BACKTRACE", "1")
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    let last = said.lines().last().unwrap_or_default().to_owned();
    (output.status.success(), last)
}

#[test]
fn a_trained_adapter_names_its_base_and_no_command_takes_it_for_another() {
    let root = tempfile::tempdir().unwrap();
    let at = |name: &str| root.path().join(name).to_str().unwrap().to_owned();
    let pocket = pocket();
    let pairs = at("pairs.jsonl");
    let line = |n: usize| {
        let message = |role: &str, content: String| json!([{"role": role, "content": content}]);
        let prompt = message("user", format!("What is {n} plus 17?"));
        let [chosen, rejected] = [n + 17, n + 27].map(|sum| message("assistant", sum.to_string()));
        json!({"prompt": prompt, "chosen": chosen, "rejected": rejected}).to_string()
    };
    std::fs::write(&pairs, (10..14).map(line).collect::<Vec<_>>().join("\n")).unwrap();
    let train = |kind: &str, out: &str, more: &[&str]| {
        let words = ["train", kind, "--model", &pocket, "--data", &pairs];
        let length = ["--output-dir", out, "--max-steps", "1", "--batch-size", "2"];
        run(&[&words[..], &length, more].concat())
    };
    let (dpo, jsft) = (at("dpo"), at("jsft"));
    let (ok, said) = train("dpo", &dpo, &["--weights", "int8"]);
    assert!(ok, "{said}");
    let (ok, said) = train("jsft", &jsft, &["--lora-rank", "2"]);
    assert!(ok, "{said}");
    let read = |dir: &str| -> Value {
        let file = Path::new(dir).join("base.json");
        serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap()
    };
    let (adapter, other) = (format!("{dpo}/adapter"), format!("{jsft}/model"));
    let base = weights_digest(Path::new(&pocket)).unwrap();
    let tokenizer = tokenizer_digest(Path::new(&pocket)).unwrap();
    for (dir, weights) in [(&adapter, "int8"), (&other, "f32")] {
        let named = json!({"base": base, "tokenizer": tokenizer, "weights": weights});
        assert_eq!(read(dir), named);
    }
    // On the model that it names it is trained further.
    let (ok, said) = train("dpo", &at("further"), &["--adapter", &adapter]);
    assert!(ok, "{said}");

    let forged = |base: &str, tokenizer: &str| {
        let identity = BaseIdentity {
            base: base.to_owned(),
            adapter: None,
            tokenizer: Some(tokenizer.to_owned()),
            weights: None,
        };
        identity.write(Path::new(&adapter)).unwrap();
    };
    let (one, two) = ("1".repeat(64), "2".repeat(64));
    for (weights, made, here, what) in [
        (one.as_str(), tokenizer.as_str(), None, "the weights differ"),
        (&base, &two, Some(&tokenizer), "the tokenizers differ"),
    ] {
        forged(weights, made);
        let made = if here.is_some() { &two } else { &one };
        let here = here.unwrap_or(&base);
        let out = at("refused");
        let onto = ["--adapter", &adapter, "--model", &pocket];
        for (words, more) in [
            (&["serve"][..], &["--listen", "127.0.0.1:0"][..]),
            (&["eval", "judge"], &["--data", &pairs]),
            (&["eval", "perplexity"], &["--data", &pairs]),
            (&["merge"], &["--out", &out]),
            (&["train", "dpo"], &["--data", &pairs, "--output-dir", &out]),
            (
                &["train", "jsft"],
                &["--data", &pairs, "--output-dir", &out],
            ),
        ] {
            let (ok, said) = run(&[words, &onto, more].concat());
            let parts = ["Error: ", what, made, here, &adapter];
            assert!(
                !ok && parts.iter().all(|part| said.contains(*part)),
                "{words:?}: {said}"
            );
        }
    }
}
