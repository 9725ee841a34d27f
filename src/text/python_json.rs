//! JSON in the format of Python's `json.dumps`, for the `tojson` filter of chat templates.
//!
//! Models are trained on prompts that transformers rendered: the spaces after `,` and `:` are tokens.

use std::fmt::Write;

use serde_json::Value;

/// The arguments of `json.dumps` that templates use.
#[derive(Debug, Clone, Default)]
pub(super) struct JsonStyle {
    /// Spaces (or any other string) per level; `None` writes one line.
    pub indent: Option<String>,
    /// Item and key separators; `None` gives Python's defaults.
    pub separators: Option<(String, String)>,
    pub ensure_ascii: bool,
    pub sort_keys: bool,
}

/// Implements `json.dumps(value, ...)`.
pub(super) fn dumps(value: &Value, style: &JsonStyle) -> String {
    let item = if style.indent.is_some() { "," } else { ", " };
    let (item, key) = match &style.separators {
        Some((item, key)) => (item.as_str(), key.as_str()),
        None => (item, ": "),
    };
    let mut writer = Writer {
        out: String::new(),
        style,
        item,
        key,
    };
    writer.value(value, 0);
    writer.out
}

struct Writer<'a> {
    out: String,
    style: &'a JsonStyle,
    item: &'a str,
    key: &'a str,
}

impl Writer<'_> {
    fn value(&mut self, value: &Value, depth: usize) {
        match value {
            Value::Null => self.out.push_str("null"),
            Value::Bool(true) => self.out.push_str("true"),
            Value::Bool(false) => self.out.push_str("false"),
            Value::Number(number) => match number.as_f64() {
                Some(float) if number.is_f64() => self.out.push_str(&float_repr(float)),
                _ => {
                    let _ = write!(self.out, "{number}"); // writing to a String does not fail
                }
            },
            Value::String(text) => self.string(text),
            Value::Array(items) => {
                let parts = items.iter().map(|item| (None, item));
                self.sequence(('[', ']'), parts, depth);
            }
            Value::Object(fields) => {
                let mut fields: Vec<_> = fields.iter().collect();
                if self.style.sort_keys {
                    fields.sort_by_key(|(key, _)| *key);
                }
                let parts = fields
                    .into_iter()
                    .map(|(key, item)| (Some(key.as_str()), item));
                self.sequence(('{', '}'), parts, depth);
            }
        }
    }

    fn sequence<'v>(
        &mut self,
        (open, close): (char, char),
        parts: impl Iterator<Item = (Option<&'v str>, &'v Value)>,
        depth: usize,
    ) {
        self.out.push(open);
        let mut any = false;
        for (key, value) in parts {
            if any {
                self.out.push_str(self.item);
            }
            any = true;
            self.new_line(depth + 1);
            if let Some(key) = key {
                self.string(key);
                self.out.push_str(self.key);
            }
            self.value(value, depth + 1);
        }
        if any {
            self.new_line(depth);
        }
        self.out.push(close);
    }

    fn new_line(&mut self, depth: usize) {
        if let Some(indent) = &self.style.indent {
            self.out.push('\n');
            self.out.push_str(&indent.repeat(depth));
        }
    }

    fn string(&mut self, text: &str) {
        self.out.push('"');
        for c in text.chars() {
            match c {
                '"' => self.out.push_str("\\\""),
                '\\' => self.out.push_str("\\\\"),
                '\n' => self.out.push_str("\\n"),
                '\r' => self.out.push_str("\\r"),
                '\t' => self.out.push_str("\\t"),
                '\u{8}' => self.out.push_str("\\b"),
                '\u{c}' => self.out.push_str("\\f"),
                c if (c as u32) < 0x20
                    || self.style.ensure_ascii && (c as u32) >= 0x7F && c != '\u{7F}' =>
                {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        let _ = write!(self.out, "\\u{unit:04x}");
                    }
                }
                c => self.out.push(c),
            }
        }
        self.out.push('"');
    }
}

/// Returns a float in the form of Python's `repr`: shortest digits, an exponent below 1e-4 and from 1e16.
fn float_repr(float: f64) -> String {
    if float.is_nan() {
        return "NaN".to_owned();
    }
    if float.is_infinite() {
        return if float > 0.0 { "Infinity" } else { "-Infinity" }.to_owned();
    }
    let magnitude = float.abs();
    if magnitude != 0.0 && !(1e-4..1e16).contains(&magnitude) {
        let scientific = format!("{float:e}");
        let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
        let (sign, exponent) = match exponent.strip_prefix('-') {
            Some(exponent) => ('-', exponent),
            None => ('+', exponent),
        };
        return format!("{digits}e{sign}{exponent:0>2}");
    }
    format!("{float:?}")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn one_line_has_pythons_spaces() {
        let value =
            json!({"b": [1, 2.0, -0.5, true, null], "a": {}, "é\"\\": "🙂\n\u{1}\u{7f}<&'"});
        assert_eq!(
            dumps(&value, &JsonStyle::default()),
            "{\"b\": [1, 2.0, -0.5, true, null], \"a\": {}, \"é\\\"\\\\\": \"🙂\\n\\u0001\u{7f}<&'\"}"
        );
        let style = JsonStyle {
            ensure_ascii: true,
            sort_keys: true,
            separators: Some((",".to_owned(), ":".to_owned())),
            ..JsonStyle::default()
        };
        assert_eq!(
            dumps(&value, &style),
            "{\"a\":{},\"b\":[1,2.0,-0.5,true,null],\"\\u00e9\\\"\\\\\":\"\\ud83d\\ude42\\n\\u0001\u{7f}<&'\"}"
        );
    }

    #[test]
    fn indent_breaks_lines_as_python_does() {
        let style = JsonStyle {
            indent: Some("  ".to_owned()),
            ..JsonStyle::default()
        };
        assert_eq!(
            dumps(&json!({"a": [1, {"b": []}], "c": "d"}), &style),
            "{\n  \"a\": [\n    1,\n    {\n      \"b\": []\n    }\n  ],\n  \"c\": \"d\"\n}"
        );
    }

    /// Expectations are from Python's `repr`.
    #[test]
    fn floats_are_pythons() {
        for (float, expected) in [
            (0.0, "0.0"),
            (-0.0, "-0.0"),
            (0.1, "0.1"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (1.5e-7, "1.5e-07"),
            (1e-4, "0.0001"),
            (1.25e300, "1.25e+300"),
            (-1e22, "-1e+22"),
        ] {
            assert_eq!(float_repr(float), expected);
        }
    }
}
