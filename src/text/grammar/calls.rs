//! Grammars of tool calls: every call is well-formed, names an offered tool, and fits its schema.

use serde_json::{Value, json};

use super::brief;
use super::schema::prepare;
use super::{GrammarError, GrammarSpec};
use crate::tools::{Tool, ToolFormat};

/// The specification of answers with tool calls.
#[derive(Debug, Clone, PartialEq)]
pub struct CallGrammar {
    pub format: ToolFormat,
    /// The tools that may be called. For a tool that is not strict, calls may violate the parts of its schema that llguidance does not
    /// support.
    pub tools: Vec<Tool>,
    /// Limit on the number of calls.
    pub most: usize,
    /// Control tokens for the marks before and after a call, if the model has such tokens.
    pub begin: Option<u32>,
    pub end: Option<u32>,
    pub otherwise: Otherwise,
    /// Whether values without a bound get one, so that small models end them.
    pub brief: bool,
}

/// The form of an answer apart from calls.
#[derive(Debug, Clone, PartialEq)]
pub enum Otherwise {
    Nothing,
    /// Text, also before and after calls. Only formats with a mark before calls can distinguish the two.
    Text,
    /// JSON by one of these specs: [`GrammarSpec::JsonSchema`], [`GrammarSpec::LooseJsonSchema`] or [`GrammarSpec::JsonObject`].
    Json(Box<GrammarSpec>),
}

impl CallGrammar {
    /// Returns the size of its schemas in bytes.
    pub(super) fn source_bytes(&self) -> usize {
        let schemas = self
            .tools
            .iter()
            .map(|tool| tool.parameters.to_string().len());
        let other = match &self.otherwise {
            Otherwise::Json(spec) => spec.source_bytes(),
            Otherwise::Nothing | Otherwise::Text => 0,
        };
        schemas.sum::<usize>() + other
    }

    /// Returns whether unsupported parts of a schema may be ignored anywhere.
    pub(super) fn is_loose(&self) -> bool {
        let other = match &self.otherwise {
            Otherwise::Json(spec) => matches!(**spec, GrammarSpec::LooseJsonSchema(_)),
            Otherwise::Nothing | Otherwise::Text => false,
        };
        other || self.tools.iter().any(|tool| !tool.strict)
    }

    /// Returns the same specification with every part required.
    pub(super) fn whole(&self) -> Self {
        let mut whole = self.clone();
        whole.tools.iter_mut().for_each(|tool| tool.strict = true);
        if let Otherwise::Json(spec) = &mut whole.otherwise
            && let GrammarSpec::LooseJsonSchema(schema) = &**spec
        {
            **spec = GrammarSpec::JsonSchema(schema.clone());
        }
        whole
    }

    /// Returns the grammar in llguidance's Lark. `most` limits the bytes to which copies may expand a schema.
    ///
    /// # Errors
    /// If a schema is invalid; the message describes the problem.
    pub(super) fn lark(&self, most: usize) -> Result<String, GrammarError> {
        let marks = self.format.marks();
        let mark = |text: &str, token: Option<u32>| match token {
            Some(token) => format!("<[{token}]>"),
            None => literal(text),
        };
        let (begin, end) = (mark(marks.begin, self.begin), mark(marks.end, self.end));
        let mut lines = Vec::new();
        let names: Vec<String> = (0..self.tools.len()).map(|at| format!("c{at}")).collect();
        lines.push(format!("object: {}", names.join(" | ")));
        for (at, tool) in self.tools.iter().enumerate() {
            let head = format!("{{\"name\": \"{}\", \"{}\": ", tool.name, marks.arguments);
            let schema = arguments(tool, self.brief, most)?;
            lines.push(format!("c{at}: {} a{at} \"}}\"", literal(&head)));
            lines.push(format!("a{at}: %json {schema}"));
        }
        // Text that ends with the mark forms one lexeme with it.
        let text_mark = self.otherwise == Otherwise::Text && self.begin.is_none();
        let begin = match text_mark {
            true => "opening".to_owned(),
            false => begin,
        };
        let more = self.most.saturating_sub(1);
        let again = |next: String| match more {
            0 => String::new(),
            more => format!(" ({next}){{0,{more}}}"),
        };
        let separator = literal(marks.separator);
        let calls = match marks.list {
            Some((open, close)) => {
                let (open, close) = (literal(open), literal(close));
                let more = again(format!("{separator} object"));
                format!("{begin} {open} object{more} {close}")
            }
            None => {
                let padding = literal(marks.padding);
                let next = mark(marks.begin, self.begin);
                let more = again(format!(
                    "{separator} {next} {padding} object {padding} {end}"
                ));
                format!("{begin} {padding} object {padding} {end}{more}")
            }
        };
        lines.push(format!("calls: {calls}"));
        let start = match &self.otherwise {
            Otherwise::Nothing => "start: calls".to_owned(),
            Otherwise::Text => {
                let written = written_as_regex(marks.begin);
                lines.push(format!("TEXT: /(.|\\n)+/ & ~/(.|\\n)*{written}(.|\\n)*/"));
                match text_mark {
                    true => {
                        lines.push(format!("opening[lazy]: /(.|\\n)*{written}/"));
                        "start: TEXT | calls TEXT?".to_owned()
                    }
                    false => "start: TEXT? (calls TEXT?)?".to_owned(),
                }
            }
            Otherwise::Json(spec) => {
                let schema = match &**spec {
                    GrammarSpec::JsonSchema(schema) => json_lines(schema, false, most)?,
                    GrammarSpec::LooseJsonSchema(schema) => json_lines(schema, true, most)?,
                    _ => json!({"type": "object"}),
                };
                lines.push(format!("answer: %json {schema}"));
                "start: calls | answer".to_owned()
            }
        };
        Ok(format!("{start}\n{}\n", lines.join("\n")))
    }
}

/// Returns a string literal of Lark, which has the syntax of JSON.
fn literal(text: &str) -> String {
    json!(text).to_string()
}

/// Returns a regular expression that matches exactly this text.
fn written_as_regex(text: &str) -> String {
    let mut regex = String::new();
    for c in text.chars() {
        if !c.is_ascii_alphanumeric() && c != '_' && c != '<' && c != '>' {
            regex.push('\\');
        }
        regex.push(c);
    }
    regex
}

/// Returns the schema of a tool's arguments: of an object, without white space that no model needs.
fn arguments(tool: &Tool, brief: bool, most: usize) -> Result<Value, GrammarError> {
    let mut schema = tool.parameters.clone();
    if let Some(fields) = schema.as_object_mut() {
        fields.entry("type").or_insert_with(|| json!("object"));
    }
    if !composes(&schema) {
        close(&mut schema);
        if brief {
            brief::bound(&mut schema);
        }
    }
    json_lines(&schema, !tool.strict, most)
}

/// Returns a schema for JSON on one line, in Python's format. `loose` ignores what llguidance does not support.
fn json_lines(schema: &Value, loose: bool, most: usize) -> Result<Value, GrammarError> {
    let mut schema = prepare(schema.clone(), most)?;
    if let Some(fields) = schema.as_object_mut() {
        let options = json!({
            "whitespace_flexible": false, "item_separator": ", ", "key_separator": ": ", "lenient": loose,
        });
        fields.insert("x-guidance".to_owned(), options);
    }
    Ok(schema)
}

/// Returns whether objects of a schema are described in several places, so that none of them lists all properties.
fn composes(schema: &Value) -> bool {
    const BESIDE: [&str; 7] = [
        "$ref",
        "anyOf",
        "oneOf",
        "if",
        "not",
        "dependentSchemas",
        "unevaluatedProperties",
    ];
    match schema {
        Value::Object(fields) => {
            fields.contains_key("allOf")
                || fields.contains_key("properties")
                    && BESIDE.iter().any(|key| fields.contains_key(*key))
                || fields.values().any(composes)
        }
        Value::Array(values) => values.iter().any(composes),
        _ => false,
    }
}

/// Disallows properties that a schema does not name, unless it explicitly allows them: models then invent none.
fn close(schema: &mut Value) {
    match schema {
        Value::Object(fields) => {
            if let Some(Value::Object(properties)) = fields.get("properties") {
                let required = fields.get("required").and_then(Value::as_array);
                let known = |name: &Value| {
                    let name = name.as_str();
                    name.is_some_and(|name| properties.contains_key(name))
                };
                let open = ["additionalProperties", "patternProperties", "minProperties"];
                if !open.iter().any(|key| fields.contains_key(*key))
                    && required.is_none_or(|names| names.iter().all(known))
                {
                    fields.insert("additionalProperties".to_owned(), json!(false));
                }
            }
            for (key, value) in fields.iter_mut() {
                match (key.as_str(), value) {
                    (
                        "properties" | "patternProperties" | "$defs" | "definitions",
                        Value::Object(named),
                    ) => named.values_mut().for_each(close),
                    (
                        "items" | "prefixItems" | "anyOf" | "oneOf" | "additionalProperties",
                        value,
                    ) => {
                        close(value);
                    }
                    _ => {}
                }
            }
        }
        Value::Array(values) => values.iter_mut().for_each(close),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_get_no_properties_that_nobody_named() {
        let closed = |mut schema: Value| {
            close(&mut schema);
            schema
        };
        let inner = json!({"type": "object", "properties": {"b": {}}});
        let result = closed(json!({"properties": {"a": {"items": inner}}, "$defs": {"n": inner}}));
        assert_eq!(result["additionalProperties"], false);
        assert_eq!(
            result["properties"]["a"]["items"]["additionalProperties"],
            false
        );
        assert_eq!(result["$defs"]["n"]["additionalProperties"], false);
        for open in [
            json!({"type": "object"}),
            json!({"properties": {"a": {}}, "required": ["b"]}),
            json!({"properties": {"a": {}}, "additionalProperties": {"type": "string"}}),
            json!({"properties": {"a": {}}, "minProperties": 2}),
            // Data, not schemas.
            json!({"enum": [{"properties": {}}], "default": {"properties": {}}}),
        ] {
            assert_eq!(closed(open.clone()), open);
        }
        for composed in [
            json!({"allOf": [inner, inner]}),
            json!({"properties": {"a": {"$ref": "#/$defs/a", "properties": {}}}}),
        ] {
            assert!(composes(&composed), "{composed}");
        }
        assert!(!composes(
            &json!({"properties": {"a": {"anyOf": [inner, {"type": "null"}]}}})
        ));
    }
}
