//! A tokenizer, chat template, judge template and verdict small enough to check by hand; for unit tests.

use std::cmp::Ordering;

use serde_json::json;

use super::{JudgeTemplate, PairVerdict, ShownRead};
use text::{ChatTemplate, SpecialTokens, Tokenizer};

/// Id of `</s>`, which follows `<|user|>` and `<|assistant|>`, and ids of the two labels; the newline and printable ASCII come after
/// them, one id for each character.
pub const EOS: u32 = 2;
pub const LABELS: [u32; 2] = [3, 4];
const FIRST_CHAR: u32 = 5;

/// Returns a tokenizer with one token per character, except for the special tokens and the labels " A" and " B".
pub fn tokenizer() -> Tokenizer {
    let mut vocab = serde_json::Map::new();
    let mut added = Vec::new();
    for (id, text) in ["<|user|>", "<|assistant|>", "</s>"].iter().enumerate() {
        vocab.insert((*text).into(), json!(id));
        added.push(json!({
            "id": id, "content": text, "special": true, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false,
        }));
    }
    vocab.insert(" A".into(), json!(LABELS[0]));
    vocab.insert(" B".into(), json!(LABELS[1]));
    for (at, c) in "\n".chars().chain(' '..='~').enumerate() {
        vocab.insert(c.to_string(), json!(FIRST_CHAR + at as u32));
    }
    let file = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": null, "post_processor": null, "decoder": {"type": "Fuse"},
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": vocab, "merges": [[" ", "A"], [" ", "B"]],
        },
    });
    Tokenizer::from_bytes(file.to_string().as_bytes()).unwrap()
}

/// Returns the template `<|user|>…</s><|assistant|>…</s>`, with a system turn in parentheses.
pub fn chat() -> ChatTemplate {
    let source = "{% for m in messages %}{% if m.role == 'system' %}({{ m.content }}){% else %}\
                  <|{{ m.role }}|>{{ m.content }}</s>{% endif %}{% endfor %}\
                  {% if add_generation_prompt %}<|assistant|>{% endif %}";
    ChatTemplate::from_source(source, SpecialTokens::default()).unwrap()
}

pub const TEMPLATE: &str = r#"
name = "tiny"
user = "By: {principles}\nQ: {context}\n1: {response_a}\n2: {response_b}\nWhich?"
lead_in = "I say"
labels = [" A", " B"]
default_principle = "best."
principle_bullet = "* "
rationale = ": {rationale}"
[context]
user = "U:"
assistant = "A:"
separator = "|"
bare_single_turn = true
"#;

pub fn template() -> JudgeTemplate {
    JudgeTemplate::from_toml(TEMPLATE).unwrap()
}

/// Decodes ids, with special tokens written out.
pub fn decode(ids: &[u32]) -> String {
    tokenizer().decode(ids, false).unwrap()
}

/// Returns a verdict with the given probabilities of candidate 0 in the two orders, and a label mass.
pub fn verdict(orders: [f32; 2], label_mass: f32) -> PairVerdict {
    let p = (orders[0] + orders[1]) / 2.0;
    let read = |shown, p_first| ShownRead { shown, p_first };
    PairVerdict {
        p,
        winner: match p.total_cmp(&0.5) {
            Ordering::Greater => Some(0),
            Ordering::Less => Some(1),
            Ordering::Equal => None,
        },
        consistent: Some((orders[0] > 0.5) == (orders[1] > 0.5)),
        label_mass,
        orders: vec![read([0, 1], orders[0]), read([1, 0], 1.0 - orders[1])],
        ..PairVerdict::identical()
    }
}
