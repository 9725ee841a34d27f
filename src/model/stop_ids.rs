//! The tokens that end an answer.

use std::path::Path;

use super::ModelConfig;
use text::{ChatTemplate, SpecialTokens, TextError, Tokenizer, end_ids};

/// Returns the ids that end an answer: those of the model's configuration files, the tokenizer's `eos_token` and the token with which
/// the chat template ends a turn.
///
/// Fine-tunes of base models often keep the base model's end-of-text id in the configuration, while their answers end with the other ids.
pub fn stop_ids(
    config: &ModelConfig,
    tokenizer: &Tokenizer,
    dir: &Path,
    chat: &ChatTemplate,
) -> Result<Vec<u32>, TextError> {
    let special = SpecialTokens::from_model_dir(dir)?;
    let mut ids = config.eos_token_ids.clone();
    for id in end_ids(&special, chat, tokenizer) {
        if !ids.contains(&id) && (id as usize) < config.spec.vocab_size {
            ids.push(id);
        }
    }
    Ok(ids)
}
