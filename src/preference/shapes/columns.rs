//! What the columns of a record mean that its shape does not read.
//!
//! Real sets have many: scores, sources, models, hashes. They are passed over. A column is refused by its name where passing over it
//! would change what the model learns:
//!
//! - it belongs to TRL's format and is not supported here ([`UNSUPPORTED`]: tools, template variables, images, weights);
//! - its name says that it is a part of the prompt ([`PROMPT_WORDS`]), or it holds messages, and its text is not in the conversation;
//! - the record has no prompt column, so that the prompt is what both answers begin with, and it holds text.
//!
//! A name that ends like metadata (`prompt_id`, `system_hash`), or begins like it (`labelling_prompt`, `raw_input`), says nothing about
//! the conversation. What asks for nothing (null, an empty text or list) is passed over whatever it is called.

use serde_json::Value;

use super::{ShapeError, messages};
use crate::preference::Message;

/// Columns that change what TRL makes of a record, and that are not supported.
const UNSUPPORTED: &[&str] = &[
    "tools",
    "functions",
    "tool_choice",
    "tool_calls",
    "function_call",
    "chat_template",
    "chat_template_kwargs",
    "template_kwargs",
    "enable_thinking",
    "reasoning_effort",
    "reasoning_content",
    "thinking",
    "documents",
    "add_generation_prompt",
    "continue_final_message",
    "image",
    "images",
    "video",
    "videos",
    "audio",
    "audios",
    "weight",
    "sample_weight",
];

/// Words of the names of columns that are a part of the prompt.
const PROMPT_WORDS: &[&str] = &[
    "article",
    "ask",
    "background",
    "chat",
    "context",
    "contexts",
    "conversation",
    "conversations",
    "dialog",
    "dialogs",
    "dialogue",
    "dialogues",
    "document",
    "history",
    "human",
    "input",
    "inputs",
    "instruction",
    "instructions",
    "message",
    "messages",
    "paragraph",
    "passage",
    "passages",
    "persona",
    "post",
    "preamble",
    "prefix",
    "premise",
    "problem",
    "problems",
    "prompt",
    "prompts",
    "query",
    "queries",
    "question",
    "questions",
    "request",
    "requests",
    "story",
    "sys",
    "system",
    "text",
    "transcript",
    "turns",
    "user",
    "utterance",
    "utterances",
];

/// Last words of the names of columns that describe a record.
const METADATA_ENDS: &[&str] = &[
    "answer",
    "answers",
    "at",
    "author",
    "benchmark",
    "by",
    "categories",
    "category",
    "chars",
    "cluster",
    "count",
    "counts",
    "created",
    "dataset",
    "date",
    "difficulty",
    "domain",
    "embedding",
    "evolved",
    "family",
    "flag",
    "format",
    "hash",
    "id",
    "idx",
    "identifier",
    "index",
    "key",
    "kind",
    "label",
    "labels",
    "lang",
    "language",
    "len",
    "length",
    "level",
    "license",
    "method",
    "metadata",
    "model",
    "models",
    "name",
    "names",
    "num",
    "number",
    "order",
    "origin",
    "quality",
    "rank",
    "rating",
    "ratings",
    "score",
    "scores",
    "size",
    "source",
    "sources",
    "split",
    "subset",
    "tag",
    "tags",
    "time",
    "timestamp",
    "tokens",
    "type",
];

/// First words of the names of columns that describe a record, or that hold what other models were asked or said of it.
const METADATA_STARTS: &[&str] = &[
    "annotation",
    "annotator",
    "critique",
    "evaluation",
    "feedback",
    "generated",
    "generation",
    "generations",
    "has",
    "is",
    "judge",
    "judgement",
    "judgment",
    "labeling",
    "labelling",
    "meta",
    "metadata",
    "model",
    "num",
    "original",
    "rating",
    "raw",
    "rejection",
    "score",
    "statistics",
];

/// Whole names of columns that describe a record.
const METADATA_NAMES: &[&str] = &[
    "critique",
    "feedback",
    "generations",
    "meta",
    "metadata",
    "statistics",
];

/// Keys of messages that describe the message and are no part of what a template writes.
const ABOUT_MESSAGES: &[&str] = &[
    "country",
    "created",
    "created_at",
    "date",
    "detoxify",
    "emojis",
    "finish_reason",
    "hashed_ip",
    "header",
    "id",
    "index",
    "idx",
    "lang",
    "language",
    "length",
    "message_id",
    "message_tree_id",
    "model",
    "model_name",
    "openai_moderation",
    "parent_id",
    "rank",
    "rating",
    "redacted",
    "review_count",
    "review_result",
    "score",
    "state",
    "timestamp",
    "token_count",
    "toxic",
    "turn_identifier",
    "user_id",
    "uuid",
];

/// Whether a value asks for nothing.
pub(super) fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.trim().is_empty(),
        Value::Array(list) => list.iter().all(is_empty),
        Value::Object(fields) => fields.values().all(is_empty),
        _ => false,
    }
}

/// Whether a message's key describes the message only. A weight of one is every message's.
pub(super) fn is_about_a_message(key: &str, value: &Value) -> bool {
    ABOUT_MESSAGES.contains(&key) || (key == "weight" && value.as_f64() == Some(1.0))
}

/// Refuses the first column that would change what the record means.
///
/// `conversation` is what was read of it, `answers` its two answers, `guessed` whether its prompt is what two plain answers share.
///
/// # Errors
/// Names the column.
pub(super) fn check<'a>(
    rest: impl Iterator<Item = (&'a String, &'a Value)>,
    conversation: &[Message],
    answers: [&str; 2],
    guessed: bool,
) -> Result<(), ShapeError> {
    let refuse = |name: &str, problem: &str| {
        Err(ShapeError::Column {
            name: name.to_owned(),
            problem: problem.to_owned(),
        })
    };
    for (name, value) in rest.filter(|(_, value)| !is_empty(value)) {
        let lower = name.to_lowercase();
        if UNSUPPORTED.contains(&lower.as_str()) && !weighs_nothing(&lower, value) {
            return refuse(name, "is not supported: remove it");
        }
        let words = words(name);
        if is_metadata(&words) {
            continue;
        }
        let of_prompt = words
            .iter()
            .any(|word| PROMPT_WORDS.contains(&word.as_str()));
        let texts = texts(value);
        let told = conversation.iter().map(|message| message.content.as_str());
        let told: Vec<&str> = told.chain(answers).collect();
        let is_told = |text: &&str| told.iter().any(|told| told.contains(*text));
        let new = !texts.iter().all(is_told);
        if new && (of_prompt || is_messages(value)) {
            return refuse(
                name,
                "is a part of the prompt by its name, and the prompt does not hold it: write it into `prompt`, or remove it",
            );
        }
        if new && guessed {
            return refuse(
                name,
                "may be the prompt, which the record does not name: call the prompt's column `prompt`, and remove other texts",
            );
        }
    }
    Ok(())
}

/// A weight of one is every record's.
fn weighs_nothing(name: &str, value: &Value) -> bool {
    name.ends_with("weight") && value.as_f64() == Some(1.0)
}

fn is_metadata(words: &[String]) -> bool {
    let one_of = |word: Option<&String>, list: &[&str]| {
        word.is_some_and(|word| list.contains(&word.as_str()))
    };
    one_of(words.last(), METADATA_ENDS)
        || (words.len() > 1 && one_of(words.first(), METADATA_STARTS))
        || (words.len() == 1 && one_of(words.first(), METADATA_NAMES))
}

/// The words of a name, in lower case: `systemPrompt` and `system-prompt` are the same two.
fn words(name: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut before_was_lower = false;
    for c in name.chars() {
        let starts = !c.is_alphanumeric() || (c.is_uppercase() && before_was_lower);
        if starts {
            words.push(String::new());
        }
        if c.is_alphanumeric()
            && let Some(word) = words.last_mut()
        {
            word.extend(c.to_lowercase());
        }
        before_was_lower = c.is_lowercase();
    }
    words.retain(|word| !word.is_empty());
    words
}

/// Whether it is a list of messages, of whatever names.
fn is_messages(value: &Value) -> bool {
    let Value::Array(list) = value else {
        return false;
    };
    !list.is_empty()
        && list.iter().all(|turn| {
            let has = |keys: &[&str]| keys.iter().any(|key| turn.get(key).is_some());
            has(&["role", "from", "speaker"]) && has(&["content", "value", "text"])
        })
}

/// Every text of a value but the names of roles, without the white space around it.
fn texts(value: &Value) -> Vec<&str> {
    match value {
        Value::String(text) => Some(text.trim())
            .filter(|text| !text.is_empty())
            .into_iter()
            .collect(),
        Value::Array(list) => list.iter().flat_map(texts).collect(),
        Value::Object(fields) => {
            let said = fields
                .iter()
                .filter(|(key, _)| !["role", "from", "speaker"].contains(&key.as_str()));
            said.flat_map(|(_, value)| texts(value)).collect()
        }
        _ => Vec::new(),
    }
}

/// Whether a plain prompt and the conversation that stands beside it say the same: one of the turns before the answer holds the prompt,
/// or the other way round.
pub(super) fn is_told(prompt: &str, conversation: &[Message]) -> bool {
    let prompt = prompt.trim();
    conversation.iter().any(|turn| {
        let content = turn.content.trim();
        !content.is_empty() && (content.contains(prompt) || prompt.contains(content))
    })
}

/// Names the kind of an answer that is missing.
pub(super) fn missing_answer(value: Option<&Value>) -> String {
    match value {
        None => "is missing: a preference record needs both answers".to_owned(),
        Some(value) => format!(
            "is {}: a preference record needs both answers",
            messages::of(value)
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_taken_apart() {
        for (name, want) in [
            ("systemPrompt", vec!["system", "prompt"]),
            ("system-prompt", vec!["system", "prompt"]),
            ("SYSTEM_PROMPT", vec!["system", "prompt"]),
            ("chosen.rating", vec!["chosen", "rating"]),
            ("q", vec!["q"]),
        ] {
            assert_eq!(words(name), want);
        }
    }
}
