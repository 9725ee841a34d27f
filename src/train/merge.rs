//! Merging of an adapter into its base: the result is a complete model directory.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use candle_core::{DType, Device, Tensor};

use super::TrainError;
use super::base::Adapter;
use super::identity::check_adapter;
use judge::TEMPLATE_FILE;
use model::{Checkpoint, ModelConfig, weights};

/// The files of a model beside its weights, as they are named on the hub and here.
const COMPANIONS: [&str; 16] = [
    "added_tokens.json",
    "anchors.jsonl",
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "judge_self_test.jsonl",
    "judge_template.toml",
    "merges.txt",
    "principles.toml",
    "special_tokens_map.json",
    "tekken.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
];

/// Beginnings of the names of files with the terms of use, which apply to the merged model too.
const TERMS: [&str; 4] = ["LICENSE", "LICENCE", "NOTICE", "USE_POLICY"];

/// Writes the model of `base` with the adapter added to its weights (`W + scale B A`, in f32, rounded to each weight's stored dtype; a
/// quantised base becomes f32) into the new directory `out`, with the other files of the model: configuration, tokenizer, templates,
/// principles, anchors, terms of use. Whatever else lies in the base's directory is not copied. A judge template that was trained with the
/// adapter replaces the base's. Returns the number of changed layers.
///
/// # Errors
/// If the adapter does not fit the model or names another one, weights cannot be read, or the directory already has files.
pub fn merge(base: &Path, adapter: &Path, out: &Path) -> Result<usize, TrainError> {
    let spec = ModelConfig::from_dir(base)?.spec;
    check_adapter(adapter, base)?;
    let adapter_files = adapter;
    let adapter = Adapter::load(adapter)?;
    adapter.check_fit(&spec)?;
    let checkpoint = Checkpoint::open(base)?.check_finite(true);
    let mut merged = BTreeMap::new();
    for (name, shape) in spec.parameters() {
        let stored = checkpoint.dtype(&name).unwrap_or(DType::F32);
        let path = name.strip_suffix(".weight").unwrap_or(&name);
        let pair = adapter.weights.get(path);
        let read = pair.map_or(stored, |_| DType::F32);
        let mut tensor = checkpoint.tensor(&name, shape, read, &Device::Cpu)?;
        if let Some(pair) = pair {
            let factor = |tensor: &Tensor| tensor.to_dtype(DType::F32);
            let update = factor(&pair.b)?.matmul(&factor(&pair.a)?)?;
            let sum = (tensor + (update * adapter.config.scale(path))?)?;
            tensor = sum.to_dtype(stored)?;
        }
        merged.insert(name, tensor);
    }
    checkpoint.refuse_unread(spec.tie_word_embeddings)?;

    fs::create_dir_all(out).map_err(TrainError::io("cannot create", out))?;
    let mut there = fs::read_dir(out).map_err(TrainError::io("cannot read", out))?;
    if there.next().is_some() {
        return Err(TrainError::Config(format!(
            "{} is not empty: choose a new directory",
            out.display()
        )));
    }
    copy_companions(base, out)?;
    let trained = adapter_files.join(TEMPLATE_FILE);
    if trained.exists() {
        copy(&trained, &out.join(TEMPLATE_FILE))?;
    }
    // Weights come last: an incomplete directory then does not load.
    weights::save(out, &merged, None)?;
    Ok(adapter.weights.len())
}

/// Copies the files of a model directory that belong to the model and hold no weights.
fn copy_companions(from: &Path, to: &Path) -> Result<(), TrainError> {
    let listed = fs::read_dir(from).map_err(TrainError::io("cannot read", from))?;
    for entry in listed {
        let entry = entry.map_err(TrainError::io("cannot read", from))?;
        let name = entry.file_name();
        let text = name.to_string_lossy();
        let path = entry.path();
        let terms = || text.to_ascii_uppercase();
        let is_models = COMPANIONS.contains(&&*text)
            || TERMS.iter().any(|beginning| terms().starts_with(beginning));
        if is_models && path.is_file() {
            copy(&path, &to.join(&name))?;
        }
    }
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Result<(), TrainError> {
    fs::copy(from, to)
        .map(drop)
        .map_err(TrainError::io("cannot write", to))
}
