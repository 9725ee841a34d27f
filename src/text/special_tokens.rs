//! The special tokens that a chat template can name, such as `bos_token` and `eos_token`.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

use super::TextError;
use super::template_source::read_json;

/// Special tokens by their names in templates, e.g. `"eos_token"` to `"</s>"`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SpecialTokens {
    named: BTreeMap<String, String>,
}

impl SpecialTokens {
    pub fn new(bos: Option<&str>, eos: Option<&str>) -> Self {
        let mut tokens = Self::default();
        for (name, token) in [("bos_token", bos), ("eos_token", eos)] {
            if let Some(token) = token {
                tokens.set(name, token);
            }
        }
        tokens
    }

    /// Sets the token of a name, e.g. `set("pad_token", "<pad>")`.
    pub fn set(&mut self, name: &str, token: &str) {
        self.named.insert(name.to_owned(), token.to_owned());
    }

    pub fn get(&self, name: &str) -> Option<&str> {
        self.named.get(name).map(String::as_str)
    }

    pub fn bos(&self) -> Option<&str> {
        self.get("bos_token")
    }

    pub fn eos(&self) -> Option<&str> {
        self.get("eos_token")
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.named
            .iter()
            .map(|(name, token)| (name.as_str(), token.as_str()))
    }

    /// Reads the special tokens of a model directory: `special_tokens_map.json`, overridden by `tokenizer_config.json`. A token is a
    /// string or an object with its `content`; absent files are ignored.
    pub fn from_model_dir(dir: &Path) -> Result<Self, TextError> {
        let mut tokens = Self::default();
        for file in ["special_tokens_map.json", "tokenizer_config.json"] {
            if let Some(config) = read_json(&dir.join(file))? {
                tokens.read(&config);
            }
        }
        Ok(tokens)
    }

    fn read(&mut self, config: &Value) {
        let Some(fields) = config.as_object() else {
            return;
        };
        for (name, value) in fields.iter().filter(|(name, _)| name.ends_with("_token")) {
            let token = value.as_str().or_else(|| value["content"].as_str());
            if let Some(token) = token {
                self.set(name, token);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_strings_or_objects_and_the_tokenizer_config_wins() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(
            SpecialTokens::from_model_dir(dir.path()).unwrap(),
            SpecialTokens::default()
        );
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        write(
            "special_tokens_map.json",
            r#"{"bos_token": "<a>", "pad_token": {"content": "<p>", "lstrip": false}}"#,
        );
        write(
            "tokenizer_config.json",
            r#"{"bos_token": {"content": "<s>"}, "eos_token": "</s>", "unk_token": null,
                "add_bos_token": true, "model_max_length": 8}"#,
        );
        let tokens = SpecialTokens::from_model_dir(dir.path()).unwrap();
        assert_eq!(
            tokens.iter().collect::<Vec<_>>(),
            [
                ("bos_token", "<s>"),
                ("eos_token", "</s>"),
                ("pad_token", "<p>")
            ]
        );
        write("tokenizer_config.json", "{");
        assert!(matches!(
            SpecialTokens::from_model_dir(dir.path()),
            Err(TextError::Json { .. })
        ));
    }
}
