//! The tokenizer of a GGUF file: the keys below `tokenizer.`.

use serde_json::{Map, Value};

use super::GgufFile;
use crate::error::ModelError;
use text::GgufVocabulary;

const TEMPLATE: &str = "tokenizer.chat_template";

/// Reads the vocabulary.
///
/// # Errors
/// Errors if a key is missing or has another type.
pub(super) fn vocabulary(file: &GgufFile) -> Result<GgufVocabulary<'_>, ModelError> {
    let missing = |key: &str| file.error(format!("metadata `{key}` is missing"));
    let (model, tokens) = ("tokenizer.ggml.model", "tokenizer.ggml.tokens");
    Ok(GgufVocabulary {
        model: file.text(model)?.ok_or_else(|| missing(model))?,
        pre: file.text("tokenizer.ggml.pre")?,
        tokens: file.texts(tokens)?.ok_or_else(|| missing(tokens))?,
        types: file.integers("tokenizer.ggml.token_type")?,
        scores: file.numbers("tokenizer.ggml.scores")?,
        merges: file.texts("tokenizer.ggml.merges")?,
        bos: file.count("tokenizer.ggml.bos_token_id")?,
        eos: file.count("tokenizer.ggml.eos_token_id")?,
        unknown: file.count("tokenizer.ggml.unknown_token_id")?,
        padding: file.count("tokenizer.ggml.padding_token_id")?,
        add_bos: file.flag("tokenizer.ggml.add_bos_token")?,
        add_eos: file.flag("tokenizer.ggml.add_eos_token")?,
        add_space_prefix: file.flag("tokenizer.ggml.add_space_prefix")?,
        remove_extra_whitespaces: file.flag("tokenizer.ggml.remove_extra_whitespaces")?,
    })
}

/// Returns the fields of a `tokenizer_config.json`: the named tokens, and the chat template if there is one.
///
/// # Errors
/// Errors if the template is not a string.
pub(super) fn tokenizer_config(
    file: &GgufFile,
    vocabulary: &GgufVocabulary<'_>,
) -> Result<Map<String, Value>, ModelError> {
    let mut config = Map::new();
    for (name, token) in vocabulary.named_tokens() {
        config.insert(name.into(), token.into());
    }
    if let Some(template) = file.text(TEMPLATE)? {
        config.insert("chat_template".into(), template.into());
    }
    Ok(config)
}
