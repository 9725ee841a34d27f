use std::path::Path;
use std::time::Instant;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

use super::*;
use crate::Tokenizer;
use crate::small_tokenizers::{
    byte_fallback, byte_level, llama_decoder, sentencepiece, with_decoder,
};
use crate::token_bytes::Speller;
use test_support::{data, shared_data};

fn pocket() -> Tokenizer {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models");
    Tokenizer::from_file(&models.join("pocket/tokenizer.json")).unwrap()
}

pub(super) fn env(tokenizer: &Tokenizer) -> GrammarEnv {
    GrammarEnv::new(tokenizer, tokenizer.vocab_size()).unwrap()
}

/// Returns tokenizers of every supported kind.
pub(super) fn tokenizers() -> Vec<Tokenizer> {
    let mut all = vec![
        pocket(),
        byte_level(),
        byte_fallback(),
        sentencepiece("first", llama_decoder()),
    ];
    let minimind = data("tokenizers/minimind/tokenizer.json");
    all.push(Tokenizer::from_file(&minimind).unwrap());
    if cfg!(has_data) {
        for name in ["gpt2", "gpt-neox-20b"] {
            let file = shared_data("tokenizers").join(name).join("tokenizer.json");
            all.push(Tokenizer::from_file(&file).unwrap());
        }
    }
    all
}

fn person() -> Value {
    json!({
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 8},
            "age": {"type": "integer", "minimum": 0, "maximum": 150},
            "tags": {"type": "array", "items": {"enum": ["x", "é"]}, "maxItems": 2},
        },
        "required": ["name", "age"],
        "additionalProperties": false,
    })
}

fn is_person(text: &str) -> bool {
    let Ok(Value::Object(person)) = serde_json::from_str(text) else {
        return false;
    };
    let tag = |tag: &Value| tag == "x" || tag == "é";
    person.iter().all(|(key, value)| match key.as_str() {
        "name" => value.as_str().is_some_and(|name| name.chars().count() <= 8),
        "age" => value.as_u64().is_some_and(|age| age <= 150),
        "tags" => value
            .as_array()
            .is_some_and(|tags| tags.len() <= 2 && tags.iter().all(tag)),
        _ => false,
    }) && person.contains_key("name")
        && person.contains_key("age")
}

fn is_date(text: &str) -> bool {
    let parts: Vec<&str> = text.split('-').collect();
    parts.len() == 3
        && parts
            .iter()
            .zip([4, 2, 2])
            .all(|(part, len)| part.len() == len)
        && parts
            .iter()
            .all(|part| part.bytes().all(|b| b.is_ascii_digit()))
}

/// Checks, with a hand-written parser, that a text is a sum with brackets.
fn is_sum(text: &str) -> bool {
    let mut depth = 0i32;
    let mut number_next = true;
    for c in text.chars() {
        match (c, number_next) {
            ('(', true) => depth += 1,
            (')', false) => depth -= 1,
            ('+', false) => number_next = true,
            ('1' | '2', true) => number_next = false,
            _ => return false,
        }
        if depth < 0 {
            return false;
        }
    }
    depth == 0 && !number_next
}

const SUM: &str = r#"
start: term ("+" term)*
term: "1" | "2" | "(" start ")"
"#;

type Check = fn(&str) -> bool;

fn specs() -> Vec<(GrammarSpec, Check)> {
    vec![
        (GrammarSpec::JsonSchema(person()), is_person),
        (GrammarSpec::JsonObject, |text| {
            serde_json::from_str::<Value>(text).is_ok_and(|value| value.is_object())
        }),
        (
            GrammarSpec::Regex(r"\d{4}-\d{2}-\d{2}".replace(r"\d", "[0-9]")),
            is_date,
        ),
        (GrammarSpec::Regex(r"(a|é|🙂)+ b/c".into()), |text| {
            text.strip_suffix(" b/c")
                .is_some_and(|head| !head.is_empty() && head.chars().all(|c| "aé🙂".contains(c)))
        }),
        (GrammarSpec::Lark(SUM.into()), is_sum),
        (
            GrammarSpec::Choice(
                ["yes", "no", "\"no\" / maybe\n", " b"]
                    .map(String::from)
                    .to_vec(),
            ),
            |text| ["yes", "no", "\"no\" / maybe\n", " b"].contains(&text),
        ),
    ]
}

/// Samples allowed tokens uniformly, and ends half the time if the end is allowed; returns the text if it ended.
fn walk(tokenizer: &Tokenizer, grammar: &Grammar, seed: u64, most: usize) -> Option<String> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut matcher = grammar.matcher();
    let mut ids = Vec::new();
    for _ in 0..most {
        let allowed: Vec<u32> = (0..grammar.vocab_size() as u32)
            .filter(|&id| matcher.allowed().allows(id))
            .collect();
        assert_eq!(allowed.is_empty(), !matcher.allowed().has_tokens());
        assert!(allowed.iter().all(|&id| !tokenizer.is_control(id)));
        if matcher.is_complete() || matcher.allowed().may_end() && rng.random_bool(0.5) {
            return Some(tokenizer.decode(&ids, true).unwrap());
        }
        let id = allowed[rng.random_range(0..allowed.len())];
        matcher.accept(id).unwrap();
        ids.push(id);
    }
    None
}

#[test]
fn whatever_is_allowed_comes_to_what_was_asked_for() {
    for tokenizer in tokenizers() {
        let env = env(&tokenizer);
        for (spec, check) in specs() {
            let grammar = env.compile(&spec).unwrap();
            let texts: Vec<String> = (0..20)
                .filter_map(|seed| walk(&tokenizer, &grammar, seed, 400))
                .collect();
            assert!(texts.len() >= 3, "{spec:?} in {tokenizer:?}: {texts:?}");
            for text in texts {
                assert!(check(&text), "{text:?} for {spec:?} in {tokenizer:?}");
            }
        }
    }
}

#[test]
fn every_way_to_write_a_text_is_allowed() {
    let text = r#"{"name":"é 🙂","age":42,"tags":["x"]}"#;
    for tokenizer in tokenizers() {
        let grammar = env(&tokenizer)
            .compile(&GrammarSpec::JsonSchema(person()))
            .unwrap();
        let whole = tokenizer.encode_text(text).unwrap();
        let speller = Speller::new(&tokenizer).unwrap();
        let of_one_byte = |byte: u8| {
            let writes = |id: &u32| speller.spell(*id).is_some_and(|s| s.later == [byte]);
            (0..tokenizer.vocab_size() as u32).find(writes).unwrap()
        };
        let in_bytes: Vec<u32> = text.bytes().map(of_one_byte).collect();
        for ids in [whole, in_bytes] {
            let mut matcher = grammar.matcher();
            for (at, &id) in ids.iter().enumerate() {
                assert!(!matcher.allowed().may_end());
                let done = tokenizer.decode(&ids[..at], true);
                matcher
                    .accept(id)
                    .unwrap_or_else(|e| panic!("{e} after {done:?} in {tokenizer:?}"));
            }
            assert!(matcher.allowed().may_end());
        }
    }
}

#[test]
fn the_space_in_front_of_a_text_is_no_part_of_it() {
    let tokenizer = byte_fallback();
    let env = env(&tokenizer);
    let id = |token: &str| tokenizer.token_to_id(token).unwrap();
    let choice = |text: &str| {
        env.compile(&GrammarSpec::Choice(vec![text.into()]))
            .unwrap()
    };
    for first in ["ab", "▁ab"] {
        let mut matcher = choice("ab").matcher();
        matcher.accept(id(first)).unwrap();
        assert!(matcher.is_complete(), "{first}");
    }
    let mut matcher = choice("ab").matcher();
    matcher.accept(id("▁")).unwrap();
    assert!(matcher.allowed().allows(id("ab")) && !matcher.allowed().allows(id("▁ab")));
    let mut matcher = choice(" ab").matcher();
    assert!(!matcher.allowed().allows(id("▁ab")));
    matcher.accept(id("▁")).unwrap();
    matcher.accept(id("▁ab")).unwrap();
    assert!(matcher.is_complete());
    assert_eq!(
        tokenizer.decode(&[id("▁"), id("▁ab")], true).unwrap(),
        " ab"
    );
}

#[test]
fn matchers_of_a_grammar_do_not_meet() {
    let tokenizer = pocket();
    let grammar = env(&tokenizer)
        .compile(&GrammarSpec::Regex("a+b".into()))
        .unwrap();
    let (a, b) = (
        tokenizer.encode_text("a").unwrap()[0],
        tokenizer.encode_text("b").unwrap()[0],
    );
    let (mut one, mut other) = (grammar.matcher(), grammar.matcher());
    one.accept(a).unwrap();
    assert!(one.allowed().allows(b) && !other.allowed().allows(b));
    one.accept(b).unwrap();
    assert!(one.is_complete());
    assert_eq!(other.accept(b), Err(GrammarError::NotAllowed(b)));
    assert_eq!(
        other.accept(u32::MAX),
        Err(GrammarError::NotAllowed(u32::MAX))
    );
    other.accept(a).unwrap();
    assert!(!other.is_complete());
}

#[test]
fn control_tokens_come_only_by_name() {
    let tokenizer = pocket();
    let end = tokenizer.token_to_id("<|end|>").unwrap();
    let grammar = env(&tokenizer)
        .compile(&GrammarSpec::Lark(r#"start: "a" <|end|> "b""#.into()))
        .unwrap();
    let mut matcher = grammar.matcher();
    for text in ["a", "<|end|>", "b"] {
        let id = tokenizer.encode_template(text).unwrap()[0];
        assert_eq!(matcher.allowed().allows(end), id == end);
        matcher.accept(id).unwrap();
    }
    assert!(matcher.is_complete());
}

#[test]
fn masks_of_all_sizes_say_the_same_in_bits_and_in_logits() {
    let tokenizer = pocket();
    for size in [1, 31, 32, 33, 300, 383, 384, 400] {
        let env = GrammarEnv::new(&tokenizer, size).unwrap();
        for regex in ["(.|\n)+", "[a-f]+", "é"] {
            let Ok(grammar) = env.compile(&GrammarSpec::Regex(regex.into())) else {
                continue; // the bytes it needs lie beyond the vocabulary
            };
            let matcher = grammar.matcher();
            let mut logits = vec![1.0; size];
            matcher.allowed().apply(&mut logits);
            for (logit, id) in logits.into_iter().zip(0..) {
                assert_eq!(logit > 0.0, matcher.allowed().allows(id), "{id} of {size}");
            }
            assert!((size as u32..size as u32 + 70).all(|id| !matcher.allowed().allows(id)));
        }
    }
}

#[test]
fn what_cannot_be_compiled_is_refused_with_the_reason() {
    let env = env(&pocket());
    let refused = |spec: &GrammarSpec| env.compile(spec).err();
    let schema = |schema: Value| GrammarSpec::JsonSchema(schema);
    let regex = |regex: &str| GrammarSpec::Regex(regex.into());
    let lark = |grammar: &str| GrammarSpec::Lark(grammar.into());
    for (spec, word) in [
        (schema(json!({"type": "strin"})), "strin"),
        (schema(json!(3)), "schema"),
        (schema(json!({"$ref": "#/nowhere"})), "nowhere"),
        (
            schema(json!({"$ref": "https://example.com/schema"})),
            "example.com",
        ),
        (schema(json!({"type": "string", "pattern": "("})), "regular"),
        (
            schema(json!({"type": "object", "properties": {"a": false}, "required": ["a"]})),
            "nsatisfiable",
        ),
        (
            schema(json!({"type": "integer", "minimum": 3, "maximum": 2})),
            "nsatisfiable",
        ),
        (regex("("), "regular"),
        (regex("a{2,1}"), "regular"),
        (lark("start: missing"), "missing"),
        (lark("begin: \"a\""), "start"),
        (lark("start: \"a"), ""),
    ] {
        match refused(&spec) {
            Some(GrammarError::Invalid(reason)) => {
                assert!(reason.contains(word), "{spec:?}: {reason}")
            }
            other => panic!("{spec:?}: {other:?}"),
        }
    }
    assert_eq!(
        refused(&GrammarSpec::Choice(vec![])),
        Some(GrammarError::NoChoice)
    );
    assert_eq!(
        refused(&GrammarSpec::Choice(vec![String::new()])),
        Some(GrammarError::OnlyEmpty)
    );
    assert_eq!(refused(&regex("")), Some(GrammarError::OnlyEmpty));
    assert!(matches!(
        refused(&regex(&"a".repeat(1 << 20))),
        Some(GrammarError::TooLong { .. })
    ));
    assert!(matches!(
        refused(&lark(&"(".repeat(1000))),
        Some(GrammarError::TooDeep(_))
    ));
    let suffixes = with_decoder(r#"{"type":"BPEDecoder","suffix":"</w>"}"#);
    assert_eq!(
        GrammarEnv::new(&suffixes, 100).err(),
        Some(GrammarError::UnsupportedTokenizer)
    );
}

#[test]
fn hostile_grammars_are_refused_or_followed_within_limits() {
    let env = env(&pocket());
    let chain = |rule: &str| {
        let rules = (0..9000).map(|i| format!("{rule}{i}: {rule}{}\n", i + 1));
        let rules: String = rules.collect();
        GrammarSpec::Lark(format!("start: {rule}0\n{rules}{rule}9000: \"a\""))
    };
    let alternatives = json!({"anyOf": [{"minLength": 1}, {"type": "integer"}, {"maxItems": 3}]});
    let next = |i: usize| json!({"allOf": [{"$ref": format!("#/$defs/d{}", i + 1)}]});
    let mut definitions: serde_json::Map<String, Value> =
        (0..3000).map(|i| (format!("d{i}"), next(i))).collect();
    definitions.insert("d3000".into(), json!({"type": "null"}));
    let product = GrammarSpec::JsonSchema(json!({"allOf": vec![alternatives; 12]}));
    let too_large = GrammarError::Invalid("does not compile: schema too large".into());
    assert_eq!(env.compile(&product).err(), Some(too_large));
    for spec in [
        chain("r"),
        chain("T"),
        GrammarSpec::JsonSchema(json!({"$ref": "#/$defs/d0", "$defs": definitions})),
        GrammarSpec::Regex("(a|b)*a(a|b){40}c".into()),
        GrammarSpec::Regex("((a{1000}){1000}){1000}".into()),
        GrammarSpec::Lark("start: x\nx: x x | \"a\" | x x x".into()),
        GrammarSpec::JsonSchema(json!({"type": "string", "maxLength": 1_000_000})),
        GrammarSpec::JsonSchema(json!({"type": "array", "minItems": 90_000})),
    ] {
        let Ok(grammar) = env.compile(&spec) else {
            continue;
        };
        let mut matcher = grammar.matcher();
        for _ in 0..200 {
            let mut ids = 0..grammar.vocab_size() as u32;
            let Some(id) = ids.find(|&id| matcher.allowed().allows(id)) else {
                break;
            };
            match matcher.accept(id) {
                Ok(()) => {}
                Err(GrammarError::Failed(_)) => break,
                Err(other) => panic!("{other}"),
            }
        }
    }
}

#[test]
#[ignore = "prints what grammars cost"]
fn costs() {
    let dir = shared_data("tokenizers");
    let tokenizer = Tokenizer::from_file(&dir.join("gpt-neox-20b/tokenizer.json")).unwrap();
    let begun = Instant::now();
    let env = env(&tokenizer);
    println!(
        "vocabulary of {}: {:?}",
        tokenizer.vocab_size(),
        begun.elapsed()
    );
    for (spec, _) in specs() {
        let begun = Instant::now();
        let grammar = env.compile(&spec).unwrap();
        let compiling = begun.elapsed();
        let begun = Instant::now();
        drop((0..100).map(|_| grammar.matcher()).collect::<Vec<_>>());
        let cloning = begun.elapsed() / 100;
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let mut times = Vec::new();
        for _ in 0..20 {
            let mut matcher = grammar.matcher();
            for _ in 0..100 {
                let ids = 0..grammar.vocab_size() as u32;
                let ids: Vec<u32> = ids.filter(|&id| matcher.allowed().allows(id)).collect();
                if ids.is_empty() {
                    break;
                }
                let begun = Instant::now();
                matcher.accept(ids[rng.random_range(0..ids.len())]).unwrap();
                times.push(begun.elapsed());
            }
        }
        times.sort();
        let (median, worst) = (times[times.len() / 2], times[times.len() - 1]);
        println!(
            "{spec:?}: compile {compiling:?}, clone {cloning:?}, token {median:?}, at worst {worst:?}"
        );
    }
}
