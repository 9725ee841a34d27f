//! Deserialization of JSON into known types, with errors as whole sentences.

use std::collections::BTreeSet;

use axum::http::StatusCode;
use serde::Deserialize;
use serde_json::Value;

use super::error::{ApiError, shortened};
use super::neutral::Tables;
use settings::{ByName, Kind, Unknown, hint, unknown_name};

/// Parameter names of other programs, with their names here. A name may be listed several times: the entry whose parameter the route
/// has is used.
const ELSEWHERE: &[(&str, &str)] = &[
    // TRL, reward models, LLM judges.
    ("chosen", "candidates"),
    ("rejected", "candidates"),
    ("responses", "candidates"),
    ("answers", "candidates"),
    ("completions", "candidates"),
    ("response_a", "candidates"),
    ("response_b", "candidates"),
    ("answer_a", "candidates"),
    ("answer_b", "candidates"),
    ("a", "candidates"),
    ("b", "candidates"),
    ("documents", "candidates"),
    ("texts", "candidates"),
    ("principle", "principles"),
    ("criteria", "principles"),
    ("rubric", "principles"),
    // Text Generation Inference, transformers, llama.cpp, Ollama.
    ("inputs", "prompt"),
    ("input", "prompt"),
    ("instruction", "prompt"),
    ("question", "prompt"),
    ("query", "prompt"),
    ("conversation", "messages"),
    ("max_new_tokens", "max_tokens"),
    ("max_completion_tokens", "max_tokens"),
    ("max_output_tokens", "max_tokens"),
    ("max_length", "max_tokens"),
    // From other routes to /v1/responses.
    ("max_tokens", "max_output_tokens"),
    ("max_completion_tokens", "max_output_tokens"),
    ("messages", "input"),
    ("system", "instructions"),
    ("response_format", "text"),
    ("n_predict", "max_tokens"),
    ("num_predict", "max_tokens"),
    ("min_new_tokens", "min_tokens"),
    ("num_return_sequences", "n"),
    ("num_samples", "n"),
    ("do_sample", "temperature"),
    ("stop_sequences", "stop"),
    ("stop_strings", "stop"),
    ("eos_token_id", "stop_token_ids"),
    ("repeat_penalty", "repetition_penalty"),
    ("top_n_tokens", "logprobs"),
    ("n_probs", "logprobs"),
    ("grammar", "structured_outputs"),
    ("guided_json", "structured_outputs"),
    ("guided_regex", "structured_outputs"),
    ("guided_choice", "structured_outputs"),
    ("guided_grammar", "structured_outputs"),
    ("json_schema", "structured_outputs"),
    ("format", "response_format"),
    ("prompt", "text"),
    ("content", "text"),
    ("ids", "tokens"),
    ("token_ids", "tokens"),
    ("rating", "thumbs"),
    ("score", "thumbs"),
    ("id", "record_id"),
];

/// The names that a route knows beyond those of the type that its body is read as.
#[derive(Debug, Clone, Copy)]
pub struct AlsoKnown<'a> {
    /// Further parameters of the same object, which are read elsewhere.
    pub beside: Option<&'a BTreeSet<String>>,
    /// Parameters of other servers, whose values without effect were removed before: a value that is left asks for something that this
    /// server does not do.
    pub unsupported: Tables,
}

impl AlsoKnown<'_> {
    /// No further names.
    pub const NOTHING: Self = Self {
        beside: None,
        unsupported: Tables::NONE,
    };
}

/// Deserializes `value`; errors name the path of the wrong value.
pub fn typed<T: for<'de> Deserialize<'de>>(
    value: Value,
    also: AlsoKnown<'_>,
) -> Result<T, ApiError> {
    if !value.is_object() {
        let message = "the body must be a JSON object";
        return Err(ApiError::new(
            StatusCode::BAD_REQUEST,
            "invalid_body",
            message,
        ));
    }
    serde_path_to_error::deserialize(ByName(value)).map_err(|error| {
        let path = error.path().to_string();
        let at_root = matches!(path.as_str(), "." | "?");
        let beside = also.beside.filter(|_| !path.contains('.') || at_root);
        refusal(
            &path,
            &error.inner().to_string(),
            AlsoKnown { beside, ..also },
        )
    })
}

/// Converts serde's message about the value at `path` to an error.
pub fn refusal(path: &str, message: &str, also: AlsoKnown<'_>) -> ApiError {
    let at_root = matches!(path, "." | "?");
    // Paths end at the object that has the field or lacks it.
    let within = |name: &str| match path {
        _ if at_root => name.to_owned(),
        path if path == name || path.ends_with(&format!(".{name}")) => path.to_owned(),
        path => format!("{path}.{name}"),
    };
    if let Some(unknown) = unknown_name(message) {
        return match unknown.kind {
            Kind::Field => {
                let name = within(unknown.name);
                let top = name == unknown.name;
                let beside = also.beside.filter(|_| top);
                unknown_parameter(name, &unknown, AlsoKnown { beside, ..also })
            }
            Kind::Variant => {
                let named = shortened(unknown.name);
                let meant = unknown.meant(&unknown.expected);
                let problem = format!("cannot be {named}{}", hint(meant, &unknown.expected));
                about(path, problem)
            }
        };
    }
    if let Some(rest) = message.strip_prefix("missing field `") {
        let name = rest.split('`').next().unwrap_or_default();
        return ApiError::invalid(within(name), "must be given");
    }
    let invalid = message
        .strip_prefix("invalid type: ")
        .or_else(|| message.strip_prefix("invalid value: "));
    let read = invalid.and_then(|rest| rest.rsplit_once(", expected "));
    match read {
        Some((found, expected)) => {
            let problem = format!("must be {}, not {}", wanted(expected), given(found));
            about(path, problem)
        }
        None if message.starts_with("must ") => about(path, message.to_owned()),
        None => about(path, format!("cannot be read: {message}")),
    }
}

/// Creates an error about the value at `path`.
fn about(path: &str, problem: String) -> ApiError {
    match path {
        "." | "?" => ApiError::new(
            StatusCode::BAD_REQUEST,
            "invalid_body",
            format!("the body {problem}"),
        ),
        path => ApiError::invalid(path, problem),
    }
}

fn unknown_parameter(name: String, unknown: &Unknown<'_>, also: AlsoKnown<'_>) -> ApiError {
    let mut known = unknown.expected.clone();
    known.extend(also.beside.into_iter().flatten().map(String::as_str));
    let elsewhere = ELSEWHERE
        .iter()
        .filter(|(theirs, _)| *theirs == unknown.name)
        .find_map(|(_, ours)| known.iter().find(|known| *known == ours));
    let rule = also.unsupported.rule(unknown.name, name == unknown.name);
    if let (None, Some(neutral)) = (elsewhere, rule) {
        let values = neutral.accepted();
        let message = format!("is not supported by this server: leave it out{values}");
        let code = "unsupported_parameter";
        return ApiError::new(StatusCode::BAD_REQUEST, code, message).about(name);
    }
    let hint = match (elsewhere, unknown.meant(&known)) {
        (Some(&"candidates"), _) => {
            "; put the answers to compare into the list `candidates`, in any order".to_owned()
        }
        (Some(ours), _) => format!("; use `{ours}` instead"),
        (None, Some(meant)) => format!("; did you mean `{meant}`?"),
        (None, None) => String::new(),
    };
    let message = format!("`{name}` is not a parameter of this route{hint}");
    ApiError::new(StatusCode::BAD_REQUEST, "unknown_parameter", message).about(name)
}

/// Returns the JSON term for an expected type.
fn wanted(expected: &str) -> String {
    let words = match expected {
        "u8" | "u16" | "u32" | "u64" | "usize" => "a whole number that is not negative",
        "i8" | "i16" | "i32" | "i64" | "isize" => "a whole number",
        "f32" | "f64" => "a number",
        "a boolean" => "true or false",
        "a sequence" => "a list",
        "a map" => "an object",
        // serde's terms for the names of an enum.
        "string or map" | "variant identifier" => "a text",
        _ if expected.starts_with("struct ") || expected.contains("tagged enum") => "an object",
        _ if expected.starts_with("tuple ") => "a list",
        other => other,
    };
    words.to_owned()
}

/// Returns the JSON term for a given value.
fn given(found: &str) -> String {
    let kinds = [
        ("string ", "the text "),
        ("integer ", ""),
        ("floating point ", ""),
        ("boolean ", ""),
    ];
    for (kind, words) in kinds {
        if let Some(value) = found.strip_prefix(kind) {
            let value = value.trim_matches(|quote| quote == '`' || quote == '"');
            return match words {
                "" => value.to_owned(),
                words => format!("{words}{}", shortened(value)),
            };
        }
    }
    match found {
        "sequence" => "a list".to_owned(),
        "map" => "an object".to_owned(),
        "unit" | "null" | "Option value" => "null".to_owned(),
        other => other.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::http::neutral::Neutral;

    #[allow(dead_code)]
    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Body {
        candidates: Vec<String>,
        prompt: Option<String>,
        top: Option<usize>,
        share: Option<f32>,
        inner: Option<Inner>,
        word: Option<Word>,
    }

    #[allow(dead_code)]
    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Inner {
        depth: Option<i32>,
        yes: Option<bool>,
    }

    #[derive(Debug, Deserialize)]
    #[serde(rename_all = "snake_case")]
    enum Word {
        OneWord,
        Other,
    }

    #[test]
    fn what_does_not_fit_is_said_in_a_whole_sentence() {
        let shared = BTreeSet::from(["temperature".to_owned()]);
        let also = AlsoKnown {
            beside: Some(&shared),
            unsupported: Tables {
                top: &[&[("store", Neutral::At(&["false"]))]],
                inner: &[&[("audio", Neutral::At(&[]))]],
            },
        };
        let c = json!(["a", "b"]);
        for (body, param, message) in [
            (json!({}), "candidates", "`candidates` must be given"),
            (
                json!({"candidates": c, "temprature": 1}),
                "temprature",
                "`temprature` is not a parameter of this route; did you mean `temperature`?",
            ),
            (
                json!({"candidates": c, "promt": ""}),
                "promt",
                "`promt` is not a parameter of this route; did you mean `prompt`?",
            ),
            (
                json!({"chosen": "x", "rejected": "y"}),
                "chosen",
                "`chosen` is not a parameter of this route; put the answers to compare into the list `candidates`, in any order",
            ),
            (
                json!({"candidates": c, "inputs": "x"}),
                "inputs",
                "`inputs` is not a parameter of this route; use `prompt` instead",
            ),
            (
                json!({"candidates": c, "store": true}),
                "store",
                "`store` is not supported by this server: leave it out, or give null or false",
            ),
            (
                json!({"candidates": c, "inner": {"audio": "x"}}),
                "inner.audio",
                "`inner.audio` is not supported by this server: leave it out, or give null",
            ),
            (
                json!({"candidates": c, "inner": [1, true]}),
                "inner",
                "`inner` must be an object, not a list",
            ),
            (
                json!({"candidates": c, "xyzzy": 1}),
                "xyzzy",
                "`xyzzy` is not a parameter of this route",
            ),
            (
                json!({"candidates": c, "inner": {"dept": 1}}),
                "inner.dept",
                "`inner.dept` is not a parameter of this route; did you mean `depth`?",
            ),
            // Shared parameters do not belong to a nested object.
            (
                json!({"candidates": c, "inner": {"temprature": 1}}),
                "inner.temprature",
                "`inner.temprature` is not a parameter of this route",
            ),
            (
                json!({"candidates": c, "top": "3"}),
                "top",
                "`top` must be a whole number that is not negative, not the text \"3\"",
            ),
            (
                json!({"candidates": c, "top": -1}),
                "top",
                "`top` must be a whole number that is not negative, not -1",
            ),
            (
                json!({"candidates": c, "top": 1.5}),
                "top",
                "`top` must be a whole number that is not negative, not 1.5",
            ),
            (
                json!({"candidates": c, "share": []}),
                "share",
                "`share` must be a number, not a list",
            ),
            (
                json!({"candidates": {}}),
                "candidates",
                "`candidates` must be a list, not an object",
            ),
            (
                json!({"candidates": ["a", null]}),
                "candidates[1]",
                "`candidates[1]` must be a string, not null",
            ),
            (
                json!({"candidates": c, "inner": 3}),
                "inner",
                "`inner` must be an object, not 3",
            ),
            (
                json!({"candidates": c, "inner": {"yes": "no"}}),
                "inner.yes",
                "`inner.yes` must be true or false, not the text \"no\"",
            ),
            (
                json!({"candidates": c, "word": "one-word"}),
                "word",
                "`word` cannot be \"one-word\"; did you mean `one_word`?",
            ),
            (
                json!({"candidates": c, "word": "x"}),
                "word",
                "`word` cannot be \"x\"; use one of `one_word`, `other`",
            ),
        ] {
            let error = typed::<Body>(body.clone(), also).unwrap_err();
            let error = error.into_body().error;
            assert_eq!(error.message, message, "{body}");
            assert_eq!(error.param.as_deref(), Some(param), "{body}");
        }
        let error = typed::<Body>(json!([1]), AlsoKnown::NOTHING)
            .unwrap_err()
            .into_body()
            .error;
        assert_eq!(error.code, "invalid_body");
        assert!(error.message.starts_with("the body "), "{}", error.message);
    }
}
