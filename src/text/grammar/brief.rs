//! Schemas for small models, which rarely end a text, a list or a number by themselves: values without a bound get one, so that every
//! value ends. Every value of the bounded schema is a value of the original one.

use serde_json::{Map, Value, json};

/// Length limit of a string without a bound, in characters.
const MOST_CHARACTERS: u64 = 16;

/// Limit on the elements of a list without a bound.
const MOST_ITEMS: u64 = 3;

/// Range of a number without bounds, and distance of a missing bound from a given one.
const NUMBER_RANGE: i64 = 100_000;

/// Keywords that define a value, so that no bound is added.
const DEFINING_KEYWORDS: [&str; 10] = [
    "enum",
    "const",
    "pattern",
    "format",
    "$ref",
    "anyOf",
    "oneOf",
    "not",
    "if",
    "multipleOf",
];

/// Keywords that do not constrain a value.
const ANNOTATIONS: [&str; 6] = [
    "title",
    "description",
    "default",
    "examples",
    "deprecated",
    "$comment",
];

/// Adds bounds to a schema and to those within it, where they are missing.
pub(super) fn bound(schema: &mut Value) {
    match schema {
        Value::Bool(true) => *schema = any(),
        Value::Object(fields) => {
            if fields.keys().all(|key| ANNOTATIONS.contains(&key.as_str())) {
                *schema = any();
                return;
            }
            if !DEFINING_KEYWORDS
                .iter()
                .any(|key| fields.contains_key(*key))
            {
                bound_value(fields);
            }
            for (key, value) in fields.iter_mut() {
                match (key.as_str(), value) {
                    (
                        "properties" | "patternProperties" | "$defs" | "definitions",
                        Value::Object(named),
                    ) => named.values_mut().for_each(bound),
                    ("items", value) => bound(value),
                    ("prefixItems" | "anyOf" | "oneOf", Value::Array(several)) => {
                        several.iter_mut().for_each(bound);
                    }
                    _ => {}
                }
            }
        }
        _ => {}
    }
}

/// Returns the schema used in place of one without constraints.
fn any() -> Value {
    json!({"type": "string", "maxLength": MOST_CHARACTERS})
}

/// Adds bounds for the types that a schema names.
fn bound_value(fields: &mut Map<String, Value>) {
    let types: Vec<String> = match fields.get("type") {
        Some(Value::String(one)) => vec![one.clone()],
        Some(Value::Array(several)) => {
            let several = several.iter().filter_map(Value::as_str);
            several.map(str::to_owned).collect()
        }
        _ => return,
    };
    let is = |kind: &str| types.iter().any(|other| other == kind);
    let least = |fields: &Map<String, Value>, key: &str| {
        fields.get(key).and_then(Value::as_u64).unwrap_or(0)
    };
    if is("string") && !fields.contains_key("maxLength") {
        let most = least(fields, "minLength").max(MOST_CHARACTERS);
        fields.insert("maxLength".to_owned(), json!(most));
    }
    if is("array") {
        if !fields.contains_key("maxItems") {
            let most = least(fields, "minItems").max(MOST_ITEMS);
            fields.insert("maxItems".to_owned(), json!(most));
        }
        if !fields.contains_key("items") && !fields.contains_key("prefixItems") {
            fields.insert("items".to_owned(), any());
        }
    }
    if is("object")
        && !fields.contains_key("minProperties")
        && !fields.contains_key("patternProperties")
    {
        let required = fields.get("required").and_then(Value::as_array);
        let known = fields.get("properties").and_then(Value::as_object);
        let is_known = |name: &Value| {
            let name = name.as_str().unwrap_or_default();
            known.is_some_and(|known| known.contains_key(name))
        };
        if required.is_none_or(|names| names.iter().all(is_known)) {
            fields.insert("additionalProperties".to_owned(), json!(false));
        }
    }
    let bounds = ["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"];
    let bounded = bounds.iter().any(|key| fields.contains_key(*key));
    if is("integer") || is("number") {
        bound_number(fields, bounded, is("number"));
    }
}

/// Adds bounds to a number; one without any bound becomes an integer, since the digits after a decimal point would not end.
fn bound_number(fields: &mut Map<String, Value>, bounded: bool, broken: bool) {
    if !bounded {
        if broken {
            let whole = |kind: &mut Value| {
                if kind == "number" {
                    *kind = json!("integer");
                }
            };
            match fields.get_mut("type") {
                Some(Value::Array(several)) => several.iter_mut().for_each(whole),
                Some(kind) => whole(kind),
                None => {}
            }
        }
        fields.insert("minimum".to_owned(), json!(-NUMBER_RANGE));
        fields.insert("maximum".to_owned(), json!(NUMBER_RANGE));
        return;
    }
    let number = |key: &str| fields.get(key).and_then(Value::as_i64);
    let low = number("minimum").or(number("exclusiveMinimum"));
    let high = number("maximum").or(number("exclusiveMaximum"));
    match (low, high) {
        (Some(low), None) => drop(fields.insert(
            "maximum".to_owned(),
            json!(low.saturating_add(NUMBER_RANGE)),
        )),
        (None, Some(high)) => drop(fields.insert(
            "minimum".to_owned(),
            json!(high.saturating_sub(NUMBER_RANGE)),
        )),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_no_bound_gets_one() {
        let text = json!({"type": "string", "maxLength": 16});
        for (schema, expected) in [
            (json!({}), text.clone()),
            (json!(true), text.clone()),
            (json!({"description": "x"}), text.clone()),
            (json!({"type": "string"}), text.clone()),
            (
                json!({"type": "string", "minLength": 20}),
                json!({"type": "string", "minLength": 20, "maxLength": 20}),
            ),
            (
                json!({"type": ["string", "null"]}),
                json!({"type": ["string", "null"], "maxLength": 16}),
            ),
            (
                json!({"type": "array", "items": {"type": "string"}}),
                json!({"type": "array", "items": text, "maxItems": 3}),
            ),
            (
                json!({"type": "array", "minItems": 4}),
                json!({"type": "array", "minItems": 4, "maxItems": 4, "items": text}),
            ),
            (
                json!({"type": "object"}),
                json!({"type": "object", "additionalProperties": false}),
            ),
            (
                json!({"type": "object", "properties": {"a": {"type": "string"}}, "additionalProperties": {"type": "string"}}),
                json!({"type": "object", "properties": {"a": text}, "additionalProperties": false}),
            ),
            (
                json!({"type": "integer"}),
                json!({"type": "integer", "minimum": -100_000, "maximum": 100_000}),
            ),
            (
                json!({"type": ["number", "null"]}),
                json!({"type": ["integer", "null"], "minimum": -100_000, "maximum": 100_000}),
            ),
            (
                json!({"type": "integer", "exclusiveMinimum": 5}),
                json!({"type": "integer", "exclusiveMinimum": 5, "maximum": 100_005}),
            ),
            (
                json!({"type": "integer", "maximum": 5}),
                json!({"type": "integer", "maximum": 5, "minimum": -99_995}),
            ),
            (
                json!({"anyOf": [{"type": "string"}, {"type": "null"}]}),
                json!({"anyOf": [text, {"type": "null"}]}),
            ),
        ] {
            let mut bounded = schema.clone();
            bound(&mut bounded);
            assert_eq!(bounded, expected, "{schema}");
        }
        for same in [
            json!({"type": "string", "maxLength": 99}),
            json!({"type": "string", "enum": ["a"]}),
            json!({"type": "string", "format": "date"}),
            json!({"type": "string", "pattern": "a+"}),
            json!({"type": "integer", "minimum": 1, "maximum": 2}),
            json!({"type": "object", "minProperties": 1}),
            json!({"type": "object", "required": ["a"]}),
            json!({"type": "boolean"}),
            json!({"$ref": "#/$defs/a"}),
        ] {
            let mut bounded = same.clone();
            bound(&mut bounded);
            assert_eq!(bounded, same);
        }
    }
}
