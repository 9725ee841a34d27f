//! The tokens that the post-processor of a `tokenizer.json` adds around a text.

use tokenizers::{Encoding, PostProcessor, Token};

use super::{TextError, Tokenizer};

impl Tokenizer {
    /// Returns the ids that the post-processor adds before and after a text that is encoded with `add_special_tokens`: BOS for most
    /// models that have one, none for others.
    ///
    /// # Errors
    /// Those of the post-processor.
    pub fn specials_around(&self) -> Result<(Vec<u32>, Vec<u32>), TextError> {
        let Some(processed) = self.post_processed(&[0])? else {
            return Ok((Vec::new(), Vec::new()));
        };
        let special = processed.get_special_tokens_mask();
        let own = special.iter().position(|&mask| mask == 0);
        let own = own.unwrap_or(special.len());
        let ids = processed.get_ids();
        let after = ids.get(own + 1..).unwrap_or_default();
        Ok((ids[..own].to_vec(), after.to_vec()))
    }

    /// Adds the tokens that the tokenizer's post-processor puts around one text, such as BOS, EOS and `[CLS]`; none if there is no
    /// post-processor.
    ///
    /// # Errors
    /// Those of the post-processor.
    pub fn add_special_tokens(&self, ids: Vec<u32>) -> Result<Vec<u32>, TextError> {
        Ok(match self.post_processed(&ids)? {
            Some(processed) => processed.get_ids().to_vec(),
            None => ids,
        })
    }

    /// Returns the post-processor's result for the tokens of one text; none if the tokenizer has no post-processor.
    fn post_processed(&self, ids: &[u32]) -> Result<Option<Encoding>, TextError> {
        let Some(processor) = self.hugging_face().get_post_processor() else {
            return Ok(None);
        };
        let tokens = ids.iter().map(|&id| Token::new(id, String::new(), (0, 0)));
        let text = Encoding::from_tokens(tokens.collect(), 0);
        let processed = processor.process(text, None, true);
        processed
            .map(Some)
            .map_err(|error| TextError::Encode(error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_template_writes_its_tokens_around_the_text() {
        let special = |id: u32, content: &str| {
            json!({"id": id, "content": content, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false, "special": true})
        };
        let mut json = json!({
            "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "pre_tokenizer": null,
            "added_tokens": [special(0, "<s>"), special(1, "</s>")], "decoder": null, "post_processor": null,
            "model": {"type": "WordLevel", "vocab": {"<s>": 0, "</s>": 1, "a": 2}, "unk_token": "a"},
        });
        let around = |json: &serde_json::Value| {
            let tokenizer = Tokenizer::from_bytes(json.to_string().as_bytes()).unwrap();
            let (before, after) = tokenizer.specials_around().unwrap();
            let whole = tokenizer.add_special_tokens(vec![2, 2]).unwrap();
            assert_eq!(whole, [&before[..], &[2, 2], &after].concat());
            (before, after)
        };
        assert_eq!(around(&json), (vec![], vec![]));
        let piece = |id: &str| json!({"SpecialToken": {"id": id, "type_id": 0}});
        let text = json!({"Sequence": {"id": "A", "type_id": 0}});
        json["post_processor"] = json!({
            "type": "TemplateProcessing",
            "single": [piece("<s>"), text, piece("</s>")], "pair": [text, text],
            "special_tokens": {
                "<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]},
                "</s>": {"id": "</s>", "ids": [1], "tokens": ["</s>"]},
            },
        });
        assert_eq!(around(&json), (vec![0], vec![1]));
    }
}
