//! Small tokenizers for tests, built in code.

use serde_json::{Value, json};

use super::Tokenizer;

/// ChatML-like control tokens; the last is not "special" in the file, but is a role marker all the same.
pub(super) const CONTROL: [&str; 4] = ["<|im_start|>", "<|im_end|>", "</s>", "<think>"];

fn added(first_id: usize) -> Value {
    let mut tokens: Vec<Value> = CONTROL
        .iter()
        .zip(first_id..)
        .map(|(content, id)| {
            json!({"id": id, "content": content, "special": *content != "<think>", "normalized": false,
                   "single_word": false, "lstrip": false, "rstrip": false})
        })
        .collect();
    tokens.push(
        json!({"id": first_id + CONTROL.len(), "content": "   ", "special": false, "normalized": true,
                      "single_word": false, "lstrip": false, "rstrip": false}),
    );
    Value::Array(tokens)
}

fn build(value: Value) -> Tokenizer {
    Tokenizer::from_bytes(value.to_string().as_bytes()).expect("the test's tokenizer is valid")
}

/// Returns a byte-level BPE tokenizer like GPT-2's: 256 bytes, a few merges (one of which crosses frame and content: `\n` + `H`), then
/// the control tokens and one that is only text: three spaces.
pub(super) fn byte_level() -> Tokenizer {
    let mut vocab = serde_json::Map::new();
    let letters = tokenizers::pre_tokenizers::byte_level::ByteLevel::alphabet();
    let mut letters: Vec<char> = letters.into_iter().collect();
    letters.sort_unstable();
    for letter in letters {
        vocab.insert(letter.to_string(), json!(vocab.len()));
    }
    let merges = [
        ("h", "e"),
        ("l", "l"),
        ("he", "ll"),
        ("hell", "o"),
        ("Ċ", "H"),
    ];
    for (a, b) in merges {
        vocab.insert(format!("{a}{b}"), json!(vocab.len()));
    }
    build(json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": added(vocab.len()),
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
        "post_processor": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "fuse_unk": false, "byte_fallback": false,
                  "vocab": vocab, "merges": merges.map(|(a, b)| [a, b])},
    }))
}

fn sentencepiece_vocab() -> serde_json::Map<String, Value> {
    let mut vocab = serde_json::Map::new();
    for token in ["<unk>", "<s>", "</s>"] {
        vocab.insert(token.to_owned(), json!(vocab.len()));
    }
    for byte in 0..=255u8 {
        vocab.insert(format!("<0x{byte:02X}>"), json!(vocab.len()));
    }
    for token in ["▁", "a", "b", "<", ">", "/", "s", "ab", "▁a", "▁ab"] {
        vocab.insert(token.to_owned(), json!(vocab.len()));
    }
    vocab
}

/// Returns a SentencePiece-style BPE tokenizer like Llama 2's, with byte fallback. `prefix` selects how the leading space is added.
pub(super) fn sentencepiece(prefix: &str, decoder: Value) -> Tokenizer {
    let (normalizer, pre_tokenizer) = match prefix {
        "prepend" => (
            json!({"type": "Sequence", "normalizers": [
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]}),
            Value::Null,
        ),
        scheme => (
            Value::Null,
            json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": false}),
        ),
    };
    let vocab = sentencepiece_vocab();
    build(json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": added(vocab.len()),
        "normalizer": normalizer, "pre_tokenizer": pre_tokenizer, "post_processor": null, "decoder": decoder,
        "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "fuse_unk": true, "byte_fallback": true,
                  "vocab": vocab, "merges": [["a", "b"], ["▁", "ab"], ["▁", "a"]]},
    }))
}

pub(super) fn llama_decoder() -> Value {
    json!({"type": "Sequence", "decoders": [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"}, {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0}]})
}

pub(super) fn byte_fallback() -> Tokenizer {
    sentencepiece("prepend", llama_decoder())
}

/// Returns the SentencePiece tokenizer with the given decoder.
pub(super) fn with_decoder(decoder: &str) -> Tokenizer {
    let decoder = serde_json::from_str(decoder).expect("the test's decoder is valid JSON");
    sentencepiece("never", decoder)
}

/// Returns a Unigram tokenizer whose vocabulary holds control tokens: by itself it would encode each as one piece.
pub(super) fn unigram() -> Tokenizer {
    let mut vocab = vec![json!(["<unk>", 0.0])];
    for control in CONTROL {
        vocab.push(json!([control, 0.0]));
    }
    for c in "▁<|>/_abcdefghijklmnopqrstuvwxyz".chars() {
        vocab.push(json!([c.to_string(), -5.0]));
    }
    build(json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": added(1),
        "normalizer": null,
        "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true},
        "post_processor": null,
        "decoder": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true},
        "model": {"type": "Unigram", "unk_id": 0, "vocab": vocab, "byte_fallback": false},
    }))
}
