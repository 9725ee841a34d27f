//! GGUF files with a damaged header: refused with a word, or loaded and asked all the same.

use std::path::Path;

use engine::{EngineConfig, InlineEngine};
use model::{LanguageModel, LoadOptions, WeightStore, hub};
use rand::RngExt;

use super::checkpoints::try_damaged;
use super::{cases, damage, rng};
use crate::support::data;

/// Bytes at the start of the files that hold metadata and table; the rest are weights.
const HEADER: usize = 2600;

fn load_and_ask(path: &Path) -> Result<(), String> {
    let dir = hub::resolve(path.to_str().unwrap()).map_err(|error| error.to_string())?;
    let model = LanguageModel::load(dir.path(), &LoadOptions::default());
    let model = model.map_err(|error| error.to_string())?;
    let prompt = model.tokenizer().encode_template("<s>ab!</s>");
    let prompt = prompt.map_err(|error| error.to_string())?;
    let config = EngineConfig {
        kv_cache_memory: 16 << 20,
        ..EngineConfig::default()
    };
    let weights = WeightStore::new(model.decoder().clone());
    let mut engine =
        InlineEngine::with_config(weights, &config).map_err(|error| error.to_string())?;
    let read = engine.label_logprobs(&[prompt], [1, 2]);
    read.map(|_| ()).map_err(|error| error.to_string())
}

#[test]
fn damaged_gguf_files_are_refused_or_work() {
    let dir = tempfile::tempdir().unwrap();
    for (part, name) in (300u64..).zip(["qwen3.gguf", "llama3.gguf"]) {
        let path = dir.path().join(name);
        std::fs::copy(data("gguf").join(name), &path).unwrap();
        load_and_ask(&path).unwrap();
        let mut rng = rng(part);
        let good = std::fs::read(&path).unwrap();
        let mut refused = 0;
        for _ in 0..cases(400) {
            let mut bad = good[..HEADER].to_vec();
            match rng.random_bool(0.5) {
                true => damage::bytes(&mut rng, &mut bad),
                // A count, a length or a type that is another one.
                false => {
                    let at = rng.random_range(0..HEADER - 8);
                    let odd = [0, 1, 4, 9, 255, 1 << 16, 1 << 31, 1 << 40, u64::MAX];
                    let odd: u64 = odd[rng.random_range(0..odd.len())];
                    let width = [1, 4, 8][rng.random_range(0..3)];
                    bad[at..at + width].copy_from_slice(&odd.to_le_bytes()[..width]);
                }
            }
            bad.extend(&good[HEADER..]);
            if rng.random_bool(0.1) {
                bad.truncate(rng.random_range(0..bad.len()));
            }
            let tried = try_damaged(&path, &good, &bad, || load_and_ask(&path));
            refused += usize::from(tried.is_err());
        }
        assert!(refused > 0, "no damage to {name} was noticed");
        load_and_ask(&path).unwrap();
    }
}
