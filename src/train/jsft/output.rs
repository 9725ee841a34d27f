//! What a finished run leaves: a directory that loads by itself.

use std::fs;
use std::path::Path;

use crate::judge::{JudgeTemplate, TEMPLATE_FILE};
use crate::model::ModelConfig;
use crate::train::TrainError;
use crate::train::checkpoint::write_json;
use crate::train::config::JsftConfig;
use crate::train::trainable::Trainable;

/// Files of a model directory that belong to a trained copy of it.
const COMPANIONS: [&str; 7] = [
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "principles.toml",
    "LICENSE",
];

/// Writes a directory that loads by itself: weights, configuration, tokenizer, templates.
pub(super) fn write_model(
    config: &JsftConfig,
    from: &Path,
    model_config: &ModelConfig,
    trainable: &Trainable,
    dir: &Path,
) -> Result<(), TrainError> {
    fs::create_dir_all(dir).map_err(TrainError::io("cannot create", dir))?;
    trainable.save(dir, config.save_dtype.dtype())?;
    if config.lora.is_some() {
        return Ok(());
    }
    for name in COMPANIONS {
        let source = from.join(name);
        if source.exists() {
            let target = dir.join(name);
            fs::copy(&source, &target).map_err(TrainError::io("cannot write", &target))?;
        }
    }
    if let Some(template) = &config.chat_template {
        let target = dir.join("chat_template.jinja");
        fs::copy(template, &target).map_err(TrainError::io("cannot write", &target))?;
    }
    let mut json = model_config.json.clone();
    json.remove("dtype");
    json.insert("torch_dtype".into(), config.save_dtype.name().into());
    write_json(&dir.join("config.json"), &json)
}

/// The judge's question goes with the weights that were trained on it.
pub(super) fn write_template(template: &JudgeTemplate, dir: &Path) -> Result<(), TrainError> {
    let path = dir.join(TEMPLATE_FILE);
    fs::write(&path, template.to_toml()).map_err(TrainError::io("cannot write", &path))
}
