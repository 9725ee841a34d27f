//! Tests of encoding records with the pocket model: plain strings as TRL reads them, labels, dropped records and their report.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::PairExample;
use super::data::{Built, build};
use super::run::{DpoRunConfig, PairFile};
use crate::TrainError;
use judge::PlainText;
use model::ModelConfig;
use text::Tokenizer;

fn pocket() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/pocket")
}

fn tokenizer() -> Tokenizer {
    Tokenizer::from_file(&pocket().join("tokenizer.json")).unwrap()
}

/// Encodes records with settings over the defaults.
fn encode(records: &[Value], set: impl FnOnce(&mut DpoRunConfig)) -> Result<Built, TrainError> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pairs.json");
    std::fs::write(&path, json!(records).to_string()).unwrap();
    let mut config = DpoRunConfig {
        data: vec![PairFile {
            path,
            format: Default::default(),
        }],
        ..DpoRunConfig::default()
    };
    set(&mut config);
    let model = ModelConfig::from_dir(&pocket()).unwrap();
    build(&config, &pocket(), &model)
}

fn only(built: Built) -> PairExample {
    let [example] = built.examples.try_into().unwrap();
    example
}

#[test]
fn plain_strings_are_what_trl_makes_of_them() {
    let tokenizer = tokenizer();
    let ids = |text: &str| tokenizer.encode_template(text).unwrap();
    let end = ids("<|end|>");
    // Texts with and without a chat template's markup; the end token is already present, or is appended.
    for (prompt, chosen, rejected) in [
        ("<|user|>2 plus 3?<|end|><|assistant|>\n", "5<|end|>", "6"),
        ("2 plus 3 is", " 5.", " 6."),
        ("2 plus 3 is\n", "\n5", "\n6<|end|>"),
    ] {
        let record = json!({"prompt": prompt, "chosen": chosen, "rejected": rejected});
        let example = only(encode(&[record], |_| ()).unwrap());
        assert_eq!(example.prompt, ids(prompt));
        let ended = |answer: &str| {
            let answer = answer.strip_suffix("<|end|>").unwrap_or(answer);
            [ids(answer), end.clone()].concat()
        };
        assert_eq!(example.chosen, ended(chosen), "{chosen:?}");
        assert_eq!(example.rejected, ended(rejected), "{rejected:?}");
    }
}

#[test]
fn plain_strings_as_a_chat_are_the_conversation() {
    let plain = json!({"prompt": "2 plus 3?", "chosen": " 5", "rejected": "6"});
    let turn = |role: &str, content: &str| json!([{"role": role, "content": content}]);
    let chat = json!({
        "prompt": turn("user", "2 plus 3?"),
        "chosen": turn("assistant", "5"), "rejected": turn("assistant", "6"),
    });
    let as_chat = |config: &mut DpoRunConfig| config.plain = PlainText::Chat;
    let built = encode(&[plain], as_chat).unwrap();
    assert_eq!((built.report.plain, built.report.plain_control), (1, 0));
    assert_eq!(only(built), only(encode(&[chat], |_| ()).unwrap()));

    let marked = json!({"prompt": "<|user|>q", "chosen": "5", "rejected": "6"});
    for plain in [PlainText::Raw, PlainText::Chat] {
        let built = encode(std::slice::from_ref(&marked), |config| config.plain = plain).unwrap();
        assert_eq!(built.report.plain_control, 1);
        let control = only(built).prompt[0] == 381;
        assert!(control, "both begin with the user's mark");
    }
}

#[test]
fn margins_are_soft_labels_where_the_run_says_so() {
    let record = |margin: Value| json!({"prompt": "2 plus 3 is", "chosen": " 5", "rejected": " 6", "margin": margin});
    let soft = |config: &mut DpoRunConfig| config.soft_labels = true;
    let label = |margin, soft_labels| {
        let records = [record(margin)];
        only(encode(&records, |config| config.soft_labels = soft_labels).unwrap()).label
    };
    assert_eq!(label(json!(0.75), false), 1.0);
    assert_eq!(label(json!(0.75), true), 0.75);
    assert_eq!(label(json!(null), true), 1.0);
    let built = encode(&[record(json!(0.75)), record(json!(3.5))], soft).unwrap();
    assert_eq!((built.report.kept, built.report.refused), (1, 1));
    let why = built.report.first_refusal.unwrap();
    assert!(why.contains("3.5"), "{why}");
}

#[test]
fn unusable_records_are_counted_and_an_empty_run_says_the_first_reason() {
    let good = json!({"prompt": "2 plus 3 is", "chosen": " 5", "rejected": " 6"});
    let bad = json!({"prompt": "2 plus 3 is", "chosen": " 5", "rejected": null});
    let built = encode(&[good, bad.clone()], |_| ()).unwrap();
    assert_eq!((built.report.kept, built.report.unusable), (1, 1));
    let first = built.report.first_unusable.unwrap();
    assert!(
        first.contains("record 2") && first.contains("`rejected` is null"),
        "{first}"
    );
    let error = encode(&[bad], |_| ()).err().unwrap().to_string();
    assert!(
        error.contains("none of 1 records") && error.contains("`rejected`"),
        "{error}"
    );
}

#[test]
fn pairs_beyond_the_models_context_are_cut_to_it() {
    let long = "5 plus ".repeat(600);
    let record = json!({"prompt": "2 plus 3 is", "chosen": long, "rejected": " 6"});
    let model = ModelConfig::from_dir(&pocket()).unwrap();
    let built = encode(&[record], |config| config.max_length = 1 << 20).unwrap();
    assert_eq!((built.report.kept, built.report.cut), (1, 1));
    let example = only(built);
    assert_eq!(
        example.prompt.len() + example.chosen.len(),
        model.spec.max_context()
    );
    let record = json!({"prompt": long, "chosen": " 5", "rejected": " 6"});
    let error = encode(&[record], |config| config.max_length = 30)
        .err()
        .unwrap();
    assert!(
        error
            .to_string()
            .contains("may have at most 30 (max_length"),
        "{error}"
    );
}
