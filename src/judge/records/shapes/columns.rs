//! The treatment of columns that a record's shape does not read.
//!
//! Published sets have many: scores, sources, models, hashes. They are ignored. A column is refused by name if ignoring it would change
//! what the model learns:
//!
//! - it belongs to TRL's format and is not supported here ([`UNSUPPORTED`]: tools, template variables, images, weights);
//! - its name marks it as a part of the prompt ([`PROMPT_WORDS`]), or it holds messages, and its text is not in the conversation;
//! - the record has no prompt column, so that the prompt is the common beginning of both answers, and the column holds text.
//!
//! A column whose name ends like metadata (`prompt_id`, `system_hash`) or begins like it (`labelling_prompt`, `raw_input`) is not a part
//! of the conversation. Empty values (null, an empty text or list) are ignored under any name.

use serde_json::Value;

use super::{ShapeError, messages};
use text::Message;

/// Columns that change the meaning of a record in TRL and are not supported here.
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

/// Words in column names that mark a column as a part of the prompt.
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

/// Last words of column names that mark a column as metadata.
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

/// First words of column names that mark a column as metadata or as the prompts and answers of other models about the record.
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

/// Whole column names that mark a column as metadata.
const METADATA_NAMES: &[&str] = &[
    "critique",
    "feedback",
    "generations",
    "meta",
    "metadata",
    "statistics",
];

/// Keys of messages that are metadata and do not appear in the output of a chat template.
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

/// Returns whether a value is empty.
pub(super) fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.trim().is_empty(),
        Value::Array(list) => list.iter().all(is_empty),
        Value::Object(fields) => fields.values().all(is_empty),
        _ => false,
    }
}

/// Returns whether a key of a message is metadata only. A weight of 1 is the default and counts as metadata.
pub(super) fn is_about_a_message(key: &str, value: &Value) -> bool {
    ABOUT_MESSAGES.contains(&key) || (key == "weight" && value.as_f64() == Some(1.0))
}

/// Refuses the first column that would change the meaning of the record.
///
/// `conversation` and `answers` are the parts of the record that were read; `guessed` is whether its prompt is the common beginning of
/// two plain answers.
///
/// # Errors
/// Errors with the name of the column.
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
                "is a part of the prompt by its name, but the prompt does not contain it: add it to `prompt` or remove it",
            );
        }
        if new && guessed {
            return refuse(
                name,
                "may be the prompt, but the record has no `prompt` column: rename the prompt's column to `prompt` and remove other text \
                 columns",
            );
        }
    }
    Ok(())
}

/// Returns whether a column is a weight of 1, which is the default.
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

/// Returns the words of a name in lower case: `systemPrompt` and `system-prompt` have the same two.
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

/// Returns whether a value is a list of messages, under any of the usual key names.
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

/// Returns every text of a value except the names of roles, without surrounding white space.
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

/// Returns whether a plain prompt and the conversation beside it agree: one of the turns before the answer contains the prompt, or the
/// prompt contains the turn.
pub(super) fn is_told(prompt: &str, conversation: &[Message]) -> bool {
    let prompt = prompt.trim();
    conversation.iter().any(|turn| {
        let content = turn.content.trim();
        !content.is_empty() && (content.contains(prompt) || prompt.contains(content))
    })
}

/// Returns the error text for an answer that is missing or has the wrong type.
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
