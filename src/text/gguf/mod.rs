//! The tokenizer that the metadata of a GGUF file describes, as the text of a `tokenizer.json`.
//!
//! A GGUF file has no rules for cutting texts: it names a kind of vocabulary (`gpt2`: byte-level BPE with merges; `llama`: SentencePiece
//! with scores) and, for the former, a kind of pre-tokenizer (`pre`). The result has the rules of the tokenizers that models of this kind
//! were published with. Kinds that are not known are refused by name.

mod pre;
mod sentencepiece;
#[cfg(test)]
mod tests;

use serde_json::{Value, json};

/// The vocabulary of a GGUF file: the values of the keys below `tokenizer.ggml.`.
#[derive(Debug, Clone)]
pub struct GgufVocabulary<'a> {
    /// The kind of vocabulary: `gpt2` or `llama`.
    pub model: &'a str,
    /// The kind of pre-tokenizer of a `gpt2`.
    pub pre: Option<&'a str>,
    /// The tokens by id; those of a `gpt2` in its byte alphabet, except for added tokens.
    pub tokens: Vec<&'a str>,
    /// The type of each token; without types all are normal.
    pub types: Option<Vec<i32>>,
    /// The score of each token of a `llama`.
    pub scores: Option<Vec<f32>>,
    /// The merges of a `gpt2`, in order of rank: two tokens with a space between them.
    pub merges: Option<Vec<&'a str>>,
    pub bos: Option<u64>,
    pub eos: Option<u64>,
    pub unknown: Option<u64>,
    pub padding: Option<u64>,
    /// Whether BOS precedes a text that no template writes.
    pub add_bos: Option<bool>,
    /// Whether EOS follows such a text.
    pub add_eos: Option<bool>,
    /// Whether a `llama` begins a text with a space.
    pub add_space_prefix: Option<bool>,
    pub remove_extra_whitespaces: Option<bool>,
}

/// The types of tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Type {
    Normal,
    Unknown,
    Control,
    UserDefined,
    Unused,
    Byte,
}

impl Type {
    fn of(number: i32) -> Option<Self> {
        Some(match number {
            1 => Self::Normal,
            2 => Self::Unknown,
            3 => Self::Control,
            4 => Self::UserDefined,
            5 => Self::Unused,
            6 => Self::Byte,
            _ => return None,
        })
    }
}

/// The kinds of vocabularies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Model {
    ByteLevel,
    SentencePiece,
}

impl GgufVocabulary<'_> {
    /// Returns the text of a `tokenizer.json`. The same vocabulary always gives the same bytes.
    ///
    /// # Errors
    /// Errors with one line if the vocabulary is not consistent, or of a kind that is not supported.
    pub fn tokenizer_json(&self) -> Result<String, String> {
        let model = self.model()?;
        let types = self.types()?;
        let (normalizer, pre_tokenizer, decoder, bpe) = match model {
            Model::ByteLevel => {
                let rules = pre::rules(self.pre)?;
                let merges = self.merges()?;
                let bpe = json!({
                    "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                    "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
                    "ignore_merges": rules.whole_words,
                    "vocab": self.vocab(&types, |kind| kind != Type::Unused)?, "merges": merges,
                });
                let decoder = json!({
                    "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true,
                });
                (rules.normalizer, rules.pre_tokenizer, decoder, bpe)
            }
            Model::SentencePiece => {
                let scores = self.scores()?;
                if self.remove_extra_whitespaces == Some(true) {
                    return Err(
                        "tokenizer.ggml.remove_extra_whitespaces is not supported".to_owned()
                    );
                }
                let prefix = self.add_space_prefix.unwrap_or(true);
                let bpe = json!({
                    "type": "BPE", "dropout": null, "unk_token": self.token(self.unknown)?,
                    "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": true,
                    "byte_fallback": true, "ignore_merges": false,
                    "vocab": self.vocab(&types, |_| true)?,
                    "merges": sentencepiece::merges(&self.tokens, scores)?,
                });
                (
                    sentencepiece::normalizer(prefix),
                    Value::Null,
                    sentencepiece::decoder(prefix),
                    bpe,
                )
            }
        };
        let tokenizer = json!({
            "version": "1.0", "truncation": null, "padding": null,
            "added_tokens": self.added_tokens(&types),
            "normalizer": normalizer,
            "pre_tokenizer": pre_tokenizer,
            "post_processor": self.post_processor(model)?,
            "decoder": decoder,
            "model": bpe,
        });
        Ok(tokenizer.to_string())
    }

    /// Returns the named tokens that the vocabulary has, e.g. `("eos_token", "</s>")`.
    pub fn named_tokens(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let named = [
            ("bos_token", self.bos),
            ("eos_token", self.eos),
            ("unk_token", self.unknown),
            ("pad_token", self.padding),
        ];
        named.into_iter().filter_map(|(name, id)| {
            let id = usize::try_from(id?).ok()?;
            Some((name, *self.tokens.get(id)?))
        })
    }

    fn model(&self) -> Result<Model, String> {
        match self.model {
            "gpt2" => Ok(Model::ByteLevel),
            "llama" => Ok(Model::SentencePiece),
            other => Err(format!(
                "the tokenizer is of the kind `{other}` (tokenizer.ggml.model), which is not supported; supported are gpt2 and llama"
            )),
        }
    }

    fn types(&self) -> Result<Vec<Type>, String> {
        let Some(types) = &self.types else {
            return Ok(vec![Type::Normal; self.tokens.len()]);
        };
        self.check_len("token_type", types.len())?;
        let types = types.iter().map(|&number| {
            Type::of(number)
                .ok_or_else(|| format!("tokenizer.ggml.token_type has the unknown type {number}"))
        });
        types.collect()
    }

    fn scores(&self) -> Result<&[f32], String> {
        let scores = self.scores.as_deref();
        let scores = scores.ok_or("tokenizer.ggml.scores is missing")?;
        self.check_len("scores", scores.len())?;
        Ok(scores)
    }

    fn check_len(&self, key: &str, len: usize) -> Result<(), String> {
        let tokens = self.tokens.len();
        match len == tokens {
            true => Ok(()),
            false => Err(format!(
                "tokenizer.ggml.{key} has {len} entries for {tokens} tokens"
            )),
        }
    }

    fn merges(&self) -> Result<Vec<[&str; 2]>, String> {
        let merges = self.merges.as_deref();
        let merges = merges.ok_or("tokenizer.ggml.merges is missing")?;
        let pairs = merges.iter().map(|merge| {
            let (left, right) = merge.split_once(' ').ok_or_else(|| {
                format!("tokenizer.ggml.merges has {merge:?}, which is not two tokens")
            })?;
            Ok([left, right])
        });
        pairs.collect()
    }

    /// Returns the ids of the tokens whose types are `wanted`.
    fn vocab(
        &self,
        types: &[Type],
        wanted: impl Fn(Type) -> bool,
    ) -> Result<serde_json::Map<String, Value>, String> {
        let mut vocab = serde_json::Map::with_capacity(self.tokens.len());
        for (id, (token, kind)) in self.tokens.iter().zip(types).enumerate() {
            if wanted(*kind) && vocab.insert((*token).to_owned(), id.into()).is_some() {
                return Err(format!("tokenizer.ggml.tokens has {token:?} twice"));
            }
        }
        Ok(vocab)
    }

    /// Returns the tokens that are found in a text before it is cut and merged.
    fn added_tokens(&self, types: &[Type]) -> Vec<Value> {
        let tokens = self.tokens.iter().zip(types).enumerate();
        let added = tokens.filter_map(|(id, (token, kind))| {
            let special = match kind {
                Type::Control | Type::Unknown => true,
                Type::UserDefined => false,
                Type::Normal | Type::Unused | Type::Byte => return None,
            };
            Some(json!({
                "id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": special,
            }))
        });
        added.collect()
    }

    /// Returns the rule that writes BOS and EOS around a text.
    fn post_processor(&self, model: Model) -> Result<Value, String> {
        let by_default = match model {
            Model::ByteLevel => pre::rules(self.pre)?.begins_texts,
            Model::SentencePiece => true,
        };
        let wanted = |add: bool, name: &str, id: Option<u64>| match (add, id) {
            (false, _) | (true, None) => Ok(None),
            (true, Some(id)) => match self.token(Some(id))? {
                Some(token) => Ok(Some((token, id))),
                None => Err(format!(
                    "tokenizer.ggml.{name}_token_id {id} is not a token"
                )),
            },
        };
        let before = wanted(self.add_bos.unwrap_or(by_default), "bos", self.bos)?;
        let after = wanted(self.add_eos.unwrap_or(false), "eos", self.eos)?;
        if before.is_none() && after.is_none() {
            return Ok(Value::Null);
        }
        let special =
            |(token, _): &(&str, u64)| json!({"SpecialToken": {"id": token, "type_id": 0}});
        let text = |name: &str| json!({"Sequence": {"id": name, "type_id": 0}});
        let around = |texts: &[&str]| -> Vec<Value> {
            let before = before.iter().map(special);
            let texts = texts.iter().map(|name| text(name));
            before
                .chain(texts)
                .chain(after.iter().map(special))
                .collect()
        };
        let mut tokens = serde_json::Map::new();
        for (token, id) in before.iter().chain(&after) {
            let entry = json!({"id": token, "ids": [id], "tokens": [token]});
            tokens.insert((*token).to_owned(), entry);
        }
        Ok(json!({
            "type": "TemplateProcessing",
            "single": around(&["A"]),
            "pair": around(&["A", "B"]),
            "special_tokens": tokens,
        }))
    }

    /// Returns the token with this id; none without an id.
    ///
    /// # Errors
    /// Errors if there is no token with it.
    fn token(&self, id: Option<u64>) -> Result<Option<&str>, String> {
        let Some(id) = id else {
            return Ok(None);
        };
        let token = usize::try_from(id).ok().and_then(|id| self.tokens.get(id));
        match token {
            Some(token) => Ok(Some(token)),
            None => Err(format!(
                "token {id} is named, but the vocabulary has {} tokens",
                self.tokens.len()
            )),
        }
    }
}
