//! The commands over a GGUF file: serving, training, merging.

use std::path::Path;

use candle_core::Device;
use model::{LanguageModel, LoadOptions, ModelConfig, WeightStore, hub};
use serde_json::{Value, json};
use train::{
    BaseWeights, RunOptions,
    base::{Adapter, FrozenBase},
    digest::weights_digest,
    dpo::run::{DpoRunConfig, PairFile, run},
    merge::merge,
};

use crate::parity::{dense, difference};
use crate::patience::client;
use crate::process::Server;
use crate::support::{data, inline};

fn file() -> String {
    let path = data("gguf").join("qwen3.gguf");
    path.to_str().unwrap().to_owned()
}

/// Writes the file with a context in which a judge's question fits, and returns its path.
fn longer(root: &Path) -> String {
    let mut bytes = std::fs::read(file()).unwrap();
    let key = b"qwen3.context_length";
    let at = bytes.windows(key.len()).position(|window| window == key);
    // Behind the key are the type and the value, four bytes each.
    let value = at.unwrap() + key.len() + 4;
    bytes[value..value + 4].copy_from_slice(&2048_u32.to_le_bytes());
    let path = root.join("longer.gguf");
    std::fs::write(&path, bytes).unwrap();
    path.to_str().unwrap().to_owned()
}

fn options() -> RunOptions {
    RunOptions {
        device: Device::Cpu,
        threads: 2,
        quiet: true,
        resume: false,
        stop_after: None,
        memory_check: true,
    }
}

/// Pairs of texts that the small vocabulary has.
fn pairs(root: &Path) -> PairFile {
    let path = root.join("pairs.jsonl");
    let line = |n: u8| {
        let letter = char::from(b'a' + n);
        let message = |role: &str, text: String| json!([{"role": role, "content": text}]);
        json!({
            "prompt": message("user", format!("{letter}+1")),
            "chosen": message("assistant", format!("{letter}1")),
            "rejected": message("assistant", format!("b{letter}")),
        })
    };
    let lines: Vec<String> = (0..8).map(|n| line(n).to_string()).collect();
    std::fs::write(&path, lines.join("\n")).unwrap();
    PairFile {
        path,
        format: Default::default(),
    }
}

#[test]
fn an_adapter_is_trained_served_and_merged() {
    let root = tempfile::tempdir().unwrap();
    let file = longer(root.path());
    let mut config = DpoRunConfig {
        model: file.clone(),
        output_dir: root.path().join("run"),
        batch_size: 4,
        max_length: 64,
        max_steps: Some(2),
        data: vec![pairs(root.path())],
        ..DpoRunConfig::default()
    };
    config.dpo.lora.r = 2;
    config.dpo.schedule.learning_rate = 1e-2;
    let adapter = run(&config, &options()).unwrap().adapter_dir.unwrap();

    let base = hub::resolve(&file).unwrap();
    let out = root.path().join("merged");
    assert!(merge(base.path(), &adapter, &out).unwrap() > 0);
    let load = |dir: &Path| LanguageModel::load(dir, &LoadOptions::default()).unwrap();
    let (base, merged) = (load(base.path()), load(&out));
    let read = |weights: &WeightStore| {
        let read = inline(weights).label_logprobs(&[vec![1, 40, 50, 2]], [40, 41]);
        read.unwrap()[0]
    };
    let bare = read(&WeightStore::new(base.decoder().clone()));
    let adapted = WeightStore::with_adapter_dir(base.decoder().clone(), Some(&adapter)).unwrap();
    let (adapted, merged) = (
        read(&adapted),
        read(&WeightStore::new(merged.decoder().clone())),
    );
    assert_ne!(format!("{adapted:?}"), format!("{bare:?}"));
    for (own, other) in adapted.iter().zip(&merged) {
        // The merged weights are rounded to the file's bf16.
        assert!((own - other).abs() < 0.05, "{adapted:?} {merged:?}");
    }

    let server = Server::start(&["--model", &file, "--adapter", adapter.to_str().unwrap()]);
    let models: Value = client()
        .get(server.url("/v1/models"))
        .send()
        .unwrap()
        .json()
        .unwrap();
    assert_eq!(models["data"][0]["id"], "longer.gguf");
    assert_eq!(models["data"][0]["max_model_len"], 2048);
    let call = json!({"messages": [{"role": "user", "content": "ab"}], "temperature": 0, "max_tokens": 3, "ignore_eos": true});
    let answer = client()
        .post(server.url("/generate"))
        .json(&call)
        .send()
        .unwrap();
    let answer: Value = answer.json().unwrap();
    assert_eq!(
        answer["outputs"][0]["token_ids"].as_array().unwrap().len(),
        3,
        "{answer}"
    );
    assert_eq!(answer["usage"]["prompt_tokens"], 3, "{answer}");
}

#[test]
fn an_adapter_is_trained_over_the_integers_of_a_file() {
    let root = tempfile::tempdir().unwrap();
    let path = data("gguf").join("llama_bias_quantised.gguf");
    let mut config = DpoRunConfig {
        model: path.to_str().unwrap().to_owned(),
        output_dir: root.path().join("run"),
        batch_size: 4,
        max_length: 64,
        max_steps: Some(30),
        log_every: 1,
        data: vec![pairs(root.path())],
        ..DpoRunConfig::default()
    };
    config.dpo.lora.r = 4;
    config.dpo.schedule.learning_rate = 1e-2;
    let summary = run(&config, &options()).unwrap();
    let last = summary.last.expect("there are metrics");
    assert!(last.loss < 0.5, "{last:?}");

    // The base is never in f32 as a whole, and computes what its dequantised copy does.
    let file = hub::resolve(&config.model).unwrap();
    let base = |weights| FrozenBase::load_in(file.path(), weights, &Device::Cpu).unwrap();
    let (own, wide) = (base(BaseWeights::Auto), base(BaseWeights::F32));
    let decoder = |base: &FrozenBase| base.decoder(None).unwrap();
    assert!(decoder(&own).bytes() * 3 < decoder(&wide).bytes());
    let path = "model.layers.0.self_attn.q_proj";
    let (a, b) = (own.norm(path).unwrap(), wide.norm(path).unwrap());
    assert!((a - b).abs() < 1e-6 * b, "{a} {b}");
    let ids: &[u32] = &[1, 40, 50, 60, 3, 79, 7];
    let d = difference(
        &dense(&decoder(&own), &[ids]),
        &dense(&decoder(&wide), &[ids]),
    );
    assert!(d < 1e-4, "{d}");

    // The adapter serves over the same integers.
    let model = LanguageModel::load(file.path(), &LoadOptions::default()).unwrap();
    assert_eq!(model.decoder().weights(), "f32+int4+int8");
    let adapter = summary.adapter_dir.expect("the run is complete");
    let served = WeightStore::with_adapter_dir(model.decoder().clone(), Some(&adapter)).unwrap();
    let prompts = [ids.to_vec()];
    let served = inline(&served).label_logprobs(&prompts, [40, 41]).unwrap()[0];
    let trained = own
        .decoder(Some(&Adapter::load(&adapter).unwrap()))
        .unwrap();
    let logits = dense(&trained, &[ids]);
    let last: Vec<f32> = logits
        .narrow(0, ids.len() - 1, 1)
        .unwrap()
        .squeeze(0)
        .unwrap()
        .to_vec1()
        .unwrap();
    let sum: f32 = last.iter().map(|z| z.exp()).sum();
    for (served, label) in served.iter().zip([40, 41]) {
        let want = last[label] - sum.ln();
        assert!((served - want).abs() < 0.1, "{served} for {want}");
    }
}

#[test]
fn quantised_weights_are_not_trained_themselves() {
    let root = tempfile::tempdir().unwrap();
    let mut config = train::config::JsftConfig {
        model: file(),
        output_dir: root.path().join("run"),
        weights: BaseWeights::Int8,
        data: vec![train::config::DataFile::new(pairs(root.path()).path)],
        ..train::config::JsftConfig::default()
    };
    let error = config.validate().unwrap_err().to_string();
    assert!(error.contains("int8") && error.contains("lora"), "{error}");
    config.lora = Some(Default::default());
    config.validate().unwrap();
}

#[test]
fn the_base_of_a_generation_is_the_file() {
    let [one, other] = ["qwen3.gguf", "llama3.gguf"].map(|name| {
        let dir = hub::resolve(data("gguf").join(name).to_str().unwrap()).unwrap();
        weights_digest(dir.path()).unwrap()
    });
    assert_ne!(one, other);
    let again = hub::resolve(&file()).unwrap();
    assert_eq!(weights_digest(again.path()).unwrap(), one);
}

#[test]
fn weights_in_bf16_take_half_the_memory() {
    let path = data("gguf").join("llama_bias.gguf");
    let dir = hub::resolve(path.to_str().unwrap()).unwrap();
    let bytes = |format: &str| {
        let options = LoadOptions {
            format: Some(format.parse().unwrap()),
            ..LoadOptions::default()
        };
        let model = LanguageModel::load(dir.path(), &options).unwrap();
        model.decoder().bytes()
    };
    let (wide, narrow) = (bytes("f32"), bytes("bf16"));
    assert!(narrow * 10 < wide * 6, "{narrow} of {wide} bytes");
    let parameters = ModelConfig::from_dir(dir.path())
        .unwrap()
        .spec
        .num_parameters();
    assert!(wide >= parameters * 3, "{wide} bytes of {parameters}");
}
