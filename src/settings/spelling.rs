//! Errors of TOML settings: one line, with the line number and a suggestion for a misspelt name.

use serde::de::DeserializeOwned;

use super::by_name::ByName;

/// An error in the text of settings, in one line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SettingsError(String);

/// Parses settings.
///
/// # Errors
/// One line that names the place, the key and the mistake.
pub fn parse<T: DeserializeOwned>(text: &str) -> Result<T, SettingsError> {
    // The text itself is read first, because only its errors have a line.
    let read = || Ok((toml::from_str::<T>(text)?, toml::from_str(text)?));
    let (_, table) = read().map_err(|error| explain(&error, text))?;
    by_name(table)
}

/// Reads a table, whose structs are tables and no lists.
///
/// # Errors
/// One line that names the key and the mistake.
pub(super) fn by_name<T: DeserializeOwned>(table: toml::Table) -> Result<T, SettingsError> {
    let value = ByName(toml::Value::Table(table));
    serde_path_to_error::deserialize(value).map_err(|error| {
        let message = in_plain_words(error.inner().message().trim());
        SettingsError(match error.path().to_string().as_str() {
            "." | "?" => message,
            path => format!("`{path}`: {message}"),
        })
    })
}

/// Returns the error in `text`, in one line.
pub fn explain(error: &toml::de::Error, text: &str) -> SettingsError {
    let line = error
        .span()
        .and_then(|span| text.get(..span.start))
        .map(|before| before.matches('\n').count() + 1);
    let message = error.message().trim().replace('\n', " ");
    let message = match unknown_name(&message) {
        Some(unknown) => {
            let key = unknown.name;
            let meant = unknown.meant(&unknown.expected);
            let what = match unknown.kind {
                Kind::Field => format!("unknown setting `{key}`"),
                Kind::Variant => format!("`{key}` is not a value of this setting"),
            };
            format!("{what}{}", hint(meant, &unknown.expected))
        }
        None => in_plain_words(&message),
    };
    SettingsError(match line {
        Some(line) => format!("line {line}: {message}"),
        None => message,
    })
}

/// Serde's names of Rust types, and their meanings in a file.
const TYPES: [(&str, &str); 14] = [
    ("a boolean", "true or false"),
    ("bool", "true or false"),
    ("usize", "a whole number of 0 or more"),
    ("u64", "a whole number of 0 or more"),
    ("u32", "a whole number of 0 or more"),
    ("u8", "a whole number of 0 or more"),
    ("i64", "a whole number"),
    ("i32", "a whole number"),
    ("f64", "a number"),
    ("f32", "a number"),
    ("a sequence", "a list"),
    ("path string", "the path of a file"),
    ("a string", "a text"),
    ("a map", "a table of settings"),
];

/// Returns serde's message about a value without the names of Rust types.
fn in_plain_words(message: &str) -> String {
    if let Some(name) = message.strip_prefix("missing field ") {
        return format!("the setting {name} is missing");
    }
    if message.starts_with("data did not match any variant") {
        return "the value has none of the forms that this setting takes".to_owned();
    }
    let found = message
        .strip_prefix("invalid type: ")
        .or_else(|| message.strip_prefix("invalid value: "))
        .or_else(|| message.strip_prefix("invalid length "));
    let Some((found, expected)) = found.and_then(|rest| rest.rsplit_once(", expected ")) else {
        return message.to_owned();
    };
    // `integer `3`` and `string "x"` quote the file; `map` and `sequence` do not.
    let found = match found.split_once(['`', '"']) {
        Some(_) => {
            let quoted = found.split_once(' ').map_or(found, |(_, value)| value);
            let value = quoted.trim_start_matches("point ").trim_matches('`');
            format!("`{value}`")
        }
        None if found == "map" => "a table".to_owned(),
        None if found == "sequence" => "a list".to_owned(),
        None => found.to_owned(),
    };
    let known = TYPES.iter().find(|(word, _)| *word == expected);
    let meant = match known {
        Some((_, meant)) => (*meant).to_owned(),
        None if expected.contains("tagged enum ") => {
            "a table with a `type`, such as { type = \"...\" }".to_owned()
        }
        None if expected.starts_with("struct ") => "a table of settings".to_owned(),
        None if expected.contains("enum ") => "the name of a choice".to_owned(),
        None => expected.trim_start_matches("expected ").to_owned(),
    };
    format!("{found} does not fit this setting, which takes {meant}")
}

/// Returns the end of a message about an unknown name: a suggestion, or else the valid names.
pub fn hint(meant: Option<&str>, expected: &[&str]) -> String {
    match (meant, expected) {
        (Some(meant), _) => format!("; did you mean `{meant}`?"),
        (None, []) => String::new(),
        (None, [only]) => format!("; use `{only}`"),
        (None, all) => {
            let all: Vec<String> = all.iter().map(|name| format!("`{name}`")).collect();
            format!("; use one of {}", all.join(", "))
        }
    }
}

/// The kind of a name that serde does not recognise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A key.
    Field,
    /// A value of an enumeration.
    Variant,
}

/// An unknown name, and the names that were expected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unknown<'a> {
    pub kind: Kind,
    pub name: &'a str,
    pub expected: Vec<&'a str>,
}

impl Unknown<'_> {
    /// Returns the name in `known` that was probably meant.
    pub fn meant<'k>(&self, known: &[&'k str]) -> Option<&'k str> {
        did_you_mean(self.name, known)
    }
}

/// Parses serde's messages about unknown names; returns none for others.
pub fn unknown_name(message: &str) -> Option<Unknown<'_>> {
    let (kind, rest) = match message.strip_prefix("unknown field `") {
        Some(rest) => (Kind::Field, rest),
        None => (Kind::Variant, message.strip_prefix("unknown variant `")?),
    };
    // The unknown name may contain backticks: serde's own words come after it.
    let (name, rest) = rest
        .rsplit_once("`, expected ")
        .or_else(|| rest.rsplit_once("`, there are no "))?;
    let expected = rest.split('`').skip(1).step_by(2).collect();
    Some(Unknown {
        kind,
        name,
        expected,
    })
}

/// Returns the known name nearest to a misspelt one, at an edit distance of at most a third of its letters; a swap of adjacent letters
/// counts as one edit, and case and hyphens are ignored.
pub fn did_you_mean<'k>(name: &str, known: &[&'k str]) -> Option<&'k str> {
    /// Length limit of a name, in letters; a longer one is not a misspelling.
    const MOST: usize = 64;
    if name.len() > MOST {
        return None;
    }
    let plain = |name: &str| name.to_lowercase().replace('-', "_");
    let name = plain(name);
    let distances = known.iter().map(|known| {
        let other = plain(known);
        let most = name.chars().count().max(other.chars().count()) / 3;
        (strsim::osa_distance(&name, &other), most, *known)
    });
    let near = distances.filter(|(distance, most, _)| distance <= most);
    near.min_by_key(|(distance, ..)| *distance)
        .map(|(.., known)| known)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Settings {
        #[allow(dead_code)]
        prompts: Option<usize>,
        #[allow(dead_code)]
        order: Option<Order>,
    }

    #[derive(Debug, serde::Deserialize)]
    #[serde(rename_all = "snake_case")]
    enum Order {
        AsLogged,
        EasyFirst,
    }

    #[test]
    fn misspelt_names_are_recognised() {
        let known = ["temperature", "top_p", "top_k", "max_tokens", "n", "stop"];
        for (name, meant) in [
            ("temprature", Some("temperature")),
            ("Temperature", Some("temperature")),
            ("max-tokens", Some("max_tokens")),
            ("max_token", Some("max_tokens")),
            ("topp", Some("top_p")),
            ("tpo_p", Some("top_p")),
            ("stops", Some("stop")),
            ("m", None),
            ("frequency", None),
            ("", None),
        ] {
            assert_eq!(did_you_mean(name, &known), meant, "{name}");
        }
        assert_eq!(did_you_mean(&"x".repeat(1 << 20), &known), None);
    }

    #[test]
    fn errors_are_one_line_with_its_number() {
        for (text, message) in [
            (
                "promts = 3",
                "line 1: unknown setting `promts`; did you mean `prompts`?",
            ),
            (
                "\n\nbeta = 3",
                "line 3: unknown setting `beta`; use one of `prompts`, `order`",
            ),
            (
                "order = 'easy-first'",
                "line 1: `easy-first` is not a value of this setting; did you mean `easy_first`?",
            ),
        ] {
            assert_eq!(parse::<Settings>(text).unwrap_err().to_string(), message);
        }
        for text in [
            "prompts = 'x'",
            "prompts = -1",
            "prompts",
            "= 3",
            "a = [1,\n2",
        ] {
            let error = parse::<Settings>(text).unwrap_err().to_string();
            assert!(
                error.starts_with("line ") && !error.contains('\n'),
                "{error}"
            );
        }
    }

    #[test]
    fn values_are_refused_in_the_words_of_the_file() {
        for (message, said) in [
            (
                "invalid type: string \"x\", expected usize",
                "`\"x\"` does not fit this setting, which takes a whole number of 0 or more",
            ),
            (
                "invalid value: integer `-1`, expected usize",
                "`-1` does not fit this setting, which takes a whole number of 0 or more",
            ),
            (
                "invalid type: floating point `1.5`, expected u64",
                "`1.5` does not fit this setting, which takes a whole number of 0 or more",
            ),
            (
                "invalid type: string \"yes\", expected a boolean",
                "`\"yes\"` does not fit this setting, which takes true or false",
            ),
            (
                "invalid type: boolean `true`, expected f64",
                "`true` does not fit this setting, which takes a number",
            ),
            (
                "invalid type: map, expected a string",
                "a table does not fit this setting, which takes a text",
            ),
            (
                "invalid type: sequence, expected path string",
                "a list does not fit this setting, which takes the path of a file",
            ),
            (
                "invalid type: float `0.5`, expected struct SequentialTest",
                "`0.5` does not fit this setting, which takes a table of settings",
            ),
            (
                "invalid type: string \"sigmiod\", expected internally tagged enum PreferenceLoss",
                "`\"sigmiod\"` does not fit this setting, which takes a table with a `type`, such as { type = \"...\" }",
            ),
            ("missing field `good`", "the setting `good` is missing"),
            ("something else", "something else"),
        ] {
            assert_eq!(in_plain_words(message), said);
        }
        // The error of the reader itself.
        for text in [
            "prompts = 'x'",
            "prompts = -1",
            "prompts = 1.5",
            "prompts = []",
            "order = 3",
            "order = {}",
        ] {
            let error = parse::<Settings>(text).unwrap_err().to_string();
            for rust in ["usize", "enum", "struct", "invalid type"] {
                assert!(!error.contains(rust), "{text}: {error}");
            }
        }
    }

    #[test]
    fn a_name_is_read_whole_whatever_it_holds() {
        let message = "unknown field `a`, expected b`, expected one of `x`, `y`";
        let unknown = unknown_name(message).unwrap();
        assert_eq!(unknown.name, "a`, expected b");
        assert_eq!(unknown.expected, ["x", "y"]);
        let none = unknown_name("unknown field `a`, there are no fields").unwrap();
        assert!(none.expected.is_empty());
        assert_eq!(unknown_name("invalid type: null"), None);
    }
}
