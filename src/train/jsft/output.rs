//! The output of a finished run: a complete model directory.

use std::fs;
use std::path::Path;

use serde_json::{Map, Value, json};

use crate::TrainError;
use crate::checkpoint::write_json;
use crate::config::JsftConfig;
use crate::identity::Digested;
use crate::trainable::Trainable;
use judge::{JudgeTemplate, TEMPLATE_FILE};
use model::ModelConfig;
use text::{ChatTemplate, SpecialTokens, TextError, Tokenizer, turn_end};

/// Files of a model directory to copy beside the trained weights.
const COMPANIONS: [&str; 7] = [
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "principles.toml",
    "LICENSE",
];

/// Writes a complete model directory: weights, configuration, tokenizer, templates.
pub(super) fn write_model(
    config: &JsftConfig,
    base: &Digested<'_>,
    model_config: &ModelConfig,
    trainable: &Trainable,
    dir: &Path,
) -> Result<(), TrainError> {
    fs::create_dir_all(dir).map_err(TrainError::io("cannot create", dir))?;
    trainable.save(dir, config.save_dtype.dtype())?;
    if config.lora.is_some() {
        return base.identity(trainable.decoder.weights())?.write(dir);
    }
    let from = base.dir();
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
        write_ends(template, model_config, dir)?;
    }
    let mut json = model_config.json.clone();
    json.remove("dtype");
    json.insert("torch_dtype".into(), config.save_dtype.name().into());
    write_json(&dir.join("config.json"), &json)
}

/// Updates the configuration beside the run's own chat template, so that every program that reads it finds the right end of an answer:
/// the tokenizer's `eos_token` is the template's end-of-turn token, `generation_config.json` lists it first, and no other template
/// remains.
fn write_ends(template: &Path, model: &ModelConfig, dir: &Path) -> Result<(), TrainError> {
    let data = |error: TextError| TrainError::Data(error.to_string());
    let path = dir.join("tokenizer_config.json");
    let mut tokenizer_config = read_object(&path)?;
    tokenizer_config.remove("chat_template");
    let tokenizer = Tokenizer::from_file(&dir.join("tokenizer.json")).map_err(data)?;
    let source = fs::read_to_string(template).map_err(TrainError::io("cannot read", template))?;
    let special = SpecialTokens::from_model_dir(dir).map_err(data)?;
    let chat = ChatTemplate::from_source(&source, special).map_err(data)?;
    let end = turn_end(&chat, &tokenizer);
    if let Some((id, token)) = end.and_then(|id| Some((id, tokenizer.id_to_token(id)?))) {
        tokenizer_config.insert("eos_token".into(), token.into());
        let path = dir.join("generation_config.json");
        let mut generation = read_object(&path)?;
        let mut ids = vec![id];
        ids.extend(model.eos_token_ids.iter().filter(|other| **other != id));
        generation.insert("eos_token_id".into(), json!(ids));
        write_json(&path, &generation)?;
    }
    if path.exists() || !tokenizer_config.is_empty() {
        write_json(&path, &tokenizer_config)?;
    }
    Ok(())
}

/// Returns the object in a JSON file; an empty one if there is no file.
fn read_object(path: &Path) -> Result<Map<String, Value>, TrainError> {
    if !path.exists() {
        return Ok(Map::new());
    }
    let text = fs::read_to_string(path).map_err(TrainError::io("cannot read", path))?;
    serde_json::from_str(&text).map_err(|error| TrainError::bad_file(path, error))
}

/// Writes the judge template beside the weights that were trained with it.
pub(super) fn write_template(template: &JudgeTemplate, dir: &Path) -> Result<(), TrainError> {
    let path = dir.join(TEMPLATE_FILE);
    fs::write(&path, template.to_toml()).map_err(TrainError::io("cannot write", &path))
}
