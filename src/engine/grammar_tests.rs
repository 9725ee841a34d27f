//! Generation with a grammar: every sample matches, with any sampling parameters and any concurrent requests.

use std::path::Path;

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

use super::tests::{Heard, listen, memory, pocket, requests, small, start};
use super::*;
use text::{Grammar, GrammarEnv, GrammarError, GrammarSpec, Tokenizer};

/// `<|end|>` of the pocket model.
const END: u32 = 383;
const VOCAB: usize = 384;

fn tokenizer() -> Tokenizer {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models");
    Tokenizer::from_file(&models.join("pocket/tokenizer.json")).unwrap()
}

fn compile(spec: GrammarSpec) -> Grammar {
    let env = GrammarEnv::new(&tokenizer(), VOCAB).unwrap();
    env.compile(&spec).unwrap()
}

fn regex(regex: &str) -> Grammar {
    compile(GrammarSpec::Regex(regex.into()))
}

fn answer() -> Grammar {
    compile(GrammarSpec::JsonSchema(json!({
        "type": "object",
        "properties": {
            "sum": {"type": "integer", "minimum": 0, "maximum": 99},
            "note": {"type": "string", "maxLength": 6},
        },
        "required": ["sum", "note"],
        "additionalProperties": false,
    })))
}

fn is_answer(text: &str) -> bool {
    serde_json::from_str(text).is_ok_and(|value: Value| {
        value.as_object().is_some_and(|object| object.len() == 2)
            && value["sum"].as_u64().is_some_and(|sum| sum < 100)
            && value["note"]
                .as_str()
                .is_some_and(|note| note.chars().count() <= 6)
    })
}

fn asking(grammar: Grammar, max_tokens: usize, seed: u64) -> GenerateRequest {
    let prompt = tokenizer().encode_template("<|user|>What is 34 plus 28?<|assistant|>");
    let mut params = SamplingParams::new(max_tokens, vec![END]);
    params.seed = Some(seed);
    GenerateRequest {
        grammar: Some(grammar),
        ..GenerateRequest::new(prompt.unwrap(), params)
    }
}

fn run(engine: &Engine, request: &GenerateRequest) -> Vec<Heard> {
    let mut stream = engine.submit(request.clone()).unwrap();
    let (heard, failure) = listen(&mut stream, request.samples);
    assert_eq!(failure, None);
    heard
}

/// Returns a sample's text, without its stop token.
fn text(heard: &Heard) -> String {
    let ids = match heard.finished {
        Some(FinishReason::Stop) => &heard.ids[..heard.ids.len() - 1],
        _ => &heard.ids,
    };
    tokenizer().decode(ids, true).unwrap()
}

#[test]
fn samples_of_any_seed_match() {
    let (engine, _thread) = start(&pocket(), &small());
    let number = regex("-?(0|[1-9][0-9]{0,3})( é🙂)?");
    for seed in 0..6 {
        let mut request = asking(answer(), 300, seed);
        request.samples = 3;
        let heard = run(&engine, &request);
        for sample in &heard {
            assert!(is_answer(&text(sample)), "{}", text(sample));
            assert_ne!(sample.finished, Some(FinishReason::Length));
        }
        assert_ne!(heard[0], heard[1], "each sample goes its own way");

        let mut request = asking(number.clone(), 40, seed);
        request.params.temperature = [0.0, 1.0, 3.0][seed as usize % 3];
        let text = text(&run(&engine, &request)[0]);
        let digits = text.strip_suffix(" é🙂").unwrap_or(&text);
        assert!(
            digits.parse::<i32>().is_ok_and(|n| n.abs() < 10_000),
            "{text}"
        );
    }
}

#[test]
fn a_grammar_holds_in_any_mix_and_with_the_same_bits() {
    let decoder = pocket();
    let mut rng = ChaCha8Rng::seed_from_u64(4);
    let mut requests = requests(&mut rng, 18);
    for (at, request) in requests
        .iter_mut()
        .enumerate()
        .filter(|(at, _)| at % 3 != 0)
    {
        request.grammar = Some([answer(), regex("(ab|[0-9])+ x?")][at % 2].clone());
        request.params.stop.max_tokens += 10;
    }
    let (engine, _thread) = start(&decoder, &small());
    let alone: Vec<Vec<Heard>> = requests.iter().map(|r| run(&engine, r)).collect();
    let config = EngineConfig {
        kv_cache_memory: memory(&decoder, 600),
        block_size: 7,
        max_batch_tokens: 40,
        max_concurrent: 16,
        ..small()
    };
    let (engine, _thread) = start(&decoder, &config);
    let streams: Vec<_> = requests
        .iter()
        .map(|r| engine.submit(r.clone()).unwrap())
        .collect();
    for ((mut stream, request), alone) in streams.into_iter().zip(&requests).zip(&alone) {
        assert_eq!(&listen(&mut stream, request.samples).0, alone);
    }
}

#[test]
fn a_sample_ends_where_its_grammar_does() {
    let (engine, _thread) = start(&pocket(), &small());
    let ended = |grammar: &Grammar, change: fn(&mut SamplingParams)| {
        let mut request = asking(grammar.clone(), 20, 1);
        request.params.temperature = 0.0;
        change(&mut request.params);
        let heard = run(&engine, &request).remove(0);
        (
            text(&heard),
            heard.finished.unwrap(),
            heard.ids.last() == Some(&END),
        )
    };
    let fixed = regex("abc");
    let complete = ("abc".to_owned(), FinishReason::Complete, false);
    assert_eq!(ended(&fixed, |_| {}), complete);
    assert_eq!(
        ended(&fixed, |p| p.stop.stop_ids = StopIds::default()),
        complete
    );
    assert_eq!(ended(&fixed, |p| p.stop.min_tokens = 20), complete);
    assert_eq!(
        ended(&fixed, |p| p.stop.max_tokens = 3).1,
        FinishReason::Complete
    );
    assert_eq!(
        ended(&fixed, |p| p.stop.max_tokens = 2).1,
        FinishReason::Length
    );

    // A match that could continue ends with an end token when the sampling parameters favour that token.
    let open = regex("a+");
    let eager: fn(&mut SamplingParams) = |p| p.logit_bias = vec![(END, 100.0)];
    assert_eq!(ended(&open, eager), ("a".into(), FinishReason::Stop, true));
    let (text, finish, _) = ended(&open, |p| {
        p.logit_bias = vec![(END, 100.0)];
        p.stop.min_tokens = 7;
    });
    assert_eq!((text, finish), ("a".repeat(7), FinishReason::Stop));
    let (text, finish, _) = ended(&open, |p| p.stop.stop_ids = StopIds::default());
    assert_eq!((text, finish), ("a".repeat(20), FinishReason::Length));
}

#[test]
fn nothing_else_that_is_asked_lets_a_grammar_slip() {
    let (engine, _thread) = start(&pocket(), &small());
    let ids = |text: &str| tokenizer().encode_text(text).unwrap();
    let (a, b, c) = (ids("a")[0], ids("b")[0], ids("c")[0]);
    let mut request = asking(regex("[ab]{12}"), 20, 3);
    request.params.logit_bias = vec![(a, -100.0), (b, -100.0), (c, 100.0), (END, 100.0)];
    request.params.repetition_penalty = 1.5;
    request.params.presence_penalty = 2.0;
    request.params.top_k = 1;
    request.params.logprobs = Some(1);
    let heard = run(&engine, &request).remove(0);
    let got = text(&heard);
    assert!(
        got.len() == 12 && got.bytes().all(|byte| b"ab".contains(&byte)),
        "{got}"
    );
    // Log-probabilities are those of the model's own distribution: a token that the grammar forces is rarely certain.
    assert!(heard.bits.iter().any(|&bits| f32::from_bits(bits) < -1.0));

    // A stop id that is also a token of the text ends the text once it matches, and does not occur before.
    let mut request = asking(regex("ab(cb)*"), 20, 3);
    request.params.stop.stop_ids = vec![b].into();
    let error = {
        let mut stream = engine.submit(request.clone()).unwrap();
        listen(&mut stream, 1).1
    };
    assert_eq!(
        error,
        Some(GrammarError::DeadEnd.into()),
        "b may not come as text"
    );
    request.grammar = Some(regex("a(bc?)?"));
    let heard = run(&engine, &request).remove(0);
    assert_eq!(
        (heard.ids.as_slice(), heard.finished),
        (&[a, b][..], Some(FinishReason::Stop))
    );
}

#[test]
fn one_that_cannot_go_on_fails_alone() {
    let (engine, _thread) = start(&pocket(), &small());
    let mut stuck = asking(regex("abc"), 20, 0);
    stuck.samples = 2;
    stuck.params.stop.stop_ids = (0..VOCAB as u32).collect();
    let fine = asking(answer(), 200, 0);
    let mut streams = [&stuck, &fine].map(|r| engine.submit(r.clone()).unwrap());
    let failure = listen(&mut streams[0], 2).1;
    assert_eq!(
        failure,
        Some(RequestFailure::Grammar(GrammarError::DeadEnd))
    );
    let (heard, failure) = listen(&mut streams[1], 1);
    assert!(failure.is_none() && is_answer(&text(&heard[0])));

    let env = GrammarEnv::new(&tokenizer(), VOCAB + 1).unwrap();
    let foreign = env.compile(&GrammarSpec::JsonObject).unwrap();
    let refused = engine.submit(asking(foreign, 20, 0)).unwrap_err();
    assert!(matches!(
        refused,
        SubmitError::Invalid(InvalidParameter {
            name: "grammar",
            ..
        })
    ));
}
