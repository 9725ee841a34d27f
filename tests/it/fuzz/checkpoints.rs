//! A model's files: each damaged by itself, and the model loaded and asked all the same.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use engine::{EngineConfig, InlineEngine};
use judge::Judge;
use model::{
    LanguageModel, LoadOptions, WeightStore,
    adapter::{self, AdapterWeights, LoraConfig, LoraPair},
};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use serde_json::Value;

use super::{cases, damage, rng};
use crate::support::largest_allocation;

/// More than anything of the default model's size takes at once, with room for what other tests do at the same time.
const MOST_BYTES: usize = 2 << 30;

const FILES: [&str; 7] = [
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "judge_template.toml",
    "principles.toml",
];

fn pocket() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/pocket")
}

/// Loads a model and its judge and asks them something.
fn load_and_ask(dir: &Path, adapter: Option<&Path>) -> Result<(), String> {
    let model = LanguageModel::load(dir, &LoadOptions::default());
    let model = model.map_err(|error| error.to_string())?;
    let weights = WeightStore::with_adapter_dir(model.decoder().clone(), adapter);
    let weights = weights.map_err(|error| error.to_string())?;
    let judge = Judge::from_model_dir(
        dir,
        model.tokenizer().clone(),
        model.chat_template().clone(),
        model.max_context(),
    );
    judge.map_err(|error| error.to_string())?;
    let prompt = model.tokenizer().encode_text("What is 3 plus 4?");
    let prompt = prompt.map_err(|error| error.to_string())?;
    let config = EngineConfig {
        kv_cache_memory: 16 << 20,
        ..EngineConfig::default()
    };
    let mut engine =
        InlineEngine::with_config(weights, &config).map_err(|error| error.to_string())?;
    let read = engine.label_logprobs(&[prompt], [1, 2]);
    read.map(|_| ()).map_err(|error| error.to_string())
}

/// Damages the file, tries, and puts the file back.
pub fn try_damaged(
    path: &Path,
    good: &[u8],
    bad: &[u8],
    what: impl Fn() -> Result<(), String>,
) -> Result<(), String> {
    std::fs::write(path, bad).unwrap();
    let tried = catch_unwind(AssertUnwindSafe(what));
    std::fs::write(path, good).unwrap();
    let shown = || {
        let shown = &bad[..bad.len().min(6000)];
        format!("{}:\n{}", path.display(), String::from_utf8_lossy(shown))
    };
    let tried = tried.unwrap_or_else(|_| panic!("a panic for {}", shown()));
    let largest = largest_allocation();
    assert!(
        largest < MOST_BYTES,
        "an allocation of {largest} bytes for {}",
        shown()
    );
    if let Err(error) = &tried {
        assert!(
            !error.is_empty(),
            "an error without a message for {}",
            shown()
        );
    }
    tried
}

/// Damage to the JSON inside a file, or to its bytes; of weights to the header, where everything is decided.
fn damaged(rng: &mut ChaCha8Rng, name: &str, good: &[u8]) -> Vec<u8> {
    if name.ends_with(".safetensors") {
        let header = 8 + u64::from_le_bytes(good[..8].try_into().unwrap()) as usize;
        let mut bytes = good[..header].to_vec();
        if rng.random_bool(0.5) {
            let mut document: Value = serde_json::from_slice(&good[8..header]).unwrap();
            damage::value(rng, &mut document);
            let text = document.to_string();
            bytes = (text.len() as u64).to_le_bytes().to_vec();
            bytes.extend(text.as_bytes());
        } else {
            damage::bytes(rng, &mut bytes);
        }
        bytes.extend(&good[header..]);
        if rng.random_bool(0.2) {
            bytes.truncate(rng.random_range(0..bytes.len()));
        }
        return bytes;
    }
    if name.ends_with(".json") && rng.random_bool(0.7) {
        let mut document: Value = serde_json::from_slice(good).unwrap();
        damage::value(rng, &mut document);
        return document.to_string().into_bytes();
    }
    let mut bytes = good.to_vec();
    damage::bytes(rng, &mut bytes);
    bytes
}

#[test]
fn damaged_models_are_refused_or_work() {
    let dir = tempfile::tempdir().unwrap();
    for name in FILES {
        std::fs::copy(pocket().join(name), dir.path().join(name)).unwrap();
    }
    load_and_ask(dir.path(), None).unwrap();
    for (part, name) in (100u64..).zip(FILES) {
        let mut rng = rng(part);
        let path = dir.path().join(name);
        let good = std::fs::read(&path).unwrap();
        let mut refused = 0;
        for _ in 0..cases(24) {
            let bad = damaged(&mut rng, name, &good);
            let tried = try_damaged(&path, &good, &bad, || load_and_ask(dir.path(), None));
            refused += usize::from(tried.is_err());
        }
        assert!(refused > 0, "no damage to {name} was detected");
    }
    load_and_ask(dir.path(), None).unwrap();
}

/// An adapter of the default model that changes two layers.
fn write_adapter(dir: &Path) {
    let config = LoraConfig {
        r: 4,
        target_modules: vec!["q_proj".to_owned()],
        ..LoraConfig::default()
    };
    let factor = |shape: (usize, usize)| Tensor::ones(shape, DType::F32, &Device::Cpu).unwrap();
    let mut weights = AdapterWeights::new();
    for layer in 0..2 {
        let pair = LoraPair {
            a: factor((4, 192)),
            b: factor((192, 4)),
        };
        weights.insert(format!("model.layers.{layer}.self_attn.q_proj"), pair);
    }
    adapter::save(dir, &config, &weights).unwrap();
}

#[test]
fn damaged_adapters_are_refused_or_work() {
    let dir = tempfile::tempdir().unwrap();
    write_adapter(dir.path());
    let ask = || load_and_ask(&pocket(), Some(dir.path()));
    ask().unwrap();
    for (part, name) in (200u64..).zip(["adapter_config.json", "adapter_model.safetensors"]) {
        let mut rng = rng(part);
        let path = dir.path().join(name);
        let good = std::fs::read(&path).unwrap();
        let mut refused = 0;
        for _ in 0..cases(60) {
            let bad = damaged(&mut rng, name, &good);
            refused += usize::from(try_damaged(&path, &good, &bad, ask).is_err());
        }
        assert!(refused > 0, "no damage to {name} was detected");
    }
    ask().unwrap();
}
