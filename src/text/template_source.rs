//! The source of a chat template: finding it, and analysing it before it is compiled.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::TextError;

/// Finds a model's chat template: `chat_template.jinja`, else `chat_template` in `tokenizer_config.json` (a string, or the "default" one
/// of a list of named templates). Also returns the path of its file.
pub(super) fn find(dir: &Path) -> Result<(PathBuf, String), TextError> {
    let own = dir.join("chat_template.jinja");
    if let Some(source) = read(&own)? {
        return Ok((own, source));
    }
    let path = dir.join("tokenizer_config.json");
    let config = read_json(&path)?;
    match config.as_ref().map(|config| &config["chat_template"]) {
        None | Some(Value::Null) => Err(TextError::NoChatTemplate(dir.to_owned())),
        Some(Value::String(source)) => Ok((path, source.clone())),
        Some(Value::Array(templates)) => {
            let named = |template: &Value| {
                Some((
                    template["name"].as_str()?.to_owned(),
                    template["template"].as_str()?.to_owned(),
                ))
            };
            let templates: Option<Vec<(String, String)>> = templates.iter().map(named).collect();
            let templates = templates.ok_or_else(|| TextError::BadConfig {
                path: path.clone(),
                what: "`chat_template` is a list, but its items are not objects with `name` and `template`".to_owned(),
            })?;
            let names = templates.iter().map(|(name, _)| name.clone()).collect();
            templates
                .into_iter()
                .find(|(name, _)| name == "default")
                .map(|(_, source)| (path.clone(), source))
                .ok_or(TextError::NoDefaultTemplate { path, names })
        }
        Some(_) => Err(TextError::BadConfig {
            path,
            what: "`chat_template` is neither a string nor a list".to_owned(),
        }),
    }
}

/// Returns a file's text, or `None` if there is no such file.
fn read(path: &Path) -> Result<Option<String>, TextError> {
    match files::read_settings(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(TextError::Read {
            path: path.to_owned(),
            source,
        }),
    }
}

/// Reads a JSON file; returns `None` if there is no such file.
pub(super) fn read_json(path: &Path) -> Result<Option<Value>, TextError> {
    let Some(text) = read(path)? else {
        return Ok(None);
    };
    let value = serde_json::from_str(&text).map_err(|source| TextError::Json {
        path: path.to_owned(),
        source,
    })?;
    Ok(Some(value))
}

/// Rewrites `{% generation %}` (with which transformers marks the assistant's own tokens) as a block that only renders its body, with the
/// same white-space control.
pub(super) fn pass_through_generation(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let (before, tag) = rest.split_at(start);
        out.push_str(before);
        let inside = tag[2..].find("%}").map(|end| &tag[2..2 + end]);
        let word = inside.map(|inside| inside.trim_matches(['-', '+']).trim());
        match (inside, word) {
            (Some(inside), Some(word @ ("generation" | "endgeneration"))) => {
                let statement = if word == "generation" {
                    "if true"
                } else {
                    "endif"
                };
                out.push_str("{%");
                out.push_str(&inside.replacen(word, statement, 1));
                out.push_str("%}");
                rest = &tag[inside.len() + 4..];
            }
            _ => {
                out.push_str("{%");
                rest = &tag[2..];
            }
        }
    }
    out.push_str(rest);
    out
}

/// Returns the string literals in a template's tags, unescaped: the strings with which it can compare message contents.
pub(super) fn string_literals(source: &str) -> Vec<String> {
    let mut literals = Vec::new();
    let mut rest = source;
    while let Some(start) = rest.find('{') {
        rest = &rest[start + 1..];
        let end = match rest.as_bytes().first() {
            Some(b'#') => {
                rest = rest.find("#}").map_or("", |end| &rest[end..]);
                continue;
            }
            Some(b'%') => "%}",
            Some(b'{') => "}}",
            _ => continue,
        };
        rest = &rest[1..];
        while !rest.is_empty() && !rest.starts_with(end) {
            let mut chars = rest.chars();
            let quote = chars.next();
            rest = chars.as_str();
            if let Some(quote @ ('\'' | '"')) = quote {
                let (literal, after) = unquote(rest, quote);
                literals.push(literal);
                rest = after;
            }
        }
    }
    literals.sort_unstable();
    literals.dedup();
    literals
}

/// Reads a literal up to its closing quote; returns it and the rest of the text.
fn unquote(text: &str, quote: char) -> (String, &str) {
    let mut literal = String::new();
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some('n') => literal.push('\n'),
                Some('t') => literal.push('\t'),
                Some('r') => literal.push('\r'),
                Some(hex @ ('x' | 'u')) => {
                    let digits = if hex == 'x' { 2 } else { 4 };
                    let code = chars.as_str().get(..digits);
                    let c = code.and_then(|code| u32::from_str_radix(code, 16).ok());
                    literal.extend(c.and_then(char::from_u32));
                    chars = chars.as_str().get(digits..).unwrap_or("").chars();
                }
                other => literal.extend(other),
            },
            c if c == quote => break,
            c => literal.push(c),
        }
    }
    (literal, chars.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_jinja_file_wins_then_a_string_then_the_default_of_a_list() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        assert!(matches!(
            find(dir.path()),
            Err(TextError::NoChatTemplate(_))
        ));
        write("tokenizer_config.json", r#"{"eos_token": "</s>"}"#);
        assert!(matches!(
            find(dir.path()),
            Err(TextError::NoChatTemplate(_))
        ));
        write(
            "tokenizer_config.json",
            r#"{"chat_template": [{"name": "rag", "template": "r"}]}"#,
        );
        let error = find(dir.path()).unwrap_err().to_string();
        assert!(error.contains("[\"rag\"]"), "{error}");
        write(
            "tokenizer_config.json",
            r#"{"chat_template": [{"name": "rag"}]}"#,
        );
        assert!(matches!(find(dir.path()), Err(TextError::BadConfig { .. })));
        write("tokenizer_config.json", r#"{"chat_template": 3}"#);
        assert!(matches!(find(dir.path()), Err(TextError::BadConfig { .. })));
        write(
            "tokenizer_config.json",
            r#"{"chat_template": [{"name": "rag", "template": "r"}, {"name": "default", "template": "d"}]}"#,
        );
        assert_eq!(find(dir.path()).unwrap().1, "d");
        write("tokenizer_config.json", r#"{"chat_template": "s"}"#);
        assert_eq!(find(dir.path()).unwrap().1, "s");
        write("chat_template.jinja", "j");
        let own = dir.path().join("chat_template.jinja");
        assert_eq!(find(dir.path()).unwrap(), (own, "j".to_owned()));
    }

    #[test]
    fn generation_tags_become_blocks_with_the_same_whitespace_control() {
        assert_eq!(
            pass_through_generation(
                "a {%- generation -%} b {% endgeneration%}{% if x %}{{ 'generation' }}{% endif %}{%"
            ),
            "a {%- if true -%} b {% endif%}{% if x %}{{ 'generation' }}{% endif %}{%"
        );
    }

    #[test]
    fn literals_are_those_in_tags() {
        assert_eq!(
            string_literals(
                "it's {{ 'a' + \"b'\\n\" }} {# 'no' #} {% if x in '\\'\\x41\\u00e9' %} 'no' {% endif"
            ),
            ["'Aé", "a", "b'\n"]
        );
    }
}
