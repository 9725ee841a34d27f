//! SmolLM2-135M-Instruct in a GGUF file of Q4_1 and Q8_0: its tokens beside llama.cpp's, its answers beside transformers'.

use std::path::PathBuf;

use engine::{EngineConfig, InlineEngine, SamplingParams};
use kernels::linear::WeightFormat;
use model::{LanguageModel, LoadOptions, WeightStore, hub};
use serde_json::Value;

use crate::support::data;
use text::{Message, RenderOptions, Role};

pub fn file() -> PathBuf {
    let path = std::env::var_os("SELFJUDGE_SMOLLM2");
    PathBuf::from(path.expect("SELFJUDGE_SMOLLM2 names the file"))
}

fn load(format: Option<WeightFormat>) -> LanguageModel {
    let dir = hub::resolve(file().to_str().unwrap()).unwrap();
    let options = LoadOptions {
        format,
        ..LoadOptions::default()
    };
    LanguageModel::load(dir.path(), &options).unwrap()
}

fn engine(model: &LanguageModel) -> InlineEngine {
    let config = EngineConfig {
        max_model_len: Some(256),
        kv_cache_memory: 64 << 20,
        ..EngineConfig::default()
    };
    let weights = WeightStore::new(model.decoder().clone());
    InlineEngine::with_config(weights, &config).unwrap()
}

fn golden(name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(data("gguf").join(name)).unwrap()).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    serde_json::from_value(value.clone()).unwrap()
}

#[test]
#[cfg_attr(
    not(has_smollm2),
    ignore = "needs SmolLM2 in a GGUF file: SELFJUDGE_REQUIRE=smollm2"
)]
fn greedy_answers_are_those_of_transformers() {
    let model = load(Some(WeightFormat::F32));
    let mut engine = engine(&model);
    let golden = golden("smollm2.json");
    let answers = golden["answers"].as_array().unwrap();
    assert_eq!(answers.len(), 5);
    for answer in answers {
        let question = answer["question"].as_str().unwrap();
        let turns = [Message::new(Role::User, question)];
        let rendered = model
            .chat_template()
            .render(&turns, &RenderOptions::for_generation());
        let rendered = rendered.unwrap();
        assert_eq!(rendered.text, answer["prompt"].as_str().unwrap());
        let prompt = model.tokenizer().encode_rendered(&rendered).unwrap().ids;
        assert_eq!(prompt, ids(&answer["prompt_ids"]), "{question}");
        let params = SamplingParams {
            temperature: 0.0,
            ..SamplingParams::new(64, Vec::new())
        };
        let own = engine.complete(&[prompt], &params).unwrap().remove(0).ids;
        assert_eq!(own, ids(&answer["ids"]), "{question}");
        let text = model.tokenizer().decode(&own, false).unwrap();
        assert_eq!(text, answer["text"].as_str().unwrap());
    }
}

#[test]
#[cfg_attr(
    not(has_smollm2),
    ignore = "needs SmolLM2 in a GGUF file: SELFJUDGE_REQUIRE=smollm2"
)]
fn its_own_integers_find_the_same_tokens_the_most_probable() {
    let golden = golden("smollm2.json");
    let answers = golden["answers"].as_array().unwrap();
    let whole = |answer: &Value| [ids(&answer["prompt_ids"]), ids(&answer["ids"])].concat();
    let texts: Vec<Vec<u32>> = answers.iter().map(whole).collect();
    let model = load(None);
    assert_eq!(model.decoder().weights(), "int4+int8");
    // About the size of the file.
    let size = std::fs::metadata(file()).unwrap().len() as usize;
    let bytes = model.decoder().bytes();
    assert!(
        bytes < size + size / 20,
        "{bytes} bytes for a file of {size}"
    );
    let mut engine = engine(&model);
    let (mut equal, mut all) = (0, 0);
    for (answer, scores) in answers
        .iter()
        .zip(engine.prompt_logprobs(&texts, 1).unwrap())
    {
        let first = ids(&answer["prompt_ids"]).len();
        for (id, score) in ids(&answer["ids"]).iter().zip(&scores[first - 1..]) {
            equal += usize::from(score.logprobs.top[0].0 == *id);
            all += 1;
        }
    }
    assert!(all >= 200 && equal * 100 >= all * 97, "{equal} of {all}");
}

#[test]
#[cfg_attr(
    not(has_smollm2),
    ignore = "needs SmolLM2 in a GGUF file: SELFJUDGE_REQUIRE=smollm2"
)]
fn tokens_are_those_of_llama_cpp() {
    let model = load(Some(WeightFormat::Bf16));
    assert_eq!(model.stop_ids(), [2]);
    assert_eq!(model.max_context(), 8192);
    let golden = golden("tokens.json");
    let texts = golden["texts"].as_array().unwrap();
    let expected = golden["ids"]["smollm2"].as_array().unwrap();
    assert!(texts.len() >= 300 && texts.len() == expected.len());
    for (text, expected) in texts.iter().zip(expected) {
        let text = text.as_str().unwrap();
        let own = model.tokenizer().encode_template(text).unwrap();
        assert_eq!(own, ids(expected), "{text:?}");
    }
}
