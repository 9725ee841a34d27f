//! The directory of a GGUF file's model: what its metadata describes as the files of Hugging Face layout, beside a link to the weights.

use std::path::Path;

use serde_json::{Map, Value};
use tempfile::TempDir;

use super::GgufFile;
use super::config::{config, generation_config};
use super::vocabulary::{tokenizer_config, vocabulary};
use crate::ModelConfig;
use crate::error::ModelError;
use crate::weights::GGUF_FILE;

/// The most characters of the file's name in the directory's.
const NAME_CHARACTERS: usize = 60;

/// Writes the configuration, tokenizer and chat template of a GGUF file into a temporary directory, with a link to the file; the weights
/// are not copied. The directory is deleted when the result is dropped.
///
/// # Errors
/// Errors if the file is damaged, its model or tokenizer is not supported, or the directory cannot be written.
pub fn unpack(path: &Path) -> Result<TempDir, ModelError> {
    let file = GgufFile::open(path)?;
    let (config, generation) = (config(&file)?, generation_config(&file)?);
    let vocabulary = vocabulary(&file)?;
    let parsed = ModelConfig::of_gguf(path, config.clone(), generation.clone())?;
    if vocabulary.tokens.len() > parsed.spec.vocab_size {
        return Err(file.error(format!(
            "the tokenizer has {} tokens, but the embedding has {} rows",
            vocabulary.tokens.len(),
            parsed.spec.vocab_size
        )));
    }
    let tokenizer = vocabulary.tokenizer_json();
    let tokenizer = tokenizer.map_err(|message| file.error(message))?;
    let tokenizer_config = tokenizer_config(&file, &vocabulary)?;

    let io = |path: &Path| {
        let path = path.to_owned();
        move |source| ModelError::Io { path, source }
    };
    let whole = path.canonicalize().map_err(io(path))?;
    // The name stands in the messages about a file of the directory.
    let name = whole.file_name().unwrap_or_default().to_string_lossy();
    let name: String = name.chars().take(NAME_CHARACTERS).collect();
    let dir = tempfile::Builder::new()
        .prefix(&format!("{name}."))
        .tempdir()
        .map_err(io(&std::env::temp_dir()))?;
    let text = |map: Map<String, Value>| Value::Object(map).to_string();
    for (name, text) in [
        ("config.json", text(config)),
        ("generation_config.json", text(generation)),
        ("tokenizer.json", tokenizer),
        ("tokenizer_config.json", text(tokenizer_config)),
    ] {
        let path = dir.path().join(name);
        std::fs::write(&path, text).map_err(io(&path))?;
    }
    let link = dir.path().join(GGUF_FILE);
    std::os::unix::fs::symlink(&whole, &link).map_err(io(&link))?;
    Ok(dir)
}
