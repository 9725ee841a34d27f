//! The rules by which a byte-level tokenizer cuts texts before it merges, by the name of their kind.

use serde_json::{Value, json};

use crate::split_patterns::{LLAMA3, QWEN2};

/// The rules of a kind of pre-tokenizer.
pub(super) struct Rules {
    pub normalizer: Value,
    pub pre_tokenizer: Value,
    /// Whether a piece that is a token as a whole is not merged from parts.
    pub whole_words: bool,
    /// Whether BOS precedes texts by default.
    pub begins_texts: bool,
}

/// GPT-2's rule, in the spelling without its last alternative: what it leaves is a piece as well.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)";

/// The supported names, for messages.
const SUPPORTED: &str = "default, gpt-2, llama-bpe, qwen2 and smollm";

/// Returns the rules of a kind.
///
/// # Errors
/// Errors with the name of a kind that is not supported, or if the file names none: its texts would be cut in another way than those that
/// the model was trained with.
pub(super) fn rules(pre: Option<&str>) -> Result<Rules, String> {
    let Some(pre) = pre else {
        return Err(format!(
            "the file names no pre-tokenizer (tokenizer.ggml.pre), as files of before May 2024 do: convert the model again, to a file with \
             one of {SUPPORTED}"
        ));
    };
    let plain = Rules {
        normalizer: Value::Null,
        pre_tokenizer: Value::Null,
        whole_words: false,
        begins_texts: false,
    };
    Ok(match pre {
        "gpt-2" => Rules {
            pre_tokenizer: byte_level(true),
            ..plain
        },
        "smollm" => Rules {
            pre_tokenizer: sequence(vec![
                json!({"type": "Digits", "individual_digits": true}),
                byte_level(true),
            ]),
            ..plain
        },
        "llama-bpe" | "llama3" | "llama-v3" => Rules {
            pre_tokenizer: sequence(vec![split(LLAMA3), byte_level(false)]),
            whole_words: true,
            begins_texts: true,
            ..plain
        },
        "qwen2" | "deepseek-r1-qwen" => Rules {
            normalizer: json!({"type": "NFC"}),
            pre_tokenizer: sequence(vec![split(QWEN2), byte_level(false)]),
            ..plain
        },
        "default" => Rules {
            pre_tokenizer: sequence(vec![
                split(r"[\p{P}\$\+<=>\^~\|]+"),
                split(GPT2),
                split(r"\p{N}+"),
                split(r"[0-9][0-9][0-9]"),
                byte_level(false),
            ]),
            ..plain
        },
        other => {
            return Err(format!(
                "the pre-tokenizer `{other}` (tokenizer.ggml.pre) is not supported; supported are {SUPPORTED}"
            ));
        }
    })
}

fn sequence(parts: Vec<Value>) -> Value {
    json!({"type": "Sequence", "pretokenizers": parts})
}

/// Returns the rule that makes each match, and each text between two, a piece.
fn split(pattern: &str) -> Value {
    json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false})
}

/// Returns the rule that writes texts in the byte alphabet, and before that cuts them by GPT-2's rule if `cut`.
fn byte_level(cut: bool) -> Value {
    json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": cut})
}
