//! Vocabularies of every kind, beside the tokens that llama.cpp gives (`tests/data/gguf/make_tokens.py`).

use std::path::Path;

use serde_json::Value;

use super::{GgufVocabulary, Type};
use crate::Tokenizer;
use test_support::data;

fn json(path: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// A vocabulary that owns its strings.
struct Owned {
    tokens: Vec<String>,
    types: Vec<i32>,
    scores: Vec<f32>,
    merges: Vec<String>,
}

/// Returns the vocabulary of a `tokenizer.json`; a token's score is the negative rank of the merge that makes it.
fn owned(path: &Path) -> Owned {
    let tokenizer = json(path);
    let mut tokens: Vec<(usize, String, i32)> = Vec::new();
    let vocab = tokenizer["model"]["vocab"].as_object().unwrap();
    tokens.extend(
        vocab
            .iter()
            .map(|(token, id)| (id.as_u64().unwrap() as usize, token.clone(), 1)),
    );
    for added in tokenizer["added_tokens"].as_array().unwrap() {
        let id = added["id"].as_u64().unwrap() as usize;
        let kind = if added["special"] == true { 3 } else { 4 };
        tokens.retain(|(other, ..)| *other != id);
        tokens.push((id, added["content"].as_str().unwrap().to_owned(), kind));
    }
    tokens.sort();
    let merges: Vec<String> = tokenizer["model"]["merges"]
        .as_array()
        .unwrap()
        .iter()
        .map(|merge| match merge.as_str() {
            Some(merge) => merge.to_owned(),
            None => format!(
                "{} {}",
                merge[0].as_str().unwrap(),
                merge[1].as_str().unwrap()
            ),
        })
        .collect();
    let mut scores = vec![0.0; tokens.len()];
    for (rank, merge) in merges.iter().enumerate().rev() {
        let joined = merge.replacen(' ', "", 1);
        if let Some(at) = tokens.iter().position(|(_, token, _)| *token == joined) {
            scores[at] = -(rank as f32);
        }
    }
    Owned {
        types: tokens
            .iter()
            .map(|(_, token, kind)| match token.strip_prefix("<0x") {
                Some(_) => 6,
                None if token == "<unk>" && *kind == 1 => 2,
                None => *kind,
            })
            .collect(),
        tokens: tokens.into_iter().map(|(_, token, _)| token).collect(),
        scores,
        merges,
    }
}

impl Owned {
    fn vocabulary<'a>(&'a self, model: &'a str, pre: Option<&'a str>) -> GgufVocabulary<'a> {
        GgufVocabulary {
            model,
            pre,
            tokens: self.tokens.iter().map(String::as_str).collect(),
            types: Some(self.types.clone()),
            scores: Some(self.scores.clone()),
            merges: Some(self.merges.iter().map(String::as_str).collect()),
            bos: Some(1),
            eos: Some(2),
            unknown: Some(0),
            padding: None,
            add_bos: None,
            add_eos: None,
            add_space_prefix: None,
            remove_extra_whitespaces: None,
        }
    }
}

fn tokenizer(vocabulary: &GgufVocabulary<'_>) -> Tokenizer {
    Tokenizer::from_bytes(vocabulary.tokenizer_json().unwrap().as_bytes()).unwrap()
}

#[test]
fn tokens_are_those_of_llama_cpp() {
    let golden = json(&data("gguf/tokens.json"));
    let texts = golden["texts"].as_array().unwrap();
    assert!(texts.len() >= 300);
    let minimind = owned(&data("tokenizers/minimind/tokenizer.json"));
    let stories = owned(&data("stories260k/tokenizer.json"));
    for kind in ["default", "gpt-2", "llama-bpe", "qwen2", "smollm", "llama"] {
        let vocabulary = match kind {
            "llama" => stories.vocabulary("llama", None),
            pre => minimind.vocabulary("gpt2", Some(pre)),
        };
        let tokenizer = tokenizer(&vocabulary);
        let expected = golden["ids"][kind].as_array().unwrap();
        assert_eq!(expected.len(), texts.len());
        for (text, expected) in texts.iter().zip(expected) {
            let text = text.as_str().unwrap();
            let expected: Vec<u32> = serde_json::from_value(expected.clone()).unwrap();
            let own = tokenizer.encode_template(text).unwrap();
            assert_eq!(own, expected, "{kind}: {text:?}");
        }
    }
}

#[test]
fn the_tokenizer_is_that_of_the_vocabularys_own_file() {
    let file = data("stories260k/tokenizer.json");
    let own = tokenizer(&owned(&file).vocabulary("llama", None));
    let other = Tokenizer::from_file(&file).unwrap();
    assert_eq!(own.vocab_size(), other.vocab_size());
    for text in ["Once upon a time", " x  y", "<s>Lily</s> é", "🙂"] {
        let ids = own.encode_template(text).unwrap();
        assert_eq!(ids, other.encode_template(text).unwrap(), "{text:?}");
        assert_eq!(
            own.decode(&ids, true).unwrap(),
            other.decode(&ids, true).unwrap()
        );
    }
}

#[test]
fn bos_and_eos_surround_texts_as_the_file_says() {
    let stories = owned(&data("stories260k/tokenizer.json"));
    let minimind = owned(&data("tokenizers/minimind/tokenizer.json"));
    let around = |vocabulary: &GgufVocabulary<'_>| tokenizer(vocabulary).specials_around().unwrap();
    let spm = stories.vocabulary("llama", None);
    assert_eq!(around(&spm), (vec![1], vec![]));
    let llama3 = minimind.vocabulary("gpt2", Some("llama-bpe"));
    assert_eq!(around(&llama3), (vec![1], vec![]));
    let plain = minimind.vocabulary("gpt2", Some("smollm"));
    assert_eq!(around(&plain), (vec![], vec![]));
    let both = GgufVocabulary {
        add_bos: Some(false),
        add_eos: Some(true),
        ..spm
    };
    assert_eq!(around(&both), (vec![], vec![2]));
}

#[test]
fn inconsistent_vocabularies_are_refused_by_name() {
    let minimind = owned(&data("tokenizers/minimind/tokenizer.json"));
    let good = || minimind.vocabulary("gpt2", Some("gpt-2"));
    let refuse = |vocabulary: GgufVocabulary<'_>, word: &str| {
        let error = vocabulary.tokenizer_json().unwrap_err();
        assert!(error.contains(word), "{error}");
    };
    let tokens = good().tokens.len();
    refuse(
        GgufVocabulary {
            model: "wordpiece",
            ..good()
        },
        "wordpiece",
    );
    refuse(
        GgufVocabulary {
            pre: Some("tekken"),
            ..good()
        },
        "`tekken`",
    );
    refuse(
        GgufVocabulary {
            pre: None,
            ..good()
        },
        "names no pre-tokenizer",
    );
    refuse(
        GgufVocabulary {
            merges: None,
            ..good()
        },
        "merges is missing",
    );
    refuse(
        GgufVocabulary {
            merges: Some(vec!["ab"]),
            ..good()
        },
        "not two tokens",
    );
    refuse(
        GgufVocabulary {
            types: Some(vec![1]),
            ..good()
        },
        "1 entries",
    );
    refuse(
        GgufVocabulary {
            types: Some(vec![9; tokens]),
            ..good()
        },
        "unknown type 9",
    );
    refuse(
        GgufVocabulary {
            add_bos: Some(true),
            bos: Some(1 << 40),
            ..good()
        },
        "token 1099511627776",
    );
    refuse(
        GgufVocabulary {
            tokens: vec!["a"; tokens],
            ..good()
        },
        "\"a\" twice",
    );
    let llama = || minimind.vocabulary("llama", None);
    refuse(
        GgufVocabulary {
            scores: None,
            ..llama()
        },
        "scores is missing",
    );
    refuse(
        GgufVocabulary {
            remove_extra_whitespaces: Some(true),
            ..llama()
        },
        "remove_extra_whitespaces",
    );
    assert_eq!(Type::of(0), None);
}
